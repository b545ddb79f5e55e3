from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from lockstep.config import IndexSection
from lockstep.embeddings import RESTRICTS, VersionedEmbedding, VersionedEmbeddings
from lockstep.errors import (
    CorruptArtifactError,
    DataError,
    EmbeddingError,
    InputMismatchError,
    RequestError,
    VersionMismatchError,
    WrongKindError,
)
from lockstep.tags import Kind, write_tag
from lockstep.version import ModelVersion, ReleaseId
from serving import build_index
from serving.index import Comparison, Index, Restricts, open_index
from serving.index.scann import ScannTree
from tests.fakes.stub_releases import write_embeddings

V3 = ReleaseId(ModelVersion(3), 2)


def unit_rows(rows: int, dim: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((rows, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def make_index(
    tmp_path: Path,
    vectors: np.ndarray,
    tokens: list[dict[str, list[str]] | None] | None = None,
    section: IndexSection | None = None,
) -> Index:
    ids = [f"c{row}" for row in range(len(vectors))]
    restricted = None
    if tokens is not None:
        values = [t and [{"namespace": n, "allow": a} for n, a in t.items()] for t in tokens]
        restricted = pa.array(values, RESTRICTS)
    write_embeddings(tmp_path / "e", Kind.CANDIDATE_EMBEDDINGS, V3, ids, vectors, restricted=restricted)
    write_queries(tmp_path / "q", vectors.shape[1])
    build_index.run(
        candidate_embeddings=tmp_path / "e", query_embeddings=tmp_path / "q", index=tmp_path / "i",
        model_version=V3.model_version, run_id="r", section=section or IndexSection(),
    )  # fmt: skip
    return open_index(tmp_path / "i", V3.model_version, 2)


def write_queries(path: Path, dim: int) -> None:
    write_embeddings(path, Kind.QUERY_EMBEDDINGS, V3, [f"q{row}" for row in range(200)], unit_rows(200, dim, 99))


def of_version(vector: np.ndarray, version: int = 3) -> VersionedEmbedding:
    return VersionedEmbedding(vector, ModelVersion(version))


def test_nearest_by_hand(tmp_path: Path) -> None:
    index = make_index(tmp_path, np.array([[1, 0], [0, 1], [0.6, 0.8], [-1, 0]], np.float32))
    found = index.search(of_version(np.array([0.8, 0.6])), 3)
    # 0.8*0.6 + 0.6*0.8 = 0.96; 0.8; 0.6
    assert found.ids == ("c2", "c0", "c1")
    assert found.scores.tolist() == pytest.approx([0.96, 0.8, 0.6])
    assert (index.model_version, index.snapshot, index.rows, index.dim, index.is_exact) == (3, 2, 4, 2, True)


def test_query_of_another_version_is_refused_and_both_are_named(tmp_path: Path) -> None:
    index = make_index(tmp_path, unit_rows(4, 2, 0))
    for version in (2, 4):
        with pytest.raises(VersionMismatchError, match=rf"query embedding is of v{version}.*index in .* is of v3"):
            index.search(of_version(np.array([1.0, 0.0]), version), 1)
        with pytest.raises(VersionMismatchError):
            index.search_batch(VersionedEmbeddings(unit_rows(2, 2, 1), ModelVersion(version)), 1)


def test_no_public_method_takes_a_bare_vector(tmp_path: Path) -> None:
    index = make_index(tmp_path, unit_rows(4, 2, 0))
    with pytest.raises(AttributeError):
        index.search(np.array([1.0, 0.0], np.float32), 1)  # type: ignore[arg-type]
    methods = {name for name in dir(Index) if not name.startswith("_") and callable(getattr(Index, name))}
    assert methods == {"search", "search_batch"}


def test_equal_scores_keep_the_order_of_the_file_and_the_batch_equals_single_searches(tmp_path: Path) -> None:
    vectors = np.repeat(unit_rows(100, 24, 1), 7, axis=0)
    index = make_index(tmp_path, vectors)
    queries = VersionedEmbeddings(unit_rows(33, 24, 2), ModelVersion(3))
    batch = index.search_batch(queries, 25)
    for row, answer in enumerate(batch):
        single = index.search(queries[row], 25)
        assert single.ids == answer.ids
        assert single.scores.tolist() == answer.scores.tolist()
        rows = [int(one[1:]) for one in answer.ids]
        for group in range(0, 21, 7):
            assert rows[group : group + 7] == list(range(rows[group], rows[group] + 7))


def test_exact_against_a_sort_in_double_precision(tmp_path: Path) -> None:
    vectors = unit_rows(3_000, 32, 3)
    index = make_index(tmp_path, vectors)
    for query in unit_rows(20, 32, 4):
        expected = np.argsort(-(vectors.astype(np.float64) @ query.astype(np.float64)), kind="stable")[:50]
        assert index.search(of_version(query), 50).ids == tuple(f"c{row}" for row in expected)


TOKENS: list[dict[str, list[str]] | None] = [
    {"genre": ["jazz"], "year": ["60s"]},
    {"genre": ["jazz", "rock", "jazz"], "year": ["70s"]},
    {"genre": ["rock"]},
    None,
    {"year": ["60s"]},
]


@pytest.mark.parametrize(
    ("asked", "rows"),
    [
        ({"genre": {"jazz"}}, {0, 1}),
        ({"genre": {"jazz", "rock"}}, {0, 1, 2}),
        ({"genre": {"jazz", "rock"}, "year": {"60s"}}, {0}),
        ({"genre": {"rock"}, "year": {"60s", "70s"}}, {1}),
        ({"year": {"60s", "80s"}}, {0, 4}),
        ({"genre": {"folk"}}, set()),
        ({"mood": {"sad"}}, set()),
        ({"mood": {"sad"}, "genre": {"jazz"}}, set()),
        ({}, {0, 1, 2, 3, 4}),
    ],
)
def test_restricts_are_and_over_namespaces_and_or_within(tmp_path: Path, asked: dict, rows: set[int]) -> None:
    index = make_index(tmp_path, unit_rows(5, 4, 0), TOKENS)
    found = index.search(of_version(unit_rows(1, 4, 9)[0]), 10, restricts=Restricts(asked))
    assert set(found.ids) == {f"c{row}" for row in rows}
    assert index.namespaces == ("genre", "year")


def test_exclusion_does_not_cost_results(tmp_path: Path) -> None:
    index = make_index(tmp_path, unit_rows(20, 4, 0))
    query = of_version(unit_rows(1, 4, 9)[0])
    everything = index.search(query, 20).ids
    assert index.search(query, 5, exclude={everything[0], everything[3], "stranger"}).ids == (
        everything[1], everything[2], everything[4], everything[5], everything[6],
    )  # fmt: skip
    assert index.search(query, 5, exclude=everything[:18]).ids == everything[18:]
    batch = index.search_batch(VersionedEmbeddings(query.vector[None], ModelVersion(3)), 1, exclude=[everything[:1]])
    assert batch[0].ids == everything[1:2]


def test_what_was_asked_for_is_copied(tmp_path: Path) -> None:
    index = make_index(tmp_path, unit_rows(5, 4, 0), TOKENS)
    tokens = {"jazz"}
    asked = Restricts({"genre": tokens})
    tokens.add("rock")
    assert set(index.search(of_version(unit_rows(1, 4, 9)[0]), 10, restricts=asked).ids) == {"c0", "c1"}


@pytest.mark.parametrize("value", [np.float32(2.5), np.int64(2), 2])
def test_numbers_of_any_kind_are_compared(value: float) -> None:
    assert Comparison("n", "LESS", value).holds(np.array([1.0, 3.0, np.nan])).tolist() == [True, False, False]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 10**400, "2", True, None])
def test_what_is_no_number_is_not_compared(value: object) -> None:
    with pytest.raises(RequestError, match="give a finite number"):
        Comparison("n", "LESS", value)  # type: ignore[arg-type]


def test_k_and_dimension_are_checked(tmp_path: Path) -> None:
    index = make_index(tmp_path, unit_rows(5, 4, 0))
    with pytest.raises(RequestError, match="k is 0"):
        index.search(of_version(unit_rows(1, 4, 0)[0]), 0)
    with pytest.raises(RequestError, match=r"k is 2\.5"):
        index.search(of_version(unit_rows(1, 4, 0)[0]), 2.5)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="exclude is one text"):
        index.search(of_version(unit_rows(1, 4, 0)[0]), 2, exclude="c1")
    with pytest.raises(EmbeddingError, match=r"shape \(1, 5\), and .* holds vectors of 4 floats"):
        index.search(of_version(unit_rows(1, 5, 0)[0]), 1)
    assert len(index.search(of_version(unit_rows(1, 4, 0)[0]), 99)) == 5
    assert index.search_batch(VersionedEmbeddings(np.empty((0, 4), np.float32), ModelVersion(3)), 1) == []


