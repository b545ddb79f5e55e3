"""What a vector must be to be indexed or searched for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from lockstep.embeddings import VersionedEmbeddings
from lockstep.errors import EmbeddingError, VersionMismatchError
from lockstep.version import ModelVersion

UNIT_TOLERANCE = 1e-3
"""How far from 1 the length of a vector may be."""


def check_version(side: str, embeddings: VersionedEmbeddings, model_version: ModelVersion, where: object) -> None:
    """Refuse vectors of another model version than an index's.

    Args:
        side: "query" or "candidate".
        where: the index, for the message.

    Raises:
        VersionMismatchError: they are of another one.
    """
    if embeddings.model_version != model_version:
        raise VersionMismatchError(
            f"the {side} embedding",
            embeddings.model_version,
            f"the index in {where}",
            model_version,
            f"embed it with {model_version}, or take an index of {embeddings.model_version}",
        )


def check_vectors(
    side: str,
    embeddings: VersionedEmbeddings,
    *,
    dim: int,
    where: object,
    ids: Callable[[], Sequence[object]] | None = None,
) -> None:
    """Refuse vectors of another dimension, and such as are not finite or not of unit length.

    Args:
        side: "query" or "candidate".
        embeddings: [n, dim].
        where: the index or file, for the message.
        ids: gives the [n] ids whose vectors they are, for the message; their places by default.

    Raises:
        EmbeddingError: there are such.
    """
    vectors, version = embeddings.vectors, embeddings.model_version
    if vectors.ndim != 2 or vectors.shape[1] != dim:
        problem = f"they are of shape {vectors.shape}, and {where} holds vectors of {dim} floats"
        raise EmbeddingError(side, version, problem, [], f"embed them with the towers of {version}")
    bad, lengths = _not_unit(vectors)
    if len(bad):
        known = ids() if ids is not None else [f"row {row}" for row in range(len(vectors))]
        names = [known[row] for row in bad[:5].tolist()]
        problem = (
            f"{len(bad)} of {len(vectors)} vectors for {where} are not finite and of length 1, the first of length "
            f"{lengths[bad[0]]:g}"
        )
        raise EmbeddingError(side, version, problem, names, "look at the training's loss and train again")


def _not_unit(vectors: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    if len(vectors) == 1:  # as most queries are: without the cost of looking at many
        square = float(vectors[0] @ vectors[0])
        length = math.sqrt(square) if square >= 0 else math.nan
        return np.arange(0 if abs(length - 1) <= UNIT_TOLERANCE else 1), np.array([length])
    lengths = np.sqrt(np.vecdot(vectors, vectors, dtype=np.float64))
    # A comparison with NaN is false, so these are found too.
    return np.flatnonzero(~(np.abs(lengths - 1) <= UNIT_TOLERANCE)), lengths
