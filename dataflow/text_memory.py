"""Encoding texts, of which most say what others have said: words are encoded once, and remembered.

A text's tokens are those of its pieces between spaces, one piece after the other: what lowers, replaces or splits it
looks at no more than a word, and a space ends one. So where tokens are single words the saved graph encodes pieces,
of which there are few, and the ids are put together here. N-grams reach over spaces: their texts stay whole.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

_LONGEST = 10_000


class TextMemory:
    """What the pieces of one feature's texts were encoded to; one thread at a time.

    For each batch call `unknown`, encode what it returns, and give the ids to `ids`.

    Args:
        splits: whether tokens are single words.
        length: ids of a text.
    """

    def __init__(self, splits: bool, length: int) -> None:
        self.splits, self._length = splits, length
        self._rows: dict[bytes, int] = {}
        self._known = np.empty((0, length), np.int32)
        self._counts = np.empty(0, np.int64)
        self._places = np.empty(0, np.int64)
        self._begins = np.zeros(1, np.int64)

    def unknown(self, texts: pa.Array, remembered: int) -> NDArray[np.object_]:
        """Take texts apart.

        Args:
            texts: [texts] string, without nulls.
            remembered: once more pieces than so many are known, all are forgotten.

        Returns:
            The pieces, as bytes, whose ids are to be learnt.
        """
        if len(self._rows) > remembered:
            self._rows, self._known, self._counts = {}, self._known[:0], self._counts[:0]
        pieces, self._begins = self._pieces(texts)
        encoded = pieces.dictionary_encode()
        distinct = encoded.dictionary.cast(pa.binary()).to_numpy(zero_copy_only=False)
        found = list(map(self._rows.get, distinct))
        unseen = [number for number, row in enumerate(found) if row is None]
        for row, number in enumerate(unseen, start=len(self._rows)):
            found[number] = self._rows[distinct[number]] = row
        self._places = np.array(found, np.int64)[encoded.indices.to_numpy()]
        return distinct[unseen]

    def ids(self, learnt: NDArray[np.int64]) -> NDArray[np.int32]:
        """Put the texts of the last call of `unknown` together.

        Args:
            learnt: [unknown pieces, length] ids, padded on the right with 0.

        Returns:
            [texts, length] ids.
        """
        if len(learnt):
            self._known = np.concatenate([self._known, learnt.astype(np.int32)])
            self._counts = np.concatenate([self._counts, np.count_nonzero(learnt, axis=1)])
        if not self.splits:
            return self._known[self._places]
        counts = self._counts[self._places]
        ends = np.concatenate([[0], np.cumsum(counts)])
        # Of every id that stands somewhere, the piece it is of and its place in that piece.
        of = np.repeat(np.arange(len(counts)), counts)
        flat = self._known[self._places[of], np.arange(len(of)) - ends[of]]
        first, stop = ends[self._begins[:-1]], ends[self._begins[1:]]
        at = first[:, None] + np.arange(self._length)
        padded: NDArray[np.int32] = np.append(flat, np.int32(0))[np.where(at < stop[:, None], at, len(flat))]
        return padded

    def _pieces(self, texts: pa.Array) -> tuple[pa.Array, NDArray[np.int64]]:
        """All pieces, and [texts + 1] where each text's begin."""
        if not self.splits or _reads_parts_only(texts):
            return texts, np.arange(len(texts) + 1)
        split = pc.split_pattern(texts, " ")
        return split.values, split.offsets.to_numpy().astype(np.int64)


def _reads_parts_only(texts: pa.Array) -> bool:
    """Whether a text among them ends early for the saved graph: beyond MAX_BYTES of dataflow.text, or at a NUL."""
    longest = pc.max(pc.binary_length(texts)).as_py() or 0
    return longest > _LONGEST or bool(pc.any(pc.match_substring(texts, "\0")).as_py())
