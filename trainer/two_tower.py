"""The two-tower retrieval model: in-batch sampled softmax over the other candidates of the batch.

References:
    Yi et al., "Sampling-bias-corrected neural modeling for large corpus item recommendations", RecSys 2019.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import tensorflow as tf
import tensorflow_recommenders as tfrs

from trainer.towers import TowerNetwork


class TwoTowerModel(tfrs.Model):
    """Both towers and the loss that trains them together.

    The logits are cosine / temperature, less the log of the probability with which each candidate is drawn into a
    batch (logQ), so that frequent candidates are not pushed away for being frequent; a candidate that stands in
    the batch twice is no negative of itself.
    """

    def __init__(
        self,
        query_tower: TowerNetwork,
        candidate_tower: TowerNetwork,
        *,
        temperature: float,
        half_life_days: float | None = None,
    ) -> None:
        super().__init__()
        self.query_tower = query_tower
        self.candidate_tower = candidate_tower
        self._half_life_days = half_life_days
        self._task = tfrs.tasks.Retrieval(temperature=temperature, remove_accidental_hits=True)

    def compute_loss(self, inputs: Mapping[str, Any], training: bool = False) -> tf.Tensor:
        """The loss of a batch, for each example of it.

        Args:
            inputs: `query` and `candidate`: name -> [batch, length]; `candidate_index` [batch] int64;
                `sampling_probability` [batch] in (0, 1]; `age_days` [batch] before the newest example; `weight`
                [batch] by engagement, of mean 1.

        Returns:
            [] float32: the weighted mean, so that the learning rate does not depend on the batch size.
        """
        weights = example_weights(inputs["weight"], inputs["age_days"], self._half_life_days)
        total = self._task(
            self.query_tower(inputs["query"], training=training),
            self.candidate_tower(inputs["candidate"], training=training),
            sample_weight=weights,
            candidate_sampling_probability=inputs["sampling_probability"],
            candidate_ids=inputs["candidate_index"],
            compute_metrics=False,
            compute_batch_metrics=False,
        )
        return total / tf.reduce_sum(weights)


def example_weights(weight: tf.Tensor, age_days: tf.Tensor, half_life_days: float | None) -> tf.Tensor:
    """How much each example counts: by its engagement, and half of that for every half-life of age.

    Args:
        weight: [batch] at least 0.
        age_days: [batch] days before the newest example.

    Returns:
        [batch] float32 above 0.
    """
    if half_life_days is not None:
        weight = weight * tf.exp(age_days * (-math.log(2.0) / half_life_days))
    # A floor, or a batch of examples that weigh nothing would divide by zero.
    return tf.maximum(weight, 1e-6)
