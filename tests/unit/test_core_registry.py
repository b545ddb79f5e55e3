"""Versions, releases and the live pointer."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockstep.errors import CorruptArtifactError, ReleaseError
from lockstep.registry import Part, Registry, Release, Serving
from lockstep.storage import open_root
from lockstep.tags import Kind
from lockstep.version import ModelVersion, ReleaseId

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)


def rid(text: str) -> ReleaseId:
    return ReleaseId.parse(text)


def registry_with(root: Path, *releases: str) -> Registry:
    registry = Registry(open_root(str(root)))
    for text in releases:
        while rid(text).model_version not in registry.versions():
            registry.mint_version("r", by="test", now=NOW)
        parts = {"index": Part(Kind.INDEX, "runs/r/index", "d")}
        registry.add_release(Release(rid(text), "r", "s", parts, {}))
    return registry


def test_versions_and_releases_are_written_the_way_people_write_them() -> None:
    assert str(ModelVersion(7)) == f"{ModelVersion(7)}" == "v7"
    assert json.dumps(ModelVersion(7)) == "7"
    assert ModelVersion.parse("v7") == ModelVersion.parse("7") == 7
    assert str(rid("7.3")) == "v7.3"
    assert rid("v2.10") > rid("v2.9") > rid("v1.11")
    for wrong in ("0", "v0", "-1", "v07", "seven", "7.0", ""):
        with pytest.raises(ValueError, match="a model version is written like v7"):
            ModelVersion.parse(wrong)
    for number in (0, -1, True, 1.5):
        with pytest.raises(ValueError, match="positive integer"):
            ModelVersion(number)  # type: ignore[arg-type]
    with pytest.raises(ReleaseError, match=r"a release is written like v7\.3, found 'v7'"):
        rid("v7")


def test_a_number_is_never_reused_even_when_its_run_left_nothing_else(tmp_path: Path) -> None:
    registry = registry_with(tmp_path)
    assert [registry.mint_version(f"r{n}", by="me", now=NOW) for n in range(3)] == [1, 2, 3]
    record = json.loads((tmp_path / "registry/versions/2.json").read_text())
    assert record == {"format": 1, "model_version": 2, "run": "r1", "by": "me", "at": "2026-11-01T12:00:00.000+00:00"}
    assert registry_with(tmp_path).mint_version("r", by="me") == 4


def _mint_for_ever(root: str) -> None:
    registry = Registry(open_root(root))
    while True:
        registry.mint_version("r", by="victim")


def test_a_killed_minter_leaves_no_half_file(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_mint_for_ever, args=(str(tmp_path),))
    process.start()
    deadline = time.monotonic() + 60
    while len(Registry(open_root(str(tmp_path))).versions()) < 20 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    registry = Registry(open_root(str(tmp_path)))
    taken = registry.versions()
    assert taken == list(range(1, len(taken) + 1))
    assert len(taken) >= 20
    for version in taken:
        assert json.loads((tmp_path / f"registry/versions/{int(version)}.json").read_text())["model_version"] == version
    assert registry.mint_version("r", by="next") == len(taken) + 1


def test_publish_moves_live_and_retains_what_was_live(tmp_path: Path) -> None:
    registry = registry_with(tmp_path, "1.1", "2.1")
    assert registry.serving() == Serving()
    registry.publish(rid("1.1"), by="a", why="first", now=NOW)
    registry.publish(rid("2.1"), by="b", why="second", now=NOW)
    serving = registry.serving()
    assert serving.live == rid("2.1")
    assert serving.retained == (rid("1.1"),)
    assert [(t.action, t.from_release, t.to_release, t.by, t.why) for t in serving.history] == [
        ("publish", None, "v1.1", "a", "first"),
        ("publish", "v1.1", "v2.1", "b", "second"),
    ]


def test_a_run_that_finishes_late_is_superseded(tmp_path: Path) -> None:
    registry = registry_with(tmp_path, "1.1", "2.1")
    registry.publish(rid("2.1"), by="t", why="w")
    serving = registry.publish(rid("1.1"), by="t", why="w")
    assert serving.live == rid("2.1")
    assert serving.retained == (rid("1.1"),)
    assert serving.history[-1].action == "superseded"


def test_a_rollback_holds_and_what_is_newer_is_not_planned(tmp_path: Path) -> None:
    registry = registry_with(tmp_path, "1.1", "2.1", "3.1")
    for text in ("1.1", "2.1", "3.1"):
        registry.publish(rid(text), by="t", why="w")
    serving = registry.rollback(rid("2.1"), by="t", why="bad numbers")
    assert serving.live == rid("2.1")
    assert rid("3.1") in serving.retained
    assert serving.plan() == (rid("2.1"), rid("1.1"))
    assert registry.rollback(rid("3.1"), by="t", why="was fine").live == rid("3.1")


def test_only_a_retained_release_can_be_rolled_back_to(tmp_path: Path) -> None:
    registry = registry_with(tmp_path, "1.1", "2.1")
    registry.publish(rid("2.1"), by="t", why="w")
    with pytest.raises(ReleaseError, match=r"v1\.1 is not retained.*retained: nothing"):
        registry.rollback(rid("1.1"), by="t", why="w")


def test_retention_counts_model_versions_not_releases(tmp_path: Path) -> None:
    names = ["1.1", "2.1", "2.2", "3.1", "4.1", "4.2"]
    registry = registry_with(tmp_path, *names)
    for text in names:
        registry.publish(rid(text), by="t", why="w", keep=3)
    assert [str(r) for r in registry.serving().retained] == ["v4.1", "v3.1", "v2.2", "v2.1"]


def test_unknown_releases_and_unminted_versions_are_refused(tmp_path: Path) -> None:
    registry = registry_with(tmp_path, "1.1")
    with pytest.raises(ReleaseError, match=r"there is no release v9\.1 in .*lockstep releases"):
        registry.publish(rid("9.1"), by="t", why="w")
    with pytest.raises(ReleaseError, match="v9 was never minted"):
        registry.add_release(Release(rid("9.1"), "r", "s", {}, {}))
    with pytest.raises(ReleaseError, match=r"release v1\.1 has no query_tower; it has \['index'\]"):
        registry.release(rid("1.1")).part("query_tower")


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_flipped_byte_in_the_registry_is_found(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    root = tmp_path_factory.mktemp("registry")
    registry = registry_with(root, "1.1")
    registry.publish(rid("1.1"), by="t", why="w")
    name = data.draw(st.sampled_from(["releases/1.1.json", "serving.json"]))
    path = root / "registry" / name
    before = _read(registry)
    contents = bytearray(path.read_bytes())
    contents[data.draw(st.integers(0, len(contents) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(contents)
    # JSON has bytes without meaning (white space); where the change is not seen, nothing that is read may differ.
    assert _read(registry) in (before, f"{path} is corrupt")


def _read(registry: Registry) -> object:
    try:
        return registry.release(rid("1.1")), registry.serving().live
    except CorruptArtifactError as error:
        return str(error).split(":")[0]


def test_a_manifest_under_another_releases_name_is_refused(tmp_path: Path) -> None:
    registry = registry_with(tmp_path, "1.1", "2.1")
    folder = tmp_path / "registry" / "releases"
    (folder / "2.1.json").write_bytes((folder / "1.1.json").read_bytes())
    with pytest.raises(CorruptArtifactError, match=r"found the manifest of v1\.1, expected v2\.1; restore it"):
        registry.release(rid("2.1"))


def test_a_run_does_not_begin_where_it_could_not_be_published_and_the_remedy_works(tmp_path: Path) -> None:
    registry = registry_with(tmp_path, "1.1")
    registry.publish(rid("1.1"), by="t", why="w")
    path = tmp_path / "registry" / "serving.json"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(CorruptArtifactError, match="or remove it and make a release live again"):
        registry.mint_version("r", by="t")
    assert registry.versions() == [1]
    path.unlink()
    registry.publish(rid("1.1"), by="t", why="mended")
    assert registry.serving().live == rid("1.1")
