"""Where the SQL of dataflow/queries runs.

The queries are written once, in BigQuery's dialect. A warehouse runs them over tables that were loaded from Parquet
files and hands results back as Parquet files, so that everything before and after it knows files only.
"""

from __future__ import annotations

from dataflow.warehouse.base import Warehouse
from dataflow.warehouse.embedded import DuckDBWarehouse
from dataflow.warehouse.guard import UnsafeQueryError, check_query, to_duckdb

__all__ = ["DuckDBWarehouse", "UnsafeQueryError", "Warehouse", "check_query", "to_duckdb"]
