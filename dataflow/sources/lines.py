"""Lines of CSV that a parser can trust: valid UTF-8, and every quote closed where it must be.

One quote too many opens a value that goes on to the next quote, however many lines later, and the lines between become
part of one value that looks sound. So a quoted value ends on its own line unless the table says otherwise, and the
lines that break this are taken out one by one before the parser sees them.

What is a quote is decided as Arrow's parser does: at the beginning of a field it opens, doubled within a quoted value
it stands for itself, and anywhere else it is a character like any other.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from dataflow.sources.rows import INVALID
from lockstep.errors import DataError

MAX_LINES = 1_000
"""Lines that one record may span where values may hold line breaks."""
MAX_BYTES = 16 << 20
"""Longest line, or record of several lines."""
_READ_BYTES = 1 << 20
_QUOTE, _NEWLINE, _RETURN = b'"\n\r'
_BREAKS = b"\r\n"
_WIDE = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def _mark(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    bad = error.object[error.start : error.end]
    return "".join(f"{INVALID}\\x{byte:02x}" for byte in bad), error.end


codecs.register_error("lockstep-mark", _mark)


class SoundLines:
    """A file of CSV to be read by a parser, without the lines that would mislead it.

    Args:
        file: bytes; those that are no UTF-8 are replaced by marks.
        name: of the file, for errors.
        delimiter: of the fields, one character.
        multiline: whether a quoted value may hold line breaks.
        refuse: takes each line that is left out.
    """

    def __init__(
        self, file: IO[bytes], name: str, delimiter: str, *, multiline: bool, refuse: Callable[[bytes], None]
    ) -> None:
        self._file, self._name = file, name
        self._lines = _Quotes(name, delimiter, multiline, refuse)
        self._decoder = codecs.getincrementaldecoder("utf-8")("lockstep-mark")
        self._ready = bytearray()
        self._rest = b""
        self._began = self._ended = False
        self.closed = False
        self.marked = False

    def read(self, size: int = -1) -> bytes:
        """The next bytes, at most `size`; none at the end only.

        They never end between CR and LF: Arrow drops an LF that begins a block, also one within quotes.
        """
        while not self._ended and (size < 0 or len(self._ready) <= size):
            self._read_on()
        size = len(self._ready) if size < 0 else size
        if size > 1 and self._ready[size - 1 : size + 1] == b"\r\n":
            size -= 1
        taken = bytes(self._ready[:size])
        del self._ready[:size]
        return taken

    def _read_on(self) -> None:
        data = self._file.read(_READ_BYTES)
        self._ended = not data
        if not self._began:
            self._began = True
            if data.startswith(_WIDE):
                raise DataError(f"{self._name} is UTF-16: convert it to UTF-8")
            data = data.removeprefix(codecs.BOM_UTF8)
        text = self._rest + self._decoded(data)
        if self._ended:
            end = len(text)
        else:
            # A carriage return at the very end may be half of a line break.
            end = max(text.rfind(b"\n"), text.rfind(b"\r", 0, len(text) - 1)) + 1
        sound, unfinished = self._lines.sound(text[:end], ended=self._ended)
        self._ready += sound
        self._rest = unfinished + text[end:]
        if len(self._rest) > MAX_BYTES:
            raise DataError(f"{self._name} has a line longer than {MAX_BYTES >> 20} MiB: is it CSV?")

    def _decoded(self, data: bytes) -> bytes:
        if data.isascii() and not self._decoder.getstate()[0] and not self._ended:
            return data
        text = self._decoder.decode(data, final=self._ended)
        self.marked = self.marked or INVALID in text
        return text.encode()

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


class _Quotes:
    """Finds the lines that end within quotes, of all lines at once where quotes are regular, one by one elsewhere."""

    def __init__(self, name: str, delimiter: str, multiline: bool, refuse: Callable[[bytes], None]) -> None:
        self._name = name
        self._may_open = np.zeros(256, bool)
        """Bytes after which a quote opens a value, or doubles the one that seemed to close it."""
        self._may_open[[ord(delimiter), _QUOTE, _NEWLINE, _RETURN]] = True
        self._multiline = multiline
        self._refuse = refuse
        self._header = True
        self._open = False
        """A line that ended within quotes was taken out, and what may be its end has not been seen."""
        of = re.escape(delimiter.encode())
        quoted = rb'(?:[^"]++|"")*+"[^%b]*+' % of
        fields = rb'(?:%b(?:"%b|(?!")[^%b]*+))*+' % (of, quoted, of)
        self._closed = re.compile(rb'(?:"%b|(?!")[^%b]*+)%b' % (quoted, of, fields), re.DOTALL)
        self._closes = re.compile(quoted + fields, re.DOTALL)

    def sound(self, text: bytes, *, ended: bool) -> tuple[bytes, bytes]:
        """The text without its bad lines, and the beginning of a record that has not ended yet.

        Args:
            text: whole lines.
            ended: nothing follows.
        """
        if _QUOTE not in text:
            self._header = self._header and not text
            return text, b""
        codes = np.frombuffer(text, np.uint8)
        ends = _line_ends(codes, text)
        kept: list[bytes] = []
        taken, read_to, unfinished = 0, 0, len(text)
        for line, stray in self._doubtful(codes, ends):
            start, end = _bounds(ends, line)
            closed = self._closed.fullmatch(text[start:end].rstrip(_BREAKS)) is not None
            # A stray quote after a line that was taken out is the end of the value that began there.
            if start < read_to or (closed and not (stray and self._open)):
                continue
            if self._multiline and not closed:
                last = self._last_line(text, ends, line, ended)
                if last is None:
                    unfinished = start
                    break
                if last > line:
                    read_to = int(ends[last])
                    continue
            self._open = not closed
            self._take_out(text[start:end], first=start == 0)
            kept.append(text[taken:start])
            taken = end
        self._header = self._header and not unfinished
        return b"".join([*kept, text[taken:unfinished]]), text[unfinished:]

    def _doubtful(self, codes: NDArray[np.uint8], ends: NDArray[np.int64]) -> list[tuple[int, bool]]:
        """Lines that may end within quotes, and whether a quote stands in them where none opens or closes.

        Every other quote of a line opens a value, or is the second of a doubled one: then the line ends within quotes
        exactly where their number is odd. Where that does not hold, only a parser can tell.
        """
        quotes = np.flatnonzero(codes == _QUOTE)
        before_end = np.searchsorted(quotes, ends)
        before_start = np.concatenate([[0], before_end[:-1]])
        count = before_end - before_start
        odd = np.flatnonzero(count % 2)
        every_other = np.arange(len(quotes)) % 2 == 0
        if len(odd):
            every_other ^= np.repeat(before_start % 2 == 1, count)
        opening = quotes[every_other]
        regular = self._may_open[codes[np.maximum(opening - 1, 0)]] | (opening == 0)
        stray = np.searchsorted(ends, opening[~regular], side="right")
        strays = set(stray.tolist())
        return [(line, line in strays) for line in np.union1d(odd, stray).tolist()]

    def _last_line(self, text: bytes, ends: NDArray[np.int64], line: int, ended: bool) -> int | None:
        """The last line of a record that goes on after its first; itself where it never ends, None for not yet."""
        limit = line + MAX_LINES
        for following in range(line + 1, min(limit, len(ends))):
            start, end = _bounds(ends, following)
            if text.find(b'"', start, end) >= 0 and self._closes.fullmatch(text[start:end].rstrip(_BREAKS)):
                return following
        return line if ended or limit <= len(ends) else None

    def _take_out(self, line: bytes, *, first: bool) -> None:
        if first and self._header:
            raise DataError(f"{self._name}: the first line, the names of the columns, ends within quotes: mend it")
        self._refuse(line.rstrip(_BREAKS))


def _line_ends(codes: NDArray[np.uint8], text: bytes) -> NDArray[np.int64]:
    """Where each line ends, its line break (LF, CR LF or CR) included."""
    last = codes == _NEWLINE
    if _RETURN in text:
        returns = codes == _RETURN
        last |= returns & ~np.append(last[1:], False)
    ends = np.flatnonzero(last) + 1
    return ends if len(ends) and ends[-1] == len(codes) else np.append(ends, len(codes))


def _bounds(ends: NDArray[np.int64], line: int) -> tuple[int, int]:
    return int(ends[line - 1]) if line else 0, int(ends[line])
