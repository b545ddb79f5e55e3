"""What every component does around its job: logging, mounted paths, the tag's claims on the artifact."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

from lockstep.tags import Tag

PROGRESS = "» "
"""Begins every line that a job logs, so that `lockstep run` can tell progress from a library's chatter."""


def start_logging() -> None:
    """Send the jobs' progress to standard output, marked."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter(PROGRESS + "%(message)s"))
    for name in ("lockstep", "dataflow", "trainer", "serving"):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel(logging.INFO)
        logger.propagate = False


def mounted(uri: str) -> Path:
    """The path under which an address is mounted: KFP and Vertex AI show gs://bucket as /gcs/bucket."""
    return Path("/gcs/" + uri.removeprefix("gs://")) if uri.startswith("gs://") else Path(uri)


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
