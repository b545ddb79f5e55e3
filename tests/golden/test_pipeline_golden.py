"""The compiled pipeline is a golden file: a change of the graph is seen in review.

To accept a change: `LOCKSTEP_UPDATE_GOLDEN=1 pytest tests/golden`.
"""

from __future__ import annotations

import os
from pathlib import Path

import yaml

from lockstep.config import load_config
from pipelines.compile import compile_pipeline

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
GOLDEN = HERE / "train_and_deploy.yaml"

CONFIG = """
[schema.query.history]
type = "id_sequence"
columns = ["history.candidate_id"]
shares = "track"
[schema.candidate.track]
type = "id"
columns = ["candidate_id"]
"""


def compiled(tmp_path: Path, image: str | None = None) -> str:
    path = tmp_path / "c.toml"
    path.write_text(CONFIG)
    config = load_config(path, {"run": {"image": image}} if image else None)
    text = compile_pipeline(config, tmp_path / "deep" / "pipeline.yaml").read_text()
    # The one line that changes with the SDK and not with the pipeline.
    return "\n".join(line for line in text.splitlines() if not line.startswith("sdkVersion")) + "\n"


def test_the_compiled_pipeline_is_the_golden_file(tmp_path: Path) -> None:
    found = compiled(tmp_path)
    if os.environ.get("LOCKSTEP_UPDATE_GOLDEN"):
        GOLDEN.write_text(found)
    assert found == GOLDEN.read_text(), "the graph changed: review, then LOCKSTEP_UPDATE_GOLDEN=1 pytest tests/golden"


def test_every_step_runs_in_the_configured_image(tmp_path: Path) -> None:
    executors = yaml.safe_load(compiled(tmp_path, "registry/lockstep:1"))["deploymentSpec"]["executors"]
    assert len(executors) == 11
    assert {executor["container"]["image"] for executor in executors.values()} == {"registry/lockstep:1"}


def test_only_steps_without_side_effects_may_be_cached(tmp_path: Path) -> None:
    tasks = yaml.safe_load(compiled(tmp_path))["root"]["dag"]["tasks"]
    uncached = {name for name, task in tasks.items() if not task["cachingOptions"].get("enableCache")}
    assert uncached == {"mint-version", "load-kv", "validate-release", "deploy-release", "publish-release"}


def test_everything_that_is_made_of_a_model_is_told_its_version(tmp_path: Path) -> None:
    tasks = yaml.safe_load(compiled(tmp_path))["root"]["dag"]["tasks"]
    versioned = {
        name
        for name, task in tasks.items()
        if task.get("inputs", {}).get("parameters", {}).get("model_version", {}).get("taskOutputParameter")
        == {"outputParameterKey": "Output", "producerTask": "mint-version"}
    }
    assert versioned == set(tasks) - {"mint-version", "generate-examples", "publish-release"}
    # The release that is published is the one that was deployed, and the graph has no branch.
    release = tasks["publish-release"]["inputs"]["parameters"]["release"]
    assert release["taskOutputParameter"]["producerTask"] == "deploy-release"
    assert not any("triggerPolicy" in task or "iteratorPolicy" in task for task in tasks.values())
