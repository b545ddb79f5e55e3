"""Component: turn interactions into training examples."""

from kfp import dsl
from kfp.dsl import HTML, Artifact, Dataset, Output

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def generate_examples(
    run: str,
    data: dict,
    schema: dict,
    examples: Output[Dataset],
    preprocessing: Output[Artifact],
    entities: Output[Dataset],
    report: Output[HTML],
) -> None:
    """Turn interactions into training examples, vocabularies and the entities as they are now.

    Args:
        run: The run's id.
        data: Section [data] of the configuration.
        schema: Section [schema] of the configuration.
        examples: Training records, evaluation queries, report.json and report.html.
        preprocessing: The module from raw features to ids and floats.
        entities: Every candidate and query entity as of now.
        report: The same report.html, where KFP and Vertex AI show it.
    """
    import shutil
    from pathlib import Path

    from components.envelope import stamp, start_step
    from dataflow import generate
    from lockstep.config import DataSection, parse_schema, parse_section
    from lockstep.tags import read_tag

    start_step()
    tag = generate.run(
        examples=Path(examples.path),
        preprocessing=Path(preprocessing.path),
        entities=Path(entities.path),
        run_id=run,
        data=parse_section(DataSection, data),
        schema=parse_schema(schema),
    )
    stamp(examples, tag)
    stamp(preprocessing, read_tag(Path(preprocessing.path)))
    stamp(entities, read_tag(Path(entities.path)))
    shutil.copyfile(Path(examples.path) / "report.html", report.path)
