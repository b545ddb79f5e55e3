"""Compile the pipeline of a configuration: one graph for the laptop, KFP and Vertex AI."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lockstep.config import Config
from lockstep.storage import write_atomically

SECTIONS = ("data", "model", "train", "evaluate", "embed", "index", "kv", "gate")


def parameters(config: Config) -> dict[str, Any]:
    """The pipeline's parameters that come from the configuration; `root` and `run` are the run's own."""
    return {
        **{name: getattr(config, name).to_dict() for name in SECTIONS},
        "schema": config.schema_.to_dict(),
    }


def compile_pipeline(config: Config, output: Path) -> Path:
    """Write the compiled pipeline, the configuration as its parameters' defaults.

    Args:
        output: a .yaml file; its folder is made.
    """
    import yaml
    from kfp import compiler

    from pipelines.train_and_deploy import train_and_deploy

    output.parent.mkdir(parents=True, exist_ok=True)
    compiler.Compiler().compile(train_and_deploy, str(output), pipeline_parameters=parameters(config))
    # Read back and written anew: KFP's comment header lists dicts in any order, and the file should be
    # the same bytes for the same configuration.
    spec = yaml.safe_load(output.read_text())
    for executor in spec["deploymentSpec"]["executors"].values():
        executor["container"]["image"] = config.run.image
    write_atomically(output, yaml.safe_dump(spec, sort_keys=True).encode())
    return output
