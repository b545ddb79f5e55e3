"""Component: load the query embeddings into the key-value store."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Output

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def load_kv(
    root: str,
    run: str,
    model_version: int,
    kv: dict,
    query_embeddings: Input[Dataset],
    kv_load: Output[Artifact],
) -> None:
    """Load the query embeddings of one model version and publish them at once.

    Args:
        root: The folder or gs:// prefix; the embedded store is in kv/ below it.
        run: The run's id.
        model_version: The version of the embeddings.
        kv: Section [kv] of the configuration.
        query_embeddings: From embed_queries.
        kv_load: The receipt: namespace, rows, dimension.
    """
    from pathlib import Path

    from components.envelope import mounted, stamp, start_step
    from lockstep.config import KVSection, parse_section
    from lockstep.version import ModelVersion
    from serving import load_kv as job

    start_step()
    tag = job.run(
        query_embeddings=Path(query_embeddings.path),
        kv_load=Path(kv_load.path),
        kv_root=mounted(root) / "kv",
        model_version=ModelVersion(model_version),
        run_id=run,
        section=parse_section(KVSection, kv),
    )
    stamp(kv_load, tag)
