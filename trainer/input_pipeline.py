"""Training records into batches, in an order that seed and epoch alone decide.

So a run that was killed goes on exactly where its checkpoint stands: it opens the same epoch and skips the batches
that it has seen. And several workers share an epoch as one would have it to itself: every record is in one batch of
one of them.

Records name candidates by index; what the towers want of them is joined here, from memory (`trainer.candidates`).
Where old examples are to count for less, an epoch has fewer of them, drawn anew each time: a step costs the same
whatever its examples weigh, so none is spent on those that would hardly count.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import tensorflow as tf

from lockstep.errors import TrainingError
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
        half_life_days: a record this much older than the newest is in half as many epochs; None for no difference.
        probability: [candidates] share of each among the labels of an epoch; None for what the records say.
        candidates: what the records' indices mean.
        past_length: indices of the past in a record; 0 where no feature reads it.
        own_candidate_features: those that differ from record to record, which the records hold themselves.
        batch_size: records a step, of all replicas; every batch is full, the rest of an epoch is left out.
        shuffle_buffer: records among which the next is drawn; all of them where they fit.
        sample_history: share of the records of which a batch shows a random part of the past.
        sample_at_most: elements that such a part has at most; None for any number.
        find_hidden: whether what is not shown of a past is to be found.
        seed: decides the order and the parts.
    """

    files: tuple[str, ...]
    rows: int
    kept: int
    half_life_days: float | None
    probability: tf.Tensor | None
    features: EncodedFeatures
    candidates: CandidateTable
    past_length: int
    own_candidate_features: tuple[str, ...]
    batch_size: int
    shuffle_buffer: int
    sample_history: float
    sample_at_most: int | None
    find_hidden: bool
    seed: int

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
        elements that are not shown but to be found, "sampling_probability": [batch] float32, "age_days": [batch]
        float32, "weight": [batch] float32}`.
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
        if self.half_life_days is not None:
            chunks = records.batch(_CHUNK).enumerate()
            kept = chunks.map(lambda number, chunk: self._keep(chunk, _seed(seed, number)), tf.data.AUTOTUNE)
            records = kept.unbatch()
        records = records.shuffle(min(self.kept, self.shuffle_buffer), seed=seed, reshuffle_each_iteration=False)
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
        assert self.half_life_days is not None, "otherwise it has all"
        age = tf.io.parse_example(records, {"age_days": tf.io.FixedLenFeature([], tf.float32)})["age_days"]
        chance = tf.pow(2.0, -age / self.half_life_days)
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
        for name in ("sampling_probability", "age_days", "weight"):
            spec[name] = tf.io.FixedLenFeature([], tf.float32)
        parsed = tf.io.parse_example(records, spec)
        past = parsed.pop("past", tf.zeros([tf.shape(records)[0], 0], tf.int64))
        if self.probability is not None:
            parsed["sampling_probability"] = tf.gather(self.probability, parsed["candidate_index"])
        hidden = past[:, :0]
        if self.sample_history:
            shown = sample_past(past, self.sample_history, seed, self.sample_at_most)
            hidden, past = tf.where(shown > 0, tf.zeros_like(past), past) if self.find_hidden else hidden, shown
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


def open_training_records(
    examples: Artifact,
    features: EncodedFeatures,
    *,
    batch_size: int,
    shuffle_buffer: int,
    seed: int,
    sample_history: float = 0.0,
    sample_at_most: int | None = None,
    find_hidden: bool = False,
    half_life_days: float | None = None,
) -> TrainingRecords:
    """Find the training split; a batch is never larger than an epoch.

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
    missing = [name for name in ("candidates", "ages.json", "interactions.parquet") if not (examples / name).exists()]
    if missing:
        raise TrainingError(
            f"{examples.path} has no {' and no '.join(missing)}: an earlier version of Lockstep made it, with other "
            "training records; rerun generate_examples"
        )
    schema = Schema.from_json((examples / "schema.json").read_bytes())
    candidates = CandidateTable(examples / "candidates", features)
    kept, probability = rows, None
    if half_life_days is not None:
        kept = _kept(examples, half_life_days)
        probability = _recent_probability(examples, candidates.rows, half_life_days)
    if kept < 2:
        raise TrainingError(
            f"of {rows} training examples an epoch has about {kept} with [train] half_life_days = {half_life_days}, "
            "and needs at least 2: raise it or leave it out"
        )
    return TrainingRecords(
        files,
        rows,
        kept,
        half_life_days,
        probability,
        features,
        candidates,
        schema.max_history,
        tuple(name for name, feature in schema.candidate.items() if count_days(feature.columns[0]) is not None),
        min(batch_size, kept),
        shuffle_buffer,
        sample_history,
        sample_at_most,
        find_hidden,
        seed,
    )


def _kept(examples: Artifact, half_life_days: float) -> int:
    """How many records an epoch has at least: five deviations below what is expected."""
    ages = np.array(json.loads(examples.read("ages.json")), dtype=np.float64).reshape(-1, 2)
    # A record's age is the whole days of the file and up to one more.
    chance = 0.5 ** ((ages[:, 0] + 1.0) / half_life_days)
    expected, variance = (ages[:, 1] * chance).sum(), (ages[:, 1] * chance * (1.0 - chance)).sum()
    return max(0, int(expected - 5.0 * np.sqrt(variance)))


def _recent_probability(examples: Artifact, candidates: int, half_life_days: float) -> tf.Tensor:
    """[candidates] float32: each one's share of the training events, where an older one counts for less."""
    table = pq.read_table(examples / "interactions.parquet", columns=["candidate", "age_days"])
    weights = 0.5 ** (table["age_days"].to_numpy() / half_life_days)
    counted = np.bincount(table["candidate"].to_numpy(), weights, candidates)
    floor = 0.5 * counted[counted > 0].min(initial=1.0)
    shares = np.maximum(counted, floor) / counted.sum()
    with tf.device("CPU"):
        return tf.constant(shares.astype(np.float32))


def _seed(seed: int, number: tf.Tensor) -> tf.Tensor:
    return tf.stack([tf.constant(seed, tf.int64), number])


def _fixed(feature: EncodedFeature) -> tf.io.FixedLenFeature:
    return tf.io.FixedLenFeature([feature.length], tf.as_dtype(feature.dtype))
