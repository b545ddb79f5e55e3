"""Whatever mixture of good and bad rows a source holds: each is written or dead-lettered, and no good one is lost."""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lockstep.config import DataSection
from tests.unit.sources_harness import Read, read

FAST = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
MOMENT = 1_493_424_000
# Good and bad values of each field; text with line breaks, quotes, separators and NUL included.
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufdd0"), min_size=1, max_size=8)
GOOD_ID = TEXT.map(lambda text: f"i{text}")
BAD_ID = st.sampled_from(["", " ", None, "x" * 300])
GOOD_TIME = st.integers(MOMENT, MOMENT + 10**6)
BAD_TIME = st.sampled_from([None, 10**17, -(10**17)])
ROW = st.one_of(
    st.tuples(st.just(True), GOOD_ID, GOOD_ID, GOOD_TIME),
    st.tuples(st.just(False), BAD_ID, GOOD_ID, GOOD_TIME),
    st.tuples(st.just(False), GOOD_ID, BAD_ID, GOOD_TIME),
    st.tuples(st.just(False), GOOD_ID, GOOD_ID, BAD_TIME),
)
TABLES = {"query": "user", "candidate": "thing", "timestamp": "at", "timestamp_unit": "s"}


def read_events(folder: Path, name: str, **mapping: Any) -> Read:
    values = {"source": "tables", "path": str(folder), "tables": {"events": {"file": name, **TABLES, **mapping}}}
    return read(DataSection.model_validate(values), folder / "out")


def check(made: Read, rows: list[tuple[bool, Any, Any, Any]]) -> None:
    good = [(user, thing, at) for is_good, user, thing, at in rows if is_good]
    assert [(e["query_id"], e["candidate_id"], int(e["event_time"].timestamp())) for e in made.events] == good
    assert made.counts.events_in == len(rows)
    assert sum(made.reasons.values()) == len(rows) - len(good)


@FAST
@given(st.lists(ROW, min_size=1, max_size=30))
def test_parquet_rows_are_conserved(rows: list[tuple[bool, Any, Any, Any]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        _, users, things, moments = zip(*rows, strict=True)
        columns = {"user": pa.array(users, pa.string()), "thing": pa.array(things, pa.string())}
        pq.write_table(pa.table({**columns, "at": pa.array(moments, pa.int64())}), Path(folder, "e.parquet"))
        check(read_events(Path(folder), "e.parquet"), rows)


RAGGED = st.sampled_from([b"one\n", b"one,two\n", b"a,b,1493424000,d\n", b"a,b,\xff\n", b"\xfe,b,1493424000\n"])


def quoted(value: Any) -> bytes:
    return b"" if value is None else b'"' + str(value).replace('"', '""').encode() + b'"'


def csv_of(lines: list[Any]) -> bytes:
    content = [
        line if isinstance(line, bytes) else b",".join(quoted(value) for value in line[1:]) + b"\n" for line in lines
    ]
    return b"user,thing,at\n" + b"".join(content)


def rows_of(lines: list[Any]) -> list[Any]:
    return [(False, None, None, None) if isinstance(line, bytes) else line for line in lines]


def breaks_line(line: Any) -> bool:
    return not isinstance(line, bytes) and any(character in str(line[1:3]) for character in ("\\n", "\\r"))


@FAST
@given(st.lists(st.one_of(ROW, RAGGED), min_size=1, max_size=30))
def test_csv_rows_are_conserved_where_values_may_hold_line_breaks(lines: list[Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "e.csv").write_bytes(csv_of(lines))
        check(read_events(Path(folder), "e.csv", multiline=True), rows_of(lines))


@FAST
@given(st.lists(st.one_of(ROW, RAGGED).filter(lambda line: not breaks_line(line)), min_size=1, max_size=30))
def test_csv_rows_are_conserved(lines: list[Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "e.csv").write_bytes(csv_of(lines))
        check(read_events(Path(folder), "e.csv"), rows_of(lines))


PIECE = st.sampled_from(
    [b'"', b'""', b",", b"\n", b"\r", b"\r\n", b"a", b"\xff", b"u,t,1493424000", b'"u","t",1493424000']
)


@settings(FAST, max_examples=300)
@given(st.lists(PIECE, max_size=40))
def test_of_any_text_every_line_is_counted_once_and_a_sound_line_is_read(pieces: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        text = b"".join(pieces) + b"\nlast,t,1493424000\n"
        Path(folder, "e.csv").write_bytes(b"user,thing,at\n" + text)
        made = read_events(Path(folder), "e.csv")
    assert made.counts.events_in == sum(1 for line in re.split(b"\r\n|\r|\n", text) if line)
    assert made.events[-1]["query_id"] == "last"
    assert not any(character in event["query_id"] for event in made.events for character in "\r\n")


TRACK = st.one_of(
    GOOD_ID.map(lambda uri: (True, {"track_uri": uri, "track_name": uri})),
    st.sampled_from([None, 5, {}, {"track_uri": ""}, {"track_uri": 5}, {"track_uri": "x" * 300}]).map(
        lambda t: (False, t)
    ),
    st.just((False, {"track_uri": "t", "track_name": "x" * 10_001})),
)
PLAYLIST = st.tuples(
    st.sampled_from([(True, {})] * 3 + [(False, {"pid": None}), (False, {"pid": "x"}), (False, {"modified_at": None})]),
    st.lists(TRACK, max_size=5),
)


@FAST
@given(st.lists(PLAYLIST, min_size=1, max_size=8), st.integers(0, 40))
def test_playlist_rows_are_conserved(playlists: list[Any], cut: int) -> None:
    made_of = [
        {"pid": n, "name": "n", "modified_at": MOMENT, "tracks": [track for _, track in tracks], **change}
        for n, ((_, change), tracks) in enumerate(playlists)
    ]
    text = json.dumps({"info": {}, "playlists": made_of})
    with tempfile.TemporaryDirectory() as folder:
        # A cut within the last playlist costs exactly that one; no cut costs none.
        last = json.dumps(made_of[-1])
        cut = min(cut, len(last))
        text = text if cut == 0 else text[: len(text) - 2 - cut]
        Path(folder, "mpd.slice.0-0.json").write_text(text)
        made = read(DataSection(source="mpd", path=folder), Path(folder, "out"))
    whole = playlists if cut == 0 else playlists[:-1]
    rows = sum(1 + len(tracks) for _, tracks in whole)
    assert made.counts.rows_in == rows + (cut > 0)
    good = [
        (str(n), track["track_uri"])
        for n, ((is_good, _), tracks) in enumerate(whole)
        for good_track, track in tracks
        if is_good and good_track
    ]
    assert [(event["query_id"], event["candidate_id"]) for event in made.events] == good
