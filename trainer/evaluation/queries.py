"""The catalogue and the queries of an evaluation, as the data step wrote them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lockstep.errors import DataError, InputMismatchError
from lockstep.tags import Artifact


@dataclass(frozen=True)
class Catalogue:
    """The candidates of the evaluation in the order of their index.

    Args:
        ids: [candidates] string.
        popular_30d, popular_30d_validation, count: [candidates] float32 scores of the popularity baselines; `count`
            is 0 for a candidate that training has never seen as a label.
        known_before_validation: [candidates] whether anything is known of it before that cut.
    """

    ids: pa.Array
    popular_30d: NDArray[np.float32]
    popular_30d_validation: NDArray[np.float32]
    count: NDArray[np.float32]
    known_before_validation: NDArray[np.bool_]


@dataclass(frozen=True)
class Queries:
    """The queries of one split.

    Args:
        history, targets: [queries] distinct catalogue indices each, ascending.
        held_out: [queries] number of distinct held-out ids, those unknown to the catalogue included.
        cold: [queries] whether training has not seen the entity.
    """

    features: pa.StructArray
    history: list[NDArray[np.int64]]
    targets: list[NDArray[np.int64]]
    held_out: NDArray[np.int64]
    cold: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.targets)

    def first(self, count: int) -> Queries:
        """The first `count` queries."""
        return Queries(
            self.features[:count],
            self.history[:count],
            self.targets[:count],
            self.held_out[:count],
            self.cold[:count],
        )


def read_catalogue(examples: Artifact) -> Catalogue:
    """Read `catalogue.parquet`, whose row order is the candidate index.

    Raises:
        DataError: an earlier version of Lockstep wrote it.
    """
    table = pq.read_table(examples / "catalogue.parquet")
    if "known_before_validation" not in table.column_names:
        raise DataError(
            f"the catalogue of {examples.path} does not say what was known before the validation split: an earlier "
            "version of Lockstep made it; rerun generate_examples"
        )
    columns = {
        name: pc.fill_null(table[name], 0).to_numpy().astype(np.float32)
        for name in ("popular_30d", "popular_30d_validation", "count")
    }
    known = table["known_before_validation"].to_numpy()
    return Catalogue(table["id"].combine_chunks().cast(pa.string()), **columns, known_before_validation=known)


def read_queries(directory: Path, catalogue: Catalogue) -> Queries:
    """Read the queries of one split that have something held out; none where the split has no files."""
    files = sorted(directory.glob("part-*.parquet"))
    if not files:
        return Queries(pa.array([], pa.struct([])), [], [], np.empty(0, dtype=np.int64), np.empty(0, dtype=bool))
    table = pa.concat_tables([pq.read_table(file) for file in files])
    table = table.filter(pc.greater(pc.fill_null(pc.list_value_length(table["targets"]), 0), 0))
    return Queries(
        _struct(table["features"]),
        _indices(table["history"], catalogue),
        _indices(table["targets"], catalogue),
        np.array([len(set(ids)) for ids in table["targets"].to_pylist()], dtype=np.int64),
        table["cold"].to_numpy(),
    )


def candidates_of_split(examples: Artifact, entities: Artifact, split: str) -> Path:
    """The folder of the candidates as a split may know them: as of its cut where they change, else as of now."""
    as_of_cut = examples.path / f"{split}_candidates"
    return as_of_cut if as_of_cut.is_dir() else entities.path / "candidates"


def candidate_features(folder: Path, catalogue: Catalogue) -> pa.StructArray:
    """The features of every candidate of the catalogue, in its order.

    Args:
        folder: Parquet files with `id` and `features`.

    Raises:
        InputMismatchError: a candidate is not in them.
    """
    table = ds.dataset(folder, format="parquet").to_table(["id", "features"])
    rows = pc.index_in(catalogue.ids, value_set=table["id"].combine_chunks().cast(pa.string()))
    if rows.null_count:
        missing = catalogue.ids.filter(pc.is_null(rows))
        raise InputMismatchError(
            f"candidate {missing[0].as_py()!r} and {len(missing) - 1} others",
            "the catalogue",
            "present",
            f"candidates at {folder}",
            "absent",
        )
    return _struct(table["features"]).take(rows)


def _indices(column: pa.ChunkedArray, catalogue: Catalogue) -> list[NDArray[np.int64]]:
    """The distinct catalogue indices of each list of ids."""
    lists = column.combine_chunks()
    flat = pc.index_in(lists.flatten().cast(pa.string()), value_set=catalogue.ids)
    indices = pc.fill_null(flat, -1).to_numpy(zero_copy_only=False).astype(np.int64)
    ends = np.cumsum(pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False))
    rows = np.split(indices, ends[:-1]) if len(ends) else []
    return [np.unique(row[row >= 0]) for row in rows]


def _struct(column: pa.ChunkedArray) -> pa.StructArray:
    return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
