"""The two towers: encoded features in, one unit vector out.

    ids    -> embedding table, mean over the ids present ┐
    floats --------------------------------------------- ┴-> concatenate -> dense + relu, ... -> linear -> unit length

Features that name one table share it, within a tower and across the two: what is learnt of a candidate as a target
serves it as history as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import tensorflow as tf

from lockstep.errors import SchemaError
from lockstep.model_sections import ModelSection, TowerSection
from trainer.encoding import EncodedFeature, EncodedFeatures

_PROJECTION_BIAS = 0.01
"""Deviation of the last bias at the start; with zeros, an input of missing values alone has no direction."""

_LARGEST = 1e6
"""Floats are cut to this size, or the square of a stray 1e30 would overflow and leave a vector of no length."""


class MaskedMean(tf.keras.layers.Layer):
    """Mean embedding of the ids of a row; id 0 is padding and counts for nothing.

    A row of padding alone is a vector of zeros.
    """

    def __init__(self, table: tf.keras.layers.Embedding, name: str) -> None:
        super().__init__(name=name)
        self.table = table

    def call(self, ids: tf.Tensor) -> tf.Tensor:
        """Pool.

        Args:
            ids: [batch, length] int64.

        Returns:
            [batch, dim] float32.
        """
        present = tf.cast(ids != 0, tf.float32)
        if ids.shape[1] == 1:
            return self.table(ids[:, 0]) * present
        weights = present / tf.maximum(tf.reduce_sum(present, axis=1, keepdims=True), 1.0)
        return tf.matmul(weights[:, tf.newaxis, :], self.table(ids))[:, 0, :]


class ResumableDropout(tf.keras.layers.Layer):
    """Dropout whose random state is part of the checkpoint, which that of Keras is not."""

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


class TowerNetwork(tf.keras.Model):
    """One tower over encoded features."""

    def __init__(
        self,
        features: Iterable[EncodedFeature],
        tables: Mapping[str, tf.keras.layers.Embedding],
        section: TowerSection,
        model: ModelSection,
        *,
        name: str,
        seed: int,
    ) -> None:
        super().__init__(name=name)
        self.features = tuple(features)
        self.blocks = {f.name: MaskedMean(tables[f.table], f.name) for f in self.features if f.table is not None}
        self.hidden = [
            tf.keras.layers.Dense(units, activation="relu", kernel_initializer=_glorot(seed + layer))
            for layer, units in enumerate(section.hidden)
        ]
        self.dropouts = [
            ResumableDropout(model.dropout, seed + 100 + layer) for layer in range(len(section.hidden) + 1)
        ]
        self.projection = tf.keras.layers.Dense(
            model.embedding_dim,
            kernel_initializer=_glorot(seed + 200),
            bias_initializer=tf.keras.initializers.RandomNormal(stddev=_PROJECTION_BIAS, seed=seed + 201),
        )

    def call(self, inputs: Mapping[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        """Encode.

        Args:
            inputs: name -> [batch, length] int64 or float32.

        Returns:
            [batch, embedding_dim] float32, each row of unit length.
        """
        outputs = [self._block(feature.name, inputs[feature.name]) for feature in self.features]
        hidden = self.dropouts[0](tf.concat(outputs, axis=1), training=training)
        for dense, dropout in zip(self.hidden, self.dropouts[1:], strict=True):
            hidden = dropout(dense(hidden), training=training)
        return tf.math.l2_normalize(self.projection(hidden), axis=1)

    def _block(self, name: str, values: tf.Tensor) -> tf.Tensor:
        if name in self.blocks:
            return self.blocks[name](values)
        return tf.clip_by_value(values, -_LARGEST, _LARGEST)


def build_towers(features: EncodedFeatures, model: ModelSection, seed: int) -> tuple[TowerNetwork, TowerNetwork]:
    """Both towers with their shared tables, every variable created from the seed.

    Raises:
        SchemaError: two features give one table different sizes.
    """
    tables = _build_tables((*features.query, *features.candidate), model, seed)
    query = TowerNetwork(features.query, tables, model.query, model, name="query_tower", seed=seed + 1_000)
    candidate = TowerNetwork(
        features.candidate, tables, model.candidate, model, name="candidate_tower", seed=seed + 2_000
    )
    for tower in (query, candidate):
        tower({f.name: tf.zeros([1, f.length], f.dtype) for f in tower.features})
    return query, candidate


def _build_tables(
    features: Iterable[EncodedFeature], model: ModelSection, seed: int
) -> dict[str, tf.keras.layers.Embedding]:
    sizes: dict[str, int] = {}
    dims: dict[str, int] = {}
    for feature in features:
        if feature.table is None or feature.size is None:
            continue
        size = sizes.setdefault(feature.table, feature.size)
        dim = feature.dim if feature.dim is None else dims.setdefault(feature.table, feature.dim)
        if size != feature.size or dim != feature.dim:
            raise SchemaError(
                f"features share the embedding table {feature.table!r}, but {feature.name!r} makes it {feature.size} "
                f"ids x {feature.dim}, another feature {size} x {dim}: give them the same `dim`, or leave out `shares`"
            )
    return {
        table: tf.keras.layers.Embedding(
            size,
            dims.get(table, model.feature_dim),
            name=f"table_{table}",
            embeddings_initializer=_uniform(seed + 300 + order),
        )
        for order, (table, size) in enumerate(sorted(sizes.items()))
    }


def _glorot(seed: int) -> tf.keras.initializers.Initializer:
    return tf.keras.initializers.GlorotUniform(seed=seed)


def _uniform(seed: int) -> tf.keras.initializers.Initializer:
    return tf.keras.initializers.RandomUniform(-0.05, 0.05, seed=seed)
