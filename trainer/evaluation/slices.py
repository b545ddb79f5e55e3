"""Parts of the queries and of the candidates that are worth a figure of their own.

A slice of queries has the recall of its queries. A slice of candidates has the recall of the held-out candidates that
are in it, over the queries that hold out any: what of the cold ones is found, what of the long tail.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lockstep.schema import Feature, Schema
from trainer.evaluation.measures import Values
from trainer.evaluation.queries import Catalogue, Queries
from trainer.evaluation.ranking import Ranking

_HISTORY = (0, 1, 5, 10, 20, 50)
"""Where the buckets of the history's length begin."""
_MOST_FREQUENT = 10


@dataclass(frozen=True)
class Slice:
    """A part of the queries or of the candidates.

    Args:
        by: what it is cut by, such as `popularity` or a schema column.
        value: which part, such as `tail`.
        members: [queries] or [candidates].
    """

    of: Literal["queries", "candidates"]
    by: str
    value: str
    members: NDArray[np.bool_]


def standard_slices(queries: Queries, catalogue: Catalogue) -> list[Slice]:
    """The slices that every report has."""
    parts = [Slice("queries", "training", "cold", queries.cold), Slice("queries", "training", "warm", ~queries.cold)]
    lengths = np.array([len(history) for history in queries.history])
    for place, low in enumerate(_HISTORY):
        high = _HISTORY[place + 1] if place + 1 < len(_HISTORY) else None
        inside = lengths >= low if high is None else (lengths >= low) & (lengths < high)
        parts.append(Slice("queries", "history", _range(low, high), inside))
    cold = catalogue.count == 0
    parts += [Slice("candidates", "training", "cold", cold), Slice("candidates", "training", "warm", ~cold)]
    parts += [Slice("candidates", "popularity", name, part) for name, part in popularity_thirds(catalogue.count)]
    return parts


def popularity_thirds(count: NDArray[np.floating]) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """Head, torso and tail: the most popular candidates that take a third of the training labels, the next, the rest.

    Candidates without any training label are in none of them.

    Args:
        count: [candidates] training labels of each.
    """
    order = np.argsort(-count, kind="stable")
    before = np.cumsum(count[order], dtype=np.float64) - count[order]
    share = np.empty(len(count))
    share[order] = before / max(float(count.sum(dtype=np.float64)), 1.0)
    for name, low, high in (("head", 0.0, 1 / 3), ("torso", 1 / 3, 2 / 3), ("tail", 2 / 3, 1.0)):
        yield name, (share >= low) & (share < high) & (count > 0)


def column_slices(names: Sequence[str], schema: Schema, features: Mapping[str, pa.StructArray]) -> list[Slice]:
    """The slices of [evaluate] slices: by each of the most frequent values of a feature, or by quarters of a number.

    Args:
        names: features of either tower, or the columns that they are of.
        features: by tower: the raw features of the queries, and of the candidates by index.

    Raises:
        ConfigError: no feature of that name, or one without a single value.
    """
    parts: list[Slice] = []
    for wanted in dict.fromkeys(names):
        for tower, name in schema.sliced_by(wanted).items():
            of: Literal["queries", "candidates"] = "queries" if tower == "query" else "candidates"
            labels = _labels(schema.features(tower)[name], pc.struct_field(features[tower], name))
            parts += [Slice(of, wanted, value, members) for value, members in labels]
    return parts


def slice_recall(part: Slice, ranking: Ranking, queries: Queries, ks: Sequence[int]) -> dict[str, Values]:
    """Recall@k within a slice: [queries] each, NaN for a query that has nothing in it."""
    held_out = slice_held_out(part, queries)
    hits = ranking.hits
    if part.of == "candidates":
        hits = hits & part.members[ranking.top]
    found = np.cumsum(hits, axis=1, dtype=np.int64)
    there = held_out > 0
    return {
        f"recall@{k}": np.divide(
            found[:, min(k, found.shape[1]) - 1], held_out, out=np.full(len(queries), np.nan), where=there
        )
        for k in ks
    }


def slice_held_out(part: Slice, queries: Queries) -> NDArray[np.int64]:
    """[queries] how many held-out candidates of each query belong to a slice."""
    if part.of == "queries":
        return np.where(part.members, queries.held_out, 0)
    return np.array([np.count_nonzero(part.members[targets]) for targets in queries.targets], dtype=np.int64)


def _labels(feature: Feature, values: pa.Array) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """Missing is what a tower takes for missing: NaN and ""."""
    if feature.type == "numeric":
        numbers = pc.fill_null(values, np.nan).to_numpy(zero_copy_only=False)
        missing = np.isnan(numbers)
        yield from _quarters(numbers)
    else:
        texts = pc.fill_null(values, "").to_numpy(zero_copy_only=False)
        missing = np.equal(texts, "").astype(bool)
        yield from _frequent(texts, missing)
    if missing.any():
        yield "(missing)", missing


def _frequent(values: NDArray[np.object_], missing: NDArray[np.bool_]) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    distinct, places = np.unique(values, return_inverse=True)
    counts = np.bincount(places[~missing], minlength=len(distinct))
    places[missing] = -1
    order = [place for place in np.argsort(-counts, kind="stable") if counts[place]]
    for place in order[:_MOST_FREQUENT]:
        yield _shown(str(distinct[place])), places == place
    if len(order) > _MOST_FREQUENT:
        yield "(other)", np.isin(places, order[_MOST_FREQUENT:])


def _quarters(values: NDArray[np.float64]) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    present = values[~np.isnan(values)]
    if not len(present):
        return
    edges = np.unique(np.quantile(present, (0.25, 0.5, 0.75, 1.0), method="inverted_cdf"))
    digits = 6 if len({f"{edge:.6g}" for edge in edges}) == len(edges) else 17  # which tell any two floats apart
    for low, high in pairwise((-np.inf, *edges)):
        yield f"up to {high:.{digits}g}", (values > low) & (values <= high)


def _shown(value: str) -> str:
    """A value as a label that no other has: in quotes where it looks like another, as a web page shows it.

    >>> print(_shown("rock"), _shown("(other)"), _shown("hip  hop"))
    rock "(other)" "hip  hop"
    """
    plain = value == " ".join(value.split()) and not value.startswith(("(", '"'))
    return value if plain else json.dumps(value, ensure_ascii=False)


def _range(low: int, high: int | None) -> str:
    if high is None:
        return f"{low} or more"
    return str(low) if high == low + 1 else f"{low} to {high - 1}"
