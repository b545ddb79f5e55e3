"""Million Playlist Dataset slices: `*.slice.*.json`, plain or .gz, one in memory at a time.

A slice is read in one vectorised pass where it is sound. Where it is not (cut short, a wrong type, a byte that is no
UTF-8), its playlists are decoded one by one: the sound ones are used, and what cannot be is dead-lettered.

The playlist is the query entity (`pid`), a track the candidate (`track_uri`), `modified_at` the moment of all its
tracks. Columns of a query are `title` (the slice's `name`), `description` and `collaborative` ("true" or "false").

What describes the finished playlist is not read: num_tracks, num_albums, num_artists, duration_ms, num_edits and
num_followers tell how it went on after the moment in which a model is asked. `modified_at` is that moment and no
column, because a playlist that has been edited since is another one.
"""

from __future__ import annotations

import gzip
import io
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pa_json

from dataflow.dead_letters import DeadLetters, Reason
from dataflow.sources.moments import MomentReader
from dataflow.sources.output import Progress, SourceWriter
from dataflow.sources.playlists import PLAYLIST, TRACK, TRACK_TEXTS, broken_rows, decode_playlists, sound_part
from dataflow.sources.rows import RowCheck, parse_ids, parse_texts
from lockstep.errors import DataError

_PATTERNS = ("*.slice.*.json", "*.slice.*.json.gz")
_RANGE = re.compile(r"\.slice\.([0-9]+)-([0-9]+)\.json")


def read(folder: Path, writer: SourceWriter, dead_letters: DeadLetters) -> None:
    """Read every slice of a folder (or of its `data` folder, as the dataset is packed).

    Raises:
        DataError: there is no slice.
    """
    slices = find_slices(folder)
    writer.declare("candidates", [*TRACK_TEXTS.items(), ("duration_ms", pa.int64())], derived=True)
    writer.declare("queries", [(name, pa.string()) for name in ("title", "description", "collaborative")])
    writer.declare("events")
    progress = Progress("playlist slices", len(slices))
    for path in slices:
        progress.advance(_read_slice(path, writer, dead_letters))
        progress.files_done += 1
    progress.say()


def _read_slice(path: Path, writer: SourceWriter, dead_letters: DeadLetters) -> int:
    """Read one slice and let go of it; returns its rows."""
    data, complete = _slice_bytes(path)
    playlists = _whole_slice(data) if complete else None
    if playlists is None:
        playlists = _salvaged_slice(data, path, writer, dead_letters)
    del data
    return _write(playlists, path, writer, dead_letters)


def find_slices(folder: Path) -> list[Path]:
    """The slices of a folder, by the number of their first playlist."""
    for directory in (folder, folder / "data"):
        found = [path for pattern in _PATTERNS for path in directory.glob(pattern)]
        if found:
            return sorted(found, key=lambda path: (_first_and_count(path), path.name))
    there = ", ".join(sorted(path.name for path in folder.iterdir())[:20]) or "no files"
    raise DataError(f"{folder} holds no playlist slices ({' or '.join(_PATTERNS)}): there are {there}")


def _first_and_count(path: Path) -> tuple[int, int | None]:
    named = _RANGE.search(path.name)
    return (int(named[1]), int(named[2]) - int(named[1]) + 1) if named else (0, None)


def _slice_bytes(path: Path) -> tuple[bytes, bool]:
    """The contents of a slice as far as they can be read, and whether that is to the end."""
    if path.suffix != ".gz":
        return path.read_bytes(), True
    out = io.BytesIO()
    try:
        with gzip.open(path) as file:
            while block := file.read(1 << 16):
                out.write(block)
    except (EOFError, gzip.BadGzipFile, zlib.error):
        return out.getvalue(), False
    return out.getvalue(), True


def _whole_slice(data: bytes) -> pa.StructArray | None:
    """The playlists of a slice in which nothing is wrong, as far as JSON and types go; None otherwise."""
    try:
        table = pa_json.read_json(
            pa.BufferReader(data),
            read_options=pa_json.ReadOptions(block_size=len(data) + 1, use_threads=False),
            parse_options=pa_json.ParseOptions(
                explicit_schema=pa.schema([("playlists", pa.list_(PLAYLIST))]),
                newlines_in_values=True,
                unexpected_field_behavior="ignore",
            ),
        )
        # One slice is one JSON object with a list of playlists; anything else is looked at piece by piece.
        if len(table) != 1 or table["playlists"].null_count:
            return None
        playlists = pc.list_flatten(table["playlists"].combine_chunks())
        playlists.validate(full=True)
    except (pa.ArrowException, UnicodeDecodeError):
        return None
    return playlists


