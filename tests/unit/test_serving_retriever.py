from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from lockstep.embeddings import VersionedEmbedding, VersionedEmbeddings
from lockstep.errors import RequestError, VersionMismatchError
from lockstep.registry import SERVING
from lockstep.tags import Kind
from lockstep.version import ModelVersion, ReleaseId
from serving.index import Restricts, open_index
from serving.kv.embedded import EmbeddedStore
from serving.retriever import Answer, Request, Retriever, pair
from tests.fakes.stub_releases import StubRoot, candidate_id, query_vector, tower_tag

V11, V12, V21 = (ReleaseId(ModelVersion(v), s) for v, s in ((1, 1), (1, 2), (2, 1)))


@pytest.fixture
def root(tmp_path: Path) -> StubRoot:
    """Two versions are published; carol is known to v1 only."""
    root = StubRoot(tmp_path / "root")
    root.mint()
    root.mint()
    root.build_and_publish(V11, ["alice", "carol"])
    root.build_and_publish(V21, ["alice", "bob"])
    return root


def ask(root: StubRoot, **request: object) -> Answer:
    """What a fresh process answers."""
    retriever = Retriever(root.storage)
    try:
        return retriever.answer(Request(**{"entity": "alice", "k": 3, **request}))  # type: ignore[arg-type]
    finally:
        retriever.close()


def test_live_answers_without_reasons(root: StubRoot) -> None:
    answer = ask(root)
    assert (answer.release, answer.rung, answer.degraded, answer.reasons) == ("v2.1", "kv v2", False, ())
    assert [candidate for candidate, _ in answer.candidates] == [candidate_id(V21, row) for row in range(3)]
    # Candidates lie 0, 60/7 and 120/7 degrees from the query.
    expected = np.cos(np.radians([0, 60 / 7, 120 / 7]))
    assert [score for _, score in answer.candidates] == pytest.approx(expected.tolist(), abs=1e-6)


@pytest.mark.parametrize("how", ["removed", "corrupt"])
def test_without_the_newest_index_the_older_version_answers_and_says_why(root: StubRoot, how: str) -> None:
    if how == "removed":
        shutil.rmtree(root.folder(V21, Kind.INDEX))
        reason = f"v2.1: {root.folder(V21, Kind.INDEX)} is no finished artifact: there is no such folder"
    else:
        root.corrupt(V21, Kind.INDEX, "vectors.npy")
        reason = f"v2.1: {root.folder(V21, Kind.INDEX)}/vectors.npy is corrupt: found sha256"
    answer = ask(root)
    assert (answer.release, answer.rung, answer.degraded) == ("v1.1", "kv v1", False)
    assert [candidate for candidate, _ in answer.candidates] == [candidate_id(V11, row) for row in range(3)]
    assert len(answer.reasons) == 1
    assert answer.reasons[0].startswith(reason)

    root.corrupt(V11, Kind.INDEX, "candidates.arrow", 5)
    answer = ask(root)
    assert (answer.release, answer.rung, answer.degraded) == ("v2.1", "popular", True)
    assert answer.candidates == tuple((candidate_id(V21, row), float(8 - row)) for row in range(3))
    assert len(answer.reasons) == 2
    assert answer.reasons[1].startswith("v1.1: ")


def test_an_entity_that_the_new_version_does_not_know_is_answered_by_the_old(root: StubRoot) -> None:
    answer = ask(root, entity="carol")
    assert (answer.release, answer.rung, answer.degraded) == ("v1.1", "kv v1", False)
    assert answer.reasons == ("v2.1: the key-value store has no v2 embedding of 'carol'",)


def test_an_entity_that_nobody_knows_gets_the_fallback(root: StubRoot) -> None:
    answer = ask(root, entity="dave")
    assert (answer.rung, answer.degraded, len(answer.reasons)) == ("popular", True, 2)
    answer = ask(root, entity="dave", restricts=Restricts({"genre": {"rock"}}), exclude={candidate_id(V21, 1)})
    assert (answer.release, answer.rung, answer.degraded) == ("v2.1", "popular within restrict", True)
    assert [candidate for candidate, _ in answer.candidates] == [candidate_id(V21, row) for row in (3, 5, 7)]
    # A fallback never leaves the restrict, even if it then has nothing to offer.
    answer = ask(root, entity="dave", restricts=Restricts({"genre": {"folk"}}))
    assert (answer.candidates, answer.rung, answer.degraded) == ((), "popular within restrict", True)


def test_fallback_lists_may_break_too(root: StubRoot) -> None:
    root.corrupt(V21, Kind.ENTITIES, "popular.parquet")
    answer = ask(root, entity="dave")
    assert (answer.release, answer.rung) == ("v1.1", "popular")
    assert "popular.parquet is corrupt" in answer.reasons[2]
    (root.folder(V11, Kind.ENTITIES) / "popular.parquet").unlink()
    answer = ask(root, entity="dave")
    assert (answer.candidates, answer.release, answer.rung, answer.degraded) == ((), None, "none", True)
    assert len(answer.reasons) == 4


