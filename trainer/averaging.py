"""A moving average of the weights, which is smoother than the last of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import tensorflow as tf


class AveragedWeights(tf.Module):
    """The exponential moving average of variables over the steps of a training.

    After step t = 1, 2, ... the average a of a weight w becomes d a + (1 - d) w, d = min(decay, (1 + t) / (10 + t)), so
    that the first steps, when weights move fast, are soon forgotten.

    Args:
        variables: what is averaged; the average begins with their values of now.
        decay: in (0, 1); 0.999 looks back over about a thousand steps.

    Reference: Polyak & Juditsky, "Acceleration of stochastic approximation by averaging", SIAM 1992.
    """

    def __init__(self, variables: Sequence[tf.Variable], decay: float) -> None:
        super().__init__()
        self._variables = list(variables)
        self._decay = decay
        self.averages = [tf.Variable(variable, trainable=False) for variable in variables]

    def update(self, step: tf.Tensor) -> None:
        """Take the weights of now in; called outside of the replicas.

        Args:
            step: [] steps taken, the one that made these weights included.
        """
        t = tf.cast(step, tf.float32)
        share = 1.0 - tf.minimum(self._decay, (1.0 + t) / (10.0 + t))
        extended = tf.distribute.get_strategy().extended
        for average, variable in zip(self.averages, self._variables, strict=True):
            extended.update(average, lambda a, w: a.assign_sub((a - w) * share), args=(variable,))

    def apply(self) -> None:
        """Put the averages in the place of the weights."""
        for average, variable in zip(self.averages, self._variables, strict=True):
            variable.assign(average)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the averages in the place of the weights, and the weights back afterwards."""
        weights = [variable.numpy() for variable in self._variables]
        self.apply()
        try:
            yield
        finally:
            for variable, weight in zip(self._variables, weights, strict=True):
                variable.assign(weight)
