"""Puts the report together."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from dataflow.encoded import TOWERS, Learned
from dataflow.feature_report.advice import advise
from dataflow.feature_report.features import Measuring, Split
from dataflow.feature_report.leaks import check_leaks
from dataflow.feature_report.measures import independent_rows
from dataflow.feature_report.thresholds import SUMMARY_LINES
from dataflow.feature_report.unknown import count_unknown
from dataflow.feature_report.validation import validation_rows
from dataflow.feature_report.values import Rows
from lockstep.config import DataSection
from lockstep.features import features_type
from lockstep.schema import Schema

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Artifacts:
    """The folders that the data step has written, whose tags are still to come."""

    examples: Path
    preprocessing: Path
    entities: Path


def build(
    report: Mapping[str, Any],
    *,
    schema: Schema,
    data: DataSection,
    learned: Learned,
    counters: Mapping[str, int],
    sample: pa.Table,
    artifacts: Artifacts,
) -> dict[str, Any]:
    """Measure every feature, look for leaks, and add both to the report.

    Args:
        report: what the data step counted: stages, cuts, splits.
        learned: from all training data.
        counters: of all training rows, from the examples pipeline: `rows_read`, `<tower>/<feature>/missing` and
            `<tower>/<feature>/unknown` (rows with a value that is not in the vocabulary).
        sample: training rows: struct columns `query` and `candidate`, `age_days`, and what `check_leaks` looks at.
        artifacts: with their data written.

    Returns:
        The report with `features`, `advice`, `leaks` and `sample`: the same for the same data, digit by digit.
    """
    later = validation_rows(schema, artifacts.examples, artifacts.entities)
    independent = _independent(sample)
    features = {}
    for tower in TOWERS:
        rows = sample.column(tower).combine_chunks().cast(features_type(schema, tower))
        train = _split(artifacts.preprocessing, schema, tower, Rows(rows, independent))
        validation = _split(artifacts.preprocessing, schema, tower, later[tower])
        measuring = Measuring(schema, tower, learned, counters, train, validation)
        features[tower] = {name: measuring.feature(name) for name in sorted(schema.features(tower))}
    validation_from = datetime.fromisoformat(report["cuts"]["validation_from"])
    checks = check_leaks(sample, artifacts.examples, data, validation_from)
    return {
        **report,
        "cuts": {**report["cuts"], "oldest_label": _oldest(sample, validation_from).isoformat()},
        "features": features,
        "advice": [asdict(advice) for advice in advise(features)],
        "leaks": [check.to_json() for check in checks],
        "sample": {"train": len(sample), "validation": {tower: len(rows) for tower, rows in later.items()}},
    }


def log_summary(report: Mapping[str, Any]) -> None:
    """Log the weightiest advice, so that who runs it on a laptop sees it."""
    advice = report["advice"]
    for line in advice[:SUMMARY_LINES]:
        _log.info("%s `%s`: %s", line["tower"], line["feature"], line["text"])
    if len(advice) > SUMMARY_LINES:
        _log.info("and %d more in report.html", len(advice) - SUMMARY_LINES)


def _split(preprocessing: Path, schema: Schema, tower: str, rows: Rows) -> Split:
    return Split(rows, count_unknown(preprocessing, schema, tower, rows))


def _independent(sample: pa.Table) -> int:
    if "query_id" not in sample.column_names:
        return len(sample)
    counts = sample.column("query_id").combine_chunks().value_counts().field("counts")
    return independent_rows(counts.to_numpy())


def _oldest(sample: pa.Table, validation_from: datetime) -> datetime:
    """The moment of the oldest label in the sample, or about so where it has ages only."""
    if "event_time" in sample.column_names and len(sample):
        moment: datetime = pc.min(sample.column("event_time").cast(pa.timestamp("us", "UTC"))).as_py()
        return moment
    return validation_from - timedelta(days=pc.max(sample.column("age_days")).as_py() or 0.0)
