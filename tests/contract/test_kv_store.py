"""What every store of query embeddings does; a new backend joins by adding itself to STORES."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lockstep.embeddings import VersionedEmbeddings
from lockstep.errors import KVError, LockstepError, VersionMismatchError
from lockstep.version import ModelVersion
from serving.kv import Load, QueryStore
from serving.kv.embedded import EmbeddedStore
from serving.kv.store import encode_key, encode_values

Open = Callable[[], QueryStore]


def open_embedded(path: Path) -> QueryStore:
    # A map that is full at once shows that it grows.
    return EmbeddedStore(path / "kv", keep=3, create=True, map_bytes=1 << 18)


STORES = {"embedded": open_embedded}


@pytest.fixture(params=sorted(STORES))
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    return lambda: STORES[request.param](tmp_path)


@pytest.fixture
def store(open_store: Open) -> QueryStore:
    return open_store()


def vectors(version: int, entities: int, dim: int = 4, snapshot: int = 1) -> VersionedEmbeddings:
    """Every number encodes where it belongs: version, snapshot, entity, coordinate."""
    rows, columns = np.meshgrid(np.arange(entities), np.arange(dim), indexing="ij")
    values = version * 1000 + snapshot * 100 + rows + columns / 8
    return VersionedEmbeddings(values.astype(np.float32), ModelVersion(version))


def names(count: int) -> list[str]:
    return [f"user {n}" for n in range(count)]


def load(store: QueryStore, version: int, entities: list[str], snapshot: int = 1) -> Load:
    started = store.begin(ModelVersion(version), snapshot, 4, f"digest {version}.{snapshot}", "tower")
    started.put_many(entities, vectors(version, len(entities), snapshot=snapshot))
    return started


def publish(store: QueryStore, version: int, entities: list[str], snapshot: int = 1) -> None:
    load(store, version, entities, snapshot).publish(len(entities))


def found_versions(store: QueryStore, entity: str) -> list[int]:
    return [int(embedding.model_version) for embedding in store.get(entity)]


def test_there_are_stores_to_test() -> None:
    assert "embedded" in STORES


def test_what_was_put_comes_back(store: QueryStore) -> None:
    publish(store, 7, names(3))
    for row, entity in enumerate(names(3)):
        found = store.find(entity, ModelVersion(7))
        assert found is not None
        assert found.model_version == 7
        assert found.vector.tolist() == [7100 + row, 7100.125 + row, 7100.25 + row, 7100.375 + row]
    assert store.find("user 3", ModelVersion(7)) is None
    assert store.find("user 1", ModelVersion(6)) is None
    assert store.get("user 3") == []
    assert store.count(ModelVersion(7)) == 3
    assert store.count(ModelVersion(6)) == 0
    only = store.versions()[0]
    assert (only.model_version, only.snapshot, only.dim, only.rows, only.source) == (7, 1, 4, 3, "digest 7.1")
    assert only.namespace == "v7"


def test_a_load_is_unseen_until_it_is_published(store: QueryStore) -> None:
    publish(store, 1, names(2))
    started = load(store, 2, names(2))
    assert found_versions(store, "user 0") == [1]
    assert store.find("user 0", ModelVersion(2)) is None
    assert [one.model_version for one in store.versions()] == [1]
    started.publish(2)
    assert found_versions(store, "user 0") == [2, 1]


def test_newest_first_at_most_keep_and_an_absent_entity_keeps_its_last_versions(store: QueryStore) -> None:
    publish(store, 3, ["old", "both"])
    for version in (1, 2, 4, 5, 6):
        publish(store, version, ["both"])
    assert found_versions(store, "both") == [6, 5, 4]
    assert found_versions(store, "old") == [3]
    assert [int(one.model_version) for one in store.versions()] == [6, 5, 4, 3, 2, 1]


def test_a_refresh_replaces_the_snapshot_whole_and_never_unpublishes(store: QueryStore) -> None:
    publish(store, 5, ["a", "b"], snapshot=1)
    started = load(store, 5, ["b", "c"], snapshot=2)
    first = store.find("b", ModelVersion(5))
    assert first is not None
    assert first.vector[0] == 5101
    assert store.count(ModelVersion(5)) == 2
    started.publish(2)
    assert store.find("a", ModelVersion(5)) is None
    second = store.find("b", ModelVersion(5))
    assert second is not None
    assert second.vector[0] == 5200
    assert [(one.snapshot, one.rows) for one in store.versions()] == [(2, 2)]


def test_an_older_snapshot_is_not_loaded_over_a_newer_one(store: QueryStore) -> None:
    late = load(store, 5, ["a"], snapshot=1)
    publish(store, 5, ["a"], snapshot=2)
    with pytest.raises(KVError, match="dropped"):
        late.publish(1)
    with pytest.raises(KVError, match=r"v5.2 is published, so the older v5.1"):
        load(store, 5, ["a"], snapshot=1)
    publish(store, 5, ["a", "b"], snapshot=2)
    assert store.count(ModelVersion(5)) == 2


def test_a_second_load_takes_over_from_an_unfinished_one(store: QueryStore) -> None:
    first = load(store, 5, ["stale", "a"])
    second = load(store, 5, ["a"])
    with pytest.raises(KVError, match="another load of v5 began"):
        first.put_many(["b"], vectors(5, 1))
    with pytest.raises(KVError, match="another load of v5 began"):
        first.publish(2)
    second.publish(1)
    assert store.get("stale") == []
    assert found_versions(store, "a") == [5]


def test_another_version_or_shape_is_refused(store: QueryStore) -> None:
    started = store.begin(ModelVersion(5), 1, 4, "digest", "tower")
    with pytest.raises(VersionMismatchError, match=r"v4.*v5"):
        started.put_many(["a"], vectors(4, 1))
    for wrong in (vectors(5, 2), vectors(5, 1, dim=3)):
        with pytest.raises(KVError, match="1 rows of 4 floats"):
            started.put_many(["a"], wrong)
    for bad in ("", "x" * 257, "\ud800"):
        with pytest.raises(KVError):
            started.put_many([bad], vectors(5, 1))
        with pytest.raises(KVError):
            store.get(bad)
    started.put_many(["é" * 128], vectors(5, 1))
    started.publish(1)
    assert found_versions(store, "é" * 128) == [5]


def test_fewer_entities_than_were_put_are_not_published(store: QueryStore) -> None:
    started = store.begin(ModelVersion(5), 1, 4, "digest", "tower")
    started.put_many(["a", "b"], vectors(5, 2))
    started.put_many(["b", "c"], vectors(5, 2))
    with pytest.raises(KVError, match="holds 3 entities, expected 4"):
        started.publish(4)
    assert store.versions() == []


def test_retire_and_retain(store: QueryStore) -> None:
    for version in range(1, 7):
        publish(store, version, ["a"])
    # keep = 3 keeps 6, 5, 4; the release that refers to 1 keeps that.
    assert store.retain([ModelVersion(1), ModelVersion(6)]) == [3, 2]
    assert found_versions(store, "a") == [6, 5, 4]
    assert [int(one.model_version) for one in store.versions()] == [6, 5, 4, 1]
    store.retire(ModelVersion(5))
    store.retire(ModelVersion(5))
    assert found_versions(store, "a") == [6, 4, 1]
    publish(store, 5, ["b"])
    assert store.find("a", ModelVersion(5)) is None


def test_many_versions_come_and_go(open_store: Open) -> None:
    reader = open_store()
    for version in range(1, 150):
        with open_store() as writer:
            publish(writer, version, ["a"], snapshot=1)
            publish(writer, version, ["a"], snapshot=2)
            writer.retain([])
        assert found_versions(reader, "a") == list(range(version, max(version - 3, 0), -1))


def test_it_grows(store: QueryStore) -> None:
    entities = names(20_000)
    started = store.begin(ModelVersion(1), 1, 4, "digest", "tower")
    for first in range(0, len(entities), 5_000):
        batch = entities[first : first + 5_000]
        started.put_many(batch, VersionedEmbeddings(np.full((len(batch), 4), 7, np.float32), ModelVersion(1)))
    assert started.publish(20_000).rows == 20_000
    assert found_versions(store, "user 19999") == [1]


def test_readers_in_other_threads_see_whole_snapshots_while_it_grows(open_store: Open) -> None:
    store = open_store()
    entities = names(300)
    publish(store, 1, entities)
    stop = threading.Event()
    failures: list[str] = []

    def read() -> None:
        while not stop.is_set():
            for entity in entities[::37]:
                for embedding in store.get(entity):
                    value = int(embedding.vector[0])
                    if value // 1000 != embedding.model_version or value % 100 != int(entity[5:]) % 100:
                        failures.append(f"{entity}: {value} in {embedding.model_version}")

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for version in range(2, 12):
        for snapshot in (1, 2):
            started = store.begin(ModelVersion(version), snapshot, 4, "digest", "tower")
            for first in range(0, 300, 100):
                started.put_many(entities[first : first + 100], vectors(version, 100, snapshot=snapshot))
            started.publish(300)
        store.retain([])
    stop.set()
    for thread in threads:
        thread.join()
    assert failures == []


def _load_for_ever(open_store: Open, ready: object) -> None:
    store = open_store()
    started = store.begin(ModelVersion(2), 1, 4, "digest", "tower")
    number = 0
    while True:
        batch = [f"new {number}", f"new {number + 1}"]
        started.put_many(batch, vectors(2, 2))
        number += 2
        if number == 20:
            ready.set()  # type: ignore[attr-defined]


def test_a_killed_loader_leaves_what_was_there(open_store: Open) -> None:
    with open_store() as store:
        publish(store, 1, names(2))
    fork = multiprocessing.get_context("fork")
    ready = fork.Event()
    child = fork.Process(target=_load_for_ever, args=(open_store, ready))
    child.start()
    assert ready.wait(30)
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    with open_store() as store:
        assert [int(one.model_version) for one in store.versions()] == [1]
        assert found_versions(store, "user 1") == [1]
        assert store.get("new 0") == []
        publish(store, 2, names(2))
        assert found_versions(store, "user 1") == [2, 1]
        assert store.get("new 0") == []


def _publish_in_a_child(open_store: Open, version: int) -> None:
    with open_store() as store:
        publish(store, version, names(2_000))


def test_another_process_writes_and_grows_while_this_one_reads(open_store: Open) -> None:
    spawn = multiprocessing.get_context("fork")
    children = [spawn.Process(target=_publish_in_a_child, args=(open_store, version)) for version in (1, 2, 3)]
    for child in children:
        child.start()
    store = open_store()
    deadline = time.monotonic() + 60
    while any(child.is_alive() for child in children):
        for embedding in store.get("user 7"):
            assert embedding.vector[0] == int(embedding.model_version) * 1000 + 107
        assert time.monotonic() < deadline
    for child in children:
        child.join()
        assert child.exitcode == 0
    assert found_versions(store, "user 7") == [3, 2, 1]
    assert [one.rows for one in store.versions()] == [2_000] * 3


class TestEmbedded:
    """What is particular to the file on disk."""

    def write_raw(self, store: EmbeddedStore, entity: str, value: bytes) -> None:
        """Put a value past every check, as a bug or a bad disk would."""
        slot = store._environment.read(store._published_slots)[0]
        store._environment.write(lambda txn: txn.put(encode_key(entity), value, db=store._slots[slot.number]))

    @pytest.mark.parametrize("place", [0, 9, 12, 20, 27])
    def test_a_flipped_bit_is_an_error(self, tmp_path: Path, place: int) -> None:
        store = EmbeddedStore(tmp_path / "kv", keep=3, create=True)
        publish(store, 5, ["a", "b"])
        value = bytearray(encode_values([b"a"], vectors(5, 1))[0])
        assert len(value) == 28
        value[place] ^= 1
        self.write_raw(store, "a", bytes(value))
        with pytest.raises(KVError, match=r"'a' of v5 .*checksum.*run load_kv for v5"):
            store.find("a", ModelVersion(5))
        assert store.find("b", ModelVersion(5)) is not None
        self.write_raw(store, "a", bytes(value[:-1]))
        with pytest.raises(KVError, match="has 27 bytes, expected 28"):
            store.get("a")

    def test_a_value_of_another_version_or_entity_is_an_error(self, tmp_path: Path) -> None:
        store = EmbeddedStore(tmp_path / "kv", keep=3, create=True)
        publish(store, 5, ["a", "b"])
        self.write_raw(store, "a", encode_values([b"a"], vectors(4, 1))[0])
        with pytest.raises(VersionMismatchError, match=r"'a'.* is of v4, .*namespace is of v5"):
            store.find("a", ModelVersion(5))
        self.write_raw(store, "b", encode_values([b"a"], vectors(5, 1))[0])
        with pytest.raises(KVError, match="checksum"):
            store.find("b", ModelVersion(5))

    def test_a_reader_does_not_make_a_store(self, tmp_path: Path) -> None:
        with pytest.raises(KVError, match=r"no key-value store in .*: run load_kv"):
            EmbeddedStore(tmp_path / "kv", keep=3)
        assert not (tmp_path / "kv").exists()

    def test_no_store_is_opened_from_rubbish(self, tmp_path: Path) -> None:
        (tmp_path / "kv").mkdir()
        (tmp_path / "kv" / "data.mdb").write_bytes(b"rubbish" * 2000)
        with pytest.raises(KVError, match="cannot open"):
            EmbeddedStore(tmp_path / "kv", keep=3)

    def test_a_store_is_not_used_across_a_fork(self, tmp_path: Path) -> None:
        store = EmbeddedStore(tmp_path / "kv", keep=3, create=True)
        publish(store, 1, ["a"])
        fork = multiprocessing.get_context("fork")
        answers = fork.Queue()

        def child() -> None:
            try:
                store.get("a")
            except LockstepError as error:
                answers.put(str(error))
            with EmbeddedStore(tmp_path / "kv", keep=3) as own:
                answers.put(found_versions(own, "a"))

        process = fork.Process(target=child)
        process.start()
        assert "before a fork" in answers.get(timeout=30)
        assert answers.get(timeout=30) == [1]
        process.join()


def test_a_number_does_not_make_two_models_one(store: QueryStore) -> None:
    """Somebody trains again under a number that is taken: the store keeps what it has, and tells them apart."""
    publish(store, 7, ["a"])
    with pytest.raises(
        VersionMismatchError, match=r"holds of v7 is of tower tower, but what is to be loaded is of tower"
    ):
        store.begin(ModelVersion(7), 2, 4, "digest", "another")
    assert store.find("a", ModelVersion(7), "tower") is not None
    with pytest.raises(VersionMismatchError, match="but the release is of tower another: run load_kv"):
        store.find("a", ModelVersion(7), "another")
