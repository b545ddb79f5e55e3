"""The interface of an index, and the one place where the version of a query is compared with the index's own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lockstep.embeddings import VersionedEmbedding, VersionedEmbeddings
from lockstep.errors import RequestError
from lockstep.version import ModelVersion
from serving.index.crowding import uncrowded, uncrowded_count
from serving.index.exact import exact_scores
from serving.index.postings import Allowed
from serving.index.restricts import Restricts
from serving.index.vectors import check_vectors, check_version

_FINISHED_ROWS = 50_000
"""Found rows that are scored and ordered at a time."""

Rows = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The candidates nearest to one query, best first; equal scores keep the order of the embeddings file.

    Args:
        ids: [n].
        scores: [n] float32, dot products of unit vectors.
    """

    ids: tuple[str, ...]
    scores: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.ids)


class Candidates(Protocol):
    """What an index searches; a file's candidates, or such as change."""

    @property
    def path(self) -> Path:
        """Where they are, for messages."""

    @property
    def model_version(self) -> ModelVersion:
        """The version that embedded them."""

    @property
    def snapshot(self) -> int:
        """The embedding run that they began with."""

    @property
    def rows(self) -> int:
        """How many candidates there are."""

    @property
    def vectors(self) -> NDArray[np.float32]:
        """[all rows, dim], also of those that are no candidates any more."""

    @property
    def crowding(self) -> NDArray[np.int32]:
        """[all rows]; equal where the crowding tag is, -1 where there is none."""

    @property
    def namespaces(self) -> tuple[str, ...]:
        """Those in which some candidate has a token or a number."""

    def ids(self, rows: Rows) -> list[str]:
        """The ids of some rows."""

    def allowed(self, restricts: Restricts | None) -> Allowed | None:
        """The rows that are allowed; None where all rows are."""


