"""The interface of an index, and the one place where the version of a query is compared with the index's own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lockstep.embeddings import VersionedEmbedding, VersionedEmbeddings
from lockstep.errors import CorruptArtifactError, RequestError, VersionMismatchError
from lockstep.version import ModelVersion
from serving.index.exact import exact_scores
from serving.index.files import IndexFiles

Restricts = Mapping[str, AbstractSet[str]]
"""Namespace -> tokens; a candidate passes if it has one of the tokens in every namespace named."""

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


class Index(ABC):
    """Candidates of one model version, searchable by queries of the same version and of no other.

    A backend implements `_nearest` alone. It is reached only through `search` and `search_batch`, which take
    versioned embeddings and check them first; a bare vector has no way in. Scores are recomputed here from the
    raw vectors, so that every backend gives the same figure for the same pair.
    """

    is_exact: bool
    """Whether the search misses nothing; an approximate index says so."""

    def __init__(self, files: IndexFiles) -> None:
        self._files = files

    @property
    def model_version(self) -> ModelVersion:
        """The version whose candidates these are."""
        return self._files.model_version

    @property
    def snapshot(self) -> int:
        """The embedding run that it was built of."""
        return self._files.snapshot

    @property
    def rows(self) -> int:
        """How many candidates it holds."""
        return len(self._files.vectors)

    @property
    def dim(self) -> int:
        """The length of a vector."""
        return int(self._files.vectors.shape[1])

    @property
    def namespaces(self) -> tuple[str, ...]:
        """The namespaces in which some candidate has a token."""
        return self._files.restricts.namespaces

    def search(
        self,
        query: VersionedEmbedding,
        k: int,
        *,
        restricts: Restricts | None = None,
        exclude: Collection[str] = (),
    ) -> Neighbours:
        """The k candidates nearest to a query; fewer only if fewer are allowed.

        Args:
            query: of this index's version.
            k: at least 1.
            restricts: tokens that are asked for; unknown namespaces and tokens match nothing.
            exclude: ids to leave out.

        Raises:
            VersionMismatchError: the query is of another version.
            RequestError: k is below 1.
        """
        batch = VersionedEmbeddings(query.vector[None, :], query.model_version)
        return self._search(batch, k, restricts, [exclude])[0]

    def search_batch(
        self,
        queries: VersionedEmbeddings,
        k: int,
        *,
        restricts: Restricts | None = None,
        exclude: Sequence[Collection[str]] | None = None,
    ) -> list[Neighbours]:
        """`search` for many queries at once, with the same results.

        Args:
            queries: [batch, dim] of this index's version.
            restricts: the same for all.
            exclude: [batch] ids to leave out of each.
        """
        if exclude is not None and len(exclude) != len(queries):
            raise RequestError(f"{len(exclude)} exclusions for {len(queries)} queries: give one for each")
        return self._search(queries, k, restricts, exclude or [()] * len(queries))

    @abstractmethod
    def _nearest(self, vectors: NDArray[np.float32], count: int, allowed: Rows | None) -> Sequence[Rows]:
        """For each query at least the `count` best rows that it can find, in any order, all of them allowed.

        Args:
            vectors: [batch, dim], checked.
            count: 1 to the number of allowed rows.
            allowed: [n] ascending rows; None allows all.
        """

    def _check_version(self, queries: VersionedEmbeddings) -> None:
        if queries.model_version != self.model_version:
            raise VersionMismatchError(
                "the query embedding",
                queries.model_version,
                f"the index in {self._files.path}",
                self.model_version,
                f"embed the query with {self.model_version}, or search an index of {queries.model_version}",
            )

    def _search(
        self,
        queries: VersionedEmbeddings,
        k: int,
        restricts: Restricts | None,
        exclude: Sequence[Collection[str]],
    ) -> list[Neighbours]:
        self._check_version(queries)
        if k < 1:
            raise RequestError(f"k is {k}: ask for at least one candidate")
        if queries.vectors.shape[1:] != (self.dim,):
            found = f"a query of {queries.vectors.shape[1:]} floats"
            raise CorruptArtifactError(self._files.path, found, f"{self.dim} floats for {self.model_version}")
        allowed = self._files.restricts.rows(restricts) if restricts else None
        available = self.rows if allowed is None else len(allowed)
        if not available or not len(queries):
            return [Neighbours((), np.empty(0, np.float32)) for _ in range(len(queries))]
        excluded = [frozenset(ids) for ids in exclude]
        count = min(k + max(map(len, excluded)), available)
        found_rows = self._nearest(queries.vectors, count, allowed)
        return [
            self._finish(vector, rows, k, ids)
            for vector, rows, ids in zip(queries.vectors, found_rows, excluded, strict=True)
        ]

    def _finish(self, vector: NDArray[np.float32], rows: Rows, k: int, excluded: frozenset[str]) -> Neighbours:
        """Score exactly, order, leave out, cut."""
        scores = exact_scores(self._files.vectors, rows, vector)
        order = np.lexsort((rows, -scores))[: k + len(excluded)]
        ids = self._files.ids(rows[order])
        kept = [place for place, candidate in enumerate(ids) if candidate not in excluded][:k]
        return Neighbours(tuple(ids[place] for place in kept), scores[order][kept].astype(np.float32))
