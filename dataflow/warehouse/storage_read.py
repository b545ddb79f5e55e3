"""Tables of BigQuery into local Parquet files, through the Storage Read API, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from google.cloud.bigquery import TableReference
from google.cloud.bigquery_storage import BigQueryReadClient, types

ROW_GROUP_ROWS = 4_096


def read_table(
    reader: BigQueryReadClient,
    billed: str,
    table: TableReference,
    destination: Path,
    *,
    columns: Sequence[str] = (),
    where: str = "",
    row_group_rows: int = ROW_GROUP_ROWS,
) -> int:
    """Write the rows of a table to one Parquet file.

    One stream is asked for: it hands out the result of a query with ORDER BY in that order.

    Args:
        billed: the project that pays.
        columns: those to read; all by default.
        where: a filter, in the SQL of `row_restriction`.
        row_group_rows: rows in a row group, and at most about twice as many are held in memory.

    Returns:
        The number of rows.
    """
    options = types.ReadSession.TableReadOptions(selected_fields=list(columns), row_restriction=where)
    name = f"projects/{table.project}/datasets/{table.dataset_id}/tables/{table.table_id}"
    wanted = types.ReadSession(table=name, data_format=types.DataFormat.ARROW, read_options=options)
    session = reader.create_read_session(parent=f"projects/{billed}", read_session=wanted, max_stream_count=1)
    schema = pa.ipc.read_schema(pa.py_buffer(session.arrow_schema.serialized_schema))
    rows = 0
    with pq.ParquetWriter(destination, schema, compression="zstd") as file:
        for group in _groups(_batches(reader, session, schema), schema, row_group_rows):
            file.write_table(group)
            rows += len(group)
    return rows


def _batches(reader: BigQueryReadClient, session: types.ReadSession, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    for stream in session.streams:
        for message in reader.read_rows(stream.name):  # reconnects where the connection breaks
            serialized = message.arrow_record_batch.serialized_record_batch
            yield pa.ipc.read_record_batch(pa.py_buffer(serialized), schema)


def _groups(batches: Iterator[pa.RecordBatch], schema: pa.Schema, size: int) -> Iterator[pa.Table]:
    held: list[pa.RecordBatch] = []
    rows = 0
    for batch in batches:
        held.append(batch)
        rows += len(batch)
        if rows >= size:
            table = pa.Table.from_batches(held, schema)
            whole = rows - rows % size
            for start in range(0, whole, size):
                yield table.slice(start, size)
            held, rows = table.slice(whole).to_batches(), rows - whole
    if rows:
        yield pa.Table.from_batches(held, schema)
