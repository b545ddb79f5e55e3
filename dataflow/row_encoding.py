"""From training rows to what their records hold: only what differs from row to row is encoded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dataflow.columns import is_counted, is_past
from dataflow.encoded import TOWERS
from dataflow.encoding import TowerEncoder
from dataflow.known import KnownCandidates, missing
from lockstep.features import last_values
from lockstep.schema import Schema


class RowEncoder:
    """Encodes the rows of queries/training_examples.sql; one thread at a time.

    Args:
        modules: the loaded preprocessing, by tower.
        known: the candidates that the rows name.
    """

    def __init__(self, schema: Schema, modules: Mapping[str, Any], known: KnownCandidates) -> None:
        self._schema, self._known = schema, known
        self._towers = {tower: TowerEncoder(schema, tower, modules[tower]) for tower in TOWERS}
        self._own = own_features(schema)

    def encode(self, rows: pa.RecordBatch) -> dict[str, NDArray[Any]]:
        """Encode a batch.

        Returns:
            `<tower>/<feature>` -> [batch, length] integers or float32 of the features of `own_features`, and, where a
            feature reads the past, `past` [batch, max_history]: candidate_index + 1, oldest first, padded with 0.
        """
        encoded: dict[str, NDArray[Any]] = {}
        for tower, names in self._own.items():
            raw = {name: rows.column(f"{tower[0]}_{name}") for name in names}
            encoded |= {f"{tower}/{name}": values for name, values in self._towers[tower].encode(raw).items()}
        return encoded | self._past(rows)

    def counts(self, rows: pa.RecordBatch, encoded: Mapping[str, NDArray[Any]]) -> dict[str, int]:
        """Count the rows in which a feature is missing or holds a value that is in no vocabulary.

        Args:
            encoded: what `encode` returned of the rows.

        Returns:
            `<tower>/<feature>/missing` and, of features with a vocabulary, `<tower>/<feature>/unknown`.
        """
        counted = {}
        for tower, encoder in self._towers.items():
            for name in encoder.features:
                lacking, unknown = self._count(tower, name, rows, encoded)
                counted[f"{tower}/{name}/missing"] = lacking
                if name in encoder.vocabularies:
                    counted[f"{tower}/{name}/unknown"] = unknown
        return counted

    def _past(self, rows: pa.RecordBatch) -> dict[str, NDArray[Any]]:
        length = self._schema.max_history
        if not length:
            return {}
        past = rows.column("past")
        mask, chosen = last_values(past, length)
        padded = np.zeros((len(past), length), np.int64)
        padded[:, : mask.shape[1]][mask] = past.flatten().to_numpy()[chosen] + 1
        return {"past": padded}

    def _count(
        self, tower: str, name: str, rows: pa.RecordBatch, encoded: Mapping[str, NDArray[Any]]
    ) -> tuple[int, int]:
        feature = self._schema.features(tower)[name]
        if name in self._own[tower]:
            values = encoded[f"{tower}/{name}"]
            return int(missing(feature, values).sum()), int((values == 1).any(axis=1).sum())
        if tower == "candidate":
            return self._known.candidates(name, rows.column("candidate_index").to_numpy())
        return self._known.histories(name, rows.column("past"), feature.max_length)  # type: ignore[union-attr]


def own_features(schema: Schema) -> dict[str, list[str]]:
    """By tower, the features that a record holds itself: those of the past and of candidates are joined by index."""
    return {
        "query": [name for name, feature in schema.query.items() if not is_past(feature)],
        "candidate": [name for name, feature in schema.candidate.items() if is_counted(feature)],
    }
