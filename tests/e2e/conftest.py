"""Whole pipelines on tiny data, run once and shared: each takes a good part of a minute."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

TINY = Path(__file__).parent / "tiny.toml"


def start_run(root: Path, config: Path = TINY, data: Path | None = None) -> subprocess.Popen[str]:
    """`lockstep run` in a process group of its own, so that all of it can be killed."""
    command = [sys.executable, "-m", "pipelines.cli", "run", "--config", str(config), "--root", str(root)]
    command += [] if data is None else ["--data", str(data)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def finish(process: subprocess.Popen[str], timeout_s: float = 280) -> str:
    """Wait for a run to end well; what it printed."""
    output, _ = process.communicate(timeout=timeout_s)
    assert process.returncode == 0, output
    return output


def kill_at(process: subprocess.Popen[str], step: str, delay_s: float = 0.0) -> None:
    """SIGKILL a run and every process of it, this long after a step began."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.rstrip().endswith(f"] {step}"):
            break
    else:
        pytest.fail(f"the run ended before {step}")
    threading.Event().wait(delay_s)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


@dataclass
class Roots:
    """The life of one root.

    Args:
        first: a copy of it after the first run.
        now: the root after a run that was killed and two more that ran at once.
        first_output, outputs: what the runs printed.
        answers_after_kill: release that answered while the killed run lay there.
    """

    first: Path
    now: Path
    first_output: str
    outputs: list[str] = field(default_factory=list)


@pytest.fixture(scope="session")
def first_root(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A root with one release, v1.1, and what its run printed."""
    root = tmp_path_factory.mktemp("first") / "root"
    return root, finish(start_run(root))


@pytest.fixture(scope="session")
def roots(first_root: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory) -> Roots:
    """v1 published; v2 killed while it trained; v3 and v4 run at once."""
    first, output = first_root
    now = tmp_path_factory.mktemp("now") / "root"
    shutil.copytree(first, now)
    kill_at(start_run(now), "train_towers", delay_s=3.0)
    both = [start_run(now), start_run(now)]
    return Roots(first, now, output, [finish(process) for process in both])


@pytest.fixture
def copy_of(tmp_path: Path) -> Callable[[Path], Path]:
    """Copies a root, to be damaged."""
    return lambda root: Path(shutil.copytree(root, tmp_path / "copy"))
