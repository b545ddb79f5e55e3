"""RowAdam against Adam in numpy, the learning rate, and the moving average of the weights."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from lockstep.model_sections import TrainSection
from trainer.averaging import AveragedWeights
from trainer.optimizer import RowAdam, build_optimizer, learning_rate


def adam_in_numpy(weights: np.ndarray, steps: list[tuple[list[int], np.ndarray]], rate: float) -> np.ndarray:
    """Algorithm 1 of Kingma & Ba on the rows of each step; epsilon is added before the bias correction, as in Keras."""
    weights, m, v = weights.copy(), np.zeros_like(weights), np.zeros_like(weights)
    for t, (rows, gradient) in enumerate(steps, 1):
        m[rows] = 0.9 * m[rows] + 0.1 * gradient
        v[rows] = 0.999 * v[rows] + 0.001 * gradient**2
        corrected = rate * np.sqrt(1 - 0.999**t) / (1 - 0.9**t)
        weights[rows] -= corrected * m[rows] / (np.sqrt(v[rows]) + 1e-7)
    return weights


def test_rows_that_a_step_does_not_touch_stay_as_they_are():
    rng = np.random.default_rng(1)
    start = rng.normal(size=(6, 3)).astype(np.float32)
    steps = [(rows, rng.normal(size=(len(rows), 3)).astype(np.float32)) for rows in ([0, 2], [2, 5], [1], [2, 0])]
    table = tf.Variable(start)
    optimizer = RowAdam(0.1)
    for rows, gradient in steps:
        optimizer.apply_gradients([(tf.IndexedSlices(gradient, rows, [6, 3]), table)])
    np.testing.assert_allclose(table, adam_in_numpy(start, steps, 0.1), atol=1e-5)
    np.testing.assert_array_equal(table[3:5], start[3:5])


def test_a_row_that_stands_twice_in_a_gradient_moves_once_by_the_sum():
    table, summed = tf.Variable(tf.ones([3, 2])), tf.Variable(tf.ones([3, 2]))
    twice = tf.IndexedSlices(tf.constant([[1.0, 2.0], [3.0, -1.0]]), [1, 1], [3, 2])
    RowAdam(0.1).apply_gradients([(twice, table)])
    RowAdam(0.1).apply_gradients([(tf.IndexedSlices(tf.constant([[4.0, 1.0]]), [1], [3, 2]), summed)])
    np.testing.assert_allclose(table, summed, rtol=1e-6)


def test_a_dense_gradient_is_plain_adam():
    rng = np.random.default_rng(2)
    start = rng.normal(size=(4, 3)).astype(np.float32)
    ours, theirs = tf.Variable(start), tf.Variable(start)
    row, plain = RowAdam(0.05), tf.keras.optimizers.Adam(0.05)
    for _ in range(5):
        gradient = tf.constant(rng.normal(size=(4, 3)), tf.float32)
        row.apply_gradients([(gradient, ours)])
        plain.apply_gradients([(gradient, theirs)])
    # The kernel takes 1 - 0.999 in float32, which is off by 5e-5 of itself; five steps of weights up to 2 are rounded.
    np.testing.assert_allclose(np.subtract(ours, start), np.subtract(theirs, start), rtol=5e-5, atol=5 * 1.2e-7)


def test_a_step_reads_no_whole_table():
    table, optimizer = tf.Variable(tf.zeros([50, 4])), RowAdam(0.1)
    optimizer.build([table])

    @tf.function(input_signature=[tf.TensorSpec([2], tf.int32)])
    def step(rows):
        optimizer.apply_gradients([(tf.IndexedSlices(tf.ones([2, 4]), rows, [50, 4]), table)])

    shapes = [tuple(o.shape) for op in step.get_concrete_function().graph.get_operations() for o in op.outputs
              if o.shape.rank is not None]  # fmt: skip
    assert (2, 4) in shapes
    assert (50, 4) not in shapes


def test_the_learning_rate_falls_as_configured():
    cosine = build_optimizer(TrainSection(learning_rate=0.1, decay="cosine"), 100)
    weight = tf.Variable(1.0)
    assert learning_rate(cosine) == pytest.approx(0.1)
    for _ in range(51):
        cosine.apply_gradients([(tf.constant(1.0), weight)])
    assert learning_rate(cosine) == pytest.approx(0.05, rel=1e-5)  # of the step after 50 of 100: the middle
    assert learning_rate(build_optimizer(TrainSection(learning_rate=0.1, decay="none"), 100)) == pytest.approx(0.1)
    adagrad = build_optimizer(TrainSection(optimizer="adagrad", learning_rate=0.1, decay="none"), 100)
    assert isinstance(adagrad, tf.keras.optimizers.Adagrad)


def test_the_average_follows_the_weights_as_computed_by_hand():
    weight = tf.Variable([0.0, 1.0])
    average = AveragedWeights([weight], decay=0.25)
    weight.assign([11.0, 1.0])
    average.update(tf.constant(1))  # (1 + 1) / (10 + 1) = 2 / 11 < 0.25: 0 x 2/11 + 11 x 9/11
    np.testing.assert_allclose(average.averages[0], [9.0, 1.0], rtol=1e-6)
    weight.assign([1.0, 5.0])
    average.update(tf.constant(50))  # 51 / 60 > 0.25: 9 x 0.25 + 1 x 0.75, 1 x 0.25 + 5 x 0.75
    np.testing.assert_allclose(average.averages[0], [3.0, 4.0], rtol=1e-6)


def test_averages_stand_in_for_the_weights_for_a_while():
    weight = tf.Variable([2.0])
    average = AveragedWeights([weight], decay=0.9)
    weight.assign([13.0])
    with average.applied():
        assert weight.numpy().tolist() == [2.0]
    assert weight.numpy().tolist() == [13.0]
    average.apply()
    assert weight.numpy().tolist() == [2.0]
