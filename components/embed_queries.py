"""Component: embed every query entity."""

from kfp import dsl
from kfp.dsl import Dataset, Input, Model, Output

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def embed_queries(
    run: str,
    model_version: int,
    snapshot: int,
    embed: dict,
    query_tower: Input[Model],
    entities: Input[Dataset],
    query_embeddings: Output[Dataset],
) -> None:
    """Embed all query entities with the query tower of one model version.

    Args:
        run: The run's id.
        model_version: The version of the tower.
        snapshot: The number of this embedding run of that version.
        embed: Section [embed] of the configuration.
        query_tower: From train_towers.
        entities: From generate_examples.
        query_embeddings: One row for each of the query entities, stamped with the version.
    """
    from pathlib import Path

    from components.envelope import stamp, start_step
    from dataflow import embed as job
    from lockstep.config import EmbedSection, parse_section
    from lockstep.version import ModelVersion

    start_step()
    tag = job.run(
        tower=Path(query_tower.path),
        entities=Path(entities.path),
        output=Path(query_embeddings.path),
        side="query",
        model_version=ModelVersion(model_version),
        snapshot=snapshot,
        run_id=run,
        section=parse_section(EmbedSection, embed),
    )
    stamp(query_embeddings, tag)
