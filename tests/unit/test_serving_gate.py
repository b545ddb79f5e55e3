"""The gate and the deployment over real artifacts; only the towers are stubs: x becomes (cos x, sin x)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from lockstep.config import GateSection, IndexSection, KVSection
from lockstep.embeddings import VersionedEmbeddings
from lockstep.errors import (
    ArtifactError,
    CorruptArtifactError,
    GateError,
    ReleaseError,
    VersionMismatchError,
)
from lockstep.registry import Registry
from lockstep.storage import LocalStorage
from lockstep.tags import Kind, read_tag, write_tag
from lockstep.towers import Tower
from lockstep.version import ModelVersion, ReleaseId
from serving import build_index, deploy, load_kv, validate
from serving.kv.embedded import EmbeddedStore
from serving.retriever import Request, Retriever
from tests.fakes.stub_releases import SCHEMA, write_embeddings, write_entities

V1 = ReleaseId(ModelVersion(1), 1)
CANDIDATES = [f"c{row}" for row in range(30)]
QUERIES = [f"q{row}" for row in range(12)]
SECTION = GateSection(k=5, ann_queries=10, canaries=4)


class StubTower:
    """Stands in for TensorFlow: embeds x as (cos x, sin x) turned by `shift`."""

    shift = 0.0

    def __init__(self, model_version: ModelVersion) -> None:
        self.model_version = model_version

    @classmethod
    def open(cls, path: Path, kind: Kind, model_version: ModelVersion, digest: str | None = None) -> StubTower:
        return cls(model_version)

    def embed(self, features: pa.StructArray) -> VersionedEmbeddings:
        return VersionedEmbeddings(unit(pc.struct_field(features, "x").to_numpy() + self.shift), self.model_version)


def unit(x: np.ndarray) -> np.ndarray:
    return np.stack([np.cos(x), np.sin(x)], axis=1).astype(np.float32)


def write_plain(directory: Path, kind: Kind, contents: dict[str, Any], version: bool, inputs: Any = None) -> None:
    directory.mkdir(parents=True)
    (directory / "report.json").write_text(json.dumps(contents))
    number = V1.model_version if version else None
    write_tag(directory, kind, run="r", schema=SCHEMA, rows=1, model_version=number, inputs=inputs)


class Parts:
    """All parts of v1.1 below a root."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.recall = 0.5
        Registry(LocalStorage(str(root))).mint_version("r", "test")

    def __getitem__(self, kind: Kind) -> Path:
        return self.root / "runs" / "r" / kind

    def tags(self, *kinds: Kind) -> dict[str, Any]:
        return {f"role of {kind}": read_tag(self[kind]) for kind in kinds}

    def build(self) -> None:
        write_entities(self[Kind.ENTITIES], CANDIDATES, QUERIES)
        for kind in (Kind.QUERY_TOWER, Kind.CANDIDATE_TOWER):
            write_plain(self[kind], kind, {"side": kind}, version=True)
        for kind in (Kind.EXAMPLES, Kind.PREPROCESSING):
            write_plain(self[kind], kind, {"cuts": {"test_from": "2026-01-01"}}, version=False)
        self.evaluation()
        self.embeddings()

    def evaluation(self) -> None:
        test = {"model": {"recall@5": self.recall}, "popularity": {"recall@5": 0.25}, "queries": 9, "candidates": 30}
        inputs = self.tags(Kind.QUERY_TOWER, Kind.CANDIDATE_TOWER)
        write_plain(self[Kind.EVALUATION], Kind.EVALUATION, {"test": test}, True, inputs)

    def embeddings(self, candidates: list[str] = CANDIDATES, queries: list[str] = QUERIES) -> None:
        for kind, tower, ids in (
            (Kind.CANDIDATE_EMBEDDINGS, Kind.CANDIDATE_TOWER, candidates),
            (Kind.QUERY_EMBEDDINGS, Kind.QUERY_TOWER, queries),
        ):
            vectors = unit(np.array([float(one[1:]) for one in ids]))
            write_embeddings(
                self[kind],
                kind,
                V1,
                ids,
                vectors,
                {"tower": read_tag(self[tower]), "entities": read_tag(self[Kind.ENTITIES])},
            )
        common: dict[str, Any] = {"model_version": V1.model_version, "run_id": "r"}
        build_index.run(
            candidate_embeddings=self[Kind.CANDIDATE_EMBEDDINGS],
            query_embeddings=self[Kind.QUERY_EMBEDDINGS],
            index=self[Kind.INDEX],
            section=IndexSection(),
            **common,
        )
        load_kv.run(
            query_embeddings=self[Kind.QUERY_EMBEDDINGS], kv_load=self[Kind.KV_LOAD], kv_root=self.root / "kv",
            section=KVSection(), **common,
        )  # fmt: skip

    def validate(self, section: GateSection = SECTION, version: ModelVersion = V1.model_version) -> None:
        kinds = (
            Kind.EVALUATION, Kind.ENTITIES, Kind.QUERY_TOWER, Kind.CANDIDATE_TOWER, Kind.QUERY_EMBEDDINGS,
            Kind.CANDIDATE_EMBEDDINGS, Kind.INDEX, Kind.KV_LOAD, Kind.VERDICT,
        )  # fmt: skip
        paths: Any = {str(kind): self[kind] for kind in kinds}
        validate.run(**paths, kv_root=self.root / "kv", model_version=version, run_id="r", section=section)

    def deploy(self, **changed: Path) -> None:
        parts = {str(kind): self[kind] for kind in deploy.PARTS}
        deploy.run(root=str(self.root), release_id=V1, run_id="r", parts={**parts, **changed})

    def verdict(self) -> dict[str, Any]:
        contents = json.loads((self[Kind.VERDICT] / "verdict.json").read_bytes())
        assert contents["passed"] == all(check["passed"] for check in contents["checks"])
        return {check["name"]: check for check in contents["checks"]}

    def remove(self, *kinds: Kind) -> None:
        for kind in kinds:
            for path in sorted(self[kind].rglob("*"), reverse=True):
                path.unlink()
            self[kind].rmdir()


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Parts:
    monkeypatch.setattr(Tower, "open", StubTower.open)
    parts = Parts(tmp_path / "root")
    parts.build()
    return parts


