"""Vectorised validation: columns of any Arrow type in, clean columns out, every bad row marked with its reason.

A parser takes a column and returns it in its target type; rows that it cannot use are rejected in the `RowCheck`
(the first reason counts) and hold any value in the result, because `RowCheck.kept` drops them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dataflow.dead_letters import DeadLetters, Reason
from lockstep.errors import DataError
from lockstep.schema import MAX_ID_BYTES

MAX_NUMBER = 3.4028234663852886e38
"""The greatest float32."""
MAX_TEXT_BYTES = 10_000
"""Longest text of an attribute, in UTF-8."""
INVALID = "\ufdd0"
"""Marks a byte that is no UTF-8 in text that was decoded leniently; a noncharacter, so in no valid text."""
_NUMBER = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$"
_WHOLE = r"^[+-]?[0-9]{1,18}(\.0*)?$"

Mask = NDArray[np.bool_]


class RowCheck:
    """Which rows of a batch are good, and why the others are not.

    Args:
        rows: the batch as it was read; dead letters show it.
        marked: its text was decoded leniently, so that `INVALID` may stand in it.
    """

    def __init__(self, rows: pa.RecordBatch, *, marked: bool = False) -> None:
        self.rows = rows
        self.marked = marked
        self.good: Mask = np.ones(len(rows), dtype=bool)
        self.faults: list[tuple[Reason, str, Mask]] = []

    def reject(self, bad: pa.Array | Mask, reason: Reason, column: str) -> None:
        """Mark rows as bad, unless they are already."""
        mask = _mask(bad) & self.good
        if mask.any():
            self.good &= ~mask
            self.faults.append((reason, column, mask))

    def kept(self, column: pa.Array) -> pa.Array:
        """The column's good rows."""
        return column if self.good.all() else column.filter(pa.array(self.good))

    def report(self, dead_letters: DeadLetters, source: str) -> int:
        """Dead-letter every bad row; returns how many."""
        for reason, column, mask in self.faults:
            dead_letters.add_batch(reason, self.rows.filter(pa.array(mask)), source, column=column)
        return int((~self.good).sum())


def parse_ids(values: pa.Array, check: RowCheck, column: str) -> pa.Array:
    """Ids as strings: text as it is, whole numbers in decimal; null, empty and over-long ones are rejected."""
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if pa.types.is_integer(values.type):
        text = values.cast(pa.string())
    elif pa.types.is_floating(values.type):
        # What pandas makes of integers with gaps: NaN is a missing id, and a fraction is none.
        numbers = _numpy(values, np.nan)
        check.reject(np.isnan(numbers), Reason.EMPTY_ID, column)
        whole = np.isfinite(numbers) & (np.abs(numbers) < 2**53) & (numbers == np.floor(numbers))
        check.reject(~whole, Reason.WRONG_TYPE, column)
        text = pa.array(np.where(whole, numbers, 0).astype(np.int64)).cast(pa.string())
    else:
        text = _text(values, check, column)
    empty = pc.equal(pc.utf8_trim_whitespace(text), "")
    check.reject(pc.fill_null(empty, True), Reason.EMPTY_ID, column)
    check.reject(pc.greater(pc.binary_length(text), MAX_ID_BYTES), Reason.LONG_ID, column)
    return text


def parse_texts(values: pa.Array, check: RowCheck, column: str) -> pa.Array:
    """Text of at most `MAX_TEXT_BYTES`; numbers are written out; null is allowed."""
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if pa.types.is_integer(values.type) or pa.types.is_boolean(values.type):
        return values.cast(pa.string())
    text = _text(values, check, column)
    check.reject(pc.greater(pc.binary_length(text), MAX_TEXT_BYTES), Reason.LONG_TEXT, column)
    return text


def parse_integers(values: pa.Array, check: RowCheck, column: str, *, required: bool = False) -> pa.Array:
    """Whole numbers of 64 bits; null is allowed unless they are required, a fraction is not."""
    parsed = _whole_numbers(values, check, column)
    if required:
        check.reject(parsed.is_null(), Reason.MISSING_POSITION, column)
    return parsed


def _whole_numbers(values: pa.Array, check: RowCheck, column: str) -> pa.Array:
    if pa.types.is_boolean(values.type):
        return values.cast(pa.int64())
    if pa.types.is_uint64(values.type):
        check.reject(pc.greater(values, 2**63 - 1), Reason.WRONG_TYPE, column)
        return values.cast(pa.int64(), safe=False)
    if pa.types.is_integer(values.type):
        return values.cast(pa.int64())
    if not _is_number(values.type):
        text = pc.utf8_trim_whitespace(_text(values, check, column))
        text = pc.if_else(pc.equal(text, ""), None, text)
        whole = pc.match_substring_regex(text, _WHOLE)
        check.reject(pc.invert(whole), Reason.WRONG_TYPE, column)
        digits = pc.replace_substring_regex(pc.if_else(whole, text, None), r"^\+|\.0*$", "")
        return digits.cast(pa.int64())
    numbers = _numpy(values, np.nan)
    present = _mask(values.is_valid())
    check.reject(present & ~np.isfinite(numbers), Reason.NOT_FINITE, column)
    whole_numbers = np.isfinite(numbers) & (np.abs(numbers) < 2**63) & (numbers == np.floor(numbers))
    check.reject(present & ~whole_numbers, Reason.WRONG_TYPE, column)
    return pa.array(np.where(whole_numbers, numbers, 0).astype(np.int64), mask=~present)


