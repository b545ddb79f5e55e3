"""The interface of a store of query embeddings, and the form of its values.

A store holds, for each model version, one published snapshot of all query entities. A snapshot is loaded beside
what is published and appears, whole, when it is published; until then, and after a crash, the old one answers.
"""

from __future__ import annotations

import struct
import zlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from lockstep.embeddings import VersionedEmbedding, VersionedEmbeddings
from lockstep.errors import KVError, VersionMismatchError
from lockstep.schema import MAX_ID_BYTES
from lockstep.version import ModelVersion

_HEAD = struct.Struct("<QI")


@dataclass(frozen=True)
class Published:
    """One model version that a store answers for.

    Args:
        rows: entities.
        source: digest of the tag of the embeddings that were loaded.
        tower: digest of the tag of the query tower that made them.
    """

    model_version: ModelVersion
    snapshot: int
    dim: int
    rows: int
    source: str
    tower: str

    @property
    def namespace(self) -> str:
        """What a release manifest calls it."""
        return str(self.model_version)


class Load(ABC):
    """A snapshot that is being loaded and that nobody can read yet."""

    def __init__(self, model_version: ModelVersion, snapshot: int, dim: int) -> None:
        self.model_version = model_version
        self.snapshot = snapshot
        self.dim = dim

    def put_many(self, entities: Sequence[str], embeddings: VersionedEmbeddings) -> None:
        """Add entities; one that comes again is replaced.

        Args:
            entities: [batch] ids of 1 to 256 bytes in UTF-8.
            embeddings: [batch, dim] of this load's version.

        Raises:
            VersionMismatchError: the embeddings are of another version.
            KVError: another process has taken over the load, or an id cannot be a key.
        """
        if embeddings.model_version != self.model_version:
            raise VersionMismatchError(
                "the embeddings to store", embeddings.model_version, "the load", self.model_version,
                f"load {embeddings.model_version} into its own namespace",
            )  # fmt: skip
        if embeddings.vectors.shape != (len(entities), self.dim):
            expected = f"{len(entities)} rows of {self.dim} floats"
            raise KVError(
                f"embeddings of shape {embeddings.vectors.shape} for {expected}: pass one row for each entity"
            )
        keys = [encode_key(entity) for entity in entities]
        self._put(keys, encode_values(keys, embeddings))

    @abstractmethod
    def publish(self, rows: int) -> Published:
        """Make the snapshot the one that is read of its version, in one step.

        Args:
            rows: how many entities it must hold; ids that came twice make it fewer.

        Raises:
            KVError: it holds fewer, a newer snapshot of the version is published, or the load was taken over.
        """

    @abstractmethod
    def _put(self, keys: Sequence[bytes], values: Sequence[bytes]) -> None: ...


class QueryStore(ABC):
    """Query embeddings of the last model versions, by entity.

    Args:
        keep: how many versions of an entity `get` returns, and how many `retain` keeps.
    """

    def __init__(self, keep: int) -> None:
        self.keep = keep

    @abstractmethod
    def begin(self, model_version: ModelVersion, snapshot: int, dim: int, source: str, tower: str) -> Load:
        """Start loading a snapshot; an unfinished load of the same version is dropped.

        Args:
            dim: the length of a vector.
            source: digest of the tag of the embeddings.
            tower: digest of the tag of the query tower that made them.

        Raises:
            KVError: a newer snapshot of the version is published already.
            VersionMismatchError: the version is published, made by another tower that bears the same number.
        """

    @abstractmethod
    def find(self, entity: str, model_version: ModelVersion, tower: str | None = None) -> VersionedEmbedding | None:
        """The entity's vector of one version, or None where it has none or the version is not published.

        Args:
            tower: digest of the tag of the query tower that must have made it, as a release names it; a number alone
                does not tell a model from another that somebody trained under the same number.

        Raises:
            VersionMismatchError: another tower of that number made it.
            KVError: what is stored is not what was put.
        """

    @abstractmethod
    def get(self, entity: str) -> list[VersionedEmbedding]:
        """The entity's vectors of its last `keep` published versions, newest first.

        An entity that was absent from recent versions has the ones before them.
        """

    @abstractmethod
    def versions(self) -> list[Published]:
        """What is published, newest version first."""

    @abstractmethod
    def retire(self, model_version: ModelVersion) -> None:
        """Remove a version, published or being loaded; nothing happens where it is not there."""

    @abstractmethod
    def close(self) -> None:
        """Let go of files and connections."""

    def count(self, model_version: ModelVersion) -> int:
        """Entities of a published version; 0 where it is not published."""
        return next((found.rows for found in self.versions() if found.model_version == model_version), 0)

    def retain(self, referred: Collection[ModelVersion]) -> list[ModelVersion]:
        """Remove the versions that are neither among the newest `keep` nor referred to.

        Args:
            referred: versions of the releases that serving may still answer from.

        Returns:
            The versions that were removed.
        """
        published = [found.model_version for found in self.versions()]
        retired = [version for version in published[self.keep :] if version not in referred]
        for version in retired:
            self.retire(version)
        return retired

    def __enter__(self) -> QueryStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def check_tower(model_version: ModelVersion, found: str, expected: str, what: str, remedy: str) -> None:
    """Refuse to take two models for one because they bear the same number.

    Args:
        found: digest of the query tower's tag that the store holds.
        expected: the one that `what` has.
    """
    if found != expected:
        raise VersionMismatchError(
            f"what the key-value store holds of {model_version}",
            f"tower {found[:12]}",
            what,
            f"tower {expected[:12]}",
            remedy,
        )


