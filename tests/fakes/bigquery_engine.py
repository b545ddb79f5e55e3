"""The tables and jobs of the fake BigQuery: SQL runs on DuckDB, through the translation of our guard.

Results take BigQuery's types: every integer is INT64, every fraction FLOAT64, an array has no NULL in it, and an array
that is NULL is an empty one.
"""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from sqlglot import exp

from dataflow.warehouse.guard import check_query, to_duckdb
from dataflow.warehouse.names import source_tables
from lockstep.errors import DataError

Name = tuple[str, str, str]
"""Project, data set, table."""
MINIMUM_BILLED = 10 << 20
_LABEL = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_LABEL_VALUE = re.compile(r"[a-z0-9_-]{0,63}")


class ApiError(Exception):
    """An answer of the API that is an error."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status, self.reason, self.message = status, reason, message

    def body(self) -> dict[str, Any]:
        error = {"reason": self.reason, "message": self.message, "domain": "global"}
        return {"error": {"code": self.status, "message": self.message, "errors": [error]}}


class Engine:
    """Data sets, tables, jobs and what they cost.

    `failures` holds errors to answer the next requests with: (what the method and path contain, the error).
    `denied` holds permissions that the caller lacks.
    `bucket` is the folder of the objects that EXPORT DATA writes.
    """

    def __init__(self, bucket: Path) -> None:
        self.datasets: dict[tuple[str, str], dict[str, Any]] = {}
        self.tables: dict[Name, pa.Table] = {}
        self.resources: dict[Name, dict[str, Any]] = {}
        self.jobs: dict[str, dict[str, Any]] = {}
        self.results: dict[str, pa.Table] = {}
        self.failures: list[tuple[str, ApiError]] = []
        self.denied: set[str] = set()
        self.bucket = bucket
        self.lock = threading.RLock()
        self._duckdb = duckdb.connect()
        self._duckdb.execute("SET TimeZone = 'UTC'")

    def need(self, permission: str, on: str) -> None:
        if permission in self.denied:
            message = f"Access Denied: {on}: User does not have {permission} permission on {on}, or it may not exist."
            raise ApiError(403, "accessDenied", message)

    def put(self, name: Name, table: pa.Table, resource: dict[str, Any] | None = None) -> None:
        """Make or replace a table."""
        self.tables[name] = _stored(table)
        self.resources[name] = resource or {}

    def table(self, name: Name) -> pa.Table:
        if name not in self.tables:
            project, dataset, table = name
            location = self.location(project, dataset)
            message = f"Not found: Table {project}:{dataset}.{table} was not found in location {location}"
            raise ApiError(404, "notFound", message)
        return self.tables[name]

    def location(self, project: str, dataset: str) -> str:
        found = self.datasets.get((project, dataset))
        if found is None:
            raise ApiError(404, "notFound", f"Not found: Dataset {project}:{dataset}")
        return str(found["location"])

    def read(self, sql: str, location: str) -> list[tuple[Name, list[str]]]:
        """The tables that a query reads, and the columns; checks that they exist where the job runs."""
        query = check_query(sql)
        found = []
        for text in sorted(source_tables(query)):
            parts = text.split(".")
            if len(parts) != 3:
                message = f'Table "{text}" must be qualified with a dataset (e.g. dataset.table).'
                raise ApiError(400, "invalid", message)
            name = (parts[0], parts[1], parts[2])
            self.need("bigquery.tables.getData", f"Table {parts[0]}:{parts[1]}.{parts[2]}")
            there = self.location(parts[0], parts[1])
            if there.lower() != location.lower():
                message = f"Not found: Dataset {parts[0]}:{parts[1]} was not found in location {location}"
                raise ApiError(404, "notFound", message)
            columns = self.table(name).schema.names
            used = {column.name for column in query.find_all(exp.Column)}
            stars = any(isinstance(select, exp.Star) for select in query.find_all(exp.Star))
            found.append((name, [column for column in columns if stars or column in used]))
        return found

    def bytes_of(self, sql: str, location: str) -> int:
        return sum(
            sum(_size(self.table(name).column(column)) for column in columns)
            for name, columns in self.read(sql, location)
        )

    def run(self, sql: str, location: str) -> pa.Table:
        """The result of a query."""
        self.read(sql, location)
        query = check_query(sql)
        for table in query.find_all(exp.Table):
            if table.db:
                name = (table.catalog, table.db, table.name)
                self._duckdb.register("/".join(name), self.table(name))
                full = exp.to_identifier("/".join(name), quoted=True)
                alias = table.args.get("alias") or exp.TableAlias(this=exp.to_identifier(table.name))
                table.replace(exp.Table(this=full, alias=alias, joins=table.args.get("joins")))
        try:
            translated = to_duckdb(query.sql(dialect="bigquery"))
            described = self._duckdb.execute(f"DESCRIBE {translated}").fetchall()
            kinds = [(row[0], _bigquery_type(row[1])) for row in described]
            columns = ", ".join(f'CAST("{name}" AS {kind}) AS "{name}"' for name, kind in kinds)
            return self._duckdb.sql(f"SELECT {columns} FROM ({translated})").to_arrow_table()
        except (duckdb.Error, DataError) as error:
            raise ApiError(400, "invalidQuery", " ".join(str(error).split())) from error

    def read_rows(self, name: Name, columns: list[str], where: str) -> pa.Table:
        """What a read session hands out."""
        table = self.table(name)
        names = columns or table.schema.names
        missing = set(names) - set(table.schema.names)
        if missing:
            raise ApiError(400, "invalid", f"request failed: unknown fields {sorted(missing)}")
        with self.lock:
            self._duckdb.register("session", table)
            quoted = ", ".join(f'"{column}"' for column in names)
            filtered = f"SELECT {quoted} FROM session WHERE {where or 'TRUE'}"
            return self._duckdb.sql(filtered).to_arrow_table().cast(pa.schema([table.field(n) for n in names]))

    def export(self, statement: str, location: str) -> None:
        """EXPORT DATA OPTIONS(...) AS query."""
        found = re.fullmatch(r"EXPORT DATA OPTIONS\((.*?)\) AS (.*)", statement, re.S)
        assert found, statement
        options = dict(re.findall(r"(\w+)='?([^',]*)'?", found[1]))
        assert options["format"] == "PARQUET", options
        assert options["uri"].startswith("gs://"), options
        assert options["uri"].count("*") == 1, options
        assert options["overwrite"] == "true", options
        file = self.bucket / options["uri"].removeprefix("gs://").replace("*", "000000000000")
        file.parent.mkdir(parents=True)
        pq.write_table(self.run(found[2], location), file)


def check_labels(labels: dict[str, str]) -> None:
    """Refuse labels that BigQuery refuses, and resources without Lockstep's."""
    for key, value in labels.items():
        if not _LABEL.fullmatch(key) or not _LABEL_VALUE.fullmatch(value):
            raise ApiError(400, "invalid", f"Label {key}={value} is not valid")
    if "lockstep" not in labels or len(labels) > 64:
        raise ApiError(400, "invalid", f"the fake wants the label lockstep and at most 64: {labels}")


