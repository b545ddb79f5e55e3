"""Must show 2: whole pipelines on real data, minutes each; `make test-slow` runs them, `make test` does not.

Skipped with a reason where the data is not there; LOCKSTEP_DATA names the folder that holds it.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipelines.cli import main
from tests.e2e.conftest import finish, start_run
from tests.unit.sources_harness import real_data

CONFIGS = Path(__file__).parent.parent.parent / "configs"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]


@pytest.mark.parametrize(
    ("config", "folder", "k", "floor"),
    [
        ("online_retail.toml", "online-retail-ii", 100, 1.10),
        ("mpd.toml", "online-retail-ii/mpd_format", 20, 1.10),
        ("movielens.toml", "ml-latest-small", 100, 1.0),
    ],
)
def test_a_configuration_runs_and_beats_30_day_popularity(
    config: str, folder: str, k: int, floor: float, tmp_path: Path
) -> None:
    data = real_data(folder)
    began = time.monotonic()
    finish(start_run(tmp_path, CONFIGS / config, data), timeout_s=1800)
    assert time.monotonic() - began < 15 * 60
    output = CliRunner().invoke(main, ["releases", "--root", str(tmp_path), "--json"]).output
    (release,) = json.loads(output)["releases"]
    test = release["metrics"]["test"]
    assert release["state"] == "live"
    assert test["model"][f"recall@{k}"] >= floor * test["popularity"][f"recall@{k}"], test
