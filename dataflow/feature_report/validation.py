"""Validation as rows to measure: the features of its queries, and those of the candidates that they then took."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dataflow.feature_report.measures import independent_rows
from dataflow.feature_report.thresholds import ROWS
from dataflow.feature_report.values import Rows
from lockstep.errors import DataError
from lockstep.features import features_type
from lockstep.schema import Schema

_BATCH = 8_192


def validation_rows(schema: Schema, examples: Path, entities: Path, limit: int = ROWS) -> dict[str, Rows]:
    """The rows of each tower, evenly spaced where there are more than `limit`.

    The candidates' features are those at the cut where [examples]/validation_candidates has them (features that
    count events need that), or else those of now.

    Args:
        examples: folder of the artifact, with `validation`.
        entities: folder of the artifact, with `candidates`.

    Raises:
        DataError: a target is no candidate.
    """
    rows = _rows(examples / "validation")
    features = [batch.column("features") for batch in _evenly(examples / "validation", "features", rows, limit)]
    queries = _struct(features, schema, "query")
    targets, independent = _targets(examples / "validation", limit)
    at_cut = examples / "validation_candidates"
    found = _look_up(at_cut if at_cut.is_dir() else entities / "candidates", targets, schema)
    return {"query": Rows(queries, len(queries)), "candidate": Rows(found, independent)}


def _targets(folder: Path, limit: int) -> tuple[pa.Array, int]:
    """Ids of the targets, an id once for each query that took it, and how many independent rows they are worth."""
    total = sum(int(pc.sum(_lengths(batch)).as_py() or 0) for batch in batches(folder, ["targets"]))
    step = max(1, -(-total // limit))
    kept, groups, seen = [pa.array([], pa.string())], [np.array([], np.int64)], 0
    for batch in batches(folder, ["targets"]):
        column = batch.column("targets")
        owners = pc.list_parent_indices(column).to_numpy()
        chosen = np.arange(-seen % step, len(owners), step)
        kept.append(column.flatten().take(pa.array(chosen)).cast(pa.string()))
        groups.append(np.unique(owners[chosen], return_counts=True)[1])
        seen += len(owners)
    return pa.concat_arrays(kept), independent_rows(np.concatenate(groups))


def _look_up(folder: Path, ids: pa.Array, schema: Schema) -> pa.StructArray:
    """The features of candidates, in the order of the ids, holding only those in memory."""
    wanted = pc.unique(ids)
    found_ids, found = [pa.array([], pa.string())], []
    for batch in batches(folder, ["id", "features"]):
        chosen = pc.is_in(batch.column("id"), wanted)
        found_ids.append(batch.column("id").filter(chosen))
        found.append(batch.column("features").filter(chosen))
    places = pc.index_in(ids, pa.concat_arrays(found_ids))
    if places.null_count:
        lost = ids.filter(places.is_null())[0].as_py()
        raise DataError(f"the validation target {lost!r} is not among the candidates in {folder}: rerun the data step")
    return _struct(found, schema, "candidate").take(places)


def batches(folder: Path, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """The rows of a folder of Parquet files, file by file in the order of their names."""
    for path in sorted(folder.glob("*.parquet")):
        with pq.ParquetFile(path) as file:
            yield from file.iter_batches(_BATCH, columns=columns)


def _rows(folder: Path) -> int:
    return sum(pq.read_metadata(path).num_rows for path in folder.glob("*.parquet"))


def _evenly(folder: Path, column: str, rows: int, limit: int) -> Iterator[pa.RecordBatch]:
    step = max(1, -(-rows // limit))
    seen = 0
    for batch in batches(folder, [column]):
        yield batch.take(pa.array(np.arange(-seen % step, len(batch), step)))
        seen += len(batch)


def _struct(parts: list[pa.Array], schema: Schema, tower: str) -> pa.StructArray:
    kind = features_type(schema, tower)
    return pa.concat_arrays([pa.array([], kind), *(part.cast(kind) for part in parts)])


def _lengths(batch: pa.RecordBatch) -> pa.Array:
    return pc.list_value_length(batch.column("targets"))
