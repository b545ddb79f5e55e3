"""One suite for every storage: what the registry relies on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lockstep.errors import ReleaseError, StorageError
from lockstep.registry import Part, Registry, Release
from lockstep.storage import GcsStorage, LocalStorage, Storage, open_root
from lockstep.tags import Kind
from lockstep.version import ModelVersion, ReleaseId
from tests.fakes.gcs import serve_gcs


@pytest.fixture(params=["local", "gcs"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Storage]:
    if request.param == "local":
        yield open_root(str(tmp_path / "root"))
        return
    cloud = pytest.importorskip("google.cloud.storage", reason="needs the extra gcp")
    from google.auth.credentials import AnonymousCredentials

    with serve_gcs() as (_, address):
        client = cloud.Client(project="p", credentials=AnonymousCredentials(), client_options={"api_endpoint": address})
        yield GcsStorage("gs://bucket/some/prefix", client)


def release(version: int, snapshot: int = 1, run: str = "r") -> Release:
    parts = {"index": Part(Kind.INDEX, f"runs/{run}/index", "d" * 64)}
    return Release(ReleaseId(ModelVersion(version), snapshot), run, "s" * 64, parts, {"backend": "embedded"})


def test_a_missing_file_reads_as_none(storage: Storage) -> None:
    assert storage.read("registry/none.json") is None
    assert storage.names("registry") == []


def test_create_writes_once(storage: Storage) -> None:
    assert storage.create("a/b.json", b"first")
    assert not storage.create("a/b.json", b"second")
    found = storage.read("a/b.json")
    assert found is not None
    assert found[0] == b"first"
    assert storage.names("a") == ["b.json"]


def test_replace_takes_the_generation_that_was_read(storage: Storage) -> None:
    storage.create("a.json", b"1")
    _, generation = storage.read("a.json") or (b"", "")
    assert storage.replace("a.json", b"2", generation)
    assert not storage.replace("a.json", b"3", generation)
    assert (storage.read("a.json") or (b"",))[0] == b"2"


def test_names_are_those_directly_below(storage: Storage) -> None:
    for path in ("v/2.json", "v/1.json", "v/deeper/3.json", "w/4.json"):
        storage.create(path, b"x")
    assert storage.names("v") == ["1.json", "2.json"]


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/../../x", "", "a\x00b"])
def test_paths_are_confined_to_the_root(storage: Storage, path: str) -> None:
    with pytest.raises(StorageError, match="not below the root"):
        storage.create(path, b"x")


def test_addresses_below_the_root_are_kept_relative(storage: Storage) -> None:
    assert storage.relative(storage.uri("runs/1/index")) == "runs/1/index"
    assert storage.resolve("runs/1/index") == storage.uri("runs/1/index")
    assert storage.resolve("gs://other/x") == storage.relative("gs://other/x") == "gs://other/x"


def test_an_artifact_is_copied_to_a_local_folder(storage: Storage, tmp_path: Path) -> None:
    storage.create("runs/1/index/tag.json", b"tag")
    storage.create("runs/1/index/scann/data.bin", b"data")
    copy = storage.local_copy("runs/1/index", tmp_path / "cache")
    assert (copy / "tag.json").read_bytes() == b"tag"
    assert (copy / "scann" / "data.bin").read_bytes() == b"data"


def test_sixteen_threads_mint_sixteen_versions(storage: Storage) -> None:
    registry = Registry(storage)
    barrier = threading.Barrier(16)

    def mint(number: int) -> int:
        barrier.wait()
        return registry.mint_version(f"run {number}", by="test")

    with ThreadPoolExecutor(16) as pool:
        assert sorted(pool.map(mint, range(16))) == list(range(1, 17))
    assert registry.mint_version("later", by="test") == 17


def test_concurrent_publishes_all_land_and_the_newest_is_live(storage: Storage) -> None:
    registry = Registry(storage)
    ids = []
    for _ in range(6):
        version = registry.mint_version("r", by="test")
        registry.add_release(release(version))
        ids.append(ReleaseId(version, 1))
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda i: registry.publish(i, by="t", why="w", keep=6), ids))
    serving = registry.serving()
    assert str(serving.live) == "v6.1"
    assert [str(r) for r in serving.plan()] == ["v6.1", "v5.1", "v4.1", "v3.1", "v2.1", "v1.1"]
    assert sorted(t.to_release for t in serving.history) == [f"v{n}.1" for n in range(1, 7)]


def test_a_manifest_comes_back_as_written_and_never_changes(storage: Storage) -> None:
    registry = Registry(storage)
    registry.mint_version("r", by="test")
    registry.add_release(release(1))
    assert registry.release(ReleaseId(ModelVersion(1), 1)) == release(1)
    registry.add_release(release(1))  # the same again is no change
    with pytest.raises(ReleaseError, match=r"v1\.1 exists and never changes"):
        registry.add_release(release(1, run="other"))


def test_a_local_root_refuses_a_symbolic_link_that_leads_out(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "root" / "link").symlink_to(tmp_path / "outside")
    with pytest.raises(StorageError, match="outside the root"):
        LocalStorage(str(tmp_path / "root")).create("link/x", b"x")


def test_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(StorageError, match="s3://b"):
        open_root("s3://b/p")