def _salvaged_slice(data: bytes, path: Path, writer: SourceWriter, dead_letters: DeadLetters) -> pa.StructArray:
    """The sound playlists of a slice; everything else is dead-lettered."""
    sound: list[dict[str, Any]] = []
    seen = 0
    for found in decode_playlists(data):
        if found.playlist is None:
            # What is lost at the end of a slice is as many playlists as its name promises and it has not shown.
            promised = _first_and_count(path)[1]
            lost = max(1, (promised or 0) - seen) if found.at_end else 1
            reason = Reason.TRUNCATED_SLICE if found.at_end else Reason.INVALID_JSON
            writer.count_read("queries", lost)
            dead_letters.add(reason, {"playlists_before": seen, "text": found.text}, path.name, lost)
            continue
        seen += 1
        playlist, faults = sound_part(found.playlist)
        for fault in faults:
            writer.count_read("events" if fault.track else "queries", fault.rows)
            dead_letters.add(fault.reason, fault.row, path.name, fault.rows, column=fault.column)
        if playlist is not None:
            sound.append(playlist)
    return pa.array(sound, PLAYLIST)


def _write(playlists: pa.StructArray, path: Path, writer: SourceWriter, dead_letters: DeadLetters) -> int:
    """Check and write the playlists of one slice; returns the rows read."""
    fields = {field.name: pc.struct_field(playlists, field.name) for field in PLAYLIST}
    tracks = pc.fill_null(pc.list_value_length(fields["tracks"]), 0)
    rows = len(playlists) + pc.sum(tracks).as_py() if len(playlists) else 0
    writer.count_read("queries", len(playlists))
    writer.count_read("events", rows - len(playlists))
    shown = pa.RecordBatch.from_pydict({**fields, "tracks": tracks})
    check = RowCheck(shown)
    queries = {
        "query_id": parse_ids(fields["pid"], check, "pid"),
        "title": parse_texts(fields["name"], check, "name"),
        "description": parse_texts(fields["description"], check, "description"),
        "collaborative": parse_texts(fields["collaborative"], check, "collaborative"),
    }
    moments = MomentReader("s").parse(fields["modified_at"], check, "modified_at")
    check.reject(pc.equal(tracks, 0), Reason.NO_TRACKS, "tracks")
    for row in broken_rows(check, tracks):
        dead_letters.add_batch(row.reason, row.rows, path.name, column=row.column, rows=row.lost)
    writer.write("queries", {name: check.kept(values) for name, values in queries.items()})
    lists = check.kept(fields["tracks"])
    owner = pc.list_parent_indices(lists)
    _write_tracks(
        pc.list_flatten(lists),
        check.kept(queries["query_id"]).take(owner),
        check.kept(moments).take(owner),
        _place_in_list(owner),
        *(path, writer, dead_letters),
    )
    return rows


def _write_tracks(
    tracks: pa.StructArray,
    query_ids: pa.Array,
    moments: pa.Array,
    places: pa.Array,
    path: Path,
    writer: SourceWriter,
    dead_letters: DeadLetters,
) -> None:
    fields = {field.name: pc.struct_field(tracks, field.name) for field in TRACK}
    check = RowCheck(pa.RecordBatch.from_pydict({"pid": query_ids, **fields}))
    candidate_ids = parse_ids(fields["track_uri"], check, "track_uri")
    texts = {name: parse_texts(fields[name], check, name) for name in TRACK_TEXTS}
    check.report(dead_letters, path.name)
    events = {
        "query_id": query_ids,
        "candidate_id": candidate_ids,
        "event_time": moments,
        "position": pc.coalesce(fields["pos"], places),
    }
    writer.write("events", {name: check.kept(values) for name, values in events.items()})
    candidates = {"candidate_id": candidate_ids, **texts, "duration_ms": fields["duration_ms"]}
    writer.write_new("candidates", {name: check.kept(values) for name, values in candidates.items()})


def _place_in_list(owner: pa.Array) -> pa.Array:
    owners = owner.to_numpy()
    return pa.array(np.arange(len(owners)) - np.searchsorted(owners, owners))
