"""The job build_index: candidate embeddings of one release in, an index of that release out, tuned on its queries."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lockstep.config import IndexSection
from lockstep.embeddings import read_embeddings
from lockstep.errors import DataError, InputMismatchError
from lockstep.storage import fresh_directory
from lockstep.tags import Artifact, Kind, Tag, open_artifact, write_tag
from lockstep.version import ModelVersion
from serving.index.building import finish_index
from serving.index.files import IndexFilesWriter, duplicate_ids
from serving.index.vectors import check_vectors

_QUERY_SEED = 1
_LOG = logging.getLogger(__name__)


def run(
    *,
    candidate_embeddings: Path,
    query_embeddings: Path,
    index: Path,
    model_version: ModelVersion,
    run_id: str,
    section: IndexSection,
) -> Tag:
    """Build the index of one release; the tree of its files is in `serving.index.files`.

    Vectors go to disk batch by batch; only the backend's own training holds more of them.

    Args:
        candidate_embeddings: artifact of this version.
        query_embeddings: artifact of the same release; some of them are searched for to tune the index.
        index: the folder to write.

    Raises:
        ArtifactError: the embeddings are not those of this version and of one snapshot, or not of unit length.
        DataError: there are none, or an id comes twice, or there are no queries to tune a tree on.
    """
    source = open_artifact(candidate_embeddings, Kind.CANDIDATE_EMBEDDINGS, model_version=model_version)
    queries = open_artifact(query_embeddings, Kind.QUERY_EMBEDDINGS, model_version=model_version)
    snapshot = source.tag.snapshot
    assert snapshot is not None, "embeddings always have a snapshot"
    if queries.tag.snapshot != snapshot:
        raise InputMismatchError("snapshot", source.path, snapshot, queries.path, queries.tag.snapshot)
    fresh_directory(index)
    writer = _copy(source, index)
    drawn = draw_queries(queries, section.tuning_queries, writer.vectors.shape[1])
    finish_index(writer, drawn, model_version=model_version, snapshot=snapshot, section=section)
    return write_tag(
        index,
        Kind.INDEX,
        run=run_id,
        schema=source.tag.schema,
        rows=writer.rows,
        model_version=model_version,
        snapshot=snapshot,
        inputs={"candidate_embeddings": source.tag, "query_embeddings": queries.tag},
    )


def draw_queries(artifact: Artifact, size: int, dim: int) -> NDArray[np.float32]:
    """Some rows of an embeddings artifact, the same ones whenever they are drawn.

    Args:
        dim: of the vectors that will be searched.

    Returns:
        [at most size, dim].
    """
    drawn = np.sort(np.random.default_rng(_QUERY_SEED).permutation(artifact.tag.rows)[:size])
    found = [np.empty((0, dim), np.float32)]
    first = 0
    for _, embeddings in read_embeddings(artifact):
        check_vectors("query", embeddings, dim=dim, where=artifact.path)
        found.append(embeddings.vectors[drawn[(drawn >= first) & (drawn < first + len(embeddings))] - first])
        first += len(embeddings)
    return np.concatenate(found)


def _copy(source: Artifact, index: Path) -> IndexFilesWriter:
    writer: IndexFilesWriter | None = None
    ids: list[pa.Array] = []
    for batch, embeddings in read_embeddings(source):
        dim = embeddings.vectors.shape[1]
        names = batch.column("id")
        check_vectors("candidate", embeddings, dim=dim, where=source.path, ids=names.to_pylist)
        if writer is None:
            writer = IndexFilesWriter(index, source.tag.rows, dim)
        writer.add(batch, embeddings.vectors)
        ids.append(names)
        _LOG.info("%d of %d candidates read", writer.rows, source.tag.rows)
    if writer is None:
        raise DataError(f"{source.path} holds no candidates: an index needs at least one; see the entities' report")
    repeated = duplicate_ids(pa.chunked_array(ids))
    if repeated:
        raise DataError(
            f"{source.path}: {len(repeated)} ids come twice, {repeated[0]!r} among them; rerun embed_candidates"
        )
    return writer
