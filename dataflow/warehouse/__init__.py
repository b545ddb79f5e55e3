"""Where the SQL of dataflow/queries runs.

The queries are written once, in BigQuery's dialect. A warehouse runs them over tables that were loaded from Parquet
files and hands results back as Parquet files, so that everything before and after it knows files only.
"""

from __future__ import annotations

import os
from pathlib import Path

from dataflow.warehouse.base import QueryUsage, Usage, Warehouse
from dataflow.warehouse.embedded import DuckDBWarehouse
from dataflow.warehouse.guard import UnsafeQueryError, check_query, to_duckdb
from lockstep.config import DataSection
from lockstep.errors import ConfigError

__all__ = [
    "DuckDBWarehouse",
    "QueryUsage",
    "UnsafeQueryError",
    "Usage",
    "Warehouse",
    "check_query",
    "open_warehouse",
    "to_duckdb",
]


def open_warehouse(data: DataSection, work: Path, run: str = "") -> Warehouse:
    """The warehouse that [data] warehouse names.

    Args:
        work: an existing folder for what it keeps on disk; the caller removes it in the end.
        run: the run's id, for the names and labels of what is made outside.

    Raises:
        ConfigError: it needs a package that is not installed, or its section is wrong.
        DataError: there are no credentials, or they do not suffice.
    """
    if data.warehouse == "duckdb":
        return DuckDBWarehouse(work, memory=data.warehouse_memory, threads=os.cpu_count() or 1)
    try:
        from dataflow.warehouse.bigquery import BigQueryWarehouse
        from dataflow.warehouse.bigquery_clients import make_clients
    except ImportError as error:
        raise ConfigError(
            f"[data] warehouse = 'bigquery' needs a package that is not installed ({error}): "
            "run `pip install 'lockstep-retrieval[gcp]'`"
        ) from error
    client, reader = make_clients(data.bigquery)
    return BigQueryWarehouse(client, reader, data.bigquery, run=run)
