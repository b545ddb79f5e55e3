"""The formulas: quantiles, collisions of hashes, stability of a distribution. No I/O, no schema."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
_EMPTY = 0.5
"""The count that stands for an empty bin, whose logarithm would be infinite; less would make noise of small samples."""


def rounded(value: float) -> float:
    """Six digits: engines and machines add in different orders, which moves the last bits.

    >>> rounded(2 / 3)
    0.666667
    """
    return float(f"{value:.6g}")


def share(part: float, whole: float) -> float | None:
    """A share; None of nothing."""
    return rounded(part / whole) if whole else None


def quantiles(values: NDArray[Any]) -> dict[str, float]:
    """Values at fixed ranks: each is one of the data (the inverse of the empirical distribution function).

    Args:
        values: [n], n at least 1.

    >>> quantiles(np.array([4, 1, 3, 2]))["p50"], quantiles(np.array([4, 1, 3, 2]))["p75"]
    (2.0, 3.0)
    """
    found = np.quantile(values, QUANTILES, method="inverted_cdf")
    names = ("min", *(f"p{round(100 * of)}" for of in QUANTILES[1:-1]), "max")
    return {name: rounded(float(value)) for name, value in zip(names, found, strict=True)}


def expected_collisions(values: int, bins: int) -> float:
    """The expected share of distinct values that share their bin with another.

    A uniform hash puts each of the n - 1 other values into a given value's bin with probability 1/m, each
    independently; none is there with probability (1 - 1/m)^(n - 1), so that the value collides with
    1 - (1 - 1/m)^(n - 1). The mean over the values is the same, for expectations add.

    Reference: the birthday problem seen from one value; W. Feller, "An Introduction to Probability Theory and Its
    Applications", volume 1, II.3 and IV.2 (occupancy).

    >>> rounded(expected_collisions(2, 4)), expected_collisions(1, 1)
    (0.25, 0.0)
    """
    if values < 2:
        return 0.0
    return 1.0 if bins == 1 else -math.expm1((values - 1) * math.log1p(-1 / bins))


def bins_for(values: int, limit: float) -> int:
    """The fewest bins with which at most `limit` of the values are expected to collide.

    The inverse of `expected_collisions`: 1 / (1 - (1 - limit)^(1 / (n - 1))).

    >>> bins_for(2, 0.01), bins_for(251, 0.01)
    (100, 24876)
    """
    if values < 2:
        return 1
    exact = -1 / math.expm1(math.log1p(-limit) / (values - 1))
    # What is a whole number but for its last bits must not be rounded up to the next.
    return math.ceil(exact * (1 - 1e-12))


def stability(expected: Sequence[int], actual: Sequence[int]) -> float:
    """The population stability index of two histograms over the same bins: sum of (q - p) ln(q / p).

    The symmetrised Kullback-Leibler divergence of the two. The usual reading: below 0.1 stable, above 0.25 another
    distribution. An empty bin counts as half a value.

    Reference: N. Siddiqi, "Credit Risk Scorecards", Wiley 2006, on population stability; H. Jeffreys, "An invariant
    form for the prior probability in estimation problems", 1946.
    """
    p, q = (np.maximum(np.asarray(of, np.float64), _EMPTY) / max(sum(of), 1) for of in (expected, actual))
    return float(np.sum((q - p) * np.log(q / p)))


def stability_by_chance(bins: int, expected: int, actual: int) -> float:
    """What the index seldom exceeds where nothing changed: its mean and two deviations of it, for samples so small.

    Where both samples are of one distribution, the index is about (1/n + 1/m) times a chi-square variable of
    bins - 1 degrees of freedom, whose mean is bins - 1 and whose variance is 2 (bins - 1).

    Args:
        bins: number of bins.
        expected: independent rows of the first sample.
        actual: of the second.

    Reference: B. Yurdakul, "Statistical Properties of Population Stability Index", Western Michigan University 2018.

    >>> stability_by_chance(3, 100, 100)
    0.12
    """
    degrees = max(bins - 1, 0)
    return rounded((1 / max(expected, 1) + 1 / max(actual, 1)) * (degrees + 2 * math.sqrt(2 * degrees)))


def independent_rows(groups: NDArray[np.int64]) -> int:
    """How many independent rows say as much as rows in groups, of which each group's rows are alike.

    The effective sample size (sum of n)^2 / (sum of n^2), rounded up.

    Args:
        groups: [groups] rows of each.

    Reference: L. Kish, "Survey Sampling", Wiley 1965.

    >>> independent_rows(np.array([1, 1, 1])), independent_rows(np.array([8, 1, 1])), independent_rows(np.array([5]))
    (3, 2, 1)
    """
    return math.ceil(int(groups.sum()) ** 2 / int((groups**2).sum())) if len(groups) else 0


def histogram(values: NDArray[np.float64], edges: NDArray[np.float64]) -> list[int]:
    """Counts between edges; what lies outside falls into the first or the last bin."""
    inner = np.searchsorted(edges[1:-1], values, side="right")
    return [int(count) for count in np.bincount(inner, minlength=len(edges) - 1)]
