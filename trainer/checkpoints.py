"""Checkpoints that are known to be whole before anything is restored from them.

    <folder>/
      step-<n>.index, step-<n>.data-*   what tf.train.Checkpoint writes
      step-<n>.json                     written last: {file: sha256}; without it there is no checkpoint

TensorFlow finds a damaged file only while it restores from it, with half of the weights in place. So every file is
compared with its digest first, and a checkpoint that is not whole gives way to the one before it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import tempfile
from pathlib import Path

import tensorflow as tf

from lockstep.storage import write_atomically

_log = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of one training.

    Args:
        checkpoint: what is saved and restored.
        keep: how many stay; the oldest go first.
        writes: whether this process is the one that keeps what it saves. The others of several workers have to take
            part in saving, and write to a folder that goes again.
    """

    def __init__(self, checkpoint: tf.train.Checkpoint, folder: Path, *, keep: int, writes: bool = True) -> None:
        self.folder = folder
        self._checkpoint = checkpoint
        self._keep = keep
        self._writes = writes

    def steps(self) -> list[int]:
        """The steps of the checkpoints, whole or not, ascending."""
        return sorted(int(path.stem.removeprefix("step-")) for path in self.folder.glob("step-*.json"))

    def save(self, step: int) -> None:
        """Write a checkpoint; it exists from the moment on at which all of it does."""
        if not self._writes:
            with tempfile.TemporaryDirectory() as folder:
                self._checkpoint.write(str(Path(folder) / "step"))
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        marker = self._marker(step)
        marker.unlink(missing_ok=True)
        self._checkpoint.write(str(marker.with_suffix("")))
        digests = {path.name: _digest(path) for path in self._files(step)}
        write_atomically(marker, json.dumps(digests, indent=1).encode())
        self._remove_all_but(self.steps()[-self._keep :])

    def restore(self) -> int | None:
        """Restore the newest checkpoint that is whole, and say which are not.

        Returns:
            Its step, or None where there is none.
        """
        for step in reversed(self.steps()):
            if self.restore_step(step):
                return step
        return None

    def restore_step(self, step: int) -> bool:
        """Restore the checkpoint of a step; False, and a warning, where it is not whole."""
        fault = self._fault(step)
        if fault is not None:
            _log.warning("the checkpoint of step %d is not used: %s", step, fault)
            return False
        self._checkpoint.read(str(self._marker(step).with_suffix(""))).assert_existing_objects_matched()
        return True

    def _fault(self, step: int) -> str | None:
        """What is wrong with the files of a checkpoint."""
        try:
            digests = json.loads(self._marker(step).read_bytes())
            changed = [name for name, digest in digests.items() if _digest(self.folder / name) != digest]
        except (OSError, ValueError, AttributeError) as error:
            return repr(error)
        return f"{self.folder / changed[0]} is not what was written" if changed else None

    def _marker(self, step: int) -> Path:
        return self.folder / f"step-{step}.json"

    def _files(self, step: int) -> list[Path]:
        return sorted(path for path in self.folder.glob(f"step-{step}.*") if path.suffix != ".json")

    def _remove_all_but(self, kept: list[int]) -> None:
        # The marker first: a checkpoint of which a part is gone must not look like one that was damaged.
        wanted = {f"step-{step}" for step in kept}
        for path in sorted(self.folder.glob("step-*"), key=lambda path: path.suffix != ".json"):
            if path.name.partition(".")[0] not in wanted:
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
