"""Must show 4, with whole runs: one run killed in each step, then one that ends well. `make test-slow` runs it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from lockstep.errors import IncompleteArtifactError
from lockstep.registry import Registry
from lockstep.storage import open_root
from lockstep.tags import open_artifact, read_tag
from tests.e2e.conftest import finish, kill_at, start_run
from tests.e2e.test_pipeline_e2e import STEPS, entity_of, query

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]


def test_a_run_killed_in_each_step_disturbs_nothing(first_root: tuple[Path, str], tmp_path: Path) -> None:
    root = Path(shutil.copytree(first_root[0], tmp_path / "root"))
    entity = entity_of(root)
    before = query(root, "--entity", entity)
    for step in STEPS:
        # Not at once: the step's process needs a moment to get to its work.
        kill_at(start_run(root), step, delay_s=0.3 if step in ("mint_version", "publish_release") else 1.5)
        serving = Registry(open_root(str(root))).serving()
        if str(serving.live) == "v1.1":  # the pointer moves in one step: it is here or there
            assert query(root, "--entity", entity) == before
        else:
            assert step == "publish_release"
            assert not query(root, "--entity", entity)["degraded"]
    for tag in root.glob("runs/*/train-and-deploy-*/*/*/tag.json"):
        open_artifact(tag.parent, read_tag(tag.parent).kind)
    for folder in root.glob("runs/*/train-and-deploy-*/*/*"):
        if folder.is_dir() and not (folder / "tag.json").exists():
            with pytest.raises(IncompleteArtifactError):
                read_tag(folder)
    finish(start_run(root))
    registry = Registry(open_root(str(root)))
    versions = registry.versions()
    runs = [json.loads((root / f"registry/versions/{int(v)}.json").read_text())["run"] for v in versions]
    # A run that was killed before it took a number took none; no number was taken twice.
    assert len(STEPS) + 1 <= len(versions) <= len(STEPS) + 2
    assert len(set(runs)) == len(versions)
    assert registry.serving().live is not None
    assert registry.serving().live.model_version == versions[-1]  # type: ignore[union-attr]
    assert query(root, "--entity", entity)["rung"] == f"kv {versions[-1]}"
