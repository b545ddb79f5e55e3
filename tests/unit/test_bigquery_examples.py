"""The data step with BigQuery's fake: the artifacts are those of DuckDB; and what a dry run tells."""

from __future__ import annotations

import gzip
import json
import re
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from dataflow import generate
from dataflow.estimate import RecordingWarehouse, estimate, record_queries
from dataflow.sources.bigquery_plans import source_plans
from dataflow.warehouse import Warehouse
from lockstep.config import Config, load_config
from lockstep.tags import Kind, Tag, write_tag
from pipelines.cli import main
from tests.fakes.bigquery import FakeBigQuery, serve_bigquery
from tests.fakes.warehouses import on_fake

CONFIG = """
[data]
source = "{source}"
warehouse = "{warehouse}"
path = "{path}"
holdout_share = 0.1

[data.bigquery]
project = "p-1"
location = "EU"

[data.tables.events]
{kind} = "{events}"
query = "user"
candidate = "track"
timestamp = "at"
position = "n"

[data.tables.candidates]
{kind} = "{candidates}"
id = "track"

[schema.query.history]
type = "id_sequence"
columns = ["history.candidate_id"]
max_length = 5
shares = "track"

[schema.candidate.track]
type = "id"
columns = ["candidate_id"]

[schema.candidate.words]
type = "text"
columns = ["title", "genre"]

[schema.candidate.price]
type = "numeric"
"""
ROWS = 2_000
PLAYS = pa.table(
    {
        "user": [f"u{n % 60}" for n in range(ROWS)],
        "track": pa.array([(n * n + n // 60) % 37 for n in range(ROWS)], pa.int64()),
        "at": pa.array([datetime(2024, 1, 1, tzinfo=UTC) + timedelta(hours=n) for n in range(ROWS)]),
        "n": pa.array(range(ROWS), pa.int64()),
        "unused": ["x" * 100] * ROWS,
    }
)
TRACKS = pa.table(
    {
        "track": pa.array(range(37), pa.int64()),
        "title": [f"title {n % 5}" for n in range(37)],
        "genre": [None if n % 4 == 0 else f"g{n % 3}" for n in range(37)],
        "price": [n / 4 for n in range(37)],
    }
)


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeBigQuery]:
    with serve_bigquery(tmp_path / "bucket") as running:
        running.engine.datasets["shop", "sales"] = {"location": "EU"}
        running.engine.put(("shop", "sales", "plays"), PLAYS)
        running.engine.put(("shop", "sales", "tracks"), TRACKS)
        yield running


def write_config(folder: Path, **changes: str) -> Path:
    values = {
        **{"source": "bigquery", "warehouse": "bigquery", "path": "", "kind": "table"},
        **{"events": "shop.sales.plays", "candidates": "shop.sales.tracks"},
        **changes,
    }
    (folder / "config.toml").write_text(CONFIG.format(**values))
    return folder / "config.toml"


def from_files(folder: Path, warehouse: str) -> Path:
    pq.write_table(PLAYS, folder / "plays.parquet")
    pq.write_table(TRACKS, folder / "tracks.parquet")
    names = {"kind": "file", "events": "plays.parquet", "candidates": "tracks.parquet"}
    return write_config(folder, source="tables", warehouse=warehouse, path=str(folder), **names)


def invoke(fake: FakeBigQuery, *arguments: object) -> Result:
    return CliRunner(env=fake.environment).invoke(main, ["examples", *map(str, arguments)], catch_exceptions=False)


class _StopError(Exception):
    """What the warehouse has to do is done."""


def through_the_warehouse(config: Config, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the data step up to where records are written; what it has made is in `folder`."""

    def stop(job: object, work: Path, *_: object) -> None:
        shutil.copytree(work, folder / "work")
        raise _StopError

    monkeypatch.setattr(generate._Job, "encode", stop)
    folders = {name: folder / name for name in ("examples", "preprocessing", "entities")}
    folder.mkdir()
    with pytest.raises(_StopError):
        generate.run(**folders, run_id="r", data=config.data, schema=config.schema_)


def contents(folder: Path) -> dict[str, Any]:
    """The rows of every Parquet file; those of training have no order, and BigQuery has no NULL arrays."""
    found: dict[str, Any] = {}
    for file in sorted(folder.rglob("*.parquet")):
        name = str(file.parent.relative_to(folder)) if "training" in file.parts else str(file.relative_to(folder))
        if "source" not in file.parts:
            rows = pq.ParquetFile(file).read().to_pylist()
            found[name] = found.get(name, []) + [repr(sorted(plain(row).items())) for row in rows]
    return {name: sorted(rows) if "training" in name else rows for name, rows in found.items()}


def plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, float) and value == int(value):
        return int(value)  # DuckDB exports a sum of integers as a double
    return None if value == [] else value


def test_what_bigquery_exports_is_what_duckdb_exports(
    fake: FakeBigQuery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in fake.environment.items():
        monkeypatch.setenv(name, value)
    made = {}
    for warehouse in ("duckdb", "bigquery"):
        config = load_config(from_files(tmp_path, warehouse))
        through_the_warehouse(config, tmp_path / warehouse, monkeypatch)
        made[warehouse] = contents(tmp_path / warehouse)
    assert made["duckdb"].keys() == made["bigquery"].keys()
    assert [name for name in made["duckdb"] if made["duckdb"][name] != made["bigquery"][name]] == []
    assert len([name for name in made["duckdb"] if "training" in name]) == 4
    assert sum(len(rows) for rows in made["duckdb"].values()) > 1_000
    assert [name for name in fake.engine.tables if name[:2] == ("p-1", "lockstep")] == []  # tidied up


def test_the_training_records_are_the_same_to_the_last_bit(fake: FakeBigQuery, tmp_path: Path) -> None:
    records = {}
    configs = {
        "files on duckdb": lambda: from_files(tmp_path, "duckdb"),
        "files on bigquery": lambda: from_files(tmp_path, "bigquery"),
        "tables of bigquery": lambda: write_config(tmp_path),
    }
    for number, (name, config) in enumerate(configs.items()):
        output = tmp_path / str(number)
        result = invoke(fake, "--config", config(), "--output", output)
        assert result.exit_code == 0, result.output
        files = sorted((output / "examples" / "train").iterdir())
        records[name] = [gzip.decompress(file.read_bytes()) for file in files]
        told = json.loads((output / "examples" / "report.json").read_text())
        assert (told["warehouse"]["bytes_billed"] > 0) == (name != "files on duckdb")
        assert [check["violations"] for check in told["leaks"]] == [0] * 6
    assert [len(record) > 1_000 for record in records["files on duckdb"]] == [True] * 4
    assert records["files on duckdb"] == records["files on bigquery"] == records["tables of bigquery"]


def test_a_dry_run_tells_what_bigquery_would_read(fake: FakeBigQuery, tmp_path: Path) -> None:
    result = invoke(fake, "--config", write_config(tmp_path), "--dry-run", "--price-per-tib", "5")
    assert result.exit_code == 0, result.output
    assert "shop.sales.plays  events: rows" in result.output
    assert re.search(r"\d+ passes over tables the size of events", result.output)
    assert re.search(r"In all at most \d+\.\d+ GiB: \d+\.\d\d USD at 5 USD per TiB", result.output)
    queries = [job["configuration"] for job in fake.engine.jobs.values()]
    assert queries == []  # dry runs are no jobs


def test_the_source_is_told_exactly_and_without_unused_columns(
    fake: FakeBigQuery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in fake.environment.items():
        monkeypatch.setenv(name, value)
    config = load_config(write_config(tmp_path))
    found = estimate(config.data, config.schema_)
    # user: 2 + 2 or 3 bytes; track, at and n: 8 each.
    users = sum(2 + len(user) for user in PLAYS["user"].to_pylist())
    assert {read.what: read.bytes for read in found.sources}["events: rows"] == users + 3 * 8 * ROWS
    assert found.passes["events"] > 20
    assert found.total == sum(10 << 20 for _ in found.sources) + sum(found.passes.values()) * (10 << 20)


def test_the_recorded_queries_are_those_of_a_run(
    fake: FakeBigQuery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is estimated drifts from what is run, unless the same templates run as often."""
    config = load_config(write_config(tmp_path))
    with on_fake(fake, tmp_path) as warehouse:
        plans = source_plans(config.data.tables, warehouse)  # type: ignore[arg-type]
    (tmp_path / "recorded").mkdir()
    recorded = record_queries(config.data, config.schema_, plans, tmp_path / "recorded")
    opened: list[RecordingWarehouse] = []

    def record(data: object, work: Path, *_: object) -> Warehouse:
        opened.append(RecordingWarehouse(work))
        return opened[-1]

    monkeypatch.setattr(generate, "open_warehouse", record)
    through_the_warehouse(load_config(from_files(tmp_path, "duckdb")), tmp_path / "run", monkeypatch)
    heads = [heading(sql) for sql, _ in recorded if not sql.startswith("the ")]
    run = [heading(sql) for sql, _ in opened[0].queries if not sql.startswith("the ")]
    judging = {heading(sql) for sql, _ in recorded[: 2 * len(plans)]}
    assert sorted(head for head in heads if head not in judging) == sorted(run)


def heading(sql: str) -> str:
    return sql.strip().splitlines()[0]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"source": "tables", "warehouse": "duckdb", "kind": "file"}, "nothing is billed"),
        ({"source": "tables", "kind": "file"}, "its files are loaded, which is free"),
        ({"warehouse": "duckdb"}, "nothing is billed"),
        ({"events": "shop.sales.absent"}, "Table shop:sales.absent was not found"),
        ({"candidates": "shop.other.tracks"}, "Dataset shop:other"),
    ],
)
def test_what_cannot_be_told_is_said(fake: FakeBigQuery, tmp_path: Path, changes: dict[str, str], said: str) -> None:
    assert said in invoke(fake, "--config", write_config(tmp_path, **changes), "--dry-run").output


