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
        # The ids of all known pieces one after the other, and of each piece where its own begin and how many they are.
        self._known = np.empty(0, np.int32)
        self._starts = np.empty(0, np.int64)
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
            self._rows, self._known = {}, self._known[:0]
            self._starts, self._counts = self._starts[:0], self._counts[:0]
        pieces, self._begins = self._pieces(texts)
        distinct = pieces.dictionary.cast(pa.binary()).to_numpy(zero_copy_only=False)
        found = list(map(self._rows.get, distinct))
        unseen = [number for number, row in enumerate(found) if row is None]
        for row, number in enumerate(unseen, start=len(self._rows)):
            found[number] = self._rows[distinct[number]] = row
        self._places = np.array(found, np.int64)[pieces.indices.to_numpy()]
        return distinct[unseen]

    def ids(self, learnt: NDArray[np.int64]) -> NDArray[np.int32]:
        """Put the texts of the last call of `unknown` together.

        Args:
            learnt: [unknown pieces, length] ids, padded on the right with 0.

        Returns:
            [texts, length] ids.
        """
        if len(learnt):
            present = learnt != 0
            counts = np.count_nonzero(present, axis=1)
            self._starts = np.concatenate([self._starts, len(self._known) + np.cumsum(counts) - counts])
            self._counts = np.concatenate([self._counts, counts])
            self._known = np.concatenate([self._known, learnt[present].astype(np.int32)])
        counts = self._counts[self._places]
        ends = np.concatenate([[0], np.cumsum(counts)])
        # The ids of all texts one after the other: where each piece's begin, and how far its k-th is from there.
        flat = self._known[np.repeat(self._starts[self._places] - ends[:-1], counts) + np.arange(ends[-1])]
        first, stop = ends[self._begins[:-1]], ends[self._begins[1:]]
        at = first[:, None] + np.arange(self._length)
        padded = np.zeros((len(first), self._length), np.int32)
        stands = at < stop[:, None]
        padded[stands] = flat[at[stands]]
        return padded

    def _pieces(self, texts: pa.Array) -> tuple[pa.DictionaryArray, NDArray[np.int64]]:
        """All pieces, and [texts + 1] where each text's begin."""
        if self.splits and (pc.max(pc.binary_length(texts)).as_py() or 0) <= _LONGEST:
            split = pc.split_pattern(texts, " ")
            pieces = split.values.dictionary_encode()
            if not pc.any(pc.match_substring(pieces.dictionary, "\0")).as_py():
                return pieces, split.offsets.to_numpy().astype(np.int64)
        # The saved graph reads less of a text that is longer than MAX_BYTES of dataflow.text, or has a NUL in it.
        return texts.dictionary_encode(), np.arange(len(texts) + 1)
