"""Embedding blocks, poolings and id hiding: values worked out by hand."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from trainer import blocks
from trainer.blocks import IdsPresent, PooledSequence
from trainer.dropout import ResumableDropout, UnknownIds
from trainer.encoding import Repeated
from trainer.pooling import AttentionWeights, MeanWeights, RecencyWeights


def table(rows: int = 6, dim: int = 2) -> tf.keras.layers.Embedding:
    """Row i is (2 i + 1, 2 i + 2)."""
    weights = np.arange(rows * dim, dtype=np.float32).reshape(rows, dim) + 1.0
    made = tf.keras.layers.Embedding(rows, dim, embeddings_initializer=tf.constant_initializer(weights))
    made.build(None)
    return made


@pytest.fixture(params=["small table", "large table"])
def size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways of adding up."""
    if request.param == "large table":
        monkeypatch.setattr(blocks, "_LARGE_TABLE", 0)
    return request.param


@pytest.mark.parametrize("dtype", [tf.int32, tf.int64])
def test_the_sum_of_n_ids_is_divided_by_the_root_of_n_and_padding_is_none(size: str, dtype: tf.DType) -> None:
    # rows of the table: 0 (1, 2), 1 (3, 4), 2 (5, 6), 3 (7, 8)
    ids = tf.constant([[2, 3, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0], [2, 0, 3, 3], [0, 0, 0, 0]], dtype)
    two, three = 2**0.5, 3**0.5
    expected = [[12 / two, 14 / two], [3, 4], [0, 0], [19 / three, 22 / three], [0, 0]]
    np.testing.assert_allclose(IdsPresent(table(), "f")(ids), expected, rtol=1e-6)


def test_a_missing_single_id_is_zeros() -> None:
    np.testing.assert_allclose(IdsPresent(table(), "f")(tf.constant([[0], [3]], tf.int64)), [[0, 0], [7, 8]])


def test_the_gradient_goes_to_the_ids_present_in_equal_shares(size: str) -> None:
    half = 0.5**0.5
    expected = [[0, 0], [0, 0], [1 + half, 1 + half], [half, half], [0, 0], [0, 0]]
    layer = IdsPresent(table(), "f")
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(layer(tf.constant([[2, 0, 0], [3, 2, 0], [0, 0, 0]], tf.int64)))
    gradient = tape.gradient(total, layer.table.embeddings)
    assert isinstance(gradient, tf.IndexedSlices) == (size == "large table")
    np.testing.assert_allclose(tf.convert_to_tensor(gradient), expected, rtol=1e-6)


@pytest.mark.parametrize("is_large", [True, False])
def test_the_gradient_of_single_ids_and_elements(is_large: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "_LARGE_TABLE", 0 if is_large else 100)
    single = IdsPresent(table(), "f")
    sequence = PooledSequence(table(), 2, MeanWeights(), "s")
    for layer, ids, expected in (
        (single, [[2], [3], [3], [0]], [0, 0, 1, 2, 0, 0]),
        # The mean of 2 and 3, then 4 alone.
        (sequence, [[2, 3], [4, 0]], [0, 0, 0.5, 0.5, 1, 0]),
    ):
        with tf.GradientTape() as tape:
            total = tf.reduce_sum(layer(tf.constant(ids)))
        gradient = tape.gradient(total, layer.table.embeddings)
        assert isinstance(gradient, tf.IndexedSlices) == is_large
        np.testing.assert_allclose(tf.convert_to_tensor(gradient), np.repeat([expected], 2, axis=0).T)


# ---- poolings: vectors of 3 distinct elements, of which the first is padding

