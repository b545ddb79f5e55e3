"""How much each element of a sequence counts in the one vector that the sequence becomes.

A pooling is a layer from the elements' vectors to weights. They are 0 where nothing stands, and sum to 1 in each
row, or to 0 in a row of nothing. Positions are counted by what is present, not by column, so holes change nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import tensorflow as tf

from lockstep.model_sections import Pooling

_FIRST_RATE = 0.9
_ABSENT = -1e9


class MeanWeights(tf.keras.layers.Layer):
    """Every element counts alike."""

    def __init__(self) -> None:
        super().__init__(name="mean", dtype="float32")

    def call(self, vectors: tf.Tensor, places: tf.Tensor, present: tf.Tensor) -> tf.Tensor:
        """Weigh.

        Args:
            vectors: [distinct, dim] float32 of each distinct element.
            places: [batch, n] rows of `vectors`, oldest first.
            present: [batch, n] bool: an element stands here.

        Returns:
            [batch, n] float32.
        """
        return _normalised(tf.cast(present, tf.float32))


class RecencyWeights(tf.keras.layers.Layer):
    """An element counts `rate` times as much as the next newer one; the rate is learned, from 0.9 on.

    The variable is the rate's logit, which keeps it between 0 and 1.
    """

    def __init__(self) -> None:
        super().__init__(name="recency", dtype="float32")

    def build(self, shape: tf.TensorShape) -> None:
        """Make the rate's variable."""
        logit = math.log(_FIRST_RATE / (1.0 - _FIRST_RATE))
        self.logit = self.add_weight(name="logit", shape=(), initializer=tf.keras.initializers.Constant(logit))
        super().build(shape)

    def call(self, vectors: tf.Tensor, places: tf.Tensor, present: tf.Tensor) -> tf.Tensor:
        """Weigh; see `MeanWeights`."""
        counted = tf.cast(present, tf.float32)
        newer = tf.cumsum(counted, axis=1, exclusive=True, reverse=True)
        return _normalised(counted * tf.exp(newer * tf.math.log_sigmoid(self.logit)))


class AttentionWeights(tf.keras.layers.Layer):
    """The vector itself says how much it counts: softmax over the row of u . tanh(W v + b).

    Reference:
        Yang et al., "Hierarchical attention networks for document classification", NAACL 2016, equations 5 and 6.
    """

    def __init__(self, dim: int, seeds: Iterator[int]) -> None:
        super().__init__(name="attention", dtype="float32")
        glorot = tf.keras.initializers.GlorotUniform
        self.view = tf.keras.layers.Dense(
            dim, activation="tanh", kernel_initializer=glorot(seed=next(seeds)), dtype="float32", name="view"
        )
        self.score = tf.keras.layers.Dense(
            1, use_bias=False, kernel_initializer=glorot(seed=next(seeds)), dtype="float32", name="score"
        )

    def call(self, vectors: tf.Tensor, places: tf.Tensor, present: tf.Tensor) -> tf.Tensor:
        """Weigh; see `MeanWeights`."""
        scores = tf.where(present, tf.gather(self.score(self.view(vectors))[:, 0], places), _ABSENT)
        # The largest is taken off, which changes no softmax and lets no exponential overflow.
        largest = tf.stop_gradient(tf.reduce_max(scores, axis=1, keepdims=True))
        return _normalised(tf.cast(present, tf.float32) * tf.exp(scores - largest))


def pooling_weights(pooling: Pooling, dim: int, seeds: Iterator[int]) -> tf.keras.layers.Layer:
    """The layer that a setting names.

    Args:
        dim: of an element's vector.
    """
    if pooling == "mean":
        return MeanWeights()
    return RecencyWeights() if pooling == "recency" else AttentionWeights(dim, seeds)


def _normalised(weights: tf.Tensor) -> tf.Tensor:
    """Divide by the row's sum, which is 0 or, as the largest weight is 1, at least 1."""
    return weights / tf.maximum(tf.reduce_sum(weights, axis=1, keepdims=True), 1.0)
