"""Tables of BigQuery as a source: rows are selected, cast and judged there; only counts and some bad rows come here.

The tables that it leaves in the warehouse are those that `dataflow.sources.output` draws: events, candidates, queries.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from dataflow.dead_letters import DeadLetters
from dataflow.sources.bigquery_plans import Plan, source_plans
from dataflow.sources.output import ID_COLUMNS, SourceCounts
from dataflow.sql import render
from dataflow.warehouse import Warehouse
from lockstep.config import AttributesTable, DataSection, EventsTable, TablesSource
from lockstep.errors import ConfigError, DataError

_log = logging.getLogger(__name__)

SHOWN = 1_000
"""Bad rows of one fault that are downloaded; the counts are exact in any case."""


def read_tables(data: DataSection, warehouse: Warehouse, dead_letters: DeadLetters, work: Path) -> SourceCounts:
    """Make the tables events, candidates and queries in the warehouse from the configured tables of BigQuery.

    Where no candidates or queries table is configured, one is made of the ids in the events.

    Args:
        data: [data], with source = "bigquery".
        dead_letters: takes the bad rows: at most `SHOWN` of a fault, and one letter that stands for the rest.
        work: a folder for what is read back.

    Returns:
        The counts, which add up: rows in = rows written + rows dead-lettered.

    Raises:
        ConfigError: [data] contradicts itself.
        DataError: a table or column is missing or of a type that cannot be used, or there are no events.
    """
    tables = check_source(data)
    reading = _Reading(warehouse, dead_letters, work)
    rows_in, written, derived = {}, {}, []
    for table, plan in source_plans(tables, warehouse).items():
        rows_in[f"{table}_in"], written[f"{table}_written"] = reading.make(plan)
    for table in ("candidates", "queries"):
        if getattr(tables, table) is None:
            derived.append(table)
            rows_in[f"{table}_in"] = 0
            written[f"{table}_written"] = warehouse.create(table, render("source_ids", id=ID_COLUMNS[table]))
    counts = SourceCounts(**rows_in, **written, derived=tuple(derived), dead_lettered=reading.dead)
    counts.check()
    if not counts.events_in:
        raise DataError(f"the table {tables.events.table} holds no rows: check [data.tables.events] table")
    return counts


def check_source(data: DataSection) -> TablesSource:
    """The tables of source "bigquery".

    Raises:
        ConfigError: a key is missing, or belongs to another source.
    """
    if data.warehouse != "bigquery":
        raise ConfigError("[data] source = 'bigquery' needs warehouse = 'bigquery': the tables are read where they are")
    if data.tables is None:
        raise ConfigError("[data] source = 'bigquery' needs the section [data.tables.events]: see docs/bigquery.md")
    for name in ("events", "candidates", "queries"):
        section: EventsTable | AttributesTable | None = getattr(data.tables, name)
        if section is None:
            continue
        where = f"[data.tables.{name}]"
        if section.file is not None:
            raise ConfigError(
                f"{where} has file = {section.file!r}, but source = 'bigquery' reads tables: set `table` instead"
            )
        parts = (section.table or "").rsplit(".", 2)
        if len(parts) != 3 or not all(parts) or "`" in str(section.table):
            raise ConfigError(f"{where} table = {section.table!r}: name it as project.dataset.table")
    return data.tables


@dataclass
class _Reading:
    warehouse: Warehouse
    dead_letters: DeadLetters
    work: Path

    def __post_init__(self) -> None:
        self.dead: dict[str, int] = {}

    def make(self, plan: Plan) -> tuple[int, int]:
        """Make one table; returns the rows that were read and those that are good."""
        read = self.warehouse.create(plan.judged, plan.judged_sql())
        counts = self.warehouse.rows(render("source_faults", judged=plan.judged))
        for row in counts:
            if row["fault"]:
                self._bury(plan, int(row["fault"]), int(row["rows"]))
        good = self.warehouse.create(plan.table, plan.good_sql())
        _log.info("%s: %d rows read, %d good", plan.source, read, good)
        return read, good

    def _bury(self, plan: Plan, fault: int, rows: int) -> None:
        _, reason, column = plan.faults[fault - 1]
        self.dead[str(reason)] = self.dead.get(str(reason), 0) + rows
        file = self.work / "dead.parquet"
        sql = render("source_dead", judged=plan.judged, fault=fault, id=ID_COLUMNS[plan.table], limit=SHOWN)
        shown = self.warehouse.export(sql, file)
        with pq.ParquetFile(file) as parquet:
            for batch in parquet.iter_batches():
                found = pa.RecordBatch.from_struct_array(batch.column("found"))
                self.dead_letters.add_batch(reason, found, plan.source, column=column)
        self.dead_letters.add_rest(reason, rows - shown, plan.source, column=column)
