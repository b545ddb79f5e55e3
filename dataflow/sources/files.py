"""Table files: Parquet and CSV, one file or a glob, read as Arrow batches of bounded size.

CSV is decoded leniently (`rows.INVALID` marks each byte that is no UTF-8) and every column comes as text, so that
one bad row never stops a file; lines that end within quotes (see `lines`) and records that have too few or too many
fields are handed out one by one.
"""

from __future__ import annotations

import logging
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from dataflow.dead_letters import Reason
from dataflow.sources.lines import MAX_BYTES, SoundLines
from lockstep.errors import DataError

BATCH_ROWS = 65_536
BLOCK_BYTES = MAX_BYTES
"""CSV is read in blocks of this size; no record may be longer."""
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_COMPRESSIONS = {".gz", ".bz2", ".zst"}
_BREAK = re.compile("\r\n?|\n")

_log = logging.getLogger(__name__)


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


def column_types(path: Path, *, multiline: bool = False) -> dict[str, pa.DataType]:
    """Name and type of each column of a file; of CSV all are strings.

    Raises:
        DataError: the file cannot be read.
    """
    with _readable(path):
        if not is_csv(path):
            return {field.name: field.type for field in pq.read_schema(path)}
        with _Csv(path, None, [], multiline=multiline) as reader:
            return dict.fromkeys(reader.schema.names, pa.string())


def read_batches(path: Path, columns: list[str], *, multiline: bool = False) -> Iterator[Batch]:
    """Rows of a file, only the named columns, in the file's order.

    Args:
        multiline: quoted values of CSV may hold line breaks.

    Raises:
        DataError: the file is corrupt, or a CSV record is longer than a block.
    """
    wanted = list(dict.fromkeys(columns))
    with _readable(path):
        yield from _csv_batches(path, wanted, multiline) if is_csv(path) else _parquet_batches(path, wanted)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}; restore the file") from error


def _parquet_batches(path: Path, columns: list[str]) -> Iterator[Batch]:
    with pq.ParquetFile(path) as file:
        for rows in file.iter_batches(BATCH_ROWS, columns=columns):
            yield Batch(rows, path)


def _csv_batches(path: Path, columns: list[str], multiline: bool) -> Iterator[Batch]:
    broken: list[Batch] = []
    with _Csv(path, columns, broken, multiline=multiline) as reader:
        for rows in reader:
            while broken:
                yield broken.pop(0)
            for start in range(0, len(rows), BATCH_ROWS):
                yield Batch(rows.slice(start, BATCH_ROWS), path, reader.marked)
        yield from broken
    if reader.unclosed and not multiline:
        _log.warning(
            "%s: lines that end within quotes, dead letters now: %d; if values of this table hold line breaks, "
            "set multiline = true in its section of [data.tables]",
            *(path, reader.unclosed),
        )


class _Csv:
    """A streaming CSV reader; what is no row goes into `broken`."""

    def __init__(self, path: Path, columns: list[str] | None, broken: list[Batch], *, multiline: bool) -> None:
        self.unclosed = 0
        self._path, self._broken = path, broken
        delimiter = _DELIMITERS[_csv_suffix(path)]
        self._source = SoundLines(
            pa.input_stream(str(path)), str(path), delimiter, multiline=multiline, refuse=self._refuse_line
        )
        try:
            self._reader = pa_csv.open_csv(
                pa.PythonFile(self._source, mode="r"),
                read_options=pa_csv.ReadOptions(block_size=BLOCK_BYTES),
                parse_options=pa_csv.ParseOptions(
                    delimiter=delimiter, newlines_in_values=multiline, invalid_row_handler=self._skip
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

    def _skip(self, row: pa_csv.InvalidRow) -> str:
        lines = 1 + len(_BREAK.findall(row.text.rstrip("\r\n")))
        shown = pa.RecordBatch.from_pylist([{"text": row.text}])
        self._broken.append(Batch(shown, self._path, broken=Reason.WRONG_COLUMNS, lines=lines))
        return "skip"

    def _refuse_line(self, line: bytes) -> None:
        self.unclosed += 1
        shown = pa.RecordBatch.from_pylist([{"text": line.decode()}])
        self._broken.append(Batch(shown, self._path, broken=Reason.UNCLOSED_QUOTE))

    @property
    def marked(self) -> bool:
        """Whether any byte so far was no UTF-8."""
        return self._source.marked

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        return iter(self._reader)

    def __enter__(self) -> _Csv:
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.close()
        self._source.close()


def _csv_suffix(path: Path) -> str:
    return path.with_suffix("").suffix if path.suffix in _COMPRESSIONS else path.suffix
