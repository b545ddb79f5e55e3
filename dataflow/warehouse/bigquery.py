"""The BigQuery warehouse: intermediate tables in one data set, results through the Storage Read API.

    <project>.<dataset>.<prefix>_events     the tables of one run, prefix = its id and a random part

Every table has an expiration and labels, every job labels and a ceiling of bytes billed. Where Lockstep makes the
data set, it gets the same expiration as a default: a run that is killed between making a table and labelling it
leaves nothing behind for ever.
"""

from __future__ import annotations

import logging
import re
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
from google.api_core.exceptions import Conflict, GoogleAPIError, NotFound
from google.cloud import bigquery
from google.cloud.bigquery_storage import BigQueryReadClient

from dataflow.warehouse.base import QueryUsage, Warehouse
from dataflow.warehouse.bigquery_errors import sentences
from dataflow.warehouse.bigquery_types import arrow_schema
from dataflow.warehouse.names import qualify
from dataflow.warehouse.storage_read import read_table
from lockstep import __version__
from lockstep.config import BigQuerySection
from lockstep.errors import ConfigError, DataError
from lockstep.schema import NAME
from lockstep.storage import bucket_uri

_log = logging.getLogger(__name__)

MAX_SHARDS = 4_000
"""Partitions that one job of BigQuery may write."""
_PARALLEL_READS = 8
"""Where Vertex AI and others mount Cloud Storage: /gcs/bucket/name is gs://bucket/name."""
_LABEL_KEY = re.compile(r"[a-z][a-z0-9_-]{0,62}")


