"""What training leaves out at random; the random state is part of the checkpoint, which that of Keras is not."""

from __future__ import annotations

import tensorflow as tf

UNKNOWN_ID = 1
"""The id that preprocessing gives a value which is not in the vocabulary."""


class ResumableDropout(tf.keras.layers.Layer):
    """Dropout that a resumed training continues."""

    def __init__(self, rate: float, seed: int) -> None:
        super().__init__()
        self.rate = rate
        self.generator = tf.random.Generator.from_seed(seed)

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Zero a share `rate` of the inputs while training, and scale the rest up to the same mean."""
        if not training or not self.rate:
            return inputs
        kept = self.generator.uniform(tf.shape(inputs)) >= self.rate
        return tf.where(kept, inputs / (1.0 - self.rate), tf.zeros_like(inputs))


class UnknownIds(tf.keras.layers.Layer):
    """Hides a share of the ids, as if they were not in the vocabulary.

    A candidate that is new after training has the unknown id, so what the other features say has to carry it. Where
    training shows some known candidates that way, it learns to.

    Args:
        share: of the ids, 0 to 1.
    """

    def __init__(self, share: float, seed: int) -> None:
        super().__init__()
        self.share = share
        self.generator = tf.random.Generator.from_seed(seed)

    def call(self, ids: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Replace that share of the ids by the unknown id while training; a missing id (0) stays missing."""
        if not training or not self.share:
            return ids
        hidden = (self.generator.uniform(tf.shape(ids)) < self.share) & (ids != 0)
        return tf.where(hidden, tf.cast(UNKNOWN_ID, ids.dtype), ids)
