"""The report's section `features`: everything that is measured of one feature."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dataflow.columns import is_past
from dataflow.encoded import Learned, ValueCounts, hash_bins, table_name, table_owner
from dataflow.feature_report.drift import Bins, deciles, measure_drift, top_values
from dataflow.feature_report.measures import (
    bins_for,
    expected_collisions,
    histogram,
    quantiles,
    rounded,
    share,
)
from dataflow.feature_report.thresholds import COLLISION_GOAL, HISTOGRAM
from dataflow.feature_report.unknown import Unknown
from dataflow.feature_report.values import Occurrences, Rows, Tokens, occurrences, tokens
from lockstep.schema import Feature, Schema

_HOUR = 3_600_000_000
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")


@dataclass(frozen=True)
class Split:
    """Rows of one tower and, by feature, what the vocabularies do not know of them."""

    rows: Rows
    unknown: Mapping[str, Unknown]


@dataclass(frozen=True)
class Measuring:
    """What all features of a tower are measured with.

    Args:
        learned: of all training data.
        counters: of all training rows: `rows_read`, `<tower>/<feature>/missing` and `unknown`.
        train: a sample of the training rows.
        validation: the validation rows.
    """

    schema: Schema
    tower: str
    learned: Learned
    counters: Mapping[str, int]
    train: Split
    validation: Split

    def feature(self, name: str) -> dict[str, Any]:
        """The report of one feature; what does not apply to its type is left out."""
        feature = self.schema.features(self.tower)[name]
        train, validation = (occurrences(feature, of.rows, name) for of in (self.train, self.validation))
        counts = self.learned.values.get((self.tower, name))
        return {
            "type": feature.type,
            "columns": list(feature.columns),
            "coverage": self._coverage(name, validation),
            "cardinality": None if counts is None else counts.distinct,
            **self._lookup(name, feature, counts),
            **self._sequence(feature, train),
            **self._kind(feature, train, validation),
        }

    def _coverage(self, name: str, validation: Occurrences) -> dict[str, Any]:
        rows = self.counters["rows_read"]
        return {
            "train": share(rows - self._count(name, "missing"), rows),
            "validation": share(validation.rows - validation.missing, validation.rows),
        }

    def _train_unknown(self, name: str) -> dict[str, Any]:
        """Rows of all training data, occurrences of the sample."""
        rows = self.counters["rows_read"] - self._count(name, "missing")
        return _unknown(self.train.unknown[name]) | {"rows": share(self._count(name, "unknown"), rows)}

    def _count(self, name: str, what: str) -> int:
        # A counter that never counted is not reported.
        return self.counters.get(f"{self.tower}/{name}/{what}", 0)

    def _lookup(self, name: str, feature: Feature, counts: ValueCounts | None) -> dict[str, Any]:
        """Vocabulary or hash."""
        owner = table_owner(self.schema, self.tower, name)
        if owner is None or counts is None:
            return {}
        bins = hash_bins(self.schema, owner)
        if bins is not None:
            return {"hash": _hash(bins, counts)}
        table = table_name(owner)
        vocabulary: dict[str, Any] = {"table": table, "size": len(self.learned.vocabularies[table])}
        if owner == (self.tower, name):
            vocabulary |= {
                "limit": feature.max_size if feature.type in ("id", "id_sequence") else feature.size,  # type: ignore[union-attr]
                "min_count": feature.min_count,  # type: ignore[union-attr]
                "covered": None if counts.covered is None else rounded(counts.covered),
                "tokens": counts.tokens,
            }
        return {
            "vocabulary": vocabulary,
            "once": share(counts.once, counts.distinct),
            "occurrences": counts.occurrences,
            "unknown": {"train": self._train_unknown(name), "validation": _unknown(self.validation.unknown[name])},
        }

    def _sequence(self, feature: Feature, train: Occurrences) -> dict[str, Any]:
        if not feature.is_sequence or not train.rows:
            return {}
        length = feature.max_length  # type: ignore[union-attr]
        # The query cuts histories to the longest that a feature reads: of that one, what was cut is not seen.
        seen = not is_past(feature) or length < self.schema.max_history
        return {
            "lengths": {
                "max_length": length,
                "quantiles": quantiles(train.lengths),
                "full": share(int((train.lengths >= length).sum()), train.rows),
                "cut": share(int((train.lengths > length).sum()), train.rows) if seen else None,
            }
        }

    def _kind(self, feature: Feature, train: Occurrences, validation: Occurrences) -> dict[str, Any]:
        """What depends on the type of the values."""
        found: dict[str, Any] = {}
        if feature.type in ("text", "text_sequence"):
            first, later = (tokens(of, feature.ngrams) for of in (train, validation))
            if len(first.lengths):
                found["tokens"] = _tokens(first, feature.max_tokens)
            drift = ("tokens", top_values((first.values, first.counts), (later.values, later.counts)))
        elif feature.type in ("numeric", "numeric_sequence"):
            if len(train.values):
                found["numbers"] = _numbers(train.numbers, validation.numbers, feature.log)
            drift = ("training deciles", deciles(train.numbers, validation.numbers))
        elif feature.type == "timestamp":
            if len(train.values):
                found["moments"] = _moments(_micros(train))
            drift = ("hours of the day (UTC)", _hour_bins(_micros(train), _micros(validation)))
        elif feature.type == "vector":
            if len(train.values):
                found["vectors"] = _vectors(train.values, feature.size)
            drift = ("training deciles of the norm", deciles(_norms(train.values), _norms(validation.values)))
        else:
            drift = ("values", top_values(train.counts, validation.counts))
        return found | {"drift": self._drift(*drift, (train.missing, validation.missing))}

    def _drift(self, over: str, bins: Bins, missing: tuple[int, int]) -> dict[str, Any]:
        return measure_drift(over, bins, missing, self.train.rows, self.validation.rows)


def _hash(bins: int, counts: ValueCounts) -> dict[str, Any]:
    return {
        "bins": bins,
        "values": counts.distinct,
        "expected": rounded(expected_collisions(counts.distinct, bins)),
        "colliding": share(counts.colliding or 0, counts.distinct),
        "colliding_occurrences": share(counts.colliding_occurrences or 0, counts.occurrences),
        "goal": COLLISION_GOAL,
        "bins_for_goal": bins_for(counts.distinct, COLLISION_GOAL),
    }


def _unknown(of: Unknown) -> dict[str, Any]:
    return {"occurrences": share(of.unknown, of.occurrences), "rows": share(of.unknown_rows, of.rows)}


def _tokens(of: Tokens, max_tokens: int) -> dict[str, Any]:
    found = quantiles(of.lengths)
    cut = share(int((of.lengths > max_tokens).sum()), len(of.lengths))
    return {"max_tokens": max_tokens, "p50": found["p50"], "p95": found["p95"], "max": found["max"], "cut": cut}


def _numbers(train: NDArray[np.float64], validation: NDArray[np.float64], log: bool) -> dict[str, Any]:
    found = quantiles(train)
    # Without the hundredths at both ends, one of which could leave a single bar.
    low, high = found["p1"], found["p99"]
    edges = np.linspace(low, high if high > low else low + 1, HISTOGRAM + 1)
    return {
        "log": log,
        "quantiles": found,
        "mean": rounded(float(train.mean())),
        "deviation": rounded(float(train.std())),
        "zero": share(int((train == 0).sum()), len(train)),
        "histogram": {
            "edges": [rounded(float(edge)) for edge in edges],
            "train": histogram(train, edges),
            "validation": histogram(validation, edges),
        },
    }


def _moments(micros: NDArray[np.int64]) -> dict[str, Any]:
    first, last = (datetime.fromtimestamp(int(of) // 1_000_000, UTC).isoformat() for of in (micros.min(), micros.max()))
    weekdays = np.bincount((micros // (24 * _HOUR) + 3) % 7, minlength=7)  # 1970-01-01 was a Thursday
    return {
        "first": first,
        "last": last,
        "hours": [int(count) for count in _hours(micros)],
        "weekdays": {name: int(count) for name, count in zip(_DAYS, weekdays, strict=True)},
    }


def _vectors(values: pa.ListArray, size: int) -> dict[str, Any]:
    norms = _all_norms(values)
    lengths = pc.list_value_length(values).to_numpy()
    return {
        "size": size,
        "norms": quantiles(_norms(values)) if np.isfinite(norms).any() else None,
        "wrong": share(int(((lengths != size) | ~np.isfinite(norms)).sum()), len(values)),
        "zero": share(int((norms == 0).sum()), len(values)),
    }


def _all_norms(values: pa.ListArray) -> NDArray[np.float64]:
    """[vectors] Euclidean norms; NaN or infinite where an element is null or no finite number."""
    flat = pc.fill_null(values.flatten().cast(pa.float64()), float("nan")).to_numpy()
    owners = pc.list_parent_indices(values).to_numpy()
    norms: NDArray[np.float64] = np.sqrt(np.bincount(owners, weights=flat**2, minlength=len(values)))
    return norms


def _norms(values: pa.ListArray) -> NDArray[np.float64]:
    norms = _all_norms(values)
    return np.sort(norms[np.isfinite(norms)])


def _micros(of: Occurrences) -> NDArray[np.int64]:
    micros: NDArray[np.int64] = of.values.cast(pa.int64()).to_numpy()
    return micros


def _hours(micros: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.bincount(micros // _HOUR % 24, minlength=24)


def _hour_bins(train: NDArray[np.int64], validation: NDArray[np.int64]) -> Bins:
    counts = zip(_hours(train), _hours(validation), strict=True)
    return [(f"{hour:02d}", int(a), int(b)) for hour, (a, b) in enumerate(counts)]
