"""What a training writes for TensorBoard: scalars, histograms, a profile, and the candidates for the projector.

<folder>/
  events.out.tfevents.*        loss, learning_rate, examples_per_second, validation/...; a histogram of each weight
  plugins/profile/             where [train] profile_steps asks for it
  projector_config.pbtxt, candidates.tsv, metadata.tsv   vectors and ids of the first 10,000 candidates
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from lockstep.storage import mounted, write_atomically

_log = logging.getLogger(__name__)

PROJECTED = 10_000
"""The projector shows so many points at most."""
_HISTOGRAM_VALUES = 100_000
_WARM_UP_STEPS = 10
_PROJECTOR = """embeddings {
  tensor_name: "candidates"
  tensor_path: "candidates.tsv"
  metadata_path: "metadata.tsv"
}
"""


def log_folder(work: Path) -> Path:
    """Where the logs go: AIP_TENSORBOARD_LOG_DIR, which Vertex AI sets, or below `work`."""
    given = os.environ.get("AIP_TENSORBOARD_LOG_DIR")
    return mounted(given) if given else work / "tensorboard"


class TensorBoard:
    """Writes the logs of one training; of several workers, the chief's alone."""

    def __init__(self, folder: Path, *, writes: bool = True) -> None:
        self.folder = folder
        self._writes = writes
        self._writer = tf.summary.create_file_writer(str(folder)) if writes else tf.summary.create_noop_writer()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write figures of a step, by name."""
        with self._writer.as_default(step):
            for name, value in values.items():
                tf.summary.scalar(name, value)

    def histograms(self, step: int, variables: Iterable[tf.Variable]) -> None:
        """Write how the values of each variable are distributed; of large ones, every n-th value."""
        with self._writer.as_default(step):
            for variable in variables:
                values = tf.reshape(variable, [-1])
                tf.summary.histogram(variable.name, values[:: -(-len(values) // _HISTOGRAM_VALUES)])

    def flush(self) -> None:
        """Make what was written visible."""
        self._writer.flush()

    def projector(self, vectors: NDArray[np.float32], ids: Sequence[str]) -> None:
        """Write what the projector shows.

        Args:
            vectors: [candidates, dim].
            ids: [candidates].
        """
        if not self._writes:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        lines = ("\t".join(f"{value:.6g}" for value in vector) + "\n" for vector in vectors)
        write_atomically(self.folder / "candidates.tsv", "".join(lines).encode())
        # An id that holds a tab or a line break would be two.
        write_atomically(self.folder / "metadata.tsv", "".join(" ".join(i.split()) + "\n" for i in ids).encode())
        write_atomically(self.folder / "projector_config.pbtxt", _PROJECTOR.encode())


class Profiler:
    """Records some steps for TensorBoard, once the first ones, which trace and compile, are over.

    Args:
        steps: how many; 0 for none.
    """

    def __init__(self, folder: Path, steps: int) -> None:
        self._folder = folder
        self._begin, self._end = _WARM_UP_STEPS, _WARM_UP_STEPS + steps
        self._steps = 0
        self._records = False

    def before_step(self) -> None:
        """Begin or end the record."""
        if self._steps == self._begin < self._end:
            tf.profiler.experimental.start(str(self._folder))
            self._records = True
        elif self._steps == self._end:
            self.stop()
        self._steps += 1

    def stop(self) -> None:
        """End the record; where one was asked for and has not begun, say so."""
        if self._records:
            tf.profiler.experimental.stop()
            self._records = False
        elif self._steps <= self._begin < self._end:
            _log.warning(
                "no profile was recorded: this start trained %d steps, and [train] profile_steps begins after %d; "
                "profile a training, or the rest of one, of more than %d steps",
                self._steps,
                self._begin,
                self._begin,
            )
