"""The artifact `entities`: candidates and query entities as they are now.

    <artifact>/                        kind entities; rows = candidates + query entities
      candidates/part-00000.parquet    id: string, features: struct (lockstep.features.features_type), display: string,
                                       restricts: lockstep.embeddings.RESTRICTS, crowding_tag: string
      queries/part-00000.parquet       id: string, features: struct, history: list<string>, oldest first
      popular.parquet                  id: string, count: int64 of the last 30 days, restricts; most popular first
      schema.json
      tag.json

Candidates that no event has are entities too, and so are query entities without events: both can be embedded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dataflow.columns import (
    candidate_features,
    is_past,
    past_values,
    query_features,
    restrict_column,
    struct,
    text_column,
)
from dataflow.numbers import ByIndex, feature_structs, named_values, read_elements
from dataflow.split import POPULAR_DAYS, Cuts, day_of
from dataflow.sql import literal, render
from dataflow.warehouse import Warehouse
from lockstep.embeddings import RESTRICTS
from lockstep.features import features_type
from lockstep.schema import Schema

ROWS_PER_FILE = 262_144
_BATCH = 32_768


def write_entities(warehouse: Warehouse, schema: Schema, cuts: Cuts, destination: Path, work: Path) -> tuple[int, int]:
    """Write the files of the artifact, all but its tag.

    Returns:
        The number of candidates and of query entities.
    """
    candidates = warehouse.schema("candidates_now")
    restricts = {
        namespace: restrict_column(namespace, candidates, "[schema] restricts") for namespace in schema.restricts
    }
    file = work / "entities.parquet"
    sql = render(
        "candidate_entities",
        candidate=struct(candidate_features(schema, candidates)),
        display=_text(schema.display, candidates, "[schema] display"),
        restricts=restricts,
        crowding=_text(schema.crowding, candidates, "[schema] crowding"),
        counts=schema.counts("candidate"),
        day=day_of(cuts.newest),
    )
    n_candidates = warehouse.export(sql, file)
    write_parts(file, destination / "candidates", lambda batch: _candidate_rows(batch, schema))
    n_queries = _write_queries(warehouse, schema, cuts, destination / "queries", work)
    warehouse.export(render("popular", popular_from=cuts.end - POPULAR_DAYS, restricts=restricts), file)
    write_parts(file, destination / "popular.parquet", lambda batch: _popular_rows(batch, schema))
    (destination / "schema.json").write_bytes(schema.to_json())
    return n_candidates, n_queries


def _write_queries(warehouse: Warehouse, schema: Schema, cuts: Cuts, destination: Path, work: Path) -> int:
    """Write the query entities, whose histories come as numbers: strings are put in here, a batch at a time."""
    past = past_values(schema, warehouse.schema("candidates_now"))
    warehouse.create("numbered_candidates", render("numbered_candidates"))
    numbered = work / "numbered.parquet"
    warehouse.export(render("known_candidates", known="numbered_candidates", candidate={}, past=past), numbered)
    elements = read_elements(numbered)
    features = query_features(schema, warehouse.schema("queries_now"), moment=literal(cuts.newest))
    sql = render(
        "query_entities",
        query={name: features[name] for name, feature in schema.query.items() if not is_past(feature)},
        max_history=schema.max_history,
        counts=schema.counts("query"),
        day=day_of(cuts.newest),
    )
    file = work / "entities.parquet"
    rows = warehouse.export(sql, file)
    write_parts(file, destination, lambda batch: _entity_rows(batch, elements, schema))
    return rows


def _entity_rows(batch: pa.RecordBatch, elements: pa.Table, schema: Schema) -> pa.RecordBatch:
    columns: dict[str, pa.Array] = {}
    none = pa.array([[]] * len(batch), pa.list_(pa.int64()))
    past = batch.column("past") if schema.max_history else none
    for name, feature in schema.query.items():
        of_past = is_past(feature)
        columns[name] = named_values(elements[f"past_{name}"], past) if of_past else batch.column(f"q_{name}")
    history = named_values(elements["candidate_id"], past).cast(pa.list_(pa.string()))
    arrays = [batch.column("id").cast(pa.string()), feature_structs(schema, "query", columns), history]
    return pa.RecordBatch.from_arrays(arrays, names=["id", "features", "history"])


def split_candidates(
    warehouse: Warehouse, schema: Schema, cut: datetime, destination: Path, work: Path, *, held_out: bool
) -> None:
    """Write the catalogue's candidates as they were at a cut: their features count nothing that came later.

    Args:
        held_out: whether they count the events of held-out entities, some of which are targets of validation.
    """
    sql = render(
        "split_candidates",
        candidate=struct(candidate_features(schema, warehouse.schema("candidates_now"))),
        counts=schema.counts("candidate"),
        day=day_of(cut),
        held_out=held_out,
    )
    file = work / "candidates.parquet"
    warehouse.export(sql, file)
    order = ByIndex()
    write_parts(file, destination, lambda batch: _id_and_features(order.check(batch), schema))


def query_rows(batch: pa.RecordBatch, schema: Schema) -> pa.RecordBatch:
    """Rows of query entities or evaluation queries, with their features in the types of the contract."""
    columns = {
        name: batch.column(name) if name in ("id", "cold") else _texts(batch.column(name))
        for name in batch.schema.names
        if name != "features"
    }
    features = batch.column("features").cast(features_type(schema, "query"))
    ids = columns.pop("id").cast(pa.string())
    return pa.RecordBatch.from_arrays([ids, features, *columns.values()], names=["id", "features", *columns])


def write_parts(source: Path, destination: Path, rows: Callable[[pa.RecordBatch], pa.RecordBatch]) -> None:
    """Rewrite a Parquet file batch by batch.

    Args:
        destination: a folder to make, whose parts have at most ROWS_PER_FILE rows; or one file (`*.parquet`).
        rows: makes the rows to write of the rows read.
    """
    single = destination.suffix == ".parquet"
    if not single:
        destination.mkdir()
    writer: pq.ParquetWriter | None = None
    written = 0
    try:
        for batch in _batches(source):
            out = rows(batch)
            if writer is None or (not single and written % ROWS_PER_FILE == 0):
                if writer is not None:
                    writer.close()
                path = destination if single else destination / f"part-{written // ROWS_PER_FILE:05d}.parquet"
                writer = pq.ParquetWriter(path, out.schema, compression="zstd")
            writer.write_batch(out)
            written += len(out)
    finally:
        if writer is not None:
            writer.close()


def restricts_column(batch: pa.RecordBatch, schema: Schema) -> pa.Array:
    """The restricts of candidates: a namespace for each restrict column that has a value.

    Args:
        batch: [rows], with a column `restrict_<namespace>` (string or list<string>) for each namespace.
    """
    rows, spaces = len(batch), len(schema.restricts)
    if not spaces:
        return pa.array([[]] * rows, RESTRICTS)
    allow = [_tokens(batch.column(f"restrict_{namespace}")) for namespace in schema.restricts]
    # Row-major over (row, namespace): the lists of one row stand together.
    order = np.arange(rows * spaces).reshape(spaces, rows).T.ravel()
    lists = pa.concat_arrays(allow).take(pa.array(order))
    names = pa.array(np.tile(np.array(schema.restricts, dtype=object), rows), pa.string())
    present = np.asarray(lists.value_lengths().fill_null(0)) > 0
    kept = pa.array(present)
    structs = pa.StructArray.from_arrays([names.filter(kept), lists.filter(kept)], fields=list(RESTRICTS.value_type))
    offsets = np.concatenate([[0], np.cumsum(present.reshape(rows, spaces).sum(axis=1))])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), structs)


def _candidate_rows(batch: pa.RecordBatch, schema: Schema) -> pa.RecordBatch:
    columns = {
        "id": batch.column("id").cast(pa.string()),
        "features": batch.column("features").cast(features_type(schema, "candidate")),
        "display": batch.column("display").cast(pa.string()),
        "restricts": restricts_column(batch, schema),
        "crowding_tag": batch.column("crowding_tag").cast(pa.string()),
    }
    return pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))


def _id_and_features(batch: pa.RecordBatch, schema: Schema) -> pa.RecordBatch:
    features = batch.column("features").cast(features_type(schema, "candidate"))
    return pa.RecordBatch.from_arrays([batch.column("id").cast(pa.string()), features], names=["id", "features"])


def _popular_rows(batch: pa.RecordBatch, schema: Schema) -> pa.RecordBatch:
    count = batch.column("count").cast(pa.int64())
    columns = {"id": batch.column("id").cast(pa.string()), "count": count, "restricts": restricts_column(batch, schema)}
    return pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))


def _tokens(column: pa.Array) -> pa.Array:
    if pa.types.is_list(column.type):
        return column.cast(pa.list_(pa.string()))
    texts = column.cast(pa.string())
    present = np.asarray(texts.is_valid()) & np.asarray((pc.binary_length(texts).fill_null(0)).to_numpy() > 0)
    offsets = np.concatenate([[0], np.cumsum(present)])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), texts.filter(pa.array(present)))


def _texts(column: pa.Array) -> pa.Array:
    """A list of strings, empty where there is none."""
    lists = column.cast(pa.list_(pa.string()))
    lengths = lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), lists.flatten())


def _text(column: str | None, candidates: pa.Schema, where: str) -> str:
    return "CAST(NULL AS STRING)" if column is None else text_column(column, candidates, "candidate", where)


def _batches(source: Path) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(source) as file:
        empty = True
        for batch in file.iter_batches(_BATCH):
            empty = False
            yield batch
        if empty:
            yield pa.RecordBatch.from_pylist([], schema=file.schema_arrow)
