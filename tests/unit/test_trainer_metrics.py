from __future__ import annotations

import math

import numpy as np
import pytest

from trainer.metrics import UNRANKED, RankingMeasures, ndcg, recall, reciprocal_rank, target_ranks, top_mask


def _order(scores: np.ndarray) -> list[int]:
    """The naive ranking: best first, equal scores by index, -inf left out."""
    ranked = [i for i in range(len(scores)) if scores[i] != -np.inf]
    return sorted(ranked, key=lambda i: (-scores[i], i))


def test_ranks_count_who_scores_more_and_ties_go_to_the_lower_index():
    scores = np.array([0.1, 0.5, 0.3, 0.5, -np.inf], dtype=np.float32)
    assert target_ranks(scores, np.array([0, 1, 2, 3, 4])).tolist() == [3, 0, 2, 1, UNRANKED]


def test_the_top_is_cut_within_a_tie_by_index_and_never_holds_the_excluded():
    scores = np.array([1.0, 3.0, 1.0, 1.0, -np.inf])
    assert top_mask(scores, 2).tolist() == [True, True, False, False, False]
    assert top_mask(scores, 3).tolist() == [True, True, True, False, False]
    assert top_mask(np.array([-np.inf, 2.0, -np.inf]), 2).tolist() == [False, True, False]
    assert top_mask(scores, 9).tolist() == [True, True, True, True, False]


def test_recall_divides_by_all_that_was_held_out():
    assert recall(np.array([0, 9, 10]), held_out=4, k=10) == 0.5


def test_an_excluded_target_is_missed_also_where_k_exceeds_the_catalogue():
    ranks = target_ranks(np.array([1.0, -np.inf]), np.array([0, 1]))
    assert recall(ranks, held_out=2, k=50) == 0.5


def test_ndcg_of_the_first_and_third_place():
    # gain 1/log2(2) + 1/log2(4) = 1.5; the best that 3 held-out can have is 1 + 1/log2(3) + 1/2 = 2.13093
    assert ndcg(np.array([0, 2]), held_out=3, k=3) == pytest.approx(1.5 / 2.1309297535714574)
    # at k = 1 only the first counts, and one place is the ideal
    assert ndcg(np.array([0, 2]), held_out=3, k=1) == 1.0
    assert ndcg(np.array([4]), held_out=1, k=3) == 0.0


def test_reciprocal_rank_takes_the_best_target():
    assert reciprocal_rank(np.array([7, 3])) == 0.25
    assert reciprocal_rank(np.array([UNRANKED])) == 0.0
    assert reciprocal_rank(np.array([], dtype=np.int64)) == 0.0


@pytest.mark.parametrize("seed", range(5))
def test_all_measures_equal_a_naive_reference(seed):
    rng = np.random.default_rng(seed)
    candidates, ks = 37, (1, 5, 20, 50)
    measures = RankingMeasures(candidates, ks)
    sums: dict[str, float] = {}
    covered = {k: set() for k in ks}
    for _ in range(25):
        scores = rng.integers(0, 8, candidates).astype(np.float32)  # full of ties
        scores[rng.choice(candidates, 4, replace=False)] = -np.inf
        targets = np.sort(rng.choice(candidates, rng.integers(1, 9), replace=False))
        held_out = len(targets) + int(rng.integers(0, 3))
        measures.add(scores, targets, held_out)
        order = _order(scores)
        for k in ks:
            hits = [place for place, i in enumerate(order[:k]) if i in targets]
            gain = sum(1 / math.log2(place + 2) for place in hits)
            ideal = sum(1 / math.log2(place + 2) for place in range(min(k, held_out)))
            sums[f"recall@{k}"] = sums.get(f"recall@{k}", 0.0) + len(hits) / held_out
            sums[f"ndcg@{k}"] = sums.get(f"ndcg@{k}", 0.0) + gain / ideal
            covered[k] |= set(order[:k])
        first = next((place for place, i in enumerate(order) if i in targets), None)
        sums["mrr"] = sums.get("mrr", 0.0) + (0.0 if first is None else 1 / (first + 1))
    expected = {name: total / 25 for name, total in sums.items()}
    expected |= {f"coverage@{k}": len(ids) / candidates for k, ids in covered.items()}
    assert measures.means() == pytest.approx(expected)
