"""Component: the gate."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Metrics, Model, Output

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def validate_release(
    root: str,
    run: str,
    model_version: int,
    gate: dict,
    evaluation: Input[Metrics],
    entities: Input[Dataset],
    query_tower: Input[Model],
    candidate_tower: Input[Model],
    query_embeddings: Input[Dataset],
    candidate_embeddings: Input[Dataset],
    ann_index: Input[Artifact],
    kv_load: Input[Artifact],
    verdict: Output[Metrics],
) -> None:
    """Check the whole system of one model version together, and stop the pipeline unless all is well.

    Args:
        root: The folder or gs:// prefix; the embedded store is in kv/ below it.
        run: The run's id.
        model_version: The version that every part must have.
        gate: Section [gate] of the configuration.
        evaluation: From evaluate_towers.
        entities: From generate_examples.
        query_tower: From train_towers.
        candidate_tower: From train_towers.
        query_embeddings: From embed_queries.
        candidate_embeddings: From embed_candidates.
        ann_index: From build_index.
        kv_load: From load_kv.
        verdict: Every check with its value and limit.
    """
    from pathlib import Path

    from components.envelope import mounted, stamp, start_step
    from lockstep.config import GateSection, parse_section
    from lockstep.version import ModelVersion
    from serving import validate as job

    start_step()
    tag = job.run(
        evaluation=Path(evaluation.path),
        entities=Path(entities.path),
        query_tower=Path(query_tower.path),
        candidate_tower=Path(candidate_tower.path),
        query_embeddings=Path(query_embeddings.path),
        candidate_embeddings=Path(candidate_embeddings.path),
        index=Path(ann_index.path),
        kv_load=Path(kv_load.path),
        kv_root=mounted(root) / "kv",
        verdict=Path(verdict.path),
        model_version=ModelVersion(model_version),
        run_id=run,
        section=parse_section(GateSection, gate),
    )
    stamp(verdict, tag)
