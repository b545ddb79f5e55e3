"""Which candidates carry which tokens and numbers, and so which of them a query's restricts allow.

Files of an index, all read by `Postings.load`:

  restricts.json       {"rows", "allow": {namespace: [token, ...]}, "deny": likewise, "numeric": [namespace, ...]};
                       sorted; tokens are numbered in this order, through all namespaces
  allow_offsets.npy    int64[tokens + 1], where each token's rows begin in
  allow_rows.npy       int32[...], the rows that have the token, ascending
  deny_offsets.npy, deny_rows.npy    likewise for the tokens that candidates deny
  numbers.npy          float64[numeric namespaces, rows], NaN where a candidate has none
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lockstep.errors import DataError
from serving.index.restricts import Restricts

DESCRIPTION = "restricts.json"
NUMBERS = "numbers.npy"
_SEPARATOR = "\x00"
REMEMBERED_BYTES = 64_000_000
"""Of the masks, and the numbers of the rows, of restricts that were asked for lately."""
_MOST_REMEMBERED = 1_000

Mask = NDArray[np.bool_]
Rows = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Allowed:
    """The rows that a query may find.

    Args:
        mask: [rows].
    """

    mask: Mask

    @cached_property
    def count(self) -> int:
        """How many there are."""
        return int(np.count_nonzero(self.mask))

    @cached_property
    def rows(self) -> Rows:
        """[count] ascending."""
        return np.flatnonzero(self.mask)


@dataclass(frozen=True, eq=False)
class TokenRows:
    """The rows of each token.

    Args:
        tokens: namespace -> tokens, both sorted.
        offsets: [tokens + 1].
        rows: those of each token, ascending.
    """

    tokens: Mapping[str, list[str]]
    offsets: NDArray[np.int64]
    rows: NDArray[np.int32]

    @cached_property
    def _codes(self) -> dict[str, dict[str, int]]:
        codes = {}
        first = 0
        for namespace, names in self.tokens.items():
            codes[namespace] = {name: first + place for place, name in enumerate(names)}
            first += len(names)
        return codes

    def mark(self, mask: Mask, namespace: str, tokens: AbstractSet[str], value: bool) -> None:
        """Set the mask of all rows that have one of the tokens; what nobody has marks nothing."""
        known = self._codes.get(namespace, {})
        for code in (known[token] for token in tokens if token in known):
            mask[self.rows[self.offsets[code] : self.offsets[code + 1]]] = value


class _TokenRowsBuilder:
    """Collects (token, row) pairs, eight bytes for each."""

    def __init__(self) -> None:
        self._codes: dict[str, int] = {}
        self._batches: list[tuple[NDArray[np.int32], NDArray[np.int32]]] = []

    def add(self, rows: pa.Array, namespaces: pa.Array, tokens: pa.ListArray) -> None:
        """Take lists of tokens.

        Args:
            rows: [n] the candidate of each list.
            namespaces: [n].
            tokens: [n] lists; null has none.
        """
        of_list = pc.list_parent_indices(tokens)
        pairs = pc.binary_join_element_wise(namespaces.take(of_list), tokens.flatten(), _SEPARATOR)
        of_pair = rows.take(of_list).filter(pairs.is_valid())
        encoded = pairs.drop_null().dictionary_encode()
        translation = [self._codes.setdefault(pair, len(self._codes)) for pair in encoded.dictionary.to_pylist()]
        codes = np.asarray(translation, np.int32)[encoded.indices.to_numpy(zero_copy_only=False)]
        self._batches.append((codes, of_pair.to_numpy(zero_copy_only=False).astype(np.int32)))

    def build(self) -> TokenRows:
        """Sort what was collected."""
        codes = np.concatenate([codes for codes, _ in self._batches] or [np.empty(0, np.int32)])
        rows = np.concatenate([rows for _, rows in self._batches] or [np.empty(0, np.int32)])
        names = sorted(self._codes)
        rank = np.empty(len(names), np.int32)
        rank[[self._codes[name] for name in names]] = np.arange(len(names))
        codes = rank[codes]
        order = np.argsort(codes, kind="stable")
        codes, rows = codes[order], rows[order]
        tokens: dict[str, list[str]] = {}
        for name in names:
            namespace, _, token = name.partition(_SEPARATOR)
            tokens.setdefault(namespace, []).append(token)
        return TokenRows(tokens, np.searchsorted(codes, np.arange(len(names) + 1)).astype(np.int64), rows)


class PostingsBuilder:
    """Collects the restricts of candidates in row order."""

    def __init__(self) -> None:
        self._allow, self._deny = _TokenRowsBuilder(), _TokenRowsBuilder()
        self._numbers: dict[str, list[tuple[Rows, NDArray[np.float64]]]] = {}
        self._rows = 0

    def add(self, restricts: pa.ListArray, numeric_restricts: pa.ListArray) -> None:
        """Take the next candidates.

        Args:
            restricts: [batch] of `lockstep.embeddings.RESTRICTS`; null has none.
            numeric_restricts: [batch] of `lockstep.embeddings.NUMERIC_RESTRICTS`; null has none.
        """
        rows = pc.add(pc.list_parent_indices(restricts), self._rows)
        structs = restricts.flatten()
        namespaces = pc.struct_field(structs, "namespace")
        if pc.any(pc.match_substring(namespaces, _SEPARATOR)).as_py():
            raise DataError("a namespace of the candidates' restricts holds the character NUL: name it otherwise")
        self._allow.add(rows, namespaces, pc.struct_field(structs, "allow"))
        self._deny.add(rows, namespaces, pc.struct_field(structs, "deny"))
        self._add_numbers(numeric_restricts)
        self._rows += len(restricts)

    def _add_numbers(self, numeric_restricts: pa.ListArray) -> None:
        structs = numeric_restricts.flatten()
        rows = pc.list_parent_indices(numeric_restricts).to_numpy(zero_copy_only=False) + self._rows
        values = pc.struct_field(structs, "value").to_numpy(zero_copy_only=False)
        values = np.where(np.isfinite(values), values, np.nan)
        encoded = pc.struct_field(structs, "namespace").dictionary_encode()
        codes = encoded.indices.to_numpy(zero_copy_only=False)
        for code, namespace in enumerate(encoded.dictionary.to_pylist()):
            self._numbers.setdefault(namespace, []).append((rows[codes == code], values[codes == code]))

    def build(self, remembered_bytes: int = REMEMBERED_BYTES) -> Postings:
        """Sort what was collected."""
        numbers = np.full((len(self._numbers), self._rows), np.nan)
        for place, namespace in enumerate(sorted(self._numbers)):
            for rows, values in self._numbers[namespace]:
                numbers[place, rows] = values
        return Postings(
            self._rows, self._allow.build(), self._deny.build(), tuple(sorted(self._numbers)), numbers, remembered_bytes
        )


class Postings:
    """Answers which rows a query's restricts allow.

    Args:
        rows: how many candidates there are.
        numeric: the namespaces of `numbers`, sorted.
        numbers: [namespaces, rows].
        remembered_bytes: of answers.
    """

    def __init__(
        self,
        rows: int,
        allow: TokenRows,
        deny: TokenRows,
        numeric: tuple[str, ...],
        numbers: NDArray[np.float64],
        remembered_bytes: int = REMEMBERED_BYTES,
    ) -> None:
        self._rows = rows
        self._allow, self._deny = allow, deny
        self._numeric, self._numbers = numeric, numbers
        # The same filters are asked for again and again, and a mask costs up to a millisecond a million rows.
        self.allowed = lru_cache(min(_MOST_REMEMBERED, max(2, remembered_bytes // max(1, 9 * rows))))(
            self._find_allowed
        )

    @classmethod
    def load(cls, directory: Path) -> Postings:
        """Read what `save` wrote; rows and numbers stay on disk."""
        names = json.loads((directory / DESCRIPTION).read_text(encoding="utf-8"))
        allow, deny = (
            TokenRows(
                names[which],
                np.load(directory / f"{which}_offsets.npy"),
                np.load(directory / f"{which}_rows.npy", mmap_mode="r"),
            )
            for which in ("allow", "deny")
        )
        # An empty array cannot be mapped.
        numbers = np.load(directory / NUMBERS, mmap_mode="r" if names["numeric"] else None)
        return cls(names["rows"], allow, deny, tuple(names["numeric"]), numbers)

    def save(self, directory: Path) -> None:
        """Write the files into an index's folder."""
        names = {
            "rows": self._rows,
            "allow": self._allow.tokens,
            "deny": self._deny.tokens,
            "numeric": self._numeric,
        }
        (directory / DESCRIPTION).write_text(json.dumps(names, ensure_ascii=False), encoding="utf-8")
        for which, postings in (("allow", self._allow), ("deny", self._deny)):
            np.save(directory / f"{which}_offsets.npy", postings.offsets)
            np.save(directory / f"{which}_rows.npy", postings.rows)
        np.save(directory / NUMBERS, self._numbers)

    @property
    def namespaces(self) -> tuple[str, ...]:
        """Those in which some candidate has a token or a number."""
        return tuple(sorted({*self._allow.tokens, *self._numeric}))

    def _find_allowed(self, restricts: Restricts) -> Allowed:
        mask = np.ones(self._rows, bool)
        for namespace, tokens in restricts.allow.items():
            any_of = np.zeros(self._rows, bool)
            self._allow.mark(any_of, namespace, tokens, True)
            mask &= any_of
            self._deny.mark(mask, namespace, tokens, False)
        for namespace, tokens in restricts.deny.items():
            self._allow.mark(mask, namespace, tokens, False)
        for comparison in restricts.numeric:
            if comparison.namespace not in self._numeric:
                return Allowed(np.zeros(self._rows, bool))
            mask &= comparison.holds(self._numbers[self._numeric.index(comparison.namespace)])
        return Allowed(mask)
