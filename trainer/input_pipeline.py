"""Training records into batches, in an order that seed and epoch alone decide.

So a run that was killed goes on exactly where its checkpoint stands: it opens the same epoch and skips the batches
that it has seen. And several workers share an epoch as one would have it to itself: every record is in one batch of
one of them.

Records name candidates by index; what the towers want of them is joined here, from memory (`trainer.candidates`).
Where old examples are to count for less, an epoch has fewer of them, drawn anew each time: a step costs the same
whatever its examples weigh, so none is spent on those that would hardly count.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow as tf
from numpy.typing import NDArray

from lockstep.errors import ConfigError, TrainingError
from lockstep.model_sections import TrainSection
from lockstep.schema import Schema, count_days
from lockstep.tags import Artifact
from trainer.candidates import CandidateTable
from trainer.encoding import EncodedFeature, EncodedFeatures

_CHUNK = 8192
"""Records whose age is read at once."""


@dataclass(frozen=True)
class TrainingRecords:
    """The training split of an `examples` artifact.

    Args:
        files: the TFRecord shards, sorted.
        rows: records in all of them.
        kept: records of an epoch.
        probability: [candidates] float32, each one's share of the labels of an epoch; 0 for one that was not known
            before the validation split, which is no negative.
        features: what the towers take.
        candidates: what the records' indices mean.
        past_length: indices of the past in a record; 0 where no feature reads it.
        own_candidate_features: those that differ from record to record, which the records hold themselves.
        batch_size: records a step, of all replicas; every batch is full, the rest of an epoch is left out.
        section: how they are drawn, shuffled and shown.
    """

    files: tuple[str, ...]
    rows: int
    kept: int
    probability: tf.Tensor
    features: EncodedFeatures
    candidates: CandidateTable
    past_length: int
    own_candidate_features: tuple[str, ...]
    batch_size: int
    section: TrainSection

    @property
    def steps_per_epoch(self) -> int:
        """Full batches in one epoch."""
        return self.kept // self.batch_size

    def batches(
        self, epoch: int, skip: int = 0, *, replicas: int = 1, worker: int = 0, workers: int = 1
    ) -> tf.data.Dataset:
        """The batches of one epoch from step `skip` on.

        Args:
            replicas: parts that a step's batch is divided into, over all workers; each element here is one.
            worker: which worker's parts.

        Each is `{"query": {name: [batch, length] or Repeated}, "candidate": {name: [batch, length]},
        "candidate_index": [batch] int64, "past": [batch, past_length] int64, index + 1 or 0, "hidden": the same of the
        elements that are not shown but to be found, "weight": [batch] float32}`.
        """
        seed = self.section.seed * 1_000_003 + epoch
        files = tf.data.Dataset.from_tensor_slices(list(self.files))
        files = files.shuffle(len(self.files), seed=seed, reshuffle_each_iteration=False)
        records = files.interleave(
            lambda file: tf.data.TFRecordDataset(file, compression_type="GZIP", buffer_size=2**20),
            cycle_length=min(16, len(self.files)),
            block_length=16,
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=True,
        )
        if self.section.half_life_days is not None:
            chunks = records.batch(_CHUNK).enumerate()
            kept = chunks.map(lambda number, chunk: self._keep(chunk, _seed(seed, number)), tf.data.AUTOTUNE)
            records = kept.unbatch()
        records = records.shuffle(
            min(self.kept, self.section.shuffle_buffer), seed=seed, reshuffle_each_iteration=False
        )
        part = self.batch_size // replicas
        records = records.take(self.steps_per_epoch * replicas * part)
        parts = records.batch(part, drop_remainder=True).enumerate().skip(skip * replicas)
        if workers > 1:
            parts = parts.batch(replicas // workers).shard(workers, worker).unbatch()
        batches = parts.map(
            lambda number, batch: self._parse(batch, _seed(seed, number)),
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=True,
        )
        return batches.prefetch(4)

    def _keep(self, records: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Those of [n] records that an epoch has."""
        assert self.section.half_life_days is not None, "otherwise it has all"
        age = tf.io.parse_example(records, {"age_days": tf.io.FixedLenFeature([], tf.float32)})["age_days"]
        chance = tf.pow(2.0, -age / self.section.half_life_days)
        return tf.boolean_mask(
            records,
            tf.random.stateless_uniform(tf.shape(age), tf.random.experimental.stateless_fold_in(seed, 2)) < chance,
        )

    def _parse(self, records: tf.Tensor, seed: tf.Tensor) -> dict[str, Any]:
        own = {f"query/{f.name}": _fixed(f) for f in self.features.query if not f.past}
        own |= {
            f"candidate/{f.name}": _fixed(f) for f in self.features.candidate if f.name in self.own_candidate_features
        }
        spec = {**own, "candidate_index": tf.io.FixedLenFeature([], tf.int64)}
        if self.past_length:
            spec["past"] = tf.io.FixedLenFeature([self.past_length], tf.int64)
        spec["weight"] = tf.io.FixedLenFeature([], tf.float32)
        parsed = tf.io.parse_example(records, spec)
        past = parsed.pop("past", tf.zeros([tf.shape(records)[0], 0], tf.int64))
        hidden = past[:, :0]
        if self.section.sample_history:
            shown = sample_past(past, self.section.sample_history, seed, self.section.sample_at_most)
            hidden, past = tf.where(shown > 0, tf.zeros_like(past), past) if self.section.find_hidden else hidden, shown
        query = self.candidates.past(past)
        candidate = self.candidates.features(parsed["candidate_index"])
        for key in own:
            side, name = key.split("/")
            (query if side == "query" else candidate)[name] = parsed.pop(key)
        return {"query": query, "candidate": candidate, "past": past, "hidden": hidden, **parsed}


