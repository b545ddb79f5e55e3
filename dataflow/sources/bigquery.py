"""Tables of BigQuery as a source: rows are selected, cast and judged there; only counts and some bad rows come here.

The tables that it leaves in the warehouse are those that `dataflow.sources.output` draws: events, candidates, queries.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from dataflow.dead_letters import DeadLetters, Reason
from dataflow.sources.bigquery_columns import (
    JUDGES,
    Judged,
    SourceColumn,
    judge_double,
    judge_id,
    judge_list,
    judge_moment,
    judge_position,
    own_type,
)
from dataflow.sources.moments import PER_SECOND
from dataflow.sources.output import ID_COLUMNS, SourceCounts
from dataflow.sources.tables import RESERVED, check_mapping
from dataflow.sql import ident, render
from dataflow.warehouse import Warehouse
from lockstep.config import AttributesTable, DataSection, EventsTable, TablesSource
from lockstep.errors import ConfigError, DataError
from lockstep.schema import NAME

_log = logging.getLogger(__name__)

SHOWN = 1_000
"""Bad rows of one fault that are downloaded; the counts are exact in any case."""
_GUESS = (631_152_000, 4_102_444_800)
"""1990 and 2100, in seconds; see dataflow.sources.moments."""
_GUESS_SHARE = 0.8


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


@dataclass(frozen=True)
class Plan:
    """How one source table is read: what `judged_sql` renders, and what becomes of its rows.

    `values` are by output column; `faults` are the conditions with their reason and source column.
    """

    table: str
    source: str
    values: Mapping[str, Judged]
    faults: list[tuple[str, Reason, str]]
    found: list[str]

    @property
    def judged(self) -> str:
        """The name of the intermediate table."""
        return f"source_{self.table}"

    def judged_sql(self) -> str:
        """Every row with its first fault."""
        return render(
            "source_rows",
            values={name: judged.value for name, judged in self.values.items()},
            faults=[condition for condition, _, _ in self.faults],
            found=self.found,
            table=self.source,
        )

    def good_sql(self) -> str:
        """The rows without one."""
        if self.table == "events":
            return render("source_events", judged=self.judged, positioned="position" in self.values)
        id_column = ID_COLUMNS[self.table]
        columns = [name for name in self.values if name != id_column]
        order = [order for name in columns for order in _order(name, self.values[name].type)]
        return render("source_entities", judged=self.judged, id=id_column, columns=columns, order=order or [id_column])


class Described(Protocol):
    """What a plan asks of a warehouse."""

    def schema(self, table: str) -> pa.Schema:
        """The columns of a table."""

    def rows(self, sql: str) -> list[dict[str, Any]]:
        """The rows of a small result."""


def source_plans(tables: TablesSource, warehouse: Described) -> dict[str, Plan]:
    """How each configured table is read."""
    plans = {"events": events_plan(tables.events, warehouse)}
    for table in ("candidates", "queries"):
        section = getattr(tables, table)
        if section is not None:
            plans[table] = attributes_plan(table, section, warehouse)
    return plans


def events_plan(section: EventsTable, warehouse: Described) -> Plan:
    """How the events are read; asks the warehouse for the table's columns, and for the unit of their moments."""
    source, where = str(section.table), "[data.tables.events]"
    types = _types(warehouse.schema(source))
    names = {"query_id": section.query, "candidate_id": section.candidate, "event_time": section.timestamp}
    names |= {"position": section.position} if section.position is not None else {}
    names |= {"engagement": section.engagement} if section.engagement is not None else {}
    columns = {name: _column(types, column, source, where) for name, column in names.items()}
    moment = columns["event_time"]
    unit = _unit(moment, section.timestamp_unit, source, f"{where} timestamp_unit", warehouse)
    values = {
        "query_id": judge_id(columns["query_id"]),
        "candidate_id": judge_id(columns["candidate_id"]),
        "event_time": judge_moment(moment, unit, required=True),
    }
    if "position" in columns:
        values["position"] = judge_position(columns["position"])
    missing = Judged("CAST(NULL AS FLOAT64)", pa.float64())
    values["engagement"] = judge_double(columns["engagement"]) if "engagement" in columns else missing
    return _plan("events", source, values, columns)


