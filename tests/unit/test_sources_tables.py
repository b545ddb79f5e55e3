"""Tables of one's own: Parquet and CSV, every kind of bad row, and what is refused as a whole."""

from __future__ import annotations

import gzip
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataflow.dead_letters import DeadLetters
from dataflow.sources import files, output, read_source
from dataflow.sources.rows import MAX_TEXT_BYTES
from lockstep.config import DataSection, load_config
from lockstep.errors import ConfigError, DataError
from tests.unit.sources_harness import CONFIGS, Read, read, real_data

EVENTS = {"file": "events.csv", "query": "user", "candidate": "thing", "timestamp": "at"}
NOON = datetime(2024, 5, 6, 12, tzinfo=UTC)


def section(folder: Path, **tables: Any) -> DataSection:
    return DataSection.model_validate({"source": "tables", "path": str(folder), "tables": {"events": EVENTS, **tables}})


def read_csv(tmp_path: Path, text: str | bytes, **tables: Any) -> Read:
    (tmp_path / "events.csv").write_bytes(text.encode() if isinstance(text, str) else text)
    return read(section(tmp_path, **tables), tmp_path / "out")


def read_parquet(tmp_path: Path, **columns: Any) -> Read:
    rows = len(next(iter(columns.values())))
    table = {"user": ["u"] * rows, "thing": ["t"] * rows, "at": [NOON] * rows, **columns}
    pq.write_table(pa.table(table), tmp_path / "events.parquet")
    position = {"position": "place"} if "place" in columns else {}
    return read(section(tmp_path, events={**EVENTS, "file": "events.parquet", **position}), tmp_path / "out")


# --- what is read ---------------------------------------------------------------------------------------------------


def test_csv_events_make_their_own_candidates_and_queries(tmp_path: Path) -> None:
    made = read_csv(
        tmp_path, "user,thing,at\nu1,007,2024-05-06 12:00\nu1,x,2024-05-06T12:00:01.5Z\nu2,007,2024-05-07\n"
    )
    assert made.events == [
        {"query_id": "u1", "candidate_id": "007", "event_time": NOON, "position": 0, "engagement": None},
        {
            "query_id": "u1",
            "candidate_id": "x",
            "event_time": NOON.replace(second=1, microsecond=500_000),
            "position": 0,
            "engagement": None,
        },
        {
            "query_id": "u2",
            "candidate_id": "007",
            "event_time": datetime(2024, 5, 7, tzinfo=UTC),
            "position": 0,
            "engagement": None,
        },
    ]
    assert made.candidates == [{"candidate_id": "007", "row_number": 0}, {"candidate_id": "x", "row_number": 1}]
    assert made.queries == [{"query_id": "u1", "row_number": 0}, {"query_id": "u2", "row_number": 1}]
    assert made.counts.derived == ("candidates", "queries")
    assert (made.counts.rows_in, made.counts.rows_written, made.dead) == (3, 3, [])


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (pa.array([5, 2**40], pa.int64()), ["5", str(2**40)]),
        (pa.array([5, 250], pa.uint8()), ["5", "250"]),
        (pa.array([17850.0, -3.0]), ["17850", "-3"]),
        (pa.array(["a", "b"]).dictionary_encode(), ["a", "b"]),
        (pa.array([7, 8]).dictionary_encode(), ["7", "8"]),
        (pa.array(["é", "b"], pa.large_string()), ["é", "b"]),
        (pa.array(["é", "b"], pa.string_view()), ["é", "b"]),
        (pa.array([b"x", b"y"], pa.binary()), ["x", "y"]),
        (pa.array([2**64 - 1, 0], pa.uint64()), [str(2**64 - 1), "0"]),
    ],
)
def test_ids_of_any_type_become_strings(tmp_path: Path, ids: pa.Array, expected: list[str]) -> None:
    made = read_parquet(tmp_path, user=ids, thing=ids)
    assert [event["query_id"] for event in made.events] == expected
    assert [event["candidate_id"] for event in made.events] == expected
    assert [row["candidate_id"] for row in made.candidates] == expected


