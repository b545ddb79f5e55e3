"""A write-ahead log of the changes of an index: what is in it, a restart does not lose.

  changes-<generation>.log     header, then records; each of them length: uint32, crc32: uint32, payload (little endian)
    header's payload           JSON: {"format", "model_version", "snapshot", "base", "dim"}, base = digest of the tag of
                               the index that is changed
    record's payload           "U" and an Arrow record batch: id, embedding, restricts, numeric_restricts, crowding_tag
                               "R" and an Arrow record batch: id

A record is on disk before its change is visible. One that was cut off at the end of the file was never answered for,
and is cut away; a broken one before others is an error.
"""

from __future__ import annotations

import json
import logging
import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from lockstep.embeddings import NUMERIC_RESTRICTS, RESTRICTS
from lockstep.errors import CorruptArtifactError, StorageError, VersionMismatchError
from lockstep.storage import sync_directory

_FORMAT = 1
_FRAME = struct.Struct("<II")
_log = logging.getLogger(__name__)

Change = Literal["U", "R"]
REMOVALS = pa.schema([pa.field("id", pa.string(), nullable=False)])


def upserts_schema(dim: int) -> pa.Schema:
    """What an upsert holds."""
    return pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            pa.field("embedding", pa.list_(pa.float32(), dim), nullable=False),
            pa.field("restricts", RESTRICTS),
            pa.field("numeric_restricts", NUMERIC_RESTRICTS),
            pa.field("crowding_tag", pa.string()),
        ]
    )


class ChangeLog:
    """The changes of one index, in the order in which they were made.

    Args:
        path: made where it is missing.
        header: model_version, snapshot, base and dim of the index.

    Raises:
        VersionMismatchError: the log is of another version or index.
        CorruptArtifactError: it is broken before its end.
    """

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        self.path = path
        self._header = {"format": _FORMAT, **header}
        self._schemas: dict[str, pa.Schema] = {"U": upserts_schema(header["dim"]), "R": REMOVALS}
        self._file = path.open("a+b", buffering=0)
        self.first = self._open_header()
        """Where the first record begins."""
        self.size = self._whole_records()
        """Where the last whole record ends."""

    def append(self, change: Change, batch: pa.RecordBatch) -> None:
        """Add a record; it is on disk when this returns."""
        self._write(change.encode() + batch.serialize().to_pybytes())
        self.size = self._file.tell()

    def read(self, start: int = 0) -> Iterator[tuple[Change, pa.RecordBatch]]:
        """The records from a byte on, which is a former `size`; by default all."""
        for _, payload in self._payloads(start or self.first):
            change: Change = "U" if payload[:1] == b"U" else "R"
            yield change, pa.ipc.read_record_batch(pa.py_buffer(payload[1:]), self._schemas[change])

    def branch(self, path: Path, header: Mapping[str, Any], start: int) -> ChangeLog:
        """Another log, of a newer base, that begins with the records of this one from a byte on."""
        path.unlink(missing_ok=True)
        branched = ChangeLog(path, header)
        for _, payload in self._payloads(start):
            branched._write(payload)
        branched.size = branched._file.tell()
        return branched

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def _write(self, payload: bytes) -> None:
        """Add a record whole, or leave the file as it was."""
        descriptor = self._file.fileno()
        end = os.fstat(descriptor).st_size
        rest = memoryview(_FRAME.pack(len(payload), zlib.crc32(payload)) + payload)
        try:
            while rest:
                rest = rest[os.write(descriptor, rest) :]
            os.fsync(descriptor)
        except OSError as error:
            os.ftruncate(descriptor, end)
            problem = f"{self.path} cannot be written ({error.strerror})"
            raise StorageError(f"{problem}, so the change was not made: make room, then try again") from error

    def _payloads(self, start: int) -> Iterator[tuple[int, bytes]]:
        """(where it ends, payload) of every whole record; stops at one that is not."""
        descriptor = self._file.fileno()
        place = start
        while len(frame := os.pread(descriptor, _FRAME.size, place)) == _FRAME.size:
            length, checksum = _FRAME.unpack(frame)
            payload = os.pread(descriptor, length, place + _FRAME.size)
            if len(payload) < length or zlib.crc32(payload) != checksum:
                return
            place += _FRAME.size + length
            yield place, payload

    def _open_header(self) -> int:
        """Compare the header, or write one; a header that was cut off has no changes after it."""
        first, payload = next(self._payloads(0), (0, b""))
        if not first:
            self._cut_off(0)
            self._write(json.dumps(self._header, sort_keys=True).encode())
            sync_directory(self.path.parent)
            return self._file.tell()
        header = json.loads(payload)
        if header != self._header:
            found, expected = (
                f"v{of['model_version']}.{of['snapshot']} ({of['base'][:12]})" for of in (header, self._header)
            )
            remedy = "give each index a folder of its own"
            raise VersionMismatchError(f"the log {self.path}", found, "the index to be changed", expected, remedy)
        return first

    def _whole_records(self) -> int:
        whole = self.first
        for whole, _ in self._payloads(self.first):  # noqa: B007
            pass
        self._cut_off(whole)
        return whole

    def _cut_off(self, whole: int) -> None:
        """Drop what comes after the whole records, unless it is too much to be the rest of one."""
        end = os.fstat(self._file.fileno()).st_size
        if whole == end:
            return
        frame = os.pread(self._file.fileno(), _FRAME.size, whole)
        if len(frame) == _FRAME.size and whole + _FRAME.size + _FRAME.unpack(frame)[0] < end:
            remedy = "changes before it can be kept by cutting the file there; restore it from a backup to keep all"
            raise CorruptArtifactError(self.path, f"a broken record at byte {whole}", "whole ones", remedy)
        _log.warning("%s: the last record was cut off while it was written; %d bytes dropped", self.path, end - whole)
        self._file.truncate(whole)
        os.fsync(self._file.fileno())
        self._file.seek(0, os.SEEK_END)
