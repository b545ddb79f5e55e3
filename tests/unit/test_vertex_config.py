"""configs/vertex.toml: as much of it as can be checked without a cloud."""

from __future__ import annotations

import re
import tomllib

import pytest
from apache_beam.options.pipeline_options import GoogleCloudOptions, WorkerOptions

from dataflow.beam_options import pipeline_options
from lockstep.config import Config, load_config
from lockstep.errors import ConfigError
from pipelines.submit import check_backends
from tests.unit.sources_harness import CONFIGS

VERTEX = CONFIGS / "vertex.toml"


@pytest.fixture(scope="module")
def config() -> Config:
    return load_config(VERTEX)


def test_it_reads_and_works_in_bigquery_and_writes_with_dataflow(config: Config) -> None:
    data = config.data
    assert (data.source, data.warehouse, data.runner) == ("bigquery", "bigquery", "DataflowRunner")
    assert data.tables is not None
    for table in (data.tables.events, data.tables.candidates, data.tables.queries):
        assert table is not None
        assert table.file is None
        assert re.fullmatch(r"my-project\.my_dataset\.\w+", str(table.table))


def test_beam_knows_every_option_and_takes_its_value(config: Config) -> None:
    options = pipeline_options(config.data.runner, config.data.beam, "run-1")
    cloud, workers = options.view_as(GoogleCloudOptions), options.view_as(WorkerOptions)
    assert (cloud.project, cloud.region) == ("my-project", "europe-west1")
    assert (cloud.temp_location, cloud.staging_location) == ("gs://my-bucket/beam/temp", "gs://my-bucket/beam/staging")
    assert (workers.num_workers, workers.max_num_workers, workers.machine_type) == (2, 20, "n2-standard-4")
    assert workers.autoscaling_algorithm == "THROUGHPUT_BASED"
    assert workers.sdk_container_image == config.data.beam["sdk_container_image"]
    assert set(config.data.beam["labels"]) <= set(cloud.labels)  # type: ignore[arg-type]


def test_the_options_that_are_commented_out_are_beams_too(config: Config) -> None:
    text = VERTEX.read_text(encoding="utf-8")
    found = dict(re.findall(r"^# (service_account_email|subnetwork|no_use_public_ips) = (.*)$", text, re.MULTILINE))
    assert len(found) == 3
    extra = tomllib.loads("\n".join(f"{name} = {value}" for name, value in found.items()))
    options = pipeline_options(config.data.runner, {**config.data.beam, **extra}, "run-1")
    assert options.view_as(WorkerOptions).use_public_ips is False
    assert options.view_as(GoogleCloudOptions).service_account_email == extra["service_account_email"]


def test_the_queries_and_the_workers_are_paid_by_one_project_in_one_place(config: Config) -> None:
    assert config.data.bigquery.project == config.data.beam["project"]
    assert config.data.bigquery.location == "EU"
    assert str(config.data.beam["region"]).startswith("europe-")


def test_submitting_it_is_refused_as_its_comment_says(config: Config) -> None:
    with pytest.raises(ConfigError, match=r"\[kv\] backend is embedded, which is a file that a bucket cannot hold"):
        check_backends(config, "vertex")