SECONDS = int(NOON.timestamp())


@pytest.mark.parametrize(
    "at",
    [
        pa.array([NOON], pa.timestamp("ns", tz="Europe/Berlin")),
        pa.array([NOON.replace(tzinfo=None)], pa.timestamp("s")),
        pa.array([NOON.replace(tzinfo=None)], pa.timestamp("ms")),
        pa.array([SECONDS]),
        pa.array([SECONDS], pa.uint32()),
        pa.array([SECONDS], pa.uint64()),
        pa.array([SECONDS * 1_000]),
        pa.array([SECONDS * 1_000_000]),
        pa.array([SECONDS * 1_000_000_000]),
        pa.array([float(SECONDS)]),
        pa.array([SECONDS * 1_000.0]),
        pa.array([str(SECONDS)]),
        pa.array([f"{SECONDS}.0"]),
        pa.array([f" {SECONDS * 1000} "]),
        pa.array(["2024-05-06T12:00:00Z"]),
        pa.array(["2024-05-06 12:00:00.000000999"]),
        pa.array(["2024-05-06 14:00:00+02:00"]),
        pa.array(["2024-05-06T14:00+0200"]),
        pa.array(["2024-05-06T07:00:00-05"]),
        pa.array(["2024-05-06 12:00"]).dictionary_encode(),
    ],
    ids=str,
)
def test_a_moment_in_any_spelling_is_the_same_moment(tmp_path: Path, at: pa.Array) -> None:
    assert [event["event_time"] for event in read_parquet(tmp_path, at=at).events] == [NOON]


def test_a_date_is_its_midnight(tmp_path: Path) -> None:
    made = read_parquet(tmp_path, at=pa.array([date(2024, 5, 6)]))
    assert made.events[0]["event_time"] == datetime(2024, 5, 6, tzinfo=UTC)


def test_moments_of_mixed_spelling_and_zone_are_read_row_by_row(tmp_path: Path) -> None:
    at = ["2024-05-06", "2024-02-30", "2024-05-06 14:00+02:00", "2024-05-06T12Z", "2024-05-06 25:00", "06.05.2024"]
    made = read_parquet(tmp_path, at=at)
    assert [event["event_time"] for event in made.events] == [datetime(2024, 5, 6, tzinfo=UTC), NOON, NOON]
    assert made.reasons == {"unreadable time": 3}


def test_the_told_unit_wins_over_the_obvious_one(tmp_path: Path) -> None:
    pq.write_table(pa.table({"user": ["u"], "thing": ["t"], "at": [SECONDS]}), tmp_path / "events.parquet")
    events = {**EVENTS, "file": "events.parquet", "timestamp_unit": "ms"}
    made = read(section(tmp_path, events=events), tmp_path / "out")
    assert made.events[0]["event_time"] == datetime.fromtimestamp(SECONDS / 1000, UTC)


@pytest.mark.parametrize("at", [[20240506, 20240507], [1, 2], [2024.0, 2023.0], ["20240506", "20240507"]])
def test_a_unit_that_cannot_be_told_is_not_guessed(tmp_path: Path, at: list[Any]) -> None:
    with pytest.raises(
        DataError, match=r"the unit of the moments in column 'at' cannot be told .* set .*timestamp_unit"
    ):
        read_parquet(tmp_path, at=at)


def test_the_unit_of_the_first_batch_holds_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "BATCH_ROWS", 2)
    made = read_parquet(tmp_path, at=[None, None, SECONDS, SECONDS + 1, SECONDS * 1000, SECONDS + 2])
    assert [event["event_time"].timestamp() - SECONDS for event in made.events] == [0, 1, 2]
    assert made.reasons == {"missing time": 2, "time out of range": 1}


