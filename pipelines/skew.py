"""What `lockstep skew` does: measure offline what mixing model versions would cost, and show it."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from lockstep.version import ModelVersion
from trainer.skew import job
from trainer.skew.table import table

_MOST_THREADS = 8


def measure_skew(root: str, versions: Sequence[ModelVersion], ks: Sequence[int], queries: int, output: Path) -> str:
    """Measure every pair of versions, and describe what was found.

    Args:
        versions: which; none for those of the live and the retained releases.
        ks: where recall is measured.
        queries: at most so many test queries.
        output: where skew.json, skew.csv and skew.svg go.
    """
    logging.basicConfig(format="%(message)s")  # to stderr: the table can go into a file
    logging.getLogger(job.__package__).setLevel(logging.INFO)
    threads = min(os.cpu_count() or 1, _MOST_THREADS)
    report = job.run(root=root, versions=versions, ks=ks, queries=queries, output=output, threads=threads)
    return f"{table(report)}\nwrote skew.json, skew.csv and skew.svg to {output}"
