"""Retrieval that needs no embeddings: the most popular candidates, all of them or within a restrict."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lockstep.embeddings import NUMERIC_RESTRICTS, RESTRICTS
from lockstep.tags import Kind, open_artifact
from serving.index.crowding import crowding_codes, uncrowded
from serving.index.postings import PostingsBuilder
from serving.index.restricts import Restricts

POPULAR = "popular.parquet"
_COLUMNS = ["id", "count", "restricts", "numeric_restricts", "crowding_tag"]


class PopularCandidates:
    """The popularity list of one release, in memory.

    Args:
        table: id, count, restricts, numeric_restricts and crowding_tag, most popular first.
    """

    def __init__(self, table: pa.Table) -> None:
        self._ids = table.column("id")
        self._counts = table.column("count").to_numpy()
        builder = PostingsBuilder()
        builder.add(
            table.column("restricts").combine_chunks().cast(RESTRICTS),
            table.column("numeric_restricts").combine_chunks().cast(NUMERIC_RESTRICTS),
        )
        self._postings = builder.build()
        self._crowding = crowding_codes(table.column("crowding_tag"))

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
        return cls(pq.read_table(data, columns=_COLUMNS))

    def __len__(self) -> int:
        return len(self._ids)

    def top(
        self,
        k: int,
        restricts: Restricts | None = None,
        exclude: Collection[str] = (),
        per_crowding_tag: int | None = None,
    ) -> list[tuple[str, float]]:
        """The k most popular candidates that are allowed, with their event counts.

        Args:
            restricts: as in `serving.index.Index.search`, and so the rest; a fallback never leaves them.
        """
        excluded = frozenset(exclude)
        rows = self._postings.allowed(restricts).rows if restricts else np.arange(len(self))
        if per_crowding_tag is None:
            rows = rows[: k + len(excluded)]
        ids = self._ids.take(pa.array(rows)).to_pylist()
        kept = np.array([place for place, candidate in enumerate(ids) if candidate not in excluded], np.int64)
        if per_crowding_tag is not None:
            kept = kept[uncrowded(self._crowding[rows[kept]], per_crowding_tag)]
        return [(ids[place], float(self._counts[rows[place]])) for place in kept[:k].tolist()]
