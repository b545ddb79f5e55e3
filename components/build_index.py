"""Component: build the ANN index."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Output

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def build_index(
    run: str,
    model_version: int,
    index: dict,
    candidate_embeddings: Input[Dataset],
    query_embeddings: Input[Dataset],
    ann_index: Output[Artifact],
) -> None:
    """Build the index of the candidate embeddings of one model version, tuned to a recall.

    Args:
        run: The run's id.
        model_version: The version of the embeddings; the index takes queries of no other.
        index: Section [index] of the configuration.
        candidate_embeddings: From embed_candidates.
        query_embeddings: From embed_queries; some are searched for to tune the index.
        ann_index: The index.
    """
    from pathlib import Path

    from components.envelope import stamp, start_step
    from lockstep.config import IndexSection, parse_section
    from lockstep.version import ModelVersion
    from serving import build_index as job

    start_step()
    tag = job.run(
        candidate_embeddings=Path(candidate_embeddings.path),
        query_embeddings=Path(query_embeddings.path),
        index=Path(ann_index.path),
        model_version=ModelVersion(model_version),
        run_id=run,
        section=parse_section(IndexSection, index),
    )
    stamp(ann_index, tag)
