"""Which candidates are negatives, and how each kind is corrected for its sampling."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tests.unit.test_trainer_loss import AXES, Catalogue, given_batch, given_model, unit_vectors
from trainer.negatives import FullCatalogue, SampledCandidates

THREE = [[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]


def draws(seed: int, count: int, known: int) -> list[int]:
    """How often each of the candidates that training knows is drawn in the first step."""
    drawn = tf.random.Generator.from_seed(seed).uniform([count], maxval=known, dtype=tf.int64)
    return np.bincount(drawn, minlength=known).tolist()


def step(model, batch) -> float:
    return float(tf.function(model.compute_loss)(batch, training=True))


@pytest.mark.parametrize(
    ("train", "kind", "uniform"),
    [
        ({"negatives": "auto", "full_softmax_max": 3}, FullCatalogue, None),
        ({"negatives": "auto", "full_softmax_max": 2, "uniform_negatives": 7}, SampledCandidates, 7),
        ({"negatives": "in_batch", "full_softmax_max": 3}, SampledCandidates, 0),
    ],
)
def test_auto_is_the_whole_catalogue_while_it_is_small(train, kind, uniform):
    negatives = given_model(Catalogue(THREE), **train).negatives
    assert isinstance(negatives, kind)
    assert getattr(negatives, "uniform", None) == uniform


def test_the_full_softmax_by_hand():
    # Query (1, 0) of candidate 0: logits 1, 0, -1: ln(1 + e^-1 + e^-2). Query (0, 1) of candidate 1: 0, 1, 0.
    model = given_model(Catalogue(THREE), negatives="full", probability={0: 0.9, 1: 0.1})
    batch = given_batch(AXES, AXES, ids=[0, 1])
    by_hand = (np.log(1 + np.exp(-1) + np.exp(-2)) + np.log(1 + 2 * np.exp(-1))) / 2
    assert step(model, batch) == pytest.approx(by_hand, rel=1e-5)


def test_mixed_negatives_are_corrected_by_the_probability_of_the_mixture():
    # Candidates 0 and 1 are the batch; four more are drawn from three. p of a draw of the whole sample of six:
    #   0: (2 / 2 + 4 / 3) / 6 = 7 / 18    1: (2 / 4 + 4 / 3) / 6 = 11 / 36    2: (2 / 16 + 4 / 3) / 6 = 35 / 144
    # Row 0 (logits 1, 0, -1): own e / p0 once; others k1 / p1 + k2 e^-1 / p2, k the times in the sample.
    probability = {0: 0.5, 1: 0.25, 2: 0.0625}
    model = given_model(Catalogue(THREE), negatives="mixed", uniform_negatives=4, seed=4, probability=probability)
    assert draws(4, 4, known=3) == [1, 1, 2]
    own_0, own_1 = np.e * 18 / 7, np.e * 36 / 11
    row_0 = np.log(1 + (2 * 36 / 11 + 2 * np.exp(-1) * 144 / 35) / own_0)
    row_1 = np.log(1 + (2 * 18 / 7 + 2 * 144 / 35) / own_1)
    assert step(model, given_batch(AXES, AXES, ids=[0, 1])) == pytest.approx((row_0 + row_1) / 2, rel=1e-5)


def test_a_candidate_that_training_does_not_know_is_no_negative_of_the_full_softmax():
    # As above without candidate 2, which had logits -1 and 0: of both queries 1 and 0 are left, so ln(1 + e^-1).
    batch = given_batch(AXES, AXES, ids=[0, 1])
    without = given_model(Catalogue(THREE), negatives="full", probability={0: 0.9, 1: 0.1, 2: 0.0})
    assert step(without, batch) == pytest.approx(np.log1p(np.exp(-1)), rel=1e-5)
    # Also where hard negatives are asked for, of which only one is left; and nothing is learnt of it.
    hard = given_model(Catalogue(THREE), negatives="full", hard_negatives=2, probability={2: 0.0})
    assert step(hard, batch) == pytest.approx(np.log1p(np.exp(-1)), rel=1e-5)
    with tf.GradientTape() as tape:
        tape.watch(without.candidates.vectors)
        found = without.compute_loss(batch, training=True)
    gradient = tf.convert_to_tensor(tape.gradient(found, without.candidates.vectors)).numpy()
    assert gradient[2].tolist() == [0.0, 0.0]
    assert np.all(np.abs(gradient[:2]) > 0.1)


def test_uniform_draws_are_of_what_training_knows_and_so_is_their_probability():
    # Candidate 1 is unknown, so 300 draws are of two: place 0 is candidate 0, place 1 candidate 2. With a batch of one
    # p of a draw of the sample is (1 * 0.5 + 300 / 2) / 301 for 0 and (1 * 0.25 + 300 / 2) / 301 for 2.
    probability = {0: 0.5, 1: 0.0, 2: 0.25}
    model = given_model(Catalogue(THREE), negatives="mixed", uniform_negatives=300, seed=5, probability=probability)
    _, times = draws(5, 300, known=2)
    p_0, p_2 = 150.5 / 301, 150.25 / 301
    assert 100 < times < 200
    # Query (1, 0) of candidate 0: own e / p0; candidate 2 has logit -1 and stands in the sample so many times.
    by_hand = np.log(1 + times * np.exp(-1) / p_2 / (np.e / p_0))
    batch = given_batch([[1.0, 0.0]], [[1.0, 0.0]], ids=[0])
    assert step(model, batch) == pytest.approx(by_hand, rel=1e-5)


def test_many_uniform_draws_make_the_full_softmax():
    # All candidates are as likely in batches as in draws, so each p is 1 / 8, and each of them stands in a sample of n
    # about n / 8 times: ln(1 + n / 8 * the sum of e^(s - own) over the others of the catalogue).
    queries, catalogue = unit_vectors(8, 3, seed=1), unit_vectors(8, 3, seed=2)
    batch = given_batch(queries, catalogue, ids=list(range(8)))
    count, probability = 40_000, dict.fromkeys(range(8), 1 / 8)
    model = given_model(Catalogue(catalogue), negatives="mixed", uniform_negatives=count, probability=probability)
    scores = np.exp(queries @ catalogue.T)
    others = scores.sum(axis=1) / np.diag(scores) - 1
    by_hand = np.log(1 + (count + 8) / 8 * others).mean()
    assert step(model, batch) == pytest.approx(by_hand, abs=0.01)


def test_a_twin_in_the_batch_keeps_its_own_features():
    # Candidate 4 stands in the batch twice, as of two moments. Rows 1 and 2: own logits 1 and 0, each with the third
    # at -1 as its negative: ln(1 + e^-2), ln(1 + e^-1). Row 3 has candidate 4 twice as a negative.
    model = given_model(Catalogue(np.zeros([5, 2])), negatives="in_batch")
    batch = given_batch([[1.0, 0.0]] * 3, [[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]], ids=[4, 4, 3])
    by_hand = (np.log1p(np.exp(-2)) + np.log1p(np.exp(-1)) + np.log1p(2 * np.exp(2))) / 3
    assert step(model, batch) == pytest.approx(by_hand, rel=1e-5)


def test_streaming_estimates_correct_the_logits():
    # The first batch is 0, 0, 1: gaps 3 / 2 and 3, so p = 2 / 3 and 1 / 3. Rows of 0: own e * 3 / 2, other 3.
    # The row of 1: own e * 3, other twice 3 / 2.
    model = given_model(Catalogue(THREE), negatives="in_batch", logq="streaming", probability={0: 1e-3})
    batch = given_batch([AXES[0], *AXES], [AXES[0], *AXES], ids=[0, 0, 1])
    by_hand = (2 * np.log1p(2 * np.exp(-1)) + np.log1p(np.exp(-1))) / 3
    assert step(model, batch) == pytest.approx(by_hand, rel=1e-5)
    # Without training nothing is learnt.
    seen = model.negatives.streaming.times.numpy()
    tf.function(model.compute_loss)(batch, training=False)
    np.testing.assert_array_equal(model.negatives.streaming.times, seen)


@pytest.mark.parametrize("logq", ["data", "streaming"])
def test_a_restored_model_goes_on_with_the_same_losses(tmp_path, logq):
    catalogue = unit_vectors(30, 3, seed=1)
    rng = np.random.default_rng(0)
    probability = dict(enumerate(rng.dirichlet(np.ones(30)).tolist()))

    def batch():
        ids = rng.integers(0, 30, 4).tolist()
        return given_batch(unit_vectors(4, 3, 2), catalogue[ids], ids=ids)

    def model(seed):
        train = {"negatives": "mixed", "uniform_negatives": 5, "logq": logq, "seed": seed}
        return given_model(Catalogue(catalogue), temperature=0.1, learn=True, probability=probability, **train)

    first, before, after = model(seed=1), [batch() for _ in range(3)], [batch() for _ in range(3)]
    for one in before:
        step(first, one)
    first.trainable_variables[0].assign_add(0.1)
    path = tf.train.Checkpoint(model=first).write(str(tmp_path / "checkpoint"))
    expected = [step(first, one) for one in after]
    second = model(seed=2)
    tf.train.Checkpoint(model=second).read(path).assert_consumed()
    assert [step(second, one) for one in after] == expected
    assert [step(model(seed=2), one) for one in after] != expected
