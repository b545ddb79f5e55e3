"""Table files: Parquet and CSV, one file or a glob, read as Arrow batches of bounded size.

CSV is decoded leniently (`rows.INVALID` marks each byte that is no UTF-8) and every column comes as text, so that
one bad row never stops a file; records that have too few or too many fields are handed out one by one.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from dataflow.dead_letters import Reason
from dataflow.sources.rows import INVALID
from lockstep.errors import DataError

BATCH_ROWS = 65_536
BLOCK_BYTES = 16 << 20
"""CSV is read in blocks of this size; no record may be longer."""
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_COMPRESSIONS = {".gz", ".bz2", ".zst"}


def _mark(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    bad = error.object[error.start : error.end]
    return "".join(f"{INVALID}\\x{byte:02x}" for byte in bad), error.end


codecs.register_error("lockstep-mark", _mark)


@dataclass(frozen=True)
class Batch:
    """Rows of one file.

    `broken` is set for a CSV record that is no row: `rows` shows it, and it stands for `lines` input rows.
    """

    rows: pa.RecordBatch
    file: Path
    marked: bool = False
    broken: Reason | None = None
    lines: int = 1


def find_files(folder: Path, pattern: str, key: str) -> list[Path]:
    """The files that a configured name or glob means, sorted by name.

    Raises:
        DataError: there is none; says what there is.
    """
    found = sorted(folder.glob(pattern)) if any(c in pattern for c in "*?[") else [folder / pattern]
    found = [path for path in found if path.is_file()]
    if not found:
        there = sorted(path.name for path in folder.iterdir())
        listed = ", ".join(there[:20]) + (f" and {len(there) - 20} more" if len(there) > 20 else "")
        raise DataError(f"{key} = {pattern!r} names no file in {folder}: there are {listed or 'no files'}")
    return found


def is_csv(path: Path) -> bool:
    """Whether a file is CSV, by its name; Parquet otherwise.

    Raises:
        DataError: the name ends like neither.
    """
    if path.suffix in (".parquet", ".pq"):
        return False
    if _csv_suffix(path) in _DELIMITERS:
        return True
    raise DataError(f"{path} is neither .parquet nor .csv (or .tsv, also .gz): convert or rename it")


def column_types(path: Path) -> dict[str, pa.DataType]:
    """Name and type of each column of a file; of CSV all are strings.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        if not is_csv(path):
            return {field.name: field.type for field in pq.read_schema(path)}
        with _Csv(path, None, lambda _: "skip") as reader:
            return dict.fromkeys(reader.schema.names, pa.string())
    except (pa.ArrowException, OSError, EOFError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def read_batches(path: Path, columns: list[str]) -> Iterator[Batch]:
    """Rows of a file, only the named columns, in the file's order.

    Raises:
        DataError: the file is corrupt, or a CSV record is longer than a block.
    """
    try:
        yield from _csv_batches(path, columns) if is_csv(path) else _parquet_batches(path, columns)
    except (pa.ArrowException, OSError, EOFError) as error:
        raise DataError(f"{path} cannot be read to its end: {error}; restore the file") from error


def _parquet_batches(path: Path, columns: list[str]) -> Iterator[Batch]:
    with pq.ParquetFile(path) as file:
        for rows in file.iter_batches(BATCH_ROWS, columns=list(dict.fromkeys(columns))):
            yield Batch(rows, path)


def _csv_batches(path: Path, columns: list[str]) -> Iterator[Batch]:
    header = list(column_types(path))
    # The last column tells whether a quote that was never closed has swallowed the rest of the file.
    wanted = list(dict.fromkeys([*columns, header[-1]]))
    broken: list[Batch] = []

    def skip(row: pa_csv.InvalidRow) -> str:
        shown = pa.RecordBatch.from_pylist([{"text": row.text}])
        lines = 1 + row.text.rstrip("\r\n").count("\n")
        broken.append(Batch(shown, path, broken=Reason.WRONG_COLUMNS, lines=lines))
        return "skip"

    with _Csv(path, wanted, skip) as reader:
        last: pa.RecordBatch | None = None
        for rows in reader:
            if last is not None and len(last):
                yield from _sliced(last, columns, path, reader.marked)
            last = rows
            yield from _drained(broken)
        yield from _drained(broken)
        if last is not None and len(last):
            yield from _last_rows(last, columns, path, reader, header[-1])


def _sliced(rows: pa.RecordBatch, columns: list[str], path: Path, marked: bool) -> Iterator[Batch]:
    rows = rows.select(list(dict.fromkeys(columns)))
    for start in range(0, len(rows), BATCH_ROWS):
        yield Batch(rows.slice(start, BATCH_ROWS), path, marked)


def _last_rows(rows: pa.RecordBatch, columns: list[str], path: Path, reader: _Csv, last_column: str) -> Iterator[Batch]:
    text = rows.column(last_column)[-1].as_py() or ""
    if text.endswith("\n") and not reader.ends_quoted:
        lines = text.rstrip("\r\n").count("\n") + 1
        yield from _sliced(rows.slice(0, len(rows) - 1), columns, path, reader.marked)
        yield Batch(rows.slice(len(rows) - 1), path, broken=Reason.UNCLOSED_QUOTE, lines=lines)
    else:
        yield from _sliced(rows, columns, path, reader.marked)


def _drained(broken: list[Batch]) -> Iterator[Batch]:
    while broken:
        yield broken.pop(0)


class _Csv:
    """A streaming CSV reader over leniently decoded text."""

    def __init__(self, path: Path, columns: list[str] | None, skip: Callable[[pa_csv.InvalidRow], str]) -> None:
        self._source = _LenientUtf8(pa.input_stream(str(path)))
        try:
            self._reader = pa_csv.open_csv(
                pa.PythonFile(self._source, mode="r"),
                read_options=pa_csv.ReadOptions(block_size=BLOCK_BYTES),
                parse_options=pa_csv.ParseOptions(
                    delimiter=_DELIMITERS[_csv_suffix(path)], newlines_in_values=True, invalid_row_handler=skip
                ),
                convert_options=pa_csv.ConvertOptions(
                    check_utf8=False,
                    include_columns=columns,
                    column_types=None if columns is None else dict.fromkeys(columns, pa.string()),
                    strings_can_be_null=True,
                    null_values=[""],
                ),
            )
        except BaseException:
            self._source.close()
            raise
        self.schema = self._reader.schema

    @property
    def marked(self) -> bool:
        """Whether any byte so far was no UTF-8."""
        return self._source.marked

    @property
    def ends_quoted(self) -> bool:
        """Whether the file's last character is a quote; known at its end."""
        return self._source.tail.rstrip(b"\r\n").endswith(b'"')

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        return iter(self._reader)

    def __enter__(self) -> _Csv:
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.close()
        self._source.close()


class _LenientUtf8:
    """A binary file whose invalid bytes are replaced by marks, so that what is read from it is UTF-8."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._decoder = codecs.getincrementaldecoder("utf-8")("lockstep-mark")
        self._ready = bytearray()
        self._ended = False
        self.closed = False
        self.marked = False
        self.tail = b""

    def read(self, size: int = -1) -> bytes:
        while not self._ended and (size < 0 or len(self._ready) < size):
            data = self._file.read(1 << 20)
            self._ended = not data
            text = self._decoder.decode(data, final=self._ended)
            self.marked = self.marked or INVALID in text
            encoded = text.encode()
            self.tail = (self.tail + encoded)[-8:]
            self._ready += encoded
        size = len(self._ready) if size < 0 else size
        taken = bytes(self._ready[:size])
        del self._ready[:size]
        return taken

    def close(self) -> None:
        self._file.close()
        self.closed = True

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def writable(self) -> bool:
        return False

    def flush(self) -> Any:
        return None


def _csv_suffix(path: Path) -> str:
    return path.with_suffix("").suffix if path.suffix in _COMPRESSIONS else path.suffix
