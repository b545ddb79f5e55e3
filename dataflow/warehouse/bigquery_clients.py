"""Google's clients for the BigQuery warehouse, from the environment's credentials or for an emulator."""

from __future__ import annotations

import os

import google.auth
import grpc  # type: ignore[import-untyped]
from google.auth.credentials import AnonymousCredentials
from google.cloud import bigquery
from google.cloud.bigquery_storage import BigQueryReadClient

from dataflow.warehouse.bigquery_errors import sentences
from lockstep.config import BigQuerySection
from lockstep.errors import ConfigError

EMULATOR = "BIGQUERY_EMULATOR_HOST"
"""Where google-cloud-bigquery finds an emulator: http://host:port."""
STORAGE_EMULATOR = "BIGQUERY_STORAGE_EMULATOR_HOST"
"""Where the emulator's Storage Read API is, as host:port, without TLS."""


def make_clients(section: BigQuerySection) -> tuple[bigquery.Client, BigQueryReadClient]:
    """The clients of one warehouse.

    Raises:
        DataError: there are no credentials.
        ConfigError: nothing says which project pays.
    """
    if EMULATOR in os.environ:
        return _emulated(section)
    with sentences("opening BigQuery"):
        credentials, found = google.auth.default(scopes=bigquery.Client.SCOPE)
        project = section.project or found
        if not project:
            raise ConfigError("[data.bigquery] project is not set, and the credentials name none: set it")
        return bigquery.Client(project=project, credentials=credentials), BigQueryReadClient(credentials=credentials)


def _emulated(section: BigQuerySection) -> tuple[bigquery.Client, BigQueryReadClient]:
    if STORAGE_EMULATOR not in os.environ:
        raise ConfigError(f"{EMULATOR} is set, but {STORAGE_EMULATOR} is not: set it to host:port of its Storage API")
    client = bigquery.Client(project=section.project or "emulated", credentials=AnonymousCredentials())
    channel = grpc.insecure_channel(os.environ[STORAGE_EMULATOR])
    transport = BigQueryReadClient.get_transport_class("grpc")(channel=channel)
    return client, BigQueryReadClient(transport=transport)
