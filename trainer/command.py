"""`python -m trainer.task`: the training job with the conventions of Vertex AI's custom training.

Vertex AI says in the environment where things go: AIP_MODEL_DIR (the towers), AIP_CHECKPOINT_DIR (`--work`),
AIP_TENSORBOARD_LOG_DIR, and TF_CONFIG where several machines train together. Its gs:// addresses are mounted below
/gcs, and are read and written there.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Any

import click

from lockstep.config import load_config
from lockstep.errors import LockstepError
from lockstep.storage import mounted
from lockstep.version import ModelVersion


class _Folder(click.ParamType):
    name = "folder"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        return value if isinstance(value, Path) else mounted(value)


def _from_environment(variable: str, name: str = "") -> Any:
    """Where an option is not given: the folder that Vertex AI names, or one below it."""

    def callback(ctx: click.Context, param: click.Parameter, value: Path | None) -> Path:
        folder = os.environ.get(variable)
        if value is None and not folder:
            raise click.MissingParameter(ctx=ctx, param=param)
        return value or mounted(str(folder)) / name

    return callback


_FOLDER: dict[str, Any] = {"type": _Folder(), "metavar": "FOLDER"}


@click.command(context_settings={"max_content_width": 100, "help_option_names": ["-h", "--help"]})
@click.option("--config", type=click.Path(path_type=Path), required=True, metavar="FILE", help="[model] and [train].")
@click.option("--examples", **_FOLDER, required=True, help="Artifact of generate_examples.")
@click.option("--preprocessing", **_FOLDER, required=True, help="Artifact of generate_examples, of the same run.")
@click.option("--model-version", type=click.IntRange(min=1), required=True, help="As minted in the registry.")
@click.option(
    "--run", "run_id", envvar="CLOUD_ML_JOB_ID", required=True, help="The run's id; Vertex AI's job by default."
)
@click.option(
    "--query-tower",
    **_FOLDER,
    callback=_from_environment("AIP_MODEL_DIR", "query_tower"),
    help="Output; $AIP_MODEL_DIR/query_tower by default.",
)
@click.option(
    "--candidate-tower",
    **_FOLDER,
    callback=_from_environment("AIP_MODEL_DIR", "candidate_tower"),
    help="Output; $AIP_MODEL_DIR/candidate_tower by default.",
)
@click.option(
    "--work",
    **_FOLDER,
    callback=_from_environment("AIP_CHECKPOINT_DIR"),
    help="Checkpoints and logs, which a restarted job goes on from; $AIP_CHECKPOINT_DIR by default.",
)
@click.option(
    "--warm-start-query-tower", **_FOLDER, help="Begin with the weights of an earlier version: its artifacts."
)
@click.option("--warm-start-candidate-tower", **_FOLDER)
@click.option("--warm-start-preprocessing", **_FOLDER)
def main(
    config: Path,
    examples: Path,
    preprocessing: Path,
    model_version: int,
    run_id: str,
    query_tower: Path,
    candidate_tower: Path,
    work: Path,
    warm_start_query_tower: Path | None,
    warm_start_candidate_tower: Path | None,
    warm_start_preprocessing: Path | None,
) -> None:
    """Train both towers and export them; run again with the same --work, it goes on where it was killed.

    Several machines find one another through TF_CONFIG and share --work; the chief exports. Before the start,
    GLIBC_TUNABLES=glibc.malloc.hugetlb=1 takes 7 to 18 % off the processor time on Linux.
    """
    from trainer import task  # TensorFlow

    logging.basicConfig(stream=sys.stdout, format="%(message)s")
    for name in ("lockstep", "trainer"):
        logging.getLogger(name).setLevel(logging.INFO)
    given = (warm_start_query_tower, warm_start_candidate_tower, warm_start_preprocessing)
    try:
        loaded = load_config(config)
        if loaded.train.warm_start and not any(given):
            click.echo("[train] warm_start is set, and no --warm-start artifacts are given: a cold start")
        task.run(
            examples=examples,
            preprocessing=preprocessing,
            query_tower=query_tower,
            candidate_tower=candidate_tower,
            work=work,
            model_version=ModelVersion(model_version),
            run_id=run_id,
            model=loaded.model,
            train=loaded.train,
            warm_start=_warm_start(given),
        )
    except LockstepError as error:
        raise click.ClickException(str(error)) from error


def _warm_start(folders: tuple[Path | None, ...]) -> Any:
    from trainer.warm_start import WarmStart

    given = [folder for folder in folders if folder is not None]
    if given and len(given) < len(folders):
        raise click.UsageError("a warm start needs both towers and the preprocessing of the earlier version.")
    return WarmStart.open(*given) if given else None
