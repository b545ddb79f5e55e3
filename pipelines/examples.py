"""The data step alone: examples, preprocessing and entities into a folder, or what they would cost."""

from __future__ import annotations

from pathlib import Path

from lockstep.config import Config
from lockstep.errors import StorageError
from lockstep.tags import Tag


def make_examples(config: Config, output: Path, run: str) -> Tag:
    """Run the data step.

        <output>/examples/         see dataflow.generate
        <output>/preprocessing/    see dataflow.preprocessing
        <output>/entities/         see dataflow.entities

    Returns:
        The tag of the examples.

    Raises:
        StorageError: the folder cannot be written.
    """
    from dataflow import generate

    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot write below {output}: {error.strerror}; name another --output") from error
    return generate.run(
        examples=output / "examples",
        preprocessing=output / "preprocessing",
        entities=output / "entities",
        run_id=run,
        data=config.data,
        schema=config.schema_,
    )


def describe_costs(config: Config, price_per_tib: float) -> str:
    """What the data step would read and cost."""
    from dataflow.estimate import describe

    return describe(config.data, config.schema_, price_per_tib)
