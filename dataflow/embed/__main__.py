"""One worker's part of a batch embedding: `python -m dataflow.embed --worker 0 --workers 4 ...`.

When all workers are done, run the component (`python -m components embed_candidates`) with the same output folder: it
finds their files, makes what is missing, checks the whole and writes the tag.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from dataflow.embed.job import embed_shards
from dataflow.embed.rows import FOLDERS
from lockstep.config import load_config
from lockstep.errors import LockstepError
from lockstep.version import ModelVersion


def main(argv: list[str] | None = None) -> None:
    """Parse the command line and embed."""
    parser = argparse.ArgumentParser(
        prog="python -m dataflow.embed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("tower", "entities", "output"):
        parser.add_argument(f"--{name}", type=Path, required=True, help=f"the folder of the {name}")
    parser.add_argument("--side", choices=sorted(FOLDERS), required=True)
    parser.add_argument("--model-version", type=_version, required=True, help="such as v7")
    parser.add_argument("--snapshot", type=int, default=1)
    parser.add_argument("--config", type=Path, required=True, help="the configuration, for [embed]")
    parser.add_argument("--worker", type=int, required=True, help="from 0")
    parser.add_argument("--workers", type=int, required=True)
    given = parser.parse_args(argv)
    if not 0 <= given.worker < given.workers:
        parser.error(f"--worker {given.worker} of --workers {given.workers}: expected one of them, from 0")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        made = embed_shards(
            tower=given.tower,
            entities=given.entities,
            output=given.output,
            side=given.side,
            model_version=given.model_version,
            snapshot=given.snapshot,
            section=load_config(given.config).embed,
            worker=given.worker,
            workers=given.workers,
        )
    except LockstepError as error:
        parser.exit(1, f"Error: {error}\n")
    logging.getLogger(__name__).info("worker %d of %d made %d files", given.worker, given.workers, made)


def _version(text: str) -> ModelVersion:
    try:
        return ModelVersion.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


if __name__ == "__main__":
    main()
