"""Leak checks: what must never be in the data is looked for in the data that was written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dataflow.feature_report.validation import batches
from dataflow.split import held_out_buckets, split_bucket
from lockstep.config import DataSection
from lockstep.errors import DataError


@dataclass(frozen=True)
class LeakCheck:
    """One check.

    Args:
        name: what must hold, in words.
        checked: rows that were looked at.
        violations: rows for which it does not hold.
        example: one of these, in words.
        skipped: why nothing was looked at, where nothing was.
    """

    name: str
    checked: int = 0
    violations: int = 0
    example: str | None = None
    skipped: str | None = None

    def to_json(self) -> dict[str, Any]:
        """As it stands in report.json."""
        return asdict(self)


def check_leaks(sample: pa.Table, examples: Path, data: DataSection, validation_from: datetime) -> list[LeakCheck]:
    """Look for leaks in the sample of the training rows, and in all evaluation queries.

    Args:
        sample: rows of queries/training_examples.sql.
        examples: folder of the artifact, with `validation` and `test`.
        validation_from: the first moment that training may not see.
    """
    return [
        _own_history(sample),
        _older_history(sample, data),
        _before_validation(sample, validation_from),
        *(_own_targets(examples / split, split) for split in ("validation", "test")),
        _held_out(sample, data),
    ]


def refuse_leaks(checks: Sequence[Mapping[str, Any]]) -> None:
    """Stop the step where a check found something.

    Args:
        checks: the report's `leaks`.

    Raises:
        DataError: a row is where it must not be.
    """
    found = [
        f"{check['name']}: not so for {check['violations']} of {check['checked']} rows ({check['example']})"
        for check in checks
        if check["violations"]
    ]
    if found:
        raise DataError(
            f"the examples leak what they are tested on: {'; '.join(found)}. What is trained on them looks better "
            "than it is: mend the source if its times are wrong, or else report this as a defect of the data step"
        )


def _own_history(sample: pa.Table) -> LeakCheck:
    name = "no label is in its own query's history"
    if "past" not in sample.column_names:
        return LeakCheck(name, skipped="no query feature is made of a history")
    past, labels = _column(sample, "past"), _column(sample, "candidate_index")
    owners = pc.list_parent_indices(past)
    same = pc.equal(past.flatten(), labels.take(owners).cast(past.type.value_type))
    rows = pc.unique(owners.filter(same)).to_numpy()
    return _check(name, len(labels), rows, lambda row: f"the candidate of index {labels[row]}")


def _older_history(sample: pa.Table, data: DataSection) -> LeakCheck:
    name = "no history is newer than its label"
    if data.pairing != "next_event":
        return LeakCheck(name, skipped=f"pairing = {data.pairing!r} pairs without regard to time")
    if "newest_past_time" not in sample.column_names:
        return LeakCheck(name, skipped="no query feature is made of a history")
    times, newest = _column(sample, "event_time"), _column(sample, "newest_past_time")
    # Events of one moment may have an order of their own: [data.tables.events] position.
    late = pc.fill_null(pc.greater(newest.cast(times.type), times), False)
    rows = np.flatnonzero(late.to_numpy(zero_copy_only=False))
    known = len(newest) - newest.null_count
    return _check(name, known, rows, lambda row: f"label of {times[row]}, history to {newest[row]}")


def _before_validation(sample: pa.Table, validation_from: datetime) -> LeakCheck:
    name = "no label is at or after validation_from"
    times = _column(sample, "event_time")
    late = pc.greater_equal(times, pa.scalar(validation_from).cast(times.type))
    rows = np.flatnonzero(late.to_numpy(zero_copy_only=False))
    return _check(name, len(times), rows, lambda row: f"{times[row]}, validation_from is {validation_from}")


def _own_targets(folder: Path, split: str) -> LeakCheck:
    name = f"no target of a {split} query is in its history"
    checked, found, example = 0, 0, None
    for batch in batches(folder, ["id", "history", "targets"]):
        rows = zip(*(batch.column(column).to_pylist() for column in ("id", "history", "targets")), strict=True)
        for entity, history, targets in rows:
            both = sorted(set(history) & set(targets))
            checked, found = checked + 1, found + bool(both)
            example = example or (f"{both[0]!r} of query {entity!r}" if both else None)
    return LeakCheck(name, checked, found, example)


def _held_out(sample: pa.Table, data: DataSection) -> LeakCheck:
    name = "no query entity of the hold-out is in training"
    ids = _column(sample, "query_id").cast(pa.string())
    distinct = pc.unique(ids).to_pylist()
    buckets = held_out_buckets(data)
    seen = [entity for entity in distinct if split_bucket(entity) < buckets]
    rows = np.flatnonzero(pc.is_in(ids, pa.array(seen, pa.string())).to_numpy(zero_copy_only=False))
    return _check(name, len(ids), rows, lambda row: f"{ids[row].as_py()!r}")


def _check(name: str, checked: int, rows: NDArray[Any], describe: Any) -> LeakCheck:
    return LeakCheck(name, checked, len(rows), describe(int(rows.min())) if len(rows) else None)


def _column(sample: pa.Table, name: str) -> pa.Array:
    column = sample.column(name)
    return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
