"""Component: train both towers."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Model, Output

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def train_towers(
    root: str,
    run: str,
    model_version: int,
    model: dict,
    train: dict,
    examples: Input[Dataset],
    preprocessing: Input[Artifact],
    query_tower: Output[Model],
    candidate_tower: Output[Model],
) -> None:
    """Train both towers and bake the model version into each.

    Args:
        root: The folder or gs:// prefix; its live release is what [train] warm_start begins with, and
            checkpoints and TensorBoard logs go to runs/RUN/training below it.
        run: The run's id.
        model_version: The minted model version.
        model: Section [model] of the configuration.
        train: Section [train] of the configuration.
        examples: From generate_examples.
        preprocessing: From generate_examples.
        query_tower: The exported query tower.
        candidate_tower: The exported candidate tower.
    """
    from pathlib import Path

    from components.envelope import mounted, stamp, start_step
    from lockstep.config import parse_section
    from lockstep.model_sections import ModelSection, TrainSection
    from lockstep.tags import read_tag
    from lockstep.version import ModelVersion
    from trainer import task
    from trainer.warm_start import WarmStart

    start_step()
    work = mounted(root) / "runs" / run / "training"
    section = parse_section(TrainSection, train)
    warm = WarmStart.from_live_release(str(mounted(root)), work / "warm_start") if section.warm_start else None
    task.run(
        examples=Path(examples.path),
        preprocessing=Path(preprocessing.path),
        query_tower=Path(query_tower.path),
        candidate_tower=Path(candidate_tower.path),
        work=work,
        model_version=ModelVersion(model_version),
        run_id=run,
        model=parse_section(ModelSection, model),
        train=section,
        warm_start=warm,
    )
    stamp(query_tower, read_tag(Path(query_tower.path)))
    stamp(candidate_tower, read_tag(Path(candidate_tower.path)))
