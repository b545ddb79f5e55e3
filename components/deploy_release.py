"""Component: register the release and open it as serving will."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Metrics, Model

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def deploy_release(
    root: str,
    run: str,
    model_version: int,
    snapshot: int,
    examples: Input[Dataset],
    preprocessing: Input[Artifact],
    evaluation: Input[Metrics],
    entities: Input[Dataset],
    query_tower: Input[Model],
    candidate_tower: Input[Model],
    query_embeddings: Input[Dataset],
    candidate_embeddings: Input[Dataset],
    ann_index: Input[Artifact],
    kv_load: Input[Artifact],
    verdict: Input[Metrics],
) -> str:
    """Bind every part into an immutable release, open it exactly as serving does, and answer one query.

    Args:
        root: The folder or gs:// prefix that holds the registry.
        run: The run's id.
        model_version: The version that every part must have.
        snapshot: The snapshot of the embeddings.
        examples: From generate_examples.
        preprocessing: From generate_examples.
        evaluation: From evaluate_towers.
        entities: From generate_examples.
        query_tower: From train_towers.
        candidate_tower: From train_towers.
        query_embeddings: From embed_queries.
        candidate_embeddings: From embed_candidates.
        ann_index: From build_index.
        kv_load: From load_kv.
        verdict: From validate_release; a release without one is not deployed.

    Returns:
        The release, such as v7.1.
    """
    from components.envelope import mounted, start_step
    from lockstep.version import ModelVersion, ReleaseId
    from serving import deploy as job

    start_step()
    release = job.run(
        root=str(mounted(root)),
        release_id=ReleaseId(ModelVersion(model_version), snapshot),
        run_id=run,
        parts={
            "examples": examples.path,
            "preprocessing": preprocessing.path,
            "evaluation": evaluation.path,
            "entities": entities.path,
            "query_tower": query_tower.path,
            "candidate_tower": candidate_tower.path,
            "query_embeddings": query_embeddings.path,
            "candidate_embeddings": candidate_embeddings.path,
            "index": ann_index.path,
            "kv_load": kv_load.path,
            "verdict": verdict.path,
        },
    )
    return str(release.id)
