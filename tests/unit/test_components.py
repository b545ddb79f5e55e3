"""Every component describes itself, and runs alone."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from components.__main__ import main, names
from lockstep.errors import IncompleteArtifactError, ReleaseError

STEPS = [
    "build_index",
    "deploy_release",
    "embed_candidates",
    "embed_queries",
    "evaluate_towers",
    "generate_examples",
    "load_kv",
    "mint_version",
    "publish_release",
    "train_towers",
    "validate_release",
]

CONFIG = """
[schema.query.history]
type = "id_sequence"
columns = ["history.candidate_id"]
[schema.candidate.track]
type = "id"
columns = ["candidate_id"]
"""


def test_the_components_are_the_steps() -> None:
    assert names() == STEPS


@pytest.mark.parametrize("name", STEPS)
def test_help_describes_every_parameter(name: str) -> None:
    result = CliRunner().invoke(main, [name, "--help"])
    assert result.exit_code == 0, result.output
    component = getattr(importlib.import_module(f"components.{name}"), name)
    parameters = inspect.signature(component.python_func).parameters.values()
    lines = result.output.splitlines()
    for parameter in parameters:
        flag = "--config" if parameter.annotation is dict else f"--{parameter.name.replace('_', '-')}"
        line = next(line for line in lines if line.strip().startswith(flag + " "))
        described = line.split(flag, 1)[1].split(None, 1)
        assert len(described) == 2 or lines[lines.index(line) + 1].strip(), f"{flag} has no description"


def test_an_unknown_component_is_a_usage_error() -> None:
    result = CliRunner().invoke(main, ["embed"])
    assert result.exit_code == 2
    assert "No such command 'embed'" in result.output


def test_minting_alone_counts_up(tmp_path: Path) -> None:
    for expected in ("1\n", "2\n"):
        result = CliRunner().invoke(main, ["mint_version", "--root", str(tmp_path), "--run", "r"])
        assert result.output == expected


def test_errors_of_a_job_reach_the_caller_as_they_are(tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text(CONFIG)
    arguments = ["publish_release", "--root", str(tmp_path), "--run", "r", "--release", "v3.1", "--config", str(config)]
    result = CliRunner().invoke(main, ["--debug", *arguments])
    assert isinstance(result.exception, ReleaseError)
    arguments = ["build_index", "--run", "r", "--model-version", "1", "--config", str(config)]
    arguments += ["--candidate-embeddings", str(tmp_path / "none"), "--query-embeddings", str(tmp_path / "none")]
    arguments += ["--ann-index", str(tmp_path / "index")]
    result = CliRunner().invoke(main, ["--debug", *arguments])
    assert isinstance(result.exception, IncompleteArtifactError), result.output
    assert not (tmp_path / "index" / "tag.json").exists()


def test_the_module_ends_an_error_in_one_sentence(tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text(CONFIG)
    command = [sys.executable, "-m", "components", "publish_release"]
    command += ["--root", str(tmp_path), "--run", "r", "--release", "v3.1", "--config", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == f"Error: there is no release v3.1 in {tmp_path}: see `lockstep releases`\n"


def test_an_output_may_not_overlap_what_is_read(tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text(CONFIG)
    (tmp_path / "embeddings").mkdir()
    (tmp_path / "embeddings" / "tag.json").write_text("{}")
    for output in ("embeddings", "embeddings/deeper", "."):
        arguments = ["build_index", "--run", "r", "--model-version", "1", "--config", str(config)]
        arguments += ["--candidate-embeddings", str(tmp_path / "embeddings"), "--ann-index", str(tmp_path / output)]
        arguments += ["--query-embeddings", str(tmp_path / "queries")]
        result = CliRunner().invoke(main, arguments)
        assert "overlap: give each its own folder." in result.output
        assert (tmp_path / "embeddings" / "tag.json").exists()
