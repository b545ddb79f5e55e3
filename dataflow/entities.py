"""The artifact `entities`: candidates and query entities as they are now.

    <artifact>/                        kind entities; rows = candidates + query entities
      candidates/part-00000.parquet    id: string, features: struct (lockstep.features.features_type), display: string,
                                       restricts: lockstep.embeddings.RESTRICTS, numeric_restricts:
                                       lockstep.embeddings.NUMERIC_RESTRICTS, crowding_tag: string, never empty
      queries/part-00000.parquet       id: string, features: struct, history: list<string>, oldest first
      popular.parquet                  id: string, count: int64 of the last 30 days; restricts, numeric_restricts and
                                       crowding_tag as above; most popular first
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
    struct,
    text_column,
)
from dataflow.numbers import ByIndex, feature_structs, named_values, read_elements
from dataflow.restricts import numeric_restricts_of, restrict_columns, restricts_of
from dataflow.split import POPULAR_DAYS, Cuts, day_of
from dataflow.sql import literal, render
from dataflow.warehouse import Warehouse
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
    restricts = restrict_columns(schema, candidates)
    crowding = _text(schema.crowding, candidates, "[schema] crowding")
    file = work / "entities.parquet"
    sql = render(
        "candidate_entities",
        candidate=struct(candidate_features(schema, candidates)),
        display=_text(schema.display, candidates, "[schema] display"),
        restricts=restricts,
        crowding=crowding,
        counts=schema.counts("candidate"),
        day=day_of(cuts.newest),
    )
    n_candidates = warehouse.export(sql, file)
    write_parts(file, destination / "candidates", lambda batch: candidate_rows(batch, schema))
    n_queries = _write_queries(warehouse, schema, cuts, destination / "queries", work)
    popular_from = cuts.end - POPULAR_DAYS
    warehouse.export(render("popular", popular_from=popular_from, restricts=restricts, crowding=crowding), file)
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


def candidate_rows(batch: pa.RecordBatch, schema: Schema) -> pa.RecordBatch:
    """Rows of `candidates`, of those of queries/candidate_entities.sql."""
    columns = {
        "id": batch.column("id").cast(pa.string()),
        "features": batch.column("features").cast(features_type(schema, "candidate")),
        "display": batch.column("display").cast(pa.string()),
        **_filters(batch, schema),
    }
    return pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))


def _filters(batch: pa.RecordBatch, schema: Schema) -> dict[str, pa.Array]:
    tags = batch.column("crowding_tag").cast(pa.string())
    return {
        "restricts": restricts_of(batch, schema),
        "numeric_restricts": numeric_restricts_of(batch, schema),
        "crowding_tag": pc.if_else(pc.equal(tags, ""), None, tags),
    }


def _id_and_features(batch: pa.RecordBatch, schema: Schema) -> pa.RecordBatch:
    features = batch.column("features").cast(features_type(schema, "candidate"))
    return pa.RecordBatch.from_arrays([batch.column("id").cast(pa.string()), features], names=["id", "features"])


def _popular_rows(batch: pa.RecordBatch, schema: Schema) -> pa.RecordBatch:
    ids, count = batch.column("id").cast(pa.string()), batch.column("count").cast(pa.int64())
    columns = {"id": ids, "count": count, **_filters(batch, schema)}
    return pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))


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