def failed(parts: Parts, section: GateSection = SECTION) -> set[str]:
    """The names of the checks that fail; the verdict is there all the same."""
    with pytest.raises(GateError, match=r"release v1.1 is refused by the gate: .*the live release is unchanged"):
        parts.validate(section)
    assert read_tag(parts[Kind.VERDICT]).kind is Kind.VERDICT
    return {name for name, check in parts.verdict().items() if not check["passed"]}


def test_a_good_release_passes_every_check(parts: Parts) -> None:
    parts.validate()
    checks = parts.verdict()
    assert len(checks) == 28
    assert checks["recall@5"]["value"] == 0.5
    assert checks["recall@5 vs popularity"]["limit"] == 0.25
    assert checks["index: recall@5 against exact search"]["value"] == 1.0
    assert checks["candidates: share embedded"]["value"] == 1.0
    assert checks["key-value store: share of entities"]["value"] == 1.0
    assert checks["queries: canaries, largest difference"]["value"] < 1e-6
    tag = read_tag(parts[Kind.VERDICT])
    assert (tag.model_version, tag.snapshot, tag.rows) == (1, 1, 28)
    assert tag.inputs is not None
    assert tag.inputs["index"] == read_tag(parts[Kind.INDEX]).digest


@pytest.mark.parametrize(
    ("section", "names"),
    [
        ({"min_recall": 0.6}, {"recall@5"}),
        ({"min_recall_vs_popularity": 2.1}, {"recall@5 vs popularity"}),
        ({"k": 7}, {"recall@7"}),
        ({"max_latency_ms": 1e-9}, {"index: median search ms"}),
    ],
)
def test_each_limit_bites(parts: Parts, section: dict, names: set[str]) -> None:
    assert failed(parts, SECTION.model_copy(update=section)) == names


