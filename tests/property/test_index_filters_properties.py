"""Any restricts, crowding, exclusions and k, on every backend, against a reference that looks at one row at a time."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lockstep.config import IndexSection
from lockstep.embeddings import NUMERIC_RESTRICTS, RESTRICTS, VersionedEmbeddings
from lockstep.tags import Kind
from lockstep.version import ModelVersion, ReleaseId
from serving import build_index
from serving.index import Comparison, Index, Restricts, open_index
from serving.index.restricts import COMPARISONS
from serving.index.scann import ScannIndex
from serving.index.tuning import Ladder, Point
from tests.fakes.stub_releases import write_embeddings

V5 = ReleaseId(ModelVersion(5), 1)
ROWS, DIM = 120, 6
TOKENS = ("a", "b", "c", "nobody's")
SPACES = ("color", "shape", "unknown")
NUMBERS = (-1.0, 0.0, 2.0, 2.5)


@dataclass(frozen=True)
class Candidate:
    """A row as a person would write it down."""

    allow: dict[str, list[str]]
    deny: dict[str, list[str]]
    numbers: dict[str, float]
    tag: str | None


def catalogue(seed: int) -> tuple[list[Candidate], np.ndarray]:
    rng = np.random.default_rng(seed)

    def tokens(most: int) -> dict[str, list[str]]:
        return {space: rng.choice(TOKENS[:3], rng.integers(0, most)).tolist() for space in SPACES[:2]}

    rows = [
        Candidate(
            tokens(3),
            tokens(2),
            {space: float(rng.choice(NUMBERS)) for space in ("price", "year") if rng.random() < 0.7},
            None if rng.random() < 0.2 else str(rng.choice(["x", "y", "z", ""])),
        )
        for _ in range(ROWS)
    ]
    vectors = rng.standard_normal((ROWS, DIM)).astype(np.float32)
    vectors[1::10] = vectors[::10]
    return rows, vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


class Made:
    """Indexes of one catalogue."""

    def __init__(self, rows: list[Candidate], vectors: np.ndarray, indexes: dict[str, Index]) -> None:
        self.rows, self.vectors, self.indexes = rows, vectors, indexes


class ExactTree:
    """Stands where ScaNN does, and finds exactly the count that it is asked for."""

    rows = ROWS

    def __init__(self, vectors: np.ndarray) -> None:
        self._vectors = vectors

    def search(self, queries: np.ndarray, count: int, leaves: int, reorder: int) -> list[np.ndarray]:
        assert count <= reorder
        return [np.argsort(-(self._vectors @ query), kind="stable")[:count] for query in queries]


@pytest.fixture(scope="module")
def made() -> Iterator[Made]:
    rows, vectors = catalogue(3)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        restricts = [
            [{"namespace": s, "allow": r.allow[s] or None, "deny": r.deny[s]} for s in SPACES[:2]] for r in rows
        ]
        numbers = [[{"namespace": s, "value": v} for s, v in r.numbers.items()] or None for r in rows]
        write_embeddings(
            path / "c", Kind.CANDIDATE_EMBEDDINGS, V5, [f"c{row}" for row in range(ROWS)], vectors,
            restricted=pa.array(restricts, RESTRICTS), numeric=pa.array(numbers, NUMERIC_RESTRICTS),
            tags=pa.array([row.tag for row in rows]),
        )  # fmt: skip
        write_embeddings(path / "q", Kind.QUERY_EMBEDDINGS, V5, ["q0", "q1"], vectors[:2])
        # A k of 10 makes ScaNN's tuning cheap; what it finds is not asked here.
        for name in ("brute_force", "scann"):
            build_index.run(
                candidate_embeddings=path / "c", query_embeddings=path / "q", index=path / name,
                model_version=V5.model_version, run_id="r", section=IndexSection(backend=name, k=10),
            )  # fmt: skip
        brute_force, scanning = (open_index(path / name, V5.model_version, 1) for name in ("brute_force", "scann"))
        assert isinstance(scanning, ScannIndex)
        scanning._prefers_exact = lambda count, allowed: True  # type: ignore[assignment, method-assign]
        # Over-fetching as in a catalogue of millions: exact scans count as dear up to 60 results.
        overfetching = open_index(path / "scann", V5.model_version, 1)
        assert isinstance(overfetching, ScannIndex)
        steps = tuple(Point(count, 1, 2 * count, 1.0, 0.0, 1.0) for count in (1, 60))
        ladder = Ladder(steps, 1, ((1.0, 1e9), (float(ROWS), 1e9)))
        overfetching._tree = ExactTree(vectors)  # type: ignore[assignment]
        overfetching._setting, overfetching._prefers_exact = ladder.setting, ladder.prefers_exact  # type: ignore[assignment]
        yield Made(rows, vectors, {"brute_force": brute_force, "scanning": scanning, "overfetching": overfetching})


def matches(row: Candidate, asked: Restricts) -> bool:
    for space, tokens in asked.allow.items():
        if not tokens & set(row.allow.get(space, [])) or tokens & set(row.deny.get(space, [])):
            return False
    if any(tokens & set(row.allow.get(space, [])) for space, tokens in asked.deny.items()):
        return False
    return all(
        comparison.namespace in row.numbers
        and COMPARISONS[comparison.op](row.numbers[comparison.namespace], comparison.value)
        for comparison in asked.numeric
    )


def expected(
    rows: list[Candidate], vectors: np.ndarray, query: np.ndarray, k: int, asked: Restricts, exclude: set[str],
    limit: int | None,
) -> list[int]:  # fmt: skip
    scores = vectors.astype(np.float64) @ query.astype(np.float64)
    seen: Counter[str] = Counter()
    found: list[int] = []
    for row in sorted(range(ROWS), key=lambda one: (-scores[one], one)):
        if f"c{row}" in exclude or not matches(rows[row], asked):
            continue
        tag = rows[row].tag
        if tag is not None and limit is not None:
            if seen[tag] == limit:
                continue
            seen[tag] += 1
        found.append(row)
        if len(found) == k:
            break
    return found


SETS = st.dictionaries(st.sampled_from(SPACES), st.sets(st.sampled_from(TOKENS), min_size=1, max_size=3), max_size=2)
COMPARED = st.builds(
    Comparison,
    st.sampled_from(["price", "year", "weight"]),
    st.sampled_from(list(COMPARISONS)),
    st.sampled_from(NUMBERS),
)


@pytest.mark.parametrize("backend", ["brute_force", "scanning", "overfetching"])
@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    allow=SETS,
    deny=SETS,
    numeric=st.lists(COMPARED, max_size=2),
    k=st.integers(1, ROWS + 5),
    limit=st.none() | st.integers(1, 4),
    exclude=st.sets(st.integers(0, ROWS + 3), max_size=30),
    seeds=st.lists(st.integers(0, 1_000), min_size=1, max_size=3),
)
def test_any_filter_equals_the_reference(
    made: Made, backend: str, allow: dict, deny: dict, numeric: list, k: int, limit: int | None, exclude: set[int],
    seeds: list[int],
) -> None:  # fmt: skip
    rows, vectors, indexes = made.rows, made.vectors, made.indexes
    asked = Restricts(allow, deny, tuple(numeric))
    names = {f"c{row}" for row in exclude}
    queries = np.stack([np.random.default_rng(seed).standard_normal(DIM).astype(np.float32) for seed in seeds])
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    answers = indexes[backend].search_batch(
        VersionedEmbeddings(queries, V5.model_version), k, restricts=asked,
        exclude=[names if place % 2 == 0 else set() for place in range(len(seeds))], per_crowding_tag=limit,
    )  # fmt: skip
    for place, (query, answer) in enumerate(zip(queries, answers, strict=True)):
        wanted = expected(rows, vectors, query, k, asked, names if place % 2 == 0 else set(), limit)
        assert [int(one[1:]) for one in answer.ids] == wanted
        np.testing.assert_allclose(answer.scores, vectors[wanted] @ query, atol=1e-6)


def test_the_reference_finds_something_to_disagree_about(made: Made) -> None:
    rows = made.rows
    assert 0 < sum(matches(row, Restricts({"color": {"a"}})) for row in rows) < ROWS
    both = [row for row in rows if {"a", "b"} & set(row.allow["color"]) and "b" in row.deny["color"]]
    assert both
    assert not any(matches(row, Restricts({"color": {"a", "b"}})) for row in both)
    assert any(row.tag is None for row in rows)
    assert any(row.tag == "" for row in rows)
