"""Raw features: the one shape in which they travel before preprocessing.

Entities and evaluation queries hold a struct column `features`, one field a feature of the schema, of the Arrow
type that `arrow_type` names. A tower takes the same features as arrays (`tower_inputs`), with missing values as
"" (text), NaN (numbers) or MISSING_TIME (moments), and sequences padded on the right with the missing value.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lockstep.errors import RequestError
from lockstep.schema import Feature, Schema

MISSING_TIME = -(2**62)
"""The moment (seconds since 1970, int64) that stands for no moment."""

_SCALARS = {
    "id": pa.string(),
    "categorical": pa.string(),
    "text": pa.string(),
    "numeric": pa.float64(),
    "timestamp": pa.timestamp("us", tz="UTC"),
    "id_sequence": pa.string(),
    "text_sequence": pa.string(),
    "numeric_sequence": pa.float64(),
}


def arrow_type(feature: Feature) -> pa.DataType:
    """The Arrow type of a feature's raw values."""
    if feature.type == "vector":
        return pa.list_(pa.float32())
    scalar = _SCALARS[feature.type]
    return pa.list_(scalar) if feature.is_sequence else scalar


def features_type(schema: Schema, tower: str) -> pa.StructType:
    """The Arrow type of the `features` column of one tower."""
    return pa.struct([(name, arrow_type(feature)) for name, feature in schema.features(tower).items()])


def tower_inputs(
    schema: Schema, tower: str, features: pa.StructArray, only: Collection[str] | None = None
) -> dict[str, NDArray[Any]]:
    """Turn a `features` column into the arrays that the tower of this schema takes.

    Args:
        only: the features that are wanted, where not all are.

    Returns:
        name -> object (bytes) [batch] or [batch, length], float32 likewise, int64 seconds for moments; a
        sequence is cut to its last `max_length` values and padded to the longest of the batch, at least one.
    """
    return {
        name: _inputs(feature, pc.struct_field(features, name))
        for name, feature in schema.features(tower).items()
        if only is None or name in only
    }


def last_values(values: pa.ListArray, length: int) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """The last values of each row, and where they go.

    Returns:
        [batch, width] bool, True where a value goes, from the left; its width is the longest row's, at most `length`
        and at least 1. And for each True, row by row, the position in `values.flatten()` of the value.
    """
    lengths = pc.fill_null(pc.list_value_length(values), 0).to_numpy(zero_copy_only=False)
    kept = np.minimum(lengths, length)
    columns = np.arange(max(1, int(kept.max(initial=0))))
    mask = columns[None, :] < kept[:, None]
    # Null lists have no values in `flatten`, whose rows are therefore consecutive.
    starts = np.cumsum(lengths, dtype=np.int64) - kept
    return mask, (starts[:, None] + columns[None, :])[mask]


def features_from_json(schema: Schema, tower: str, values: Mapping[str, Any]) -> pa.StructArray:
    """One row of raw features from a request; features that are not given are missing.

    Raises:
        RequestError: an unknown feature, or a value of the wrong type.
    """
    declared = schema.features(tower)
    unknown = sorted(set(values) - set(declared))
    if unknown:
        raise RequestError(f"unknown {tower} features {unknown}: the schema has {sorted(declared)}")
    row = {name: _json_value(name, feature, values.get(name)) for name, feature in declared.items()}
    return pa.array([row], type=features_type(schema, tower))


def _inputs(feature: Feature, values: pa.Array) -> NDArray[Any]:
    if feature.type == "vector":
        return _padded(values, feature.size, np.float32, 0.0)
    if feature.type == "timestamp":
        # In whole numbers: beyond the year 2255 a float64 cannot count microseconds.
        micros = pc.fill_null(values.cast(pa.int64()), 0).to_numpy(zero_copy_only=False)
        missing = values.is_null().to_numpy(zero_copy_only=False)
        moments: NDArray[Any] = np.where(missing, MISSING_TIME, np.floor_divide(micros, 1_000_000))
        return moments
    if feature.is_sequence:
        length = feature.max_length  # type: ignore[union-attr]
        if feature.type == "numeric_sequence":
            return _padded(values, length, np.float32, np.nan)
        return _padded(values, length, object, b"")
    if feature.type == "numeric":
        array: NDArray[Any] = pc.fill_null(values, math.nan).to_numpy(zero_copy_only=False)
        return array.astype(np.float32)
    return _bytes(values)


def _bytes(values: pa.Array) -> NDArray[Any]:
    filled = pc.fill_null(values.cast(pa.binary()), b"")
    array: NDArray[Any] = filled.to_numpy(zero_copy_only=False)
    return array


def _padded(values: pa.ListArray, length: int, dtype: Any, missing: Any) -> NDArray[Any]:
    mask, chosen = last_values(values, length)
    width = length if dtype is np.float32 and missing == 0.0 else mask.shape[1]
    out = np.full((len(values), width), missing, dtype=dtype)
    flat = values.flatten()
    flat_values = _bytes(flat) if dtype is object else pc.fill_null(flat, missing).to_numpy(zero_copy_only=False)
    out[:, : mask.shape[1]][mask] = flat_values[chosen]
    return out


def _json_value(name: str, feature: Feature, value: Any) -> Any:
    if value is None:
        return None
    if feature.is_sequence or feature.type == "vector":
        if not isinstance(value, list):
            raise RequestError(f"feature {name!r} is of type {feature.type}: expected a list, found {value!r}")
        if feature.type == "vector" and len(value) != feature.size:
            raise RequestError(f"feature {name!r} is a vector of {feature.size} floats, found {len(value)}")
        return [_json_scalar(name, feature, element) for element in value]
    return _json_scalar(name, feature, value)


def _json_scalar(name: str, feature: Feature, value: Any) -> Any:
    if feature.type in ("numeric", "numeric_sequence", "vector"):
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise RequestError(f"feature {name!r} is {feature.type}: expected a finite number, found {value!r}")
        return float(value)
    if feature.type == "timestamp":
        return _moment(name, value)
    if not isinstance(value, str):
        raise RequestError(f"feature {name!r} is {feature.type}: expected a string, found {value!r}")
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        raise RequestError(f"feature {name!r}: {value!r} is no Unicode text")
    return value


def _moment(name: str, value: Any) -> datetime:
    try:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return datetime.fromtimestamp(value, UTC)
        moment = datetime.fromisoformat(value)
        return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (TypeError, ValueError, OverflowError, OSError) as error:
        raise RequestError(
            f"feature {name!r} is a timestamp: expected seconds since 1970 or ISO 8601, found {value!r}"
        ) from error