def test_attributes_take_their_types_from_parquet(tmp_path: Path) -> None:
    pq.write_table(
        pa.table(
            {
                "thing": pa.array([1, 2]),
                "Title": pa.array(["x", None]).dictionary_encode(),
                "pages": pa.array([5, None], pa.int16()),
                "price": pa.array([1.5, None], pa.float32()),
                "exact": pa.array([Decimal("2.5"), None]),
                "new": [True, None],
                "born": pa.array([date(2024, 5, 6), None]),
                "tags": [["a", "b"], None],
                "vector": pa.array([[1, 2], [3, 4]], pa.list_(pa.int32(), 2)),
            }
        ),
        tmp_path / "things.parquet",
    )
    names = {"title": "Title"} | {n: n for n in ("pages", "price", "exact", "new", "born", "tags", "vector")}
    table = {"file": "things.parquet", "id": "thing", "columns": names}
    made = read_csv(tmp_path, "user,thing,at\nu,1,2024-05-06\n", candidates=table)
    assert made.candidates == [
        {
            "candidate_id": "1",
            "title": "x",
            "pages": 5,
            "price": 1.5,
            "exact": 2.5,
            "new": True,
            "born": datetime(2024, 5, 6, tzinfo=UTC),
            "tags": ["a", "b"],
            "vector": [1.0, 2.0],
            "row_number": 0,
        },
        {"candidate_id": "2", **dict.fromkeys(names), "vector": [3.0, 4.0], "row_number": 1},
    ]
    assert made.counts.candidates_in == 2
    assert made.counts.derived == ("queries",)


def test_attributes_of_csv_are_text_unless_typed_or_separated(tmp_path: Path) -> None:
    (tmp_path / "things.csv").write_text(
        "thing,title,year,price,ok,at,genres,vector\n"
        '1,"a, ""b""\nc",1999,1e2,Yes,2024-05-06 12:00,x|y z,1;2.5\n'
        "2,,,,,,,\n"
        "3,t,2000,+.5,0,,,3\n"
    )
    table = {
        "file": "things.csv",
        "id": "thing",
        "types": {"price": "double", "ok": "bool", "at": "timestamp", "vector": "double"},
        "separators": {"genres": "|", "vector": ";"},
        "multiline": True,
    }
    made = read_csv(tmp_path, "user,thing,at\nu,1,2024-05-06\n", candidates=table)
    assert [list(row.values()) for row in made.candidates] == [
        ["1", 'a, "b"\nc', "1999", 100.0, True, NOON, ["x", "y z"], [1.0, 2.5], 0],
        ["2", None, None, None, None, None, None, None, 1],
        ["3", "t", "2000", 0.5, False, None, None, [3.0], 2],
    ]
    schema = pq.read_schema(made.directory / "source" / "candidates" / "part-00000.parquet")
    assert [str(field.type) for field in schema][1:-1] == [
        "string",
        "string",
        "double",
        "bool",
        "timestamp[us, tz=UTC]",
        "list<element: string>",
        "list<element: double>",
    ]


def test_columns_whose_names_no_schema_can_use_are_left_out_unless_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "things.csv").write_text("thing,Title,ok\n1,t,k\n")
    made = read_csv(tmp_path, "user,thing,at\nu,1,2024-05-06\n", candidates={"file": "things.csv", "id": "thing"})
    assert made.candidates == [{"candidate_id": "1", "ok": "k", "row_number": 0}]
    assert "leaves out column 'Title'" in caplog.text


def test_a_glob_a_tab_a_byte_order_mark_and_gzip_are_read_in_the_order_of_names(tmp_path: Path) -> None:
    (tmp_path / "e-2.tsv").write_bytes(b"\xef\xbb\xbfuser\tthing\tat\nb\tt\t2024-05-06\n")
    with gzip.open(tmp_path / "e-1.csv.gz", "wb") as file:
        file.write(b"thing,at,user\r\nt,2024-05-06,a\r\n")
    pq.write_table(pa.table({"user": ["c"], "thing": ["t"], "at": ["2024-05-06"]}), tmp_path / "e-3.parquet")
    made = read(section(tmp_path, events={**EVENTS, "file": "e-*"}), tmp_path / "out")
    assert [(event["query_id"], event["position"]) for event in made.events] == [("a", 0), ("b", 0), ("c", 0)]