@pytest.mark.parametrize("backend", ["brute_force", "scann"])
def test_open_checks_version_snapshot_kind_digest_and_bytes(tmp_path: Path, backend: str) -> None:
    index = make_index(tmp_path, unit_rows(300, 8, 0), section=IndexSection(backend=backend))
    assert index.is_exact == (backend == "brute_force")
    with pytest.raises(VersionMismatchError, match=r"v3.*v4"):
        open_index(tmp_path / "i", ModelVersion(4), 2)
    with pytest.raises(VersionMismatchError, match=r"v3\.2.*v3\.1"):
        open_index(tmp_path / "i", ModelVersion(3), 1)
    with pytest.raises(WrongKindError):
        open_index(tmp_path / "e", ModelVersion(3), 2)
    with pytest.raises(CorruptArtifactError, match="release"):
        open_index(tmp_path / "i", ModelVersion(3), 2, digest="0" * 64)
    files = sorted(path for path in (tmp_path / "i").rglob("*") if path.is_file() and path.name != "tag.json")
    assert len(files) >= 6
    for path in files:
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(CorruptArtifactError, match=path.name):
            open_index(tmp_path / "i", ModelVersion(3), 2)
        path.write_bytes(whole)
    open_index(tmp_path / "i", ModelVersion(3), 2)


