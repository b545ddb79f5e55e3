"""The split: two moments, and a share of the query entities by hash.

    events before validation_from            training (held-out entities excepted)
    events from validation_from to test_from targets of validation
    events from test_from on                 targets of test

Held-out entities join validation: all but their first `seed_events` are its targets.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from dataflow.sql import render
from dataflow.warehouse import Warehouse
from lockstep.config import DataSection
from lockstep.errors import DataError

BUCKETS = 10_000
"""Hash buckets of query entities; the hold-out takes the first of them."""
POPULAR_DAYS = timedelta(days=30)


@dataclass(frozen=True)
class Cuts:
    """The moments that divide the data.

    `end` is the first moment after the newest event.
    """

    validation_from: datetime
    test_from: datetime
    newest: datetime

    @property
    def end(self) -> datetime:
        return self.newest + timedelta(microseconds=1)

    def oldest_label(self, data: DataSection) -> datetime | None:
        """The moment before which no event is a label; None where age does not matter."""
        if data.max_age_days is None:
            return None
        try:
            return self.validation_from - timedelta(days=data.max_age_days)
        except OverflowError:  # before the first day of the calendar
            return None


def split_bucket(entity: str, buckets: int = BUCKETS) -> int:
    """The bucket of an entity; the same number in Python, BigQuery and DuckDB.

    >>> split_bucket("a", 1000)
    177
    """
    return int(hashlib.md5(entity.encode(), usedforsecurity=False).hexdigest()[:8], 16) % buckets


def day_of(moment: datetime) -> int:
    """Whole days from 1970-01-01 to a moment, in UTC, as `ordered_events.day` counts them.

    >>> day_of(datetime(1970, 1, 3, 23, tzinfo=UTC))
    2
    """
    return moment.astimezone(UTC).toordinal() - datetime(1970, 1, 1, tzinfo=UTC).toordinal()


def held_out_buckets(data: DataSection) -> int:
    """How many buckets the hold-out takes."""
    return round(data.holdout_share * BUCKETS)


def find_cuts(warehouse: Warehouse, data: DataSection) -> Cuts:
    """Take the cuts from the configuration, or as the moments that leave the configured shares.

    Raises:
        DataError: there are no events, or the cuts leave nothing to train on or to test with.
    """
    span = warehouse.rows(render("span"))[0]
    events, newest = int(span["events"]), span["newest"]
    if events == 0:
        low = f", or lower [data] min_engagement = {data.min_engagement:g}" if data.min_engagement is not None else ""
        raise DataError(
            f"no usable event is left: see dead_letters.jsonl for what became of the rows, mend [data] path{low}"
        )
    test_from = _utc(data.test_from) or _cut(warehouse, max(1, round(events * data.test_share)))
    tested = int(warehouse.rows(render("events_from", moment=test_from))[0]["events"])
    if tested == 0:
        raise DataError(f"no event is at or after [data] test_from = {test_from}; the newest is at {newest}: lower it")
    wanted = tested + round(events * data.validation_share)
    validation_from = _utc(data.validation_from) or min(test_from, _cut(warehouse, min(wanted, events)))
    if validation_from > test_from:
        raise DataError(f"[data] validation_from = {validation_from} is after test_from = {test_from}: exchange them")
    return Cuts(validation_from, test_from, newest.astimezone(UTC))


def _cut(warehouse: Warehouse, events: int) -> datetime:
    moment: datetime = warehouse.rows(render("cut", events=events))[0]["moment"]
    return moment.astimezone(UTC)


def _utc(moment: datetime | None) -> datetime | None:
    if moment is None:
        return None
    return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
