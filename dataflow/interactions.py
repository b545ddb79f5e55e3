"""From the source's tables to clean ones: candidates, ordered events and query entities in the warehouse."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq

from dataflow.dead_letters import DeadLetters, Reason
from dataflow.split import BUCKETS, held_out_buckets
from dataflow.sql import render
from dataflow.stages import Stage
from dataflow.warehouse import Warehouse
from lockstep.config import DataSection

_DEAD = (Reason.UNKNOWN_CANDIDATE, Reason.DUPLICATE_EVENT)
_SOURCE = "events"
SHOWN = 100_000
"""Events of one reason that are dead-lettered row by row; the counts are exact in any case."""


def prepare_events(warehouse: Warehouse, data: DataSection, dead_letters: DeadLetters, work: Path) -> list[Stage]:
    """Judge every event, dead-letter the bad ones, and order what is left.

    Creates candidates_now, judged_events, ordered_events and queries_now of the tables of the source.

    Args:
        work: a folder for what is read back.

    Returns:
        The stages candidates, events and query entities.
    """
    candidate_rows = _count(warehouse, "candidates")
    candidates = warehouse.create("candidates_now", render("candidates_now"))
    judged = render(
        "judged_events",
        unknown_candidate=str(Reason.UNKNOWN_CANDIDATE),
        duplicate_event=str(Reason.DUPLICATE_EVENT),
        min_engagement=data.min_engagement,
    )
    events = warehouse.create("judged_events", judged)
    verdicts = counts_by(warehouse, "judged_events", "verdict")
    for reason in _DEAD:
        if reason in verdicts:
            _bury(warehouse, reason, verdicts[reason], dead_letters, work)
    used = warehouse.create(
        "ordered_events", render("ordered_events", buckets=BUCKETS, held_out_buckets=held_out_buckets(data))
    )
    columns = [name for name in warehouse.schema("queries").names if name not in ("query_id", "row_number")]
    query_rows = _count(warehouse, "queries")
    described = int(warehouse.rows(render("distinct", table="queries", column="query_id"))[0]["values"])
    warehouse.create("queries_now", render("queries_now", columns=columns))
    dead = {str(reason): verdicts[reason] for reason in _DEAD if reason in verdicts}
    repeats = {name: rows for name, rows in verdicts.items() if name not in (*dead, "used")}
    return [
        _entity_stage("candidates", candidate_rows, candidates),
        Stage("events", events, used, dead, repeats).check(),
        _entity_stage("query entities", query_rows, described),
    ]


def counts_by(warehouse: Warehouse, table: str, column: str) -> dict[str, int]:
    """Rows of a table by the value of a column."""
    rows = warehouse.rows(render("counts", table=table, column=column))
    return {row["name"]: int(row["rows"]) for row in rows}


def _bury(warehouse: Warehouse, reason: Reason, rows: int, dead_letters: DeadLetters, work: Path) -> None:
    file = work / "dead.parquet"
    shown = warehouse.export(render("dead_events", verdict=str(reason), limit=SHOWN), file)
    with pq.ParquetFile(file) as parquet:
        for batch in parquet.iter_batches():
            dead_letters.add_batch(reason, batch, _SOURCE)
    dead_letters.add_rest(reason, rows - shown, _SOURCE)


def _count(warehouse: Warehouse, table: str) -> int:
    return int(warehouse.rows(render("size", table=table))[0]["rows"])


def _entity_stage(name: str, rows: int, distinct: int) -> Stage:
    later = {"later row of an id": rows - distinct} if rows > distinct else {}
    return Stage(name, rows, distinct, filtered=later).check()
