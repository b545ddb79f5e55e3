"""The dead-letter file: readable whatever is in a row, and counted."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from dataflow.dead_letters import MAX_SHOWN, DeadLetters, Reason
from lockstep.config import DataSection
from lockstep.errors import TooManyBadRowsError


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_row_is_written_with_its_reason_source_column_and_count(tmp_path: Path) -> None:
    path = tmp_path / "new" / "dead_letters.jsonl"
    with DeadLetters(path) as letters:
        letters.add(Reason.EMPTY_ID, {"id": "", "title": "é😀"}, "a.csv", column="id")
        letters.add("my own reason", {"pid": 1}, "b.json", 51)
        letters.add(Reason.EMPTY_ID, {}, "a.csv")
    assert lines(path) == [
        {"reason": "empty id", "source": "a.csv", "column": "id", "rows": 1, "row": {"id": "", "title": "é😀"}},
        {"reason": "my own reason", "source": "b.json", "rows": 51, "row": {"pid": 1}},
        {"reason": "empty id", "source": "a.csv", "rows": 1, "row": {}},
    ]
    assert letters.counts == {"empty id": 2, "my own reason": 51}
    assert letters.total == 53


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("x" * MAX_SHOWN, "x" * MAX_SHOWN),
        ("x" * 1_000_000, "x" * MAX_SHOWN + "… (1000000 characters)"),
        (b"caf\xe9", "caf\\xe9"),
        (b"y" * 500, "y" * MAX_SHOWN + "… (500 bytes)"),
        ("\udcff", "\\udcff"),
        (float("nan"), "nan"),
        (float("-inf"), "-inf"),
        ([1.5, None, True, "a"], [1.5, None, True, "a"]),
        (list(range(1000)), [*range(MAX_SHOWN), "… (1000 values)"]),
        ({"deep": {"text": "z" * 300}}, {"deep": {"text": "z" * MAX_SHOWN + "… (300 characters)"}}),
        (datetime(2020, 1, 2, tzinfo=UTC), "2020-01-02 00:00:00+00:00"),
        ("a\nb\x85c\u2028d\u2029e\x1ef", "a\nb\x85c\u2028d\u2029e\x1ef"),
    ],
)
def test_every_value_can_be_shown(tmp_path: Path, value: Any, shown: Any) -> None:
    with DeadLetters(tmp_path / "d.jsonl") as letters:
        letters.add("r", {"value": value}, "s")
    assert lines(tmp_path / "d.jsonl")[0]["row"] == {"value": shown}


def bad_text() -> pa.Array:
    offsets = pa.py_buffer(b"\0\0\0\0\1\0\0\0\3\0\0\0")
    return pa.Array.from_buffers(pa.string(), 2, [None, offsets, pa.py_buffer(b"a\xffb")])


def test_a_batch_is_written_row_by_row(tmp_path: Path) -> None:
    batch = pa.RecordBatch.from_pydict(
        {
            "id": bad_text(),
            "kind": pa.array(["x", "y"]).dictionary_encode(),
            "time": pa.array([0, 2**62], pa.timestamp("us", tz="UTC")),
            "tags": pa.array([["p"], None]),
        }
    )
    with DeadLetters(tmp_path / "d.jsonl") as letters:
        letters.add_batch(Reason.INVALID_UTF8, batch, "a.parquet", column="id", rows=[1, 6])
        letters.add_batch(Reason.DUPLICATE_EVENT, pa.Table.from_batches([batch.select(["kind"])] * 2), "events")
    first, second, *rest = lines(tmp_path / "d.jsonl")
    assert first["row"] == {"id": "a", "kind": "x", "time": "1970-01-01 00:00:00.000000Z", "tags": ["p"]}
    assert (second["row"]["id"], second["row"]["tags"], second["rows"]) == ("\\xffb", None, 6)
    assert second["row"]["time"]  # a moment beyond Python's calendar is shown somehow
    assert [line["row"]["kind"] for line in rest] == ["x", "y", "x", "y"]
    assert letters.counts == {"invalid UTF-8": 7, "duplicate event": 4}


def test_a_struct_with_bad_text_is_shown(tmp_path: Path) -> None:
    struct = pa.StructArray.from_arrays([bad_text()], ["name"])
    with DeadLetters(tmp_path / "d.jsonl") as letters:
        letters.add_batch("r", pa.RecordBatch.from_arrays([struct], ["playlist"]), "s")
    assert [line["row"] for line in lines(tmp_path / "d.jsonl")] == [
        {"playlist": {"name": "a"}},
        {"playlist": {"name": "\\xffb"}},
    ]


def test_an_earlier_attempts_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text("old\n")
    with DeadLetters(tmp_path / "d.jsonl") as letters:
        assert letters.total == 0
    assert (tmp_path / "d.jsonl").read_bytes() == b""


def test_a_letter_stands_for_at_least_one_row(tmp_path: Path) -> None:
    with DeadLetters(tmp_path / "d.jsonl") as letters, pytest.raises(ValueError, match="at least one row, found 0"):
        letters.add("r", {}, "s", 0)


def test_the_share_of_bad_rows_is_checked_against_the_configuration(tmp_path: Path) -> None:
    with DeadLetters(tmp_path / "d.jsonl") as letters:
        letters.check_share(DataSection(bad_rows_max_share=0.0), 0)
        letters.add(Reason.EMPTY_ID, {}, "s", 3)
        letters.add(Reason.NO_TRACKS, {}, "s", 7)
        letters.check_share(DataSection(bad_rows_max_share=0.1), 100)
        with pytest.raises(TooManyBadRowsError) as caught:
            letters.check_share(DataSection(bad_rows_max_share=0.099), 100)
        # What is said to be in the file is in it.
        assert len(lines(tmp_path / "d.jsonl")) == 2
    assert str(caught.value).startswith(
        "10 of 100 rows are bad (10.00%; 7 playlist without tracks, 3 empty id), and [data] bad_rows_max_share "
        "allows 9.90%"
    )
    assert caught.value.reasons == {"empty id": 3, "playlist without tracks": 7}
