"""Moments of any spelling: timestamp columns, integers of a unit that is told or guessed, ISO 8601 text."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dataflow.dead_letters import Reason
from dataflow.sources.output import TIME
from dataflow.sources.rows import RowCheck, parse_texts
from lockstep.errors import DataError

PER_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
EARLIEST, LATEST = -2_208_988_800, 7_258_118_400
"""1900 and 2200, in seconds: a moment outside is a mistake, such as milliseconds taken for seconds."""
_GUESS = (631_152_000, 4_102_444_800)
"""1990 and 2100: at whole units these ranges of s, ms, us and ns do not overlap, so that a guess is safe."""
_GUESS_SHARE = 0.8
_NUMBER = r"^[+-]?[0-9]{1,18}(\.[0-9]*)?$"
_ISO = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}([ T][0-9]{2}(:[0-9]{2}(:[0-9]{2}(\.[0-9]+)?)?)?)?(Z|[+-][0-9]{2}(:?[0-9]{2})?)?$"


class MomentReader:
    """Reads one column of moments, keeping what it has found out of their spelling from batch to batch.

    Moments without a zone are UTC.

    Args:
        unit: of numbers: s, ms, us, ns, or `auto`, which takes the one unit in which at least 80 % of the
            first batch lie between 1990 and 2100, and refuses to guess otherwise.
        key: the configuration key to set where the guess is refused.
    """

    def __init__(self, unit: str = "auto", key: str = "timestamp_unit") -> None:
        self._unit = None if unit == "auto" else unit
        self._numeric_text: bool | None = None if unit == "auto" else True
        self._key = key

    def parse(self, values: pa.Array, check: RowCheck, column: str, *, required: bool = True) -> pa.Array:
        """The column as timestamp[us, UTC].

        Raises:
            DataError: the unit of numbers cannot be told.
        """
        if pa.types.is_dictionary(values.type):
            values = values.dictionary_decode()
        if pa.types.is_date(values.type):
            values = values.cast(pa.timestamp("s"))
        if pa.types.is_timestamp(values.type):
            numbers = values.cast(pa.int64())
            parsed = _from_numbers(numbers, values.type.unit, check, column)
        elif pa.types.is_integer(values.type) or pa.types.is_floating(values.type):
            parsed = self._numbers(values, check, column)
        else:
            values = pc.utf8_trim_whitespace(parse_texts(values, check, column))
            values = pc.if_else(pc.equal(values, ""), None, values)
            parsed = self._text(values, check, column)
        if required:
            check.reject(values.is_null(), Reason.MISSING_TIME, column)
        return parsed

    def _numbers(self, values: pa.Array, check: RowCheck, column: str) -> pa.Array:
        if pa.types.is_floating(values.type):
            check.reject(pc.is_nan(values), Reason.MISSING_TIME, column)
            check.reject(pc.is_inf(values), Reason.UNREADABLE_TIME, column)
            values = pc.if_else(pc.is_finite(values), values.cast(pa.float64()), None)
        elif pa.types.is_uint64(values.type):
            check.reject(pc.greater(values, 2**63 - 1), Reason.TIME_OUT_OF_RANGE, column)
            values = values.cast(pa.int64(), safe=False)
        else:
            values = values.cast(pa.int64())
        if self._unit is None:
            present = values.drop_null()
            if not len(present):
                return pa.nulls(len(values), TIME)
            self._unit = _guess_unit(present.to_numpy(), column, self._key)
        return _from_numbers(values, self._unit, check, column)

    def _text(self, text: pa.Array, check: RowCheck, column: str) -> pa.Array:
        number = pc.match_substring_regex(text, _NUMBER)
        if self._numeric_text is None:
            present = number.drop_null()
            if not len(present):
                return pa.nulls(len(text), TIME)
            self._numeric_text = present.true_count * 2 > len(present)
        if not self._numeric_text:
            return _from_iso(text, check, column)
        check.reject(pc.invert(number), Reason.UNREADABLE_TIME, column)
        digits = pc.replace_substring_regex(pc.if_else(number, text, None), r"^\+|\.0*$", "")
        fractions = pc.any(pc.match_substring(digits, ".")).as_py()
        return self._numbers(digits.cast(pa.float64() if fractions else pa.int64()), check, column)


def _guess_unit(numbers: NDArray[Any], column: str, key: str) -> str:
    low, high = _GUESS
    for unit, factor in PER_SECOND.items():
        share = np.mean((numbers >= low * factor) & (numbers < high * factor))
        if share >= _GUESS_SHARE:
            return unit
    examples = ", ".join(str(number) for number in numbers[:3].tolist())
    raise DataError(
        f"the unit of the moments in column {column!r} cannot be told (such as {examples}): they are not between "
        f"1990 and 2100 in s, ms, us or ns; set {key} to the unit, or map a column of moments"
    )


def _from_numbers(values: pa.Array, unit: str, check: RowCheck, column: str) -> pa.Array:
    factor = PER_SECOND[unit]
    inside = pc.and_(
        pc.greater_equal(values, pa.scalar(EARLIEST * factor, values.type)),
        pc.less(values, pa.scalar(LATEST * factor, values.type)),
    )
    check.reject(pc.invert(inside), Reason.TIME_OUT_OF_RANGE, column)
    values = pc.if_else(inside, values, None)
    if pa.types.is_floating(values.type):
        micros = pc.round(pc.multiply(values, PER_SECOND["us"] / factor)).cast(pa.int64())
    elif unit == "ns":
        micros = pc.divide(values, 1_000)
    else:
        micros = pc.multiply(values, PER_SECOND["us"] // factor)
    return micros.cast(TIME)


def _from_iso(text: pa.Array, check: RowCheck, column: str) -> pa.Array:
    matches = pc.match_substring_regex(text, _ISO)
    check.reject(pc.invert(matches), Reason.UNREADABLE_TIME, column)
    text = pc.if_else(matches, text, None)
    # Arrow wants a time of day, a zone, and at most six digits of a second.
    text = pc.replace_substring_regex(text, r"^(.{10})(Z|[+-].*)?$", r"\1T00:00\2")
    text = pc.replace_substring_regex(text, r"(\.[0-9]{6})[0-9]+", r"\1")
    zoned = pc.match_substring_regex(pc.utf8_slice_codeunits(text, 11), r"(Z|[+-][0-9:]+)$")
    text = pc.if_else(zoned, text, pc.binary_join_element_wise(text, "Z", ""))
    try:
        moments = text.cast(TIME)
    except pa.ArrowInvalid:
        moments = pa.array([_moment(value) for value in text.to_pylist()], TIME)
        check.reject(pc.and_(text.is_valid(), moments.is_null()), Reason.UNREADABLE_TIME, column)
    return _from_numbers(moments.cast(pa.int64()), "us", check, column)


def _moment(value: str | None) -> datetime | None:
    try:
        return None if value is None else datetime.fromisoformat(value)
    except ValueError:
        return None