def test_the_data_step_alone_writes_three_folders(
    fake: FakeBigQuery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def run(**arguments: Any) -> Tag:
        asked.update(arguments)
        arguments["examples"].mkdir()
        return write_tag(arguments["examples"], Kind.EXAMPLES, run="r", schema="s", rows=7)

    monkeypatch.setattr(generate, "run", run)
    config = write_config(tmp_path)
    result = invoke(fake, "--config", config, "--data", "elsewhere", "--output", tmp_path / "new" / "out")
    assert f"wrote 7 examples to {tmp_path}/new/out/examples" in result.output
    assert {asked[name] for name in ("examples", "preprocessing", "entities")} == {
        tmp_path / "new" / "out" / name for name in ("examples", "preprocessing", "entities")
    }
    assert (asked["data"].path, asked["schema"]) == ("elsewhere", load_config(config).schema_)
    (tmp_path / "file").write_text("")
    result = invoke(fake, "--config", config, "--output", tmp_path / "file" / "out")
    assert "cannot write below" in result.output


def test_without_an_output_the_root_takes_it_unless_it_is_a_bucket(
    fake: FakeBigQuery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.run.new_run_id", lambda: "r7")
    result = invoke(fake, "--config", from_files(tmp_path, "duckdb"), "--root", tmp_path / "root")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "root" / "examples" / "r7" / "examples" / "tag.json").exists()
    result = invoke(fake, "--config", from_files(tmp_path, "duckdb"), "--root", "gs://bucket/root")
    assert "[run] root is gs://bucket/root: give --output" in result.output
