"""Known candidates: what training rows name by index, encoded once and looked up as often as it is named.

A popular candidate stands in thousands of histories. Its own features, and its elements in the history features of
queries, are the same in all of them, so they are encoded once, in a few passes over the catalogue:

    <folder>/candidate_<feature>.npy    [candidates, length] int32 or float32: the encoded feature
    <folder>/query_<feature>.npy        [candidates, n] of a history feature: n = 1 id or number, or max_tokens ids

The files are mapped, not read, so that a catalogue need not fit in memory. They hold what the saved preprocessing
makes of a history with that candidate alone; numbers, whose mean is taken over the history, are kept raw.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dataflow.columns import is_counted, is_past
from dataflow.encoding import TowerEncoder
from dataflow.numbers import ByIndex
from lockstep.features import last_values
from lockstep.schema import Feature, Schema

_BATCH_ROWS = 32_768


class KnownCandidates:
    """The encoded candidates of a folder that `encode_known` wrote."""

    def __init__(self, folder: Path) -> None:
        self._columns = {file.stem: np.load(file, mmap_mode="r") for file in sorted(folder.glob("*.npy"))}

    def candidate(self, name: str, indices: NDArray[np.int64]) -> NDArray[Any]:
        """The [rows, length] encoded feature of the candidates of [rows] indices."""
        found: NDArray[Any] = self._columns[f"candidate_{name}"][indices]
        return found

    def history(self, name: str, past: pa.ListArray, length: int) -> NDArray[Any]:
        """A history feature of ids or texts: [rows, length * n], the last `length` candidates, padded with 0."""
        elements = self._columns[f"query_{name}"]
        mask, chosen = last_values(past, length)
        encoded = np.zeros((len(past), length, elements.shape[1]), elements.dtype)
        encoded[:, : mask.shape[1]][mask] = elements[past.flatten().to_numpy()[chosen]]
        return encoded.reshape(len(past), -1)

    def numbers(self, name: str, past: pa.ListArray) -> pa.ListArray:
        """A history feature of numbers, raw: a list of float64 a row."""
        flat = self._columns[f"query_{name}"][:, 0][past.flatten().to_numpy()]
        lengths = np.asarray(past.value_lengths().fill_null(0))
        return pa.ListArray.from_arrays(pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32()), pa.array(flat))


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


def _encode(batch: pa.RecordBatch, schema: Schema, encoders: Mapping[str, TowerEncoder]) -> dict[str, NDArray[Any]]:
    static = [name for name, feature in schema.candidate.items() if not is_counted(feature)]
    encoded = encoders["candidate"].encode({name: batch.column(f"c_{name}") for name in static})
    columns = {f"candidate_{name}": values for name, values in encoded.items()}
    for name, feature in schema.query.items():
        if is_past(feature):
            columns[f"query_{name}"] = _elements(name, feature, batch.column(f"past_{name}"), encoders["query"])
    return {name: _narrow(values) for name, values in columns.items()}


def _elements(name: str, feature: Feature, values: pa.Array, encoder: TowerEncoder) -> NDArray[Any]:
    if feature.type == "numeric_sequence":
        numbers: NDArray[Any] = values.to_numpy(zero_copy_only=False)
        return numbers[:, None]
    alone = pa.ListArray.from_arrays(pa.array(np.arange(len(values) + 1), pa.int32()), values)
    encoded = encoder.encode({name: alone})[name]
    length: int = feature.max_length  # type: ignore[union-attr]
    return encoded[:, : encoded.shape[1] // length]


def _narrow(values: NDArray[Any]) -> NDArray[Any]:
    return values.astype(np.int32) if values.dtype == np.int64 else values


def _batches(source: Path) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(source) as file:
        yield from file.iter_batches(_BATCH_ROWS)
