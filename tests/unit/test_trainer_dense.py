"""Cross and hidden layers against numpy."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import tensorflow as tf

from lockstep.model_sections import ModelSection
from trainer.dense import CrossNetwork, HiddenLayer

X = np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32)


def randomise(layer: tf.keras.layers.Layer, seed: int = 2) -> None:
    """Biases begin at zero, and a test that never moves them cannot see them."""
    rng = np.random.default_rng(seed)
    for variable in layer.trainable_variables:
        variable.assign(rng.normal(size=variable.shape))


def test_one_cross_layer_by_hand() -> None:
    cross = CrossNetwork(2, 1, None, itertools.count(1))
    cross(tf.zeros([1, 2]))
    cross.expansions[0].kernel.assign([[1.0, 0.0], [2.0, 1.0]])
    cross.expansions[0].bias.assign([0.5, -1.0])
    # x W + b = (1 * 1 + 3 * 2 + .5, 3 - 1) = (7.5, 2); x * that + x = (1 * 7.5 + 1, 3 * 2 + 3)
    np.testing.assert_allclose(cross(tf.constant([[1.0, 3.0]])), [[8.5, 9.0]])


@pytest.mark.parametrize("rank", [None, 2])
def test_cross_layers_multiply_with_their_first_input(rank: int | None) -> None:
    cross = CrossNetwork(3, 2, rank, itertools.count(1))
    cross(X)
    randomise(cross)
    expected = X
    for layer in range(2):
        reduced = expected if rank is None else expected @ cross.reductions[layer].kernel.numpy()
        product = reduced @ cross.expansions[layer].kernel.numpy() + cross.expansions[layer].bias.numpy()
        expected = X * product + expected
    np.testing.assert_allclose(cross(X), expected, rtol=1e-4)


def test_a_low_rank_has_fewer_weights() -> None:
    full, low = CrossNetwork(10, 2, None, itertools.count(1)), CrossNetwork(10, 2, 3, itertools.count(1))
    counts = []
    for cross in (full, low):
        cross(tf.zeros([1, 10]))
        counts.append(sum(int(tf.size(v)) for v in cross.trainable_variables))
    assert counts == [2 * (10 * 10 + 10), 2 * (10 * 3 + 3 * 10 + 10)]


def test_no_cross_layer_is_the_input() -> None:
    np.testing.assert_array_equal(CrossNetwork(3, 0, 2, itertools.count(1))(X), X)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("units", [3, 5])
def test_a_hidden_layer(residual: bool, layer_norm: bool, units: int) -> None:
    model = ModelSection(residual=residual, layer_norm=layer_norm)
    layer = HiddenLayer(3, units, model, itertools.count(1), "hidden_0")
    layer(X)
    randomise(layer)
    hidden = X @ layer.dense.kernel.numpy()
    if layer_norm:
        # eps of the layer is .001
        hidden = (hidden - hidden.mean(1, keepdims=True)) / np.sqrt(hidden.var(1, keepdims=True) + 0.001)
        hidden = hidden * layer.norm.gamma.numpy() + layer.norm.beta.numpy()
    else:
        hidden = hidden + layer.dense.bias.numpy()
    expected = np.maximum(hidden, 0.0)
    if residual:
        expected = expected + (X if units == 3 else X @ layer.shortcut.kernel.numpy())
    np.testing.assert_allclose(layer(X), expected, rtol=1e-4, atol=1e-5)


def test_a_hidden_layer_drops_only_in_training() -> None:
    layer = HiddenLayer(3, 50, ModelSection(dropout=0.5, residual=True), itertools.count(1), "hidden_0")
    np.testing.assert_array_equal(layer(X), layer(X, training=False))
    dropped, kept = layer(X, training=True).numpy(), layer(X).numpy()
    np.testing.assert_allclose(dropped[dropped != 0], 2 * kept[dropped != 0], rtol=1e-6)
    assert 60 < (dropped == 0).sum() < 140
