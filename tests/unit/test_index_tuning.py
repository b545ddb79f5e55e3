"""Tuning against trees whose recall and time are formulas, so that the best settings are known."""

from __future__ import annotations

import math
from xml.etree import ElementTree

import numpy as np
import pytest

from serving.index.exact import nearest_rows
from serving.index.frontier import draw_frontier, unbeaten
from serving.index.tuning import AIM, Ladder, Point, Truth, Tuner

ROWS, DIM, LEAVES = 20_000, 8, 400


def unit_rows(rows: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((rows, DIM)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


class FormulaTree:
    """Finds a share of the best rows that grows with leaves and with what is scored again, and takes its time.

    recall = (1 - exp(-leaves / a)) * (1 - exp(-(reorder / count) / b)), microseconds = leaves + reorder * c.
    """

    def __init__(self, vectors: np.ndarray, a: float, b: float, c: float) -> None:
        self._vectors, self.a, self.b, self.c = vectors, a, b, c
        self.calls = 0
        self._best: dict[tuple[int, int], list[np.ndarray]] = {}

    def recall(self, count: int, leaves: int, reorder: int) -> float:
        return (1 - math.exp(-leaves / self.a)) * (1 - math.exp(-reorder / count / self.b))

    def microseconds(self, leaves: int, reorder: int) -> float:
        return leaves + reorder * self.c

    def __call__(self, queries: np.ndarray, count: int, leaves: int, reorder: int) -> tuple[list[np.ndarray], float]:
        self.calls += 1
        share = self.recall(count, leaves, reorder)
        found = []
        for place, best in enumerate(self._exactly(queries, count)):
            # The share is spread over the queries, so that their mean has it to a part in a thousand.
            kept = math.floor(share * count + (place % 97) / 97)
            found.append(best[:kept])
        return found, self.microseconds(leaves, reorder)

    def _exactly(self, queries: np.ndarray, count: int) -> list[np.ndarray]:
        if (len(queries), count) not in self._best:
            found = enumerate(nearest_rows(self._vectors, queries, count))
            self._best[len(queries), count] = [
                rows[np.argsort(-(self._vectors[rows] @ queries[place]))][:count] for place, rows in found
            ]
        return self._best[len(queries), count]


@pytest.mark.parametrize("target", [0.8, 0.9, 0.97, 0.99])
@pytest.mark.parametrize(("a", "b", "c"), [(40, 0.5, 0.1), (60, 1.0, 0.5), (20, 0.4, 0.02), (30, 0.2, 5.0)])
def test_lands_within_half_a_percent_above_the_target_at_near_the_least_time(
    target: float, a: float, b: float, c: float
) -> None:
    vectors, queries = unit_rows(ROWS, 1), unit_rows(300, 2)
    tree = FormulaTree(vectors, a, b, c)
    tuner = Tuner(tree, LEAVES, target)
    k = 50
    chosen = next(step for step in tuner.ladder(vectors, queries, k) if step.count == k)
    assert target <= chosen.recall <= target + 0.005
    assert chosen.recall == pytest.approx(tree.recall(k, chosen.leaves, chosen.reorder), abs=2e-3)
    best = min(
        tree.microseconds(leaves, reorder)
        for leaves in range(1, LEAVES + 1)
        for reorder in range(k, 10 * k)
        if tree.recall(k, leaves, reorder) >= target + AIM
    )
    assert chosen.microseconds <= 1.3 * best
    assert tree.calls < 150


def test_a_target_that_cannot_be_reached_gives_the_best_there_is() -> None:
    vectors, queries = unit_rows(ROWS, 1), unit_rows(100, 2)
    tree = FormulaTree(vectors, a=200, b=1.0, c=0.1)
    chosen = next(step for step in Tuner(tree, LEAVES, 0.95).ladder(vectors, queries, 20) if step.count == 20)
    assert chosen.leaves == LEAVES
    assert chosen.recall == pytest.approx(1 - math.exp(-2), abs=5e-3)


def test_the_ladder_has_a_rung_for_fewer_and_for_more_results_as_far_as_the_catalogue_goes() -> None:
    vectors, queries = unit_rows(ROWS, 1), unit_rows(100, 2)
    steps = Tuner(FormulaTree(vectors, 40, 0.5, 0.1), LEAVES, 0.9).ladder(vectors, queries, 20)
    assert [step.count for step in steps] == [2, 20, 80]
    assert all(step.recall >= 0.9 for step in steps)


LADDER = Ladder(
    (
        Point(10, 20, 80, 0.97, 0.01, 40.0),
        Point(100, 30, 400, 0.97, 0.01, 100.0),
        Point(1_000, 90, 2_000, 0.97, 0, 1e3),
    ),
    leaves=150,
    exact=((100.0, 60.0), (500.0, 100.0), (10_000.0, 1_050.0)),
)


@pytest.mark.parametrize(
    ("count", "setting"),
    [
        (10, (20, 80, 40.0)),
        (100, (30, 400, 100.0)),
        (1_000, (90, 2_000, 1_000.0)),
        # Half way in the logarithm: sqrt(30 * 90), 316 * sqrt(4 * 2), sqrt(1e5).
        (316, (52, 894, 316.0)),
        (3, (20, 80, 40.0)),
        # Above the last step in proportion, but for no more leaves than there are.
        (2_000, (150, 4_000, 2_000.0)),
    ],
)
def test_settings_between_rungs_follow_a_power_law(count: int, setting: tuple[int, int, float]) -> None:
    leaves, reorder, microseconds = LADDER.setting(count)
    assert (leaves, reorder) == pytest.approx(setting[:2], abs=1.01)
    assert microseconds == pytest.approx(setting[2], rel=2e-3)
    assert Ladder.from_json(LADDER.to_json()) == LADDER


def test_exact_scans_where_they_are_cheaper_or_too_much_is_asked_for() -> None:
    # 100 results take the tree 100 us, and an exact scan 60 + 40 / 400 for each row above 100.
    assert LADDER.prefers_exact(100, 500)
    assert not LADDER.prefers_exact(100, 501)
    # 1,000 take it 1,000 us; of 10,000 rows all take 1,050.
    assert not LADDER.prefers_exact(1_000, 10_000)
    assert LADDER.prefers_exact(1_100, 10_000)
    assert LADDER.prefers_exact(2_501, 10_000)


def test_recall_counts_ties_with_the_last_as_found() -> None:
    vectors = np.array([[1, 0], [0.6, 0.8], [0.6, 0.8], [0, 1]], np.float32)
    truth = Truth(vectors, np.array([[1, 0]], np.float32), 2)
    assert truth.recalls([np.array([0, 2])], 2).tolist() == [1.0]
    assert truth.recalls([np.array([0, 3])], 2).tolist() == [0.5]
    assert truth.recalls([np.array([1])], 1).tolist() == [0.0]


def test_the_picture_joins_the_unbeaten_points_and_marks_the_chosen_one() -> None:
    points = [Point(10, 1, 20, 0.7, 0.01, 30.0), Point(10, 2, 20, 0.65, 0.01, 60.0), Point(10, 4, 40, 0.9, 0.01, 90.0)]
    assert unbeaten(points) == [points[0], points[2]]
    root = ElementTree.fromstring(draw_frontier(points, points[2], 0.85))
    space = "{http://www.w3.org/2000/svg}"
    assert len(root.findall(f"{space}circle")) == 4
    assert len(root.find(f"{space}polyline").attrib["points"].split()) == 2  # type: ignore[union-attr]
    titles = [title.text for title in root.iter(f"{space}title")]
    assert "4 leaves, 40 reordered: 0.9000 in 90 us" in titles


@pytest.mark.parametrize("count", [1, 7, 300])
def test_blocks_find_what_a_sort_finds(count: int) -> None:
    vectors = np.repeat(unit_rows(10_000, 5), 3, axis=0)
    vectors[::7] *= 0.5
    queries = unit_rows(40, 6)
    # One query likes nothing in the sample, so that its estimate fails.
    queries[3] = vectors[1] * 1
    scores = vectors.astype(np.float64) @ queries.astype(np.float64).T
    for place, rows in enumerate(nearest_rows(vectors, queries, count)):
        last = np.sort(scores[:, place])[-count]
        assert len(set(rows.tolist())) == len(rows) >= count
        assert set(np.flatnonzero(scores[:, place] >= last)) <= set(rows.tolist())
        assert (scores[rows, place] >= last - 1e-5).all()
