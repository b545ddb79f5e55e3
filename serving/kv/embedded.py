"""The embedded store: LMDB, one file that many processes read while one writes.

    <kv_root>/embedded/
      data.mdb, lock.mdb      LMDB environment with the named databases
        catalogue             "format" -> 1; "generation" -> counts the changes of this database;
                              "slot NN" -> JSON {model_version, snapshot, dim, state, source, tower, token}: what is in
        slot 00 ... slot 63   entity id (UTF-8) -> value (serving.kv.store)

A slot holds one snapshot of one version. A load fills a free slot; publishing marks it and frees the slot of the
version's previous snapshot, in one transaction. LMDB keeps the pages of running readers, so they finish undisturbed.
Slots are reused because a process can never give back a database handle.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lockstep.embeddings import VersionedEmbedding
from lockstep.errors import KVError
from lockstep.version import ModelVersion
from serving.kv.environment import Environment
from serving.kv.store import Load, Published, QueryStore, check_rows, check_tower, decode_value, encode_key

_SLOTS = 64
_FORMAT = b"1"


@dataclass(frozen=True)
class _Slot:
    number: int
    model_version: ModelVersion
    snapshot: int
    dim: int
    state: str
    source: str
    tower: str
    token: str

    @property
    def key(self) -> bytes:
        return b"slot %02d" % self.number

    @classmethod
    def from_json(cls, number: int, data: bytes) -> _Slot:
        raw = json.loads(data)
        return cls(number, ModelVersion(raw.pop("model_version")), **raw)

    def to_json(self) -> bytes:
        raw = {name: value for name, value in vars(self).items() if name != "number"}
        return json.dumps(raw, sort_keys=True).encode()


class EmbeddedStore(QueryStore):
    """Query embeddings in LMDB.

    Args:
        path: the folder of the environment.
        create: make it where there is none.
        map_bytes: first size of the memory map; it doubles when it is full.
    """

    def __init__(self, path: Path, *, keep: int, create: bool = False, map_bytes: int = 1 << 28) -> None:
        super().__init__(keep)
        self.path = path
        names = [b"catalogue", *(b"slot %02d" % number for number in range(_SLOTS))]
        self._environment = Environment.open(path, names, create=create, map_bytes=map_bytes)
        self._catalogue, *self._slots = self._environment.databases
        self._published: tuple[bytes | None, list[_Slot]] = (b"", [])
        if create:
            self._environment.write(lambda txn: txn.put(b"format", _FORMAT, db=self._catalogue, overwrite=False))
        found = self._environment.read(lambda txn: txn.get(b"format", db=self._catalogue))
        if found != _FORMAT:
            self._environment.close()
            raise KVError(
                f"the store {path} has format {found!r}, this lockstep reads {_FORMAT!r}: use the other lockstep"
            )

    def begin(self, model_version: ModelVersion, snapshot: int, dim: int, source: str, tower: str) -> Load:
        token = secrets.token_hex(8)

        def reserve(txn: Any) -> _Slot:
            slots = self._read_slots(txn)
            _refuse_older(slots, model_version, snapshot)
            _refuse_another_tower(slots, model_version, tower)
            for slot in slots:
                if slot.model_version == model_version and slot.state == "loading":
                    self._free(txn, slot)
            used = {slot.number for slot in self._read_slots(txn)}
            number = next((number for number in range(_SLOTS) if number not in used), None)
            if number is None:
                raise KVError(f"all {_SLOTS} slots of {self.path} are taken: retire versions that no release refers to")
            slot = _Slot(number, model_version, snapshot, dim, "loading", source, tower, token)
            txn.drop(self._slots[number], delete=False)
            self._write_slot(txn, slot)
            return slot

        return _EmbeddedLoad(self, self._environment.write(reserve))

    def find(self, entity: str, model_version: ModelVersion, tower: str | None = None) -> VersionedEmbedding | None:
        key = encode_key(entity)

        def look_up(txn: Any) -> tuple[_Slot, bytes | None] | None:
            for slot in self._published_slots(txn):
                if slot.model_version == model_version:
                    return slot, txn.get(key, db=self._slots[slot.number])
            return None

        found = self._environment.read(look_up)
        if found is not None and tower is not None:
            remedy = f"run load_kv with the query embeddings of the release, or deploy {model_version} anew"
            check_tower(model_version, found[0].tower, tower, "the release", remedy)
        if found is None or found[1] is None:
            return None
        return decode_value(key, found[1], model_version, found[0].dim, self.path)

    def get(self, entity: str) -> list[VersionedEmbedding]:
        key = encode_key(entity)

        def look_up(txn: Any) -> list[tuple[_Slot, bytes]]:
            values = ((slot, txn.get(key, db=self._slots[slot.number])) for slot in self._published_slots(txn))
            found = []
            for slot, value in values:
                if value is not None:
                    found.append((slot, value))
                if len(found) == self.keep:
                    break
            return found

        found = self._environment.read(look_up)
        return [decode_value(key, value, slot.model_version, slot.dim, self.path) for slot, value in found]

    def versions(self) -> list[Published]:
        def describe(txn: Any) -> list[Published]:
            return [self._describe(txn, slot) for slot in self._published_slots(txn)]

        return self._environment.read(describe)

    def retire(self, model_version: ModelVersion) -> None:
        def free(txn: Any) -> None:
            for slot in self._read_slots(txn):
                if slot.model_version == model_version:
                    self._free(txn, slot)

        self._environment.write(free)

    def close(self) -> None:
        self._environment.close()

    def put(self, slot: _Slot, keys: Sequence[bytes], values: Sequence[bytes]) -> None:
        """Write into a slot that is still this load's."""

        def put(txn: Any) -> None:
            self._own(txn, slot)
            with txn.cursor(db=self._slots[slot.number]) as cursor:
                cursor.putmulti(sorted(zip(keys, values, strict=True)))

        self._environment.write(put)

    def publish(self, slot: _Slot, rows: int) -> Published:
        """Mark a slot as published and free that of the version's previous snapshot, in one transaction."""

        def publish(txn: Any) -> Published:
            self._own(txn, slot)
            slots = self._read_slots(txn)
            _refuse_older(slots, slot.model_version, slot.snapshot)
            _refuse_another_tower(slots, slot.model_version, slot.tower)
            for other in slots:
                if other.model_version == slot.model_version and other.number != slot.number:
                    self._free(txn, other)
            published = replace(slot, state="published")
            description = self._describe(txn, published)
            check_rows(description, rows)
            self._write_slot(txn, published)
            return description

        return self._environment.write(publish)

    def _describe(self, txn: Any, slot: _Slot) -> Published:
        rows = txn.stat(self._slots[slot.number])["entries"]
        return Published(slot.model_version, slot.snapshot, slot.dim, rows, slot.source, slot.tower)

    def _own(self, txn: Any, slot: _Slot) -> None:
        data = txn.get(slot.key, db=self._catalogue)
        if data is None or _Slot.from_json(slot.number, data) != slot:
            raise KVError(
                f"the load of {slot.model_version}.{slot.snapshot} into {self.path} was dropped: another load of "
                f"{slot.model_version} began, or the version was retired; run load_kv again"
            )

    def _published_slots(self, txn: Any) -> list[_Slot]:
        """Published slots, newest version first; read again only after the catalogue has changed."""
        generation = txn.get(b"generation", db=self._catalogue)
        cached, slots = self._published
        if generation != cached:
            slots = [slot for slot in self._read_slots(txn) if slot.state == "published"]
            slots.sort(key=lambda slot: slot.model_version, reverse=True)
            self._published = (generation, slots)
        return slots

    def _read_slots(self, txn: Any) -> list[_Slot]:
        keys = [(number, b"slot %02d" % number) for number in range(_SLOTS)]
        found = ((number, txn.get(key, db=self._catalogue)) for number, key in keys)
        return [_Slot.from_json(number, data) for number, data in found if data is not None]

    def _write_slot(self, txn: Any, slot: _Slot) -> None:
        txn.put(slot.key, slot.to_json(), db=self._catalogue)
        self._count_change(txn)

    def _free(self, txn: Any, slot: _Slot) -> None:
        txn.delete(slot.key, db=self._catalogue)
        txn.drop(self._slots[slot.number], delete=False)
        self._count_change(txn)

    def _count_change(self, txn: Any) -> None:
        generation = int(txn.get(b"generation", b"0", db=self._catalogue)) + 1
        txn.put(b"generation", b"%d" % generation, db=self._catalogue)


class _EmbeddedLoad(Load):
    def __init__(self, store: EmbeddedStore, slot: _Slot) -> None:
        super().__init__(slot.model_version, slot.snapshot, slot.dim)
        self._store = store
        self._slot = slot

    def _put(self, keys: Sequence[bytes], values: Sequence[bytes]) -> None:
        self._store.put(self._slot, keys, values)

    def publish(self, rows: int) -> Published:
        return self._store.publish(self._slot, rows)


def _refuse_another_tower(slots: Sequence[_Slot], model_version: ModelVersion, tower: str) -> None:
    for slot in slots:
        if slot.model_version == model_version and slot.state == "published":
            remedy = "a number is one training run: train under a number of its own (mint_version), then load that"
            check_tower(model_version, slot.tower, tower, "what is to be loaded", remedy)


def _refuse_older(slots: Sequence[_Slot], model_version: ModelVersion, snapshot: int) -> None:
    for slot in slots:
        if slot.model_version == model_version and slot.state == "published" and slot.snapshot > snapshot:
            raise KVError(
                f"{model_version}.{slot.snapshot} is published, so the older {model_version}.{snapshot} is not loaded "
                f"over it: load a newer snapshot, or retire {model_version} first"
            )