def test_description_of_another_version_than_the_tag_is_refused(tmp_path: Path) -> None:
    make_index(tmp_path, unit_rows(5, 4, 0))
    path = tmp_path / "i" / "index.json"
    path.write_text(path.read_text().replace('"model_version": 3', '"model_version": 9'))
    (tmp_path / "i" / "tag.json").unlink()
    write_tag(tmp_path / "i", Kind.INDEX, run="r", schema="s", rows=5, model_version=ModelVersion(3), snapshot=2)
    with pytest.raises(VersionMismatchError, match=r"index.json is of v9.2.*v3.2"):
        open_index(tmp_path / "i", ModelVersion(3), 2)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0, 2.0])
def test_bad_vectors_are_refused(tmp_path: Path, value: float) -> None:
    vectors = unit_rows(6, 4, 0)
    vectors[4] = value
    with pytest.raises(EmbeddingError, match=r"candidate embeddings of v3 .* 1 of 6 vectors .* 'c4'"):
        make_index(tmp_path, vectors)
    assert not (tmp_path / "i" / "tag.json").exists()


def test_duplicates_and_no_candidates_are_refused(tmp_path: Path) -> None:
    write_embeddings(tmp_path / "e", Kind.CANDIDATE_EMBEDDINGS, V3, ["a", "b", "a"], unit_rows(3, 4, 0))
    write_queries(tmp_path / "q", 4)
    common = {
        "model_version": V3.model_version, "run_id": "r", "section": IndexSection(), "query_embeddings": tmp_path / "q",
    }  # fmt: skip
    with pytest.raises(DataError, match=r"1 ids come twice, 'a'"):
        build_index.run(candidate_embeddings=tmp_path / "e", index=tmp_path / "i", **common)
    write_embeddings(tmp_path / "none", Kind.CANDIDATE_EMBEDDINGS, V3, [], np.empty((0, 4), np.float32))
    with pytest.raises(DataError, match="no candidates"):
        build_index.run(candidate_embeddings=tmp_path / "none", index=tmp_path / "i", **common)
    with pytest.raises(VersionMismatchError):
        build_index.run(
            candidate_embeddings=tmp_path / "e", index=tmp_path / "i",
            **{**common, "model_version": ModelVersion(4)},
        )  # fmt: skip


def test_queries_of_another_release_do_not_tune_an_index(tmp_path: Path) -> None:
    write_embeddings(tmp_path / "e", Kind.CANDIDATE_EMBEDDINGS, V3, ["a"], unit_rows(1, 4, 0))
    common = {"candidate_embeddings": tmp_path / "e", "index": tmp_path / "i", "run_id": "r", "section": IndexSection()}
    for release, error, message in (
        (ReleaseId(ModelVersion(3), 1), InputMismatchError, r"the snapshot of .*/e is 2, but of .*/v3.1 it is 1"),
        (ReleaseId(ModelVersion(4), 2), VersionMismatchError, "v4"),
    ):
        path = tmp_path / str(release)
        write_embeddings(path, Kind.QUERY_EMBEDDINGS, release, ["q"], unit_rows(1, 4, 1))
        with pytest.raises(error, match=message):
            build_index.run(query_embeddings=path, model_version=V3.model_version, **common)
    write_embeddings(tmp_path / "wide", Kind.QUERY_EMBEDDINGS, V3, ["q"], unit_rows(1, 5, 1))
    with pytest.raises(EmbeddingError, match=r"shape \(1, 5\), and .* holds vectors of 4 floats"):
        build_index.run(query_embeddings=tmp_path / "wide", model_version=V3.model_version, **common)


