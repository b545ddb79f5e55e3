"""docs/bring-your-own-data.md does what it says: its commands, its Python and its TOML are executed as they stand."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from dataflow import generate
from lockstep.config import AttributesTable, Config, EventsTable

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

PAGE = Path(__file__).parents[2] / "docs" / "bring-your-own-data.md"
TEXT = PAGE.read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
BASE, MAPPING, ENGAGEMENT, PAIRS, SPLIT, FEATURES, COUNTS, FILTERS = (body for kind, body in BLOCKS if kind == "toml")


@dataclass(frozen=True)
class Walked:
    """A folder in which the page was followed, and what each command printed."""

    folder: Path
    printed: dict[str, str]


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> Walked:
    folder = tmp_path_factory.mktemp("own_data")
    printed: dict[str, str] = {}
    for kind, body in BLOCKS:
        if kind == "python":
            execute([sys.executable, "-c", body], folder)
        elif kind == "bash":
            for command in body.splitlines():
                printed[command] = execute(["bash", "-euc", command], folder)
        elif body == BASE:
            (folder / "my.toml").write_text(body, encoding="utf-8")
    return Walked(folder, printed)


def execute(command: list[str], folder: Path) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def merged(base: dict[str, Any], added: dict[str, Any]) -> dict[str, Any]:
    out = dict(base)
    for key, value in added.items():
        out[key] = merged(out[key], value) if isinstance(value, dict) and isinstance(out.get(key), dict) else value
    return out


def config_with(folder: Path, *blocks: str) -> Config:
    values = tomllib.loads(BASE)
    for block in blocks:
        values = merged(values, tomllib.loads(block))
    return Config.model_validate(merged(values, {"data": {"path": str(folder / "data")}}))


@dataclass(frozen=True)
class Step:
    """What a data step has made."""

    report: dict[str, Any]
    examples: Path
    entities: Path

    @property
    def candidates(self) -> list[dict[str, Any]]:
        rows = pq.read_table(self.entities / "candidates").to_pylist()
        return [{"id": row["id"], **row["features"]} for row in rows]


def data_step(walked: Walked, name: str, *blocks: str) -> Step:
    config, out = config_with(walked.folder, *blocks), walked.folder / name
    generate.run(
        examples=out / "examples",
        preprocessing=out / "preprocessing",
        entities=out / "entities",
        run_id="r",
        data=config.data,
        schema=config.schema_,
    )
    return Step(json.loads((out / "examples" / "report.json").read_bytes()), out / "examples", out / "entities")


def filtered(report: dict[str, Any]) -> Counter[str]:
    """Rows left out, by the rule's name."""
    return sum((Counter(stage.get("filtered", {})) for stage in report["stages"]), Counter())


def test_every_block_of_the_page_is_executed() -> None:
    kinds = Counter(kind for kind, _ in BLOCKS)
    assert kinds == {"python": 2, "toml": 8, "bash": 2}
    assert TEXT.count("```") == 2 * len(BLOCKS)


def test_the_run_ends_with_a_live_release(walked: Walked) -> None:
    run, listed = (
        walked.printed[f"lockstep {command} --root my-root"] for command in ("run --config my.toml", "releases")
    )
    assert "release v1.1 is live: recall@10 " in run
    assert "v1.1" in listed


def test_both_queries_are_answered_by_what_the_page_says(walked: Walked) -> None:
    known, new = (printed for command, printed in walked.printed.items() if command.startswith("lockstep query"))
    assert known.startswith("answered by release v1.1, rung: kv v1\n")
    assert new.startswith("answered by release v1.1, rung: tower v1\n")
    genres = {row["isbn"]: row["genre"] for row in pq.read_table(walked.folder / "data" / "books.parquet").to_pylist()}
    found = re.findall(r"\b(b\d+)\b", new)
    assert len(found) == len(re.findall(r"\b(b\d+)\b", known)) == 5
    assert {genres[isbn] for isbn in found} == {"cooking"}


