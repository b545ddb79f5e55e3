"""Playlist slices: what is read of a sound one, and what is saved of a damaged one."""

from __future__ import annotations

import gzip
import json
import weakref
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from dataflow.dead_letters import DeadLetters
from dataflow.sources import mpd, read_source
from lockstep.config import DataSection, load_config
from lockstep.errors import DataError
from tests.unit.sources_harness import CONFIGS, Read, read, real_data

MADE = 1_493_424_000  # 2017-04-29


def track(name: str, pos: int | None = 0, **other: Any) -> dict[str, Any]:
    return {
        "pos": pos,
        "track_uri": f"spotify:track:{name}",
        "track_name": f"Song {name}",
        "artist_uri": "spotify:artist:x",
        "artist_name": "Björk",
        "album_uri": "spotify:album:x",
        "album_name": "Début",
        "duration_ms": 1000,
        **other,
    }


def playlist(pid: Any, *tracks: Any, **other: Any) -> dict[str, Any]:
    listed = list(tracks or (track("a"), track("b", 1)))
    fixed = {"name": f"list {pid}", "collaborative": "false", "pid": pid, "modified_at": MADE, "num_tracks": 2}
    return {**fixed, "tracks": listed, **other}


def slice_text(*playlists: Any) -> str:
    return json.dumps({"info": {"slice": "0-999"}, "playlists": list(playlists)}, ensure_ascii=False, indent=1)


def read_slices(tmp_path: Path, **slices: str | bytes) -> Read:
    """Slices by the range in their name, `_` for `-`."""
    folder = tmp_path / "mpd"
    folder.mkdir()
    for key, content in slices.items():
        name = f"mpd.slice.{key.removeprefix('s').replace('_', '-')}.json"
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return read(DataSection(source="mpd", path=str(folder)), tmp_path / "out")


def ids(made: Read) -> list[tuple[str, str]]:
    return [(event["query_id"], event["candidate_id"].removeprefix("spotify:track:")) for event in made.events]


def test_a_sound_slice_is_read_whole(tmp_path: Path) -> None:
    first = playlist(0, track("a"), track("b", 7), track("a", 2), name="Übung 🎧", description="déjà vu")
    made = read_slices(tmp_path, s0_1=slice_text(first, playlist(1, track("c", None), track("d", None))))
    moment = datetime(2017, 4, 29, tzinfo=UTC)
    assert ids(made) == [("0", "a"), ("0", "b"), ("0", "a"), ("1", "c"), ("1", "d")]
    # `pos` orders the tracks, their order in the list where there is none.
    assert [event["position"] for event in made.events] == [0, 7, 2, 0, 1]
    assert {event["event_time"] for event in made.events} == {moment}
    assert made.queries == [
        {"query_id": "0", "title": "Übung 🎧", "description": "déjà vu", "collaborative": "false", "row_number": 0},
        {"query_id": "1", "title": "list 1", "description": None, "collaborative": "false", "row_number": 1},
    ]
    assert [row["candidate_id"][-1] for row in made.candidates] == ["a", "b", "c", "d"]
    assert made.candidates[1] == {
        "candidate_id": "spotify:track:b",
        "track_name": "Song b",
        "artist_uri": "spotify:artist:x",
        "artist_name": "Björk",
        "album_uri": "spotify:album:x",
        "album_name": "Début",
        "duration_ms": 1000,
        "row_number": 1,
    }
    assert (made.counts.queries_in, made.counts.events_in, made.counts.rows_in, made.dead) == (2, 5, 7, [])


def test_slices_are_read_in_the_order_of_their_numbers_plain_or_packed(tmp_path: Path) -> None:
    folder = tmp_path / "in" / "data"
    folder.mkdir(parents=True)
    (folder / "mpd.slice.1000-1999.json").write_text(slice_text(playlist(1000)))
    (folder / "mpd.slice.0-999.json.gz").write_bytes(gzip.compress(slice_text(playlist(0)).encode()))
    (folder / "mpd.slice.200000-200999.json").write_text(slice_text(playlist(200_000)))
    made = read(DataSection(source="mpd", path=str(tmp_path / "in")), tmp_path / "out")
    assert [row["query_id"] for row in made.queries] == ["0", "1000", "200000"]