def billed(bytes_read: int, tables: int) -> int:
    """What is charged for a query: whole MiB, at least 10 for each table."""
    return max(-(-bytes_read // (1 << 20)) << 20, MINIMUM_BILLED * tables)


def _size(column: pa.ChunkedArray) -> int:
    """As BigQuery counts: 8 bytes a number or moment, 2 and its UTF-8 a text."""
    if pa.types.is_string(column.type):
        return 2 * len(column) + int(pc.sum(pc.binary_length(column)).as_py() or 0)
    return 8 * len(column) if pa.types.is_primitive(column.type) else int(column.nbytes)


def _bigquery_type(kind: str) -> str:
    kind = re.sub(r"\b(U?HUGEINT|INTEGER|SMALLINT|TINYINT|UBIGINT|UINTEGER)\b", "BIGINT", kind)
    return re.sub(r"\b(DECIMAL\(\d+,\d+\)|FLOAT)", "DOUBLE", kind)


def _stored(table: pa.Table) -> pa.Table:
    """As BigQuery keeps it: no NULL array, and no NULL within an array."""
    for index, field in enumerate(table.schema):
        if pa.types.is_list(field.type):
            values = table.column(index).combine_chunks()
            if pc.list_flatten(values).null_count:
                message = f"Array cannot have a null element; error in writing field {field.name}"
                raise ApiError(400, "invalidQuery", message)
            filled = [value if value is not None else [] for value in values.to_pylist()]
            table = table.set_column(index, field.name, pa.array(filled, pa.list_(field.type.value_type)))
        elif pa.types.is_struct(field.type) and any(pa.types.is_list(inner.type) for inner in field.type):
            values = table.column(index).combine_chunks()
            inner = _stored(pa.table({f.name: pc.struct_field(values, [f.name]) for f in field.type}))
            columns = [column.combine_chunks() for column in inner.columns]
            rebuilt = pa.StructArray.from_arrays(columns, fields=list(inner.schema), mask=values.is_null())
            table = table.set_column(index, field.name, rebuilt)
    return table
