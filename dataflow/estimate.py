"""What the data step would cost on BigQuery, before it runs.

What is read of the source tables is exact: BigQuery's own dry run of the very queries, which checks permissions,
tables, columns and types besides. What is read of intermediate tables is an upper estimate: the step runs over a few
made-up rows of the same columns on DuckDB, its queries are recorded, and each is charged for the whole of every table
that it names, a table being taken as large as the largest source that it is made of.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dataflow.dead_letters import DeadLetters
from dataflow.sources.bigquery import check_source
from dataflow.sources.bigquery_plans import Plan, source_plans
from dataflow.sources.output import EVENTS, ID_COLUMNS, TIME
from dataflow.sql import render
from dataflow.warehouse import DuckDBWarehouse, check_query, open_warehouse
from dataflow.warehouse.names import source_tables
from lockstep.config import DataSection
from lockstep.errors import ConfigError
from lockstep.schema import Schema

MINIMUM = 10 << 20
"""BigQuery charges at least this for each table that a query names."""
_ENTITIES = 300


@dataclass(frozen=True)
class SourceRead:
    """One query over a source table, and what it reads."""

    what: str
    table: str
    bytes: int


@dataclass(frozen=True)
class Estimate:
    """What a run reads.

    Args:
        sources: exact.
        passes: times that intermediate tables of each size are read, by the source that they are as large as.
        intermediate: bytes of those, at most.
    """

    sources: list[SourceRead]
    passes: Mapping[str, int]
    intermediate: int

    @property
    def total(self) -> int:
        """Bytes that are charged for, at most."""
        return sum(max(read.bytes, MINIMUM) for read in self.sources) + self.intermediate


def estimate(data: DataSection, schema: Schema) -> Estimate:
    """Ask BigQuery what a run over the configured tables would read; nothing is read or charged for.

    Raises:
        ConfigError: the source is not in BigQuery.
        DataError: BigQuery refuses the queries of the run.
        SchemaError: a feature cannot be made of the tables' columns.
    """
    tables = check_source(data)
    with tempfile.TemporaryDirectory() as folder, open_warehouse(data, Path(folder)) as warehouse:
        from dataflow.warehouse.bigquery import BigQueryWarehouse

        asking = _DryRun(cast(BigQueryWarehouse, warehouse))
        plans = source_plans(tables, asking)
        reads = {name: asking.read(f"{name}: rows", plan.source, plan.judged_sql()) for name, plan in plans.items()}
    sizes = {name: read.bytes for name, read in reads.items()}
    for table in ID_COLUMNS:
        sizes.setdefault(table, sizes["events"])  # made of the events' ids
    with tempfile.TemporaryDirectory() as folder:
        queries = record_queries(data, schema, plans, Path(folder))
    passes = dict.fromkeys(ID_COLUMNS, 0)
    for _, families in queries:
        for family in families:
            passes[family] += 1
    intermediate = sum(count * max(sizes[family], MINIMUM) for family, count in passes.items())
    return Estimate(asking.reads, passes, intermediate)


class _DryRun:
    """Describes tables, and counts what each query would read in place of running it."""

    def __init__(self, warehouse: Any) -> None:
        self._warehouse = warehouse
        self.reads: list[SourceRead] = []

    def schema(self, table: str) -> pa.Schema:
        return self._warehouse.schema(table)

    def rows(self, sql: str) -> list[dict[str, Any]]:
        """The query for the unit of moments, the only one that a plan asks; any answer does for an estimate."""
        self.read("unit of the moments", min(source_tables(check_query(sql))), sql)
        return [{"s": 1, "ms": 0, "us": 0, "ns": 0, "present": 1}]

    def read(self, what: str, table: str, sql: str) -> SourceRead:
        self.reads.append(SourceRead(what, table, self._warehouse.dry_run(sql)))
        return self.reads[-1]


class RecordingWarehouse(DuckDBWarehouse):
    """Notes every query, with the sources that the tables it reads are as large as."""

    def __init__(self, work: Path) -> None:
        super().__init__(work, memory="1GB")
        self.queries: list[tuple[str, list[str]]] = []
        self._families: dict[str, str] = {}

    def load(self, table: str, files: Sequence[Path]) -> int:
        self._families[table] = table
        return super().load(table, files)

    def create(self, table: str, sql: str) -> int:
        self._families[table] = min(self.note(sql), key=list(ID_COLUMNS).index, default="events")
        return super().create(table, sql)

    def export(self, sql: str, destination: Path, *, row_group_rows: int = 32_768) -> int:
        self.note(sql)
        return super().export(sql, destination, row_group_rows=row_group_rows)

    def export_shards(self, sql: str, destination: Path, *, column: str) -> int:
        # BigQuery reads the shards' column once more, to know which there are.
        self.queries.append((f"the shards of {column}", ["events"]))
        self.note(sql)
        return super().export_shards(sql, destination, column=column)

    def rows(self, sql: str) -> list[dict[str, Any]]:
        self.note(sql)
        return super().rows(sql)

    def note(self, sql: str) -> list[str]:
        """Record a query; returns the families of its tables."""
        families = [self._families.get(table, "events") for table in sorted(source_tables(check_query(sql)))]
        self.queries.append((sql, families))
        return families


def record_queries(
    data: DataSection, schema: Schema, plans: Mapping[str, Plan], work: Path
) -> list[tuple[str, list[str]]]:
    """The queries of a run after the source tables are judged, with the families of the tables that each reads.

    Args:
        plans: by table; their columns are what the made-up rows have.
        work: an empty folder.
    """
    from dataflow.entities import write_entities
    from dataflow.evaluation_queries import write_evaluation
    from dataflow.interactions import prepare_events
    from dataflow.split import find_cuts
    from dataflow.training import write_training_rows
    from dataflow.vocabulary import learn

    data = data.model_copy(
        update={"validation_from": None, "test_from": None, "holdout_share": 0.5, "shard_rows": 10**9}
    )
    _made_up(data, plans, work / "source")
    (work / "examples").mkdir()
    (work / "entities").mkdir()
    with RecordingWarehouse(work) as warehouse, DeadLetters(work / "dead.jsonl") as letters:
        for table, plan in plans.items():
            warehouse.queries.append((render("source_faults", judged=plan.judged), [table]))
            warehouse.queries.append((plan.good_sql(), [table]))
        warehouse.queries += [("the ids of the events", ["events"]) for table in ID_COLUMNS if table not in plans]
        for table in ID_COLUMNS:
            warehouse.load(table, [work / "source" / table / "part-00000.parquet"])
        prepare_events(warehouse, data, letters, work)
        cuts = find_cuts(warehouse, data)
        write_training_rows(warehouse, schema, data, cuts, work / "examples", work)
        for split in ("validation", "test"):
            write_evaluation(warehouse, schema, data, cuts, split, work / "examples" / split, work)
        write_entities(warehouse, schema, cuts, work / "entities", work)
        learn(warehouse, schema, work)
        return warehouse.queries


def _made_up(data: DataSection, plans: Mapping[str, Plan], destination: Path) -> None:
    """Write the source's tables: every entity takes every candidate once, one a minute."""
    length = data.min_history + data.seed_events + 10
    rows = _ENTITIES * length
    start = datetime(2024, 1, 1, tzinfo=UTC)
    events = {
        "query_id": [f"q{n // length}" for n in range(rows)],
        "candidate_id": [f"c{n % length}" for n in range(rows)],
        "event_time": [start + timedelta(minutes=(n * 7919) % rows) for n in range(rows)],
        "position": np.arange(rows),
        "engagement": np.full(rows, abs(data.min_engagement or 0) + 1.0),
    }
    _write(destination / "events", pa.table(events, schema=EVENTS))
    for table, count in (("candidates", length), ("queries", _ENTITIES)):
        columns: dict[str, Any] = {ID_COLUMNS[table]: pa.array([f"{table[0]}{n}" for n in range(count)])}
        attributes = plans[table].values if table in plans else {}
        for name, judged in attributes.items():
            if name not in columns:
                columns[name] = _values(judged.type, count)
        columns["row_number"] = np.arange(count)
        _write(destination / table, pa.table(columns))


