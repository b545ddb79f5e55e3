"""Tiny releases whose ids and vectors encode their version, so that any mixing shows in the answer.

The query vectors of version v lie along axis v of the space, and so do its candidates, at an angle of at most 60
degrees. A pair of one version therefore scores 0.5 or more, a mixed pair exactly 0. Candidate ids begin with the
release's name.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lockstep.config import IndexSection, KVSection
from lockstep.embeddings import NUMERIC_RESTRICTS, RESTRICTS, VersionedEmbeddings, embedding_batch
from lockstep.registry import Part, Registry, Release
from lockstep.storage import LocalStorage
from lockstep.tags import Kind, Tag, read_tag, write_tag
from lockstep.version import ModelVersion, ReleaseId
from serving import build_index, load_kv

DIM = 16
"""Axes 1 to 14 belong to the versions; axis 15 spreads the candidates."""
MIXED_SCORE_BELOW = 0.4
SCHEMA = "stub-schema"
GENRES = ("jazz", "rock")


def query_vector(version: int) -> NDArray[np.float32]:
    """[DIM] what every query entity of a version has."""
    vector = np.zeros(DIM, np.float32)
    vector[version] = 1
    return vector


def candidate_vectors(version: int, rows: int) -> NDArray[np.float32]:
    """[rows, DIM] from the nearest to the farthest."""
    angles = np.linspace(0, np.pi / 3, rows)
    vectors = np.zeros((rows, DIM), np.float32)
    vectors[:, version] = np.cos(angles)
    vectors[:, DIM - 1] = np.sin(angles)
    return vectors


def candidate_id(release_id: ReleaseId, row: int) -> str:
    return f"{release_id}/c{row:03d}"


def version_of(candidate: str) -> int:
    """The model version that a candidate id encodes."""
    return int(ReleaseId.parse(candidate.split("/")[0]).model_version)


def genre(row: int) -> str:
    return GENRES[row % 2]


def restricts(rows: int) -> pa.Array:
    values = [[{"namespace": "genre", "allow": [genre(row)]}] for row in range(rows)]
    return pa.array(values, RESTRICTS)


def write_embeddings(
    directory: Path,
    kind: Kind,
    release_id: ReleaseId,
    ids: Sequence[str],
    vectors: NDArray[np.float32],
    inputs: dict[str, Tag] | None = None,
    restricted: pa.Array | None = None,
    numeric: pa.Array | None = None,
    tags: pa.Array | None = None,
) -> Tag:
    """An embeddings artifact of one file."""
    directory.mkdir(parents=True)
    version = release_id.model_version
    digests = pa.array(["0"] * len(ids))
    batch = embedding_batch(
        kind, pa.array(ids, pa.string()), VersionedEmbeddings(vectors, version), digests, restricted, numeric, tags
    )
    pq.write_table(pa.Table.from_batches([batch]), directory / "part-00000-of-00001.parquet")
    return write_tag(
        directory, kind, run="r", schema=SCHEMA, rows=len(ids), model_version=version,
        snapshot=release_id.snapshot, inputs=inputs,
    )  # fmt: skip


def tower_tag(version: ModelVersion, training: str = "first") -> Tag:
    """The tag of a query tower; another `training` is another model, whatever its number."""
    return Tag(kind=Kind.QUERY_TOWER, run=training, schema=SCHEMA, rows=0, files={}, model_version=version)


def write_entities(directory: Path, candidates: Sequence[str], queries: Sequence[str]) -> Tag:
    """An entities artifact with ids, one numeric feature, and the popularity list in the order of the candidates."""
    for side, ids in (("candidates", candidates), ("queries", queries)):
        (directory / side).mkdir(parents=True)
        features = pa.array([{"x": float(row)} for row in range(len(ids))], pa.struct([("x", pa.float64())]))
        table = pa.table({"id": pa.array(ids, pa.string()), "features": features})
        pq.write_table(table, directory / side / "part-00000.parquet")
    popular = pa.table(
        {
            "id": pa.array(candidates, pa.string()),
            "count": pa.array(range(len(candidates), 0, -1), pa.int64()),
            "restricts": restricts(len(candidates)),
            "numeric_restricts": pa.nulls(len(candidates), NUMERIC_RESTRICTS),
            "crowding_tag": pa.nulls(len(candidates), pa.string()),
        }
    )
    pq.write_table(popular, directory / "popular.parquet")
    return write_tag(directory, Kind.ENTITIES, run="r", schema=SCHEMA, rows=len(candidates) + len(queries))


class StubRoot:
    """A root with a real registry, real indexes and a real key-value store, made in milliseconds.

    Args:
        path: an empty folder.
        entities: the query entities; every release embeds all of them unless told otherwise.
        rows: candidates of every release.
    """

    def __init__(self, path: Path, entities: Sequence[str] = ("alice", "bob"), rows: int = 8) -> None:
        self.path = path
        self.entities = tuple(entities)
        self.rows = rows
        self.storage = LocalStorage(str(path))
        self.registry = Registry(self.storage)

    def mint(self) -> ModelVersion:
        return self.registry.mint_version("r", "test")

    def folder(self, release_id: ReleaseId, kind: Kind) -> Path:
        return self.path / "runs" / str(release_id) / str(kind)

    def build(self, release_id: ReleaseId, entities: Sequence[str] | None = None) -> Release:
        """Write every part that serving reads, load the key-value store, and register the release."""
        known = self.entities if entities is None else tuple(entities)
        candidates = [candidate_id(release_id, row) for row in range(self.rows)]
        version = release_id.model_version

        def folder(kind: Kind) -> Path:
            return self.folder(release_id, kind)

        write_entities(folder(Kind.ENTITIES), candidates, known)
        write_embeddings(
            folder(Kind.CANDIDATE_EMBEDDINGS), Kind.CANDIDATE_EMBEDDINGS, release_id, candidates,
            candidate_vectors(version, self.rows), restricted=restricts(self.rows),
        )  # fmt: skip
        write_embeddings(
            folder(Kind.QUERY_EMBEDDINGS), Kind.QUERY_EMBEDDINGS, release_id, known,
            np.tile(query_vector(version), (len(known), 1)), inputs={"tower": tower_tag(version)},
        )  # fmt: skip
        build_index.run(
            candidate_embeddings=folder(Kind.CANDIDATE_EMBEDDINGS), query_embeddings=folder(Kind.QUERY_EMBEDDINGS),
            index=folder(Kind.INDEX), model_version=version, run_id="r", section=IndexSection(),
        )  # fmt: skip
        if known:
            load_kv.run(
                query_embeddings=folder(Kind.QUERY_EMBEDDINGS), kv_load=folder(Kind.KV_LOAD),
                kv_root=self.path / "kv", model_version=version, run_id="r", section=KVSection(),
            )  # fmt: skip
        release = Release(
            id=release_id,
            run="r",
            schema=SCHEMA,
            parts={
                str(kind): Part(kind, self.storage.relative(str(folder(kind))), read_tag(folder(kind)).digest)
                for kind in (Kind.ENTITIES, Kind.INDEX)
            },
            kv={"backend": "embedded", "namespace": str(version), "tower": tower_tag(version).digest},
            created_at="2026-01-01T00:00:00+00:00",
        )
        self.registry.add_release(release)
        return release

    def build_and_publish(self, release_id: ReleaseId, entities: Sequence[str] | None = None) -> Release:
        release = self.build(release_id, entities)
        self.registry.publish(release_id, by="test", why="test")
        return release

    def corrupt(self, release_id: ReleaseId, kind: Kind, file: str, offset: int = -1) -> None:
        """Replace a file by one with a flipped byte; whoever has the old one open or mapped keeps it."""
        path = self.folder(release_id, kind) / file
        data = bytearray(path.read_bytes())
        data[offset] ^= 0xFF
        path.unlink()
        path.write_bytes(data)
