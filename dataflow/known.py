"""Known candidates: what training records name by index, encoded once.

A popular candidate stands in thousands of histories. Its own features, and its elements in the history features of
queries, are the same in all of them, so they are encoded once, in a few passes over the catalogue, and the trainer
joins them to the records, which hold indices only:

    <folder>/candidate_<feature>.npy    [candidates, length] int32 or float32: the encoded feature; where it counts
                                        events, as of the validation cut, for the candidate as a negative
    <folder>/query_<feature>.npy        [candidates, n] of a history feature: n = 1 id or number (standardised, NaN
                                        where there is none), or max_tokens ids

They hold what the saved preprocessing makes of a history with that candidate alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dataflow.columns import is_counted, is_past
from dataflow.encoded import buckets_of
from dataflow.encoding import TowerEncoder
from dataflow.numbers import ByIndex
from lockstep.features import last_values
from lockstep.schema import Feature, Schema

_BATCH_ROWS = 32_768


class KnownCandidates:
    """What workers ask of the encoded candidates: which of them lack a feature, or have a value of no vocabulary.

    Args:
        folder: what `encode_known` wrote.
    """

    def __init__(self, folder: Path, schema: Schema) -> None:
        self._missing, self._unknown = {}, {}
        for file in sorted(folder.glob("*.npy")):
            tower, name = file.stem.split("_", 1)
            values = np.load(file, mmap_mode="r")
            self._missing[tower, name] = missing(schema.features(tower)[name], values)
            self._unknown[tower, name] = (values == 1).any(axis=1)

    def candidates(self, name: str, indices: NDArray[np.int64]) -> tuple[int, int]:
        """Of candidates by index, how many lack a feature, and how many have an unknown value of it."""
        key = ("candidate", name)
        return int(self._missing[key][indices].sum()), int(self._unknown[key][indices].sum())

    def histories(self, name: str, past: pa.ListArray, length: int) -> tuple[int, int]:
        """Of histories, how many have nothing in a feature, and how many have an unknown value among it.

        Args:
            past: [rows] lists of indices, of which the last `length` count.
        """
        mask, chosen = last_values(past, length)
        rows, indices = np.nonzero(mask)[0], past.flatten().to_numpy()[chosen]
        present = np.bincount(rows, ~self._missing["query", name][indices], len(past)) > 0
        unknown = np.bincount(rows, self._unknown["query", name][indices], len(past)) > 0
        return len(past) - int(present.sum()), int(unknown.sum())


def missing(feature: Feature, encoded: NDArray[Any]) -> NDArray[np.bool_]:
    """[rows] whether encoded values say that there is none."""
    if feature.type == "numeric_sequence" and encoded.shape[1] == 1:
        return np.isnan(encoded[:, 0])
    if feature.type in ("numeric", "numeric_sequence") and buckets_of(feature) is None:
        return np.equal(encoded[:, -1], 1)
    # Ids are 0; the sine and cosine of a moment are never both; a vector of zeros says nothing.
    return np.equal(encoded, 0).all(axis=1)


def encode_known(source: Path, destination: Path, schema: Schema, modules: Mapping[str, Any], rows: int) -> None:
    """Encode the rows of queries/known_candidates.sql.

    Args:
        source: their Parquet file, in the order of candidate_index.
        destination: a folder to make.
        modules: the loaded preprocessing, by tower.
        rows: the number of candidates.

    Raises:
        DataError: the rows are in another order.
    """
    destination.mkdir()
    encoders = {tower: TowerEncoder(schema, tower, modules[tower]) for tower in ("query", "candidate")}
    written: dict[str, NDArray[Any]] = {}
    first, order = 0, ByIndex()
    for batch in _batches(source):
        order.check(batch)
        for name, values in _encode(batch, schema, encoders).items():
            if name not in written:
                shape = (rows, values.shape[1])
                written[name] = np.lib.format.open_memmap(destination / f"{name}.npy", "w+", values.dtype, shape)
            written[name][first : first + len(batch)] = values
        first += len(batch)
    for file in written.values():
        file.flush()  # type: ignore[attr-defined]


def encode_counted(
    source: Path, destination: Path, schema: Schema, modules: Mapping[str, Any], candidates: int
) -> None:
    """Encode the candidate features that count events, beside those that `encode_known` wrote.

    Args:
        source: the folder of entities.split_candidates, in the order of candidate_index.
    """
    names = [name for name, feature in schema.candidate.items() if is_counted(feature)]
    encoder = TowerEncoder(schema, "candidate", modules["candidate"])
    parts: dict[str, list[NDArray[Any]]] = {name: [] for name in names}
    for file in sorted(source.glob("part-*.parquet")):
        for batch in _batches(file):
            features = batch.column("features")
            for name, values in encoder.encode({name: pc.struct_field(features, name) for name in names}).items():
                parts[name].append(_narrow(values))
    for name, batches in parts.items():
        encoded = np.concatenate(batches)
        assert len(encoded) == candidates, "split_candidates are the catalogue's"
        np.save(destination / f"candidate_{name}.npy", encoded)


def _encode(batch: pa.RecordBatch, schema: Schema, encoders: Mapping[str, TowerEncoder]) -> dict[str, NDArray[Any]]:
    static = [name for name, feature in schema.candidate.items() if not is_counted(feature)]
    encoded = encoders["candidate"].encode({name: batch.column(f"c_{name}") for name in static})
    columns = {f"candidate_{name}": values for name, values in encoded.items()}
    for name, feature in schema.query.items():
        if is_past(feature):
            columns[f"query_{name}"] = _elements(name, feature, batch.column(f"past_{name}"), encoders["query"])
    return {name: _narrow(values) for name, values in columns.items()}


def _elements(name: str, feature: Feature, values: pa.Array, encoder: TowerEncoder) -> NDArray[Any]:
    alone = pa.ListArray.from_arrays(pa.array(np.arange(len(values) + 1), pa.int32()), values)
    encoded = encoder.encode({name: alone})[name]
    if feature.type == "numeric_sequence":  # mean and last are the number itself, the third says that there is none
        return np.where(encoded[:, 2:] == 1, np.float32(np.nan), encoded[:, :1])
    length: int = feature.max_length  # type: ignore[union-attr]
    return encoded[:, : encoded.shape[1] // length]


def _narrow(values: NDArray[Any]) -> NDArray[Any]:
    return values.astype(np.int32) if values.dtype == np.int64 else values


def _batches(source: Path) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(source) as file:
        yield from file.iter_batches(_BATCH_ROWS)