# The fields of the published data set, all of them, in its order.
PUBLISHED = r"""{
    "info": {"generated_on": "2017-12-03 08:41:42.057563", "slice": "0-999", "version": "v1"},
    "playlists": [{
        "name": "\u0645\u0648\u0633\u064a\u0642\u0649 \ud83c\udfa7 e\u0301t\u00e9", "collaborative": "true", "pid": 0,
        "modified_at": 1493424000, "num_tracks": 2, "num_albums": 1, "num_followers": 41,
        "tracks": [
            {"pos": 0, "artist_name": "A", "track_uri": "spotify:track:a", "artist_uri": "spotify:artist:a",
             "track_name": "\u591c", "album_uri": "spotify:album:a", "duration_ms": 226863, "album_name": "L"},
            {"pos": 1, "artist_name": "A", "track_uri": "spotify:track:a", "artist_uri": "spotify:artist:a",
             "track_name": "\u591c", "album_uri": "spotify:album:a", "duration_ms": 226863, "album_name": "L"}
        ],
        "num_edits": 6, "duration_ms": 453726, "num_artists": 1, "description": "d\u00e9j\u00e0"
    }]
}"""


def test_the_published_fields_are_read_but_for_those_that_tell_the_future(tmp_path: Path) -> None:
    made = read_slices(tmp_path, s0_999=PUBLISHED)
    assert made.queries == [
        {
            "query_id": "0",
            "title": "موسيقى 🎧 e\u0301té",  # as it was typed: nothing is normalised
            "description": "déjà",
            "collaborative": "true",
            "row_number": 0,
        }
    ]
    assert [(event["candidate_id"], event["position"]) for event in made.events] == [
        ("spotify:track:a", 0),
        ("spotify:track:a", 1),
    ]
    assert [(row["track_name"], row["duration_ms"]) for row in made.candidates] == [("夜", 226863)]
    assert made.dead == []


def test_a_thousand_slices_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for first in range(0, 1_000_000, 1_000):
        (tmp_path / f"mpd.slice.{first}-{first + 999}.json").touch()
    names = [path.name for path in mpd.find_slices(tmp_path)]
    assert names == [f"mpd.slice.{first}-{first + 999}.json" for first in range(0, 1_000_000, 1_000)]


@pytest.mark.parametrize("damaged", [False, True])
def test_a_slice_is_let_go_before_the_next_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damaged: bool
) -> None:
    slice_bytes, write, held = mpd._slice_bytes, mpd._write, []

    def opened(path: Path) -> Any:
        assert [reference() for reference in held] == [None] * len(held)
        return slice_bytes(path)

    def written(playlists: pa.StructArray, *rest: Any) -> int:
        held.append(weakref.ref(playlists))
        return write(playlists, *rest)

    monkeypatch.setattr(mpd, "_slice_bytes", opened)
    monkeypatch.setattr(mpd, "_write", written)
    cut = -20 if damaged else None
    made = read_slices(tmp_path, **{f"s{n}_{n}": slice_text(playlist(n), playlist(n + 10))[:cut] for n in range(3)})
    assert (len(held), len(made.queries)) == (3, 3 if damaged else 6)


def test_a_folder_without_slices_is_an_error_that_lists_what_there_is(tmp_path: Path) -> None:
    (tmp_path / "songs.json").write_text("{}")
    with pytest.raises(DataError, match=r"holds no playlist slices .*: there are songs.json"):
        mpd.find_slices(tmp_path)


BAD_PLAYLISTS: dict[str, tuple[Any, str, int]] = {
    "no pid": (playlist(None), "empty id", 3),
    "no tracks": ({**playlist(5), "tracks": []}, "playlist without tracks", 1),
    "null tracks": ({**playlist(5), "tracks": None}, "playlist without tracks", 1),
    "no moment": (playlist(5, modified_at=None), "missing time", 3),
    "a moment of milliseconds": (playlist(5, modified_at=MADE * 1000), "time out of range", 3),
    "a megabyte of title": (playlist(5, name="x" * 1_000_000), "text too long", 3),
    "a long description": (playlist(5, description="x" * 10_001), "text too long", 3),
    "null": (None, "empty id", 1),
    # What JSON or the types refuse is found playlist by playlist.
    "a pid of text": (playlist("five"), "wrong type", 3),
    "a pid that is true": (playlist(True), "wrong type", 3),
    "a fractional pid": (playlist(5.5), "wrong type", 3),
    "a huge pid": (playlist(2**70), "wrong type", 3),
    "collaborative by number": (playlist(5, collaborative=1), "wrong type", 3),
    "a numeric name": (playlist(5, name=17), "wrong type", 3),
    "a moment of text": (playlist(5, modified_at="2017"), "wrong type", 3),
    "a moment that is NaN": (playlist(5, modified_at=float("nan")), "wrong type", 3),
    "tracks of text": ({**playlist(5), "tracks": "abc"}, "wrong type", 1),
    "tracks that are an object": ({**playlist(5), "tracks": {"a": 1}}, "wrong type", 1),
    "a number": (17, "wrong type", 1),
    "a list": ([playlist(5)], "wrong type", 1),
    "half a character": (playlist(5, name="\\ud83d"), "invalid UTF-8", 3),
}