def test_the_report_and_the_dead_letters_are_where_it_says(walked: Walked) -> None:
    listed = next(printed for command, printed in walked.printed.items() if command.startswith("ls "))
    dead, page = [walked.folder / line for line in sorted(listed.splitlines())]
    assert dead.read_text() == ""
    text = page.read_text(encoding="utf-8")
    assert {name for name in ("history", "book", "minutes_read") if name in text} == {"history", "book"}
    (of_the_run,) = (walked.folder / "my-root" / "runs").glob("*/*/generate-examples/examples/report.html")
    assert of_the_run.with_name("dead_letters.jsonl").read_text() == ""


def test_the_mapping_of_csv_is_read(walked: Walked) -> None:
    features = '[schema.candidate.blurb]\ntype = "text"\nmin_count = 1\n[schema.candidate.pages]\ntype = "numeric"\n'
    features += '[schema.candidate.price]\ntype = "numeric"\n[schema.candidate.genre]\ntype = "id_sequence"\n'
    made = data_step(walked, "mapping", MAPPING, features)
    first, second = made.candidates
    assert first["blurb"] == "Two lines,\none blurb"
    assert (first["title"], first["pages"], first["price"], first["genre"]) == ("Bread", 80.0, 12.5, ["bread", "salt"])
    assert (second["blurb"], second["pages"], second["price"]) == (None, 81.0, None)
    assert (made.examples / "dead_letters.jsonl").read_text() == ""


def test_engagement_split_features_and_counts_work_together(walked: Walked) -> None:
    made = data_step(walked, "features", ENGAGEMENT, SPLIT, FEATURES, COUNTS)
    listed = json.loads((made.examples / "features.json").read_bytes())
    names = {feature["name"]: feature["type"] for side in listed.values() for feature in side}
    assert {"borrowed_last_week", "borrowed_last_month", "history_titles"} <= set(names)
    types = {"id", "categorical", "text", "numeric", "timestamp", "vector"}
    assert set(names.values()) == types | {"id_sequence", "text_sequence", "numeric_sequence"}
    left_out = filtered(made.report)
    assert left_out["low engagement"] > 0
    assert left_out["held out"] > 0
    assert made.report["cuts"]["validation_from"] == "2024-10-01T00:00:00+00:00"
    assert made.report["cuts"]["test_from"] == "2024-11-01T00:00:00+00:00"
    assert not [check for check in made.report["leaks"] if check["violations"]]
    month = [row["borrowed_last_month"] for row in made.candidates]
    assert max(month) > 0


def test_candidates_carry_what_they_are_filtered_by(walked: Walked) -> None:
    made = data_step(walked, "filters", FILTERS)
    books = {row["isbn"]: row for row in pq.read_table(walked.folder / "data" / "books.parquet").to_pylist()}
    found = {row["id"]: row for row in pq.read_table(made.entities / "candidates").to_pylist()}
    assert sorted(found) == sorted(books)
    for isbn, book in books.items():
        midnight = datetime(book["published"].year, 1, 1, tzinfo=UTC)
        assert found[isbn]["restricts"] == [
            {"namespace": "genre", "allow": [book["genre"]], "deny": []},
            {"namespace": "branches", "allow": book["branches"], "deny": book["lent_out"]},
        ]
        assert found[isbn]["numeric_restricts"] == [
            {"namespace": "pages", "value": book["pages"]},
            {"namespace": "published", "value": midnight.timestamp()},
        ]
        assert found[isbn]["crowding_tag"] == book["author"]
    assert sum(bool(book["lent_out"]) for book in books.values()) == 42


def test_pairs_of_candidates_are_made(walked: Walked) -> None:
    made = data_step(walked, "pairs", PAIRS)
    alone = data_step(walked, "alone", PAIRS.replace("window = 3", "window = 1"))
    # Twelve books a person: 11 pairs of neighbours, and 11 + 10 + 9 within three places; each in both directions.
    assert made.report["splits"]["train"] > 2.5 * alone.report["splits"]["train"]


def test_every_key_of_the_mapping_is_one() -> None:
    of = {"events": EventsTable, "candidates": AttributesTable, "queries": AttributesTable}
    rows = re.findall(r"^\| `(\w+)` \| ([\w, ]+) \|", TEXT, re.MULTILINE)
    assert len(rows) == 7
    for key, tables in rows:
        for table in of if tables == "all" else tables.split(", "):
            assert key in of[table].model_fields, (key, table)


def test_its_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)", TEXT)
    assert links
    assert [link for link in links if not (PAGE.parent / link).exists()] == []
