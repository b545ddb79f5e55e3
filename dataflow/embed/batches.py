"""From a batch of entities to rows of an embeddings file: digest, encode what is distinct, compute, check.

The tower's two halves are called one by one (lockstep.towers): strings are encoded once however often they stand in
a batch, which may be larger than what the tower computes at once. What comes out is what `Tower.embed` gives, row by
row; tests hold the two against each other, and each job its canaries.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dataflow.digests import FeatureDigests
from dataflow.embed.canaries import proposed
from dataflow.embed.rows import PASSED_ON, Side
from dataflow.encoding import TowerEncoder
from lockstep.embeddings import Dtype, VersionedEmbeddings, embedding_batch
from lockstep.errors import EmbeddingError
from lockstep.tags import Kind
from lockstep.towers import Tower

READ_ROWS = 32_768
"""Rows that are read and encoded at once, at least; entities have so many in a row group."""
NORM_TOLERANCE: Mapping[Dtype, float] = {"float32": 1e-3, "float16": 2e-3}
"""How far from 1 the length of an embedding may be, as it is on disk."""
TOWERS = {"query": Kind.QUERY_TOWER, "candidate": Kind.CANDIDATE_TOWER}
"""Kind of the tower's artifact, by side."""
EMBEDDINGS = {"query": Kind.QUERY_EMBEDDINGS, "candidate": Kind.CANDIDATE_EMBEDDINGS}
"""Kind of the artifact, by side."""
_log = logging.getLogger(__name__)


class BatchTower:
    """A tower for many rows; each method is for one thread at a time.

    Args:
        batch_size: rows that it computes at once; halved where memory does not do.
    """

    def __init__(self, tower: Tower, batch_size: int) -> None:
        self._tower, self.batch_size = tower, batch_size
        self._encoder = TowerEncoder(tower.schema, tower.side, tower)

    def encode(self, features: pa.StructArray) -> dict[str, NDArray[Any]]:
        """By feature, [batch, length] int64 or float32, of raw ones."""
        columns = {field.name: pc.struct_field(features, field.name) for field in features.type}
        encoded = self._encoder.encode(columns)
        return {name: of if of.dtype == np.float32 else of.astype(np.int64, copy=False) for name, of in encoded.items()}

    def embed(self, encoded: Mapping[str, NDArray[Any]]) -> VersionedEmbeddings:
        """Embed encoded rows, `batch_size` at a time."""
        rows, start = len(next(iter(encoded.values()))), 0
        parts: list[NDArray[np.float32]] = []
        while start < rows or not parts:
            piece = {name: values[start : start + self.batch_size] for name, values in encoded.items()}
            try:
                parts.append(self._tower.embed_encoded(piece).vectors)
            except Exception as error:
                if not is_out_of_memory(error) or self.batch_size == 1:
                    raise
                self.batch_size = self.batch_size // 2
                _log.warning("out of memory: the tower goes on with %d rows at a time", self.batch_size)
            else:
                start += self.batch_size
        return VersionedEmbeddings(np.concatenate(parts) if len(parts) > 1 else parts[0], self._tower.model_version)


class BatchEmbedder:
    """Makes rows of an embeddings file; `encode` and `embed` may run on a thread each."""

    def __init__(self, side: Side, tower: BatchTower, dtype: Dtype) -> None:
        self._side, self._tower, self._dtype = side, tower, dtype
        self._digests = FeatureDigests()

    def encode(self, entities: pa.RecordBatch) -> dict[str, NDArray[Any]]:
        """The encoded features of a batch."""
        return self._tower.encode(entities.column("features"))

    def embed(
        self, entities: pa.RecordBatch, digests: pa.Array, encoded: Mapping[str, NDArray[Any]]
    ) -> tuple[pa.RecordBatch, pa.Table]:
        """The rows of a batch for the file, checked, and its canaries.

        Raises:
            EmbeddingError: an embedding is not finite or not of unit length, or an entity has no id.
            VersionMismatchError: the weights stamp another version than the tower's tag.
        """
        embeddings = self._tower.embed(encoded)
        ids = entities.column("id")
        rounded = embeddings.vectors.astype(self._dtype, copy=False)
        _check(self._side, ids, embeddings, rounded, self._dtype)
        extra = [entities.column(name) for name in PASSED_ON[self._side]]
        rows = embedding_batch(EMBEDDINGS[self._side], ids, embeddings, digests, *extra, dtype=self._dtype)
        return rows, proposed(entities, digests, rounded)

    def whole(self, entities: pa.RecordBatch) -> tuple[pa.RecordBatch, pa.Table]:
        """Digests, and both steps."""
        return self.embed(entities, self._digests.of(entities.column("features")), self.encode(entities))


def is_out_of_memory(error: Exception) -> bool:
    """Whether TensorFlow or numpy found no memory."""
    return isinstance(error, MemoryError) or type(error).__name__ == "ResourceExhaustedError"


def _check(side: Side, ids: pa.Array, embeddings: VersionedEmbeddings, rounded: NDArray[Any], dtype: Dtype) -> None:
    def refuse(problem: str, examples: list[Any], remedy: str) -> None:
        raise EmbeddingError(side, embeddings.model_version, problem, examples, remedy)

    if len(rounded) != len(ids):
        refuse(f"{len(rounded)} vectors for {len(ids)} entities", ids[:5].to_pylist(), "train the tower again")
    nameless = pc.fill_null(pc.equal(ids, ""), True)
    if pc.any(nameless).as_py():
        refuse("an entity has no id", ids.filter(nameless).to_pylist(), "rerun generate_examples")
    exact = rounded.astype(np.float32, copy=False)
    norms = np.sqrt(np.einsum("ij,ij->i", exact, exact))
    for problem, bad in (
        ("vectors are not finite", ~np.isfinite(norms)),
        ("vectors are not of length 1", np.abs(norms - 1) > NORM_TOLERANCE[dtype]),
    ):
        if bad.any():
            examples = ids.filter(pa.array(bad)).to_pylist()
            refuse(f"{len(examples)} {problem}", examples, "look at the training's loss and train again")
