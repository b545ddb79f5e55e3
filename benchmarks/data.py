"""The data step at 10^5, 10^6 and 10^7 events: rows a second and peak memory of each of its phases.

    python benchmarks/data.py --sizes 100000 1000000 10000000 --output data.json --plot docs/images/data-scale.svg

Events, candidates and query entities are drawn from a seed into Parquet files, and the step reads them as anybody's own
tables: 20 events an entity, candidates by Zipf's law, titles of 2-5 words, histories of 20 ids and 20 artists, titles
of the last 8, counts of 7 and 30 days. Each size is a process of its own; its peak memory is reset between phases, so
each figure is of its phase.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lockstep.config import DataSection
from lockstep.schema import Schema

EVENTS_PER_ENTITY = 20
DAYS = 120
WORDS = 5_000
SCHEMA: dict[str, Any] = {
    "query": {
        "history": {"type": "id_sequence", "columns": ["history.candidate_id"], "max_length": 20, "shares": "track"},
        "artists": {"type": "id_sequence", "columns": ["history.artist"], "max_length": 20, "shares": "artist"},
        "titles": {"type": "text_sequence", "columns": ["history.title"], "max_length": 8, "shares": "title"},
        "country": {"type": "categorical"},
        "activity": {"type": "numeric", "columns": ["events.7d"], "log": True},
        "event_time": {"type": "timestamp"},
    },
    "candidate": {
        "track": {"type": "id", "columns": ["candidate_id"]},
        "artist": {"type": "id"},
        "title": {"type": "text", "max_tokens": 8},
        "popularity": {"type": "numeric", "columns": ["events.30d"], "log": True},
    },
}
TABLES = {
    "events": {"file": "events.parquet", "query": "user", "candidate": "track", "timestamp": "at"},
    "candidates": {"file": "tracks.parquet", "id": "track"},
    "queries": {"file": "users.parquet", "id": "user"},
}
PHASE = re.compile(r"(.+) took ([\d.]+) s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[100_000, 1_000_000, 10_000_000], help="events")
    parser.add_argument("--memory", default="2GB", help="[data] warehouse_memory: the ceiling of the SQL phases")
    parser.add_argument("--output", type=Path, help="where to write the figures as JSON")
    parser.add_argument("--plot", type=Path, help="where to draw them as SVG")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        measure(arguments.child, arguments.memory)
        return
    measured = [of_size(size, arguments.memory) for size in arguments.sizes]
    result = {"machine": f"{os.cpu_count()} cores, {platform.machine()}", "date": f"{datetime.now(UTC):%Y-%m-%d}"}
    result |= {"warehouse_memory": arguments.memory, "sizes": measured}
    table(measured)
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if arguments.plot:
        arguments.plot.parent.mkdir(parents=True, exist_ok=True)
        arguments.plot.write_text(plot(measured), encoding="utf-8")


def of_size(events: int, memory: str) -> dict[str, Any]:
    """Make the tables of one size, run the step over them in its own process, and return what it measured."""
    work = Path(tempfile.mkdtemp(prefix="lockstep-data-"))
    try:
        write_tables(work, events)
        subprocess.run([sys.executable, __file__, "--memory", memory, "--child", str(work)], check=True)
        return {"events": events, **json.loads((work / "measured.json").read_bytes())}
    finally:
        shutil.rmtree(work)


def write_tables(folder: Path, events: int, seed: int = 1) -> None:
    """Draw the three tables; 100,000 events at a time, so that making them needs little memory too."""
    generator = np.random.default_rng(seed)
    entities, candidates = max(10, events // EVENTS_PER_ENTITY), min(500_000, max(100, events // 50))
    words = np.array([f"word{number}" for number in range(WORDS)])
    titles = [" ".join(words[generator.integers(0, WORDS, generator.integers(2, 6))]) for _ in range(candidates)]
    tracks = {
        "track": [f"track-{number:07d}" for number in range(candidates)],
        "title": titles,
        "artist": [f"artist-{number:06d}" for number in generator.integers(0, max(10, candidates // 10), candidates)],
    }
    users = {
        "user": [f"user-{number:08d}" for number in range(entities)],
        "country": np.array(["DE", "FR", "UK", "US"])[generator.integers(0, 4, entities)],
    }
    pq.write_table(pa.table(tracks), folder / "tracks.parquet")
    pq.write_table(pa.table(users), folder / "users.parquet")
    start = int(datetime(2026, 1, 1, tzinfo=UTC).timestamp())
    weights = 1.0 / np.arange(1, candidates + 1) ** 0.8
    cumulated = np.cumsum(weights / weights.sum())
    schema = pa.schema([("user", pa.string()), ("track", pa.string()), ("at", pa.timestamp("s", "UTC"))])
    with pq.ParquetWriter(folder / "events.parquet", schema) as writer:
        for first in range(0, events, 100_000):
            rows = min(100_000, events - first)
            user = np.char.add("user-", np.char.zfill(generator.integers(0, entities, rows).astype(str), 8))
            chosen = np.minimum(np.searchsorted(cumulated, generator.random(rows)), candidates - 1)
            track = np.char.add("track-", np.char.zfill(chosen.astype(str), 7))
            at = pa.array(start + generator.integers(0, DAYS * 86_400, rows)).cast(schema.field("at").type)
            writer.write_table(pa.table([pa.array(user), pa.array(track), at], schema=schema))


def measure(folder: Path, memory: str) -> None:
    """Run the data step in this process, and note the time and the peak memory of each phase."""
    from dataflow.generate import run

    phases: dict[str, dict[str, float]] = {}
    logger = logging.getLogger("dataflow")
    logger.setLevel(logging.INFO)
    logger.addHandler(_Phases(phases))
    logger.addHandler(logging.StreamHandler(sys.stdout))
    section = {"source": "tables", "path": str(folder), "tables": TABLES, "warehouse_memory": memory}
    started = time.monotonic()
    tag = run(
        **{name: folder / name for name in ("examples", "preprocessing", "entities")},
        run_id="benchmark",
        data=DataSection.model_validate(section),
        schema=Schema.model_validate(SCHEMA),
    )
    total = {"seconds": time.monotonic() - started, "records": tag.rows, "phases": phases}
    (folder / "measured.json").write_text(json.dumps(total))


class _Phases(logging.Handler):
    """Takes the end of each phase from the log."""

    def __init__(self, phases: dict[str, dict[str, float]]) -> None:
        super().__init__()
        self._phases = phases

    def emit(self, record: logging.LogRecord) -> None:
        found = PHASE.fullmatch(record.getMessage())
        if found:
            self._phases[found[1]] = {"seconds": float(found[2]), "peak_bytes": peak_bytes()}


def peak_bytes() -> int:
    """The peak resident memory since the last call (Linux)."""
    status = Path("/proc/self/status").read_text()
    peak = re.search(r"VmHWM:\s+(\d+) kB", status)
    Path("/proc/self/clear_refs").write_text("5")
    return int(peak[1]) * 1024 if peak else 0


SQL = ("ordering events", "making training rows", "making evaluation queries", "writing entities")
BEAM = "writing training records"


def rates(of: dict[str, Any]) -> tuple[float, float]:
    """Events a second of the SQL phases, and records a second of the Beam phase."""
    sql = sum(of["phases"][phase]["seconds"] for phase in SQL)
    return of["events"] / max(sql, 0.1), of["records"] / max(of["phases"][BEAM]["seconds"], 0.1)


def peaks(of: dict[str, Any]) -> tuple[float, float]:
    """Peak memory of the SQL phases and of the Beam phase, in GB."""
    phases = of["phases"]
    return max(phases[phase]["peak_bytes"] for phase in SQL) / 1e9, phases[BEAM]["peak_bytes"] / 1e9


def table(measured: list[dict[str, Any]]) -> None:
    print("\n|    events |   records | SQL events/s | Beam records/s | SQL peak GB | Beam peak GB | whole step s |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for of in measured:
        (sql, beam), (sql_gb, beam_gb) = rates(of), peaks(of)
        print(
            f"| {of['events']:9,} | {of['records']:9,} | {sql:12,.0f} | {beam:14,.0f} | {sql_gb:11.2f} "
            f"| {beam_gb:12.2f} | {of['seconds']:12.0f} |"
        )


def plot(measured: list[dict[str, Any]]) -> str:
    """Two panels over the number of events: rows a second, and peak memory."""
    panels = [
        ("rows a second", [rates(of) for of in measured], "{:,.0f}"),
        ("peak memory, GB", [peaks(of) for of in measured], "{:.2f}"),
    ]
    drawn = [_panel(40 + 400 * n, *panel, [of["events"] for of in measured]) for n, panel in enumerate(panels)]
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 800 300" font-family="sans-serif" font-size="12">'
        '<rect width="800" height="300" fill="white"/>' + "".join(drawn) + "</svg>\n"
    )


def _panel(left: int, title: str, values: list[tuple[float, float]], form: str, events: list[int]) -> str:
    top, height, width = 50, 190, 320
    highest = max(max(pair) for pair in values) * 1.1
    parts = [f'<text x="{left}" y="25" font-weight="bold">{title}</text>']
    parts.append(f'<path d="M{left} {top} V{top + height} H{left + width}" fill="none" stroke="#888"/>')
    spots = [left + width * (n + 0.5) / len(events) for n in range(len(events))]
    for x, count in zip(spots, events, strict=True):
        parts.append(f'<text x="{x:.0f}" y="{top + height + 18}" text-anchor="middle">{count:,} events</text>')
    for series, (name, colour) in enumerate((("SQL", "#1f77b4"), ("Beam", "#d62728"))):
        points = [(x, top + height * (1 - pair[series] / highest)) for x, pair in zip(spots, values, strict=True)]
        line = " ".join(f"{x:.0f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for (x, y), pair in zip(points, values, strict=True):
            parts.append(f'<circle cx="{x:.0f}" cy="{y:.1f}" r="3" fill="{colour}"/>')
            parts.append(f'<text x="{x + 6:.0f}" y="{y - 6:.1f}" fill="{colour}">{form.format(pair[series])}</text>')
        parts.append(f'<text x="{left + 230 + 50 * series}" y="25" fill="{colour}">{name}</text>')
    return "".join(parts)


if __name__ == "__main__":
    main()
