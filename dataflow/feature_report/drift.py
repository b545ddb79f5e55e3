"""Whether a feature's values are distributed in validation as in training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataflow.feature_report.measures import rounded, share, stability, stability_by_chance
from dataflow.feature_report.thresholds import TOP
from dataflow.feature_report.values import Rows

_LABEL = 60
"""Longest label of a bin, in characters."""
Bins = list[tuple[str, int, int]]
"""Label, count in training, count in validation."""


def top_values(
    train: tuple[Sequence[str], NDArray[np.int64]], validation: tuple[Sequence[str], NDArray[np.int64]]
) -> Bins:
    """Bins of the most frequent training values, and one of all others.

    Args:
        train: distinct values, most frequent first, and their counts.
        validation: likewise.
    """
    values, counts = train
    later = dict(zip(validation[0], validation[1].tolist(), strict=True))
    bins = [(_label(v), int(c), later.pop(v, 0)) for v, c in zip(values[:TOP], counts[:TOP], strict=True)]
    return [*bins, ("all others", int(counts[TOP:].sum()), sum(later.values()))]


def deciles(train: NDArray[Any], validation: NDArray[Any]) -> Bins:
    """Bins between the training deciles, fewer where they coincide."""
    if not len(train):
        return [("all", 0, len(validation))]
    edges = np.unique(np.quantile(train, np.arange(1, 10) / 10, method="inverted_cdf"))
    counts = [
        np.bincount(np.searchsorted(edges, of, side="left"), minlength=len(edges) + 1) for of in (train, validation)
    ]
    labels = [*(f"up to {edge:.6g}" for edge in edges), f"above {edges[-1]:.6g}"]
    return [(label, int(a), int(b)) for label, a, b in zip(labels, *counts, strict=True)]


def measure_drift(over: str, bins: Bins, missing: tuple[int, int], train: Rows, validation: Rows) -> dict[str, Any]:
    """The report's `drift` of one feature.

    Args:
        over: what the bins are of, in words.
        missing: rows without a value in training and in validation; they are a bin too.

    Returns:
        index: the population stability index, None without validation; by_chance: what it seldom exceeds where
        nothing changed; bins with their shares.
    """
    every = [*bins, ("missing", *missing)]
    # A bin that is empty on both sides says nothing.
    every = [(label, a, b) for label, a, b in every if a or b]
    first, second = [a for _, a, _ in every], [b for _, _, b in every]
    measured = bool(sum(second) and sum(first))
    return {
        "over": over,
        "index": rounded(stability(first, second)) if measured else None,
        "by_chance": stability_by_chance(len(every), train.independent, validation.independent) if measured else None,
        "bins": [
            {"label": label, "train": share(a, sum(first)), "validation": share(b, sum(second))}
            for label, a, b in every
        ],
    }


def _label(value: str) -> str:
    return value if len(value) <= _LABEL else value[: _LABEL - 1] + "…"
