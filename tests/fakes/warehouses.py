"""Every warehouse that a suite must pass on: DuckDB, our fake of BigQuery, and BigQuery itself (`-m bigquery`)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dataflow.warehouse import DuckDBWarehouse, Warehouse, open_warehouse
from lockstep.config import BigQuerySection, DataSection
from tests.fakes.bigquery import FakeBigQuery, serve_bigquery

PROJECT = "LOCKSTEP_BIGQUERY_PROJECT"
WAREHOUSES = [
    pytest.param("duckdb", id="duckdb"),
    pytest.param("fake", id="bigquery-fake"),
    pytest.param("bigquery", id="bigquery", marks=pytest.mark.bigquery),
]


@contextmanager
def opened(kind: str, work: Path) -> Iterator[Warehouse]:
    """A warehouse by its name in `WAREHOUSES`, empty."""
    if kind == "duckdb":
        with DuckDBWarehouse(work, memory="500MB", threads=1) as warehouse:
            yield warehouse
    elif kind == "fake":
        with serve_bigquery(work / "bucket") as fake, on_fake(fake, work) as warehouse:
            yield warehouse
    else:
        with _real(work) as warehouse:
            yield warehouse


@contextmanager
def on_fake(fake: FakeBigQuery, work: Path, **section: object) -> Iterator[Warehouse]:
    """A warehouse on a running fake."""
    settings = {"project": "p-1", "location": "EU", "labels": {"team": "Music"}, **section}
    data = DataSection(warehouse="bigquery", bigquery=BigQuerySection.model_validate(settings))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in fake.environment.items():
            patch.setenv(name, value)
        warehouse = open_warehouse(data, work, "Run 7")
    with warehouse:
        yield warehouse


def _real(work: Path) -> Warehouse:
    if PROJECT not in os.environ:
        pytest.skip(f"set {PROJECT} to a Google Cloud project, and log in, to test against BigQuery itself")
    section = BigQuerySection(
        project=os.environ[PROJECT],
        dataset=os.environ.get("LOCKSTEP_BIGQUERY_DATASET", "lockstep_test"),
        location=os.environ.get("LOCKSTEP_BIGQUERY_LOCATION", "EU"),
        expiry_hours=1,
        max_bytes_billed=1 << 30,
    )
    return open_warehouse(DataSection(warehouse="bigquery", bigquery=section), work, "contract")
