"""The loss, against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from trainer.two_tower import TwoTowerModel, example_weights


class Given(tf.keras.Model):
    """A tower that returns the vector it is given."""

    def call(self, inputs, training=False):
        return inputs["vector"]


def loss(query, candidate, *, ids, probability, temperature=1.0, ages=None, half_life=None, weights=None):
    model = TwoTowerModel(Given(), Given(), temperature=temperature, half_life_days=half_life)
    batch = {
        "query": {"vector": tf.constant(query, tf.float32)},
        "candidate": {"vector": tf.constant(candidate, tf.float32)},
        "candidate_index": tf.constant(ids, tf.int64),
        "sampling_probability": tf.constant(probability, tf.float32),
        "age_days": tf.constant(ages or [0.0] * len(ids), tf.float32),
        "weight": tf.constant(weights or [1.0] * len(ids), tf.float32),
    }
    return float(tf.function(model.compute_loss)(batch, training=True))


ROW_1, ROW_2 = np.log1p(np.exp(-2) / 2), np.log1p(np.exp(-2) * 2)
AXES = [[1.0, 0.0], [0.0, 1.0]]


def test_temperature_and_logq():
    # logits = cosine / 0.5 - ln p: row 1 is (2 + ln 4, ln 2), row 2 is (ln 4, 2 + ln 2)
    # row 1: ln(1 + e^-2 / 2) = 0.0655; row 2: ln(1 + 2 e^-2) = 0.2395
    found = loss(AXES, AXES, ids=[0, 1], probability=[0.25, 0.5], temperature=0.5)
    assert found == pytest.approx((ROW_1 + ROW_2) / 2, rel=1e-5)


def test_without_logq_a_frequent_candidate_would_cost_more():
    assert loss(AXES, AXES, ids=[0, 1], probability=[1.0, 1.0], temperature=0.5) == pytest.approx(
        np.log1p(np.exp(-2.0)), rel=1e-5
    )


def test_half_life_weights_and_their_normalisation():
    # the second example is one half-life old: (0.0655 + 0.2395 / 2) / 1.5
    found = loss(AXES, AXES, ids=[0, 1], probability=[0.25, 0.5], temperature=0.5, ages=[0.0, 30.0], half_life=30.0)
    assert found == pytest.approx((ROW_1 + ROW_2 / 2) / 1.5, rel=1e-5)
    ages = tf.constant([0.0, 30.0, 60.0])
    np.testing.assert_allclose(example_weights(tf.ones(3), ages, 30.0), [1.0, 0.5, 0.25], rtol=1e-6)
    np.testing.assert_array_equal(example_weights(tf.ones(3), ages, None), [1.0, 1.0, 1.0])


def test_engagement_weighs_too_and_never_to_nothing():
    # weights 3 and 1: (3 * 0.0655 + 0.2395) / 4
    found = loss(AXES, AXES, ids=[0, 1], probability=[0.25, 0.5], temperature=0.5, weights=[3.0, 1.0])
    assert found == pytest.approx((3 * ROW_1 + ROW_2) / 4, rel=1e-5)
    # 2 and 4, the second one half-life old: 2 and 2
    both = {"weights": [2.0, 4.0], "ages": [0.0, 30.0], "half_life": 30.0}
    found = loss(AXES, AXES, ids=[0, 1], probability=[0.25, 0.5], temperature=0.5, **both)
    assert found == pytest.approx((ROW_1 + ROW_2) / 2, rel=1e-5)
    assert float(example_weights(tf.constant([0.0]), tf.constant([1e9]), 1.0)[0]) > 0


def test_the_same_candidate_elsewhere_in_the_batch_is_no_negative():
    query, candidate = [[1.0, 0.0]] * 3, [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]
    # rows 1 and 2 have one negative at cosine 0: ln(1 + e^-1); row 3 has two at cosine 1: ln(1 + 2e)
    by_hand = (2 * np.log(1 + np.exp(-1)) + np.log(1 + 2 * np.e)) / 3
    assert loss(query, candidate, ids=[4, 4, 9], probability=[1.0] * 3) == pytest.approx(by_hand, rel=1e-5)
    # were the twin a negative, rows 1 and 2 would cost ln(2 + e^-1)
    with_hits = (2 * np.log(2 + np.exp(-1)) + np.log(1 + 2 * np.e)) / 3
    assert loss(query, candidate, ids=[4, 5, 9], probability=[1.0] * 3) == pytest.approx(with_hits, rel=1e-5)


def test_the_loss_is_per_example():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(64, 8))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    few = loss(vectors[:32], vectors[:32], ids=list(range(32)), probability=[1.0] * 32)
    many = loss(vectors, vectors, ids=list(range(64)), probability=[1.0] * 64)
    # twice the negatives add ln 2 to each example's loss; a sum over the batch would double it
    assert many - few == pytest.approx(np.log(2.0), abs=0.1)
