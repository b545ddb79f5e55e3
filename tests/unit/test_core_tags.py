"""Must show 5: whatever is wrong with an artifact stops its reader with the right error."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockstep.errors import (
    CorruptArtifactError,
    IncompleteArtifactError,
    StorageError,
    VersionMismatchError,
    WrongKindError,
)
from lockstep.storage import fresh_directory
from lockstep.tags import Kind, Tag, open_artifact, read_tag, write_tag
from lockstep.version import ModelVersion

V7, V8 = ModelVersion(7), ModelVersion(8)
NOW = datetime(2026, 11, 1, tzinfo=UTC)


def make(folder: Path, version: ModelVersion = V7, kind: Kind = Kind.INDEX) -> Tag:
    (folder / "deep").mkdir(parents=True)
    (folder / "data.bin").write_bytes(b"0123456789")
    (folder / "deep" / "ids").write_bytes(b"abc")
    return write_tag(folder, kind, run="r1", schema="s", rows=3, model_version=version, snapshot=2, now=NOW)


def test_a_tag_names_every_file_with_its_digest(tmp_path: Path) -> None:
    tag = make(tmp_path / "a")
    assert read_tag(tmp_path / "a") == tag
    assert {name: record.bytes for name, record in tag.files.items()} == {"data.bin": 10, "deep/ids": 3}
    # sha256 of "abc", from FIPS 180-2.
    assert tag.files["deep/ids"].digest == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    opened = open_artifact(tmp_path / "a", Kind.INDEX, model_version=V7, snapshot=2, digest=tag.digest)
    assert (opened / "deep/ids").read_bytes() == b"abc"


def test_inputs_are_recorded_by_digest(tmp_path: Path) -> None:
    first = make(tmp_path / "a")
    (tmp_path / "b").mkdir()
    second = write_tag(tmp_path / "b", Kind.INDEX, run="r", schema="s", rows=0, inputs={"embeddings": first})
    assert second.inputs == {"embeddings": first.digest}


def test_a_folder_without_a_tag_is_no_artifact(tmp_path: Path) -> None:
    make(tmp_path / "a")
    (tmp_path / "a" / "tag.json").unlink()
    with pytest.raises(IncompleteArtifactError, match=r"a is no finished artifact: it has no tag.json; rerun the step"):
        open_artifact(tmp_path / "a", Kind.INDEX)
    with pytest.raises(IncompleteArtifactError, match="there is no such folder"):
        open_artifact(tmp_path / "nothing", Kind.INDEX)


def test_another_versions_artifact_is_refused_with_both_versions_and_the_remedy(tmp_path: Path) -> None:
    make(tmp_path / "a")
    with pytest.raises(VersionMismatchError) as caught:
        open_artifact(tmp_path / "a", Kind.INDEX, model_version=V8)
    sentence = str(caught.value)
    assert sentence.startswith(f"index at {tmp_path / 'a'} is of v7, but its reader is of v8: ")
    assert sentence.endswith("rerun the step that writes index for v8")
    with pytest.raises(VersionMismatchError, match=r"v7\.2.*v7\.3"):
        open_artifact(tmp_path / "a", Kind.INDEX, model_version=V7, snapshot=3)


def test_an_unversioned_artifact_is_refused_where_a_version_is_expected(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    write_tag(tmp_path / "a", Kind.INDEX, run="r", schema="s", rows=0)
    with pytest.raises(VersionMismatchError, match="no version"):
        open_artifact(tmp_path / "a", Kind.INDEX, model_version=V7)


def test_another_kind_is_refused(tmp_path: Path) -> None:
    make(tmp_path / "a", kind=Kind.QUERY_TOWER)
    with pytest.raises(WrongKindError, match="holds query_tower, expected candidate_tower"):
        open_artifact(tmp_path / "a", Kind.CANDIDATE_TOWER)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_flipped_byte_in_any_file_is_found(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("flip") / "a"
    digest = make(folder).digest
    path = folder / data.draw(st.sampled_from(["data.bin", "deep/ids", "tag.json"]))
    contents = bytearray(path.read_bytes())
    position = data.draw(st.integers(0, len(contents) - 1))
    contents[position] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(contents)
    # With the release's digest of the tag, as serving opens it, no change at all gets through.
    with pytest.raises((CorruptArtifactError, WrongKindError, VersionMismatchError)):
        open_artifact(folder, Kind.INDEX, model_version=V7, snapshot=2, digest=digest)


def test_missing_extra_and_short_files_are_found(tmp_path: Path) -> None:
    for number, (change, message) in enumerate(
        [
            (lambda a: (a / "data.bin").unlink(), "found no such file"),
            (lambda a: (a / "extra").write_bytes(b""), "extra is corrupt: found a file"),
            (lambda a: (a / "data.bin").write_bytes(b"012"), "found 3 bytes, expected 10 bytes"),
        ]
    ):
        folder = tmp_path / str(number)
        make(folder)
        change(folder)
        with pytest.raises(CorruptArtifactError, match=message):
            open_artifact(folder, Kind.INDEX)


def test_a_tag_of_another_format_is_refused(tmp_path: Path) -> None:
    make(tmp_path / "a")
    path = tmp_path / "a" / "tag.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 99}))
    with pytest.raises(CorruptArtifactError, match=r"format 99.*format 1 of this lockstep"):
        read_tag(tmp_path / "a")


@pytest.mark.parametrize("contents", [b"", b"{", b"[]", b"{}", b'{"format": 1}', b"\xff\xfe", b"null"])
def test_nonsense_in_place_of_a_tag_is_one_clear_error(tmp_path: Path, contents: bytes) -> None:
    (tmp_path / "tag.json").write_bytes(contents)
    with pytest.raises(CorruptArtifactError, match="an unreadable tag"):
        read_tag(tmp_path)


def test_one_file_is_compared_with_the_tag_as_it_is_read(tmp_path: Path) -> None:
    make(tmp_path / "a")
    artifact = open_artifact(tmp_path / "a", Kind.INDEX, verify=False)
    assert artifact.read("deep/ids") == b"abc"
    (tmp_path / "a" / "deep" / "ids").write_bytes(b"abd")
    with pytest.raises(CorruptArtifactError, match="ids is corrupt: found sha256"):
        artifact.read("deep/ids")
    with pytest.raises(CorruptArtifactError, match="found no other, expected one"):
        artifact.read("other")


def test_only_what_is_ours_is_emptied_for_an_output(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.tex").write_text("x")
    with pytest.raises(StorageError, match="precious is to be written, but it holds something else"):
        fresh_directory(precious)
    assert (precious / "thesis.tex").exists()
    fresh_directory(tmp_path / "a")
    (tmp_path / "a" / "half").write_text("x")
    assert not (fresh_directory(tmp_path / "a") / "half").exists()  # an attempt that died
    (tmp_path / "a" / "data").write_text("x")
    tag = write_tag(tmp_path / "a", Kind.INDEX, run="r", schema="s", rows=1)
    assert list(tag.files) == ["data"]
    fresh_directory(tmp_path / "a")  # an attempt that ended
    assert not (tmp_path / "a" / "data").exists()


def test_a_step_killed_while_it_writes_the_tag_can_be_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh_directory(tmp_path / "a")
    (tmp_path / "a" / "data").write_bytes(b"x")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("lockstep.tags.write_atomically", killed)
        with pytest.raises(KeyboardInterrupt):
            write_tag(tmp_path / "a", Kind.INDEX, run="r", schema="s", rows=1)
    fresh_directory(tmp_path / "a")
    tag = write_tag(tmp_path / "a", Kind.INDEX, run="r", schema="s", rows=0)
    assert (tag.files, sorted(path.name for path in (tmp_path / "a").iterdir())) == ({}, ["tag.json"])