class Index(ABC):
    """Candidates of one model version, searchable by queries of the same version and of no other.

    A backend implements `_nearest` alone. It is reached only through `search` and `search_batch`, which take
    versioned embeddings and check them first; a bare vector has no way in. Scores are recomputed here from the
    raw vectors, so that every backend gives the same figure for the same pair.
    """

    is_exact: bool
    """Whether the search misses nothing; an approximate index says so."""

    def __init__(self, candidates: Candidates) -> None:
        self._candidates = candidates

    @property
    def model_version(self) -> ModelVersion:
        """The version whose candidates these are."""
        return self._candidates.model_version

    @property
    def snapshot(self) -> int:
        """The embedding run that it was built of."""
        return self._candidates.snapshot

    @property
    def rows(self) -> int:
        """How many candidates it holds."""
        return self._candidates.rows

    @property
    def dim(self) -> int:
        """The length of a vector."""
        return int(self._candidates.vectors.shape[1])

    @property
    def namespaces(self) -> tuple[str, ...]:
        """The namespaces in which some candidate has a token."""
        return self._candidates.namespaces

    def search(
        self,
        query: VersionedEmbedding,
        k: int,
        *,
        restricts: Restricts | None = None,
        exclude: Collection[str] = (),
        per_crowding_tag: int | None = None,
    ) -> Neighbours:
        """The k candidates nearest to a query; fewer only if fewer are allowed.

        Args:
            query: of this index's version.
            k: at least 1.
            restricts: what candidates are wanted; unknown namespaces and tokens match nothing.
            exclude: ids to leave out.
            per_crowding_tag: at most so many candidates of one crowding tag, the nearest ones; those without a tag
                do not crowd.

        Raises:
            VersionMismatchError: the query is of another version.
            RequestError: k or per_crowding_tag is below 1.
        """
        batch = VersionedEmbeddings(query.vector[None, :], query.model_version)
        return self._search(batch, k, restricts, [exclude], per_crowding_tag)[0]

    def search_batch(
        self,
        queries: VersionedEmbeddings,
        k: int,
        *,
        restricts: Restricts | None = None,
        exclude: Sequence[Collection[str]] | None = None,
        per_crowding_tag: int | None = None,
    ) -> list[Neighbours]:
        """`search` for many queries at once, with the same results.

        Args:
            queries: [batch, dim] of this index's version.
            restricts: the same for all, as is per_crowding_tag.
            exclude: [batch] ids to leave out of each.
        """
        if exclude is not None and len(exclude) != len(queries):
            raise RequestError(f"{len(exclude)} exclusions for {len(queries)} queries: give one for each")
        return self._search(queries, k, restricts, exclude or [()] * len(queries), per_crowding_tag)

    @abstractmethod
    def _nearest(self, vectors: NDArray[np.float32], count: int, allowed: Allowed | None) -> Sequence[Rows]:
        """For each query at least the `count` best rows that it can find, in any order, all of them allowed.

        Args:
            vectors: [batch, dim], checked.
            count: 1 to the number of allowed rows.
            allowed: None allows all.
        """

    def _check_version(self, queries: VersionedEmbeddings) -> None:
        check_version("query", queries, self.model_version, self._candidates.path)

    def _check(self, queries: VersionedEmbeddings, k: int, per_crowding_tag: int | None) -> None:
        self._check_version(queries)
        if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
            raise RequestError(f"k is {k}: ask for at least one candidate, in whole numbers")
        if per_crowding_tag is not None and per_crowding_tag < 1:
            raise RequestError(f"per_crowding_tag is {per_crowding_tag}: allow at least one candidate of a tag")
        check_vectors("query", queries, dim=self.dim, where=self._candidates.path)

    def _search(
        self,
        queries: VersionedEmbeddings,
        k: int,
        restricts: Restricts | None,
        exclude: Sequence[Collection[str]],
        per_crowding_tag: int | None,
    ) -> list[Neighbours]:
        """Ask the backend for more and more rows, until enough are left of each query's or there are no more."""
        self._check(queries, k, per_crowding_tag)
        allowed = self._candidates.allowed(restricts)
        available = self.rows if allowed is None else allowed.count
        found = [Neighbours((), np.empty(0, np.float32)) for _ in range(len(queries))]
        if any(isinstance(ids, str) for ids in exclude):
            raise RequestError("exclude is one text: give a collection of candidate ids")
        excluded = [frozenset(ids) for ids in exclude]
        # How many are asked for follows from a query's own exclusions, so that it finds what it finds alone.
        counts = [_first_count(k, len(ids), per_crowding_tag) for ids in excluded]
        open_ = list(range(len(queries) if available else 0))
        while open_:
            count = min(counts[open_[0]], available)
            some = [place for place in open_ if min(counts[place], available) == count]
            vectors = queries.vectors if len(some) == len(queries) else queries.vectors[some]
            rows_of = self._nearest(vectors, count, allowed)
            finished = self._finish(vectors, rows_of, k, [excluded[place] for place in some], per_crowding_tag)
            for place, neighbours in zip(some, finished, strict=True):
                found[place] = neighbours
                counts[place] = 4 * count
            done = {place for place in some if len(found[place]) >= k or count == available}
            open_ = [place for place in open_ if place not in done]
            if per_crowding_tag is not None and open_:
                tags = self._candidates.crowding
                k = min(k, uncrowded_count(tags if allowed is None else tags[allowed.rows], per_crowding_tag))
        return found

    def _finish(
        self,
        queries: NDArray[np.float32],
        rows_of: Sequence[Rows],
        k: int,
        excluded: Sequence[frozenset[str]],
        per_crowding_tag: int | None,
    ) -> Iterator[Neighbours]:
        """Score exactly, order, leave out, cut; some queries at a time."""
        step = max(1, _FINISHED_ROWS // max(map(len, rows_of)))
        for first in range(0, len(queries), step):
            some = slice(first, first + step)
            rows, scores, bounds = self._ordered(queries[some], rows_of[some])
            if per_crowding_tag is None:
                rows, scores, bounds = _cut(rows, scores, bounds, [k + len(ids) for ids in excluded[some]])
            ids = self._candidates.ids(rows)
            for (begin, end), left_out in zip(pairwise(bounds), excluded[some], strict=True):
                if left_out or per_crowding_tag is not None:
                    kept = self._kept(ids, rows, range(begin, end), left_out, per_crowding_tag)[:k]
                    yield Neighbours(tuple(ids[place] for place in kept), scores[kept].astype(np.float32))
                else:
                    yield Neighbours(
                        tuple(ids[begin : min(end, begin + k)]), scores[begin : min(end, begin + k)].astype(np.float32)
                    )

    def _ordered(
        self, queries: NDArray[np.float32], rows_of: Sequence[Rows]
    ) -> tuple[Rows, NDArray[np.float64], list[int]]:
        """The rows of all queries one after the other, each query's best first; their scores; where each begins."""
        if len(queries) == 1:
            rows = rows_of[0]
            scores = exact_scores(self._candidates.vectors, rows, queries)
            order = np.lexsort((rows, -scores))
            return rows[order], scores[order], [0, len(rows)]
        rows = np.concatenate(rows_of)
        sizes = [len(one) for one in rows_of]
        of_query = np.repeat(np.arange(len(queries)), sizes)
        scores = exact_scores(self._candidates.vectors, rows, queries[of_query])
        order = np.lexsort((rows, -scores, of_query))
        return rows[order], scores[order], [0, *accumulate(sizes)]

    def _kept(
        self, ids: list[str], rows: Rows, places: range, left_out: frozenset[str], limit: int | None
    ) -> list[int]:
        kept = [place for place in places if ids[place] not in left_out]
        if limit is not None:
            codes = self._candidates.crowding[rows[kept]]
            kept = [kept[place] for place in uncrowded(codes, limit).tolist()]
        return kept


def _cut(
    rows: Rows, scores: NDArray[np.float64], bounds: list[int], most: Sequence[int]
) -> tuple[Rows, NDArray[np.float64], list[int]]:
    """At most so many of each query."""
    if len(most) == 1:
        return rows[: most[0]], scores[: most[0]], [0, min(bounds[1], most[0])]
    sizes = np.diff(bounds)
    wanted = np.minimum(sizes, most)
    place = np.arange(len(rows)) - np.repeat(bounds[:-1], sizes)
    kept = place < np.repeat(wanted, sizes)
    return rows[kept], scores[kept], [0, *accumulate(wanted.tolist())]


def _first_count(k: int, excluded: int, per_crowding_tag: int | None) -> int:
    """How many rows to ask for at first: k, twice that under crowding, and room for what is excluded, up to k."""
    room = min(1 << (excluded - 1).bit_length() if excluded else 0, k)
    return (k if per_crowding_tag is None else 2 * k) + room
