"""Must show 4: SIGKILL in the middle of each step. The live release answers, and nothing half-written is visible."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from lockstep.errors import IncompleteArtifactError
from lockstep.registry import Registry
from lockstep.storage import UNFINISHED, open_root
from lockstep.tags import open_artifact, read_tag
from pipelines.cli import main
from tests.e2e.conftest import TINY, start_run
from tests.e2e.test_pipeline_e2e import entity_of, part

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

MADE_BY = {
    "generate_examples": ["examples", "preprocessing", "entities"],
    "train_towers": ["query_tower", "candidate_tower"],
    "evaluate_towers": ["evaluation"],
    "embed_candidates": ["candidate_embeddings"],
    "embed_queries": ["query_embeddings"],
    "build_index": ["ann_index"],
    "load_kv": ["kv_load"],
    "validate_release": ["verdict"],
}
NEEDS = {
    "generate_examples": [],
    "train_towers": ["examples", "preprocessing"],
    "evaluate_towers": ["examples", "entities", "query_tower", "candidate_tower"],
    "embed_candidates": ["candidate_tower", "entities"],
    "embed_queries": ["query_tower", "entities"],
    "build_index": ["candidate_embeddings", "query_embeddings"],
    "load_kv": ["query_embeddings"],
    "validate_release": [
        "evaluation", "entities", "query_tower", "candidate_tower", "query_embeddings", "candidate_embeddings",
        "ann_index", "kv_load",
    ],
}  # fmt: skip
ROOTED = {"train_towers", "load_kv", "validate_release"}


@pytest.fixture(scope="module")
def root(first_root: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(first_root[0], tmp_path_factory.mktemp("kill") / "root"))


def command(step: str, root: Path, outputs: Path) -> list[str]:
    line = [sys.executable, "-m", "components", step, "--run", "killed"]
    for role in NEEDS[step]:
        line += [f"--{role.replace('_', '-')}", str(part(root, "v1.1", "index" if role == "ann_index" else role))]
    for role in MADE_BY[step]:
        line += [f"--{role.replace('_', '-')}", str(outputs / role)]
    if step in ("generate_examples", "evaluate_towers"):
        line += ["--report", str(outputs / "report.html")]
    if step.startswith("embed"):
        line += ["--snapshot", "1"]
    if step in ROOTED:
        line += ["--root", str(root)]
    if step != "generate_examples":
        line += ["--model-version", "1"]
    return [*line, "--config", str(TINY)]


def files(*folders: Path) -> Iterator[Path]:
    for folder in folders:
        # Not the marker, which is the first thing written: what is to be interrupted is the work after it.
        yield from (path for path in folder.rglob("*") if path.is_file() and path.name != UNFINISHED)


def kill_at_first_file(line: list[str], *watched: Path) -> bool:
    """Run a command until it writes into one of the folders, then SIGKILL it; whether it was still running."""
    before = set(files(*watched))
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
    while process.poll() is None and not set(files(*watched)) - before:
        time.sleep(0.002)
    running = process.poll() is None
    if running:
        os.killpg(process.pid, signal.SIGKILL)
    output, _ = process.communicate()
    assert process.returncode in (0, -signal.SIGKILL), output.decode()
    return running


def assert_v1_answers(root: Path) -> None:
    result = CliRunner().invoke(main, ["query", "--root", str(root), "--entity", entity_of(root), "--json"])
    answer = json.loads(result.output)
    assert (answer["release"], answer["rung"], answer["reasons"]) == ("v1.1", "kv v1", [])


@pytest.mark.parametrize("step", list(MADE_BY))
def test_a_step_killed_at_its_first_write_leaves_no_artifact(step: str, root: Path, tmp_path: Path) -> None:
    kill_at_first_file(command(step, root, tmp_path), tmp_path, root / "runs" / "killed", root / "kv")
    for role in MADE_BY[step]:
        try:
            tag = read_tag(tmp_path / role)
        except IncompleteArtifactError:
            continue
        open_artifact(tmp_path / role, tag.kind)  # its tag was written, so it is whole
    assert_v1_answers(root)


def test_a_step_that_was_killed_runs_again_in_the_same_place(root: Path, tmp_path: Path) -> None:
    line = command("build_index", root, tmp_path)
    kill_at_first_file(line, tmp_path)
    (tmp_path / "ann_index").mkdir(exist_ok=True)
    (tmp_path / "ann_index" / "left-over").write_bytes(b"half")
    subprocess.run(line, check=True, capture_output=True)
    open_artifact(tmp_path / "ann_index", read_tag(tmp_path / "ann_index").kind)
    assert not (tmp_path / "ann_index" / "left-over").exists()


def test_a_step_does_not_outlive_the_run_that_was_killed_alone(root: Path) -> None:
    process = start_run(root)
    assert process.stdout is not None
    for line in process.stdout:
        if line.rstrip().endswith("] generate_examples"):
            break
    time.sleep(2.0)  # into the step's work
    os.kill(process.pid, signal.SIGKILL)  # the run, not its step
    deadline = time.monotonic() + 60
    while _group(process.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert _group(process.pid) == []
    newest = max((root / "runs").glob("2*"))  # the others are those of single steps
    assert not list(newest.glob("train-and-deploy-*/generate-examples/*/tag.json"))
    process.communicate()
    assert_v1_answers(root)


def _group(group: int) -> list[int]:
    """The living processes of a process group."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, member = stat.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(member) == group and state != "Z":
            found.append(int(stat.parent.name))
    return found


@pytest.mark.parametrize("step", ["mint_version", "publish_release"])
def test_the_registry_survives_a_kill_at_its_first_write(step: str, root: Path) -> None:
    line = [sys.executable, "-m", "components", step, "--run", "killed", "--root", str(root)]
    line += ["--release", "v1.1", "--config", str(TINY)] if step == "publish_release" else []
    before = Registry(open_root(str(root))).versions()
    kill_at_first_file(line, root / "registry")
    registry = Registry(open_root(str(root)))
    assert registry.versions()[: len(before)] == before
    assert str(registry.serving().live) == "v1.1"
    assert registry.mint_version("next", by="test") > max(before)
    assert_v1_answers(root)