def _values(kind: pa.DataType, count: int) -> pa.Array:
    if pa.types.is_list(kind):
        return pa.array([_values(kind.value_type, 2).to_pylist()] * count, kind)
    values = {
        pa.string(): [f"word{n % 7}" for n in range(count)],
        pa.int64(): list(range(count)),
        pa.float64(): [float(n) for n in range(count)],
        pa.bool_(): [n % 2 == 0 for n in range(count)],
        TIME: [datetime(2024, 1, 1, tzinfo=UTC)] * count,
    }
    return pa.array(values[kind], kind)


def _write(folder: Path, table: pa.Table) -> None:
    folder.mkdir(parents=True)
    pq.write_table(table, folder / "part-00000.parquet")


def describe(data: DataSection, schema: Schema, price_per_tib: float) -> str:
    """What a run would cost, for a person to read.

    Args:
        price_per_tib: USD.

    Raises:
        ConfigError: the source is not in BigQuery, so nothing can be told ahead.
    """
    if data.warehouse == "duckdb":
        return "The warehouse is duckdb: the step runs on this machine and nothing is billed."
    if data.source != "bigquery":
        raise ConfigError(
            f"--dry-run tells what BigQuery tables cost, but [data] source is {data.source!r}: its files are loaded, "
            "which is free, and what the queries then read stands in report.json after a run"
        )
    found = estimate(data, schema)
    lines = ["BigQuery says that the source tables are read for (exact):"]
    lines += [f"  {_gib(read.bytes):>14}  {read.table}  {read.what}" for read in found.sources]
    lines.append("Intermediate tables are read for, at most:")
    lines += [f"  {count:>4} passes over tables the size of {table}" for table, count in found.passes.items() if count]
    lines.append(f"  {_gib(found.intermediate):>14}")
    cost = found.total / 2**40 * price_per_tib
    lines.append(f"In all at most {_gib(found.total)}: {cost:.2f} USD at {price_per_tib:g} USD per TiB")
    lines.append("(on-demand price of the US unless --price-per-tib says another: check yours).")
    return "\n".join(lines)


def _gib(size: int) -> str:
    return f"{size / 2**30:,.3f} GiB"
