"""Submit the compiled pipeline to a KFP cluster or to Vertex AI."""

from __future__ import annotations

import tempfile
from pathlib import Path

from lockstep.config import Config
from lockstep.errors import ConfigError
from pipelines.compile import compile_pipeline


def check_backends(config: Config) -> None:
    """Refuse what cannot work away from this machine, before anything is submitted.

    Raises:
        ConfigError: the root is local, or a backend is embedded.
    """
    if not config.run.root.startswith("gs://"):
        raise ConfigError(
            f"[run] root is {config.run.root}: steps on a cluster share no local disk; use gs://bucket/prefix (--root)"
        )
    if config.kv.backend == "embedded":
        raise ConfigError(
            "[kv] backend is embedded: it is a file on one machine, and the steps of a cluster run on several; "
            "networked stores (redis, bigtable) are not in this release yet, so use `lockstep run`"
        )


def submit_to_kfp(config: Config, run: str, host: str) -> str:
    """Start a run on a KFP cluster.

    Args:
        host: the address of the KFP API, such as http://localhost:8080.

    Returns:
        The run's id on the cluster.
    """
    from kfp.client import Client

    with tempfile.TemporaryDirectory() as folder:
        package = compile_pipeline(config, Path(folder) / "pipeline.yaml")
        started = Client(host=host).create_run_from_pipeline_package(
            str(package), arguments={"root": config.run.root, "run": run}, run_name=run, experiment_name="lockstep"
        )
    return str(started.run_id)


def submit_to_vertex(config: Config, run: str, project: str, location: str, service_account: str | None) -> str:
    """Start a run on Vertex AI Pipelines.

    Returns:
        The resource name of the pipeline job.
    """
    try:
        from google.cloud import aiplatform
    except ImportError as error:
        raise ConfigError("submitting to Vertex AI needs its client: pip install 'lockstep-retrieval[gcp]'") from error

    with tempfile.TemporaryDirectory() as folder:
        package = compile_pipeline(config, Path(folder) / "pipeline.yaml")
        job = aiplatform.PipelineJob(
            display_name=f"train-and-deploy {run}",
            template_path=str(package),
            pipeline_root=f"{config.run.root}/runs/{run}",
            parameter_values={"root": config.run.root, "run": run},
            project=project,
            location=location,
        )
        job.submit(service_account=service_account)
    return str(job.resource_name)