VECTORS = tf.constant([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
PLACES = tf.constant([[1, 2, 0], [0, 1, 2], [1, 0, 2], [2, 0, 0], [0, 0, 0]])
PRESENT = PLACES > 0


def test_mean_weights() -> None:
    expected = [[0.5, 0.5, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [1, 0, 0], [0, 0, 0]]
    np.testing.assert_allclose(MeanWeights()(VECTORS, PLACES, PRESENT), expected)


def test_recency_weights_are_geometric_from_the_newest() -> None:
    # Two elements at a rate of .9: .9 / 1.9 and 1 / 1.9, wherever in the row they stand.
    old, new = 0.9 / 1.9, 1 / 1.9
    expected = [[old, new, 0], [0, old, new], [old, 0, new], [1, 0, 0], [0, 0, 0]]
    layer = RecencyWeights()
    np.testing.assert_allclose(layer(VECTORS, PLACES, PRESENT), expected, rtol=1e-6)
    full = tf.constant([[1, 2, 1]])
    np.testing.assert_allclose(layer(VECTORS, full, full > 0), [[0.81 / 2.71, 0.9 / 2.71, 1 / 2.71]], rtol=1e-6)


def test_the_recency_rate_is_learned() -> None:
    layer = RecencyWeights()
    with tf.GradientTape() as tape:
        newest = layer(VECTORS, PLACES, PRESENT)[0, 1]
    # d/dlogit of 1 / (1 + rate) = -rate (1 - rate) / (1 + rate)^2
    np.testing.assert_allclose(tape.gradient(newest, layer.logit), -0.9 * 0.1 / 1.9**2, rtol=1e-5)
    layer.logit.assign(0.0)
    np.testing.assert_allclose(layer(VECTORS, PLACES, PRESENT)[0], [1 / 3, 2 / 3, 0], rtol=1e-6)


def test_attention_weights_are_a_softmax_over_what_is_present() -> None:
    layer = AttentionWeights(2, itertools.count(1))
    layer(VECTORS, PLACES, PRESENT)
    layer.view.kernel.assign([[1.0, 0.0], [0.0, 0.5]])
    layer.view.bias.assign([0.1, 0.0])
    layer.score.kernel.assign([[2.0], [1.0]])
    first = math.exp(2 * math.tanh(1.1) + math.tanh(0.0))
    second = math.exp(2 * math.tanh(0.1) + math.tanh(1.0))
    a, b = first / (first + second), second / (first + second)
    expected = [[a, b, 0], [0, a, b], [a, 0, b], [1, 0, 0], [0, 0, 0]]
    np.testing.assert_allclose(layer(VECTORS, PLACES, PRESENT), expected, rtol=1e-6)


def test_attention_survives_scores_that_no_exponential_holds() -> None:
    layer = AttentionWeights(2, itertools.count(1))
    layer(VECTORS, PLACES, PRESENT)
    layer.view.kernel.assign(tf.eye(2))
    layer.score.kernel.assign([[1e4], [1e3]])
    with tf.GradientTape() as tape:
        weights = layer(VECTORS, PLACES, PRESENT)
        total = tf.reduce_sum(weights[:, 0])
    np.testing.assert_allclose(weights[0], [1, 0, 0])
    assert np.isfinite(tape.gradient(total, layer.score.kernel)).all()


# ---- sequences


def test_a_sequence_of_texts_is_the_mean_of_its_elements(size: str) -> None:
    sequence = PooledSequence(table(), 2, MeanWeights(), "titles")
    # Elements of 3 tokens: (2, 3) -> (12, 14) / sqrt(2) and 1 -> (3, 4): their mean, not that of the tokens.
    ids = tf.constant([[2, 3, 0, 1, 0, 0], [0, 0, 0, 2, 0, 0], [0] * 6], tf.int64)
    expected = [[6 / 2**0.5 + 1.5, 7 / 2**0.5 + 2], [5, 6], [0, 0]]
    np.testing.assert_allclose(sequence(ids), expected, rtol=1e-6)


@pytest.mark.parametrize("weights", ["mean", "recency", "attention"])
def test_repeated_elements_with_holes_are_the_dense_rows(weights: str) -> None:
    layers = {"mean": MeanWeights(), "recency": RecencyWeights(), "attention": AttentionWeights(2, itertools.count(3))}
    sequence = PooledSequence(table(), 3, layers[weights], "titles")
    dense = tf.constant([[4, 5, 2, 0, 0, 0], [2, 0, 4, 5, 2, 0], [0] * 6, [4, 5, 1, 0, 2, 0]], tf.int64)
    # Element 4 has no token: what stands there is not present and takes no rank either.
    elements = tf.constant([[0, 0], [4, 5], [2, 0], [1, 0], [0, 0]], tf.int32)
    repeated = Repeated(elements, tf.constant([[1, 0, 4, 2], [2, 1, 4, 2], [0, 4, 0, 0], [1, 3, 0, 2]]))
    np.testing.assert_allclose(sequence(repeated), sequence(dense), atol=1e-6)
    assert np.abs(sequence(dense)[:2]).min() > 1.0


def test_the_gradient_of_repeated_elements_adds_up() -> None:
    sequence = PooledSequence(table(), 2, MeanWeights(), "history")
    repeated = Repeated(tf.constant([[0], [2], [3]]), tf.constant([[1, 2], [1, 0], [0, 0]]))
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(sequence(repeated))
    gradient = tf.convert_to_tensor(tape.gradient(total, sequence.table.embeddings))
    np.testing.assert_allclose(gradient[:, 0], [0, 0, 1.5, 0.5, 0, 0])


# ---- what training leaves out


def test_dropout_keeps_the_mean_and_is_off_outside_training() -> None:
    ones = tf.ones([200, 200])
    layer = ResumableDropout(0.25, seed=1)
    np.testing.assert_array_equal(layer(ones), ones)
    dropped = layer(ones, training=True).numpy()
    np.testing.assert_allclose(np.unique(dropped), [0.0, 4 / 3], rtol=1e-6)
    # 40,000 draws: four standard errors are .0087
    assert abs((dropped == 0).mean() - 0.25) < 0.0087


def test_hidden_ids_are_unknown_and_missing_ones_stay_missing() -> None:
    ids = tf.constant([[5], [0], [1], [7]], tf.int32)
    np.testing.assert_array_equal(UnknownIds(1.0, seed=1)(ids, training=True), [[1], [0], [1], [1]])
    np.testing.assert_array_equal(UnknownIds(1.0, seed=1)(ids), ids)
    many = UnknownIds(0.3, seed=1)(tf.fill([40_000, 1], tf.constant(9, tf.int64)), training=True).numpy()
    assert set(np.unique(many)) == {1, 9}
    # four standard errors are .0092
    assert abs((many == 1).mean() - 0.3) < 0.0092


@pytest.mark.parametrize("layer", [ResumableDropout, UnknownIds])
def test_a_checkpoint_holds_the_random_state(layer: type, tmp_path: Path) -> None:
    values = tf.range(2, 1_002) if layer is UnknownIds else tf.random.uniform([1_000])
    running, resumed = layer(0.5, 1), layer(0.5, 1)
    first = running(values, training=True)
    path = tf.train.Checkpoint(layer=running).write(str(tmp_path / "checkpoint"))
    second = running(values, training=True)
    assert not np.array_equal(first, second)
    tf.train.Checkpoint(layer=resumed).read(path).assert_consumed()
    np.testing.assert_array_equal(resumed(values, training=True), second)
