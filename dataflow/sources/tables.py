"""Bring your own tables: Parquet or CSV, mapped to Lockstep's columns by configuration."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from dataflow.dead_letters import DeadLetters
from dataflow.sources.files import column_types, find_files, is_csv, read_batches
from dataflow.sources.moments import MomentReader
from dataflow.sources.output import ID_COLUMNS, TIME, Progress, SourceWriter
from dataflow.sources.rows import (
    RowCheck,
    is_list,
    is_text,
    parse_booleans,
    parse_doubles,
    parse_ids,
    parse_integers,
    parse_list,
    parse_texts,
)
from lockstep.config import AttributesTable, EventsTable, TablesSource
from lockstep.errors import ConfigError, DataError
from lockstep.schema import NAME

_log = logging.getLogger(__name__)

_DECLARED = {
    "string": pa.string(),
    "int64": pa.int64(),
    "double": pa.float64(),
    "bool": pa.bool_(),
    "timestamp": TIME,
}
RESERVED = {*ID_COLUMNS.values(), "row_number", "event_time", "position"}

Parser = Callable[[pa.Array, RowCheck, str], pa.Array]


def read(section: TablesSource, folder: Path, writer: SourceWriter, dead_letters: DeadLetters) -> None:
    """Read the tables of one folder.

    Where no candidates or queries table is configured, one is made of the ids in the events.

    Args:
        folder: where the configured files are.

    Raises:
        DataError: a file or column is missing or unusable as a whole.
        ConfigError: the mapping contradicts itself.
    """
    derived = [table for table in ("candidates", "queries") if getattr(section, table) is None]
    events = _events_reader(section.events, folder, dead_letters)
    attributes = {
        table: _attributes_reader(table, getattr(section, table), folder, dead_letters)
        for table in ("candidates", "queries")
        if table not in derived
    }
    writer.declare("events")
    for table in derived:
        writer.declare(table, derived=True)
    for columns in events.rows(writer):
        writer.write("events", columns)
        for table in derived:
            writer.write_new(table, {ID_COLUMNS[table]: columns[ID_COLUMNS[table]]})
    for table, reader in attributes.items():
        writer.declare(table, [(name, reader.types[name]) for name in reader.types if name != ID_COLUMNS[table]])
        for columns in reader.rows(writer):
            writer.write(table, columns)


@dataclass(frozen=True)
class _Reader:
    """Reads the files of one table through one parser a column.

    `columns`, `parsers` and `types` are by the name of the output column.
    """

    table: str
    files: list[Path]
    columns: Mapping[str, str]
    parsers: Mapping[str, Parser]
    types: Mapping[str, pa.DataType]
    multiline: bool
    dead_letters: DeadLetters

    def rows(self, writer: SourceWriter) -> Iterator[dict[str, pa.Array]]:
        """The good rows of each batch, as output columns; bad ones are dead-lettered."""
        progress = Progress(self.table, len(self.files))
        for path in self.files:
            needed = sorted(set(self.columns.values()))
            for batch in read_batches(path, needed, multiline=self.multiline):
                if batch.broken is not None:
                    writer.count_read(self.table, batch.lines)
                    self.dead_letters.add_batch(batch.broken, batch.rows, path.name, rows=[batch.lines])
                    continue
                start = progress.rows
                writer.count_read(self.table, len(batch.rows))
                progress.advance(len(batch.rows))
                yield self._parsed(batch.rows, RowCheck(batch.rows, marked=batch.marked), path, start)
            progress.files_done += 1
        progress.say()

    def _parsed(self, rows: pa.RecordBatch, check: RowCheck, path: Path, start: int) -> dict[str, pa.Array]:
        parsed: dict[str, pa.Array] = {}
        for name, parser in self.parsers.items():
            column = self.columns.get(name)
            if column is None:  # the position of events that have none: those of one moment are simultaneous
                parsed[name] = pa.array(np.zeros(len(rows), dtype=np.int64))
                continue
            try:
                parsed[name] = parser(rows.column(column), check, column)
            except DataError as error:
                raise DataError(f"{path}: {error}") from error
        check.report(self.dead_letters, path.name)
        return {name: check.kept(values) for name, values in parsed.items()}


def _events_reader(section: EventsTable, folder: Path, dead_letters: DeadLetters) -> _Reader:
    where = "[data.tables.events]"
    files = find_files(folder, _pattern(section, where), f"{where} file")
    columns = {"query_id": section.query, "candidate_id": section.candidate, "event_time": section.timestamp}
    if section.position is not None:
        columns["position"] = section.position
    if section.engagement is not None:
        columns["engagement"] = section.engagement
    for path in files:
        _check_columns(path, column_types(path, multiline=section.multiline), columns.values(), where)
    moments = MomentReader(section.timestamp_unit, f"{where} timestamp_unit")
    parsers: dict[str, Parser] = {
        "query_id": parse_ids,
        "candidate_id": parse_ids,
        "event_time": moments.parse,
        "position": partial(parse_integers, required=True),
    }
    if section.engagement is not None:
        parsers["engagement"] = parse_doubles
    return _Reader("events", files, columns, parsers, {}, section.multiline, dead_letters)


def _attributes_reader(table: str, section: AttributesTable, folder: Path, dead_letters: DeadLetters) -> _Reader:
    where = f"[data.tables.{table}]"
    files = find_files(folder, _pattern(section, where), f"{where} file")
    found = column_types(files[0], multiline=section.multiline)
    mapping = dict(section.columns) or _own_names(found, section, where)
    check_mapping(section, mapping, where)
    for path in files:
        _check_columns(path, column_types(path, multiline=section.multiline), [section.id, *mapping.values()], where)
    parsers: dict[str, Parser] = {ID_COLUMNS[table]: parse_ids}
    types = {ID_COLUMNS[table]: pa.string()}
    for name, column in mapping.items():
        declared = _DECLARED.get(section.types.get(name, ""))
        types[name] = _attribute_type(found[column], declared, name in section.separators, f"{files[0]}: {column!r}")
        parsers[name] = _parser(types[name], section.separators.get(name), f"{where} types")
    columns = {ID_COLUMNS[table]: section.id, **mapping}
    return _Reader(table, files, columns, parsers, types, section.multiline, dead_letters)


def _pattern(section: EventsTable | AttributesTable, where: str) -> str:
    """The files that a table's section names.

    Raises:
        ConfigError: it names none, or a table of another source.
    """
    if section.table is not None:
        raise ConfigError(
            f"{where} has table = {section.table!r}, but source = 'tables' reads files: set `file` instead"
        )
    if section.file is None:
        raise ConfigError(f"{where} needs `file`: the name, below [data] path, of a Parquet or CSV file, or a glob")
    return section.file


def _own_names(found: Mapping[str, pa.DataType], section: AttributesTable, where: str) -> dict[str, str]:
    usable = {}
    for column, kind in found.items():
        if column == section.id:
            continue
        try:
            if not NAME.fullmatch(column) or column in RESERVED:
                raise DataError("its name cannot be used in a schema")
            _attribute_type(kind, None, False, column)
            usable[column] = column
        except DataError as error:
            _log.warning("%s leaves out column %r: %s; name it in `columns` to take it", where, column, error)
    return usable


def check_mapping(section: AttributesTable, mapping: Mapping[str, str], where: str) -> None:
    """Refuse column names that no schema can use, and keys that name no column."""
    for name in mapping:
        if not NAME.fullmatch(name) or name in RESERVED:
            raise ConfigError(
                f"{where} columns: {name!r} is no column name: use {NAME.pattern} and none of {sorted(RESERVED)}"
            )
    for key in ("types", "separators"):
        for name in getattr(section, key):
            if name not in mapping:
                raise ConfigError(f"{where} {key}: there is no column {name!r}; there are {sorted(mapping)}")
    for name, separator in section.separators.items():
        if not separator:
            raise ConfigError(f"{where} separators: {name} = '' separates nothing: name the text between two elements")


def _check_columns(path: Path, found: Mapping[str, pa.DataType], wanted: object, where: str) -> None:
    missing = sorted(set(wanted) - set(found))  # type: ignore[call-overload]
    if missing:
        raise DataError(f"{path} has no column {missing[0]!r}, which {where} names; it has {', '.join(sorted(found))}")
    is_csv(path)


def _attribute_type(kind: pa.DataType, declared: pa.DataType | None, split: bool, what: str) -> pa.DataType:
    """The type in which a column is written: the declared one, or the nearest of those that Lockstep knows."""
    types = pa.types
    if types.is_dictionary(kind):
        return _attribute_type(kind.value_type, declared, split, what)
    if is_list(kind):
        inner = declared or _attribute_type(kind.value_type, None, False, what)
        return pa.list_(pa.float64() if types.is_integer(inner) else inner)
    if split:
        return pa.list_(declared or pa.string())
    if declared is not None:
        return declared
    if types.is_boolean(kind):
        return pa.bool_()
    if types.is_integer(kind):
        return pa.int64()
    if types.is_floating(kind) or types.is_decimal(kind):
        return pa.float64()
    if types.is_timestamp(kind) or types.is_date(kind):
        return TIME
    if types.is_null(kind) or is_text(kind):
        return pa.string()
    raise DataError(f"{what} is {kind}, which no feature takes")


def _parser(target: pa.DataType, separator: str | None, key: str) -> Parser:
    if pa.types.is_list(target):
        return partial(_parse_elements, separator, _parser(target.value_type, None, key))
    if target == TIME:
        return partial(MomentReader("auto", f"{key} to int64 or the column").parse, required=False)
    parsers: dict[pa.DataType, Parser] = {
        pa.string(): parse_texts,
        pa.int64(): parse_integers,
        pa.float64(): parse_doubles,
        pa.bool_(): parse_booleans,
    }
    return parsers[target]


def _parse_elements(separator: str | None, parser: Parser, values: pa.Array, check: RowCheck, column: str) -> pa.Array:
    return parse_list(values, separator, parser, check, column)