@pytest.mark.parametrize("name", BAD_PLAYLISTS)
def test_a_bad_playlist_is_dead_lettered_with_its_tracks_and_its_neighbours_are_not(tmp_path: Path, name: str) -> None:
    bad, reason, rows = BAD_PLAYLISTS[name]
    text = slice_text(playlist(1), bad, playlist(2)).replace("\\\\ud83d", "\\ud83d")
    made = read_slices(tmp_path, s0_999=text)
    assert ids(made) == [("1", "a"), ("1", "b"), ("2", "a"), ("2", "b")]
    assert [row["query_id"] for row in made.queries] == ["1", "2"]
    assert made.reasons == {reason: rows}
    assert made.counts.rows_in == 6 + rows
    assert [(line["rows"], line["source"]) for line in made.dead] == [(rows, "mpd.slice.0-999.json")]
    assert len(json.dumps(made.dead)) < 5_000


BAD_TRACKS: dict[str, tuple[Any, str]] = {
    "no uri": (track("x", track_uri=None), "empty id"),
    "an empty uri": (track("x", track_uri=""), "empty id"),
    "a long uri": (track("x" * 300), "id too long"),
    "a megabyte of name": (track("x", track_name="x" * 1_000_000), "text too long"),
    "a long artist": (track("x", artist_name="x" * 10_001), "text too long"),
    "null": (None, "empty id"),
    "a numeric uri": (track("x", track_uri=5), "wrong type"),
    "a numeric album": (track("x", album_name=5), "wrong type"),
    "a duration of text": (track("x", duration_ms="3 min"), "wrong type"),
    "a duration that is NaN": (track("x", duration_ms=float("nan")), "wrong type"),
    "a fractional position": (track("x", pos=1.5), "wrong type"),
    "a number": (17, "wrong type"),
    "half a character": (track("x", track_name="\\ud83d"), "invalid UTF-8"),
}


@pytest.mark.parametrize("name", BAD_TRACKS)
def test_a_bad_track_is_dead_lettered_alone(tmp_path: Path, name: str) -> None:
    bad, reason = BAD_TRACKS[name]
    text = slice_text(playlist(1, track("a"), bad, track("b", 2)), playlist(2)).replace("\\\\ud83d", "\\ud83d")
    made = read_slices(tmp_path, s0_999=text)
    assert ids(made) == [("1", "a"), ("1", "b"), ("2", "a"), ("2", "b")]
    assert [event["position"] for event in made.events] == [0, 2, 0, 1]
    assert made.reasons == {reason: 1}
    assert (made.counts.events_in, made.counts.queries_in) == (5, 2)


def test_collaborative_may_be_a_boolean(tmp_path: Path) -> None:
    made = read_slices(tmp_path, s0_1=slice_text(playlist(0, collaborative=True), playlist(1, collaborative=False)))
    assert [row["collaborative"] for row in made.queries] == ["true", "false"]
    assert made.dead == []


def test_bytes_that_are_no_utf8_cost_only_the_texts_that_hold_them(tmp_path: Path) -> None:
    text = slice_text(playlist(1, name="AAA"), playlist(2, track("a"), track("b", track_name="BBB")), playlist(3))
    made = read_slices(tmp_path, s0_999=text.encode().replace(b"AAA", b"\xff\xfe").replace(b"BBB", b"caf\xe9"))
    assert ids(made) == [("2", "a"), ("3", "a"), ("3", "b")]
    assert made.reasons == {"invalid UTF-8": 4}  # a playlist with two tracks, and a track
    assert [(line["column"], line["rows"]) for line in made.dead] == [("name", 3), ("track_name", 1)]
    assert made.dead[1]["row"]["track_name"] == "caf\\udce9"


# --- damaged slices -------------------------------------------------------------------------------------------------

THREE = slice_text(playlist(0), playlist(1), playlist(2))


