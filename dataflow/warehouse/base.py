"""The interface of a warehouse: load, create, export, rows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa


@dataclass(frozen=True)
class QueryUsage:
    """What one query read, and what is charged for."""

    query: str
    """The table that it made, or what it was for."""
    bytes_processed: int
    bytes_billed: int


@dataclass
class Usage:
    """What the queries of a warehouse read so far; empty where the engine bills nothing."""

    queries: list[QueryUsage] = field(default_factory=list)

    @property
    def bytes_processed(self) -> int:
        """Bytes that all queries read."""
        return sum(query.bytes_processed for query in self.queries)

    @property
    def bytes_billed(self) -> int:
        """Bytes that are charged for."""
        return sum(query.bytes_billed for query in self.queries)

    def to_json(self) -> dict[str, Any]:
        """The totals and the queries, for a report."""
        return {
            "bytes_processed": self.bytes_processed,
            "bytes_billed": self.bytes_billed,
            "queries": [asdict(query) for query in self.queries],
        }


class Warehouse(ABC):
    """Runs BigQuery-dialect SQL over Parquet files.

    Tables live as long as the warehouse is open. Names are plain (`events`); an adapter puts its own dataset,
    schema or prefix in front of them. Every query is one SELECT; what is created from it is the adapter's matter.

    Args:
        usage: what was read and charged for so far.
    """

    def __init__(self) -> None:
        self.usage = Usage()

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
        """The columns of a table, as Arrow types.

        Args:
            table: a table that was loaded or created here; on BigQuery also any `project.dataset.table`.
        """

    @abstractmethod
    def close(self) -> None:
        """Drop every table and release what they hold."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