def test_tables_are_cut_into_files_and_batches_without_a_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "ROWS_PER_FILE", 25)
    monkeypatch.setattr(files, "BATCH_ROWS", 10)
    monkeypatch.setattr(files, "BLOCK_BYTES", 600)
    rows = "".join(f"u{n % 7},t{n},2024-05-06\n" for n in range(95))
    made = read_csv(tmp_path, "user,thing,at\n" + rows)
    assert [event["candidate_id"] for event in made.events] == [f"t{n}" for n in range(95)]
    assert {event["position"] for event in made.events} == {0}
    parts = sorted(path.name for path in (made.directory / "source" / "events").iterdir())
    assert parts == ["part-00000.parquet", "part-00001.parquet", "part-00002.parquet", "part-00003.parquet"]


@pytest.mark.parametrize(("remembered", "written"), [(100, 7), (3, 3 + 9 * 4), (0, 9 * 7)])
def test_a_derived_table_repeats_an_id_only_where_memory_would_grow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, remembered: int, written: int
) -> None:
    monkeypatch.setattr(output, "REMEMBERED_IDS", remembered)
    monkeypatch.setattr(files, "BATCH_ROWS", 10)
    made = read_csv(tmp_path, "user,thing,at\n" + "".join(f"u{n % 7},t,2024-05-06\n" for n in range(88)))
    assert [row["query_id"] for row in made.queries[:7]] == [f"u{n}" for n in range(7)]
    assert len(made.queries) == written


# --- bad rows -------------------------------------------------------------------------------------------------------

BAD_CSV = {
    "empty id": (b",t,2024-05-06\n", 1),
    "empty id, quoted": (b'"",t,2024-05-06\n', 1),
    "empty id, blank": (b"  ,t,2024-05-06\n", 1),
    "empty id, candidate": (b"u,,2024-05-06\n", 1),
    "id too long": (b"x" * 257 + b",t,2024-05-06\n", 1),
    "missing time": (b"u,t,\n", 1),
    "unreadable time": (b"u,t,yesterday\n", 1),
    "unreadable time, NaN": (b"u,t,NaN\n", 1),
    "unreadable time, None": (b"u,t,None\n", 1),
    "unreadable time, no such day": (b"u,t,2024-02-30\n", 1),
    "time out of range": (b"u,t,9999-12-31\n", 1),
    "text too long": (b"u,t," + b"1" * (MAX_TEXT_BYTES + 1) + b"\n", 1),
    "invalid UTF-8": (b"u\xff,t,2024-05-06\n", 1),
    "invalid UTF-8, cut": (b"u,caf\xc3,2024-05-06\n", 1),
    "wrong number of columns": (b"u,t\n", 1),
    "wrong number of columns, too many and no UTF-8": (b"u,t,2024-05-06,\xfe\n", 1),
}


@pytest.mark.parametrize("name", BAD_CSV)
def test_a_bad_csv_row_is_dead_lettered_and_its_neighbours_are_not(tmp_path: Path, name: str) -> None:
    bad, rows = BAD_CSV[name]
    made = read_csv(tmp_path, b"user,thing,at\nu1,t1,2024-05-06\n" + bad + b"u2,t2,2024-05-06\n")
    assert [event["query_id"] for event in made.events] == ["u1", "u2"]
    assert made.reasons == {name.split(",")[0]: rows}
    assert made.counts.rows_in == 3
    assert made.dead[0]["source"] == "events.csv"


def test_a_dead_csv_row_shows_what_was_found(tmp_path: Path) -> None:
    made = read_csv(tmp_path, b"user,thing,at\nu\xff,t,2024-05-06\nu,t\nu,,2024-05-06\n" + b"u,t,2024-05-06\n" * 9)
    assert made.dead == [
        {"reason": "wrong number of columns", "source": "events.csv", "rows": 1, "row": {"text": "u,t"}},
        {
            "reason": "invalid UTF-8",
            "source": "events.csv",
            "column": "user",
            "rows": 1,
            "row": {"at": "2024-05-06", "thing": "t", "user": "u\ufdd0\\xff"},
        },
        {
            "reason": "empty id",
            "source": "events.csv",
            "column": "thing",
            "rows": 1,
            "row": {"at": "2024-05-06", "thing": None, "user": "u"},
        },
    ]


