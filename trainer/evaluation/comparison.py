"""The model beside its baselines on one split: measures, intervals, gains, slices and curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lockstep.model_sections import EvaluateSection
from trainer.evaluation.bootstrap import intervals
from trainer.evaluation.measures import Values, coverage, depth_for, mean_popularity, means, query_measures, recall
from trainer.evaluation.queries import Catalogue, Queries
from trainer.evaluation.ranking import Ranking, Scorer, rank
from trainer.evaluation.slices import Slice, slice_held_out, slice_recall

CURVE = (1, 2, 5, 10, 20, 50, 100, 200, 500)
"""Where the curves of recall are measured."""
_DIGITS = 6
Columns = dict[tuple[str, ...], Values]


def compare(
    scorers: Mapping[str, Scorer],
    queries: Queries,
    catalogue: Catalogue,
    slices: Sequence[Slice],
    section: EvaluateSection,
) -> tuple[dict[str, dict[str, float]], dict[str, Any]]:
    """Measure every way to score on the same queries.

    Args:
        scorers: `model` and the baselines.
        queries: at least one.

    Returns:
        By name of the scorer the mean of every measure; and the details, as drawn in trainer.evaluate.
    """
    measures: dict[str, dict[str, float]] = {}
    curves: dict[str, dict[str, float]] = {}
    values: dict[str, dict[str, Values]] = {}
    columns: Columns = {}
    depth = max(depth_for(queries, section.ks), CURVE[-1])
    for name, scorer in scorers.items():
        ranking = rank(scorer, queries, depth, exclude_history=section.exclude_history, threads=section.threads)
        values[name] = query_measures(ranking, queries.held_out, section.ks)
        for k in section.ks:
            values[name][f"popularity@{k}"] = mean_popularity(ranking.top[:, :k], catalogue.count)
        measures[name] = means(values[name]) | {f"coverage@{k}": coverage(ranking, k) for k in section.ks}
        curves[name] = _curve(ranking, queries)
        columns |= {("measures", name, measure): of for measure, of in values[name].items()}
        for place, part in enumerate(slices):
            sliced = slice_recall(part, ranking, queries, section.ks)
            columns |= {("slices", str(place), name, measure): of for measure, of in sliced.items()}
    for name in list(values)[1:]:
        gains = {measure: values["model"][measure] - of for measure, of in values[name].items()}
        columns |= {("gains", name, measure): of for measure, of in gains.items()}
    estimates = _estimates(columns, section)
    counted = [_counts(part, queries) for part in slices]
    recalls = estimates.get("slices", {})
    return measures, {
        "intervals": estimates["measures"],
        "gains": estimates.get("gains", {}),
        "slices": [{**facts, "recall": recalls[str(place)]} for place, facts in enumerate(counted)],
        "curves": curves,
        "held_out_popularity": round(_held_out_popularity(queries, catalogue), _DIGITS),
    }


def _estimates(columns: Columns, section: EvaluateSection) -> dict[str, Any]:
    """Each column's mean and interval, as a tree of the parts of their names; None where there is no such."""
    table = np.stack(list(columns.values()), axis=1)
    low = high = np.full(table.shape[1], np.nan)
    if section.bootstrap:
        low, high = intervals(table, section.bootstrap, section.seed)
    tree: dict[str, Any] = {}
    for place, (path, of) in enumerate(columns.items()):
        branch = tree
        for part in path[:-1]:
            branch = branch.setdefault(part, {})
        present = of[~np.isnan(of)]
        value = present.mean() if len(present) else np.nan
        branch[path[-1]] = {"value": _number(value), "low": _number(low[place]), "high": _number(high[place])}
    return tree


def _counts(part: Slice, queries: Queries) -> dict[str, Any]:
    held_out = slice_held_out(part, queries)
    counts = {"queries": int(np.count_nonzero(held_out)), "held_out": int(held_out.sum())}
    return {"of": part.of, "by": part.by, "value": part.value, **counts}


def _curve(ranking: Ranking, queries: Queries) -> dict[str, float]:
    found = np.cumsum(ranking.hits, axis=1, dtype=np.int64)
    return {
        str(k): round(float(recall(found[:, k - 1], queries.held_out).mean()), _DIGITS)
        for k in CURVE
        if k <= found.shape[1]
    }


def _held_out_popularity(queries: Queries, catalogue: Catalogue) -> float:
    """The mean over queries of the mean training count of their targets, to hold popularity@k against."""
    counts = [catalogue.count[targets].mean(dtype=np.float64) for targets in queries.targets if len(targets)]
    return float(np.mean(counts)) if counts else 0.0


def _number(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), _DIGITS)
