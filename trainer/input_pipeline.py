"""Training records into batches, in an order that seed and epoch alone decide.

So a run that was killed goes on exactly where its checkpoint stands: it opens the same epoch and skips the batches
that it has seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from lockstep.errors import TrainingError
from lockstep.tags import Artifact
from trainer.encoding import SIDES, EncodedFeature, EncodedFeatures


@dataclass(frozen=True)
class TrainingRecords:
    """The training split of an `examples` artifact.

    Args:
        files: the TFRecord shards, sorted.
        rows: records in all of them.
        batch_size: records a step; every batch is full, the rest of an epoch is left out.
        shuffle_buffer: records among which the next is drawn; all of them where they fit.
        seed: decides the order.
    """

    files: tuple[str, ...]
    rows: int
    features: EncodedFeatures
    batch_size: int
    shuffle_buffer: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """Full batches in one pass."""
        return self.rows // self.batch_size

    def batches(self, epoch: int, skip: int = 0) -> tf.data.Dataset:
        """The batches of one epoch from batch `skip` on.

        Each is `{"query": {name: [batch, length]}, "candidate": {...}, "candidate_index": [batch] int64,
        "sampling_probability": [batch] float32, "age_days": [batch] float32, "weight": [batch] float32}`.
        """
        seed = self.seed * 1_000_003 + epoch
        files = tf.data.Dataset.from_tensor_slices(list(self.files))
        files = files.shuffle(len(self.files), seed=seed, reshuffle_each_iteration=False)
        records = files.interleave(
            lambda file: tf.data.TFRecordDataset(file, compression_type="GZIP", buffer_size=2**20),
            cycle_length=min(16, len(self.files)),
            block_length=16,
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=True,
        )
        records = records.shuffle(min(self.rows, self.shuffle_buffer), seed=seed, reshuffle_each_iteration=False)
        batches = records.batch(self.batch_size, drop_remainder=True).skip(skip)
        return batches.map(self._parse, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True).prefetch(4)

    def _parse(self, records: tf.Tensor) -> dict[str, Any]:
        spec: dict[str, tf.io.FixedLenFeature] = {
            f"{side}/{feature.name}": _fixed(feature) for side in SIDES for feature in self.features.side(side)
        }
        spec["candidate_index"] = tf.io.FixedLenFeature([], tf.int64)
        for name in ("sampling_probability", "age_days", "weight"):
            spec[name] = tf.io.FixedLenFeature([], tf.float32)
        parsed = tf.io.parse_example(records, spec)
        batch: dict[str, Any] = {
            side: {f.name: parsed.pop(f"{side}/{f.name}") for f in self.features.side(side)} for side in SIDES
        }
        return {**batch, **parsed}


def open_training_records(
    examples: Artifact, features: EncodedFeatures, *, batch_size: int, shuffle_buffer: int, seed: int
) -> TrainingRecords:
    """Find the training split; a batch is never larger than it.

    Raises:
        TrainingError: it has too few records for one batch with a negative in it.
    """
    files = tuple(str(path) for path in sorted((examples / "train").glob("part-*.tfrecord.gz")))
    rows = examples.tag.rows
    if not files or rows < 2:
        raise TrainingError(
            f"{examples.path} holds {rows} training examples in {len(files)} files, and training needs at least 2: "
            "see its report.json for the rows that were filtered, and lower [data] min_history or the split shares"
        )
    return TrainingRecords(files, rows, features, min(batch_size, rows), shuffle_buffer, seed)


def _fixed(feature: EncodedFeature) -> tf.io.FixedLenFeature:
    return tf.io.FixedLenFeature([feature.length], tf.as_dtype(feature.dtype))