def check_rows(found: Published, expected: int) -> None:
    """Refuse to publish a load with fewer entities than were put."""
    if found.rows != expected:
        raise KVError(
            f"the load of {found.model_version}.{found.snapshot} holds {found.rows} entities, expected {expected}: "
            "an id comes twice in its source; rerun embed_queries, then load_kv"
        )


def encode_key(entity: str) -> bytes:
    """The key of an entity.

    Raises:
        KVError: the id is empty, too long or no Unicode.
    """
    try:
        key = entity.encode()
    except UnicodeEncodeError as error:
        raise KVError(f"the entity id {entity!r} is no Unicode text: mend the source") from error
    if not 1 <= len(key) <= MAX_ID_BYTES:
        raise KVError(f"the entity id {entity[:40]!r} has {len(key)} bytes: an id has 1 to {MAX_ID_BYTES}")
    return key


def encode_values(keys: Sequence[bytes], embeddings: VersionedEmbeddings) -> list[bytes]:
    """Values as they are stored: uint64 version, uint32 CRC of key, version and vector, float32 vector."""
    version = int(embeddings.model_version)
    rows = np.ascontiguousarray(embeddings.vectors, dtype="<f4")
    width = rows.shape[1] * 4
    blob = rows.tobytes()
    values = []
    for place, key in enumerate(keys):
        vector = blob[place * width : (place + 1) * width]
        values.append(_HEAD.pack(version, _checksum(key, version, vector)) + vector)
    return values


def decode_value(key: bytes, value: bytes, model_version: ModelVersion, dim: int, where: object) -> VersionedEmbedding:
    """Read a value, checking that it is this entity's, of this version, and whole.

    Args:
        where: names the store in messages.

    Raises:
        VersionMismatchError: it is of another version than the namespace that it lies in.
        KVError: it is not what was stored.
    """
    remedy = f"run load_kv for {model_version} again"
    if len(value) != _HEAD.size + 4 * dim:
        entry = f"{key.decode()!r} of {model_version} in {where}"
        raise KVError(f"{entry} has {len(value)} bytes, expected {_HEAD.size + 4 * dim}: {remedy}")
    version, checksum = _HEAD.unpack_from(value)
    vector = value[_HEAD.size :]
    if checksum != _checksum(key, version, vector):
        raise KVError(f"{key.decode()!r} of {model_version} in {where} is corrupt (checksum): {remedy}")
    if version != model_version:
        entry = f"the value of {key.decode()!r} in {where}"
        raise VersionMismatchError(entry, f"v{version}", "its namespace", model_version, remedy)
    array: NDArray[np.float32] = np.frombuffer(vector, dtype="<f4")
    return VersionedEmbedding(array, model_version)


def _checksum(key: bytes, version: int, vector: bytes) -> int:
    return zlib.crc32(vector, zlib.crc32(b"%d/" % version, zlib.crc32(key)))
