"""Training records into batches, in an order that seed and epoch alone decide.

So a run that was killed goes on exactly where its checkpoint stands: it opens the same epoch and skips the batches
that it has seen. And several workers share an epoch as one would have it to itself: every record is in one batch of
one of them.

Records name candidates by index; what the towers want of them is joined here, from memory (`trainer.candidates`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from lockstep.errors import TrainingError
from lockstep.schema import Schema, count_days
from lockstep.tags import Artifact
from trainer.candidates import CandidateTable
from trainer.encoding import EncodedFeature, EncodedFeatures


@dataclass(frozen=True)
class TrainingRecords:
    """The training split of an `examples` artifact.

    Args:
        files: the TFRecord shards, sorted.
        rows: records in all of them.
        candidates: what the records' indices mean.
        past_length: indices of the past in a record; 0 where no feature reads it.
        own_candidate_features: those that differ from record to record, which the records hold themselves.
        batch_size: records a step, of all replicas; every batch is full, the rest of an epoch is left out.
        shuffle_buffer: records among which the next is drawn; all of them where they fit.
        sample_history: whether a batch shows a random part of each past.
        seed: decides the order and the parts.
    """

    files: tuple[str, ...]
    rows: int
    features: EncodedFeatures
    candidates: CandidateTable
    past_length: int
    own_candidate_features: tuple[str, ...]
    batch_size: int
    shuffle_buffer: int
    sample_history: bool
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """Full batches in one pass."""
        return self.rows // self.batch_size

    def batches(
        self, epoch: int, skip: int = 0, *, replicas: int = 1, worker: int = 0, workers: int = 1
    ) -> tf.data.Dataset:
        """The batches of one epoch from step `skip` on.

        Args:
            replicas: parts that a step's batch is divided into, over all workers; each element here is one.
            worker: which worker's parts.

        Each is `{"query": {name: [batch, length] or Repeated}, "candidate": {name: [batch, length]},
        "candidate_index": [batch] int64, "past": [batch, past_length] int64, index + 1 or 0,
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
        part = self.batch_size // replicas
        records = records.take(self.steps_per_epoch * replicas * part)
        parts = records.batch(part, drop_remainder=True).enumerate().skip(skip * replicas)
        if workers > 1:
            parts = parts.batch(replicas // workers).shard(workers, worker).unbatch()
        batches = parts.map(
            lambda number, batch: self._parse(batch, tf.stack([tf.constant(seed, tf.int64), number])),
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=True,
        )
        return batches.prefetch(4)

    def _parse(self, records: tf.Tensor, seed: tf.Tensor) -> dict[str, Any]:
        own = {f"query/{f.name}": _fixed(f) for f in self.features.query if not f.past}
        own |= {
            f"candidate/{f.name}": _fixed(f) for f in self.features.candidate if f.name in self.own_candidate_features
        }
        spec = {**own, "candidate_index": tf.io.FixedLenFeature([], tf.int64)}
        if self.past_length:
            spec["past"] = tf.io.FixedLenFeature([self.past_length], tf.int64)
        for name in ("sampling_probability", "age_days", "weight"):
            spec[name] = tf.io.FixedLenFeature([], tf.float32)
        parsed = tf.io.parse_example(records, spec)
        past = parsed.pop("past", tf.zeros([tf.shape(records)[0], 0], tf.int64))
        if self.sample_history:
            past = sample_past(past, seed)
        query = self.candidates.past(past)
        candidate = self.candidates.features(parsed["candidate_index"])
        for key in own:
            side, name = key.split("/")
            (query if side == "query" else candidate)[name] = parsed.pop(key)
        return {"query": query, "candidate": candidate, "past": past, **parsed}


def sample_past(past: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Show a random part of each past: any number of its elements is as likely as any other, and so is any choice.

    A query may come with two candidates of its past or with twenty; a model that saw only whole ones is lost with two.
    And a target is told from many partial views of its past, as in a denoising autoencoder.

    Args:
        past: [batch, width], 0 where nothing stands.
        seed: [2] int64; the same gives the same.

    Returns:
        [batch, width] with the elements that are not shown replaced by 0; at least one is shown of what has any.

    Reference: Liang et al., "Variational autoencoders for collaborative filtering", WWW 2018.
    """
    present = past > 0
    count = tf.reduce_sum(tf.cast(present, tf.float32), axis=1, keepdims=True)
    shown = 1.0 + tf.floor(tf.random.stateless_uniform(tf.shape(count), seed) * count)
    keys = tf.random.stateless_uniform(tf.shape(past), seed + 1)
    rank = tf.argsort(tf.argsort(tf.where(present, keys, 2.0), axis=1), axis=1)
    return tf.where(tf.cast(rank, tf.float32) < shown, past, 0)


def open_training_records(
    examples: Artifact,
    features: EncodedFeatures,
    *,
    batch_size: int,
    shuffle_buffer: int,
    seed: int,
    sample_history: bool = False,
) -> TrainingRecords:
    """Find the training split; a batch is never larger than it.

    Raises:
        TrainingError: it has too few records for one batch with a negative in it.
        CorruptArtifactError: the encoded candidates are not those of the features.
    """
    files = tuple(str(path) for path in sorted((examples / "train").glob("part-*.tfrecord.gz")))
    rows = examples.tag.rows
    if not files or rows < 2:
        raise TrainingError(
            f"{examples.path} holds {rows} training examples in {len(files)} files, and training needs at least 2: "
            "see its report.json for the rows that were filtered, and lower [data] min_history or the split shares"
        )
    schema = Schema.from_json((examples / "schema.json").read_bytes())
    return TrainingRecords(
        files,
        rows,
        features,
        CandidateTable(examples / "candidates", features),
        schema.max_history,
        tuple(name for name, feature in schema.candidate.items() if count_days(feature.columns[0]) is not None),
        min(batch_size, rows),
        shuffle_buffer,
        sample_history,
        seed,
    )


def _fixed(feature: EncodedFeature) -> tf.io.FixedLenFeature:
    return tf.io.FixedLenFeature([feature.length], tf.as_dtype(feature.dtype))
