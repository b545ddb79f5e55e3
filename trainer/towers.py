"""The two towers: encoded features in, one unit vector out.

    ids       -> embeddings of the ids present     ┐
    sequences -> pooled embeddings of the elements ┼-> concatenate -> cross layers -> hidden layers -> linear
    floats ----------------------------------------┘   or sum         (or beside them)              -> unit length

A sum of the embeddings' width with no layer above it is the embedding: then there is no linear layer, only its bias.

Features that name one table share it, within a tower and across the two: what is learnt of a candidate as a target
serves it as history as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import tensorflow as tf

from lockstep.errors import ConfigError, SchemaError
from lockstep.model_sections import ModelSection, Pooling, TowerSection
from trainer.blocks import IdsPresent, PooledSequence
from trainer.dense import Bias, CrossNetwork, HiddenLayer, linear
from trainer.dropout import ResumableDropout, UnknownIds
from trainer.encoding import EncodedFeature, EncodedFeatures, Repeated, Side
from trainer.pooling import pooling_weights

_PROJECTION_BIAS = 0.01
"""Deviation of the last bias at the start; with zeros, an input of missing values alone has no direction."""

_LARGEST = 1e6
"""Floats are cut to this size, or the square of a stray 1e30 would overflow and leave a vector of no length."""

_LARGEST_PRODUCT = 1e16
"""Cross layers multiply floats with one another: as many as they multiply must not exceed this."""

_LARGEST_PRODUCT_HALF = 1e3
"""The same for float16, which ends at 65,504."""

_SEQUENCES = ("id_sequence", "text_sequence")


class TowerNetwork(tf.keras.Model):
    """One tower over encoded features.

    Args:
        tables: by name, those that the features share.
        seeds: one is drawn for each matrix and each dropout.
        unknown_id_share: share of the ids of `id` features that training hides.

    Raises:
        ConfigError: `pooling` of the section names no sequence of this tower.
    """

    def __init__(
        self,
        features: Iterable[EncodedFeature],
        tables: Mapping[str, tf.keras.layers.Embedding],
        section: TowerSection,
        model: ModelSection,
        *,
        side: Side,
        seeds: Iterator[int],
        unknown_id_share: float = 0.0,
    ) -> None:
        # Its own steps (cutting floats, the unit length) are float32; its layers follow the policy of Keras.
        super().__init__(name=f"{side}_tower", dtype="float32")
        self.features = tuple(features)
        poolings = _poolings(self.features, section, model, side)
        self.blocks = {
            f.name: _block(f, tables[f.table], poolings.get(f.name), seeds)
            for f in self.features
            if f.table is not None
        }
        self.unknown_ids = {
            f.name: UnknownIds(unknown_id_share, next(seeds))
            for f in self.features
            if unknown_id_share and f.type == "id"
        }
        widths = {f.name: tables[f.table].output_dim if f.table is not None else f.length for f in self.features}
        self.is_sum = model.combine == "sum"
        self.widenings = {
            name: linear(model.feature_dim, seeds, f"widening_{name}", use_bias=False)
            for name, width in widths.items()
            if self.is_sum and width != model.feature_dim
        }
        joined = model.feature_dim if self.is_sum else sum(widths.values())
        self.dropout = ResumableDropout(model.dropout, next(seeds))
        self.cross = CrossNetwork(joined, section.cross_layers, section.cross_rank, seeds)
        self.is_parallel = section.cross == "parallel" and section.cross_layers > 0
        inputs = (joined, *section.hidden[:-1])
        self.hidden = [
            HiddenLayer(*sizes, model, seeds, f"hidden_{layer}")
            for layer, sizes in enumerate(zip(inputs, section.hidden, strict=False))
        ]
        bias = tf.keras.initializers.RandomNormal(stddev=_PROJECTION_BIAS, seed=next(seeds))
        is_bare = self.is_sum and not section.hidden and not section.cross_layers and joined == model.embedding_dim
        # What is summed in the space of the embeddings is one already; a matrix would only turn it.
        self.projection: tf.keras.layers.Layer = (
            Bias(bias, "projection")
            if is_bare
            else linear(model.embedding_dim, seeds, "projection", bias_initializer=bias)
        )
        product = _LARGEST_PRODUCT_HALF if self.projection.compute_dtype == "float16" else _LARGEST_PRODUCT
        self.largest = min(_LARGEST, product ** (1.0 / (1 + section.cross_layers)))

    def call(self, inputs: Mapping[str, tf.Tensor | Repeated], training: bool = False) -> tf.Tensor:
        """Encode.

        Args:
            inputs: name -> [batch, length] int32, int64 or float32, or `Repeated` of a sequence.

        Returns:
            [batch, embedding_dim] float32, each row of unit length.
        """
        vectors = {f.name: self._vector(f.name, inputs[f.name], training) for f in self.features}
        if self.is_sum:
            joined = tf.add_n([self._widened(name, vector) for name, vector in vectors.items()])
        else:
            joined = tf.concat(list(vectors.values()), axis=1)
        joined = self.dropout(joined, training=training)
        crossed = self.cross(joined)
        deep = joined if self.is_parallel else crossed
        for layer in self.hidden:
            deep = layer(deep, training=training)
        if self.is_parallel:
            deep = tf.concat([crossed, deep], axis=1)
        return tf.math.l2_normalize(tf.cast(self.projection(deep), tf.float32), axis=1)

    def _vector(self, name: str, values: tf.Tensor | Repeated, training: bool) -> tf.Tensor:
        if name in self.unknown_ids:
            values = self.unknown_ids[name](values, training=training)
        if name in self.blocks:
            return self.blocks[name](values)
        return tf.clip_by_value(values, -self.largest, self.largest)

    def _widened(self, name: str, vector: tf.Tensor) -> tf.Tensor:
        widened = self.widenings[name](vector) if name in self.widenings else vector
        return tf.cast(widened, tf.float32)


def build_towers(
    features: EncodedFeatures, model: ModelSection, seed: int, unknown_id_share: float = 0.0
) -> tuple[TowerNetwork, TowerNetwork]:
    """Both towers with their shared tables, every variable created from the seed.

    Args:
        unknown_id_share: share of the candidates' ids that training hides (`trainer.dropout.UnknownIds`).

    Raises:
        SchemaError: two features give one table different sizes.
        ConfigError: a tower's `pooling` names no sequence of its own, or there is no id to hide.
    """
    if unknown_id_share and not any(feature.type == "id" for feature in features.candidate):
        raise ConfigError(
            f"[train] unknown_id_share is {unknown_id_share}, but no candidate feature of [schema] is of type `id`: "
            "leave it out"
        )
    tables = _build_tables((*features.query, *features.candidate), model, _seeds(seed, 0))
    query = TowerNetwork(features.query, tables, model.query, model, side="query", seeds=_seeds(seed, 1))
    candidate = TowerNetwork(
        features.candidate,
        tables,
        model.candidate,
        model,
        side="candidate",
        seeds=_seeds(seed, 2),
        unknown_id_share=unknown_id_share,
    )
    for tower in (query, candidate):
        tower({f.name: tf.zeros([1, f.length], f.dtype) for f in tower.features})
    return query, candidate


def _build_tables(
    features: Iterable[EncodedFeature], model: ModelSection, seeds: Iterator[int]
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
        table: _table(table, size, dims.get(table, model.feature_dim), next(seeds))
        for table, size in sorted(sizes.items())
    }


def _table(name: str, size: int, dim: int, seed: int) -> tf.keras.layers.Embedding:
    uniform = tf.keras.initializers.RandomUniform(-0.05, 0.05, seed=seed)
    table = tf.keras.layers.Embedding(size, dim, name=f"table_{name}", embeddings_initializer=uniform, dtype="float32")
    with tf.name_scope(table.name):
        table.build(None)
    return table


def _poolings(
    features: Iterable[EncodedFeature], section: TowerSection, model: ModelSection, side: Side
) -> dict[str, Pooling]:
    """Each sequence's pooling: its own, or the model's."""
    sequences = [feature.name for feature in features if feature.type in _SEQUENCES]
    unknown = sorted(set(section.pooling) - set(sequences))
    if unknown:
        raise ConfigError(
            f"[model.{side}.pooling] names {unknown}, but the sequences of ids or texts in the {side} tower are "
            f"{sorted(sequences)}: name one of those, or leave it out"
        )
    return {name: section.pooling.get(name, model.pooling) for name in sequences}


def _block(
    feature: EncodedFeature, table: tf.keras.layers.Embedding, pooling: Pooling | None, seeds: Iterator[int]
) -> IdsPresent | PooledSequence:
    if pooling is None:
        return IdsPresent(table, feature.name)
    weights = pooling_weights(pooling, table.output_dim, seeds)
    return PooledSequence(table, feature.elements, weights, feature.name)


def _seeds(seed: int, part: int) -> Iterator[int]:
    """Seeds for the matrices of one part of the model, which no other part and no other seed has."""
    rng = np.random.default_rng([seed, part])
    while True:
        yield int(rng.integers(2**31))
