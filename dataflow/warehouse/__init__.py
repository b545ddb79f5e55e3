"""Where the SQL of dataflow/queries runs.

The queries are written once, in BigQuery's dialect. A warehouse runs them over tables that were loaded from Parquet
files and hands results back as Parquet files, so that everything before and after it knows files only.
"""

from __future__ import annotations

import os
from pathlib import Path

from dataflow.warehouse.base import Warehouse
from dataflow.warehouse.embedded import DuckDBWarehouse
from dataflow.warehouse.guard import UnsafeQueryError, check_query, to_duckdb
from lockstep.config import DataSection

__all__ = ["DuckDBWarehouse", "UnsafeQueryError", "Warehouse", "check_query", "open_warehouse", "to_duckdb"]


def open_warehouse(data: DataSection, work: Path) -> Warehouse:
    """The warehouse that [data] warehouse names.

    Args:
        work: an existing folder for what it keeps on disk; the caller removes it in the end.
    """
    return DuckDBWarehouse(work, memory=data.warehouse_memory, threads=os.cpu_count() or 1)