def test_restricts_exclusions_and_unknown_namespaces(root: StubRoot) -> None:
    answer = ask(root, restricts=Restricts({"genre": {"rock"}}), exclude={candidate_id(V21, 1)})
    assert [candidate for candidate, _ in answer.candidates] == [candidate_id(V21, row) for row in (3, 5, 7)]
    answer = ask(root, restricts=Restricts({"gender": {"rock"}}))
    assert (answer.candidates, answer.degraded) == ((), False)
    assert answer.reasons == ("v2.1: no candidate has a token or number in namespace 'gender'; namespaces: genre",)


def test_a_rollback_holds(root: StubRoot) -> None:
    root.registry.rollback(V11, by="test", why="test")
    assert (ask(root).release, ask(root).reasons) == ("v1.1", ())
    shutil.rmtree(root.folder(V11, Kind.INDEX))
    assert (ask(root).release, ask(root).rung) == ("v1.1", "popular")


def test_a_refresh_answers_from_the_new_snapshot_and_falls_back_to_the_old(tmp_path: Path) -> None:
    root = StubRoot(tmp_path)
    root.mint()
    root.build_and_publish(V11)
    root.build_and_publish(V12)
    assert (ask(root).release, ask(root).rung) == ("v1.2", "kv v1")
    shutil.rmtree(root.folder(V12, Kind.INDEX))
    answer = ask(root)
    assert (answer.release, answer.rung, answer.degraded) == ("v1.1", "kv v1", False)
    assert answer.candidates[0][0] == candidate_id(V11, 0)


def test_without_embeddings_of_live_the_older_version_answers(root: StubRoot) -> None:
    with EmbeddedStore(root.path / "kv" / "embedded", keep=5) as store:
        store.retire(ModelVersion(2))
    assert (ask(root).release, ask(root).rung) == ("v1.1", "kv v1")
    shutil.rmtree(root.path / "kv")
    answer = ask(root)
    assert answer.rung == "popular"
    assert "no key-value store" in answer.reasons[0]


def test_nothing_published_and_a_broken_registry(tmp_path: Path) -> None:
    root = StubRoot(tmp_path)
    answer = ask(root)
    assert (answer.candidates, answer.rung, answer.degraded) == ((), "none", True)
    assert "nothing is published" in answer.reasons[0]
    root.mint()
    root.build_and_publish(V11)
    retriever = Retriever(root.storage, refresh_seconds=0)
    assert retriever.answer(Request("alice")).reasons == ()
    (tmp_path / SERVING).write_text("{}")
    answer = retriever.answer(Request("alice"))
    assert (answer.release, answer.rung) == ("v1.1", "kv v1")
    assert "the registry cannot be read" in answer.reasons[0]
    assert ask(root).rung == "none"


def test_a_running_server_follows_the_registry_and_opens_each_part_once(root: StubRoot) -> None:
    now = [0.0]
    retriever = Retriever(root.storage, refresh_seconds=5, retry_seconds=30, clock=lambda: now[0])
    first = retriever.view()
    assert retriever.answer(Request("alice")).release == "v2.1"
    index = first.releases[0].index.get()
    root.registry.rollback(V11, by="test", why="test")
    assert retriever.answer(Request("alice")).release == "v2.1"
    now[0] = 5.0
    assert retriever.answer(Request("alice")).release == "v1.1"
    root.registry.rollback(V21, by="test", why="test")
    now[0] = 10.0
    assert retriever.answer(Request("alice")).release == "v2.1"
    assert retriever.view().releases[1].index.get() is not index


def test_a_failed_open_is_tried_again_later(root: StubRoot) -> None:
    now = [0.0]
    retriever = Retriever(root.storage, refresh_seconds=0, retry_seconds=30, clock=lambda: now[0])
    index, aside = root.folder(V21, Kind.INDEX), root.path / "aside"
    index.rename(aside)
    assert retriever.answer(Request("alice")).release == "v1.1"
    aside.rename(index)
    now[0] = 29.0
    assert retriever.answer(Request("alice")).release == "v1.1"
    now[0] = 30.0
    assert retriever.answer(Request("alice")).release == "v2.1"
    # A change of the registry does not wait.
    index.rename(aside)
    other = Retriever(root.storage, refresh_seconds=0, retry_seconds=30, clock=lambda: now[0])
    assert other.answer(Request("alice")).release == "v1.1"
    aside.rename(index)
    root.registry.rollback(V21, by="test", why="test")
    assert other.answer(Request("alice")).release == "v2.1"


