"""The probabilities of the logQ correction, against a sequence worked out by hand and against the truth."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from trainer.frequency import StreamingFrequency


def observe(frequency, indices) -> None:
    tf.function(frequency.observe)(tf.constant(indices, tf.int64))


def probability(frequency, indices) -> np.ndarray:
    return frequency.probability(tf.constant(indices, tf.int64)).numpy()


def test_gaps_worked_out_by_hand():
    # gap += share * (elapsed / k - gap), share = max(1 - 0.5^k, k / times so far); p = 1 / gap
    #   batch    time  candidate  elapsed / k   share            gap
    #   [0, 1]   2     0, 1       2             1                2
    #   [0, 0]   4     0          2 / 2         max(3/4, 2/3)    2 - 3/4 = 1.25
    #   [1, 2]   6     1          4             max(1/2, 1/2)    3
    #                  2          6             1                6
    #   [1, 0]   8     1          2             1/2              2.5
    #                  0          4             1/2              2.625
    frequency = StreamingFrequency(candidates=4, rate=0.5)
    for batch, gaps in (
        ([0, 1], [2, 2, 0, 0]),
        ([0, 0], [1.25, 2, 0, 0]),
        ([1, 2], [1.25, 3, 6, 0]),
        ([1, 0], [2.625, 2.5, 6, 0]),
    ):
        observe(frequency, batch)
        np.testing.assert_allclose(frequency.gap, gaps)
    # 3 has not come in 8 examples.
    np.testing.assert_allclose(probability(frequency, [3, 0, 1, 0]), [1 / 8, 1 / 2.625, 1 / 2.5, 1 / 2.625])


def test_the_estimate_becomes_the_probability_also_of_what_is_in_every_batch():
    truth = np.array([0.5, 0.3, 0.12, 0.05, 0.03])
    frequency = StreamingFrequency(candidates=5, rate=0.002)
    step = tf.function(frequency.observe)
    rng = np.random.default_rng(0)
    for _ in range(1_000):
        step(tf.constant(rng.choice(5, size=32, p=truth)))
    np.testing.assert_allclose(probability(frequency, range(5)), truth, rtol=0.15)


def test_the_estimate_follows_a_change():
    frequency = StreamingFrequency(candidates=2, rate=0.01)
    step = tf.function(frequency.observe)
    rng = np.random.default_rng(0)
    for share in (0.9, 0.2):
        for _ in range(400):
            step(tf.constant(rng.choice(2, size=16, p=[share, 1 - share])))
    np.testing.assert_allclose(probability(frequency, [0, 1]), [0.2, 0.8], rtol=0.2)
