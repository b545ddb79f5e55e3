from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from lockstep.errors import SchemaError
from lockstep.model_sections import ModelSection
from trainer.encoding import EncodedFeature, EncodedFeatures
from trainer.towers import MaskedMean, build_towers
from trainer.two_tower import TwoTowerModel

HISTORY = EncodedFeature("history", "id_sequence", "int64", 4, size=10, table="track", dim=3)
TRACK = EncodedFeature("track", "id", "int64", 1, size=10, table="track", dim=3)
MOOD = EncodedFeature("mood", "numeric", "float32", 2)
GENRE = EncodedFeature("genre", "categorical", "int64", 1, size=5, table="genre")
FEATURES = EncodedFeatures(query=(HISTORY, MOOD), candidate=(TRACK, GENRE))


def table(rows: int = 6, dim: int = 2) -> tf.keras.layers.Embedding:
    weights = np.arange(rows * dim, dtype=np.float32).reshape(rows, dim) + 1.0
    return tf.keras.layers.Embedding(rows, dim, embeddings_initializer=tf.constant_initializer(weights))


def test_padding_counts_for_nothing_in_the_mean():
    # rows of the table: 0 (1, 2), 1 (3, 4), 2 (5, 6), 3 (7, 8)
    pooled = MaskedMean(table(), "f")(tf.constant([[2, 3, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0], [2, 2, 3, 3]], tf.int64))
    np.testing.assert_allclose(pooled, [[6, 7], [3, 4], [0, 0], [6, 7]])


def test_a_missing_single_id_is_zeros():
    np.testing.assert_allclose(MaskedMean(table(), "f")(tf.constant([[0], [3]], tf.int64)), [[0, 0], [7, 8]])


def test_padding_gets_no_gradient():
    layer = MaskedMean(table(), "f")
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(layer(tf.constant([[2, 0], [0, 0]], tf.int64)))
    gradient = tf.convert_to_tensor(tape.gradient(total, layer.table.embeddings))
    np.testing.assert_allclose(gradient, [[0, 0], [0, 0], [1, 1], [0, 0], [0, 0], [0, 0]])


def test_features_of_one_table_share_one_object_across_towers():
    query, candidate = build_towers(FEATURES, ModelSection(), seed=1)
    shared = query.blocks["history"].table
    assert candidate.blocks["track"].table is shared
    assert candidate.blocks["genre"].table is not shared
    model = TwoTowerModel(query, candidate, temperature=0.1)
    # track + genre tables, and two dense layers with bias in each tower: the shared table is one variable
    assert len(model.trainable_variables) == 2 + 2 * 4
    assert sum(variable is shared.embeddings for variable in model.trainable_variables) == 1


def test_vectors_have_unit_length_and_the_configured_size():
    query, _ = build_towers(FEATURES, ModelSection(embedding_dim=7, query={"hidden": [5, 4]}), seed=1)
    vectors = query({"history": tf.constant([[2, 3, 0, 0], [0] * 4], tf.int64), "mood": tf.constant([[0.5, -1.0]] * 2)})
    assert vectors.shape == (2, 7)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), [1.0, 1.0], rtol=1e-5)
    assert [layer.units for layer in query.hidden] == [5, 4]


def test_nothing_but_missing_values_has_a_direction_too():
    _, candidate = build_towers(FEATURES, ModelSection(), seed=1)
    vector = candidate({"track": tf.zeros([1, 1], tf.int64), "genre": tf.zeros([1, 1], tf.int64)})
    np.testing.assert_allclose(np.linalg.norm(vector), 1.0, rtol=1e-5)


def test_a_table_takes_the_feature_s_dim_or_the_default():
    query, candidate = build_towers(FEATURES, ModelSection(feature_dim=11), seed=1)
    assert query.blocks["history"].table.embeddings.shape == (10, 3)
    assert candidate.blocks["genre"].table.embeddings.shape == (5, 11)


def test_the_seed_decides_every_weight():
    first, again, other = (build_towers(FEATURES, ModelSection(), seed=seed) for seed in (1, 1, 2))
    for a, b in zip(first[0].variables + first[1].variables, again[0].variables + again[1].variables, strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(first[0].projection.kernel, other[0].projection.kernel)
    assert not np.array_equal(first[0].projection.kernel[:3], first[1].projection.kernel[:3])


def test_one_table_of_two_sizes_is_refused():
    wider = EncodedFeature("track", "id", "int64", 1, size=10, table="track", dim=4)
    with pytest.raises(SchemaError, match=r"'track' makes it 10 ids x 4, another feature 10 x 3"):
        build_towers(EncodedFeatures((HISTORY,), (wider,)), ModelSection(), seed=1)
