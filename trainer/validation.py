"""What the towers retrieve while they are trained: recall and NDCG on the validation split, after each epoch.

The towers take encoded features here, from memory, so that a look costs seconds; what counts in the end is the
evaluation of the exported towers (`trainer.evaluate`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from lockstep.features import tower_inputs
from lockstep.model_sections import EvaluateSection, TrainSection
from lockstep.schema import Schema
from lockstep.tags import Artifact
from trainer.candidates import CandidateTable
from trainer.encoding import EncodedFeatures
from trainer.evaluation.measures import measure
from trainer.evaluation.queries import Queries, read_catalogue, read_queries
from trainer.evaluation.ranking import Only, Products
from trainer.towers import TowerNetwork

_log = logging.getLogger(__name__)
_ROWS = 16_384


@dataclass(frozen=True)
class Measured:
    """Means over the validation queries at `validation_k`, and how long it took."""

    recall: float
    ndcg: float
    seconds: float


@dataclass(frozen=True)
class Validation:
    """The queries of the validation split, encoded.

    Args:
        queries: with candidate indices of history and targets.
        encoded: name -> [queries, length] of the query tower's features.
        known: [candidates] whether each one was known before the split: only those are ranked.
        k: how deep a ranking is looked at.
    """

    queries: Queries
    encoded: Mapping[str, tf.Tensor]
    candidates: CandidateTable
    known: NDArray[np.bool_]
    k: int

    def measure(self, query_tower: TowerNetwork, candidate_tower: TowerNetwork) -> Measured:
        """Rank every candidate known before the split for every query, its own history left out.

        Candidates whose features change in time have those of the newest moment of the training data.
        """
        started = time.monotonic()
        scorer = Products(embed(query_tower, self.encoded), embed(candidate_tower, self.candidates.all()))
        means = measure(self.queries, Only(scorer, self.known), EvaluateSection(ks=(self.k,)))
        return Measured(means[f"recall@{self.k}"], means[f"ndcg@{self.k}"], time.monotonic() - started)


def open_validation(
    examples: Artifact,
    preprocessing: Artifact,
    features: EncodedFeatures,
    candidates: CandidateTable,
    section: TrainSection,
) -> Validation | None:
    """Read and encode the first `validation_queries` queries; None where the split has none."""
    catalogue = read_catalogue(examples)
    queries = read_queries(examples.path / "validation", catalogue).first(section.validation_queries)
    if not len(queries):
        return None
    ranked = int(np.count_nonzero(catalogue.known_before_validation))
    if ranked <= section.validation_k:
        _log.warning(
            "validation ranks %d candidates, so that recall@%d is always 1 and NDCG alone decides: lower [train] "
            "validation_k",
            ranked,
            section.validation_k,
        )
    schema = Schema.from_json((examples / "schema.json").read_bytes())
    encode = tf.saved_model.load(str(preprocessing / "query")).signatures["serving_default"]
    inputs = tower_inputs(schema, "query", queries.features)
    encoded = encode(**{name: tf.constant(values) for name, values in inputs.items()})
    lengths = {feature.name: feature.length for feature in features.query}
    fixed = {name: tf.reshape(encoded[name], [-1, length]) for name, length in lengths.items()}
    return Validation(queries, fixed, candidates, catalogue.known_before_validation, section.validation_k)


def embed(tower: TowerNetwork, encoded: Mapping[str, tf.Tensor]) -> NDArray[np.float32]:
    """Embed rows of encoded features in batches: [rows, dim]."""
    rows = len(next(iter(encoded.values())))
    parts = [
        tower({name: values[start : start + _ROWS] for name, values in encoded.items()}, training=False).numpy()
        for start in range(0, rows, _ROWS)
    ]
    return np.concatenate(parts)


class Best(tf.Module):
    """The best epoch so far, by recall, and of equal recall by NDCG.

    It is part of the checkpoint, so that a training that goes on knows it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._recall = tf.Variable(-1.0, dtype=tf.float64, trainable=False)
        self._ndcg = tf.Variable(-1.0, dtype=tf.float64, trainable=False)
        self._step = tf.Variable(-1, dtype=tf.int64, trainable=False)
        self._epochs_since = tf.Variable(0, dtype=tf.int64, trainable=False)

    @property
    def recall(self) -> float:
        """Its recall; -1 before the first."""
        return float(self._recall.numpy())

    @property
    def step(self) -> int:
        """The step at its end."""
        return int(self._step.numpy())

    @property
    def epochs_since(self) -> int:
        """Epochs without a better one."""
        return int(self._epochs_since.numpy())

    def add(self, recall: float, ndcg: float, step: int) -> bool:
        """Take an epoch in; True where it is the best."""
        if (recall, ndcg) <= (self.recall, float(self._ndcg.numpy())):
            self._epochs_since.assign_add(1)
            return False
        self._recall.assign(recall)
        self._ndcg.assign(ndcg)
        self._step.assign(step)
        self._epochs_since.assign(0)
        return True
