"""Component: embed every candidate."""

from kfp import dsl
from kfp.dsl import Dataset, Input, Model, Output

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def embed_candidates(
    run: str,
    model_version: int,
    snapshot: int,
    embed: dict,
    candidate_tower: Input[Model],
    entities: Input[Dataset],
    candidate_embeddings: Output[Dataset],
) -> None:
    """Embed all candidates with the candidate tower of one model version.

    Args:
        run: The run's id.
        model_version: The version of the tower.
        snapshot: The number of this embedding run of that version.
        embed: Section [embed] of the configuration.
        candidate_tower: From train_towers.
        entities: From generate_examples.
        candidate_embeddings: One row for each of the candidates, stamped with the version.
    """
    from pathlib import Path

    from components.envelope import stamp, start_step
    from dataflow import embed as job
    from lockstep.config import EmbedSection, parse_section
    from lockstep.version import ModelVersion

    start_step()
    tag = job.run(
        tower=Path(candidate_tower.path),
        entities=Path(entities.path),
        output=Path(candidate_embeddings.path),
        side="candidate",
        model_version=ModelVersion(model_version),
        snapshot=snapshot,
        run_id=run,
        section=parse_section(EmbedSection, embed),
    )
    stamp(candidate_embeddings, tag)
