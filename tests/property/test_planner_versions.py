"""Random histories of one root; whatever happens, no answer mixes versions.

Ids and vectors encode their version (tests.fakes.stub_releases), so mixing is visible in the answer itself.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from lockstep.embeddings import VersionedEmbedding
from lockstep.tags import Kind
from lockstep.version import ModelVersion, ReleaseId
from serving import retriever as planner
from serving.index import Index, Restricts
from serving.kv.embedded import EmbeddedStore
from serving.retriever import Answer, Pair, Request, Retriever
from tests.fakes.stub_releases import MIXED_SCORE_BELOW, StubRoot, genre, version_of

ENTITIES = ("alice", "bob", "carol")
MAX_VERSIONS = 6


class Releases(RuleBasedStateMachine):
    """Publishes, refreshes, rolls back, breaks and asks; `expected` is a model of which release must answer."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="planner-"))
        self.root = StubRoot(self.directory / "root", ENTITIES, rows=4)
        self.now = 0.0
        self.server = Retriever(self.root.storage, refresh_seconds=0, retry_seconds=0, clock=lambda: self.now)
        self.opened: set[ReleaseId] = set()
        self.broken: set[ReleaseId] = set()
        self.known: dict[int, set[str]] = {}
        self.snapshots: dict[int, int] = {}
        self.unpublished: list[ReleaseId] = []

    def teardown(self) -> None:
        self.server.close()
        shutil.rmtree(self.directory)

    @initialize()
    def first(self) -> None:
        self.new_version(set(ENTITIES), True)

    @precondition(lambda self: len(self.known) < MAX_VERSIONS)
    @rule(entities=st.sets(st.sampled_from(ENTITIES), min_size=1), publish=st.booleans())
    def new_version(self, entities: set[str], publish: bool) -> None:
        self.add(ReleaseId(self.root.mint(), 1), entities, publish)

    @rule(data=st.data(), entities=st.sets(st.sampled_from(ENTITIES), min_size=1), publish=st.booleans())
    def refresh(self, data: st.DataObject, entities: set[str], publish: bool) -> None:
        version = data.draw(st.sampled_from(sorted(self.snapshots)))
        if self.snapshots[version] < 3:
            self.add(ReleaseId(ModelVersion(version), self.snapshots[version] + 1), entities, publish)

    def add(self, release_id: ReleaseId, entities: set[str], publish: bool) -> None:
        self.root.build(release_id, sorted(entities))
        self.known[int(release_id.model_version)] = set(entities)
        self.snapshots[int(release_id.model_version)] = release_id.snapshot
        if publish:
            self.root.registry.publish(release_id, by="test", why="test")
        else:
            self.unpublished.append(release_id)

    @precondition(lambda self: self.unpublished)
    @rule(data=st.data())
    def publish_late(self, data: st.DataObject) -> None:
        release_id = data.draw(st.sampled_from(self.unpublished))
        self.unpublished.remove(release_id)
        self.root.registry.publish(release_id, by="test", why="late")

    @rule(data=st.data())
    def rollback(self, data: st.DataObject) -> None:
        serving = self.root.registry.serving()
        if serving.retained:
            self.root.registry.rollback(data.draw(st.sampled_from(serving.retained)), by="test", why="test")

    @precondition(lambda self: self.whole())
    @rule(data=st.data())
    def remove_index(self, data: st.DataObject) -> None:
        release_id = data.draw(st.sampled_from(sorted(self.whole())))
        shutil.rmtree(self.root.folder(release_id, Kind.INDEX))
        self.broken.add(release_id)

    @precondition(lambda self: self.whole())
    @rule(data=st.data(), offset=st.integers(0, 10_000))
    def flip_a_byte(self, data: st.DataObject, offset: int) -> None:
        release_id = data.draw(st.sampled_from(sorted(self.whole())))
        folder = self.root.folder(release_id, Kind.INDEX)
        names = sorted(path.name for path in folder.iterdir() if path.stat().st_size)
        name = data.draw(st.sampled_from(names))
        self.root.corrupt(release_id, Kind.INDEX, name, offset % (folder / name).stat().st_size)
        self.broken.add(release_id)

    @rule(data=st.data())
    def swap_indexes(self, data: st.DataObject) -> None:
        """Somebody restores a backup into the wrong folder."""
        whole = sorted(self.whole() - self.opened)
        if len(whole) >= 2:
            first, second = data.draw(st.permutations(whole))[:2]
            shutil.rmtree(self.root.folder(second, Kind.INDEX))
            shutil.copytree(self.root.folder(first, Kind.INDEX), self.root.folder(second, Kind.INDEX))
            self.broken.add(second)

    @rule(data=st.data())
    def retire_embeddings(self, data: st.DataObject) -> None:
        version = data.draw(st.sampled_from(sorted(self.known)))
        with EmbeddedStore(self.root.path / "kv" / "embedded", keep=5) as store:
            store.retire(ModelVersion(version))
        self.known[version] = set()

    @rule(
        entity=st.sampled_from((*ENTITIES, "nobody")),
        fresh=st.booleans(),
        tokens=st.sampled_from([None, {"jazz"}, {"rock"}, {"jazz", "rock"}]),
    )
    def ask(self, entity: str, fresh: bool, tokens: set[str] | None) -> None:
        restricts = Restricts() if tokens is None else Restricts({"genre": tokens})
        server = Retriever(self.root.storage) if fresh else self.server
        answer = server.answer(Request(entity, k=4, restricts=restricts))
        if fresh:
            server.close()
        never_mixed(answer)
        for candidate, _ in answer.candidates:
            assert tokens is None or genre(int(candidate[-3:])) in tokens
        self.as_planned(answer, entity, fresh)

    def as_planned(self, answer: Answer, entity: str, fresh: bool) -> None:
        plan = self.root.registry.serving().plan()
        # What a server has opened stays open: its files were verified, and are mapped.
        opened = set() if fresh else self.opened
        able = [one for one in plan if one not in self.broken or one in opened]
        known = [one for one in able if entity in self.known[int(one.model_version)]]
        if known:
            assert answer.release == str(known[0])
            assert answer.rung == f"kv {known[0].model_version}"
            assert not answer.degraded
            assert len(answer.reasons) == plan.index(known[0])
        else:
            assert answer.degraded
            assert answer.rung in ("popular", "popular within restrict", "none")
            assert len(answer.reasons) >= len(plan)
        if not fresh:
            passed = plan if not known else plan[: plan.index(known[0]) + 1]
            self.opened = {one for one in self.opened if one in plan} | {one for one in passed if one in able}

    def whole(self) -> set[ReleaseId]:
        found = {
            ReleaseId(ModelVersion(version), snapshot)
            for version, last in self.snapshots.items()
            for snapshot in range(1, last + 1)
        }
        return found - self.broken


