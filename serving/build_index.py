"""The job build_index: candidate embeddings of one release in, an index of that release out."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lockstep.config import IndexSection
from lockstep.embeddings import read_embeddings
from lockstep.errors import DataError
from lockstep.storage import fresh_directory
from lockstep.tags import Artifact, Kind, Tag, open_artifact, write_tag
from lockstep.version import ModelVersion
from serving.index.files import SCANN, IndexFilesWriter, duplicate_ids

UNIT_TOLERANCE = 1e-3
_LOG = logging.getLogger(__name__)


def run(
    *,
    candidate_embeddings: Path,
    index: Path,
    model_version: ModelVersion,
    run_id: str,
    section: IndexSection,
) -> Tag:
    """Build the index of one release; the tree of its files is in `serving.index.files`.

    Vectors go to disk batch by batch; only the backend's own training holds more of them.

    Args:
        candidate_embeddings: artifact of this version.
        index: the folder to write.

    Raises:
        ArtifactError: the embeddings are not those of this version.
        DataError: there are none, or a vector is not finite or not of unit length, or an id comes twice.
    """
    source = open_artifact(candidate_embeddings, Kind.CANDIDATE_EMBEDDINGS, model_version=model_version)
    snapshot = source.tag.snapshot
    assert snapshot is not None, "embeddings always have a snapshot"
    fresh_directory(index)
    writer = _copy(source, index)
    backend = _backend(writer.rows, section)
    parameters = {}
    if backend == "scann":
        from serving.index.scann import build_searcher

        _LOG.info("training ScaNN over %d candidates", writer.rows)
        parameters = build_searcher(writer.vectors, section, index / SCANN)
    writer.finish(backend, model_version, snapshot, parameters)
    _LOG.info("index of %d candidates written (%s)", writer.rows, backend)
    return write_tag(
        index,
        Kind.INDEX,
        run=run_id,
        schema=source.tag.schema,
        rows=writer.rows,
        model_version=model_version,
        snapshot=snapshot,
        inputs={"candidate_embeddings": source.tag},
    )


def _backend(rows: int, section: IndexSection) -> str:
    if section.backend != "auto":
        return section.backend
    return "brute_force" if rows <= section.brute_force_max_rows else "scann"


def _copy(source: Artifact, index: Path) -> IndexFilesWriter:
    writer: IndexFilesWriter | None = None
    ids: list[pa.Array] = []
    for batch, embeddings in read_embeddings(source):
        check_vectors(embeddings.vectors, batch.column("id"), source.path)
        if writer is None:
            writer = IndexFilesWriter(index, source.tag.rows, embeddings.vectors.shape[1])
        writer.add(batch, embeddings.vectors)
        ids.append(batch.column("id"))
        _LOG.info("%d of %d candidates read", writer.rows, source.tag.rows)
    if writer is None:
        raise DataError(f"{source.path} holds no candidates: an index needs at least one; see the entities' report")
    repeated = duplicate_ids(pa.chunked_array(ids))
    if repeated:
        raise DataError(
            f"{source.path}: {len(repeated)} ids come twice, {repeated[0]!r} among them; rerun embed_candidates"
        )
    return writer


def check_vectors(vectors: NDArray[np.float32], ids: pa.Array, path: Path) -> None:
    """Refuse vectors that are not finite or not of unit length.

    Args:
        vectors: [n, dim].
        ids: [n], for the message.

    Raises:
        DataError: names the first bad row.
    """
    lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))
    # A comparison with NaN is false, so these are refused too.
    bad = np.flatnonzero(~(np.abs(lengths - 1) <= UNIT_TOLERANCE))
    if len(bad):
        first = int(bad[0])
        raise DataError(
            f"{path}: {len(bad)} of {len(vectors)} vectors are not finite and of unit length, first that of "
            f"{ids[first].as_py()!r} (length {lengths[first]:g}): the tower must normalise its output; "
            "see the training report, then rerun train_towers"
        )
