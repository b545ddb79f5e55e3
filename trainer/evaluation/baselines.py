"""What a retrieval model has to beat: baselines that learn from who took what, and nothing else.

Each learns from the events that training may see (`interactions.parquet`), scores by a query's whole history, and has
the best settings of a small grid, by recall on the validation split. None can say anything of a candidate that training
has never seen; so it is not ranked, where a score of 0 would stand above all that are negative. Ties go to the lower
index, which is the more popular candidate.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lockstep.model_sections import EvaluateSection
from lockstep.tags import Artifact
from trainer.evaluation.measures import measure
from trainer.evaluation.queries import Queries
from trainer.evaluation.ranking import HistorySums, Only, Products, Scorer

_log = logging.getLogger(__name__)
Weights = NDArray[np.float32]
"""[candidates, candidates]: row i is what candidate i in a history says of every candidate."""
Settings = Mapping[str, float]
GRIDS: Mapping[str, tuple[Settings, ...]] = {
    "item_knn": tuple({"neighbours": n, "shrinkage": s} for n in (50, 200, 1000) for s in (0, 10, 100, 1000)),
    "ease": tuple({"l2": l2} for l2 in (100, 300, 1000, 3000, 10_000)),
    "als": tuple(
        {"factors": f, "regularization": r, "alpha": a}
        for f in (32, 64, 128)
        for r in (1.0, 10.0, 50.0)
        for a in (0.0, 1.0, 10.0)
    ),
}
"""The settings that are tried, by baseline."""
CHOICE_QUERIES = 2_000
"""At most so many validation queries decide between settings."""
_INVERTED_AT_ONCE = 1_024
"""Rows of a matrix that LAPACK inverts."""


@dataclass(frozen=True)
class Interactions:
    """Who took what in training: distinct pairs, those of a query entity together.

    Args:
        query: [pairs] number of the entity, ascending.
        candidate: [pairs] candidate index.
        candidates: size of the catalogue.
        weights: [entities] how much each one counts; all the same by default.
    """

    query: NDArray[np.int64]
    candidate: NDArray[np.int64]
    candidates: int
    weights: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Baseline:
    """A fitted baseline.

    Args:
        scorer: makes it score some queries.
        settings: the best of its grid.
        tried: each setting of the grid with its recall on the validation split.
    """

    scorer: Callable[[Queries], Scorer]
    settings: Settings
    tried: list[dict[str, float]] = field(default_factory=list)


def read_interactions(examples: Artifact, candidates: int) -> Interactions | None:
    """Read `interactions.parquet`; None where the examples were made before there was one."""
    path = examples.path / "interactions.parquet"
    if not path.exists():
        return None
    table: pa.Table = pq.read_table(path, columns=["query", "candidate"])
    query, candidate = (table[name].to_numpy().astype(np.int64) for name in ("query", "candidate"))
    pairs = np.unique(query * candidates + candidate)
    return Interactions(pairs // candidates, pairs % candidates, candidates)


def fit_baselines(
    interactions: Interactions | None, validation: Queries, candidates: int, section: EvaluateSection
) -> tuple[dict[str, Baseline], dict[str, str]]:
    """Fit the baselines of the section.

    Args:
        validation: the queries that the settings are chosen on; without any, the first of the grid is taken.

    Returns:
        The baselines by name, and of those that are left out the reason.
    """
    fitted: dict[str, Baseline] = {}
    left_out: dict[str, str] = {}
    for name in section.baselines:
        reason = _why_not(name, interactions, candidates, section)
        if reason is not None:
            left_out[name] = reason
            _log.warning("%s is left out: %s", name, reason)
            continue
        assert interactions is not None, "otherwise there is a reason"
        fitted[name] = _choose(name, _fits(name, interactions, section), validation.first(CHOICE_QUERIES), section)
        _log.info("%s: %s is the best of %d settings", name, fitted[name].settings, len(GRIDS[name]))
    return fitted, left_out


def co_occurrences(interactions: Interactions) -> Weights:
    """[candidates, candidates] weight of the query entities that took both; on the diagonal, that took one."""
    gram = np.zeros((interactions.candidates, interactions.candidates), dtype=np.float32)
    starts = np.flatnonzero(np.diff(interactions.query, prepend=-1))
    for start, end in pairwise([*starts.tolist(), len(interactions.query)]):
        taken = interactions.candidate[start:end]
        weight = 1.0 if interactions.weights is None else interactions.weights[interactions.query[start]]
        gram[np.ix_(taken, taken)] += weight
    return gram


def item_knn(gram: Weights, neighbours: int, shrinkage: float) -> Weights:
    """Cosine similarity of candidates, shrunk where few entities took them, to the nearest of each only.

    s(i, j) = n(i, j) / (sqrt(n(i) n(j)) + shrinkage); a query's score of j is the sum of s(i, j) over its history.

    Args:
        gram: as of `co_occurrences`.
        neighbours: how many candidates the weights of each candidate reach; others get 0.

    Reference: Deshpande & Karypis, "Item-based top-N recommendation algorithms", TOIS 2004; shrinkage as in Ferrari
    Dacrema, Cremonesi & Jannach, "Are we really making much progress?", RecSys 2019.
    """
    taken = np.diag(gram)
    weights: Weights = np.zeros_like(gram)
    for candidate, row in enumerate(weights):  # by row, so that there is no third matrix
        norms = np.sqrt(taken * taken[candidate]) + np.float32(shrinkage)
        np.divide(gram[candidate], norms, out=row, where=norms > 0)
        row[candidate] = 0.0
        if neighbours < len(gram):
            row[row < np.partition(row, -neighbours)[-neighbours]] = 0.0
    return weights


def ease(gram: Weights, l2: float) -> Weights:
    """The linear model of all candidates on all others with the least squared error, ridge-regularised, in closed form.

    With P = inverse(gram + l2 I): weight(i, j) = -P(i, j) / P(j, j), and 0 on the diagonal.

    Args:
        gram: as of `co_occurrences`.
        l2: the weight of the ridge, above 0.

    Reference: Steck, "Embarrassingly shallow autoencoders for sparse data", WWW 2019, equation 8.
    """
    weights: Weights = gram.copy()
    np.fill_diagonal(weights, np.diag(gram) + np.float32(l2))
    invert(weights)
    weights /= -np.diag(weights)
    np.fill_diagonal(weights, 0.0)
    return weights


def invert(matrix: Weights) -> None:
    """Invert a symmetric, positive definite matrix in place.

    By quarters, which holds half a matrix more at its peak, where LAPACK's inverse holds three.

    Reference: Higham, "Accuracy and stability of numerical algorithms", 2nd edition, 2002, chapter 13 (the Schur
    complement of such a matrix is one, too, so there is no need for pivots).
    """
    if len(matrix) <= _INVERTED_AT_ONCE:
        matrix[:] = np.linalg.inv(matrix)
        return
    half = len(matrix) // 2
    first, across, last = matrix[:half, :half], matrix[:half, half:], matrix[half:, half:]
    invert(first)
    solved = first @ across
    last -= across.T @ solved  # the Schur complement of the first quarter
    invert(last)
    np.matmul(solved, -last, out=across)
    first -= across @ solved.T
    matrix[half:, :half] = across.T


def als(interactions: Interactions, settings: Settings, section: EvaluateSection) -> Callable[[Queries], Scorer]:
    """Matrix factorisation of implicit feedback; a query's vector is folded in from its history.

    The squared error of what an entity took, which should be 1, counts 1 + alpha times the entity's weight; of what it
    did not take, which should be 0, it counts 1.

    Args:
        settings: `factors`, `regularization` and `alpha`.

    Returns:
        What makes it score some queries.

    Raises:
        ImportError: the package implicit is not installed.

    Reference: Hu, Koren & Volinsky, "Collaborative filtering for implicit feedback datasets", ICDM 2008, section 4.
    """
    from implicit.cpu.als import AlternatingLeastSquares
    from threadpoolctl import threadpool_limits  # comes with implicit, whose threads are many already

    entities = int(interactions.query[-1]) + 1 if len(interactions.query) else 0
    weights = np.float32(1.0) if interactions.weights is None else interactions.weights[interactions.query]
    # The package takes the whole of the confidence, and 1 of what is not there.
    confidence = np.broadcast_to(1.0 + np.float32(settings["alpha"]) * weights, interactions.query.shape)
    taken = _matrix(confidence, interactions.query, interactions.candidate, entities, interactions.candidates)
    with threadpool_limits(1, "blas"):
        model = AlternatingLeastSquares(
            factors=int(settings["factors"]),
            regularization=settings["regularization"],
            random_state=section.seed,
            num_threads=section.threads,
        )
        model.fit(taken, show_progress=False)

    def scorer(queries: Queries) -> Scorer:
        rows = np.repeat(np.arange(len(queries)), [len(history) for history in queries.history])
        past = np.concatenate([*queries.history, np.empty(0, dtype=np.int64)])
        believed = np.full(len(rows), 1.0 + settings["alpha"], dtype=np.float32)
        histories = _matrix(believed, rows, past, len(queries), interactions.candidates)
        return Products(model.recalculate_user(np.arange(len(queries)), histories), model.item_factors)

    return scorer


def _why_not(name: str, interactions: Interactions | None, candidates: int, section: EvaluateSection) -> str | None:
    if interactions is None:
        return "the examples have no interactions.parquet: make them anew with this version of Lockstep"
    if name != "als" and candidates > section.baseline_max_candidates:
        return f"{candidates:,} candidates, more than baseline_max_candidates = {section.baseline_max_candidates:,}"
    if name == "als":
        try:
            import implicit  # noqa: F401
        except ImportError:
            return "the package implicit is not installed: pip install 'lockstep-retrieval[baselines]'"
    return None


def _fits(
    name: str, interactions: Interactions, section: EvaluateSection
) -> Callable[[Settings], Callable[[Queries], Scorer]]:
    """How a baseline is fitted with given settings."""
    gram = None if name == "als" else co_occurrences(interactions)
    seen = np.bincount(interactions.candidate, minlength=interactions.candidates) > 0

    def fit(settings: Settings) -> Callable[[Queries], Scorer]:
        if gram is None:
            scorer = als(interactions, settings, section)
            return lambda queries: Only(scorer(queries), seen)
        if name == "ease":
            weights = ease(gram, settings["l2"])
        else:
            weights = item_knn(gram, int(settings["neighbours"]), settings["shrinkage"])
        return lambda queries: Only(HistorySums(weights, queries.history), seen)

    return fit


def _choose(
    name: str,
    fit: Callable[[Settings], Callable[[Queries], Scorer]],
    validation: Queries,
    section: EvaluateSection,
) -> Baseline:
    """The setting with the best recall at the largest k; the first of equals.

    It is fitted once more at the end, since its matrix would take as much memory as the fit of the next.
    """
    if not len(validation):
        return Baseline(fit(GRIDS[name][0]), GRIDS[name][0])
    goal = f"recall@{max(section.ks)}"
    tried = [{**of, goal: measure(validation, fit(of)(validation), section)[goal]} for of in GRIDS[name]]
    best = GRIDS[name][int(np.argmax([row[goal] for row in tried]))]
    return Baseline(fit(best), best, tried)


def _matrix(
    values: NDArray[np.float32], rows: NDArray[np.int64], columns: NDArray[np.int64], entities: int, candidates: int
) -> Any:
    """[entities, candidates] sparse."""
    from scipy.sparse import csr_matrix  # comes with implicit

    return csr_matrix((values, (rows, columns)), shape=(entities, candidates))
