"""The interface of a warehouse: load, create, export, rows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa


class Warehouse(ABC):
    """Runs BigQuery-dialect SQL over Parquet files.

    Tables live as long as the warehouse is open. Names are plain (`events`); an adapter puts its own dataset,
    schema or prefix in front of them. Every query is one SELECT; what is created from it is the adapter's matter.
    """

    @abstractmethod
    def load(self, table: str, files: Sequence[Path]) -> int:
        """Make Parquet files readable as a table.

        Args:
            table: its name in the queries.
            files: at least one file; all of one Arrow schema.

        Returns:
            The number of rows.
        """

    @abstractmethod
    def create(self, table: str, sql: str) -> int:
        """Keep the result of a query as a table for later queries, and return its number of rows."""

    @abstractmethod
    def export(self, sql: str, destination: Path, *, row_group_rows: int = 32_768) -> int:
        """Write the result of a query to one Parquet file, without holding it in memory.

        Args:
            sql: a query; where the order of its rows matters, its ORDER BY is total.
            destination: the file; its folder exists.
            row_group_rows: rows in a row group, which readers take as a batch.

        Returns:
            The number of rows.
        """

    @abstractmethod
    def export_shards(self, sql: str, destination: Path, *, column: str) -> int:
        """Write the result of a query as one folder of Parquet files for each value of a column.

            <destination>/<column>=<n>/*.parquet

        Args:
            sql: a query; the rows of a folder are in no particular order.
            destination: a folder to make.
            column: a column of integers from 0 on; the files do not hold it. A value without rows has no folder.

        Returns:
            The number of rows.
        """

    @abstractmethod
    def rows(self, sql: str) -> list[dict[str, Any]]:
        """The rows of a small result: counts and cuts, not data."""

    @abstractmethod
    def schema(self, table: str) -> pa.Schema:
        """The columns of a table, as Arrow types."""

    @abstractmethod
    def close(self) -> None:
        """Drop every table and release what they hold."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
