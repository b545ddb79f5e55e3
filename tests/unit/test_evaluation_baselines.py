"""The baselines against small cases worked by hand and against plain numpy."""

from __future__ import annotations

import sys
import tracemalloc
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lockstep.model_sections import EvaluateSection
from lockstep.tags import Artifact
from tests.unit.test_evaluation_measures import queries_of
from trainer.evaluation import baselines
from trainer.evaluation.baselines import (
    GRIDS,
    Interactions,
    als,
    co_occurrences,
    ease,
    fit_baselines,
    invert,
    item_knn,
    read_interactions,
)
from trainer.evaluation.measures import measure
from trainer.evaluation.queries import Queries
from trainer.evaluation.ranking import HistorySums

# Four entities: {0, 1}, {0, 1, 2}, {2}, {3}.
TAKEN = Interactions(np.array([0, 0, 1, 1, 1, 2, 3]), np.array([0, 1, 0, 1, 2, 2, 3]), candidates=5)
MATRIX = np.array([[1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 1, 0]], dtype=np.float64)


def grouped(seed: int, entities: int = 60) -> tuple[Interactions, Queries]:
    """Entities that take 5 of the 10 candidates of their group, and queries that hold out 3 of 5."""
    rng = np.random.default_rng(seed)
    pairs = {(q, (q % 4) * 10 + int(c)) for q in range(entities) for c in rng.choice(10, 5, replace=False)}
    query, candidate = np.array(sorted(pairs)).T
    drawn = [(q % 4) * 10 + rng.choice(10, 5, replace=False) for q in range(40)]
    return Interactions(query, candidate, 40), queries_of(
        [sorted(d[:2].tolist()) for d in drawn], [sorted(d[2:].tolist()) for d in drawn]
    )


def test_interactions_are_read_once_a_pair(tmp_path):
    assert read_interactions(Artifact(tmp_path, None), 5) is None
    columns = {"query": pa.array([1, 0, 1, 1], pa.int32()), "candidate": pa.array([4, 2, 0, 4], pa.int32())}
    pq.write_table(pa.table({**columns, "age_days": pa.array([0.0] * 4)}), tmp_path / "interactions.parquet")
    found = read_interactions(Artifact(tmp_path, None), 5)
    assert (found.query.tolist(), found.candidate.tolist(), found.candidates) == ([0, 1, 1], [2, 0, 4], 5)


def test_co_occurrences_are_the_product_of_the_interaction_matrix_with_itself():
    assert co_occurrences(TAKEN).tolist() == (MATRIX.T @ MATRIX).tolist()
    assert co_occurrences(Interactions(np.array([], int), np.array([], int), 2)).tolist() == [[0, 0], [0, 0]]
    weights = np.array([1.0, 0.5, 0.25, 0.0], dtype=np.float32)
    weighted = co_occurrences(replace(TAKEN, weights=weights))
    assert weighted.tolist() == (MATRIX.T @ np.diag(weights) @ MATRIX).tolist()


def test_item_knn_is_the_shrunk_cosine_of_the_nearest():
    # n = (2, 2, 2, 1, 0); together: 0 and 1 twice, 2 once with either; with shrinkage 2 the norms are 2 + 2
    weights = item_knn(co_occurrences(TAKEN), neighbours=5, shrinkage=2.0)
    expected = np.zeros((5, 5))
    expected[0, 1] = expected[1, 0] = 2 / 4
    expected[[0, 2, 1, 2], [2, 0, 2, 1]] = 1 / 4
    np.testing.assert_allclose(weights, expected)
    nearest = item_knn(co_occurrences(TAKEN), neighbours=1, shrinkage=2.0)
    assert nearest[0].tolist() == [0, 0.5, 0, 0, 0]
    assert nearest[2].tolist() == [0.25, 0.25, 0, 0, 0]  # as near as each other
    unshrunk = item_knn(co_occurrences(TAKEN), neighbours=5, shrinkage=0.0)
    assert (unshrunk[0, 1], unshrunk[0, 2], unshrunk[4].tolist()) == (1.0, 0.5, [0.0] * 5)