def never_mixed(answer: Answer) -> None:
    """The invariant: one version answers, and scores are those of a pair of that version."""
    if answer.release is None:
        assert answer.candidates == ()
        return
    version = int(ReleaseId.parse(answer.release).model_version)
    assert {version_of(candidate) for candidate, _ in answer.candidates} <= {version}
    if not answer.degraded:
        assert answer.rung == f"kv v{version}"
        mixed = [pair for pair in answer.candidates if pair[1] < MIXED_SCORE_BELOW]
        assert not mixed, f"scores of a query of another version: {mixed}"


SETTINGS = settings(
    max_examples=20, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck), database=None,
    derandomize=True, phases=[Phase.generate],
)  # fmt: skip


@pytest.fixture(autouse=True)
def no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is killed here, and waiting for the disk is most of the time that building takes."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


FEWER = settings(SETTINGS, max_examples=8)


def test_no_history_of_releases_mixes_versions() -> None:
    run_state_machine_as_test(Releases, settings=SETTINGS)  # type: ignore[no-untyped-call]


class CarelessLookup(Releases):
    """The machine with the classic bug planted: the store gives the entity's newest embedding, whatever was asked."""

    def as_planned(self, answer: Answer, entity: str, fresh: bool) -> None:
        """With the bug other releases answer than planned; only mixing matters here."""


@pytest.fixture
def careless(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    def newest(
        self: EmbeddedStore, entity: str, model_version: ModelVersion, tower: str | None = None
    ) -> VersionedEmbedding | None:
        return next(iter(self.get(entity)), None)

    monkeypatch.setattr(EmbeddedStore, "find", newest)
    return monkeypatch


def unchecked_pair(release_id: ReleaseId, query: VersionedEmbedding, index: Index, source: str) -> Pair:
    return Pair(query, index, source)


def unchecked(self: Index, queries: Any) -> None:
    """Takes any version."""


def test_the_index_alone_stops_a_careless_lookup(careless: pytest.MonkeyPatch) -> None:
    careless.setattr(planner, "pair", unchecked_pair)
    run_state_machine_as_test(CarelessLookup, settings=FEWER)  # type: ignore[no-untyped-call]


def test_the_planner_alone_stops_a_careless_lookup(careless: pytest.MonkeyPatch) -> None:
    careless.setattr(Index, "_check_version", unchecked)
    run_state_machine_as_test(CarelessLookup, settings=FEWER)  # type: ignore[no-untyped-call]


def test_without_both_checks_the_machine_sees_the_mixing(careless: pytest.MonkeyPatch) -> None:
    """The test of the test."""
    careless.setattr(planner, "pair", unchecked_pair)
    careless.setattr(Index, "_check_version", unchecked)
    with pytest.raises(AssertionError, match="scores of a query of another version"):
        run_state_machine_as_test(CarelessLookup, settings=SETTINGS)  # type: ignore[no-untyped-call]
