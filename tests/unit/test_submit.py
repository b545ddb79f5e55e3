"""Submitting: the compiled graph and the run's parameters arrive at the engine, over real HTTP."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from lockstep.config import Config, load_config
from lockstep.errors import SubmissionError
from pipelines.cli import main
from pipelines.submit import submit_to_kfp, submit_to_vertex
from tests.fakes.json_api import serve_json

DEMO = Path(__file__).parent.parent.parent / "configs" / "demo.toml"
KFP = {
    ("GET", r"/apis/v2beta1/healthz"): (200, {"multi_user": False}),
    ("GET", r"/apis/v2beta1/experiments\?"): (200, {"experiments": []}),
    ("POST", r"/apis/v2beta1/experiments$"): (200, {"experiment_id": "e1", "display_name": "lockstep"}),
    ("POST", r"/apis/v2beta1/runs"): (200, {"run_id": "r1", "display_name": "run-1", "experiment_id": "e1"}),
}


def config(root: str) -> Config:
    return load_config(DEMO, {"run": {"root": root, "image": "registry/lockstep:1"}})


def test_kfp_gets_the_graph_and_the_runs_parameters(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))  # the client keeps its context there
    with serve_json(KFP) as api:
        assert submit_to_kfp(config("/mnt/lockstep"), "run-1", api.address) == "r1"
        (body,) = api.bodies("POST", "/runs")
    assert body["display_name"] == "run-1"
    assert body["experiment_id"] == "e1"
    assert body["runtime_config"]["parameters"] == {"root": "/mnt/lockstep", "run": "run-1"}
    spec = body["pipeline_spec"]
    assert spec["pipelineInfo"]["name"] == "train-and-deploy"
    defaults = spec["root"]["inputDefinitions"]["parameters"]
    assert defaults["data"]["defaultValue"]["source"] == "synthetic"
    assert {e["container"]["image"] for e in spec["deploymentSpec"]["executors"].values()} == {"registry/lockstep:1"}


def test_the_command_says_what_was_started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with serve_json(KFP) as api:
        arguments = ["submit", "--config", str(DEMO), "--root", "/mnt/x", "--to", "kfp", "--host", api.address]
        result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert result.output.startswith("submitted run ")
    assert result.output.endswith(" as r1\n")


def test_a_refusal_of_kfp_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    refusing = {**KFP, ("POST", r"/apis/v2beta1/runs"): (403, {"message": "not allowed"})}
    with serve_json(refusing) as api, pytest.raises(SubmissionError, match=r"KFP at http.* \(403\).*permissions"):
        submit_to_kfp(config("/mnt/lockstep"), "run-1", api.address)


def test_vertex_gets_the_graph_and_the_runs_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    aiplatform = pytest.importorskip("google.cloud.aiplatform", reason="needs the extra gcp")
    from google.auth.credentials import AnonymousCredentials

    name = "projects/p/locations/us-central1/pipelineJobs/train-and-deploy-1"
    routes = {
        ("POST", r"/pipelineJobs"): (200, {"name": name, "state": "PIPELINE_STATE_PENDING"}),
        # The bucket does not exist yet, so the client creates it; of one that does it asks the owner, in another API.
        ("POST", r"/storage/v1/b\?"): (200, {"name": "bucket"}),
        ("GET", r"/storage/v1/b/bucket/iam"): (200, {"bindings": []}),
        ("PUT", r"/storage/v1/b/bucket/iam"): (200, {"bindings": []}),
    }
    with serve_json(routes) as api:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", api.address)
        aiplatform.init(
            project="p",
            location="us-central1",
            credentials=AnonymousCredentials(),
            api_endpoint=api.address,
            api_transport="rest",
        )
        assert submit_to_vertex(config("gs://bucket/root"), "run-1", "p", "us-central1", "sa@p.iam") == name
        (body,) = api.bodies("POST", "/pipelineJobs")
    assert body["serviceAccount"] == "sa@p.iam"
    runtime = body["runtimeConfig"]
    assert runtime["gcsOutputDirectory"] == "gs://bucket/root/runs/run-1"
    assert runtime["parameterValues"]["root"] == "gs://bucket/root"
    assert runtime["parameterValues"]["run"] == "run-1"
    assert body["pipelineSpec"]["pipelineInfo"]["name"] == "train-and-deploy"
