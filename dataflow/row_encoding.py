"""From training rows to encoded ones: what differs from row to row is encoded, candidates are looked up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dataflow.columns import is_counted, is_past
from dataflow.encoded import TOWERS
from dataflow.encoding import TowerEncoder
from dataflow.known import KnownCandidates
from lockstep.schema import Feature, Schema


class RowEncoder:
    """Encodes the rows of queries/training_examples.sql; one thread at a time.

    Args:
        modules: the loaded preprocessing, by tower.
        known: the candidates that the rows name.
    """

    def __init__(self, schema: Schema, modules: Mapping[str, Any], known: KnownCandidates) -> None:
        self._schema, self._known = schema, known
        self._towers = {tower: TowerEncoder(schema, tower, modules[tower]) for tower in TOWERS}

    def encode(self, rows: pa.RecordBatch) -> dict[str, NDArray[Any]]:
        """Encode a batch.

        Returns:
            `<tower>/<feature>` -> [batch, length] integers or float32.
        """
        query, candidate = self._query(rows), self._candidate(rows)
        encoded = {f"query/{name}": values for name, values in query.items()}
        return encoded | {f"candidate/{name}": values for name, values in candidate.items()}

    def counts(self, encoded: Mapping[str, NDArray[Any]]) -> dict[str, int]:
        """Count the rows in which a feature is missing or holds a value that is in no vocabulary.

        Args:
            encoded: what `encode` returned.

        Returns:
            `<tower>/<feature>/missing` and, of features with a vocabulary, `<tower>/<feature>/unknown`.
        """
        counted = {}
        for tower, encoder in self._towers.items():
            for name, feature in encoder.features.items():
                values = encoded[f"{tower}/{name}"]
                counted[f"{tower}/{name}/missing"] = int(np.count_nonzero(_missing(feature, values)))
                if name in encoder.vocabularies:
                    counted[f"{tower}/{name}/unknown"] = int(np.count_nonzero((values == 1).any(axis=1)))
        return counted

    def _query(self, rows: pa.RecordBatch) -> dict[str, NDArray[Any]]:
        raw: dict[str, pa.Array] = {}
        looked_up: dict[str, NDArray[Any]] = {}
        for name, feature in self._schema.query.items():
            if not is_past(feature):
                raw[name] = rows.column(f"q_{name}")
            elif feature.type == "numeric_sequence":
                raw[name] = self._known.numbers(name, rows.column("past"))
            else:
                looked_up[name] = self._known.history(name, rows.column("past"), feature.max_length)  # type: ignore[union-attr]
        return self._towers["query"].encode(raw) | looked_up

    def _candidate(self, rows: pa.RecordBatch) -> dict[str, NDArray[Any]]:
        indices = rows.column("candidate_index").to_numpy()
        counted = {name for name, feature in self._schema.candidate.items() if is_counted(feature)}
        encoded = self._towers["candidate"].encode({name: rows.column(f"c_{name}") for name in counted})
        static = set(self._schema.candidate) - counted
        return encoded | {name: self._known.candidate(name, indices) for name in static}


def _missing(feature: Feature, encoded: NDArray[Any]) -> NDArray[np.bool_]:
    if feature.type == "numeric":
        return np.equal(encoded[:, 1], 1)
    if feature.type == "numeric_sequence":
        return np.equal(encoded[:, 2], 1)
    # Ids are 0; the sine and cosine of a moment are never both; a vector of zeros says nothing.
    return np.equal(encoded, 0).all(axis=1)
