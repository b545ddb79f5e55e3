"""The root: the one local folder or gs:// prefix that Lockstep writes to.

The registry needs three things of a store that plain file copying does not give: create only if absent, replace
only if unchanged, and a rename that is all or nothing. `LocalStorage` has them from the file system, `GcsStorage`
from object generations. Artifacts are folders of ordinary files and need no more than a local copy (`local_copy`).
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from abc import ABC, abstractmethod
from pathlib import Path, PurePosixPath
from typing import Any

from lockstep.errors import StorageError

_MOUNT = Path("/gcs")


def bucket_uri(path: Path) -> str:
    """The gs:// address of a path on a mount of Cloud Storage, as KFP and Vertex AI mount it; empty for any other.

    >>> bucket_uri(Path("/gcs/bucket/a b/c")), bucket_uri(Path("/tmp/c"))
    ('gs://bucket/a b/c', '')
    """
    return f"gs://{path.relative_to(_MOUNT)}" if path.is_relative_to(_MOUNT) else ""


def mounted(uri: str) -> Path:
    """The path under which an address is mounted, the inverse of `bucket_uri`; any other is a path already.

    >>> mounted("gs://bucket/a b/c"), mounted("/tmp/c")
    (PosixPath('/gcs/bucket/a b/c'), PosixPath('/tmp/c'))
    """
    return _MOUNT / uri.removeprefix("gs://") if uri.startswith("gs://") else Path(uri)


class Storage(ABC):
    """A root with atomic small-file operations; every path is relative to it and confined to it."""

    def __init__(self, root: str) -> None:
        self.root = root.rstrip("/") or "/"

    def uri(self, path: str) -> str:
        """The full address of a path below the root."""
        return f"{self.root}/{confined(path)}"

    def relative(self, uri: str) -> str:
        """The path of an address below the root, or the address itself elsewhere; so that a root can be moved."""
        prefix = self.root + "/"
        return confined(uri[len(prefix) :]) if uri.startswith(prefix) else uri

    def resolve(self, uri: str) -> str:
        """The inverse of `relative`."""
        return uri if "://" in uri or uri.startswith("/") else self.uri(uri)

    @abstractmethod
    def read(self, path: str) -> tuple[bytes, str] | None:
        """Contents and generation of a file, or None; the generation is what `replace` compares."""

    @abstractmethod
    def create(self, path: str, data: bytes) -> bool:
        """Write a new file completely or not at all; False where one exists already."""

    @abstractmethod
    def replace(self, path: str, data: bytes, generation: str) -> bool:
        """Overwrite a file if it still has this generation; False where somebody was first."""

    @abstractmethod
    def names(self, path: str) -> list[str]:
        """The names of the files directly below a folder, sorted; none where there is no such folder."""

    @abstractmethod
    def local_copy(self, uri: str, cache: Path) -> Path:
        """A local folder with the contents of an artifact's address."""


