"""From raw rows to encoded ones, in batches, by the preprocessing that is saved with the model.

Strings repeat: a history of popular candidates says little that the batch has not said before. So a batch is first
taken apart into its distinct strings and the places where they stand; the saved graph (signature `distinct`) encodes
each string once, and indexing puts the ids in their places. Texts, whose encoding is dear, are remembered from batch
to batch.
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
from lockstep.features import features_type, last_values, tower_inputs
from lockstep.schema import Feature, Schema

REMEMBERED = 1_000_000
"""Texts of a feature that are remembered; beyond, they are forgotten all at once."""
_TEXTS = ("text", "text_sequence")


class RowEncoder:
    """Encodes rows; one thread at a time.

    Args:
        modules: the loaded SavedModels, by tower.
    """

    def __init__(self, schema: Schema, modules: Mapping[str, Any]) -> None:
        self._towers = {tower: _TowerEncoder(schema, tower, modules[tower]) for tower in TOWERS}

    def encode(self, rows: pa.RecordBatch) -> dict[str, NDArray[Any]]:
        """Encode a batch with the columns `query` and `candidate`, structs in any types that cast to `features_type`.

        Returns:
            `<tower>/<feature>` -> [batch, length] int64 or float32.
        """
        encoded: dict[str, NDArray[Any]] = {}
        for tower, encoder in self._towers.items():
            encoded |= {f"{tower}/{name}": values for name, values in encoder.encode(rows.column(tower)).items()}
        return encoded

    def counts(self, rows: pa.RecordBatch, encoded: Mapping[str, NDArray[Any]]) -> dict[str, int]:
        """Count the rows in which a feature is missing or holds a value that is in no vocabulary.

        Returns:
            `<tower>/<feature>/missing` and, of features with a vocabulary, `<tower>/<feature>/unknown`.
        """
        counted = {}
        for tower, encoder in self._towers.items():
            for name, feature in encoder.features.items():
                path = f"{tower}/{name}"
                raw = pc.struct_field(rows.column(tower), name)
                counted[f"{path}/missing"] = int(np.count_nonzero(_missing(feature, raw, encoded[path])))
                if name in encoder.vocabularies:
                    counted[f"{path}/unknown"] = int(np.count_nonzero((encoded[path] == 1).any(axis=1)))
        return counted


def load_modules(folder: Path) -> dict[str, Any]:
    """Load the SavedModels of both towers; the folder is not needed afterwards."""
    import tensorflow as tf

    return {tower: tf.saved_model.load(str(folder / tower)) for tower in TOWERS}


class _TowerEncoder:
    """The features of one tower."""

    def __init__(self, schema: Schema, tower: str, module: Any) -> None:
        self.features = schema.features(tower)
        owners = {name: table_owner(schema, tower, name) for name in self.features}
        self._tables = {name for name, owner in owners.items() if owner is not None}
        self.vocabularies = {name for name, owner in owners.items() if owner and hash_bins(schema, owner) is None}
        self._schema, self._tower, self._module = schema, tower, module
        self._texts = {name: _Texts() for name, feature in self.features.items() if feature.type in _TEXTS}

    def encode(self, features: pa.StructArray) -> dict[str, NDArray[Any]]:
        import tensorflow as tf

        features = features.cast(features_type(self._schema, self._tower))
        inputs = tower_inputs(self._schema, self._tower, features, only=set(self.features) - self._tables)
        places: dict[str, NDArray[Any]] = {}
        for name in self._tables:
            distinct, places[name] = _distinct(self.features[name], pc.struct_field(features, name))
            inputs[name] = distinct.cast(pa.binary()).to_numpy(zero_copy_only=False)
            if name in self._texts:
                rows, inputs[name] = self._texts[name].rows(inputs[name])
                places[name] = rows[places[name]]
        signature = self._module.signatures["distinct"]
        outputs = signature(**{name: tf.constant(values) for name, values in inputs.items()})
        encoded = {name: tensor.numpy() for name, tensor in outputs.items()}
        for name, texts in self._texts.items():
            texts.learn(encoded[name])
            encoded[name] = texts.ids
        for name, place in places.items():
            encoded[name] = encoded[name][place].reshape(len(features), -1)
        return encoded


class _Texts:
    """What texts were encoded to."""

    def __init__(self) -> None:
        self._rows: dict[bytes, int] = {}
        self.ids: NDArray[np.int32] | None = None
        """[known texts, length], by their rows."""

    def rows(self, texts: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[Any]]:
        """The rows of distinct texts, and those among them whose ids are to be learnt."""
        if len(self._rows) > REMEMBERED:
            self._rows, self.ids = {}, None
        found = list(map(self._rows.get, texts))
        unseen = [number for number, row in enumerate(found) if row is None]
        for row, number in enumerate(unseen, start=len(self._rows)):
            found[number] = self._rows[texts[number]] = row
        return np.array(found, np.int64), texts[unseen]

    def learn(self, ids: NDArray[np.int64]) -> None:
        """Take the [texts, length] ids of the texts that were to be learnt."""
        if self.ids is None or len(ids):
            known = [] if self.ids is None else [self.ids]
            self.ids = np.concatenate([*known, ids.astype(np.int32)])


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


def _missing(feature: Feature, raw: pa.Array, encoded: NDArray[Any]) -> NDArray[np.bool_]:
    if feature.type == "vector":
        lengths: NDArray[np.int32] = pc.fill_null(pc.list_value_length(raw), 0).to_numpy(zero_copy_only=False)
        return np.equal(lengths, 0)
    if feature.type == "numeric":
        return encoded[:, 1] == 1
    if feature.type == "numeric_sequence":
        return encoded[:, 2] == 1
    # Ids are 0, and the sine and cosine of a moment are never both.
    return np.equal(encoded, 0).all(axis=1)
