"""A feature's raw values in some rows: which are there, and what they are."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import tensorflow as tf
from numpy.typing import NDArray

from dataflow.text import tokenize
from lockstep.features import arrow_type
from lockstep.schema import Feature

_TEXTS = ("id", "categorical", "text", "id_sequence", "text_sequence")


@dataclass(frozen=True)
class Rows:
    """Rows of one tower's raw features.

    Args:
        features: [rows] struct, a field a feature of the schema.
        independent: how many independent rows they are worth; rows of one query entity are alike.
    """

    features: pa.StructArray
    independent: int

    def __len__(self) -> int:
        return len(self.features)


@dataclass(frozen=True)
class Occurrences:
    """The values of one feature that are there: not null, empty or no finite number.

    Args:
        rows: number of rows.
        lengths: [rows] how many values a row has; 0 where it has none.
        values: [sum of lengths] strings, float64, moments, or (vectors) lists of float.
    """

    rows: int
    lengths: NDArray[np.int64]
    values: pa.Array

    @property
    def missing(self) -> int:
        """Rows without a value."""
        return int((self.lengths == 0).sum())

    @property
    def numbers(self) -> NDArray[Any]:
        """The values as a sorted array, so that sums do not depend on the rows' order."""
        return np.sort(self.values.to_numpy(zero_copy_only=False))

    @cached_property
    def counts(self) -> tuple[list[str], NDArray[np.int64]]:
        """Distinct strings and how often each stands, most frequent first."""
        return ranked(self.values, np.ones(len(self.values), np.int64))


@dataclass(frozen=True)
class Tokens:
    """The tokens of texts.

    Args:
        lengths: [texts] tokens of each text.
        values: distinct tokens, most frequent first.
        counts: how often each stands.
    """

    lengths: NDArray[np.int64]
    values: list[str]
    counts: NDArray[np.int64]


def occurrences(feature: Feature, rows: Rows, name: str) -> Occurrences:
    """The values of a feature that are there."""
    raw = pc.struct_field(rows.features, name).cast(arrow_type(feature))
    if feature.is_sequence:
        flat, owners = raw.flatten(), pc.list_parent_indices(raw).to_numpy()
    else:
        flat, owners = raw, np.arange(len(raw))
    there = _present(feature, flat)
    lengths = np.bincount(owners[there], minlength=len(raw)).astype(np.int64)
    return Occurrences(len(raw), lengths, flat.filter(pa.array(there)))


def tokens(of: Occurrences, ngrams: int) -> Tokens:
    """The tokens of the texts, each distinct text read once."""
    texts, repeated = of.counts
    ragged = tokenize(tf.constant([text.encode() for text in texts], tf.string), ngrams)
    lengths = ragged.row_lengths().numpy()
    flat = pa.array(ragged.flat_values.numpy(), pa.binary()).cast(pa.string())
    values, counts = ranked(flat, np.repeat(repeated, lengths))
    return Tokens(np.repeat(lengths, repeated), values, counts)


def ranked(values: pa.Array, weights: NDArray[np.int64]) -> tuple[list[str], NDArray[np.int64]]:
    """Distinct values and their summed weights, heaviest first, then by value."""
    table = pa.table({"value": values, "weight": weights}).group_by("value").aggregate([("weight", "sum")])
    table = table.sort_by([("weight_sum", "descending"), ("value", "ascending")])
    return table.column("value").to_pylist(), table.column("weight_sum").to_numpy()


def _present(feature: Feature, flat: pa.Array) -> NDArray[np.bool_]:
    valid: NDArray[np.bool_] = flat.is_valid().to_numpy(zero_copy_only=False)
    if feature.type in _TEXTS:
        return valid & (pc.binary_length(flat).fill_null(0).to_numpy() > 0)
    if feature.type in ("numeric", "numeric_sequence"):
        return valid & np.isfinite(flat.fill_null(0.0).to_numpy(zero_copy_only=False))
    return valid