def test_a_million_byte_title_is_dead_lettered_and_a_legal_one_is_not(tmp_path: Path) -> None:
    titles = {"a": "é" * (MAX_TEXT_BYTES // 2), "b": "x" * 1_000_000, "c": "x" * (MAX_TEXT_BYTES + 1), "d": ""}
    (tmp_path / "things.csv").write_text("thing,title\n" + "".join(f"{k},{v}\n" for k, v in titles.items()))
    table = {"file": "things.csv", "id": "thing"}
    made = read_csv(tmp_path, "user,thing,at\nu,a,2024-05-06\n", candidates=table)
    assert [row["candidate_id"] for row in made.candidates] == ["a", "d"]
    assert made.reasons == {"text too long": 2}
    assert made.dead[0]["row"]["title"].endswith("… (1000000 characters)")
    assert (made.counts.candidates_in, made.counts.events_in) == (4, 1)


@pytest.mark.parametrize(
    ("kind", "value", "reason"),
    [
        ("double", "NaN", "not a finite number"),
        ("double", "-inf", "not a finite number"),
        ("double", "1e999", "not a finite number"),
        ("double", "12 GBP", "wrong type"),
        ("double", "1,5", "wrong number of columns"),
        ("int64", "1.5", "wrong type"),
        ("int64", "0x10", "wrong type"),
        ("int64", "99999999999999999999", "wrong type"),
        ("bool", "maybe", "wrong type"),
        ("timestamp", "soon", "unreadable time"),
    ],
)
def test_an_attribute_that_is_not_of_its_type_dead_letters_its_row(
    tmp_path: Path, kind: str, value: str, reason: str
) -> None:
    good = {"double": "1", "int64": "-3.0", "bool": "no", "timestamp": "2024-05-06"}[kind]
    (tmp_path / "things.csv").write_text(f"thing,value\n1,{good}\n2,{value}\n3,\n4,{good}\n5,{good}\n")
    table = {"file": "things.csv", "id": "thing", "types": {"value": kind}}
    made = read_csv(tmp_path, "user,thing,at\nu,1,2024-05-06\n", candidates=table)
    assert [row["candidate_id"] for row in made.candidates] == ["1", "3", "4", "5"]
    assert made.reasons == {reason: 1}


def test_one_bad_element_dead_letters_its_row(tmp_path: Path) -> None:
    vectors = [[1.0], [float("nan"), 1.0], None, [], [2.0, float("inf")], [3.0]]
    pq.write_table(pa.table({"thing": list(range(6)), "vector": vectors}), tmp_path / "things.parquet")
    table = {"file": "things.parquet", "id": "thing"}
    made = read_csv(tmp_path, "user,thing,at\nu,1,2024-05-06\n", candidates=table)
    assert [(row["candidate_id"], row["vector"]) for row in made.candidates] == [
        ("0", [1.0]),
        ("2", None),
        ("3", []),
        ("5", [3.0]),
    ]
    assert made.reasons == {"not a finite number": 2}


def invalid_strings(*values: bytes) -> pa.Array:
    """Strings as a careless writer leaves them in Parquet: not checked."""
    raw = pa.array(values, pa.binary())
    return pa.Array.from_buffers(pa.string(), len(raw), raw.buffers())


@pytest.mark.parametrize(
    ("columns", "reasons", "kept"),
    [
        ({"user": ["a", None, "", "x" * 256, "x" * 257]}, {"empty id": 2, "id too long": 1}, [0, 3]),
        ({"user": ["é" * 128, "é" * 129]}, {"id too long": 1}, [0]),
        ({"user": [1.0, float("nan"), None, 1.5, float("inf"), 1e300]}, {"empty id": 2, "wrong type": 3}, [0]),
        ({"user": invalid_strings(b"ok", b"\xff", b"also \xc3\xa9")}, {"invalid UTF-8": 1}, [0, 2]),
        ({"thing": [None, "a"]}, {"empty id": 1}, [1]),
        ({"at": pa.array([NOON, None], pa.timestamp("ms"))}, {"missing time": 1}, [0]),
        (
            {"at": pa.array([1.7e9, float("nan"), None, 1.7e9, 1.7e9, 1.7e9, 1.7e9])},
            {"missing time": 2},
            [0, 3, 4, 5, 6],
        ),
        ({"at": pa.array([1.7e9, float("inf"), 1.7e9])}, {"unreadable time": 1}, [0, 2]),
        ({"at": pa.array([2**62, 0], pa.timestamp("ms"))}, {"time out of range": 1}, [1]),
        ({"at": pa.array([-(2**62), 0], pa.timestamp("us"))}, {"time out of range": 1}, [1]),
        ({"at": ["2024-05-06", "", "  ", None, "x"]}, {"missing time": 3, "unreadable time": 1}, [0]),
        ({"place": [3, None, 1]}, {"missing position": 1}, [0, 2]),
        ({"place": [3.0, float("nan"), 1.5, 2.0]}, {"not a finite number": 1, "wrong type": 1}, [0, 3]),
        ({"place": ["3", "third"]}, {"wrong type": 1}, [0]),
        # A row with several faults is one row, counted under the first.
        ({"user": [None, "a"], "thing": [None, "b"], "at": pa.array([None, NOON])}, {"empty id": 1}, [1]),
    ],
)
def test_bad_parquet_rows_are_dead_lettered(
    tmp_path: Path, columns: dict[str, Any], reasons: dict[str, int], kept: list[int]
) -> None:
    rows = len(next(iter(columns.values())))
    marked = {"thing": [str(n) for n in range(rows)], **columns} if "thing" not in columns else columns
    made = read_parquet(tmp_path, **marked)
    assert made.reasons == reasons
    assert len(made.events) == len(kept)
    if "thing" not in columns:
        assert [int(event["candidate_id"]) for event in made.events] == kept
    assert made.counts.events_in == rows
    assert {line["source"] for line in made.dead} == {"events.parquet"}


def test_a_position_is_the_columns_where_there_is_one(tmp_path: Path) -> None:
    assert [e["position"] for e in read_parquet(tmp_path, place=pa.array([9, 4], pa.int16())).events] == [9, 4]


@pytest.mark.parametrize(
    ("values", "kept", "reasons"),
    [
        (pa.array([1.5, None, 0.0]), [1.5, None, 0.0], {}),
        (pa.array([3, None, -2], pa.int16()), [3.0, None, -2.0], {}),
        (pa.array([Decimal("2.5"), None]), [2.5, None], {}),
        (pa.array([True, False, None]), [1.0, 0.0, None], {}),
        (pa.array([" 12.5 ", "", None, "1e3"]), [12.5, None, None, 1000.0], {}),
        (pa.array(["5 s", "7", "NaN", "inf", "1e999"]), [7.0], {"wrong type": 1, "not a finite number": 3}),
        (pa.array([float("nan"), 1.0, float("-inf")]), [1.0], {"not a finite number": 2}),
    ],
)
def test_engagement_is_a_number_or_missing(
    tmp_path: Path, values: pa.Array, kept: list[float | None], reasons: dict[str, int]
) -> None:
    rows = len(values)
    table = {"user": ["u"] * rows, "thing": ["t"] * rows, "at": [NOON] * rows, "watch_seconds": values}
    pq.write_table(pa.table(table), tmp_path / "events.parquet")
    events = {**EVENTS, "file": "events.parquet", "engagement": "watch_seconds"}
    made = read(section(tmp_path, events=events), tmp_path / "out")
    assert [event["engagement"] for event in made.events] == kept
    assert made.reasons == reasons
    assert {line["column"] for line in made.dead} <= {"watch_seconds"}


def test_engagement_of_csv_is_read_from_text(tmp_path: Path) -> None:
    text = "user,thing,at,stars\nu,a,2024-05-06,4.5\nu,b,2024-05-06,\nu,c,2024-05-06,many\n"
    made = read_csv(tmp_path, text, events={**EVENTS, "engagement": "stars"})
    assert [(event["candidate_id"], event["engagement"]) for event in made.events] == [("a", 4.5), ("b", None)]
    assert (made.reasons, made.dead[0]["column"]) == ({"wrong type": 1}, "stars")


def test_all_rows_bad_is_for_the_share_check_to_stop(tmp_path: Path) -> None:
    made = read_csv(tmp_path, "user,thing,at\n,,\n,,\n")
    assert (made.events, made.candidates, made.queries, made.reasons) == ([], [], [], {"empty id": 2})


# --- what is refused as a whole -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("events", "error"),
    [
        (
            {"file": "nothing.csv"},
            r"\[data.tables.events\] file = 'nothing.csv' names no file in .*: there are events.csv",
        ),
        ({"file": "*.parquet"}, r"'\*.parquet' names no file"),
        ({"file": "notes.txt"}, r"notes.txt is neither .parquet nor .csv"),
        (
            {"query": "uid"},
            r"events.csv has no column 'uid', which \[data.tables.events\] names; it has at, thing, user",
        ),
        ({"timestamp": "when"}, "has no column 'when'"),
        ({"position": "line"}, "has no column 'line'"),
        ({"engagement": "stars"}, "has no column 'stars'"),
    ],
)
def test_a_missing_file_or_column_is_an_error_that_lists_what_there_is(
    tmp_path: Path, events: dict[str, str], error: str
) -> None:
    if events.get("file") == "notes.txt":
        (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DataError, match=error):
        read_csv(tmp_path, "user,thing,at\n", events={**EVENTS, **events})


@pytest.mark.parametrize(
    ("table", "error"),
    [
        ({"columns": {"title": "name"}}, r"things.csv has no column 'name', which \[data.tables.candidates\] names"),
        ({"id": "key"}, "has no column 'key'"),
        ({"columns": {"Title": "title"}}, r"\[data.tables.candidates\] columns: 'Title' is no column name"),
        ({"columns": {"candidate_id": "title"}}, "'candidate_id' is no column name"),
        ({"types": {"name": "double"}}, r"types: there is no column 'name'; there are \['title'\]"),
        ({"separators": {"name": "|"}}, "separators: there is no column 'name'"),
        ({"separators": {"title": ""}}, "separators: title = '' separates nothing"),
    ],
)
def test_a_mapping_that_contradicts_the_file_is_an_error(tmp_path: Path, table: dict[str, Any], error: str) -> None:
    (tmp_path / "things.csv").write_text("thing,title\n1,t\n")
    with pytest.raises((ConfigError, DataError), match=error):
        read_csv(tmp_path, "user,thing,at\n", candidates={"file": "things.csv", "id": "thing", **table})


@pytest.mark.parametrize("table", ["events", "candidates"])
def test_a_table_of_another_source_is_an_error_that_says_what_to_set(tmp_path: Path, table: str) -> None:
    (tmp_path / "things.csv").write_text("thing\n1\n")
    mapping = {"events": EVENTS, "candidates": {"file": "things.csv", "id": "thing"}}
    where = rf"\[data.tables.{table}\]"
    fileless = {**mapping, table: {k: v for k, v in mapping[table].items() if k != "file"}}
    with pytest.raises(
        ConfigError, match=rf"^{where} needs `file`: the name, below \[data\] path, of a Parquet or CSV"
    ):
        read_csv(tmp_path, "user,thing,at\n", **fileless)
    both = {**mapping, table: {**mapping[table], "table": "p.d.t"}}
    with pytest.raises(
        ConfigError, match=rf"^{where} has table = 'p.d.t', but source = 'tables' reads files: set `file`"
    ):
        read_csv(tmp_path, "user,thing,at\n", **both)


@pytest.mark.parametrize(
    ("user", "error"),
    [(pa.array([[1]]), "column 'user' is list<element: int64>"), (pa.array([True]), "column 'user' is bool")],
)
def test_an_id_column_of_an_impossible_type_is_an_error(tmp_path: Path, user: pa.Array, error: str) -> None:
    with pytest.raises(DataError, match=error):
        read_parquet(tmp_path, user=user)


def test_an_attribute_of_an_impossible_type_is_an_error_where_it_is_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"thing": ["1"], "extra": [{"a": 1}]}), tmp_path / "things.parquet")
    table = {"file": "things.parquet", "id": "thing"}
    assert read_csv(tmp_path, "user,thing,at\nu,1,2024-05-06\n", candidates=table).candidates == [
        {"candidate_id": "1", "row_number": 0}
    ]
    with pytest.raises(DataError, match=r"'extra' is struct<a: int64>, which no feature takes"):
        read_csv(tmp_path, "user,thing,at\n", candidates={**table, "columns": {"extra": "extra"}})


