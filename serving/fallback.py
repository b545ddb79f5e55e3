"""Retrieval that needs no embeddings: the most popular candidates, all of them or within a restrict."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lockstep.embeddings import RESTRICTS
from lockstep.tags import Kind, open_artifact
from serving.index.restricts import PostingsBuilder

POPULAR = "popular.parquet"


class PopularCandidates:
    """The popularity list of one release, in memory.

    Args:
        table: id, count and restricts, most popular first.
    """

    def __init__(self, table: pa.Table) -> None:
        self._ids = table.column("id")
        self._counts = table.column("count").to_numpy()
        builder = PostingsBuilder()
        builder.add(0, table.column("restricts").combine_chunks().cast(RESTRICTS))
        self._postings = builder.build()

    @classmethod
    def open(cls, entities: Path, digest: str | None = None) -> PopularCandidates:
        """Read the list of an `entities` artifact, checking its bytes but not those of the (much larger) rest.

        Args:
            digest: of the tag, where a release names it.

        Raises:
            ArtifactError: there is no such artifact, or the list is not what was written.
        """
        artifact = open_artifact(entities, Kind.ENTITIES, digest=digest, verify=False)
        data = pa.BufferReader(artifact.read(POPULAR))
        return cls(pq.read_table(data, columns=["id", "count", "restricts"]))

    def __len__(self) -> int:
        return len(self._ids)

    def top(
        self, k: int, restricts: Mapping[str, AbstractSet[str]] | None = None, exclude: Collection[str] = ()
    ) -> list[tuple[str, float]]:
        """The k most popular candidates that are allowed, with their event counts.

        Args:
            restricts: as in `serving.index.Index.search`; a fallback never leaves them.
            exclude: ids to leave out.
        """
        excluded = frozenset(exclude)
        wanted = k + len(excluded)
        rows = (self._postings.rows(restricts) if restricts else np.arange(min(wanted, len(self))))[:wanted]
        ids = self._ids.take(pa.array(rows)).to_pylist()
        pairs = zip(ids, self._counts[rows].tolist(), strict=True)
        return [(candidate, float(count)) for candidate, count in pairs if candidate not in excluded][:k]
