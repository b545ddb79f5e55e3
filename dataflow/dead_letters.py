"""Dead letters: every row that was not used, with the reason, so that no row ever vanishes.

One JSON object a line:

    {"reason": "empty id", "source": "ratings.csv", "column": "userId", "rows": 1, "row": {...}}

`rows` is the number of input rows that the line stands for: a playlist that is refused takes its tracks with it.
Long values are cut and bytes that are no text are shown escaped, so the file is small and always readable.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa

from lockstep.config import DataSection
from lockstep.errors import TooManyBadRowsError

MAX_SHOWN = 200
"""Characters of a text, and elements of a list, that a dead letter shows."""

_LINE_BREAKS = {ord(character): f"\\u{ord(character):04x}" for character in "\x85\u2028\u2029"}
"""JSON leaves these as they are, and some readers of lines break at them."""


class Reason(StrEnum):
    """Why a row is not used; the values are what reports and dead letters say."""

    EMPTY_ID = "empty id"
    LONG_ID = "id too long"
    INVALID_UTF8 = "invalid UTF-8"
    LONG_TEXT = "text too long"
    WRONG_TYPE = "wrong type"
    NOT_FINITE = "not a finite number"
    MISSING_POSITION = "missing position"
    MISSING_TIME = "missing time"
    UNREADABLE_TIME = "unreadable time"
    TIME_OUT_OF_RANGE = "time out of range"
    WRONG_COLUMNS = "wrong number of columns"
    UNCLOSED_QUOTE = "unclosed quote"
    NO_TRACKS = "playlist without tracks"
    INVALID_JSON = "invalid JSON"
    TRUNCATED_SLICE = "truncated slice"
    DUPLICATE_EVENT = "duplicate event"
    UNKNOWN_CANDIDATE = "unknown candidate"


class DeadLetters:
    """The dead-letter file of one run of one step, and the counts of what is in it.

    Use it as a context manager: lines are buffered until it closes.

    Args:
        path: the file; an earlier attempt's is replaced.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.counts: dict[str, int] = {}
        self._file = path.open("wb")

    @property
    def total(self) -> int:
        """Input rows dead-lettered so far."""
        return sum(self.counts.values())

    def add(
        self, reason: str, row: Mapping[str, Any], source: str, rows: int = 1, *, column: str | None = None
    ) -> None:
        """Dead-letter one row, or one thing that stands for several.

        Args:
            reason: one of `Reason`.
            row: what was found, as far as it could be read.
            source: the file or stage that it came from.
            rows: the number of input rows lost with it, at least 1.
            column: the column at fault, where one is.
        """
        if rows < 1:
            raise ValueError(f"a dead letter stands for at least one row, found {rows}")
        reason = str(reason)
        line: dict[str, Any] = {"reason": reason, "source": _shown(source)}
        if column is not None:
            line["column"] = column
        line |= {"rows": rows, "row": _shown(row)}
        # A lone surrogate, the only thing that UTF-8 cannot carry, is escaped by _shown.
        text = json.dumps(line, ensure_ascii=False, allow_nan=False).translate(_LINE_BREAKS)
        self._file.write(text.encode() + b"\n")
        self.counts[reason] = self.counts.get(reason, 0) + rows

    def add_batch(
        self,
        reason: str,
        batch: pa.RecordBatch | pa.Table,
        source: str,
        *,
        column: str | None = None,
        rows: Sequence[int] | None = None,
    ) -> None:
        """Dead-letter every row of an Arrow batch or table for one reason.

        Args:
            batch: [rows] any columns; text that is no UTF-8 and moments beyond the calendar are shown as they are.
            rows: [rows] the number of input rows that each row stands for; one by default.
        """
        for index, row in enumerate(_python_rows(batch)):
            self.add(reason, row, source, 1 if rows is None else int(rows[index]), column=column)

    def add_rest(self, reason: str, rows: int, source: str, *, column: str | None = None) -> None:
        """Count bad rows that are too many to be shown, in one line that stands for all of them; none is no line."""
        if rows:
            self.add(
                reason, {"note": f"{rows} more rows of this fault, which are not shown"}, source, rows, column=column
            )

    def check_share(self, section: DataSection, total_rows: int) -> None:
        """Stop a step whose input is worse than [data] bad_rows_max_share tolerates.

        Raises:
            TooManyBadRowsError: more than that share of `total_rows` is here.
        """
        self._file.flush()
        if self.total > section.bad_rows_max_share * total_rows:
            raise TooManyBadRowsError(self.total, total_rows, section.bad_rows_max_share, self.path, self.counts)

    def close(self) -> None:
        """Write what is buffered."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _python_rows(batch: pa.RecordBatch | pa.Table) -> Iterator[dict[str, Any]]:
    names = batch.schema.names
    columns = [_python_values(column) for column in batch.columns]
    for values in zip(*columns, strict=True):
        yield dict(zip(names, values, strict=True))


def _python_values(column: pa.Array | pa.ChunkedArray) -> list[Any]:
    if pa.types.is_temporal(column.type):
        # Python's calendar ends in 9999; Arrow's does not.
        column = column.cast(pa.string())
    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:
        return list(column.cast(_as_bytes(column.type)).to_pylist())


def _as_bytes(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(kind):
        return _as_bytes(kind.value_type)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pa.list_(_as_bytes(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([(field.name, _as_bytes(field.type)) for field in kind])
    return pa.binary() if pa.types.is_string(kind) or pa.types.is_large_string(kind) else kind


def _shown(value: Any) -> Any:
    if isinstance(value, bytes | bytearray):
        cut = bytes(value[:MAX_SHOWN]).decode("utf-8", "backslashreplace")
        return cut if len(value) <= MAX_SHOWN else f"{cut}… ({len(value)} bytes)"
    if isinstance(value, str):
        text = value[:MAX_SHOWN].encode("utf-8", "backslashreplace").decode()
        return text if len(value) <= MAX_SHOWN else f"{text}… ({len(value)} characters)"
    if isinstance(value, Mapping):
        return {str(_shown(str(key))): _shown(inner) for key, inner in list(value.items())[:MAX_SHOWN]}
    if isinstance(value, list | tuple):
        shown = [_shown(inner) for inner in value[:MAX_SHOWN]]
        return shown if len(value) <= MAX_SHOWN else [*shown, f"… ({len(value)} values)"]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    return _shown(str(value))
