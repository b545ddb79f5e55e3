"""Component: measure both towers over the full catalogue."""

from kfp import dsl
from kfp.dsl import HTML, Dataset, Input, Metrics, Model, Output

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def evaluate_towers(
    run: str,
    model_version: int,
    evaluate: dict,
    examples: Input[Dataset],
    entities: Input[Dataset],
    query_tower: Input[Model],
    candidate_tower: Input[Model],
    evaluation: Output[Metrics],
    report: Output[HTML],
) -> None:
    """Measure the exported towers exactly, over the full catalogue, against the baselines.

    Args:
        run: The run's id.
        model_version: The minted model version.
        evaluate: Section [evaluate] of the configuration.
        examples: From generate_examples.
        entities: From generate_examples.
        query_tower: From train_towers.
        candidate_tower: From train_towers.
        evaluation: report.json and report.html.
        report: The same report.html, where KFP and Vertex AI show it.
    """
    import shutil
    from pathlib import Path

    from components.envelope import stamp, start_step
    from lockstep.config import parse_section
    from lockstep.model_sections import EvaluateSection
    from lockstep.version import ModelVersion
    from trainer import evaluate as job

    start_step()
    tag = job.run(
        examples=Path(examples.path),
        entities=Path(entities.path),
        query_tower=Path(query_tower.path),
        candidate_tower=Path(candidate_tower.path),
        evaluation=Path(evaluation.path),
        model_version=ModelVersion(model_version),
        run_id=run,
        section=parse_section(EvaluateSection, evaluate),
    )
    stamp(evaluation, tag)
    shutil.copyfile(Path(evaluation.path) / "report.html", report.path)
