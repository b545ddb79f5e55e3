"""Playlists of a damaged slice, one by one: find them in the text, keep what is sound of each, name what is not."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from dataflow.dead_letters import Reason
from dataflow.sources.rows import RowCheck

TRACK_TEXTS = {name: pa.string() for name in ("track_name", "artist_uri", "artist_name", "album_uri", "album_name")}
TRACK = pa.struct([("track_uri", pa.string()), *TRACK_TEXTS.items(), ("pos", pa.int64()), ("duration_ms", pa.int64())])
PLAYLIST = pa.struct(
    [
        ("pid", pa.int64()),
        ("name", pa.string()),
        ("description", pa.string()),
        ("collaborative", pa.string()),
        ("modified_at", pa.int64()),
        ("tracks", pa.list_(TRACK)),
    ]
)
_START = re.compile(r'"playlists"\s*:\s*\[')
_BETWEEN = re.compile(r"[\s,]*")
_SURROGATE = re.compile("[\ud800-\udfff]")
_SHOWN = 300


@dataclass(frozen=True)
class Found:
    """A playlist of a slice, or a stretch of text that is none."""

    playlist: Any = None
    text: str = ""
    at_end: bool = False


@dataclass(frozen=True)
class Fault:
    """What is wrong with a playlist (`rows`: it and its tracks) or with one of its tracks."""

    reason: Reason
    column: str
    row: dict[str, Any]
    rows: int = 1
    track: bool = False


@dataclass(frozen=True)
class BrokenRows:
    """Playlists refused for one reason, each with the number of rows that go with it."""

    reason: Reason
    column: str
    rows: pa.RecordBatch
    lost: list[int]


def broken_rows(check: RowCheck, tracks: pa.Array) -> Iterator[BrokenRows]:
    """The refused playlists of a check: each takes its tracks with it."""
    lost = 1 + tracks.to_numpy()
    for reason, column, mask in check.faults:
        yield BrokenRows(reason, column, check.rows.filter(pa.array(mask)), lost[mask].tolist())


def decode_playlists(data: bytes) -> Iterator[Found]:
    """Decode the playlists of a slice that is not sound as a whole.

    Bytes that are no UTF-8 become lone surrogates, so that only the texts that hold them are refused. After a
    stretch that is no JSON, decoding goes on at the next object that has tracks.
    """
    text = data.decode("utf-8", "surrogateescape")
    start = _START.search(text)
    if start is None:
        yield Found(text=text[:_SHOWN], at_end=True)
        return
    decoder = json.JSONDecoder()
    place = start.end()
    while True:
        place = _BETWEEN.match(text, place).end()  # type: ignore[union-attr]
        if text.startswith("]", place):
            again = _START.search(text, place)
            if again is None:
                yield from _after_the_list(text[place:])
                return
            place = again.end()
            continue
        try:
            playlist, place = decoder.raw_decode(text, place)
        except (ValueError, RecursionError):
            following = _next_playlist(text, place + 1, decoder)
            stretch = text[place : place + _SHOWN]
            if following is None:
                yield Found(text=stretch, at_end=True)
                return
            yield Found(text=stretch)
            place = following
        else:
            yield Found(playlist)


def _after_the_list(rest: str) -> Iterator[Found]:
    """Text after the last playlist that is not the end of a JSON object, so that nothing there vanishes."""
    if rest.strip() != "]":
        try:
            json.loads('{"playlists": [' + rest)
        except (ValueError, RecursionError):
            yield Found(text=rest[:_SHOWN])


def _next_playlist(text: str, place: int, decoder: json.JSONDecoder) -> int | None:
    while (place := text.find("{", place)) >= 0:
        try:
            value, end = decoder.raw_decode(text, place)
        except (ValueError, RecursionError):
            place += 1
            continue
        if isinstance(value, dict) and "tracks" in value:
            return place
        place = end
    return None


def sound_part(playlist: Any) -> tuple[dict[str, Any] | None, list[Fault]]:
    """What of a decoded playlist has the right types: all of it, some of its tracks, or nothing.

    Returns:
        The playlist with its sound tracks (None where it is refused itself), and what is refused.
    """
    if not isinstance(playlist, dict):
        return None, [Fault(Reason.WRONG_TYPE, "playlists", {"playlist": playlist})]
    tracks = playlist.get("tracks")
    tracks = [] if tracks is None else tracks
    shown = {**playlist, "tracks": len(tracks) if isinstance(tracks, list) else tracks}
    if not isinstance(tracks, list):
        return None, [Fault(Reason.WRONG_TYPE, "tracks", shown)]
    if isinstance(playlist.get("collaborative"), bool):  # published as text, and as what it is by others
        playlist = {**playlist, "collaborative": json.dumps(playlist["collaborative"])}
    fault = _fault(playlist, PLAYLIST, leave_out="tracks")
    if fault is not None:
        return None, [Fault(*fault, shown, 1 + len(tracks))]
    sound, faults = [], []
    for track in tracks:
        wrong = (Reason.WRONG_TYPE, "tracks") if not isinstance(track, dict) else _fault(track, TRACK)
        if wrong is None:
            sound.append(track)
        else:
            row = track if isinstance(track, dict) else {"track": track}
            faults.append(Fault(*wrong, {"pid": playlist.get("pid"), **row}, track=True))
    return {**playlist, "tracks": sound}, faults


def _fault(values: dict[str, Any], expected: pa.StructType, leave_out: str = "") -> tuple[Reason, str] | None:
    for field in expected:
        value = values.get(field.name)
        if field.name == leave_out or value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int if field.type == pa.int64() else str):
            return Reason.WRONG_TYPE, field.name
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            return Reason.WRONG_TYPE, field.name
        if isinstance(value, str) and _SURROGATE.search(value):
            return Reason.INVALID_UTF8, field.name
    return None
