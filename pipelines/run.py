"""Run the pipeline on this machine with `kfp.local`: the same components, one process a step.

<root>/runs/<run>/
  config.json                  the parameters of the run
  logs/03-train_towers.log     everything a step printed
  training/                    checkpoints and TensorBoard logs
  train-and-deploy-*/          the artifacts, a folder a step
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import secrets
import sys
import time
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from components.envelope import PROGRESS, RUNNER
from lockstep.config import Config
from lockstep.errors import ConfigError, LockstepError, StorageError
from lockstep.storage import write_atomically
from pipelines.compile import parameters

_STARTED = re.compile(r"Executing task (?:\x1b\[\d+m)*'([a-z0-9-]+)'")
_FINISHED = re.compile(r"Task (?:\x1b\[\d+m)*'([a-z0-9-]+)'(?:\x1b\[\d+m)* finished with status (?:\x1b\[\d+m)*(\w+)")
_ERROR = re.compile(r"\s*lockstep\.errors\.\w+: (.+)")
_OTHER_ERROR = re.compile(r"\s*((?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Interrupt)\b.*)")


class StepFailedError(LockstepError):
    """A step of the pipeline failed; its own sentence, and where the rest is."""

    def __init__(self, step: str, sentence: str, log: Path) -> None:
        super().__init__(f"step {step} failed: {sentence}\n  its log: {log}\n  the live release is unchanged")


def new_run_id(now: datetime | None = None) -> str:
    """A run id that sorts by time; two runs that start together differ."""
    return f"{(now or datetime.now(UTC)):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"


def run_pipeline(config: Config, run: str, say: Callable[[str], None] = print) -> str:
    """Train and deploy on this machine; returns when the release is published.

    Args:
        run: the run's id.
        say: takes each line of progress.

    Returns:
        The root, absolute.

    Raises:
        StepFailedError: a step failed; nothing that was live has changed.
    """
    root = config.run.root
    if "://" in root:
        raise ConfigError(
            f"[run] root is {root}: `lockstep run` needs a local folder; for the cloud, `lockstep submit`"
        )
    from kfp import local

    from pipelines.train_and_deploy import train_and_deploy

    root = str(Path(root).expanduser().resolve())
    folder = Path(root) / "runs" / run
    try:
        (folder / "logs").mkdir(parents=True)
    except OSError as error:
        raise StorageError(f"cannot write below {root}: {error.strerror}; choose another root with --root") from error
    say(f"run {run}; everything goes to {root}")
    arguments = parameters(_absolute(config))
    write_atomically(folder / "config.json", json.dumps(arguments, indent=1, sort_keys=True).encode())
    steps = len(train_and_deploy.pipeline_spec.root.dag.tasks)
    with warnings.catch_warnings(), _StepLog(folder / "logs", steps, say) as log, contextlib.redirect_stdout(log):
        warnings.simplefilter("ignore")
        local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(folder), raise_on_error=True)
        os.environ[RUNNER] = str(os.getpid())
        try:
            train_and_deploy(root=root, run=run, **arguments)
        except RuntimeError as error:
            raise log.failure(error) from error
    return root


def _absolute(config: Config) -> Config:
    """The configuration with its data path made absolute: steps may run in any working directory."""
    if not config.data.path or "://" in config.data.path:
        return config
    path = str(Path(config.data.path).expanduser().resolve())
    return config.model_copy(update={"data": config.data.model_copy(update={"path": path})})


class _StepLog(io.TextIOBase):
    """Takes what `kfp.local` prints, keeps it in a file a step, and passes on what a person wants to see."""

    def __init__(self, folder: Path, steps: int, say: Callable[[str], None]) -> None:
        self._folder = folder
        self._steps = steps
        self._terminal = sys.stdout
        self._say = say
        self._number = 0
        self._step = "start"
        self._began = time.monotonic()
        self._file: TextIO | None = None
        self._line = ""
        self._sentence = ""
        self._other = ""

    def write(self, text: str) -> int:
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            self._take(line)
        return len(text)

    def failure(self, error: Exception) -> LockstepError:
        """The error of the step that is under way."""
        return StepFailedError(self._step, self._sentence or self._other or str(error), self._path())

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        super().close()

    def _take(self, line: str) -> None:
        started, finished = _STARTED.search(line), _FINISHED.search(line)
        if started:
            self._start(started[1].replace("-", "_"))
        if self._file is not None:
            self._file.write(line.removeprefix("    ") + "\n")
            self._file.flush()
        text = line.strip()
        if text.startswith(PROGRESS):
            self._tell(f"        {text.removeprefix(PROGRESS)}")
        elif finished:
            took = time.monotonic() - self._began
            done = "done" if finished[2] == "SUCCESS" else "failed"
            self._tell(f"        {done} in {took:.1f} s")
        elif match := _ERROR.match(line):
            self._sentence = match[1]
        elif match := _OTHER_ERROR.match(line):
            self._other = match[1]

    def _start(self, step: str) -> None:
        self._number += 1
        self._step = step
        self._began = time.monotonic()
        self._sentence = self._other = ""
        if self._file is not None:
            self._file.close()
        self._file = self._path().open("w", encoding="utf-8")
        self._tell(f"[{self._number:2}/{self._steps}] {step}")

    def _path(self) -> Path:
        return self._folder / f"{self._number:02}-{self._step}.log"

    def _tell(self, line: str) -> None:
        # `say` prints to the real terminal, not back into this object.
        with contextlib.redirect_stdout(self._terminal):
            self._say(line)