def sample_past(past: tf.Tensor, share: float, seed: tf.Tensor, at_most: int | None = None) -> tf.Tensor:
    """Show a random part of some pasts: of n elements k, where log(k) is uniform up to log(n), and any k of them.

    A query may come with two candidates of its past or with twenty, and a model that has seen only whole pasts is lost
    with two. And a target is told from many partial views of its past, as in a denoising autoencoder.

    Args:
        past: [batch, width], 0 where nothing stands.
        share: of the rows that show a part; the others show all.
        seed: [2] int64; the same gives the same.
        at_most: k is no larger.

    Returns:
        [batch, width] with the elements that are not shown replaced by 0; at least one is shown of what has any.

    Reference: Liang et al., "Variational autoencoders for collaborative filtering", WWW 2018, for the denoising.
    """
    present = past > 0
    count = tf.reduce_sum(tf.cast(present, tf.float32), axis=1, keepdims=True)
    draws = tf.random.stateless_uniform([tf.shape(past)[0], 2], seed)
    most = count if at_most is None else tf.minimum(count, float(at_most))
    shown = tf.floor(tf.pow(most + 1.0, draws[:, :1]))
    shown = tf.where(draws[:, 1:] < share, shown, count)
    keys = tf.random.stateless_uniform(tf.shape(past), tf.random.experimental.stateless_fold_in(seed, 1))
    rank = tf.argsort(tf.argsort(tf.where(present, keys, 2.0), axis=1), axis=1)
    return tf.where(tf.cast(rank, tf.float32) < shown, past, 0)


