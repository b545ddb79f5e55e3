"""From nothing to an answer, and through everything that can happen to a release on the way (Must show 1, 3, 4)."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from lockstep.errors import IncompleteArtifactError
from lockstep.registry import Registry
from lockstep.storage import open_root
from lockstep.tags import open_artifact, read_tag
from lockstep.version import ReleaseId
from pipelines.cli import main
from tests.e2e.conftest import Roots

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

STEPS = [
    "mint_version",
    "generate_examples",
    "train_towers",
    "evaluate_towers",
    "embed_candidates",
    "embed_queries",
    "build_index",
    "load_kv",
    "validate_release",
    "deploy_release",
    "publish_release",
]


def query(root: Path, *arguments: str) -> dict[str, Any]:
    result = CliRunner().invoke(main, ["query", "--root", str(root), "--json", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.output)


def entity_of(root: Path) -> str:
    import pyarrow.parquet as pq

    table = pq.read_table(part(root, "v1.1", "entities") / "queries", columns=["id"])
    return table["id"][0].as_py()


def part(root: Path, release: str, role: str) -> Path:
    found = Registry(open_root(str(root))).release(ReleaseId.parse(release)).part(role)
    return root / found.uri


def test_a_run_shows_each_step_with_its_time_and_what_came_of_it(first_root: tuple[Path, str]) -> None:
    root, output = first_root
    lines = output.splitlines()
    assert lines[0].startswith("run ")
    assert lines[0].endswith(f"everything goes to {root}")
    began = [line.split()[-1] for line in lines if re.match(r"\[ ?\d+/11\] ", line)]
    assert sorted(began) == sorted(STEPS)
    assert began[0] == "mint_version"
    assert began[-1] == "publish_release"
    assert len([line for line in lines if re.fullmatch(r" +done in \d+\.\d s", line)]) == 11
    assert re.match(r"release v1\.1 is live: .*recall@100 0\.\d+ \(popularity 0\.\d+\).* held-out queries", lines[-1])


def test_the_model_is_told_from_popularity(first_root: tuple[Path, str]) -> None:
    root, _ = first_root
    result = CliRunner().invoke(main, ["releases", "--root", str(root), "--json"])
    (release,) = json.loads(result.output)["releases"]
    test = release["metrics"]["test"]
    # Four genres on 300 tracks; a model that has learned nothing scores like popularity.
    assert test["model"]["recall@20"] > 1.5 * test["popularity"]["recall@20"]
    assert release["state"] == "live"


def test_an_entity_is_answered_from_the_store(first_root: tuple[Path, str]) -> None:
    root, _ = first_root
    answer = query(root, "--entity", entity_of(root), "-k", "5")
    assert (answer["release"], answer["rung"], answer["degraded"], answer["reasons"]) == ("v1.1", "kv v1", False, [])
    assert len(answer["candidates"]) == 5
    assert all(candidate["title"] for candidate in answer["candidates"])
    scores = [candidate["score"] for candidate in answer["candidates"]]
    assert scores == sorted(scores, reverse=True)


def test_raw_features_are_answered_by_the_tower_like_the_store(first_root: tuple[Path, str]) -> None:
    """The same features give the same answer, whether they were embedded ahead or just now."""
    import pyarrow.parquet as pq

    root, _ = first_root
    row = pq.read_table(part(root, "v1.1", "entities") / "queries").slice(0, 1).to_pylist()[0]
    features = {name: value for name, value in row["features"].items() if value is not None}
    now = query(root, "--features", json.dumps(features, default=str), "-k", "20")
    ahead = query(root, "--entity", row["id"], "-k", "20")
    assert now["rung"] == "tower v1"
    assert [c["id"] for c in now["candidates"]] == [c["id"] for c in ahead["candidates"]]
    assert [c["score"] for c in now["candidates"]] == pytest.approx([c["score"] for c in ahead["candidates"]], abs=1e-4)


def test_a_restrict_and_exclusions_hold(first_root: tuple[Path, str]) -> None:
    import pyarrow.parquet as pq

    root, _ = first_root
    table = pq.read_table(part(root, "v1.1", "entities") / "candidates", columns=["id", "restricts"]).to_pylist()
    genre = {row["id"]: row["restricts"][0]["allow"][0] for row in table}
    wanted = sorted(set(genre.values()))[0]
    members = {candidate for candidate, name in genre.items() if name == wanted}
    entity = entity_of(root)
    answer = query(root, "--entity", entity, "-k", "1000", "--restrict", f"genre={wanted}")
    assert {candidate["id"] for candidate in answer["candidates"]} == members
    left_out = answer["candidates"][0]["id"]
    again = query(root, "--entity", entity, "-k", "1000", "--restrict", f"genre={wanted}", "--exclude", left_out)
    assert {candidate["id"] for candidate in again["candidates"]} == members - {left_out}


def test_new_only_leaves_out_the_history(first_root: tuple[Path, str]) -> None:
    import pyarrow.parquet as pq

    root, _ = first_root
    row = pq.read_table(part(root, "v1.1", "entities") / "queries").slice(0, 1).to_pylist()[0]
    everything = query(root, "--entity", row["id"], "-k", "10000")
    new = query(root, "--entity", row["id"], "-k", "10000", "--new-only")
    ids = {candidate["id"] for candidate in everything["candidates"]}
    assert {candidate["id"] for candidate in new["candidates"]} == ids - set(row["history"])


def test_an_unknown_entity_is_answered_by_a_fallback_that_says_so(first_root: tuple[Path, str]) -> None:
    root, _ = first_root
    answer = query(root, "--entity", "nobody", "-k", "3")
    assert (answer["rung"], answer["degraded"]) == ("popular", True)
    assert answer["reasons"] == ["v1.1: the key-value store has no v1 embedding of 'nobody'"]
    assert len(answer["candidates"]) == 3


def test_three_more_runs_took_three_more_numbers(roots: Roots) -> None:
    assert Registry(open_root(str(roots.now))).versions() == [1, 2, 3, 4]
    made = sorted(re.search(r"release (v\d\.1) is", output)[1] for output in roots.outputs)  # type: ignore[index]
    assert made == ["v3.1", "v4.1"]


def test_the_newest_is_live_and_the_others_are_retained(roots: Roots) -> None:
    serving = Registry(open_root(str(roots.now))).serving()
    assert str(serving.live) == "v4.1"
    assert [str(release) for release in serving.plan()] == ["v4.1", "v3.1", "v1.1"]
    assert query(roots.now, "--entity", entity_of(roots.now))["rung"] == "kv v4"


def test_a_killed_run_left_nothing_that_a_reader_would_take(roots: Roots) -> None:
    """Whatever of v2 has a tag is whole; whatever has none is refused."""
    versions = roots.now / "registry" / "versions"
    run = json.loads((versions / "2.json").read_text())["run"]
    folders = [folder for folder in (roots.now / "runs" / run).glob("train-and-deploy-*/*/*") if folder.is_dir()]
    finished = {folder.name for folder in folders if (folder / "tag.json").exists()}
    assert finished == {"examples", "preprocessing", "entities"}
    for folder in folders:
        if folder.name in finished:
            open_artifact(folder, read_tag(folder).kind)
        else:
            with pytest.raises(IncompleteArtifactError):
                read_tag(folder)


def test_the_first_release_is_as_it_was(roots: Roots) -> None:
    for file in (path for path in (roots.first / "runs").rglob("*") if path.is_file()):
        assert (roots.now / file.relative_to(roots.first)).read_bytes() == file.read_bytes(), file


def test_without_the_newest_index_the_next_version_answers_and_says_why(
    roots: Roots, copy_of: Callable[[Path], Path]
) -> None:
    root = copy_of(roots.now)  # a root can be moved
    entity = entity_of(root)
    shutil.rmtree(part(root, "v4.1", "index"))
    answer = query(root, "--entity", entity)
    assert (answer["release"], answer["rung"], answer["degraded"]) == ("v3.1", "kv v3", False)
    assert len(answer["reasons"]) == 1
    assert answer["reasons"][0].startswith("v4.1: ")
    assert "is no finished artifact: there is no such folder; rerun the step that writes it" in answer["reasons"][0]


def test_a_corrupt_index_is_not_searched(roots: Roots, copy_of: Callable[[Path], Path]) -> None:
    root = copy_of(roots.now)
    entity = entity_of(root)
    file = max((p for p in part(root, "v4.1", "index").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    contents = bytearray(file.read_bytes())
    contents[len(contents) // 2] ^= 1
    file.write_bytes(contents)
    answer = query(root, "--entity", entity)
    assert answer["rung"] == "kv v3"
    assert f"{file} is corrupt: found sha256" in answer["reasons"][0]


def test_with_no_index_left_popularity_answers_degraded(roots: Roots, copy_of: Callable[[Path], Path]) -> None:
    root = copy_of(roots.now)
    entity = entity_of(root)
    for release in ("v4.1", "v3.1", "v1.1"):
        shutil.rmtree(part(root, release, "index"))
    answer = query(root, "--entity", entity, "-k", "3")
    assert (answer["rung"], answer["degraded"], len(answer["candidates"])) == ("popular", True, 3)
    assert [reason.split(":")[0] for reason in answer["reasons"]] == ["v4.1", "v3.1", "v1.1"]
    shown = CliRunner().invoke(main, ["query", "--root", str(root), "--entity", entity]).output
    assert "rung: popular (DEGRADED)" in shown


def test_another_versions_index_in_the_folder_is_refused(roots: Roots, copy_of: Callable[[Path], Path]) -> None:
    """The mistake that Lockstep exists for: the new index where the old one was."""
    root = copy_of(roots.now)
    entity = entity_of(root)
    newer, older = part(root, "v4.1", "index"), part(root, "v3.1", "index")
    shutil.rmtree(newer)
    shutil.copytree(older, newer)
    answer = query(root, "--entity", entity)
    assert answer["rung"] == "kv v3"
    assert "is of v3, but its reader is of v4" in answer["reasons"][0]