@pytest.mark.parametrize("name", ["events.csv", "events.parquet", "events.csv.gz"])
def test_a_file_that_cannot_be_read_is_an_error_that_names_it(tmp_path: Path, name: str) -> None:
    whole = gzip.compress(b"user,thing,at\n" + b"".join(b"u%d,t,2024-05-06\n" % n for n in range(100_000)))
    content = {"events.csv": b"", "events.parquet": b"PAR1 no", "events.csv.gz": whole[: len(whole) // 2]}[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"{name} cannot be read"):
        read(section(tmp_path, events={**EVENTS, "file": name}), tmp_path / "out")


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"source": "tables"}, DataError, r"\[data\] path is not set"),
        ({"source": "mpd", "path": "/nowhere"}, DataError, "there is no folder /nowhere; correct it or pass --data"),
        ({"source": "tables", "path": "."}, ConfigError, r"needs the section \[data.tables.events\]"),
    ],
)
def test_a_source_without_its_settings_is_an_error(
    tmp_path: Path, values: dict[str, str], error: type[Exception], message: str
) -> None:
    values = {**values, **({"path": str(tmp_path)} if values.get("path") == "." else {})}
    if values["source"] == "tables" and "path" not in values:
        values = {**values, "tables": {"events": EVENTS}}  # type: ignore[dict-item]
    with DeadLetters(tmp_path / "d.jsonl") as letters, pytest.raises(error, match=message):
        read_source(DataSection.model_validate(values), tmp_path / "source", letters)


