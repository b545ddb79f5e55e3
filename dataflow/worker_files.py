"""Files where workers reach them: through Beam's file systems, one code for a local disk and for a bucket.

Buckets of Vertex AI pipelines are mounted below /gcs in the container of a step, but not on the workers that it
starts; those take the bucket's own address.
"""

from __future__ import annotations

import glob
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems

from dataflow.beam_options import LOCAL_RUNNERS
from lockstep.errors import ConfigError
from lockstep.storage import bucket_uri


def seen_by_workers(path: Path, runner: str) -> str:
    """The address of a folder for the workers of a runner.

    Raises:
        ConfigError: they cannot see it.
    """
    address = path.as_posix()
    if address.startswith("gs:/"):  # Path makes one slash of two
        return "gs://" + address.removeprefix("gs:/")
    if runner in LOCAL_RUNNERS:
        return address
    if bucket_uri(path):
        return bucket_uri(path)
    if runner == "DataflowRunner":
        raise ConfigError(
            f"the workers of DataflowRunner cannot see {address}: run with a gs:// root, or use DirectRunner"
        )
    return address


def matches(folder: str, pattern: str) -> list[str]:
    """The addresses of a folder's files, sorted; none where there is no folder.

    Args:
        pattern: `*` stands for anything but a slash, `**` for anything.
    """
    escaped = glob.escape(folder)
    return sorted(found.path for found in FileSystems.match([f"{escaped}/{pattern}"])[0].metadata_list)


def read(address: str) -> IO[bytes]:
    """Open a file to read it as it is, compressed or not."""
    return FileSystems.open(address, compression_type=CompressionTypes.UNCOMPRESSED)


@contextmanager
def local(folder: str) -> Iterator[Path]:
    """A folder on this machine's disk, for as long as it takes to load or map what is in it; a bucket's is copied."""
    if "://" not in folder:
        yield Path(folder)
        return
    with tempfile.TemporaryDirectory() as copies:
        for address in matches(folder, "**"):
            target = Path(copies) / address.removeprefix(folder).lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            with read(address) as source, target.open("wb") as copy:
                shutil.copyfileobj(source, copy)
        yield Path(copies)


@contextmanager
def written(address: str) -> Iterator[Path]:
    """A local file to write, which becomes the file at an address, whole or not at all.

    Attempts of one bundle, which may run at the same time, write the same bytes, each under a name of its own first.
    """
    folder, _, name = address.rpartition("/")
    unfinished = f"{folder}/.{name}.{uuid.uuid4().hex}"
    with tempfile.TemporaryDirectory() as local:
        file = Path(local) / name
        yield file
        try:
            with file.open("rb") as source, _create(unfinished) as copy:
                shutil.copyfileobj(source, copy)
            FileSystems.rename([unfinished], [address])
        except BaseException:
            remove([unfinished])
            raise


def remove(addresses: Sequence[str]) -> None:
    """Delete those of the files that exist."""
    FileSystems.delete([address for address in addresses if FileSystems.exists(address)])


def _create(address: str) -> IO[bytes]:
    return FileSystems.create(address, compression_type=CompressionTypes.UNCOMPRESSED)
