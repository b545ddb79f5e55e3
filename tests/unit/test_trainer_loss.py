"""The loss, against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from lockstep.errors import ConfigError
from lockstep.model_sections import ModelSection, TrainSection
from trainer.losses import Columns, example_weights, softmax_loss
from trainer.two_tower import TwoTowerModel


class Given(tf.keras.Model):
    """A tower that returns the vector it is given."""

    def call(self, inputs, training=False):
        return inputs["vector"]


class Catalogue:
    """Candidates whose only feature is their vector."""

    def __init__(self, vectors) -> None:
        self.vectors = tf.constant(vectors, tf.float32)
        self.rows = len(vectors)

    def features(self, indices):
        return {"vector": tf.gather(self.vectors, indices)}

    def all(self):
        return {"vector": self.vectors}


def given_model(catalogue, *, probability=None, temperature=1.0, learn=False, **train) -> TwoTowerModel:
    """Of towers that return what they are given; `probability` by candidate, and 1 for the others."""
    model = ModelSection(temperature=temperature, learn_temperature=learn)
    of_each = [(probability or {}).get(index, 1.0) for index in range(catalogue.rows)]
    return TwoTowerModel(Given(), Given(), catalogue, tf.constant(of_each), model, TrainSection(**train))


def given_batch(query, candidate, *, ids, past=None, hidden=None, weights=None):
    count = len(ids)
    return {
        "query": {"vector": tf.constant(query, tf.float32)},
        "candidate": {"vector": tf.constant(candidate, tf.float32)},
        "candidate_index": tf.constant(ids, tf.int64),
        "past": tf.reshape(tf.constant(past or [], tf.int64), [count, -1]),
        "hidden": tf.reshape(tf.constant(hidden or [], tf.int64), [count, -1]),
        "weight": tf.constant(weights or [1.0] * count, tf.float32),
    }


def loss(query, candidate, *, temperature=1.0, catalogue=None, probability=None, train=None, **batch) -> float:
    model = given_model(
        Catalogue(catalogue if catalogue is not None else np.zeros([10, 2])),
        probability=probability,
        temperature=temperature,
        **{"negatives": "in_batch", **(train or {})},
    )
    return float(tf.function(model.compute_loss)(given_batch(query, candidate, **batch), training=True))


def unit_vectors(count: int, dim: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


ROW_1, ROW_2 = np.log1p(np.exp(-2) / 2), np.log1p(np.exp(-2) * 2)
AXES = [[1.0, 0.0], [0.0, 1.0]]


def test_temperature_and_logq():
    # logits = cosine / 0.5 - ln p: row 1 is (2 + ln 4, ln 2), row 2 is (ln 4, 2 + ln 2)
    # row 1: ln(1 + e^-2 / 2) = 0.0655; row 2: ln(1 + 2 e^-2) = 0.2395
    found = loss(AXES, AXES, ids=[0, 1], probability={0: 0.25, 1: 0.5}, temperature=0.5)
    assert found == pytest.approx((ROW_1 + ROW_2) / 2, rel=1e-5)


@pytest.mark.parametrize("correction", [{"probability": {}}, {"train": {"logq": "none"}}])
def test_without_logq_a_frequent_candidate_would_cost_more(correction):
    found = loss(AXES, AXES, ids=[0, 1], temperature=0.5, **{"probability": {0: 0.25, 1: 0.5}, **correction})
    assert found == pytest.approx(np.log1p(np.exp(-2.0)), rel=1e-5)


def test_engagement_weighs_too_and_never_to_nothing():
    # weights 3 and 1: (3 * 0.0655 + 0.2395) / 4
    found = loss(AXES, AXES, ids=[0, 1], probability={0: 0.25, 1: 0.5}, temperature=0.5, weights=[3.0, 1.0])
    assert found == pytest.approx((3 * ROW_1 + ROW_2) / 4, rel=1e-5)
    np.testing.assert_allclose(example_weights(tf.constant([0.0, 2.0])), [1e-6, 2.0], rtol=1e-6)


def test_the_same_candidate_elsewhere_in_the_batch_is_no_negative():
    query, candidate = [[1.0, 0.0]] * 3, [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]
    # rows 1 and 2 have one negative at cosine 0: ln(1 + e^-1); row 3 has two at cosine 1: ln(1 + 2e)
    by_hand = (2 * np.log(1 + np.exp(-1)) + np.log(1 + 2 * np.e)) / 3
    assert loss(query, candidate, ids=[4, 4, 9]) == pytest.approx(by_hand, rel=1e-5)
    # were the twin a negative, rows 1 and 2 would cost ln(2 + e^-1)
    with_hits = (2 * np.log(2 + np.exp(-1)) + np.log(1 + 2 * np.e)) / 3
    assert loss(query, candidate, ids=[4, 5, 9]) == pytest.approx(with_hits, rel=1e-5)


def test_a_querys_own_past_is_no_negative_but_its_candidate_is_still_told_apart():
    query, candidate = [[1.0, 0.0]] * 3, [[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]
    # logits of each row: 1, 0, -1. Row 1 has seen candidate 5, so its negative is the third alone: ln(1 + e^-2).
    # Row 2 has seen its own candidate 5, which stays, and 8, which is not in the batch: ln(1 + e + e^-1).
    # Row 3 has seen both others: 0.
    past = [[5 + 1, 0], [5 + 1, 8 + 1], [4 + 1, 5 + 1]]
    by_hand = (np.log1p(np.exp(-2)) + np.log(1 + np.e + np.exp(-1))) / 3
    assert loss(query, candidate, ids=[4, 5, 6], past=past) == pytest.approx(by_hand, rel=1e-5)
    catalogue = [[0.0, 0.0]] * 4 + candidate
    train = {"negatives": "full"}
    # The whole catalogue has four more at logit 0, which are in nobody's past.
    by_hand = (
        np.log((np.e + np.exp(-1) + 4) / np.e)
        + np.log(1 + np.e + np.exp(-1) + 4)
        + np.log((np.exp(-1) + 4) / np.exp(-1))
    ) / 3
    past = [[5 + 1, 0], [5 + 1, 0], [4 + 1, 5 + 1]]
    found = loss(query, candidate, ids=[4, 5, 6], past=past, catalogue=catalogue, train=train)
    assert found == pytest.approx(by_hand, rel=1e-5)


def test_what_was_hidden_of_a_history_is_found_as_well():
    # Logits of both queries: 0, 1, 2, -1. Row 1 has candidates 0 and 2, the mean of whose losses is
    # ln(1 + e + e^2 + e^-1) - (0 + 2) / 2; row 2 has candidate 1 alone, and has seen 3.
    catalogue = np.array([[0.0], [1.0], [2.0], [-1.0]])
    everything = np.log(1 + np.e + np.exp(2) + np.exp(-1))
    by_hand = (everything - 1 + np.log(1 + np.e + np.exp(2)) - 1) / 2
    given = {"ids": [0, 1], "hidden": [[2 + 1, 0], [0, 0]], "past": [[0], [3 + 1]], "catalogue": catalogue}
    found = loss([[1.0], [1.0]], [[9.0], [9.0]], train={"negatives": "full"}, **given)
    assert found == pytest.approx(by_hand, rel=1e-5)
    # With one hard negative row 1 is told from candidate 1, row 2 from candidate 2.
    by_hand = (np.log(1 + np.e + np.exp(2)) - 1 + np.log(np.e + np.exp(2)) - 1) / 2
    hard = {"negatives": "full", "hard_negatives": 1}
    assert loss([[1.0], [1.0]], [[9.0], [9.0]], train=hard, **given) == pytest.approx(by_hand, rel=1e-5)


def test_hard_negatives_are_those_that_score_highest():
    # Logits of row 1: 0 (own), 1, -1, 0.5 -> with one negative ln(1 + e); with two ln(1 + e + e^0.5).
    columns = Columns(
        vectors=tf.constant([[0.0], [1.0], [-1.0], [0.5]]),
        correction=tf.zeros(4),
        own=tf.constant([0]),
        own_correction=tf.zeros(1),
        left_out=tf.zeros([1, 0], tf.int32),
        also=tf.zeros([1, 0], tf.int32),
    )
    by_count = {1: np.log(1 + np.e), 2: np.log(1 + np.e + np.exp(0.5)), 9: np.log(1 + np.e + np.exp(0.5) + np.exp(-1))}
    for count, by_hand in by_count.items():
        assert float(softmax_loss(tf.ones([1, 1]), columns, tf.ones(1), count)) == pytest.approx(by_hand, rel=1e-5)
    # One that the query has seen makes room for the next: ln(1 + e^0.5).
    seen = columns._replace(left_out=tf.constant([[1]]))
    assert float(softmax_loss(tf.ones([1, 1]), seen, tf.ones(1), 1)) == pytest.approx(np.log(1 + np.exp(0.5)), rel=1e-5)


@pytest.mark.parametrize("hard", [None, 3])
@pytest.mark.parametrize(("rows", "count"), [(7, 10), (300, 5_000)])
def test_loss_and_gradient_are_those_of_the_plain_formula(rows, count, hard):
    # 300 x 5,000 logits are computed in two blocks.
    rng = np.random.default_rng(1)
    queries, vectors, correction = rng.normal(size=(rows, 4)), rng.normal(size=(count, 4)), rng.normal(size=count)
    own, left_out, weights = rng.integers(0, count, rows), rng.integers(0, count, (rows, 2)), rng.uniform(size=rows)
    also = np.stack([np.where(rng.random(rows) < 0.5, (own + step) % count, own) for step in (1, 2)], axis=1)
    left_out = np.where((left_out == also[:, :1]) | (left_out == also[:, 1:]), own[:, np.newaxis], left_out)
    own_correction = rng.normal(size=rows)
    columns = Columns(
        tf.constant(vectors, tf.float32),
        tf.constant(correction, tf.float32),
        tf.constant(own, tf.int32),
        tf.constant(own_correction, tf.float32),
        tf.constant(left_out, tf.int32),
        tf.constant(also, tf.int32),
    )
    inputs = tf.constant(queries, tf.float32), tf.constant(weights, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch((inputs[0], columns.vectors))
        found = 2.0 * tf.function(softmax_loss)(inputs[0], columns, inputs[1], hard)

    each = np.arange(rows)
    logits = queries @ vectors.T + correction
    logits[each[:, np.newaxis], left_out] = -np.inf
    logits[each, own] = -np.inf
    is_also = np.zeros(logits.shape, bool)
    is_also[each[:, np.newaxis], also] = True
    is_also[each, own] = False
    kept = np.where(is_also, -np.inf, logits)
    if hard is not None:
        kept[kept < np.sort(kept, axis=1)[:, -hard, np.newaxis]] = -np.inf
    logits = np.where(is_also, logits, kept)
    logits[each, own] = (queries * vectors[own]).sum(axis=1) + own_correction
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    wanted = is_also.astype(float)
    wanted[each, own] = 1.0
    wanted /= wanted.sum(axis=1, keepdims=True)
    logs = np.log(np.where(wanted > 0, shares, 1.0))
    assert float(found) == pytest.approx(-2.0 * (weights[:, np.newaxis] * wanted * logs).sum(), rel=1e-5)
    by_logits = 2.0 * weights[:, np.newaxis] * (shares - wanted)
    by_queries, by_vectors = tape.gradient(found, (inputs[0], columns.vectors))
    np.testing.assert_allclose(by_queries, by_logits @ vectors, atol=1e-4)
    np.testing.assert_allclose(by_vectors, by_logits.T @ queries, atol=1e-4)


def test_the_loss_is_per_example():
    vectors = unit_vectors(64, 8, seed=0)
    catalogue = np.zeros([64, 8])
    few = loss(vectors[:32], vectors[:32], ids=list(range(32)), catalogue=catalogue)
    many = loss(vectors, vectors, ids=list(range(64)), catalogue=catalogue)
    # twice the negatives add ln 2 to each example's loss; a sum over the batch would double it
    assert many - few == pytest.approx(np.log(2.0), abs=0.1)


def test_a_batch_that_is_the_catalogue_costs_what_the_full_softmax_costs():
    queries, catalogue = unit_vectors(12, 4, seed=1), unit_vectors(12, 4, seed=2)
    ids = list(np.random.default_rng(3).permutation(12))
    batch = {"ids": ids, "catalogue": catalogue, "past": [[(i % 5) + 1, 0] for i in range(12)], "temperature": 0.2}
    sampled = loss(queries, catalogue[ids], train={"negatives": "in_batch", "logq": "none"}, **batch)
    assert sampled == pytest.approx(loss(queries, catalogue[ids], train={"negatives": "full"}, **batch), rel=1e-5)


def test_the_temperature_is_learnt_within_its_range():
    # At temperature T row 1 costs ln(1 + e^(-1 / T)), so its derivative by T is e^(-1/T) / T^2 / (1 + e^(-1/T)):
    # at 0.5 that is 4 * 0.1192 = 0.4768, and T goes down.
    model = given_model(Catalogue(np.zeros([10, 2])), temperature=0.5, learn=True, negatives="in_batch")
    batch = given_batch(AXES, AXES, ids=[0, 1])
    assert float(model.temperature) == pytest.approx(0.5, rel=1e-6)
    (variable,) = model.trainable_variables
    with tf.GradientTape() as tape:
        found = model.compute_loss(batch, training=True)
    # T = 0.01 * 100^s, s = sigmoid(place) = ln 50 / ln 100: dT / dplace = T ln(100) s (1 - s) = 0.29442
    share = np.log(50) / np.log(100)
    by_hand = 4 * 0.119203 * 0.5 * np.log(100) * share * (1 - share)
    assert float(tape.gradient(found, variable)) == pytest.approx(by_hand, rel=1e-4)
    variable.assign(1e3)
    assert float(model.temperature) == pytest.approx(1.0)
    variable.assign(-1e3)
    assert float(model.temperature) == pytest.approx(0.01)


def test_a_temperature_that_cannot_be_learnt_is_refused():
    with pytest.raises(ConfigError, match=r"temperature is 2.0, and learn_temperature keeps it between 0.01 and 1.0"):
        given_model(Catalogue(np.zeros([10, 2])), temperature=2.0, learn=True)


def test_what_is_hidden_is_not_silently_forgotten_where_the_catalogue_is_large():
    with pytest.raises(ConfigError, match="not taken for 10 candidates, more than full_softmax_max = 9"):
        given_model(Catalogue(np.zeros([10, 2])), find_hidden=True, sample_history=1.0, full_softmax_max=9)
