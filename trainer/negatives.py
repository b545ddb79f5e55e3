"""What a query's own candidate is told apart from: the rest of the batch, draws from the catalogue, or all of it.

References:
    Yi et al., "Sampling-bias-corrected neural modeling for large corpus item recommendations", RecSys 2019.
    Yang et al., "Mixed negative sampling for learning two-tower neural networks in recommendations", WWW 2020.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import tensorflow as tf

from lockstep.errors import ConfigError
from lockstep.model_sections import TrainSection
from trainer.candidates import CandidateTable
from trainer.frequency import StreamingFrequency
from trainer.losses import Columns

Encode = Callable[[Mapping[str, tf.Tensor]], tf.Tensor]
"""The candidate tower: encoded features of n candidates in, [n, dim] vectors out."""

LogQ = Literal["data", "streaming", "none"]

_LEAST_PROBABILITY = 1e-9


class FullCatalogue(tf.Module):
    """Every candidate that training knows, so nothing is sampled and nothing to be corrected.

    Left out of a query's negatives is its own past, which evaluation and serving exclude, too. What was hidden of the
    past is to be found as well, where the batch says so.

    Args:
        probability: [candidates]; 0 where a candidate is no negative.
    """

    def __init__(self, candidates: CandidateTable, probability: tf.Tensor) -> None:
        super().__init__()
        self.candidates = candidates
        self.correction = tf.where(probability > 0.0, 0.0, -math.inf)

    def __call__(self, batch: Mapping[str, Any], encode: Encode, training: bool) -> Columns:
        """The columns of a batch: the candidates by index."""
        own, past = tf.cast(batch["candidate_index"], tf.int32), tf.cast(batch["past"], tf.int32)
        vectors = encode(self.candidates.all())
        hidden = tf.cast(batch["hidden"], tf.int32)
        left_out = tf.where(past > 0, past - 1, own[:, tf.newaxis])
        also = tf.where(hidden > 0, hidden - 1, own[:, tf.newaxis])
        return Columns(vectors, self.correction, own, tf.zeros(tf.shape(own)), left_out, also)


class SampledCandidates(tf.Module):
    """The candidates of the batch, and `uniform` others, of all that training knows equally likely.

    Logits are less the log of the probability with which a candidate is drawn into the sample (logQ), so that
    frequent candidates are not pushed away for being frequent. With uniform draws that is the probability of the
    mixture: (batch * p + uniform / candidates) / (batch + uniform), p of the batch's own draws.

    A candidate that was drawn k times is one column with a correction of log k, as k equal columns would be. So what
    is a query's own elsewhere in the sample (an accidental hit) is one column, too, and left out; and so is its past.

    Under a strategy of several replicas each has the candidates of its own part of the batch.

    Args:
        probability: [candidates] that a label is this one; 0 where a candidate is never drawn otherwise either.
        logq: where the correction has it from: `data` (the above), `streaming` estimates, or `none` for no correction.
    """

    def __init__(self, candidates: CandidateTable, probability: tf.Tensor, logq: LogQ, uniform: int, seed: int) -> None:
        super().__init__()
        self.candidates = candidates
        self.given = probability if logq == "data" else None
        self.streaming = StreamingFrequency(candidates.rows) if logq == "streaming" else None
        self.known = tf.where(probability > 0.0)[:, 0]
        self.uniform = uniform
        self.generator = tf.random.Generator.from_seed(seed)

    def __call__(self, batch: Mapping[str, Any], encode: Encode, training: bool) -> Columns:
        """The columns of a batch: its examples' candidates in their order, then the uniform draws."""
        own, features = batch["candidate_index"], batch["candidate"]
        if self.streaming is not None and training:
            self.streaming.observe(own)
        indices = own
        if self.uniform:
            places = self.generator.uniform([self.uniform], maxval=tf.size(self.known, tf.int64), dtype=tf.int64)
            drawn = tf.gather(self.known, places)
            indices = tf.concat([own, drawn], axis=0)
            others = self.candidates.features(drawn)
            features = {
                name: tf.concat([values, tf.cast(others[name], values.dtype)], axis=0)
                for name, values in features.items()
            }
        first, times = _first_places(indices, self.candidates.rows)
        log_probability = tf.math.log(self._probability(indices, tf.size(own)))
        own_places = tf.range(tf.shape(own)[0])
        left_out = tf.gather(first, tf.concat([own[:, tf.newaxis] + 1, batch["past"]], axis=1))
        return Columns(
            vectors=encode(features),
            correction=tf.math.log(times) - log_probability,
            own=own_places,
            own_correction=-log_probability[: tf.shape(own)[0]],
            left_out=tf.where(left_out < tf.shape(indices)[0], left_out, own_places[:, tf.newaxis]),
            also=tf.zeros([tf.size(own_places), 0], tf.int32),
        )

    def _probability(self, indices: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        """[n] probability of each candidate of the sample, of which so many are labels; 1 where none is corrected."""
        if self.given is not None:
            probability = tf.gather(self.given, indices)
        elif self.streaming is not None:
            probability = self.streaming.probability(indices)
        else:
            return tf.ones_like(indices, tf.float32)
        if self.uniform:
            size, uniform = tf.cast(labels, tf.float32), float(self.uniform)
            share = uniform / tf.cast(tf.size(self.known), tf.float32)
            probability = (size * probability + share) / (size + uniform)
        return tf.maximum(probability, _LEAST_PROBABILITY)


def build_negatives(
    candidates: CandidateTable, probability: tf.Tensor, train: TrainSection
) -> FullCatalogue | SampledCandidates:
    """What [train] negatives asks for; `auto` is decided by the size of the catalogue.

    Args:
        probability: [candidates] each one's share of the labels; 0 where training does not know it.

    Raises:
        ConfigError: something is asked for that takes the full softmax, and this is not one.
    """
    kind = train.negatives
    if kind == "auto":
        kind = "full" if candidates.rows <= train.full_softmax_max else "mixed"
    if kind == "full":
        return FullCatalogue(candidates, probability)
    if train.find_hidden:
        raise ConfigError(
            f"[train] find_hidden takes the full softmax, which is not taken for {candidates.rows:,} candidates, "
            f"more than full_softmax_max = {train.full_softmax_max:,}: raise that, or leave find_hidden out"
        )
    uniform = train.uniform_negatives if kind == "mixed" else 0
    return SampledCandidates(candidates, probability, train.logq, uniform, train.seed)


def _first_places(indices: tf.Tensor, candidates: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Where each candidate stands in a sample first, and how often it stands there.

    Returns:
        [candidates + 1] int32 place of candidate i at i + 1, as in a past; n where the sample of n has none of it.
        [n] float32 times that the candidate stands in the sample, at its first place; 0 at the others.
    """
    count = tf.shape(indices)[0]
    nowhere = tf.fill([candidates + 1], count)
    first = tf.tensor_scatter_nd_min(nowhere, indices[:, tf.newaxis] + 1, tf.range(count))
    ones = tf.ones_like(indices, tf.float32)
    return first, tf.math.unsorted_segment_sum(ones, tf.gather(first, indices + 1), count)
