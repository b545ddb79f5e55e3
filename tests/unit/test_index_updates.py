"""An index that changes, on both backends: what is visible, what survives, what is refused."""

from __future__ import annotations

import logging
import os
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from lockstep.config import IndexSection
from lockstep.embeddings import NUMERIC_RESTRICTS, RESTRICTS, VersionedEmbedding, VersionedEmbeddings
from lockstep.errors import (
    CorruptArtifactError,
    DataError,
    EmbeddingError,
    InputMismatchError,
    StorageError,
    VersionMismatchError,
)
from lockstep.tags import Kind
from lockstep.version import ModelVersion, ReleaseId
from serving import build_index
from serving.index import Comparison, Restricts
from serving.index.updates import UpdatableIndex
from serving.index.updates.generation import Generation
from tests.fakes.stub_releases import write_embeddings

V3 = ReleaseId(ModelVersion(3), 2)
DIM = 8
BACKENDS = pytest.mark.parametrize("backend", ["brute_force", "scann"])


def unit_rows(rows: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((rows, DIM)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def embeddings(vectors: np.ndarray, version: int = 3) -> VersionedEmbeddings:
    return VersionedEmbeddings(vectors.astype(np.float32), ModelVersion(version))


def batch(*ids: str | None, **columns: Any) -> pa.RecordBatch:
    types = {"restricts": RESTRICTS, "numeric_restricts": NUMERIC_RESTRICTS, "crowding_tag": pa.string()}
    arrays = {name: pa.array(values, types[name]) for name, values in columns.items()}
    return pa.RecordBatch.from_pydict({"id": pa.array(ids, pa.string()), **arrays})


def build(path: Path, vectors: np.ndarray, backend: str, name: str = "i") -> Path:
    ids = [f"c{row}" for row in range(len(vectors))]
    restricted = pa.array([[{"namespace": "kind", "allow": ["old"]}]] * len(ids), RESTRICTS)
    tags = pa.array(["even" if row % 2 == 0 else None for row in range(len(ids))], pa.string())
    write_embeddings(path / f"{name}-c", Kind.CANDIDATE_EMBEDDINGS, V3, ids, vectors, restricted=restricted, tags=tags)
    write_embeddings(path / f"{name}-q", Kind.QUERY_EMBEDDINGS, V3, [f"q{n}" for n in range(50)], unit_rows(50, 99))
    build_index.run(
        candidate_embeddings=path / f"{name}-c", query_embeddings=path / f"{name}-q", index=path / name,
        model_version=V3.model_version, run_id="r", section=IndexSection(backend=backend, k=10, target_recall=0.98),
    )  # fmt: skip
    return path / name


def opened(path: Path, *, automatic: bool = False, name: str = "i") -> UpdatableIndex:
    return UpdatableIndex(path / name, path / "changes", V3.model_version, 2, automatic=automatic)


def nearest(index: UpdatableIndex, vector: np.ndarray, k: int = 1, **asked: Any) -> tuple[str, ...]:
    return index.search(VersionedEmbedding(vector, ModelVersion(3)), k, **asked).ids


@BACKENDS
def test_upserts_and_removals_are_visible_and_survive_a_restart(tmp_path: Path, backend: str) -> None:
    vectors, new = unit_rows(300, 1), unit_rows(3, 2)
    build(tmp_path, vectors, backend)
    index = opened(tmp_path)
    index.upsert(embeddings(new[:2]), batch("n0", "c5"))
    index.remove(["c7", "stranger"])
    index.upsert(embeddings(new[2:]), batch("n2"))
    index.remove(["n2"])
    for _ in range(2):
        assert index.rows == 300
        assert (nearest(index, new[0]), nearest(index, new[1])) == (("n0",), ("c5",))
        assert ("c5" in index, "c7" in index, "n2" in index) == (True, False, False)
        everything = nearest(index, vectors[7], 1_000)
        assert sorted(everything) == sorted({f"c{row}" for row in range(300)} - {"c7"} | {"n0"})
        # The old vector of c5 is gone with its row.
        assert nearest(index, vectors[5])[0] != "c5"
        assert nearest(index, vectors[299]) == ("c299",)
        index.close()
        index = opened(tmp_path)
    assert index.changed == 6
    index.close()


@BACKENDS
def test_filters_numbers_and_crowding_know_what_changed(tmp_path: Path, backend: str) -> None:
    vectors = unit_rows(200, 1)
    build(tmp_path, vectors, backend)
    index = opened(tmp_path)
    new = unit_rows(4, 3)
    kinds = [[{"namespace": "kind", "allow": ["new"], "deny": ["eu"]}]] * 3 + [None]
    prices = [[{"namespace": "price", "value": float(n)}] for n in range(4)]
    index.upsert(
        embeddings(new),
        batch("n0", "n1", "n2", "c0", restricts=kinds, numeric_restricts=prices, crowding_tag=["t", "t", "even", "t"]),
    )
    index.remove(["n1"])

    def found(**asked: Any) -> set[str]:
        limit = asked.pop("per_crowding_tag", None)
        return set(nearest(index, new[0], 500, restricts=Restricts(**asked), per_crowding_tag=limit))

    assert found(allow={"kind": {"new"}}) == {"n0", "n2"}
    assert found(allow={"kind": {"old"}}) == {f"c{row}" for row in range(1, 200)}
    assert found(deny={"kind": {"old"}}) == {"n0", "n2", "c0"}
    assert found(numeric=(Comparison("price", "GREATER", 0.0),)) == {"n2", "c0"}
    crowded = found(per_crowding_tag=1)
    assert len(crowded & {"n0", "c0"}) == 1
    assert (
        len(
            {name for name in crowded if name == "n2" or (name[1:].isdigit() and int(name[1:]) % 2 == 0)} - {"n0", "c0"}
        )
        == 1
    )
    assert {f"c{row}" for row in range(1, 200, 2)} < crowded
    assert index.namespaces == ("kind", "price")
    index.close()


@BACKENDS
def test_a_rebuild_keeps_what_is_there_and_what_comes_meanwhile(
    tmp_path: Path, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(tmp_path, unit_rows(400, 1), backend)
    index = opened(tmp_path)
    new = unit_rows(40, 2)
    index.upsert(embeddings(new[:20]), batch(*(f"n{row}" for row in range(20)), crowding_tag=["z"] * 20))
    index.remove([f"c{row}" for row in range(100)])
    replay = Generation.replay
    monkeypatch.setattr(Generation, "replay", lambda self: (replay(self), index.upsert(embeddings(new[20:]), late))[0])
    late = batch(*(f"n{row}" for row in range(18, 38)))
    index.rebuild()
    monkeypatch.undo()
    for _ in range(2):
        assert (index.generation, index.rows, index.changed) == (1, 338, 20)
        assert nearest(index, new[20]) == ("n18",)
        assert nearest(index, new[0]) == ("n0",)
        assert nearest(index, new[39]) == ("n37",)
        assert "c99" not in index
        assert set(nearest(index, new[0], 500, restricts=Restricts({"kind": {"old"}}))) == {
            f"c{row}" for row in range(100, 400)
        }
        index.close()
        index = opened(tmp_path)
    names = {path.name for path in (tmp_path / "changes").iterdir()}
    assert names == {"lock", "current.json", "changes-1.log", "base-1"}
    index.close()


def test_it_is_built_anew_by_itself_after_enough_changes(tmp_path: Path) -> None:
    build(tmp_path, unit_rows(400, 1), "scann")
    index = opened(tmp_path, automatic=True)
    index.remove([f"c{row}" for row in range(19)])
    assert index._background is None
    index.remove(["c19"])
    assert index._background is not None
    index._background.join()
    # At 5 % it is looked at, and its recall holds; at 25 % it is built.
    assert (index.generation, index.recall() >= 0.98) == (0, True)
    index.remove([f"c{row}" for row in range(20, 100)])
    index._background.join()
    assert (index.generation, index.rows, index.failure) == (1, 300, None)
    index.close()


def test_it_is_built_anew_when_its_recall_falls(tmp_path: Path) -> None:
    build(tmp_path, unit_rows(2_000, 1), "scann")
    index = opened(tmp_path, automatic=True)
    tree = index._generation._tree
    assert tree is not None
    # As if the tree found less than it did.
    whole, tree.search = tree.search, lambda *asked: [rows[::2] for rows in whole(*asked)]  # type: ignore[method-assign]
    index._generation.index._prefers_exact = lambda *_: False  # type: ignore[attr-defined]
    monkey = index._generation.index._exact  # type: ignore[attr-defined]
    index._generation.index._exact = lambda *asked: [rows[:5] for rows in monkey(*asked)]  # type: ignore[attr-defined]
    assert index.recall() < 0.6
    index.remove([f"c{row}" for row in range(100)])
    assert index._background is not None
    index._background.join()
    assert (index.generation, index.recall() >= 0.98) == (1, True)
    index.close()


def test_a_rebuild_that_fails_leaves_the_index_as_it_is(tmp_path: Path) -> None:
    build(tmp_path, unit_rows(20, 1), "brute_force")
    index = opened(tmp_path, automatic=True)
    index.remove([f"c{row}" for row in range(20)])
    assert index._background is not None
    index._background.join()
    assert isinstance(index.failure, DataError)
    assert "no candidate any more" in str(index.failure)
    assert (index.generation, index.rows, nearest(index, unit_rows(1, 5)[0])) == (0, 0, ())
    index.upsert(embeddings(unit_rows(1, 5)), batch("back"))
    assert nearest(index, unit_rows(1, 5)[0]) == ("back",)
    index.close()


@BACKENDS
def test_searches_see_a_change_whole_or_not_at_all(tmp_path: Path, backend: str) -> None:
    vectors = unit_rows(300, 1)
    build(tmp_path, vectors, backend)
    index = opened(tmp_path)
    away, here = unit_rows(1, 7)[0], unit_rows(1, 8)[0]
    pair = np.tile(here, (40, 1)), np.tile(away, (40, 1))
    names = [f"m{row}" for row in range(40)]
    index.upsert(embeddings(pair[0]), batch(*names))
    seen: set[int] = set()
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            answer = index.search(VersionedEmbedding(here, ModelVersion(3)), 60)
            seen.add(
                sum(name[0] == "m" and score > 0.999 for name, score in zip(answer.ids, answer.scores, strict=True))
            )

    readers = [threading.Thread(target=ask) for _ in range(3)]
    for reader in readers:
        reader.start()
    for turn in range(30):
        index.upsert(embeddings(pair[(turn + 1) % 2]), batch(*names))
        if turn % 10 == 9:
            index.rebuild()
    stop.set()
    for reader in readers:
        reader.join()
    assert seen <= {0, 40}
    assert seen
    index.close()


@BACKENDS
def test_what_cannot_be_compared_is_refused_and_changes_nothing(tmp_path: Path, backend: str) -> None:
    build(tmp_path, unit_rows(50, 1), backend)
    index = opened(tmp_path)
    size = index._generation.log.size
    one = unit_rows(1, 2)
    nan, zero = one * np.nan, one * 0
    for refused, message in (
        (lambda: index.upsert(embeddings(one, 4), batch("x")), r"candidate embedding is of v4, but .* is of v3"),
        (lambda: index.search(VersionedEmbedding(one[0], ModelVersion(4)), 1), "query embedding is of v4"),
    ):
        with pytest.raises(VersionMismatchError, match=message):
            refused()
    for vectors, message in (
        (one[:, :5], r"shape \(1, 5\), and .* holds vectors of 8 floats"),
        (nan, r"not finite and of length 1, the first of length nan \(such as 'x'\)"),
        (zero, r"the first of length 0 \(such as 'x'\)"),
    ):
        with pytest.raises(EmbeddingError, match=message):
            index.upsert(embeddings(vectors), batch("x"))
        with pytest.raises(EmbeddingError):
            index.search_batch(embeddings(vectors), 1)
    for candidates, message in (
        (batch("x", "y"), "1 vectors for 2 candidates"),
        (batch(""), "1 of 1 changes have no candidate id"),
        (batch(None), "1 of 1 changes have no candidate id"),
        (pa.RecordBatch.from_pydict({"name": ["x"]}), "1 of 1 changes have no candidate id"),
        (pa.RecordBatch.from_pydict({"id": ["x"], "restricts": [3]}), "column 'restricts' of the change is no list"),
    ):
        with pytest.raises(DataError, match=message):
            index.upsert(embeddings(one), candidates)
    with pytest.raises(DataError, match=r"1 ids come twice in one change, 'x'"):
        index.upsert(embeddings(unit_rows(2, 2)), batch("x", "x"))
    assert (index.rows, index.changed, index._generation.log.size) == (50, 0, size)
    index.close()


def test_the_folder_belongs_to_one_process_and_one_index(tmp_path: Path) -> None:
    build(tmp_path, unit_rows(50, 1), "brute_force")
    build(tmp_path, unit_rows(50, 2), "brute_force", "other")
    index = opened(tmp_path)
    with pytest.raises(StorageError, match="held by another process"):
        opened(tmp_path)
    index.upsert(embeddings(unit_rows(1, 3)), batch("x"))
    index.close()
    with pytest.raises(
        VersionMismatchError, match=r"changes-0.log is of v3\.2 \(.*is of v3\.2 \(.*a folder of its own"
    ):
        opened(tmp_path, name="other")
    index = opened(tmp_path)
    index.rebuild()
    index.close()
    with pytest.raises(InputMismatchError, match="the index of"):
        opened(tmp_path, name="other")
    with pytest.raises(VersionMismatchError):
        UpdatableIndex(tmp_path / "i", tmp_path / "changes", ModelVersion(4), 2)
    opened(tmp_path).close()


def test_a_log_cut_anywhere_loses_only_the_record_that_was_being_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    build(tmp_path, unit_rows(30, 1), "brute_force")
    index = opened(tmp_path)
    new = unit_rows(2, 2)
    header = index._generation.log.size
    index.upsert(embeddings(new[:1]), batch("a"))
    first = index._generation.log.size
    index.upsert(embeddings(new[1:]), batch("b"))
    index.close()
    log = tmp_path / "changes" / "changes-0.log"
    whole = log.read_bytes()
    for cut in (
        0,
        3,
        header - 1,
        header,
        header + 5,
        first - 1,
        first,
        first + 7,
        first + 20,
        len(whole) - 1,
        len(whole),
    ):
        log.write_bytes(whole[:cut])
        with caplog.at_level(logging.WARNING):
            index = opened(tmp_path)
        assert ("a" in index, "b" in index) == (cut >= first, cut >= len(whole)), cut
        # What is written next stands after what is left.
        index.upsert(embeddings(unit_rows(1, 4)), batch("after"))
        index.close()
        index = opened(tmp_path)
        assert ("a" in index, "after" in index) == (cut >= first, True)
        index.close()
    assert "the last record was cut off" in caplog.text
    place = header + 30
    log.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    with pytest.raises(CorruptArtifactError, match=rf"a broken record at byte {header}"):
        opened(tmp_path)


def test_a_change_that_cannot_be_written_whole_is_refused_and_leaves_no_trace(tmp_path: Path) -> None:
    build(tmp_path, unit_rows(30, 1), "brute_force")
    index = opened(tmp_path)
    new = unit_rows(3, 2)
    index.upsert(embeddings(new[:1]), batch("before"))
    size = index._generation.log.size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 200, hard))
        with pytest.raises(StorageError, match=r"cannot be written .* the change was not made: make room"):
            index.upsert(embeddings(new[1:2]), batch("lost"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    assert "lost" not in index
    assert (tmp_path / "changes" / "changes-0.log").stat().st_size == size
    index.upsert(embeddings(new[2:]), batch("after"))
    index.close()
    index = opened(tmp_path)
    assert ("before" in index, "lost" in index, "after" in index) == (True, False, True)
    index.close()


def test_a_closed_index_changes_nothing_of_the_next_one(tmp_path: Path) -> None:
    build(tmp_path, unit_rows(30, 1), "brute_force")
    first = opened(tmp_path)
    first.close()
    first.close()
    second = opened(tmp_path)
    second.upsert(embeddings(unit_rows(1, 2)), batch("kept"))
    second.rebuild()
    for change in (
        first.rebuild,
        lambda: first.upsert(embeddings(unit_rows(1, 3)), batch("x")),
        lambda: first.remove(["c1"]),
    ):
        with pytest.raises(StorageError, match="is closed: open it again to change it"):
            change()
    second.close()
    second = opened(tmp_path)
    assert ("kept" in second, "c1" in second, second.generation) == (True, True, 1)
    second.close()


def test_another_digest_than_the_releases_is_refused_in_every_generation(tmp_path: Path) -> None:
    build(tmp_path, unit_rows(30, 1), "brute_force")
    index = opened(tmp_path)
    index.rebuild()
    index.close()
    with pytest.raises(CorruptArtifactError, match="release"):
        UpdatableIndex(tmp_path / "i", tmp_path / "changes", V3.model_version, 2, digest="0" * 64)


def test_too_few_rows_for_a_tree_are_searched_exactly(tmp_path: Path) -> None:
    build(tmp_path, unit_rows(40, 1), "scann")
    index = opened(tmp_path)
    assert not index.is_exact
    index.remove([f"c{row}" for row in range(30)])
    index.rebuild()
    assert (index.is_exact, index.rows) == (True, 10)
    index.close()


@pytest.mark.parametrize(
    ("text", "message"), [("[]", "unreadable text"), ("{}", "unreadable text"), ("x", "unreadable text")]
)
def test_a_broken_current_json_is_a_sentence(tmp_path: Path, text: str, message: str) -> None:
    build(tmp_path, unit_rows(10, 1), "brute_force")
    opened(tmp_path).close()
    (tmp_path / "changes" / "current.json").write_text(text)
    with pytest.raises(CorruptArtifactError, match=message):
        opened(tmp_path)


def test_ids_that_are_no_ids_are_refused(tmp_path: Path) -> None:
    build(tmp_path, unit_rows(10, 1), "brute_force")
    index = opened(tmp_path)
    for ids, message in (("c1", "'c1' is one text"), ([1], "are no texts"), (["\ud800"], "are no texts")):
        with pytest.raises(DataError, match=message):
            index.remove(ids)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="a Table: give an Arrow record batch"):
        index.upsert(embeddings(unit_rows(1, 2)), pa.table({"id": ["x"]}))  # type: ignore[arg-type]
    assert index.rows == 10
    index.close()


WRITER = """
import sys
from pathlib import Path
from tests.unit.test_index_updates import batch, embeddings, opened, unit_rows
index = opened(Path(sys.argv[1]))
for turn in range(1_000_000):
    index.upsert(embeddings(unit_rows(20, 1_000 + turn)), batch(*(f"k{turn}-{row}" for row in range(20))))
    print(turn, flush=True)
    if turn % 4 == 3:
        index.remove([f"k{turn}-0", f"k{turn - 2}-1"])
        print(f"removed {turn}", flush=True)
    if turn % 9 == 8:
        index.rebuild()
"""


@BACKENDS
@pytest.mark.parametrize("lines", [1, 9, 24])
def test_killed_while_it_changes_it_has_lost_nothing_that_was_answered_for(
    tmp_path: Path, backend: str, lines: int
) -> None:
    build(tmp_path, unit_rows(60, 1), backend)
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert writer.stdout is not None
    said = [writer.stdout.readline().strip() for _ in range(lines)]
    writer.send_signal(signal.SIGKILL)
    said += [line.strip() for line in writer.stdout if line.endswith("\n")]
    writer.wait()
    index = opened(tmp_path)
    turns = [int(one) for one in said if one.isdigit()]
    removed = {
        name
        for turn in (int(one.split()[1]) for one in said if not one.isdigit())
        for name in (f"k{turn}-0", f"k{turn - 2}-1")
    }
    last = turns[-1]
    # What was going on when it was killed may have happened or not.
    unsure = {f"k{last}-0", f"k{last - 2}-1"} - removed if last % 4 == 3 else set()
    for turn in turns:
        vectors = unit_rows(20, 1_000 + turn)
        for row in range(20):
            name = f"k{turn}-{row}"
            if name not in unsure:
                assert (name in index) == (name not in removed)
        assert nearest(index, vectors[7]) == (f"k{turn}-7",)
    ours = {name for name in nearest(index, unit_rows(1, 0)[0], 10_000) if name[0] == "k"}
    later = {f"k{last + 1}-{row}" for row in range(20)}
    assert (ours & later) in (set(), later)
    assert len(ours - later - unsure) == 20 * len(turns) - len(removed | unsure)
    index.close()
