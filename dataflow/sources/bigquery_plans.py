"""How a table of BigQuery is read: the query that judges its rows, and the query that takes the good ones."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa

from dataflow.dead_letters import Reason
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
from dataflow.sources.output import ID_COLUMNS
from dataflow.sources.tables import RESERVED, check_mapping
from dataflow.sql import ident, render
from lockstep.config import AttributesTable, EventsTable, TablesSource
from lockstep.errors import DataError
from lockstep.schema import NAME

_log = logging.getLogger(__name__)

_GUESS = (631_152_000, 4_102_444_800)
"""1990 and 2100, in seconds; see dataflow.sources.moments."""
_GUESS_SHARE = 0.8


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