class LocalStorage(Storage):
    """A root on a local disk.

    Creation is a hard link of a finished file (it fails if the name is taken, and never shows half a file);
    replacement compares and renames under an exclusive lock, which the kernel drops if its holder dies.
    """

    def __init__(self, root: str) -> None:
        super().__init__(str(Path(root).expanduser().resolve()))

    def read(self, path: str) -> tuple[bytes, str] | None:
        try:
            data = self._path(path).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageError(f"cannot read {self.uri(path)}: {error.strerror}; check its permissions") from error
        return data, hashlib.sha256(data).hexdigest()

    def create(self, path: str, data: bytes) -> bool:
        target = self._path(path)
        self._make_parent(target)
        temporary = _write_temporary(target, data)
        try:
            os.link(temporary, target)
        except FileExistsError:
            return False
        finally:
            temporary.unlink()
        sync_directory(target.parent)
        return True

    def replace(self, path: str, data: bytes, generation: str) -> bool:
        target = self._path(path)
        self._make_parent(target)
        with (target.parent / f".{target.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            found = self.read(path)
            if found is None or found[1] != generation:
                return False
            write_atomically(target, data)
            return True

    def names(self, path: str) -> list[str]:
        directory = self._path(path)
        if not directory.is_dir():
            return []
        return sorted(p.name for p in directory.iterdir() if p.is_file() and not p.name.startswith("."))

    def local_copy(self, uri: str, cache: Path) -> Path:
        return Path(self.resolve(uri))

    def _path(self, path: str) -> Path:
        target = Path(self.root) / confined(path)
        if not target.resolve().is_relative_to(self.root):
            raise StorageError(f"{path!r} leads outside the root {self.root}: remove the symbolic link")
        return target

    def _make_parent(self, target: Path) -> None:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(
                f"cannot write below {self.root}: {error.strerror}; choose another root with --root"
            ) from error


class GcsStorage(Storage):
    """A root in Google Cloud Storage; `if_generation_match` gives the same guarantees as the local locks."""

    def __init__(self, root: str, client: Any = None) -> None:
        super().__init__(root)
        bucket, _, self._prefix = self.root.removeprefix("gs://").partition("/")
        if client is None:
            try:
                from google.cloud import storage
            except ImportError as error:
                raise StorageError(
                    f"{root} needs the Google Cloud client: pip install 'lockstep-retrieval[gcp]'"
                ) from error
            try:
                client = storage.Client()
            except Exception as error:  # google.auth raises its own kind, which is not imported where it is not needed
                raise StorageError(f"cannot open {root}: {' '.join(str(error).split())}") from error
        self._client = client
        self._bucket = client.bucket(bucket)

    def read(self, path: str) -> tuple[bytes, str] | None:
        from google.api_core.exceptions import NotFound, PreconditionFailed

        while True:
            blob = self._bucket.blob(self._name(path))
            try:
                # The generation must be that of the bytes: ask for the object's first, then for exactly it.
                blob.reload()
                generation = blob.generation
                return blob.download_as_bytes(if_generation_match=generation), str(generation)
            except NotFound:
                return None
            except PreconditionFailed:
                continue

    def create(self, path: str, data: bytes) -> bool:
        return self._upload(path, data, 0)

    def replace(self, path: str, data: bytes, generation: str) -> bool:
        return self._upload(path, data, int(generation))

    def names(self, path: str) -> list[str]:
        prefix = self._name(path) + "/"
        blobs = self._client.list_blobs(self._bucket, prefix=prefix, delimiter="/")
        return sorted(blob.name[len(prefix) :] for blob in blobs)

    def local_copy(self, uri: str, cache: Path) -> Path:
        source = self.resolve(uri).removeprefix("gs://")
        bucket, _, prefix = source.partition("/")
        target = cache / confined(source)
        for blob in self._client.list_blobs(bucket, prefix=prefix + "/"):
            destination = target / confined(blob.name[len(prefix) + 1 :])
            if destination.exists() and destination.stat().st_size == blob.size:
                continue
            destination.parent.mkdir(parents=True, exist_ok=True)
            blob.download_to_filename(destination)
        return target

    def _upload(self, path: str, data: bytes, generation: int) -> bool:
        from google.api_core.exceptions import PreconditionFailed

        try:
            self._bucket.blob(self._name(path)).upload_from_string(data, if_generation_match=generation)
        except PreconditionFailed:
            return False
        return True

    def _name(self, path: str) -> str:
        return "/".join(part for part in (self._prefix, confined(path)) if part)


def open_root(root: str) -> Storage:
    """The storage behind a root: a local path or a gs:// prefix."""
    if root.startswith("gs://"):
        return GcsStorage(root)
    if "://" in root:
        raise StorageError(f"the root {root!r} has an unknown scheme: use a local folder or gs://bucket/prefix")
    return LocalStorage(root)


def confined(path: str) -> str:
    """A relative path that cannot climb out of its root, normalised.

    Raises:
        StorageError: it is absolute or climbs.
    """
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or not pure.parts or "\x00" in path:
        raise StorageError(f"the path {path!r} is not below the root: use a relative path without '..'")
    return pure.as_posix()


def write_atomically(path: Path, data: bytes) -> None:
    """Write a local file so that any reader sees the old contents or the new, never half of either."""
    temporary = _write_temporary(path, data)
    temporary.replace(path)
    sync_directory(path.parent)


UNFINISHED = ".unfinished"
"""Marks a folder that `fresh_directory` made and whose artifact has no tag yet."""


def fresh_directory(path: Path) -> Path:
    """An empty folder at this path; what an earlier attempt left there is removed, what somebody else put there is not.

    Raises:
        StorageError: the folder holds something that is neither an artifact nor an unfinished one.
    """
    if path.exists():
        ours = path.is_dir() and any((path / name).exists() for name in (UNFINISHED, "tag.json"))
        if not ours and (not path.is_dir() or any(path.iterdir())):
            raise StorageError(f"{path} is to be written, but it holds something else: name an empty or new folder")
        shutil.rmtree(path)
    try:
        path.mkdir(parents=True)
        (path / UNFINISHED).touch()
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}; name another folder") from error
    return path


def _write_temporary(target: Path, data: bytes) -> Path:
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary = Path(name)
    temporary.chmod(0o644)
    return temporary


def sync_directory(directory: Path) -> None:
    """Put on disk which files a folder has."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
