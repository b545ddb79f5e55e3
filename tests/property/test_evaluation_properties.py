"""The blocked ranking equals the plain one, whatever the scores: ties, -inf, any depth, any number of threads."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import ranking_reference as reference
from trainer.evaluation import ranking as ranking_module
from trainer.evaluation.measures import coverage, depth_for, means, query_measures
from trainer.evaluation.queries import Queries
from trainer.evaluation.ranking import Scores, best_candidates, best_rank, rank

VALUES = st.sampled_from([-np.inf, -1.0, -0.0, 0.0, 0.5, 0.5000001, 1.0, 7.0])


@dataclass(frozen=True)
class Rows:
    """Scores written by hand."""

    rows: np.ndarray

    @property
    def candidates(self) -> int:
        return self.rows.shape[1]

    def score(self, rows: slice, out: Scores) -> None:
        out[:] = self.rows[rows]


@st.composite
def evaluations(draw):
    candidates, count = draw(st.integers(1, 40)), draw(st.integers(1, 12))
    values = st.lists(VALUES, min_size=candidates, max_size=candidates)
    rows = np.array(draw(st.lists(values, min_size=count, max_size=count)), dtype=np.float32)
    some = st.lists(st.integers(0, candidates - 1), max_size=6, unique=True).map(sorted)
    targets, history = (draw(st.lists(some, min_size=count, max_size=count)) for _ in range(2))
    unknown = draw(st.lists(st.integers(0, 3), min_size=count, max_size=count))
    held_out = [max(1, len(t) + u) for t, u in zip(targets, unknown, strict=True)]
    return rows, targets, history, held_out


@settings(deadline=None, max_examples=150)
@given(evaluations(), st.integers(1, 3), st.booleans())
def test_every_measure_equals_the_plain_one(evaluation, threads, exclude_history):
    rows, targets, history, held_out = evaluation
    ks = (1, 3, 10, 60)
    queries = Queries(
        pa.array([{}] * len(rows)),
        [np.array(h, dtype=np.int64) for h in history],
        [np.array(t, dtype=np.int64) for t in targets],
        np.array(held_out),
        np.zeros(len(rows), dtype=bool),
    )
    ranked = rank(Rows(rows), queries, depth_for(queries, ks), exclude_history=exclude_history, threads=threads)
    found = means(query_measures(ranked, queries.held_out, ks)) | {f"coverage@{k}": coverage(ranked, k) for k in ks}
    expected = rows.copy()
    if exclude_history:
        for row, past in zip(expected, history, strict=True):
            row[past] = -np.inf
    assert found == pytest.approx(reference.measures(expected, targets, held_out, ks), abs=1e-12)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 900),
    st.sampled_from([1, 2, 5, 40, 1000]),
    st.sampled_from([0, 0.3, 0.99]),
)
def test_the_guess_of_a_wide_row_changes_nothing(seed, depth, distinct, excluded):
    # Wide enough that the best are looked for from a sample of the scores.
    rng = np.random.default_rng(seed)
    scores = (rng.integers(0, distinct, 3 * ranking_module._SAMPLE) / 7).astype(np.float32)
    scores[rng.random(len(scores)) < excluded] = -np.inf
    scores.sort() if seed % 3 == 0 else None
    order = np.lexsort([np.arange(len(scores)), -scores])
    order = order[scores[order] > -np.inf]
    assert best_candidates(scores, depth).tolist() == order[:depth].tolist()
    target = int(rng.integers(len(scores)))
    place = np.flatnonzero(order == target)
    expected = int(place[0]) if len(place) else ranking_module.UNRANKED
    assert best_rank(scores, np.array([target])) == expected