class BigQueryWarehouse(Warehouse):
    """Runs guarded queries on BigQuery, as they are written.

    Args:
        client: what jobs and tables are made with.
        reader: what results are read with.
        section: [data.bigquery].
        run: the run's id; tables and labels name it.

    Raises:
        ConfigError: a label, or the data set's location, is not as it must be.
        DataError: BigQuery refused.
    """

    def __init__(
        self, client: bigquery.Client, reader: BigQueryReadClient, section: BigQuerySection, *, run: str = ""
    ) -> None:
        super().__init__()
        self._client, self._reader = client, reader
        self._section = section
        self._labels = job_labels(section.labels, run)
        run_part = re.sub(r"[^a-z0-9]+", "_", run.lower()).strip("_") or "run"
        self._prefix = f"{run_part[:60]}_{uuid.uuid4().hex[:8]}"
        self._tables: set[str] = set()
        self._dataset = bigquery.DatasetReference(section.project or client.project, section.dataset)

    @cached_property
    def _location(self) -> str:
        """The data set's location; the data set is made where it is missing."""
        return self._open_dataset()

    def load(self, table: str, files: Sequence[Path]) -> int:
        if not files:
            raise DataError(f"there are no Parquet files for the table {table!r}: rerun the source that writes them")
        destination = self._table(table)
        with sentences(f"loading the table {table!r}", location=self._location):
            uris = [bucket_uri(file) for file in sorted(files)]
            if all(uris):
                self._client.load_table_from_uri(
                    uris, destination, location=self._location, job_config=self._load_config("WRITE_TRUNCATE")
                ).result()
            else:
                for number, file in enumerate(sorted(files)):
                    self._upload(file, destination, "WRITE_APPEND" if number else "WRITE_TRUNCATE")
            self._finish(destination)
            return int(self._client.get_table(destination).num_rows)

    def create(self, table: str, sql: str) -> int:
        destination = self._table(table)
        rows = self._query(sql, table, bigquery.QueryJobConfig(destination=destination)).total_rows
        with sentences(f"labelling the table {table!r}"):
            self._finish(destination)
        return int(rows or 0)

    def export(self, sql: str, destination: Path, *, row_group_rows: int = 32_768) -> int:
        table = self._temporary()
        self._query(sql, destination.name, bigquery.QueryJobConfig(destination=table))
        with sentences(f"reading {destination.name}", sql, self._location):
            self._finish(table)
            rows = read_table(self._reader, self._client.project, table, destination, row_group_rows=row_group_rows)
            self._drop(table)
        return rows

    def export_shards(self, sql: str, destination: Path, *, column: str) -> int:
        table = self._temporary()
        shards = bigquery.PartitionRange(start=0, end=MAX_SHARDS, interval=1)
        partitioned = bigquery.RangePartitioning(field=column, range_=shards)
        config = bigquery.QueryJobConfig(destination=table, range_partitioning=partitioned)
        self._query(sql, destination.name, config)
        with sentences(f"reading {destination.name}", sql, self._location):
            self._finish(table)
            rows = self._read_shards(table, destination, column)
            self._drop(table)
        return rows

    def rows(self, sql: str) -> list[dict[str, Any]]:
        found = self._query(sql, "rows", bigquery.QueryJobConfig())
        with sentences("reading a result", sql, self._location):
            return [dict(row.items()) for row in found]

    def schema(self, table: str) -> pa.Schema:
        reference = bigquery.TableReference.from_string(table, self._dataset.project) if "." in table else None
        try:
            with sentences(f"describing the table {table!r}", location=self._section.location):
                return arrow_schema(self._client.get_table(reference or self._table(table)).schema)
        except DataError as error:
            if isinstance(error.__cause__, NotFound) and reference is None:
                raise DataError(f"the warehouse has no table {table!r}: {error}") from error
            raise

    def dry_run(self, sql: str) -> int:
        """The bytes that a query would read; checks permissions, tables, columns and types; costs and makes nothing."""
        location = self._section.location or None  # not the data set's, which need not exist yet
        with sentences("the dry run", sql, location or ""):
            config = bigquery.QueryJobConfig(dry_run=True, use_query_cache=False, labels=self._labels)
            job = self._client.query(self._named(sql), job_config=config, location=location)
            return int(job.total_bytes_processed or 0)

    def close(self) -> None:
        """Drop the tables, as far as that is possible: they expire in any case."""
        for name in sorted(self._tables):
            try:
                self._client.delete_table(self._dataset.table(name), not_found_ok=True)
            except (GoogleAPIError, ConnectionError) as error:
                _log.warning("table %s was not dropped (%s): it expires", name, error)
        self._tables.clear()
        self._client.close()

    def _query(self, sql: str, what: str, config: bigquery.QueryJobConfig) -> bigquery.table.RowIterator:
        config.labels = self._labels
        if config.destination is not None:
            config.write_disposition = "WRITE_TRUNCATE"
        if self._section.max_bytes_billed is not None:
            config.maximum_bytes_billed = self._section.max_bytes_billed
        with sentences(f"the query for {what}", sql, self._location):
            job = self._client.query(self._named(sql), job_config=config, location=self._location)
            found = job.result()
        used = QueryUsage(what, int(job.total_bytes_processed or 0), int(job.total_bytes_billed or 0))
        self.usage.queries.append(used)
        _log.info("%s: %d bytes read, %d billed", what, used.bytes_processed, used.bytes_billed)
        return found

    def _read_shards(self, table: bigquery.TableReference, destination: Path, column: str) -> int:
        counting = f"SELECT `{column}` AS shard, COUNT(*) AS n FROM `{table}` GROUP BY shard"  # noqa: S608
        found = {row["shard"]: row["n"] for row in self.rows(counting)}
        wrong = [shard for shard in found if shard is None or not 0 <= shard < MAX_SHARDS]
        if wrong:
            raise DataError(
                f"the shards of {column!r} are numbers from 0 to {MAX_SHARDS - 1}, found {wrong[0]}: raise [data] "
                "shard_rows if there are more, for a job of BigQuery writes no more partitions"
            )
        if bucket_uri(destination):
            for shard in sorted(found):
                self._export_data(table, bucket_uri(destination), column, shard)
            return sum(found.values())
        destination.mkdir()
        columns = [field.name for field in self._client.get_table(table).schema if field.name != column]

        def read(shard: int) -> int:
            folder = destination / f"{column}={shard}"
            folder.mkdir()
            file, where = folder / "data_0.parquet", f"{column} = {shard}"
            return read_table(self._reader, self._client.project, table, file, columns=columns, where=where)

        with ThreadPoolExecutor(_PARALLEL_READS) as pool:
            return sum(pool.map(read, sorted(found)))

    def _export_data(self, table: bigquery.TableReference, folder: str, column: str, shard: int) -> None:
        select = f"SELECT * EXCEPT (`{column}`) FROM `{table}` WHERE `{column}` = {shard:d}"  # noqa: S608
        options = (
            f"uri='{folder}/{column}={shard:d}/data_*.parquet', format='PARQUET', compression='ZSTD', overwrite=true"
        )
        config = bigquery.QueryJobConfig(labels=self._labels)
        if self._section.max_bytes_billed is not None:
            config.maximum_bytes_billed = self._section.max_bytes_billed
        statement = f"EXPORT DATA OPTIONS({options}) AS {select}"
        job = self._client.query(statement, job_config=config, location=self._location)
        job.result()
        used = QueryUsage(f"{column}={shard}", int(job.total_bytes_processed or 0), int(job.total_bytes_billed or 0))
        self.usage.queries.append(used)

    def _upload(self, file: Path, destination: bigquery.TableReference, disposition: str) -> None:
        config = self._load_config(disposition)
        with file.open("rb") as opened:
            self._client.load_table_from_file(
                opened, destination, size=file.stat().st_size, location=self._location, job_config=config
            ).result()

    def _load_config(self, disposition: str) -> bigquery.LoadJobConfig:
        config = bigquery.LoadJobConfig(source_format="PARQUET", write_disposition=disposition, labels=self._labels)
        parquet = bigquery.ParquetOptions()
        parquet.enable_list_inference = True  # a list becomes ARRAY<T>, not STRUCT<list ARRAY<STRUCT<element T>>>
        config.parquet_options = parquet
        return config

    def _open_dataset(self) -> str:
        with sentences(f"opening the data set {self._dataset}", location=self._section.location):
            try:
                return self._checked_location(self._client.get_dataset(self._dataset).location)
            except NotFound:
                if not self._section.location:
                    raise ConfigError(
                        f"the data set {self._dataset} does not exist, and [data.bigquery] location is not set: set it "
                        "to that of the source tables, such as EU or us-central1, and it is made there"
                    ) from None
            dataset = bigquery.Dataset(self._dataset)
            dataset.location = self._section.location
            dataset.labels = {"lockstep": self._labels["lockstep"]}
            dataset.default_table_expiration_ms = self._section.expiry_hours * 3_600_000
            try:
                return str(self._client.create_dataset(dataset).location)
            except Conflict:  # another run was faster
                return self._checked_location(self._client.get_dataset(self._dataset).location)

    def _checked_location(self, found: str) -> str:
        wanted = self._section.location
        if wanted and wanted.lower() != found.lower():
            raise ConfigError(
                f"[data.bigquery] location is {wanted!r}, but the data set {self._dataset} is in {found!r}: name "
                "another data set, or correct the location"
            )
        return found

    def _finish(self, table: bigquery.TableReference) -> None:
        described = bigquery.Table(table)
        described.expires = datetime.now(UTC) + timedelta(hours=self._section.expiry_hours)
        described.labels = self._labels
        self._client.update_table(described, ["expires", "labels"])

    def _named(self, sql: str) -> str:
        return qualify(sql, lambda name: f"`{self._table(name)}`")

    def _table(self, name: str) -> bigquery.TableReference:
        if not NAME.fullmatch(name):
            raise DataError(f"{name!r} is no table name: it must match {NAME.pattern}")
        table = self._dataset.table(f"{self._prefix}_{name}")
        self._tables.add(table.table_id)
        return table

    def _temporary(self) -> bigquery.TableReference:
        return self._table(f"export_{uuid.uuid4().hex[:8]}")

    def _drop(self, table: bigquery.TableReference) -> None:
        self._client.delete_table(table, not_found_ok=True)
        self._tables.discard(table.table_id)


def job_labels(configured: Mapping[str, str], run: str) -> dict[str, str]:
    """Labels of jobs and tables, in BigQuery's alphabet.

    >>> job_labels({"team": "Music & Co"}, "Run 7")["team"]
    'music---co'

    Raises:
        ConfigError: a key of [data.bigquery] labels is no label key.
    """
    own = {"lockstep": __version__, "step": "generate_examples"} | ({"run": run} if run else {})
    for key in configured:
        if not _LABEL_KEY.fullmatch(key):
            raise ConfigError(f"[data.bigquery] labels: {key!r} is no label: it must match {_LABEL_KEY.pattern}")
    return {key: re.sub(r"[^a-z0-9_-]", "-", value.lower())[:63] for key, value in {**configured, **own}.items()}
