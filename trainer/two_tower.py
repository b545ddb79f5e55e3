"""The two-tower retrieval model: both towers, and the softmax that trains them together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import tensorflow as tf
import tensorflow_recommenders as tfrs

from lockstep.errors import ConfigError
from lockstep.model_sections import ModelSection, TrainSection
from trainer.candidates import CandidateTable
from trainer.losses import example_weights, softmax_loss
from trainer.negatives import build_negatives
from trainer.towers import TowerNetwork


class TwoTowerModel(tfrs.Model):
    """Both towers and the loss that trains them together.

    The logits are cosine / temperature, corrected for how the negatives were sampled (`trainer.negatives`). All that
    training changes - weights, a learnt temperature, the state of the random draws and of the estimated
    probabilities - are variables of this model, so a checkpoint of it resumes to the same loss curve.

    Args:
        candidates: the catalogue that negatives are drawn from.
        probability: [candidates] float32, each one's share of the labels; 0 for one that is no negative.

    Raises:
        ConfigError: a temperature to be learnt begins outside the range that it is kept in.
    """

    def __init__(
        self,
        query_tower: TowerNetwork,
        candidate_tower: TowerNetwork,
        candidates: CandidateTable,
        probability: tf.Tensor,
        model: ModelSection,
        train: TrainSection,
    ) -> None:
        super().__init__()
        self.query_tower = query_tower
        self.candidate_tower = candidate_tower
        self.candidates = candidates
        self.negatives = build_negatives(candidates, probability, train)
        self._temperature = LearntTemperature(model.temperature) if model.learn_temperature else None
        self._fixed_temperature = model.temperature
        self._hard_negatives = train.hard_negatives

    @property
    def temperature(self) -> tf.Tensor:
        """[] float32 that the cosine is divided by."""
        return tf.constant(self._fixed_temperature) if self._temperature is None else self._temperature()

    def compute_loss(self, inputs: Mapping[str, Any], training: bool = False) -> tf.Tensor:
        """The loss of a batch, for each example of it.

        Under a strategy of several replicas it is of the replica's own part: its examples, its in-batch negatives.

        Args:
            inputs: `query` and `candidate`: name -> [batch, length], or `Repeated`; `candidate_index` [batch] int64;
                `past` [batch, width] int64 candidate indices + 1, or 0, and `hidden` likewise; `weight` [batch] by
                engagement, of mean 1.

        Returns:
            [] float32: the weighted mean, so that the learning rate does not depend on the batch size. Of several
            replicas, their mean is the weighted mean over all of them.
        """
        weights = example_weights(inputs["weight"])
        total = tf.reduce_sum(weights)
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        if replicas > 1:
            # The gradients of the replicas are added up: a part whose examples weigh more must count for more.
            context = tf.distribute.get_replica_context()
            total = context.all_reduce(tf.distribute.ReduceOp.SUM, total) / replicas
        queries = self.query_tower(inputs["query"], training=training)
        columns = self.negatives(inputs, lambda features: self.candidate_tower(features, training=training), training)
        return softmax_loss(queries / self.temperature, columns, weights / total, self._hard_negatives)


class LearntTemperature(tf.Module):
    """A temperature that is trained, between `LOWEST` and `HIGHEST`.

    The variable is its place between the two on a logarithmic scale, through a sigmoid: so no step leaves the range,
    and none ends where there is no gradient.

    Args:
        start: where it begins.

    Raises:
        ConfigError: that is not within the range.
    """

    LOWEST, HIGHEST = 0.01, 1.0

    def __init__(self, start: float) -> None:
        super().__init__()
        if not self.LOWEST < start < self.HIGHEST:
            raise ConfigError(
                f"[model] temperature is {start}, and learn_temperature keeps it between {self.LOWEST} and "
                f"{self.HIGHEST}: begin between them, or fix it"
            )
        place = math.log(start / self.LOWEST) / math.log(self.HIGHEST / self.LOWEST)
        self.place = tf.Variable(math.log(place / (1.0 - place)), dtype=tf.float32, name="temperature")

    def __call__(self) -> tf.Tensor:
        """[] float32."""
        return self.LOWEST * tf.exp(tf.sigmoid(self.place) * math.log(self.HIGHEST / self.LOWEST))