def test_ease_is_the_best_linear_model_without_itself():
    weights = ease(co_occurrences(TAKEN), 0.5)
    # Column by column: ridge regression of a candidate on all the others is the same model.
    expected = np.zeros((5, 5))
    for column in range(5):
        others = [i for i in range(5) if i != column]
        rest = MATRIX[:, others]
        expected[others, column] = np.linalg.solve(rest.T @ rest + 0.5 * np.eye(4), rest.T @ MATRIX[:, column])
    np.testing.assert_allclose(weights, expected, atol=1e-6)
    # 0 and 1 always together: [[2.5, .], [., 2.5]] by hand for two candidates, weight 2 / (2 + 0.5)
    pair = ease(np.array([[2, 2], [2, 2]], dtype=np.float32), 0.5)
    np.testing.assert_allclose(pair, [[0, 0.8], [0.8, 0]], atol=1e-6)


@pytest.mark.parametrize("size", [1, 7, 1024, 1025, 2051])
def test_a_matrix_is_inverted_in_place(size):
    factors = np.random.default_rng(size).normal(size=(size, 20)).astype(np.float32)
    matrix = factors @ factors.T + np.diag(np.arange(1, size + 1, dtype=np.float32))
    expected = np.linalg.inv(matrix.astype(np.float64))
    assert invert(matrix) is None
    np.testing.assert_allclose(matrix, expected, atol=1e-5)
    assert matrix.dtype == np.float32


def test_the_settings_are_those_with_the_best_recall_on_validation():
    interactions, validation = grouped(1)
    section = EvaluateSection(ks=(3, 8), baselines=("item_knn", "ease"))
    fitted, left_out = fit_baselines(interactions, validation, 40, section)
    assert left_out == {}
    gram = co_occurrences(interactions)
    for name, make in (("item_knn", item_knn), ("ease", ease)):
        recalls = [
            measure(validation, HistorySums(make(gram, **settings), validation.history), section)["recall@8"]
            for settings in GRIDS[name]
        ]
        assert [row["recall@8"] for row in fitted[name].tried] == recalls
        assert fitted[name].settings == GRIDS[name][int(np.argmax(recalls))]
        found = measure(validation, fitted[name].scorer(validation), section)
        assert found["recall@8"] == max(recalls) > 0.9  # 8 of a group's 8 others; chance finds 8 of 38


def test_the_choice_can_differ_from_the_first_of_the_grid():
    # Candidate 280 stands with 119 others, so 50 neighbours leave out what 200 find; ties at 0 go to lower indices,
    # which 140 entities take that have nothing else.
    rng = np.random.default_rng(0)
    others = np.arange(281, 400)
    query = np.concatenate([np.repeat(np.arange(200), 40), np.repeat(np.arange(200, 340), 2)])
    taken = [[280, *np.sort(rng.choice(others, 39, replace=False))] for _ in range(200)]
    candidate = np.concatenate([*taken, np.arange(280)])
    targets = [sorted(rng.choice(others, 20, replace=False).tolist()) for _ in range(30)]
    validation = queries_of([[280]] * 30, targets)
    section = EvaluateSection(ks=(110,), baselines=("item_knn",))
    fitted, _ = fit_baselines(Interactions(query, candidate, 400), validation, 400, section)
    recalls = [row["recall@110"] for row in fitted["item_knn"].tried]
    assert fitted["item_knn"].settings == GRIDS["item_knn"][int(np.argmax(recalls))]
    assert max(recalls) > recalls[0]
    assert len(recalls) == len(GRIDS["item_knn"])


@pytest.mark.parametrize(
    ("names", "matrices"),
    [(("item_knn",), 2.0), (("ease",), 2.5), (("item_knn", "ease"), 3.5), (("ease", "item_knn"), 3.0)],
)
def test_no_more_matrices_are_held_than_documented(names, matrices, monkeypatch):
    monkeypatch.setattr(baselines, "GRIDS", {name: grid[-3:] for name, grid in GRIDS.items()})
    size = 2100
    query = np.repeat(np.arange(1000), 3)
    candidate = np.random.default_rng(0).integers(0, size, 3000)
    validation = queries_of([[0]], [[1]])
    section = EvaluateSection(baselines=names)
    tracemalloc.start()
    fitted, _ = fit_baselines(Interactions(query, candidate, size), validation, size, section)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert set(fitted) == set(names)
    assert matrices - 0.1 < peak / (4 * size**2) < matrices + 0.1


def test_without_validation_queries_the_first_settings_are_taken():
    interactions, validation = grouped(2)
    fitted, _ = fit_baselines(interactions, validation.first(0), 40, EvaluateSection())
    assert (fitted["item_knn"].settings, fitted["item_knn"].tried) == (GRIDS["item_knn"][0], [])


