"""Estimates of how likely a candidate is drawn into a batch, which the sampled softmax is corrected by (logQ).

References:
    Yi et al., "Sampling-bias-corrected neural modeling for large corpus item recommendations", RecSys 2019,
    section 4, algorithm 2.
"""

from __future__ import annotations

import tensorflow as tf

_RATE = 0.01
"""The share of a new gap in the estimate, once a candidate has been seen 100 times."""


class StreamingFrequency(tf.Module):
    """Probabilities estimated while training, from how many examples lie between two of the same candidate.

    Algorithm 2 of the paper, with three differences. Candidates are numbered, so each has its own place and nothing is
    hashed. Time is counted in examples, and a batch that holds a candidate k times brings k gaps of a k-th of the time
    since the last: so the estimate is the probability of a draw, also of a candidate that is in every batch. And the
    first gaps are averaged evenly, so that the estimate does not begin with a guess.
    """

    def __init__(self, candidates: int, rate: float = _RATE) -> None:
        super().__init__()
        self.rate = rate
        self.time = _state([], tf.int64)
        self.last = _state([candidates], tf.int64)
        self.times = _state([candidates], tf.int64)
        self.gap = _state([candidates], tf.float32)

    def observe(self, indices: tf.Tensor) -> None:
        """Take note of a batch: [batch] candidate indices."""
        self.time.assign_add(tf.size(indices, tf.int64))
        before = tf.gather(self.times, indices)
        self.times.scatter_add(tf.IndexedSlices(tf.ones_like(before), indices))
        ever = tf.gather(self.times, indices)
        here = tf.cast(ever - before, tf.float32)
        gap = tf.cast(self.time - tf.gather(self.last, indices), tf.float32) / here
        # As much as `here` steps of `rate`, or the mean of all gaps so far as long as that moves faster.
        share = tf.maximum(1.0 - tf.pow(1.0 - self.rate, here), here / tf.cast(ever, tf.float32))
        old = tf.gather(self.gap, indices)
        # A candidate that stands in the batch twice is written twice, the same.
        self.gap.scatter_update(tf.IndexedSlices(old + share * (gap - old), indices))
        self.last.scatter_update(tf.IndexedSlices(tf.fill(tf.shape(indices), self.time), indices))

    def probability(self, indices: tf.Tensor) -> tf.Tensor:
        """[n] probability, for each of [n] candidate indices, that a draw is this candidate.

        Of one never seen it is what it would be had it come just now.
        """
        gap = tf.gather(self.gap, indices)
        return tf.math.reciprocal_no_nan(tf.where(gap > 0.0, gap, tf.cast(self.time, tf.float32)))


def _state(shape: list[int], dtype: tf.DType) -> tf.Variable:
    # Replicas each draw from the same data: the first one's account is as good as any.
    return tf.Variable(tf.zeros(shape, dtype), trainable=False, aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA)
