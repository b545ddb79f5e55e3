"""Every measure against a value worked by hand."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from lockstep.errors import DataError
from lockstep.model_sections import EvaluateSection
from trainer.evaluation.measures import (
    clicks,
    coverage,
    mean_popularity,
    means,
    measure,
    ndcg,
    query_measures,
    r_precision,
    recall,
    reciprocal_rank,
)
from trainer.evaluation.queries import Queries
from trainer.evaluation.ranking import (
    UNRANKED,
    HistorySums,
    Only,
    Products,
    Ranking,
    SameForAll,
    best_candidates,
    best_rank,
    rank,
)


def bools(*rows: str) -> np.ndarray:
    return np.array([[of == "x" for of in row] for row in rows])


def queries_of(history: list[list[int]], targets: list[list[int]], held_out: list[int] | None = None) -> Queries:
    arrays = [[np.array(of, dtype=np.int64) for of in lists] for lists in (history, targets)]
    counts = np.array(held_out or [len(t) for t in targets])
    return Queries(pa.array([{}] * len(targets)), *arrays, counts, np.zeros(len(targets), dtype=bool))


def test_recall_divides_by_all_that_was_held_out():
    assert recall(np.array([2, 0]), np.array([4, 1])).tolist() == [0.5, 0.0]


def test_ndcg_of_the_first_and_third_place():
    # gain 1/log2(2) + 1/log2(4) = 1.5; the best that 3 held-out can have is 1 + 1/log2(3) + 1/2 = 2.13093
    assert ndcg(bools("x.x"), np.array([3]), 3) == pytest.approx(1.5 / 2.1309297535714574)
    # at k = 1 only the first counts, and one place is the ideal
    assert ndcg(bools("x"), np.array([3]), 1).tolist() == [1.0]
    assert ndcg(bools("..."), np.array([1]), 3).tolist() == [0.0]
    # a catalogue of 2 cannot fill the ideal of 3 places: (1 + 1/log2(3)) / 2.13093
    assert ndcg(bools("xx"), np.array([3]), 3) == pytest.approx(1.6309297535714573 / 2.1309297535714574)


def test_reciprocal_rank_takes_the_best_target():
    assert reciprocal_rank(np.array([3, 0, UNRANKED])).tolist() == [0.25, 1.0, 0.0]


def test_r_precision_looks_as_deep_as_there_are_held_out():
    # 3 held out: of the first three places two hold one; of 5 held out with 4 places: 2 of 5
    found = np.array([[1, 1, 2, 3], [0, 1, 1, 2]])
    assert r_precision(found, np.array([3, 5])) == pytest.approx([2 / 3, 2 / 5])


@pytest.mark.parametrize(("rank_of_best", "expected"), [(0, 0), (9, 0), (10, 1), (499, 49), (500, 51), (UNRANKED, 51)])
def test_clicks_count_pages_of_ten(rank_of_best, expected):
    # position R = rank + 1: floor((R - 1) / 10), and 51 where nothing is among the first 500
    assert clicks(np.array([rank_of_best])).tolist() == [expected]


def test_coverage_counts_each_candidate_once_and_no_empty_place():
    ranking = Ranking(np.array([[0, 1], [1, -1]], dtype=np.int32), bools("..", ".."), np.array([5, 5]), 8)
    assert (coverage(ranking, 1), coverage(ranking, 2)) == (2 / 8, 2 / 8)
    assert coverage(Ranking(np.array([[0, 3]], dtype=np.int32), bools(".."), np.array([5]), 8), 2) == 2 / 8


def test_mean_popularity_is_of_what_is_shown():
    top = np.array([[2, 0], [1, -1], [-1, -1]], dtype=np.int32)
    found = mean_popularity(top, np.array([10.0, 4.0, 2.0]))
    assert found[:2].tolist() == [6.0, 4.0]
    assert np.isnan(found[2])
    assert means({"popularity@2": found}) == {"popularity@2": 5.0}  # of the two that show anything


def test_all_measures_of_one_query():
    ranking = Ranking(np.array([[4, 2, 0]], dtype=np.int32), bools(".x."), np.array([1]), 5)
    values = {name: of.item() for name, of in query_measures(ranking, np.array([2]), (1, 10)).items()}
    third = 1 / np.log2(3)
    expected = {
        "recall@1": 0.0,
        "ndcg@1": 0.0,
        "hit_rate@1": 0.0,
        "recall@10": 0.5,
        "ndcg@10": third / (1 + third),
        "hit_rate@10": 1.0,
        "mrr": 0.5,
        "r_precision": 0.5,
        "clicks": 0.0,
    }
    assert values == pytest.approx(expected)


def test_ties_go_to_the_lower_index_and_minus_infinity_is_out():
    scores = np.array([0.1, 0.5, 0.3, 0.5, -np.inf], dtype=np.float32)
    queries = queries_of([[]] * 6, [[0], [1], [2], [3], [4], [0, 4]])
    ranking = rank(SameForAll(scores), queries, 3, exclude_history=True)
    assert ranking.top.tolist() == [[1, 3, 2]] * 6
    assert ranking.first.tolist() == [3, 0, 2, 1, UNRANKED, 3]
    assert ranking.hits.tolist() == bools("...", "x..", "..x", ".x.", "...", "...").tolist()
    assert best_rank(scores, np.array([], dtype=np.int64)) == UNRANKED


def test_a_sample_that_promises_too_much_is_not_believed():
    scores = np.arange(3 * 8_192, dtype=np.float32)
    scores[::3] += 1e6  # of three candidates the first; they are those that the sample takes
    expected = np.argsort(-scores, kind="stable")[:3_000]
    assert best_candidates(scores, 3_000).tolist() == expected.tolist()


def test_history_is_left_out_and_unknown_targets_count_as_missed():
    queries = queries_of([[0, 1]], [[2, 3]], [4])  # two of four held-out candidates are unknown to the catalogue
    scorer = SameForAll(np.array([0.9, 0.8, 0.7, 0.1, 0.2], dtype=np.float32))
    with_history = measure(queries, scorer, EvaluateSection(ks=(1, 3), exclude_history=False))
    assert [with_history[name] for name in ("recall@1", "recall@3", "mrr")] == pytest.approx([0.0, 0.25, 1 / 3])
    without = measure(queries, scorer, EvaluateSection(ks=(1, 3)))
    assert [without[name] for name in ("recall@1", "recall@3", "mrr")] == [0.25, 0.5, 1.0]
    assert measure(queries.first(0), scorer, EvaluateSection()) == {}


def test_r_precision_looks_deeper_than_every_k():
    queries = queries_of([[]], [[0, 1, 4]])
    scorer = SameForAll(np.array([5, 4, 3, 2, 1], dtype=np.float32))
    found = measure(queries, scorer, EvaluateSection(ks=(1,)))
    assert (found["recall@1"], found["r_precision"]) == (pytest.approx(1 / 3), pytest.approx(2 / 3))


def test_scores_are_products_of_vectors_or_sums_over_the_history():
    out = np.empty((1, 2), dtype=np.float32)
    Products(np.array([[9, 9], [1, 2]], np.float32), np.array([[3, 4], [5, 6]], np.float32)).score(slice(1, 2), out)
    assert out.tolist() == [[11, 17]]
    weights = np.array([[0, 1], [2, 0.5]], dtype=np.float32)
    sums = HistorySums(weights, [np.array([0, 1]), np.array([1]), np.array([], dtype=np.int64)])
    out = np.empty((3, 2), dtype=np.float32)
    sums.score(slice(0, 3), out)
    assert out.tolist() == [[2, 1.5], [2, 0.5], [0, 0]]
    sums.score(slice(1, 3), out[:2])
    assert out.tolist() == [[2, 0.5], [0, 0], [0, 0]]


def test_only_what_is_ranked_has_a_rank():
    # Scores .9 .5 .7 .1; candidate 0 would have won, and is out: the order is 2, 1, 3.
    scores = SameForAll(np.array([0.9, 0.5, 0.7, 0.1], dtype=np.float32))
    only = Only(scores, np.array([False, True, True, True]))
    assert only.candidates == 4
    queries = queries_of([[], [2], []], [[2], [1], [0]])
    ranking = rank(only, queries, 4, exclude_history=True)
    assert ranking.top.tolist() == [[2, 1, 3, -1], [1, 3, -1, -1], [2, 1, 3, -1]]
    assert ranking.first.tolist() == [0, 0, UNRANKED]  # what is not ranked is found by nothing
    assert measure(queries, only, EvaluateSection(ks=(1,)))["recall@1"] == pytest.approx(2 / 3)
    # Without it nobody's first is a target but that of the third, which is candidate 0.
    assert measure(queries, scores, EvaluateSection(ks=(1,)))["hit_rate@1"] == pytest.approx(1 / 3)
    out = np.empty((2, 4), dtype=np.float32)
    only.score(slice(1, 3), out)
    np.testing.assert_array_equal(out, np.array([[-np.inf, 0.5, 0.7, 0.1]] * 2, np.float32))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_vectors_that_are_not_finite_are_refused(value):
    vectors = np.array([[1, value], [0, 1]], dtype=np.float32)
    with pytest.raises(DataError, match="1 of 2 query vectors hold NaN"):
        Products(vectors, np.ones((3, 2), np.float32))