def parse_doubles(values: pa.Array, check: RowCheck, column: str) -> pa.Array:
    """Numbers that are finite as float32, yes and no as 1 and 0; null is allowed, NaN is not: missing is null."""
    if pa.types.is_boolean(values.type):
        values = values.cast(pa.int64())
    if not _is_number(values.type):
        text = pc.utf8_trim_whitespace(_text(values, check, column))
        text = pc.if_else(pc.equal(text, ""), None, text)
        not_finite = pc.match_substring_regex(text, r"^[+-]?(nan|inf|infinity)$", ignore_case=True)
        check.reject(not_finite, Reason.NOT_FINITE, column)
        number = pc.match_substring_regex(text, _NUMBER)
        check.reject(pc.invert(number), Reason.WRONG_TYPE, column)
        values = pc.replace_substring_regex(pc.if_else(number, text, None), r"^\+", "")
    values = values.cast(pa.float64(), safe=False)
    # Towers take float32, in which a greater number is infinite.
    check.reject(pc.invert(pc.less_equal(pc.abs(values), MAX_NUMBER)), Reason.NOT_FINITE, column)
    return values


def parse_booleans(values: pa.Array, check: RowCheck, column: str) -> pa.Array:
    """true / false, 1 / 0, yes / no; null is allowed."""
    if pa.types.is_boolean(values.type):
        return values
    text = _text(values.cast(pa.string()) if _is_number(values.type) else values, check, column)
    text = pc.utf8_lower(pc.utf8_trim_whitespace(text))
    text = pc.if_else(pc.equal(text, ""), None, text)
    true = pc.is_in(text, pa.array(["true", "1", "yes", "t", "y"]))
    false = pc.is_in(text, pa.array(["false", "0", "no", "f", "n"]))
    check.reject(pc.and_(text.is_valid(), pc.invert(pc.or_(true, false))), Reason.WRONG_TYPE, column)
    return pc.if_else(text.is_valid(), true, None)


def parse_list(
    values: pa.Array, separator: str | None, parser: Callable[..., pa.Array], check: RowCheck, column: str
) -> pa.Array:
    """Lists of what `parser` reads; text is split where there is a separator. One bad element rejects its row."""
    if separator is not None and not pa.types.is_nested(values.type):
        text = parse_texts(values, check, column)
        values = pc.split_pattern(pc.if_else(pc.equal(text, ""), None, text), separator)
    if not is_list(values.type):
        raise DataError(f"column {column!r} is {values.type}, expected a list, or text and `separators` to split it")
    flat, parents = pc.list_flatten(values), pc.list_parent_indices(values).to_numpy()
    elements = RowCheck(pa.RecordBatch.from_arrays([flat], names=[column]), marked=check.marked)
    parsed = parser(flat, elements, column)
    for reason, _, mask in elements.faults:
        bad = np.zeros(len(values), dtype=bool)
        bad[parents[mask]] = True
        check.reject(bad, reason, column)
    lengths = _numpy(pc.list_value_length(values).cast(pa.int64()), 0).astype(np.int64)
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
    return pa.ListArray.from_arrays(offsets, parsed, mask=values.is_null())


def is_list(kind: pa.DataType) -> bool:
    """Whether a column holds lists of any layout."""
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def is_text(kind: pa.DataType) -> bool:
    """Whether a column holds text, or bytes that may be text, of any layout."""
    types = pa.types
    text = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    return text or types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)


def _text(values: pa.Array, check: RowCheck, column: str) -> pa.Array:
    """Strings of valid UTF-8; others are rejected and null in the result."""
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if pa.types.is_null(values.type):
        return values.cast(pa.string())
    if not is_text(values.type):
        raise DataError(f"column {column!r} is {values.type}, which cannot be read as text: map another column")
    raw = values.cast(pa.binary())
    try:
        text = raw.cast(pa.string())
    except pa.ArrowInvalid:
        valid = np.array([value is None or _is_utf8(value) for value in raw.to_pylist()], dtype=bool)
        check.reject(~valid, Reason.INVALID_UTF8, column)
        text = pc.if_else(pa.array(valid), raw, None).cast(pa.string())
    if check.marked:
        check.reject(pc.match_substring(text, INVALID), Reason.INVALID_UTF8, column)
    return text


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)


def _mask(values: pa.Array | Mask) -> Mask:
    if isinstance(values, np.ndarray):
        return values
    filled: Mask = pc.fill_null(values, False).to_numpy(zero_copy_only=False)
    return filled


def _numpy(values: pa.Array, missing: float) -> NDArray[np.float64]:
    filled: NDArray[np.float64] = pc.fill_null(values.cast(pa.float64(), safe=False), missing).to_numpy()
    return filled