def test_a_tree_without_queries_to_tune_it_is_refused(tmp_path: Path) -> None:
    ids = [f"c{row}" for row in range(40)]
    write_embeddings(tmp_path / "e", Kind.CANDIDATE_EMBEDDINGS, V3, ids, unit_rows(40, 4, 0))
    write_embeddings(tmp_path / "q", Kind.QUERY_EMBEDDINGS, V3, [], np.empty((0, 4), np.float32))
    common = {
        "candidate_embeddings": tmp_path / "e", "query_embeddings": tmp_path / "q", "index": tmp_path / "i",
        "model_version": V3.model_version, "run_id": "r",
    }  # fmt: skip
    with pytest.raises(DataError, match="no query embeddings, and the index of 40 candidates is tuned on some"):
        build_index.run(**common, section=IndexSection(backend="scann"))
    build_index.run(**common, section=IndexSection())
    assert open_index(tmp_path / "i", V3.model_version, 2).is_exact


def test_a_small_catalogue_is_searched_exactly(tmp_path: Path) -> None:
    index = make_index(tmp_path, unit_rows(20_000, 4, 0))
    assert index.is_exact
    assert not (tmp_path / "i" / "frontier.json").exists()


def test_scann_agrees_with_exact_search_and_survives_a_move(tmp_path: Path) -> None:
    vectors = unit_rows(8_000, 16, 5)
    draw = np.random.default_rng(0).integers(0, 100, len(vectors)).tolist()
    tokens: list = [
        {"p": ["most"] * (d < 90) + ["few"] * (d < 3) + ["one"] * (row == 17)} for row, d in enumerate(draw)
    ]
    scann = make_index(tmp_path, vectors, tokens, IndexSection(backend="scann", threads=1, target_recall=0.97))
    (tmp_path / "i").rename(tmp_path / "moved")
    scann = open_index(tmp_path / "moved", ModelVersion(3), 2)
    queries = VersionedEmbeddings(unit_rows(40, 16, 6), ModelVersion(3))
    scores = queries.vectors.astype(np.float64) @ vectors.astype(np.float64).T

    def recall(k: int, token: str | None) -> float:
        keep = np.array([token is None or token in t["p"] for t in tokens])
        answers = scann.search_batch(queries, k, restricts=Restricts({"p": {token}}) if token else None)
        shares = []
        for row, answer in enumerate(answers):
            expected = np.argsort(-np.where(keep, scores[row], -9), kind="stable")[: min(k, keep.sum())]
            found = [int(one[1:]) for one in answer.ids]
            assert len(found) == len(set(found)) == len(expected)
            assert keep[found].all()
            np.testing.assert_allclose(answer.scores, scores[row, found], atol=1e-6)
            assert (np.diff(answer.scores) <= 0).all()
            shares.append(len(set(found) & set(expected)) / len(expected))
        return float(np.mean(shares))

    assert recall(10, None) >= 0.96
    assert recall(100, None) >= 0.96
    assert recall(100, "most") >= 0.96
    assert recall(100, "few") == 1.0
    assert recall(5, "one") == 1.0
    assert recall(8_000, None) == 1.0
    single = scann.search(queries[3], 10)
    assert single.ids == scann.search_batch(queries, 10)[3].ids
    frontier = json.loads((tmp_path / "moved" / "frontier.json").read_bytes())
    assert frontier["chosen"]["recall"] >= 0.97
    assert frontier["chosen"] in frontier["points"]
    with pytest.raises(VersionMismatchError):
        scann.search(of_version(vectors[0], 2), 1)


def test_a_pickle_in_an_index_is_not_loaded(tmp_path: Path) -> None:
    made = make_index(tmp_path, unit_rows(50, 4, 0), section=IndexSection(backend="scann", threads=1))
    folder, marker = tmp_path / "i" / "scann", tmp_path / "ran"

    class RunsCode:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (marker,)

    (folder / "scann_docids.pkl").write_bytes(pickle.dumps(RunsCode()))
    with pytest.raises(CorruptArtifactError, match=r"found the pickle scann_docids.pkl, expected none"):
        ScannTree.load(folder, 1, made.rows)
    assert not marker.exists()
    (folder / "scann_docids.pkl").unlink()
    with pytest.raises(CorruptArtifactError, match="found a searcher over 50 rows, expected 51 rows"):
        ScannTree.load(folder, 1, 51)