def test_recall_that_is_no_number_fails(parts: Parts) -> None:
    parts.recall = float("nan")
    parts.remove(Kind.EVALUATION)
    parts.evaluation()
    assert failed(parts) == {"recall@5", "recall@5 vs popularity"}


def test_missing_entities_fail_the_coverage(parts: Parts) -> None:
    parts.remove(Kind.CANDIDATE_EMBEDDINGS, Kind.QUERY_EMBEDDINGS, Kind.INDEX, Kind.KV_LOAD)
    parts.embeddings(CANDIDATES[:27], QUERIES[:9])
    expected = {
        "candidates: share embedded", "queries: share embedded", "index: share of candidates",
        "key-value store: share of entities",
    }  # fmt: skip
    assert failed(parts) == expected
    assert parts.verdict()["queries: share embedded"]["value"] == 0.75
    parts.validate(SECTION.model_copy(update={"min_coverage": 0.75}))


def test_strangers_fail(parts: Parts) -> None:
    parts.remove(Kind.CANDIDATE_EMBEDDINGS, Kind.QUERY_EMBEDDINGS, Kind.INDEX, Kind.KV_LOAD)
    parts.embeddings([*CANDIDATES, "c99"])
    assert "candidates: embedded ids that are no entities" in failed(parts)


def test_a_tower_with_other_weights_fails_the_canaries(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StubTower, "shift", 0.001)
    assert failed(parts) == {"queries: canaries, largest difference", "candidates: canaries, largest difference"}
    assert parts.verdict()["queries: canaries, largest difference"]["value"] == pytest.approx(0.001, rel=0.1)


def test_a_check_that_cannot_be_carried_out_fails(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: StubTower, features: pa.StructArray) -> VersionedEmbeddings:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(StubTower, "embed", broken)
    assert failed(parts) == {"check_canaries"}
    assert parts.verdict()["check_canaries"]["note"] == "RuntimeError: out of memory"


def test_parts_of_another_lineage_fail(parts: Parts) -> None:
    parts.remove(Kind.CANDIDATE_TOWER)
    write_plain(parts[Kind.CANDIDATE_TOWER], Kind.CANDIDATE_TOWER, {"side": "trained again"}, version=True)
    assert failed(parts) == {"lineage of candidate_embeddings", "lineage of evaluation"}
    note = parts.verdict()["lineage of candidate_embeddings"]["note"]
    assert note == "its tag names other candidate_tower"


def test_a_store_that_holds_something_else_fails(parts: Parts) -> None:
    with EmbeddedStore(parts.root / "kv" / "embedded", keep=5) as store:
        load = store.begin(V1.model_version, 1, 2, "another", read_tag(parts[Kind.QUERY_TOWER]).digest)
        load.put_many(QUERIES, VersionedEmbeddings(unit(np.ones(12)), V1.model_version))
        load.publish(12)
        assert failed(parts) == {"key-value store: source", "key-value store: vectors unlike the file's"}
        store.retire(V1.model_version)
        assert "key-value store: share of entities" in failed(parts)


def test_broken_or_foreign_parts_stop_before_a_verdict(parts: Parts) -> None:
    with pytest.raises(VersionMismatchError, match=r"evaluation .* is of v1.*v2"):
        parts.validate(version=ModelVersion(2))
    for kind in (Kind.INDEX, Kind.CANDIDATE_EMBEDDINGS, Kind.ENTITIES):
        path = next(path for path in parts[kind].rglob("*") if path.is_file() and path.name != "tag.json")
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(CorruptArtifactError, match=path.name):
            parts.validate()
        path.write_bytes(whole)
    assert not parts[Kind.VERDICT].exists()


