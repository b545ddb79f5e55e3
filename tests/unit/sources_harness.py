"""What the tests of every source share: read one, and see its tables and dead letters as Python rows."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from dataflow.dead_letters import DeadLetters
from dataflow.sources import SourceCounts, read_source
from lockstep.config import DataSection

DATA = Path(os.environ.get("LOCKSTEP_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))
CONFIGS = Path(__file__).parents[2] / "configs"


def real_data(name: str) -> Path:
    folder = DATA / name
    if not folder.is_dir():
        pytest.skip(f"the real data {folder} is not here: set LOCKSTEP_DATA to the folder that holds {name}")
    return folder


@dataclass(frozen=True)
class Read:
    counts: SourceCounts
    events: list[dict[str, Any]]
    candidates: list[dict[str, Any]]
    queries: list[dict[str, Any]]
    dead: list[dict[str, Any]]
    directory: Path

    @property
    def reasons(self) -> dict[str, int]:
        return dict(self.counts.dead_lettered)


def read(section: DataSection, directory: Path) -> Read:
    """Read a source; the counts must agree with what is in the files, which the reader itself cannot see."""
    with DeadLetters(directory / "dead_letters.jsonl") as letters:
        counts = read_source(section, directory / "source", letters)
    tables = {
        name: pq.read_table(directory / "source" / name).to_pylist() for name in ("events", "candidates", "queries")
    }
    dead = [json.loads(line) for line in letters.path.read_text(encoding="utf-8").splitlines()]
    assert {name: len(rows) for name, rows in tables.items()} == {
        "events": counts.events_written,
        "candidates": counts.candidates_written,
        "queries": counts.queries_written,
    }
    assert sum(line["rows"] for line in dead) == sum(counts.dead_lettered.values())
    for name in ("candidates", "queries"):
        assert [row["row_number"] for row in tables[name]] == list(range(len(tables[name])))
    return Read(counts, **tables, dead=dead, directory=directory)