def open_training_records(examples: Artifact, features: EncodedFeatures, section: TrainSection) -> TrainingRecords:
    """Find the training split; a batch is never larger than an epoch.

    Within the scope of the strategy that trains: a batch of all records still has as many for each replica.

    Raises:
        TrainingError: it has too few records for one batch with a negative in it, or is of an earlier version.
        ConfigError: a part of the history is to be shown, and no feature has a history.
        CorruptArtifactError: the encoded candidates are not those of the features.
    """
    files = tuple(str(path) for path in sorted((examples / "train").glob("part-*.tfrecord.gz")))
    rows = examples.tag.rows
    if not files or rows < 2:
        raise TrainingError(
            f"{examples.path} holds {rows} training examples in {len(files)} files, and training needs at least 2: "
            "see its report.json for the rows that were filtered, and lower [data] min_history or the split shares"
        )
    missing = [name for name in ("candidates", "labels.parquet") if not (examples / name).exists()]
    if missing:
        raise TrainingError(
            f"{examples.path} has no {' and no '.join(missing)}: an earlier version of Lockstep made it, with other "
            "training records; rerun generate_examples"
        )
    schema = Schema.from_json((examples / "schema.json").read_bytes())
    candidates = CandidateTable(examples / "candidates", features)
    if section.sample_history and not schema.max_history:
        raise ConfigError(
            f"[train] sample_history is {section.sample_history}, but no query feature of [schema] is of the history "
            "(`history.` columns): leave it out, and find_hidden with it"
        )
    half_life = section.half_life_days
    labels = pq.read_table(examples / "labels.parquet")
    known = pq.read_table(examples / "catalogue.parquet")["known_before_validation"].to_numpy()
    kept = rows if half_life is None else _kept(labels, half_life)
    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    if kept < 2 * replicas:
        of_age = "" if half_life is None else f" with [train] half_life_days = {half_life}"
        remedy = "train on fewer devices" if half_life is None else "raise it or leave it out"
        raise TrainingError(
            f"of {rows} training examples an epoch has about {kept}{of_age}, and needs at least 2 for each of "
            f"{replicas} replicas: {remedy}"
        )
    return TrainingRecords(
        files,
        rows,
        kept,
        _probability(labels, known, half_life),
        features,
        candidates,
        schema.max_history,
        tuple(name for name, feature in schema.candidate.items() if count_days(feature.columns[0]) is not None),
        section.batch_size if section.batch_size <= kept else kept - kept % replicas,
        section,
    )


def _kept(labels: pa.Table, half_life_days: float) -> int:
    """How many records an epoch has at least: five deviations below what is expected."""
    # A record's age is the whole hours of the file and up to one more.
    chance = _chance(labels["age_hours"].to_numpy() + 1, half_life_days)
    examples = labels["examples"].to_numpy()
    expected, variance = (examples * chance).sum(), (examples * chance * (1.0 - chance)).sum()
    return max(0, int(expected - 5.0 * np.sqrt(variance)))


def _probability(labels: pa.Table, known: NDArray[np.bool_], half_life_days: float | None) -> tf.Tensor:
    """[candidates] float32: each one's share of what an epoch has as labels.

    A candidate that is known and no label has half the share of the rarest: uniform draws reach it, too.
    """
    examples, age_hours = labels["examples"].to_numpy(), labels["age_hours"].to_numpy()
    drawn = examples if half_life_days is None else examples * _chance(age_hours, half_life_days)
    counted = np.bincount(labels["candidate"].to_numpy(), drawn, len(known))
    floor = 0.5 * counted[counted > 0].min()
    shares = np.maximum(counted, floor) / counted.sum()
    # 0 means unknown, so no known one becomes 0 by rounding.
    shares = np.where(known, np.maximum(shares, np.finfo(np.float32).tiny), 0.0)
    with tf.device("CPU"):
        return tf.constant(shares.astype(np.float32))


def _chance(age_hours: NDArray[np.integer], half_life_days: float) -> NDArray[np.float64]:
    chance: NDArray[np.float64] = 0.5 ** (age_hours / (24.0 * half_life_days))
    return chance


def _seed(seed: int, number: tf.Tensor) -> tf.Tensor:
    return tf.stack([tf.constant(seed, tf.int64), number])


def _fixed(feature: EncodedFeature) -> tf.io.FixedLenFeature:
    return tf.io.FixedLenFeature([feature.length], tf.as_dtype(feature.dtype))