def attributes_plan(table: str, section: AttributesTable, warehouse: Described) -> Plan:
    """How the candidates or query entities are read."""
    source, where = str(section.table), f"[data.tables.{table}]"
    types = _types(warehouse.schema(source))
    mapping = dict(section.columns) or _own_names(types, section, where)
    check_mapping(section, mapping, where)
    id_column = ID_COLUMNS[table]
    names = {id_column: section.id, **mapping}
    columns = {name: _column(types, column, source, where) for name, column in names.items()}
    values = {id_column: judge_id(columns[id_column])}
    for name in mapping:
        values[name] = _judge_attribute(columns[name], section, name, source, where, warehouse)
    return _plan(table, source, values, columns)


def _judge_attribute(
    column: SourceColumn, section: AttributesTable, name: str, source: str, where: str, warehouse: Described
) -> Judged:
    declared = section.types.get(name)
    wanted = declared or own_type(column)
    if name in section.separators or pa.types.is_list(column.type):
        if declared not in (None, "string", "double"):
            raise column.refuse(f"a list of {declared}", "lists hold texts or numbers; read a view that makes one")
        judged = judge_list(column, section.separators.get(name))
        if declared is not None and judged.type.value_type != {"string": pa.string(), "double": pa.float64()}[declared]:
            raise column.refuse(f"a list of {declared}", "read a view that makes one")
        return judged
    if wanted == "timestamp":
        unit = _unit(column, "auto", source, f"{where} types to int64 or the column", warehouse)
        return judge_moment(column, unit, required=False)
    return JUDGES[wanted](column)


def _plan(table: str, source: str, values: Mapping[str, Judged], columns: Mapping[str, SourceColumn]) -> Plan:
    faults = [
        (condition, reason, column.name)
        for name, column in columns.items()
        for condition, reason in values[name].faults
    ]
    return Plan(table, source, values, faults, sorted({column.name for column in columns.values()}))


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
        if rows > shown:
            note = f"{rows - shown} more rows of this fault, which are not shown: at most {SHOWN} are downloaded"
            self.dead_letters.add(reason, {"note": note}, plan.source, rows - shown, column=column)


def _unit(column: SourceColumn, unit: str, source: str, key: str, warehouse: Described) -> str:
    """The unit of a column of whole numbers; any, where it has none."""
    if not pa.types.is_integer(column.type):
        if unit != "auto" and pa.types.is_string(column.type):
            raise column.refuse("INT64, for `timestamp_unit` is set", "read a view that has CAST(... AS INT64)")
        return "s"
    if unit != "auto":
        return unit
    ranges = {name: tuple(bound * factor for bound in _GUESS) for name, factor in PER_SECOND.items()}
    found = warehouse.rows(render("source_unit", table=source, column=column.sql, ranges=ranges))[0]
    for name in PER_SECOND:
        if found[name] >= _GUESS_SHARE * found["present"]:
            return name
    raise DataError(
        f"the unit of the moments in column {column.name!r} of {source} cannot be told: they are not between 1990 and "
        f"2100 in s, ms, us or ns; set {key} to the unit, or map a column of moments"
    )


def _types(schema: pa.Schema) -> dict[str, pa.DataType]:
    return dict(zip(schema.names, schema.types, strict=True))


def _column(types: Mapping[str, pa.DataType], name: str, source: str, where: str) -> SourceColumn:
    if name not in types:
        raise DataError(f"{source} has no column {name!r}, which {where} names; it has {', '.join(sorted(types))}")
    return SourceColumn(name, types[name], where)


def _own_names(types: Mapping[str, pa.DataType], section: AttributesTable, where: str) -> dict[str, str]:
    usable = {}
    for name, kind in types.items():
        if name == section.id:
            continue
        column = SourceColumn(name, kind, where)
        try:
            if not NAME.fullmatch(name) or name in RESERVED:
                raise DataError("its name cannot be used in a schema")
            if own_type(column) == "list":
                judge_list(column)
            usable[name] = name
        except DataError as error:
            _log.warning("%s leaves out column %r: %s; name it in `columns` to take it", where, name, error)
    return usable


def _order(name: str, kind: pa.DataType) -> list[str]:
    """What orders rows by a column: an array of numbers has no order."""
    if not pa.types.is_list(kind):
        return [ident(name)]
    return [f"ARRAY_TO_STRING({ident(name)}, ' ')"] if pa.types.is_string(kind.value_type) else []
