"""Which candidates carry which filter tokens: postings lists, collected batch by batch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import cached_property, reduce
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

TOKENS = "restricts.json"
OFFSETS = "restrict_offsets.npy"
ROWS = "restrict_rows.npy"
_SEPARATOR = "\x00"

Rows = NDArray[np.int64]


class PostingsBuilder:
    """Collects the restricts of candidates in row order; eight bytes for each token of each candidate."""

    def __init__(self) -> None:
        self._codes: dict[str, int] = {}
        self._batches: list[tuple[NDArray[np.int32], NDArray[np.int32]]] = []

    def add(self, first_row: int, restricts: pa.ListArray) -> None:
        """Take the restricts of consecutive candidates.

        Args:
            first_row: the row of the first one.
            restricts: [batch] of `lockstep.embeddings.RESTRICTS`; null has none.
        """
        structs = restricts.flatten()
        allow = pc.struct_field(structs, "allow")
        of_struct = pc.list_parent_indices(allow)
        rows = pc.list_parent_indices(restricts).take(of_struct)
        namespaces = pc.struct_field(structs, "namespace").take(of_struct)
        pairs = pc.binary_join_element_wise(namespaces, allow.flatten(), _SEPARATOR)
        rows = rows.filter(pairs.is_valid())
        encoded = pairs.drop_null().dictionary_encode()
        translation = [self._codes.setdefault(pair, len(self._codes)) for pair in encoded.dictionary.to_pylist()]
        codes = np.asarray(translation, np.int32)[encoded.indices.to_numpy(zero_copy_only=False)]
        self._batches.append((codes, (rows.to_numpy(zero_copy_only=False) + first_row).astype(np.int32)))

    def build(self) -> Postings:
        """Sort what was collected."""
        codes = np.concatenate([codes for codes, _ in self._batches] or [np.empty(0, np.int32)])
        rows = np.concatenate([rows for _, rows in self._batches] or [np.empty(0, np.int32)])
        names = sorted(self._codes)
        rank = np.empty(len(names), np.int32)
        rank[[self._codes[name] for name in names]] = np.arange(len(names))
        codes = rank[codes]
        order = np.argsort(codes, kind="stable")
        codes, rows = codes[order], rows[order]
        # A candidate may name a token twice; its row counts once.
        first = np.ones(len(rows), bool)
        first[1:] = (np.diff(codes) != 0) | (np.diff(rows) != 0)
        codes, rows = codes[first], rows[first]
        tokens: dict[str, list[str]] = {}
        for name in names:
            namespace, _, token = name.partition(_SEPARATOR)
            tokens.setdefault(namespace, []).append(token)
        return Postings(tokens, np.searchsorted(codes, np.arange(len(names) + 1)).astype(np.int64), rows)


@dataclass(frozen=True, eq=False)
class Postings:
    """Answers which rows a filter allows.

    Args:
        tokens: namespace -> tokens, both sorted; tokens are numbered in this order, through all namespaces.
        offsets: [tokens + 1] where each token's rows begin.
        token_rows: rows of each token, ascending.
    """

    tokens: Mapping[str, list[str]]
    offsets: NDArray[np.int64]
    token_rows: NDArray[np.int32]

    @classmethod
    def load(cls, directory: Path) -> Postings:
        """Read what `save` wrote; the rows stay on disk."""
        tokens = json.loads((directory / TOKENS).read_text(encoding="utf-8"))
        return cls(tokens, np.load(directory / OFFSETS), np.load(directory / ROWS, mmap_mode="r"))

    def save(self, directory: Path) -> None:
        """Write three files into an index's folder."""
        (directory / TOKENS).write_text(json.dumps(self.tokens, ensure_ascii=False), encoding="utf-8")
        np.save(directory / OFFSETS, self.offsets)
        np.save(directory / ROWS, self.token_rows)

    @property
    def namespaces(self) -> tuple[str, ...]:
        """Those in which some candidate has a token."""
        return tuple(self.tokens)

    @cached_property
    def _codes(self) -> dict[str, dict[str, int]]:
        codes = {}
        first = 0
        for namespace, names in self.tokens.items():
            codes[namespace] = {name: first + place for place, name in enumerate(names)}
            first += len(names)
        return codes

    def rows(self, restricts: Mapping[str, AbstractSet[str]]) -> Rows:
        """Ascending rows that have one of the tokens in every namespace.

        Args:
            restricts: at least one namespace; what no candidate has matches nothing.
        """
        allowed = sorted((self._any(namespace, tokens) for namespace, tokens in restricts.items()), key=len)
        return reduce(_intersect, allowed)

    def _any(self, namespace: str, tokens: AbstractSet[str]) -> Rows:
        known = self._codes.get(namespace, {})
        lists = [
            self.token_rows[self.offsets[code] : self.offsets[code + 1]]
            for code in (known.get(token) for token in tokens)
            if code is not None
        ]
        if not lists:
            return np.empty(0, np.int64)
        if len(lists) == 1:
            return lists[0].astype(np.int64)
        # Marking is far faster than numpy.unique, which hashes.
        marks = np.zeros(max(int(rows[-1]) for rows in lists) + 1, bool)
        for rows in lists:
            marks[rows] = True
        return np.flatnonzero(marks)


def _intersect(small: Rows, large: Rows) -> Rows:
    """Rows that are in both; ascending like them."""
    if not len(large):
        return large
    places = np.minimum(np.searchsorted(large, small), len(large) - 1)
    both: Rows = small[large[places] == small]
    return both
