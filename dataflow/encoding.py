"""From raw features to encoded ones, in batches, by the preprocessing that is saved with the model.

Strings repeat: a history of popular candidates says little that the batch has not said before. So a batch is first
taken apart into its distinct strings and the places where they stand; the saved graph (signature `distinct`) encodes
each string once, and indexing puts the ids in their places. Words of texts, whose encoding is dear, are remembered
from batch to batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dataflow.encoded import TOWERS, hash_bins, table_owner
from dataflow.text_memory import TextMemory
from lockstep.features import arrow_type, last_values, tower_inputs
from lockstep.schema import Feature, Schema, TextFeature, TextSequenceFeature

REMEMBERED = 1_000_000
"""Words (or whole texts, see dataflow.text_memory) of a feature that are remembered; beyond, all are forgotten."""


def load_modules(folder: Path) -> dict[str, Any]:
    """Load the SavedModels of both towers; the folder is not needed afterwards."""
    import tensorflow as tf

    return {tower: tf.saved_model.load(str(folder / tower)) for tower in TOWERS}


class TowerEncoder:
    """Encodes columns of raw features of one tower; one thread at a time."""

    def __init__(self, schema: Schema, tower: str, module: Any) -> None:
        self.features = schema.features(tower)
        owners = {name: table_owner(schema, tower, name) for name in self.features}
        self._tables = {name for name, owner in owners.items() if owner is not None}
        self.vocabularies = {name for name, owner in owners.items() if owner and hash_bins(schema, owner) is None}
        self._schema, self._tower, self._module = schema, tower, module
        self._texts = {
            name: TextMemory(feature.ngrams == 1, feature.max_tokens)
            for name, feature in self.features.items()
            if isinstance(feature, TextFeature | TextSequenceFeature)
        }

    def encode(self, columns: Mapping[str, pa.Array]) -> dict[str, NDArray[Any]]:
        """Encode some or all of the tower's features.

        Args:
            columns: by feature, [rows] in any type that casts to `arrow_type`.

        Returns:
            By feature, [rows, length] int32, int64 or float32.
        """
        if not columns:
            return {}
        raw = {name: column.cast(arrow_type(self.features[name])) for name, column in columns.items()}
        structs = pa.StructArray.from_arrays(list(raw.values()), names=list(raw))
        # The signature takes every feature; the others get no rows.
        inputs = {name: _no_rows(feature, name in self._tables) for name, feature in self.features.items()}
        inputs |= tower_inputs(self._schema, self._tower, structs, only=set(raw) - self._tables)
        places: dict[str, NDArray[Any]] = {}
        for name in self._tables & set(raw):
            if self._is_split(name):
                distinct = pc.fill_null(raw[name], "")  # few texts repeat, and their words are encoded once anyway
            else:
                distinct, places[name] = _distinct(self.features[name], raw[name])
            if name in self._texts:
                inputs[name] = self._texts[name].unknown(distinct, REMEMBERED)
            else:
                inputs[name] = distinct.cast(pa.binary()).to_numpy(zero_copy_only=False)
        outputs = self._module.signatures["distinct"](**{name: _tensor(values) for name, values in inputs.items()})
        encoded = {name: outputs[name].numpy() for name in raw}
        for name in self._texts.keys() & raw:
            encoded[name] = self._texts[name].ids(encoded[name])
        for name, place in places.items():
            encoded[name] = encoded[name][place].reshape(len(structs), -1)
        return encoded

    def _is_split(self, name: str) -> bool:
        return self.features[name].type == "text" and self._texts[name].splits


def _distinct(feature: Feature, values: pa.Array) -> tuple[pa.Array, NDArray[np.int32]]:
    """Take a column of strings apart.

    Returns:
        The distinct strings, and [batch] or [batch, max_length] the numbers of those that stand there; padding and
        nulls are the number of an empty string.
    """
    if not feature.is_sequence:
        filled = pc.fill_null(values, "").dictionary_encode()
        return filled.dictionary, filled.indices.to_numpy()
    length = feature.max_length  # type: ignore[union-attr]
    mask, chosen = last_values(values, length)
    flat = values.flatten()
    kept = pc.fill_null(flat if len(chosen) == len(flat) else flat.take(pa.array(chosen)), "").dictionary_encode()
    distinct, padding = kept.dictionary, pc.index(kept.dictionary, "").as_py()
    if padding < 0:
        distinct, padding = pa.concat_arrays([distinct, pa.array([""])]), len(distinct)
    places = np.full((len(values), length), padding, np.int32)
    places[:, : mask.shape[1]][mask] = kept.indices.to_numpy()
    return distinct, places


def _no_rows(feature: Feature, table: bool) -> NDArray[Any]:
    if table:
        return np.empty(0, object)
    if feature.type == "vector":
        return np.empty((0, feature.size), np.float32)
    if feature.type == "numeric_sequence":
        return np.empty((0, 1), np.float32)
    return np.empty(0, np.int64 if feature.type == "timestamp" else np.float32)


def _tensor(values: NDArray[Any]) -> Any:
    import tensorflow as tf

    return tf.constant(values, tf.string) if values.dtype == object else tf.constant(values)
