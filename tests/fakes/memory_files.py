"""A Beam file system in memory, `memory://...`: what is not reached through Beam's file systems is not there."""

from __future__ import annotations

import io
import posixpath
from collections.abc import Iterator
from typing import Any

from apache_beam.io.filesystem import FileMetadata, FileSystem

FILES: dict[str, bytes] = {}
"""By address; like a bucket, it has no folders."""


class MemoryFileSystem(FileSystem):
    """Found by Beam by its scheme, as soon as this module is imported."""

    @classmethod
    def scheme(cls) -> str:
        return "memory"

    def has_dirs(self) -> bool:
        return False

    def mkdirs(self, path: str) -> None:
        pass

    def join(self, basepath: str, *paths: str) -> str:
        return posixpath.join(basepath, *paths)

    def split(self, path: str) -> tuple[str, str]:
        return posixpath.split(path)

    def _list(self, prefix: str) -> Iterator[FileMetadata]:
        for name, data in list(FILES.items()):
            if name.startswith(prefix):
                yield FileMetadata(name, len(data))

    def create(self, path: str, *_: Any, **__: Any) -> io.BytesIO:
        return _Created(path)

    def open(self, path: str, *_: Any, **__: Any) -> io.BytesIO:
        return io.BytesIO(FILES[path])

    def rename(self, source_file_names: list[str], destination_file_names: list[str]) -> None:
        for source, destination in zip(source_file_names, destination_file_names, strict=True):
            FILES[destination] = FILES.pop(source)

    def copy(self, source_file_names: list[str], destination_file_names: list[str]) -> None:
        for source, destination in zip(source_file_names, destination_file_names, strict=True):
            FILES[destination] = FILES[source]

    def exists(self, path: str) -> bool:
        return path in FILES

    def size(self, path: str) -> int:
        return len(FILES[path])

    def last_updated(self, path: str) -> float:
        return 0.0

    def checksum(self, path: str) -> str:
        return str(hash(FILES[path]))

    def metadata(self, path: str) -> FileMetadata:
        return FileMetadata(path, len(FILES[path]))

    def delete(self, paths: list[str]) -> None:
        for path in paths:
            del FILES[path]


class _Created(io.BytesIO):
    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path

    def close(self) -> None:
        if not self.closed:
            FILES[self._path] = self.getvalue()
        super().close()
