"""Submit the compiled pipeline to a KFP cluster or to Vertex AI."""

from __future__ import annotations

import contextlib
import io
import tempfile
from pathlib import Path

from lockstep.config import Config
from lockstep.errors import ConfigError, SubmissionError
from pipelines.compile import compile_pipeline


def check_backends(config: Config, to: str) -> None:
    """Refuse what cannot work away from this machine, before anything is submitted.

    Raises:
        ConfigError: the steps would not share the root, or the store.
    """
    root = config.run.root
    if to == "vertex" and not root.startswith("gs://"):
        raise ConfigError(f"[run] root is {root}: steps on Vertex AI share no disk; use gs://bucket/prefix (--root)")
    if to == "kfp" and not root.startswith(("gs://", "/")):
        raise ConfigError(
            f"[run] root is {root}: use gs://bucket/prefix, or the absolute path of a volume that every step mounts"
        )
    if root.startswith("gs://") and config.kv.backend == "embedded":
        raise ConfigError(
            "[kv] backend is embedded, which is a file that a bucket cannot hold: use a root on a mounted volume "
            "(kfp); networked stores are not in this release yet"
        )


def submit_to_kfp(config: Config, run: str, host: str) -> str:
    """Start a run on a KFP cluster.

    Args:
        host: the address of the KFP API, such as http://localhost:8080.

    Returns:
        The run's id on the cluster.

    Raises:
        SubmissionError: the cluster cannot be reached or does not take the run.
    """
    from kfp.client import Client

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        package = compile_pipeline(config, Path(folder) / "pipeline.yaml")
        try:
            started = Client(host=host).create_run_from_pipeline_package(
                str(package), arguments={"root": config.run.root, "run": run}, run_name=run, experiment_name="lockstep"
            )
        except Exception as error:  # KFP's client raises what its layers raise: urllib3, its own, ValueError
            raise SubmissionError(f"KFP at {host}", error) from error
    return str(started.run_id)


def submit_to_vertex(config: Config, run: str, project: str, location: str, service_account: str | None) -> str:
    """Start a run on Vertex AI Pipelines.

    Returns:
        The resource name of the pipeline job.

    Raises:
        SubmissionError: Vertex AI does not take the job.
    """
    try:
        from google.api_core.exceptions import GoogleAPIError
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
        try:
            job.submit(service_account=service_account)
        except GoogleAPIError as error:
            raise SubmissionError(f"Vertex AI in {project}, {location}", error) from error
    return str(job.resource_name)