def test_no_events_at_all_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no events"):
        read_csv(tmp_path, "user,thing,at\n")


def test_counts_that_do_not_add_up_are_a_defect_and_stop() -> None:
    counts = output.SourceCounts(5, 3, 2, 2, 0, 9, ("queries",), {"empty id": 2})
    counts.check()
    with pytest.raises(DataError, match="7 rows were read, but 5 written and 1 dead-lettered: this is a defect"):
        output.SourceCounts(5, 3, 2, 2, 0, 9, ("queries",), {"empty id": 1}).check()


# --- real data ------------------------------------------------------------------------------------------------------


def test_online_retail_is_read_whole(tmp_path: Path) -> None:
    config = load_config(CONFIGS / "online_retail.toml", {"data": {"path": str(real_data("online-retail-ii"))}})
    with DeadLetters(tmp_path / "d.jsonl") as letters:
        counts = read_source(config.data, tmp_path / "source", letters)
    assert (counts.events_in, counts.events_written, counts.candidates_written) == (1_014_945, 1_014_945, 4_707)
    assert counts.dead_lettered == {}
    names = pq.read_schema(tmp_path / "source" / "candidates" / "part-00000.parquet").names
    assert names == ["candidate_id", "title", "row_number"]  # nothing that knows the future


def test_movielens_is_read_whole(tmp_path: Path) -> None:
    config = load_config(CONFIGS / "movielens.toml", {"data": {"path": str(real_data("ml-latest-small"))}})
    made = read(config.data, tmp_path)
    assert (made.counts.events_in, made.counts.events_written, made.counts.candidates_in) == (100_836, 100_836, 9_742)
    assert len({row["query_id"] for row in made.queries}) == 610
    assert made.candidates[0]["genres"] == ["Adventure", "Animation", "Children", "Comedy", "Fantasy"]
    assert made.events[0]["event_time"] == datetime(2000, 7, 30, 18, 45, 3, tzinfo=UTC)
    assert made.dead == []