def test_deploy_registers_what_answers_and_publish_makes_it_live(parts: Parts) -> None:
    parts.validate()
    parts.deploy()
    registry = Registry(LocalStorage(str(parts.root)))
    assert registry.releases() == [V1]
    assert registry.serving().live is None
    release = registry.release(V1)
    assert release.parts["index"].uri == "runs/r/index"
    assert release.parts["index"].digest == read_tag(parts[Kind.INDEX]).digest
    assert set(release.parts) == {str(kind) for kind in deploy.PARTS}
    tower = read_tag(parts[Kind.QUERY_TOWER]).digest
    assert release.kv == {"backend": "embedded", "namespace": "v1", "tower": tower}
    assert release.metrics["test"]["model"] == {"recall@5": 0.5}
    assert release.gate["passed"] is True
    parts.deploy()
    deploy.publish(root=str(parts.root), release_id=V1, by="t", why="t", section=KVSection())
    answer = Retriever(str(parts.root)).answer(Request("q3", k=2))
    # Query q3 lies at angle 3, and so does c3; c28 is next at 28 - 8 pi = 2.87.
    assert [candidate for candidate, _ in answer.candidates] == ["c3", "c28"]
    assert (answer.release, answer.rung, answer.reasons) == ("v1.1", "kv v1", ())


def test_publish_keeps_the_embeddings_that_a_retained_release_needs(parts: Parts) -> None:
    parts.validate()
    parts.deploy()
    with EmbeddedStore(parts.root / "kv" / "embedded", keep=2) as store:
        for version in (2, 3, 4):
            load = store.begin(ModelVersion(version), 1, 2, "failed the gate", "tower")
            load.put_many(["q1"], VersionedEmbeddings(unit(np.ones(1)), ModelVersion(version)))
            load.publish(1)
        deploy.publish(root=str(parts.root), release_id=V1, by="t", why="t", section=KVSection(keep=2))
        assert [int(one.model_version) for one in store.versions()] == [4, 3, 1]


def spoil_index(parts: Parts) -> None:
    (parts[Kind.INDEX] / "vectors.npy").write_bytes(b"")


def spoil_store(parts: Parts) -> None:
    with EmbeddedStore(parts.root / "kv" / "embedded", keep=5) as store:
        store.retire(V1.model_version)


def spoil_popular(parts: Parts) -> None:
    (parts[Kind.ENTITIES] / "popular.parquet").unlink()


def forge_verdict(parts: Parts) -> None:
    path = parts[Kind.VERDICT] / "verdict.json"
    path.write_text(path.read_text().replace('"limit": 0', '"limit": 9', 1))


def forge_report(parts: Parts) -> None:
    path = parts[Kind.EVALUATION] / "report.json"
    path.write_text(path.read_text().replace("0.5", "0.9", 1))


def fail_the_gate(parts: Parts) -> None:
    with pytest.raises(GateError):
        parts.validate(SECTION.model_copy(update={"min_recall": 0.99}))


def rebuild_after_the_gate(parts: Parts) -> None:
    parts.remove(Kind.CANDIDATE_EMBEDDINGS, Kind.QUERY_EMBEDDINGS, Kind.INDEX, Kind.KV_LOAD)
    parts.embeddings()


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (spoil_index, ReleaseError, r"does not answer for 'q0' \(popular\): v1.1: .*vectors.npy is corrupt"),
        (spoil_store, ReleaseError, "no v1 embedding of 'q0'"),
        (spoil_popular, ArtifactError, r"popular.parquet"),
        (forge_verdict, CorruptArtifactError, "verdict.json is corrupt"),
        (forge_report, CorruptArtifactError, "evaluation/report.json is corrupt"),
        (fail_the_gate, ReleaseError, "failed the gate"),
        (rebuild_after_the_gate, ReleaseError, "the gate judged .* run validate_release on these parts"),
    ],
)
def test_what_does_not_answer_is_not_registered(
    parts: Parts, spoil: Callable[[Parts], None], error: type[Exception], message: str
) -> None:
    parts.validate()
    spoil(parts)
    with pytest.raises(error, match=message):
        parts.deploy()
    assert Registry(LocalStorage(str(parts.root))).releases() == []


def test_a_part_in_the_wrong_role_is_refused(parts: Parts) -> None:
    parts.validate()
    with pytest.raises(ArtifactError, match=r"expected '?index"):
        parts.deploy(index=parts[Kind.CANDIDATE_EMBEDDINGS])
