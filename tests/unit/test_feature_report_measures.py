"""The formulas of the feature report, against numbers worked out by hand or by brute force."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pyarrow as pa
import pytest

from dataflow.feature_report.drift import deciles, measure_drift, top_values
from dataflow.feature_report.features import _vectors
from dataflow.feature_report.measures import (
    bins_for,
    expected_collisions,
    histogram,
    quantiles,
    rounded,
    stability,
    stability_by_chance,
)
from dataflow.feature_report.values import Occurrences, Rows


@pytest.mark.parametrize(("values", "bins"), [(1, 3), (2, 3), (3, 2), (4, 3), (3, 1)])
def test_expected_collisions_are_the_mean_over_all_ways_to_hash(values: int, bins: int) -> None:
    ways = list(product(range(bins), repeat=values))
    colliding = sum(sum(way.count(place) > 1 for place in way) for way in ways)
    assert expected_collisions(values, bins) == pytest.approx(colliding / (len(ways) * values), abs=1e-12)


@pytest.mark.parametrize(("values", "limit"), [(2, 0.01), (10, 0.01), (251, 0.01), (1_000_000, 0.01), (50, 0.5)])
def test_one_bin_fewer_would_be_too_few(values: int, limit: float) -> None:
    bins = bins_for(values, limit)
    assert expected_collisions(values, bins) <= limit * (1 + 1e-9)
    assert expected_collisions(values, bins - 1) > limit


def test_a_single_value_needs_one_bin() -> None:
    assert (bins_for(0, 0.01), bins_for(1, 0.01), expected_collisions(0, 5)) == (1, 1, 0.0)


def test_stability_by_hand() -> None:
    # Shares .5 .5 and .8 .2: .3 ln 1.6 - .3 ln .4 = .3 ln 4.
    assert stability([50, 50], [8, 2]) == pytest.approx(0.3 * math.log(4))
    assert stability([8, 2], [50, 50]) == pytest.approx(0.3 * math.log(4))
    assert stability([10, 30], [1, 3]) == 0


def test_an_empty_bin_counts_as_half_a_value() -> None:
    # Shares 1, .05 and .5, .5: -.5 ln .5 + .45 ln 10.
    assert stability([10, 0], [5, 5]) == pytest.approx(0.5 * math.log(2) + 0.45 * math.log(10))


def test_chance_alone_seldom_exceeds_its_bound() -> None:
    rng = np.random.default_rng(1)
    shares = np.full(10, 0.1)
    bound = stability_by_chance(10, 2_000, 300)
    drawn = [stability(rng.multinomial(2_000, shares), rng.multinomial(300, shares)) for _ in range(500)]
    assert 0 < np.mean(np.array(drawn) > bound) < 0.1
    assert np.mean(drawn) == pytest.approx(9 * (1 / 2_000 + 1 / 300), rel=0.1)


def test_quantiles_are_values_of_the_data() -> None:
    assert quantiles(np.arange(1, 101)[::-1]) == {
        "min": 1.0,
        "p1": 1.0,
        "p5": 5.0,
        "p25": 25.0,
        "p50": 50.0,
        "p75": 75.0,
        "p95": 95.0,
        "p99": 99.0,
        "max": 100.0,
    }


def test_six_digits_are_kept() -> None:
    assert [rounded(of) for of in (1 / 3, 1_234_567.0, 0.0, -1e-9)] == [0.333333, 1_234_570.0, 0.0, -1e-9]


def test_what_lies_outside_the_histogram_falls_into_its_ends() -> None:
    assert histogram(np.array([-5.0, 0.0, 0.5, 1.0, 2.0, 9.0]), np.array([0.0, 1.0, 2.0])) == [3, 3]


def test_deciles_hold_what_they_end_with() -> None:
    # Deciles of 1 to 10 are 1, 2, ... 9: ten bins, one training value each.
    bins = deciles(np.arange(1.0, 11.0), np.array([1.0, 1.5, 100.0]))
    assert [(label, train) for label, train, _ in bins[:2]] == [("up to 1", 1), ("up to 2", 1)]
    assert bins[-1] == ("above 9", 1, 1)
    assert [later for _, _, later in bins] == [1, 1, 0, 0, 0, 0, 0, 0, 0, 1]


def test_equal_deciles_are_one_bin() -> None:
    assert deciles(np.zeros(5), np.array([0.0, 1.0])) == [("up to 0", 5, 1), ("above 0", 0, 1)]
    assert deciles(np.array([]), np.array([1.0])) == [("all", 0, 1)]


def test_values_beyond_the_top_are_one_bin() -> None:
    train = ([f"v{n:02d}" for n in range(22)], np.arange(30, 8, -1))
    bins = top_values(train, (["v00", "new", "v21"], np.array([4, 2, 1])))
    assert len(bins) == 21
    assert bins[0] == ("v00", 30, 4)
    assert bins[-1] == ("all others", 10 + 9, 3)


def test_drift_counts_what_is_missing() -> None:
    train, validation = (Rows(pa.StructArray.from_arrays([pa.array(range(n))], ["x"]), n) for n in (4, 2))
    drift = measure_drift("values", [("a", 2, 1), ("never", 0, 0)], (2, 1), train, validation)
    assert drift["index"] == 0.0
    assert [bin["label"] for bin in drift["bins"]] == ["a", "missing"]
    # Two bins: one degree of freedom; 1/4 + 1/2, times 1 + 2 sqrt 2.
    assert drift["by_chance"] == pytest.approx(0.75 * (1 + 2 * math.sqrt(2)), rel=1e-5)
    changed = measure_drift("values", [("a", 2, 2)], (2, 0), train, validation)
    # Shares .5, .5 and 1, .25: .5 ln 2 - .25 ln .5.
    assert changed["index"] == pytest.approx(0.75 * math.log(2), rel=1e-5)


def test_without_validation_there_is_no_drift() -> None:
    rows = Rows(pa.StructArray.from_arrays([pa.array([1])], ["x"]), 1)
    assert measure_drift("values", [("a", 1, 0)], (0, 0), rows, rows)["index"] is None


def test_a_vector_with_a_hole_is_wrong_once() -> None:
    found = _vectors(pa.array([[1.0, None], [3.0, 4.0], [1.0, 2.0, 2.0], [math.inf, 0.0, 0.0]]), 2)
    assert (found["wrong"], found["zero"]) == (0.75, 0.0)
    assert (found["norms"]["min"], found["norms"]["max"]) == (3.0, 5.0)


def test_numbers_do_not_depend_on_the_rows_order() -> None:
    assert Occurrences(3, np.ones(3, np.int64), pa.array([2.0, 3.0, 1.0])).numbers.tolist() == [1.0, 2.0, 3.0]
