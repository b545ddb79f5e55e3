"""What every component does around its job: logging, mounted paths, the tag's claims on the artifact."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from lockstep.storage import mounted as mounted
from lockstep.tags import Tag

PROGRESS = "» "
"""Begins every line that a job logs, so that `lockstep run` can tell progress from a library's chatter."""


RUNNER = "LOCKSTEP_RUNNER_PID"
"""Where `lockstep run` tells its steps which process they belong to."""
_LOOK_SECONDS = 1.0


def start_step() -> None:
    """Send the jobs' progress to standard output, marked; and end when the `lockstep run` that began the step ends."""
    _end_with_runner()
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter(PROGRESS + "%(message)s"))
    for name in ("lockstep", "dataflow", "trainer", "serving"):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel(logging.INFO)
        logger.propagate = False


def _end_with_runner() -> None:
    """A step whose runner was killed must not go on unseen, perhaps to publish; its artifacts are unfinished then."""
    runner = os.environ.get(RUNNER)
    if runner is None:
        return

    def watch() -> None:
        while Path(f"/proc/{runner}").exists() and not _is_zombie(int(runner)):
            time.sleep(_LOOK_SECONDS)
        os.kill(os.getpid(), signal.SIGKILL)

    if Path("/proc/self").exists():  # elsewhere there is no cheap way to look
        threading.Thread(target=watch, daemon=True).start()


def _is_zombie(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def stamp(artifact: Any, tag: Tag) -> None:
    """Copy a tag's main facts to the KFP artifact, where people look; the tag itself stays the fact."""
    artifact.metadata.update(
        kind=str(tag.kind),
        rows=tag.rows,
        run=tag.run,
        schema=tag.schema,
        tag_digest=tag.digest,
    )
    if tag.model_version is not None:
        artifact.metadata["model_version"] = int(tag.model_version)
    if tag.snapshot is not None:
        artifact.metadata["snapshot"] = tag.snapshot
