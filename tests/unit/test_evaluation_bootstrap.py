from __future__ import annotations

import numpy as np
import pytest

from lockstep.model_sections import EvaluateSection
from tests.unit.test_evaluation_measures import queries_of
from tests.unit.test_evaluation_slices import catalogue_of
from trainer.evaluation import bootstrap
from trainer.evaluation.bootstrap import intervals
from trainer.evaluation.comparison import compare
from trainer.evaluation.page import render
from trainer.evaluation.ranking import SameForAll
from trainer.evaluation.slices import Slice


def test_the_interval_is_that_of_the_known_spread_of_a_mean():
    values = np.random.default_rng(1).normal(3.0, 2.0, (4_000, 1))
    low, high = intervals(values, 4_000, seed=2)
    # The mean of n values has a standard deviation of s / sqrt(n); 95 % lie within 1.96 of them.
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert (low[0], high[0]) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)


def test_nineteen_of_twenty_intervals_hold_the_true_mean():
    rng = np.random.default_rng(3)
    held = 0
    for trial in range(400):
        low, high = intervals(rng.exponential(1.0, (200, 1)), 300, seed=trial)
        held += bool(low[0] <= 1.0 <= high[0])
    # 400 x 0.95 = 380 with a deviation of 4.4; a percentile interval of a skewed mean holds a little less.
    assert 360 <= held <= 394


def test_the_interval_of_a_column_ignores_queries_that_do_not_belong_to_it():
    values = np.full((300, 3), np.nan)
    values[:100, 0] = np.tile([0.0, 1.0], 50)
    values[:, 1] = 5.0
    low, high = intervals(values, 500, seed=1)
    # 100 of the 300 queries belong to the first column: 1.96 x 0.5 / sqrt(100) = 0.098 to either side of one half
    assert (low[0], high[0]) == pytest.approx((0.402, 0.598), abs=0.025)
    assert (low[1], high[1]) == (5.0, 5.0)
    assert np.isnan([low[2], high[2]]).all()


def test_paired_columns_see_the_same_resamples():
    a = np.random.default_rng(4).normal(0.0, 10.0, 500)
    low, high = intervals(np.stack([a, a + 1.0, (a + 1.0) - a], axis=1), 200, seed=1)
    assert (low[1] - low[0], high[1] - high[0]) == (pytest.approx(1.0), pytest.approx(1.0))
    assert (low[2], high[2]) == (pytest.approx(1.0), pytest.approx(1.0))


def test_a_seed_decides_everything_but_not_how_many_resamples_are_made_at_once(monkeypatch):
    values = np.random.default_rng(5).random((50, 2))
    expected = intervals(values, 100, seed=7)
    np.testing.assert_array_equal(intervals(values, 100, seed=7), expected)
    assert (intervals(values, 100, seed=8)[0] != expected[0]).any()
    monkeypatch.setattr(bootstrap, "_ELEMENTS", 130)
    np.testing.assert_allclose(intervals(values, 100, seed=7), expected)


def test_fewer_than_ten_queries_have_no_interval():
    values = np.full((500, 3), np.nan)
    values[0, 0], values[:9, 1], values[:10, 2] = 1.0, np.arange(9), np.arange(10)
    low, high = intervals(values, 1_000, seed=1)
    assert np.isnan([low[:2], high[:2]]).all()
    # The mean of ten is 4.5 with a deviation of 2.87 / sqrt(10) = 0.91.
    assert (low[2], high[2]) == (pytest.approx(4.5 - 1.78, abs=0.2), pytest.approx(4.5 + 1.78, abs=0.2))


@pytest.mark.parametrize(("queries", "expected"), [(9, (0, 0)), (10, (2, 5))])
def test_the_page_draws_neither_whisker_nor_colour_for_fewer_than_ten_queries(queries, expected):
    asked = queries_of([[]] * queries, [[0]] * queries)
    scores = {"model": (2, 1), "popularity": (1, 2)}
    scorers = {name: SameForAll(np.array(of, np.float32)) for name, of in scores.items()}
    slices = [Slice("queries", "land", value, np.ones(queries, bool)) for value in ("a", "b")]
    measures, details = compare(scorers, asked, catalogue_of([1, 3]), slices, EvaluateSection(ks=(1,), bootstrap=50))
    facts = {"queries": queries, "candidates": 2, "held_out": queries, "held_out_unknown": 0}
    report = {"model_version": 1, "run": "r", "baselines": {}, "test": measures | facts, "details": {"test": details}}
    page = render(report)
    assert details["gains"]["popularity"]["recall@1"]["value"] == 1.0  # every query gains
    assert page.count("<rect") == 2
    # a whisker a slice; coloured are recall, nDCG, hit rate, MRR and R-precision: clicks begin at rank 11
    assert (page.count('class="whisker"'), page.count('class="good"') + page.count('class="bad"')) == expected
