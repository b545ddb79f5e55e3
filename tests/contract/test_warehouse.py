"""What every warehouse does alike: DuckDB, BigQuery as our fake, and BigQuery itself."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataflow.split import split_bucket
from dataflow.sql import ident, literal
from dataflow.warehouse import UnsafeQueryError, Warehouse
from lockstep.errors import DataError
from tests.fakes.warehouses import WAREHOUSES, opened

TIME = pa.timestamp("us", tz="UTC")
MOMENT = datetime(2024, 2, 29, 23, 59, 59, 123456, tzinfo=UTC)


@pytest.fixture(scope="module", params=WAREHOUSES)
def warehouse(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warehouse]:
    with opened(request.param, tmp_path_factory.mktemp("warehouse")) as found:
        yield found


def put(warehouse: Warehouse, folder: Path, name: str, columns: dict[str, Any]) -> int:
    pq.write_table(pa.table(columns), folder / f"{name}.parquet")
    return warehouse.load(name, [folder / f"{name}.parquet"])


def types(schema: pa.Schema) -> dict[str, pa.DataType]:
    return dict(zip(schema.names, schema.types, strict=True))


def numbers(warehouse: Warehouse, folder: Path, count: int) -> None:
    assert put(warehouse, folder, "numbers", {"n": pa.array(range(count), pa.int64())}) == count


def test_tables_are_loaded_created_and_replaced(warehouse: Warehouse, tmp_path: Path) -> None:
    for part, values in enumerate(([3, 1], [2])):
        pq.write_table(pa.table({"n": pa.array(values, pa.int64())}), tmp_path / f"it's-{part}.parquet")
    assert warehouse.load("loaded", sorted(tmp_path.glob("it's-*.parquet"))) == 3
    assert warehouse.create("odd", "SELECT n FROM loaded WHERE MOD(n, 2) = 1") == 2
    assert warehouse.create("odd", "SELECT n FROM loaded WHERE n = 1") == 1
    assert warehouse.rows("SELECT n FROM odd") == [{"n": 1}]
    assert warehouse.create("none", "SELECT n FROM loaded WHERE n > 9") == 0
    assert warehouse.rows("SELECT n FROM none") == []


def test_ctes_hide_tables_and_tables_keep_their_names(warehouse: Warehouse, tmp_path: Path) -> None:
    numbers(warehouse, tmp_path, 5)
    sql = """
    WITH numbers AS (SELECT numbers.n + 10 AS n FROM numbers), picked AS (SELECT n FROM Numbers WHERE n > 12)
    SELECT picked.n, `numbers`.n AS same FROM picked JOIN numbers ON numbers.n = picked.n ORDER BY n
    """
    assert [tuple(row.values()) for row in warehouse.rows(sql)] == [(13, 13), (14, 14)]
    sql = (
        "SELECT numbers.n FROM numbers WHERE n IN (WITH c AS (SELECT n FROM `numbers`) SELECT n + 3 FROM c) ORDER BY n"
    )
    assert [row["n"] for row in warehouse.rows(sql)] == [3, 4]


def test_the_types_of_a_table_are_those_that_were_loaded(warehouse: Warehouse, tmp_path: Path) -> None:
    columns = {
        "text": pa.array(["Zoë", None]),
        "whole": pa.array([2**62, None], pa.int64()),
        "real": pa.array([0.1, float("nan")]),
        "yes": pa.array([True, None]),
        "moment": pa.array([MOMENT, None], TIME),
        "words": pa.array([["a", ""], []], pa.list_(pa.string())),
        "prices": pa.array([[0.5], [1.5, 2.5]], pa.list_(pa.float64())),
    }
    put(warehouse, tmp_path, "typed", columns)
    expected = {name: values.type for name, values in columns.items()}
    assert types(warehouse.schema("typed")) == expected
    warehouse.create("typed_again", "SELECT * FROM typed")
    assert types(warehouse.schema("typed_again")) == expected
    found = warehouse.rows("SELECT * FROM typed_again ORDER BY whole DESC")[0]
    assert found == {name: values[0].as_py() for name, values in columns.items()}
    assert warehouse.export("SELECT * FROM typed ORDER BY whole DESC", tmp_path / "out.parquet") == 2
    exported = pq.read_table(tmp_path / "out.parquet")
    assert types(exported.schema) == expected
    assert exported.to_pylist()[0] == found


def test_an_export_keeps_the_order_and_has_row_groups(warehouse: Warehouse, tmp_path: Path) -> None:
    numbers(warehouse, tmp_path, 5_000)
    sql = "SELECT n, STRUCT(n AS a, ['x', 'y'] AS b) AS s, [n, n + 1] AS pair FROM numbers ORDER BY n DESC"
    assert warehouse.export(sql, tmp_path / "out.parquet", row_group_rows=2_048) == 5_000
    found = pq.read_table(tmp_path / "out.parquet")
    assert found["n"].to_pylist() == list(range(4_999, -1, -1))
    assert found.slice(0, 1).to_pylist() == [{"n": 4_999, "s": {"a": 4_999, "b": ["x", "y"]}, "pair": [4_999, 5_000]}]
    metadata = pq.read_metadata(tmp_path / "out.parquet")
    assert [metadata.row_group(group).num_rows for group in range(3)] == [2_048, 2_048, 904]


def test_an_export_without_rows_has_its_columns(warehouse: Warehouse, tmp_path: Path) -> None:
    numbers(warehouse, tmp_path, 5)
    assert warehouse.export("SELECT n, [n] AS l FROM numbers WHERE n > 9", tmp_path / "out.parquet") == 0
    assert pq.read_schema(tmp_path / "out.parquet").names == ["n", "l"]


def test_shards_are_folders_that_hold_every_row_once(warehouse: Warehouse, tmp_path: Path) -> None:
    numbers(warehouse, tmp_path, 1_000)
    sql = "SELECT n, STRUCT(n AS a, [CAST(n AS STRING)] AS h) AS query, MOD(n, 7) * 2 AS shard FROM numbers"
    assert warehouse.export_shards(sql, tmp_path / "out", column="shard") == 1_000
    assert sorted(folder.name for folder in (tmp_path / "out").iterdir()) == sorted(f"shard={2 * n}" for n in range(7))
    for shard in range(7):
        files = sorted((tmp_path / "out" / f"shard={2 * shard}").glob("*.parquet"))
        rows = pa.concat_tables([pq.ParquetFile(file).read() for file in files])
        assert rows.schema.names == ["n", "query"]
        assert sorted(rows["n"].to_pylist()) == list(range(shard, 1_000, 7))
        assert rows.to_pylist()[0]["query"]["h"] == [str(rows["n"][0].as_py())]


def test_no_rows_are_no_shards(warehouse: Warehouse, tmp_path: Path) -> None:
    numbers(warehouse, tmp_path, 5)
    sql = "SELECT n, n AS shard FROM numbers WHERE n > 9"
    assert warehouse.export_shards(sql, tmp_path / "out", column="shard") == 0
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("shard", ["n - 1", "CASE WHEN n > 0 THEN n END"])
def test_a_shard_is_a_number_from_0_on(warehouse: Warehouse, tmp_path: Path, shard: str) -> None:
    numbers(warehouse, tmp_path, 5)
    with pytest.raises(DataError, match="the shards of 'shard' are numbers from 0"):
        warehouse.export_shards(f"SELECT n, {shard} AS shard FROM numbers", tmp_path / "out", column="shard")


def test_the_split_hash_is_the_same_in_sql_and_python(warehouse: Warehouse, tmp_path: Path) -> None:
    ids = ["a", "", "Zoë", "日本", "x'y\\z`\n\t", "a" * 300, *(f"user-{n}" for n in range(500))]
    put(warehouse, tmp_path, "ids", {"id": ids})
    sql = "SELECT id, MOD(CAST(CONCAT('0x', SUBSTR(TO_HEX(MD5(id)), 1, 8)) AS INT64), 10000) AS bucket FROM ids"
    found = {row["id"]: row["bucket"] for row in warehouse.rows(sql)}
    assert found == {entity: split_bucket(entity, 10_000) for entity in ids}
    # printf a | md5sum is 0cc175b9...; 0x0cc175b9 = 214,005,177
    assert found["a"] == 5177


def test_values_survive_as_literals_and_names_as_identifiers(warehouse: Warehouse) -> None:
    nasty = 'it\'s "a" `b` \\n \n\r {{ x }} -- ; DROP'
    sql = (
        f"SELECT {literal(nasty)} AS {ident('select')}, {literal(MOMENT)} AS m, {literal(-3)} AS i, {literal(0.1)} AS f"
    )
    row = warehouse.rows(sql)[0]
    assert (row["select"], row["i"], float(row["f"])) == (nasty, -3, 0.1)
    assert row["m"] == MOMENT


def test_order_puts_nulls_first_as_bigquery_does(warehouse: Warehouse) -> None:
    found = warehouse.rows("SELECT x FROM (SELECT 1 AS x UNION ALL SELECT NULL UNION ALL SELECT 0) ORDER BY x")
    assert [row["x"] for row in found] == [None, 0, 1]


def test_lengths_in_bytes_and_white_space(warehouse: Warehouse, tmp_path: Path) -> None:
    put(warehouse, tmp_path, "texts", {"t": ["Zoë", "日本", "\t\u3000x\u00a0"]})
    sql = r"SELECT BYTE_LENGTH(t) AS n, REGEXP_REPLACE(t, '^[\\pZ\\s]+|[\\pZ\\s]+$', '') AS t FROM texts ORDER BY n"
    assert [tuple(row.values()) for row in warehouse.rows(sql)] == [(4, "Zoë"), (6, "日本"), (7, "x")]


def test_errors_are_sentences(warehouse: Warehouse) -> None:
    with pytest.raises(DataError, match="no Parquet files for the table 'events'"):
        warehouse.load("events", [])
    with pytest.raises(DataError, match="no table 'absent'"):
        warehouse.schema("absent")
    with pytest.raises(DataError, match=r"(?s)absent.*In: SELECT 1 AS a FROM absent"):
        warehouse.rows("SELECT 1 AS a FROM absent")
    with pytest.raises(DataError, match="is no table name"):
        warehouse.create('x"; DROP', "SELECT 1 AS a")
    with pytest.raises(UnsafeQueryError, match="an array index"):
        warehouse.rows("SELECT [1, 2][OFFSET(0)] AS a")
