"""What only the BigQuery warehouse does: names, labels, expiry, costs, locations, and errors as sentences."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataflow.warehouse import QueryUsage, open_warehouse
from dataflow.warehouse.bigquery import BigQueryWarehouse, job_labels
from lockstep.config import BigQuerySection, DataSection
from lockstep.errors import ConfigError, DataError
from tests.fakes.bigquery import FakeBigQuery, serve_bigquery
from tests.fakes.bigquery_engine import ApiError
from tests.fakes.warehouses import on_fake


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeBigQuery]:
    with serve_bigquery(tmp_path / "bucket") as running:
        running.engine.datasets["shop", "sales"] = {"location": "EU"}
        running.engine.put(("shop", "sales", "plays"), pa.table({"user": ["u"] * 100, "n": pa.array(range(100))}))
        yield running


@pytest.fixture
def warehouse(fake: FakeBigQuery, tmp_path: Path) -> Iterator[Any]:
    with on_fake(fake, tmp_path) as opened:
        yield opened


def one_number(folder: Path) -> Path:
    pq.write_table(pa.table({"n": pa.array([1], pa.int64())}), folder / "one.parquet")
    return folder / "one.parquet"


def test_tables_and_jobs_are_labelled_and_expire(fake: FakeBigQuery, tmp_path: Path) -> None:
    with on_fake(fake, tmp_path, expiry_hours=5) as warehouse:
        warehouse.load("events", [one_number(tmp_path)])
        warehouse.create("more", "SELECT n FROM events")
        warehouse.rows("SELECT n FROM more")
        made = {name: fake.engine.resources[name] for name in fake.engine.tables if name[0] == "p-1"}
        assert len(made) == 2
        for (_, dataset, table), resource in made.items():
            assert dataset == "lockstep"
            assert table.startswith("run_7_")
            assert table.endswith(("_events", "_more"))
            hours = (int(resource["expirationTime"]) / 1000 - time.time()) / 3600
            assert 4.9 < hours < 5.1
        labels = [job["configuration"]["labels"] for job in fake.engine.jobs.values()]
        labels += [resource["labels"] for resource in made.values()]
        assert len(labels) == 5
        for found in labels:
            assert found == {"lockstep": "0-1-0", "step": "generate_examples", "run": "run-7", "team": "music"} | {
                "lockstep": found["lockstep"]
            }
    assert fake.engine.datasets["p-1", "lockstep"]["location"] == "EU"
    assert fake.engine.datasets["p-1", "lockstep"]["defaultTableExpirationMs"] == str(5 * 3_600_000)
    assert [name for name in fake.engine.tables if name[0] == "p-1"] == []  # closed: dropped


def test_two_warehouses_of_one_run_do_not_meet(fake: FakeBigQuery, tmp_path: Path) -> None:
    with on_fake(fake, tmp_path) as first, on_fake(fake, tmp_path) as second:
        first.create("t", "SELECT 1 AS n")
        second.create("t", "SELECT 2 AS n")
        assert first.rows("SELECT n FROM t") == [{"n": 1}]


def test_what_was_read_and_billed_is_known(fake: FakeBigQuery, warehouse: Any) -> None:
    warehouse.create("t", "SELECT n FROM `shop.sales.plays`")
    warehouse.rows("SELECT n FROM t WHERE n = 5")
    assert warehouse.usage.queries == [QueryUsage("t", 800, 10 << 20), QueryUsage("rows", 800, 10 << 20)]
    assert warehouse.usage.to_json() == {
        "bytes_processed": 1_600,
        "bytes_billed": 20 << 20,
        "queries": [
            {"query": "t", "bytes_processed": 800, "bytes_billed": 10 << 20},
            {"query": "rows", "bytes_processed": 800, "bytes_billed": 10 << 20},
        ],
    }


def test_a_dry_run_reads_nothing_and_knows_how_much(fake: FakeBigQuery, warehouse: Any) -> None:
    assert warehouse.dry_run("SELECT n FROM `shop.sales.plays`") == 800
    assert warehouse.usage.queries == []
    with pytest.raises(DataError, match=r"the dry run failed: .*absent"):
        warehouse.dry_run("SELECT absent FROM `shop.sales.plays`")


def test_a_large_file_is_uploaded_in_chunks(fake: FakeBigQuery, warehouse: Any, tmp_path: Path) -> None:
    payload = [bytes(range(256)).hex() * 200 + str(n) for n in range(120)]
    pq.write_table(pa.table({"t": payload}), tmp_path / "big.parquet", compression="none", use_dictionary=False)
    assert (tmp_path / "big.parquet").stat().st_size > 10 << 20
    assert warehouse.load("big", [tmp_path / "big.parquet", tmp_path / "big.parquet"]) == 240
    assert fake.requests.count("PUT /upload/bigquery/v2/projects/p-1/jobs") == 2


def test_files_on_a_mount_of_cloud_storage_are_not_uploaded(fake: FakeBigQuery, warehouse: Any, tmp_path: Path) -> None:
    (tmp_path / "bucket" / "b" / "in").mkdir(parents=True)
    one_number(tmp_path / "bucket" / "b" / "in")
    assert warehouse.load("events", [Path("/gcs/b/in/one.parquet")]) == 1
    sql = "SELECT n, n + 1 AS shard FROM events UNION ALL SELECT 7 AS n, 4 AS shard"
    assert warehouse.export_shards(sql, Path("/gcs/b/out"), column="shard") == 2
    files = sorted((tmp_path / "bucket" / "b" / "out").rglob("*.parquet"))
    assert [file.parent.name for file in files] == ["shard=2", "shard=4"]
    assert pq.ParquetFile(files[1]).read().to_pylist() == [{"n": 7}]
    assert not [request for request in fake.requests if "/upload/" in request]


def test_shards_are_partitions_so_that_each_is_read_once(fake: FakeBigQuery, warehouse: Any, tmp_path: Path) -> None:
    sql = "SELECT n, MOD(n, 3) AS shard FROM `shop.sales.plays`"
    warehouse.export_shards(sql, tmp_path / "out", column="shard")
    queries = [job["configuration"]["query"] for job in fake.engine.jobs.values()]
    spread = {"field": "shard", "range": {"start": "0", "end": "4000", "interval": "1"}}
    assert queries[0]["rangePartitioning"] == spread
    assert "ORDER BY" not in queries[0]["query"]
    # The intermediate table is gone at once: it is as large as all training rows.
    assert [name for name in fake.engine.tables if name[0] == "p-1"] == []


@pytest.mark.parametrize(
    ("permission", "at"),
    [
        ("bigquery.jobs.create", "the query for t failed"),
        ("bigquery.tables.getData", "the query for t failed"),
        ("bigquery.tables.create", "the query for t failed"),
        ("bigquery.tables.update", "labelling the table 't' failed"),
    ],
)
def test_a_missing_permission_is_named_with_its_role(
    fake: FakeBigQuery, warehouse: Any, permission: str, at: str
) -> None:
    fake.engine.denied.add(permission)
    with pytest.raises(DataError) as refused:
        warehouse.create("t", "SELECT n FROM `shop.sales.plays`")
    said = str(refused.value)
    assert said.startswith(at), said
    assert permission in said
    assert "roles/bigquery.jobUser" in said


def test_reading_needs_its_own_permission(fake: FakeBigQuery, warehouse: Any, tmp_path: Path) -> None:
    fake.engine.denied.add("bigquery.readsessions.create")
    with pytest.raises(DataError, match=r"bigquery\.readsessions\.create.*roles/bigquery\.readSessionUser"):
        warehouse.export("SELECT 1 AS n", tmp_path / "out.parquet")


def test_what_is_not_there_is_named(warehouse: Any) -> None:
    with pytest.raises(DataError, match=r"Table shop:sales\.absent was not found.*correct the name"):
        warehouse.rows("SELECT 1 AS n FROM `shop.sales.absent`")
    with pytest.raises(DataError, match=r"Table shop:sales\.absent was not found"):
        warehouse.schema("shop.sales.absent")
    assert warehouse.schema("shop.sales.plays").names == ["user", "n"]


def test_a_ceiling_of_bytes_is_kept(fake: FakeBigQuery, tmp_path: Path) -> None:
    with on_fake(fake, tmp_path, max_bytes_billed=1_000_000) as warehouse:
        with pytest.raises(DataError, match=r"limit for bytes billed: 1000000\. 10485760 or higher.*max_bytes_billed"):
            warehouse.rows("SELECT n FROM `shop.sales.plays`")
        assert warehouse.usage.queries == []


def test_locations_do_not_mix(fake: FakeBigQuery, tmp_path: Path) -> None:
    with (
        on_fake(fake, tmp_path, dataset="america", location="US") as warehouse,
        pytest.raises(DataError, match=r"not found in location US .*; jobs run in US: set \[data\.bigquery\] location"),
    ):
        warehouse.rows("SELECT n FROM `shop.sales.plays`")
    with (
        on_fake(fake, tmp_path, dataset="america") as warehouse,
        pytest.raises(ConfigError, match=r"location is 'EU', but the data set p-1\.america is in 'US'"),
    ):
        warehouse.rows("SELECT 1 AS n")
    with on_fake(fake, tmp_path, dataset="america", location="") as warehouse:  # an existing one says where it is
        assert warehouse.rows("SELECT 1 AS n") == [{"n": 1}]
    with (
        on_fake(fake, tmp_path, dataset="new", location="") as warehouse,
        pytest.raises(ConfigError, match=r"p-1\.new does not exist, and \[data\.bigquery\] location is not set"),
    ):
        warehouse.rows("SELECT 1 AS n")


def test_a_passing_failure_is_tried_again(fake: FakeBigQuery, warehouse: Any) -> None:
    fake.engine.failures += [
        ("POST /bigquery/v2/projects/p-1/jobs", ApiError(503, "backendError", "try again")),
        ("GET /bigquery/v2/projects/p-1/queries", ApiError(502, "badGateway", "try again")),
    ]
    assert warehouse.rows("SELECT 1 AS n") == [{"n": 1}]
    assert fake.engine.failures == []


def test_closing_never_fails(fake: FakeBigQuery, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with on_fake(fake, tmp_path) as warehouse:
        warehouse.create("t", "SELECT 1 AS n")
        fake.engine.denied.add("bigquery.tables.delete")
    assert "was not dropped" in caplog.text
    assert "it expires" in caplog.text


def test_labels_take_bigquerys_alphabet() -> None:
    found = job_labels({"team": "Ärger & Co", "run": "mine"}, "2026-11-21T10:00 X" + "y" * 80)
    assert found["team"] == "-rger---co"
    assert found["run"] == ("2026-11-21t10-00-x" + "y" * 80)[:63]
    with pytest.raises(ConfigError, match="'Team' is no label"):
        job_labels({"Team": "x"}, "")


def test_without_credentials_it_says_how_to_log_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BIGQUERY_EMULATOR_HOST", "GOOGLE_CLOUD_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "absent.json"))
    with pytest.raises(DataError, match="gcloud auth application-default login"):
        open_warehouse(DataSection(warehouse="bigquery", bigquery=BigQuerySection()), tmp_path)


def test_without_the_extra_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "dataflow.warehouse.bigquery", None)
    with pytest.raises(ConfigError, match=r"pip install 'lockstep-retrieval\[gcp\]'"):
        open_warehouse(DataSection(warehouse="bigquery"), tmp_path)


def test_the_warehouse_is_chosen_by_configuration(fake: FakeBigQuery, tmp_path: Path) -> None:
    with on_fake(fake, tmp_path) as warehouse:
        assert isinstance(warehouse, BigQueryWarehouse)