def test_what_is_left_out_has_its_reason():
    interactions, validation = grouped(3)
    section = EvaluateSection(baselines=("item_knn", "ease"), baseline_max_candidates=39)
    fitted, reasons = fit_baselines(interactions, validation, 40, section)
    assert fitted == {}
    assert reasons["ease"] == reasons["item_knn"] == "40 candidates, more than baseline_max_candidates = 39"
    _, reasons = fit_baselines(None, validation, 40, section)
    assert "no interactions.parquet" in reasons["item_knn"]


def test_als_stays_within_the_group():
    interactions, validation = grouped(4)
    section = EvaluateSection(ks=(8,), baselines=("als",), baseline_max_candidates=1)
    fitted, reasons = fit_baselines(interactions, validation, 40, section)
    assert reasons == {}
    found = measure(validation, fitted["als"].scorer(validation), section)
    assert found["recall@8"] == max(row["recall@8"] for row in fitted["als"].tried) > 0.6  # chance finds 8 of 38
    again, _ = fit_baselines(interactions, validation, 40, section)
    assert fitted["als"].tried == again["als"].tried


def test_als_believes_entities_by_their_weight():
    # Thirty entities take 0 with 1, ten take 0 with 2, and twenty others 3 with 4.
    taken = [(0, 1)] * 30 + [(0, 2)] * 10 + [(3, 4)] * 20
    interactions = Interactions(np.repeat(np.arange(60), 2), np.array(taken).ravel(), 5)
    weights = np.ones(60, dtype=np.float32)
    weights[:30] = 0.01
    for given, first in ((interactions, 1), (replace(interactions, weights=weights), 2)):
        queries, scores = queries_of([[0]], [[1]]), np.empty((1, 5), dtype=np.float32)
        scorer = als(given, {"factors": 1, "regularization": 5.0, "alpha": 20.0}, EvaluateSection())(queries)
        scorer.score(slice(0, 1), scores)
        assert np.argmax(scores[0, 1:3]) + 1 == first


def test_als_solves_the_normal_equations_of_its_paper():
    # With candidates' factors Y, a history's factor is x = (Y' C Y + l I)^-1 Y' C p: C = 1 + alpha and p = 1 for what
    # it holds, C = 1 and p = 0 for what it does not.
    rng = np.random.default_rng(3)
    pairs = np.unique(rng.integers(0, 20 * 6, 60))
    weights = rng.uniform(0.1, 1.0, 20).astype(np.float32)
    interactions = Interactions(pairs // 6, pairs % 6, 6, weights)
    settings = {"factors": 2, "regularization": 0.5, "alpha": 4.0}
    queries = queries_of([[0, 3], [1]], [[2], [2]])
    products = als(interactions, settings, EvaluateSection())(queries)
    items = np.asarray(products.candidate_vectors, dtype=np.float64)
    for history, found in zip([[0, 3], [1]], products.vectors, strict=True):
        confidence = np.where(np.isin(np.arange(6), history), 1.0 + 4.0, 1.0)
        wanted = np.linalg.solve(
            items.T @ (confidence[:, None] * items) + 0.5 * np.eye(2), items.T @ (confidence * (confidence > 1.0))
        )
        np.testing.assert_allclose(found, wanted, rtol=1e-3)
    # Without any more confidence in what was taken the entities' weights mean nothing.
    unweighted, weighted = (
        als(of, {**settings, "alpha": 0.0}, EvaluateSection())(queries).candidate_vectors
        for of in (replace(interactions, weights=None), interactions)
    )
    np.testing.assert_array_equal(unweighted, weighted)
    assert not np.allclose(unweighted, items)


@pytest.mark.parametrize("name", ["item_knn", "ease", "als"])
def test_a_candidate_that_training_has_not_seen_is_not_ranked(name):
    # Of a score of 0 it would stand above every negative one.
    interactions, validation = grouped(4)
    wider = replace(interactions, candidates=45)
    fitted, _ = fit_baselines(wider, validation, 45, EvaluateSection(ks=(8,), baselines=(name,)))
    scores = np.empty((len(validation), 45), dtype=np.float32)
    fitted[name].scorer(validation).score(slice(0, len(validation)), scores)
    assert np.isneginf(scores[:, 40:]).all()
    assert np.isfinite(scores[:, :40]).all()


def test_als_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "implicit", None)
    interactions, validation = grouped(4)
    fitted, reasons = fit_baselines(interactions, validation, 40, EvaluateSection(baselines=("als",)))
    assert fitted == {}
    assert reasons["als"] == "the package implicit is not installed: pip install 'lockstep-retrieval[baselines]'"