def test_pairs_are_of_one_version(root: StubRoot) -> None:
    index = open_index(root.folder(V21, Kind.INDEX), ModelVersion(2), 1)
    one, two = (VersionedEmbedding(query_vector(v), ModelVersion(v)) for v in (1, 2))
    assert pair(V21, two, index, "kv v2").index is index
    with pytest.raises(VersionMismatchError, match=r"query embedding from kv v2 is of v1.*v2.1 is of v2"):
        pair(V21, one, index, "kv v2")
    with pytest.raises(VersionMismatchError, match=r"the index is of v2.*v1.1 is of v1"):
        pair(V11, one, index, "kv v1")
    with pytest.raises(VersionMismatchError):
        pair(V11, two, index, "kv v1")


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"entity": None}, "names an entity, or gives features"),
        ({"entity": ""}, "has 0 bytes"),
        ({"entity": "x" * 257}, "has 257 bytes"),
        ({"k": 0}, "k is 0"),
        ({"k": 10_001}, "k is 10001"),
        ({"restricts": {"genre": {"jazz"}}}, "give Restricts"),
        ({"per_crowding_tag": 0}, "per_crowding_tag is 0"),
        ({"exclude": "c1"}, "give a set of candidate ids"),
    ],
)
def test_malformed_requests(request_: dict, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        Request(**{"entity": "alice", **request_})


class StubTower:
    """Embeds anything as the version's query vector; stamps `stamped`."""

    def __init__(self, schema: object, stamped: int) -> None:
        self.schema = schema
        self.stamped = stamped

    def embed(self, features: pa.StructArray) -> list[VersionedEmbedding]:
        assert features.to_pylist() == [{"x": 0.5}]
        return [VersionedEmbedding(query_vector(self.stamped), ModelVersion(self.stamped))]


class TestFeatures:
    def ask(self, root: StubRoot, stamps: dict[str, int], **request: object) -> Answer:
        from lockstep.schema import Schema

        schema = Schema.model_validate({"query": {"x": {"type": "numeric"}}, "candidate": {"y": {"type": "numeric"}}})
        retriever = Retriever(root.storage)
        view = retriever.view()
        for handles in view.releases:
            stamped = stamps.get(str(handles.id))
            if stamped is not None:
                handles.query_tower._open = lambda stamped=stamped: StubTower(schema, stamped)  # type: ignore[assignment]
        try:
            return retriever.answer_from(view, Request(**{"features": {"x": 0.5}, "k": 2, **request}))  # type: ignore[arg-type]
        finally:
            retriever.close()

    def test_the_tower_answers(self, root: StubRoot) -> None:
        answer = self.ask(root, {"v2.1": 2, "v1.1": 1})
        assert (answer.release, answer.rung, answer.degraded, answer.reasons) == ("v2.1", "tower v2", False, ())

    def test_what_is_stored_comes_first_and_an_unknown_entity_is_embedded_by_the_live_tower(
        self, root: StubRoot
    ) -> None:
        assert self.ask(root, {"v2.1": 2}, entity="alice").rung == "kv v2"
        answer = self.ask(root, {"v2.1": 2}, entity="carol")
        assert (answer.release, answer.rung) == ("v2.1", "tower v2")
        assert answer.reasons == ("v2.1: the key-value store has no v2 embedding of 'carol'",)

    def test_a_tower_that_cannot_be_opened_is_passed_over(self, root: StubRoot) -> None:
        answer = self.ask(root, {"v1.1": 1})
        assert (answer.release, answer.rung) == ("v1.1", "tower v1")
        assert answer.reasons == ("v2.1: release v2.1 has no query_tower; it has ['entities', 'index']",)

    def test_a_tower_of_another_version_never_meets_the_index(self, root: StubRoot) -> None:
        answer = self.ask(root, {"v2.1": 1, "v1.1": 2})
        assert (answer.rung, answer.degraded) == ("popular", True)
        assert "from tower v2 is of v1, but release v2.1 is of v2" in answer.reasons[0]

    def test_wrong_features_are_the_callers_error(self, root: StubRoot) -> None:
        with pytest.raises(RequestError, match="unknown query features"):
            self.ask(root, {"v2.1": 2}, features={"z": 1})


def test_answers_are_plain_values(root: StubRoot) -> None:
    assert dataclasses.asdict(ask(root, k=1)) == {
        "candidates": ((candidate_id(V21, 0), 1.0),),
        "release": "v2.1",
        "rung": "kv v2",
        "degraded": False,
        "reasons": (),
    }


def test_embeddings_of_another_model_of_the_same_number_never_meet_the_index(root: StubRoot) -> None:
    """Somebody trains again under v2 and puts its embeddings into the store."""
    version = V21.model_version
    with EmbeddedStore(root.path / "kv" / "embedded", keep=5) as store:
        store.retire(version)
        load = store.begin(version, 1, len(query_vector(version)), "digest", tower_tag(version, "again").digest)
        load.put_many(["alice"], VersionedEmbeddings(-query_vector(version)[None, :], version))
        load.publish(1)
    answer = ask(root)
    assert (answer.release, answer.rung) == ("v1.1", "kv v1")
    assert answer.reasons[0].startswith("v2.1: what the key-value store holds of v2 is of tower ")


def test_a_store_that_is_cut_short_is_a_reason_not_a_crash(root: StubRoot) -> None:
    path = root.path / "kv" / "embedded" / "data.mdb"
    os.truncate(path, path.stat().st_size // 2)
    answer = ask(root)
    assert (answer.rung, answer.degraded) == ("popular", True)
    assert "embedded is cut short: " in answer.reasons[0]
