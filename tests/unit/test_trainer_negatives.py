"""Which candidates are negatives, and how each kind is corrected for its sampling."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tests.unit.test_trainer_loss import AXES, Catalogue, given_batch, given_model, unit_vectors
from trainer.negatives import FullCatalogue, SampledCandidates

THREE = [[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]


def draws(seed: int, count: int, steps: int = 1) -> np.ndarray:
    """[3] how often each of three candidates is drawn in the last of so many steps."""
    generator = tf.random.Generator.from_seed(seed)
    drawn = [generator.uniform([count], maxval=3, dtype=tf.int64).numpy() for _ in range(steps)]
    return np.bincount(drawn[-1], minlength=3)


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
    model = given_model(Catalogue(THREE), negatives="full")
    batch = given_batch(AXES, AXES, ids=[0, 1], probability=[0.9, 0.1])
    by_hand = (np.log(1 + np.exp(-1) + np.exp(-2)) + np.log(1 + 2 * np.exp(-1))) / 2
    assert step(model, batch) == pytest.approx(by_hand, rel=1e-5)


def test_mixed_negatives_are_corrected_by_the_probability_of_the_mixture():
    # Candidates 0 and 1 are the batch; four more are drawn from three. p of a draw of the whole sample of six:
    #   0: (2 * 0.5 + 4 / 3) / 6 = 7 / 18      1: (2 * 0.25 + 4 / 3) / 6 = 11 / 36     2: (0 + 4 / 3) / 6 = 2 / 9
    # Row 0 (logits 1, 0, -1): own e / p0 once; others k1 / p1 + k2 e^-1 / p2, k the times in the sample.
    model = given_model(Catalogue(THREE), negatives="mixed", uniform_negatives=4, seed=4)
    assert draws(4, 4).tolist() == [1, 1, 2]
    own_0, own_1 = np.e * 18 / 7, np.e * 36 / 11
    row_0 = np.log(1 + (2 * 36 / 11 + 2 * np.exp(-1) * 9 / 2) / own_0)
    row_1 = np.log(1 + (2 * 18 / 7 + 2 * 9 / 2) / own_1)
    batch = given_batch(AXES, AXES, ids=[0, 1], probability=[0.5, 0.25])
    assert step(model, batch) == pytest.approx((row_0 + row_1) / 2, rel=1e-5)


def test_a_uniform_draw_has_the_probability_that_an_earlier_batch_gave_it():
    batch = given_batch([[1.0, 0.0]], [[1.0, 0.0]], ids=[0], probability=[0.5])
    earlier = given_batch([[1.0, 0.0]], [[-1.0, 0.0]], ids=[2], probability=[0.2])
    model = given_model(Catalogue(THREE), negatives="mixed", uniform_negatives=300, seed=5)
    assert step(model, earlier) > 0
    k = draws(5, 300, steps=2)
    p = (np.array([0.5, 0.0, 0.2]) + 300 / 3) / 301
    by_hand = np.log(1 + (k[1] / p[1] + k[2] * np.exp(-1) / p[2]) / (np.e / p[0]))
    assert step(model, batch) == pytest.approx(by_hand, rel=1e-5)


def test_many_uniform_draws_make_the_full_softmax():
    # All candidates are as likely in batches as in draws, so each p is 1 / 8, and each of them stands in a sample of n
    # about n / 8 times: ln(1 + n / 8 * the sum of e^(s - own) over the others of the catalogue).
    queries, catalogue = unit_vectors(8, 3, seed=1), unit_vectors(8, 3, seed=2)
    batch = given_batch(queries, catalogue, ids=list(range(8)), probability=[1 / 8] * 8)
    count = 40_000
    model = given_model(Catalogue(catalogue), negatives="mixed", uniform_negatives=count)
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
    model = given_model(Catalogue(THREE), negatives="in_batch", logq="streaming")
    batch = given_batch([AXES[0], *AXES], [AXES[0], *AXES], ids=[0, 0, 1], probability=[1e-3] * 3)
    by_hand = (2 * np.log1p(2 * np.exp(-1)) + np.log1p(np.exp(-1))) / 3
    assert step(model, batch) == pytest.approx(by_hand, rel=1e-5)
    # Without training nothing is learnt.
    seen = model.negatives.frequency.times.numpy()
    tf.function(model.compute_loss)(batch, training=False)
    np.testing.assert_array_equal(model.negatives.frequency.times, seen)


@pytest.mark.parametrize("logq", ["data", "streaming"])
def test_a_restored_model_goes_on_with_the_same_losses(tmp_path, logq):
    catalogue = unit_vectors(30, 3, seed=1)
    rng = np.random.default_rng(0)

    def batch():
        ids = rng.integers(0, 30, 4).tolist()
        return given_batch(unit_vectors(4, 3, 2), catalogue[ids], ids=ids, probability=rng.uniform(size=4).tolist())

    def model(seed):
        train = {"negatives": "mixed", "uniform_negatives": 5, "logq": logq, "seed": seed}
        return given_model(Catalogue(catalogue), temperature=0.1, learn=True, **train)

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