def test_a_slice_cut_at_any_byte_saves_its_whole_playlists_and_counts_the_rest(tmp_path: Path) -> None:
    data = THREE.encode()
    ends = [data.index(b'"pid": %d' % pid) for pid in range(3)]
    for cut in (*range(0, len(data) - 3, 97), len(data) - 4):
        folder = tmp_path / str(cut)
        folder.mkdir()
        made = read_slices(folder, s0_2=data[:cut])
        saved = len(made.queries)
        assert saved <= sum(cut > end for end in ends)
        assert [row["query_id"] for row in made.queries] == ["0", "1", "2"][:saved]
        assert len(made.events) == 2 * saved
        # The name promises three playlists: those not seen are lost; the end of the list itself may be.
        assert made.reasons == {"truncated slice": max(1, 3 - saved)}, cut


def test_a_cut_slice_whose_name_promises_nothing_loses_at_least_one(tmp_path: Path) -> None:
    folder = tmp_path / "mpd"
    folder.mkdir()
    (folder / "my.slice.one.json").write_text(THREE[: len(THREE) // 2])
    made = read(DataSection(source="mpd", path=str(folder)), tmp_path / "out")
    assert [row["query_id"] for row in made.queries] == ["0"]
    assert made.reasons == {"truncated slice": 1}
    assert made.dead[0]["row"]["playlists_before"] == 1
    assert made.dead[0]["row"]["text"].startswith('{\n   "name": "list 1"')


@pytest.mark.parametrize("keep", [0.99, 0.5, 0.01])
def test_a_cut_gzip_file_is_read_as_far_as_it_goes(tmp_path: Path, keep: float) -> None:
    many = slice_text(*(playlist(n, *(track(f"{n}-{m}-{n * m % 977}", m) for m in range(30))) for n in range(200)))
    folder = tmp_path / "mpd"
    folder.mkdir()
    packed = gzip.compress(many.encode())
    (folder / "mpd.slice.0-199.json.gz").write_bytes(packed[: int(len(packed) * keep)])
    made = read(DataSection(source="mpd", path=str(folder)), tmp_path / "out")
    saved = len(made.queries)
    assert saved >= 150 * keep - 20
    assert saved < 200
    assert made.reasons == {"truncated slice": 200 - saved}
    assert len(made.events) == 30 * saved


def test_a_playlist_that_is_no_json_is_skipped_and_the_next_ones_are_read(tmp_path: Path) -> None:
    made = read_slices(tmp_path, s0_2=THREE.replace('"pid": 1,', '"pid": ,'))
    assert [row["query_id"] for row in made.queries] == ["0", "2"]
    assert made.reasons == {"invalid JSON": 1}
    assert made.dead[0]["row"]["text"].startswith('{\n   "name": "list 1"')


@pytest.mark.parametrize("content", ["", "   ", "[]", "17", '{"info": {}}', '{"playlists": null}', '{"playlists": 5}'])
def test_a_slice_without_a_list_of_playlists_is_lost_as_a_whole(tmp_path: Path, content: str) -> None:
    made = read_slices(tmp_path, s0_9=content, s10_10=slice_text(playlist(10)))
    assert [row["query_id"] for row in made.queries] == ["10"]
    assert made.reasons == {"truncated slice": 10}


def test_an_empty_slice_is_no_fault(tmp_path: Path) -> None:
    made = read_slices(tmp_path, s0_9=slice_text(), s10_10=slice_text(playlist(10)))
    assert (len(made.queries), made.dead) == (1, [])


def test_two_objects_in_one_file_are_both_read(tmp_path: Path) -> None:
    made = read_slices(tmp_path, s0_9=slice_text(playlist(1)) + "\n" + slice_text(playlist(2)))
    assert [row["query_id"] for row in made.queries] == ["1", "2"]
    assert made.dead == []


def test_what_follows_the_playlists_does_not_vanish(tmp_path: Path) -> None:
    made = read_slices(tmp_path, s0_9=slice_text(playlist(1)) + "garbage")
    assert [row["query_id"] for row in made.queries] == ["1"]
    assert made.reasons == {"invalid JSON": 1}
    assert made.dead[0]["row"]["text"].endswith("garbage")


def test_the_forty_slices_are_read_whole(tmp_path: Path) -> None:
    path = str(real_data("online-retail-ii") / "mpd_format")
    config = load_config(CONFIGS / "mpd.toml", {"data": {"path": path}})
    with DeadLetters(tmp_path / "d.jsonl") as letters:
        counts = read_source(config.data, tmp_path / "source", letters)
    assert (counts.events_in, counts.events_written, counts.queries_in) == (991_910, 991_910, 39_516)
    assert counts.dead_lettered == {}
