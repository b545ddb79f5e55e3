"""The measurement of mixed versions, on towers and embeddings made by hand so that the figures are known.

Query i of version A looks exactly like its first target and is the opposite of its second one: whatever k, its own
candidates give it half of its targets. Version B is A turned by a random rotation, C is a copy of A, and D has another
dimension.
"""

from __future__ import annotations

import ast
import csv
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from click.testing import CliRunner, Result

from lockstep.errors import ArtifactError, DataError, LockstepError, ReleaseError, StorageError
from lockstep.model_sections import EvaluateSection, ModelSection, TrainSection
from lockstep.registry import Part, Registry, Release
from lockstep.schema import Schema
from lockstep.storage import LocalStorage
from lockstep.tags import Kind, Tag, open_artifact, read_tag, write_tag
from lockstep.towers import Tower
from lockstep.version import ModelVersion, ReleaseId
from pipelines.cli import main
from tests.fakes.stub_releases import write_embeddings
from tests.unit.trainer_artifacts import CANDIDATES, make_artifacts
from trainer import task
from trainer.evaluate import embed
from trainer.evaluation.bootstrap import intervals
from trainer.evaluation.measures import measure as evaluated
from trainer.evaluation.queries import Queries, candidate_features, read_catalogue, read_queries
from trainer.evaluation.ranking import Products
from trainer.skew import job
from trainer.skew.heat_map import colour, contrast, heat_map, ink_on
from trainer.skew.mixing import Asked, CandidateVectors, chance, mix
from trainer.skew.table import csv_of, table

ROOT = Path(__file__).parent.parent.parent
SCHEMA = Schema.model_validate(
    {"query": {"name": {"type": "id"}}, "candidate": {"track": {"type": "id", "columns": ["candidate_id"]}}}
)
OTHER_SCHEMA = Schema.model_validate(
    {
        "query": {"name": {"type": "id"}, "mood": {"type": "numeric"}},
        "candidate": {"track": {"type": "id", "columns": ["candidate_id"]}},
    }
)
N, DIM, QUERIES = 401, 64, 120
"""Candidate 0 is in every history, so 400 are ranked."""
V1, V2 = ModelVersion(1), ModelVersion(2)


@dataclass(frozen=True)
class World:
    """Vectors of version A: pairs of opposite candidates, and queries on top of one of them."""

    candidates: np.ndarray
    targets: np.ndarray

    @property
    def queries(self) -> np.ndarray:
        return self.candidates[self.targets[:, 0]]


def make_world() -> World:
    rng = np.random.default_rng(5)
    half = rng.normal(size=(200, DIM))
    half /= np.linalg.norm(half, axis=1, keepdims=True)
    candidates = np.concatenate([np.eye(1, DIM), half, -half]).astype(np.float32)
    first = 1 + rng.choice(200, QUERIES, replace=False)
    return World(candidates, np.stack([first, first + 200], axis=1))


WORLD = make_world()
TURN = np.linalg.qr(np.random.default_rng(6).normal(size=(DIM, DIM)))[0].astype(np.float32)
WIDER = np.pad(np.eye(DIM, dtype=np.float32), ((0, 0), (0, 4)))


class _Table(tf.Module):
    """A query tower that knows each query's vector by its name."""

    def __init__(self, vectors: np.ndarray, version: int, names: tuple[str, ...]) -> None:
        super().__init__()
        keys = tf.constant([f"q{i:03d}" for i in range(len(vectors))])
        rows = tf.range(len(vectors), dtype=tf.int64)
        self.table = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(keys, rows), -1)
        self.vectors = tf.Variable(vectors)
        self.version = version
        self.place = names.index("name")
        specs = {"name": tf.TensorSpec([None], tf.string, "name"), "mood": tf.TensorSpec([None], tf.float32, "mood")}
        self.serve = tf.function(self.embed, input_signature=[specs[name] for name in names])

    def embed(self, *inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        rows = self.table.lookup(inputs[self.place])
        version = tf.fill(tf.shape(rows), tf.constant(self.version, tf.int64))
        return {"embedding": tf.gather(self.vectors, rows), "model_version": version}


def write_tower(
    path: Path, version: ModelVersion, vectors: np.ndarray, schema: Schema = SCHEMA, warm: Tag | None = None
) -> Tag:
    module = _Table(np.ascontiguousarray(vectors, dtype=np.float32), int(version), tuple(schema.query))
    tf.saved_model.save(module, str(path / "saved_model"), signatures={"serving_default": module.serve})
    (path / "schema.json").write_bytes(schema.to_json())
    inputs = {} if warm is None else {"warm_start_query_tower": warm}
    return write_tag(
        path, Kind.QUERY_TOWER, run="r", schema=schema.digest, rows=0, model_version=version, inputs=inputs
    )  # fmt: skip


def write_examples(path: Path, targets: np.ndarray, ids: list[str]) -> Tag:
    """Popularity is the candidate's index, backwards: the first of all is the most popular."""
    (path / "test").mkdir(parents=True)
    names = [f"q{i:03d}" for i in range(len(targets))]
    queries = {
        "id": pa.array(names, pa.string()),
        "features": pa.array([{"name": name} for name in names], pa.struct([("name", pa.string())])),
        "history": pa.array([[ids[0]] for _ in names], pa.list_(pa.string())),
        "targets": pa.array([[ids[t] for t in of] for of in targets.tolist()], pa.list_(pa.string())),
        "cold": pa.array([False for _ in names], pa.bool_()),
    }
    pq.write_table(pa.table(queries), path / "test" / "part-0.parquet")
    counts = list(range(len(ids), 0, -1))
    names_of_counts = ("count", "popular_30d", "popular_30d_validation")
    catalogue = {"id": ids, **dict.fromkeys(names_of_counts, counts), "known_before_validation": [True] * len(ids)}
    pq.write_table(pa.table(catalogue), path / "catalogue.parquet")
    (path / "train").mkdir()
    (path / "train" / "part-0.tfrecord").write_bytes(b"never read")
    (path / "schema.json").write_bytes(SCHEMA.to_json())
    return write_tag(path, Kind.EXAMPLES, run="r", schema=SCHEMA.digest, rows=1)


class SkewRoot:
    """A root of releases that hold what the comparison reads, and nothing else."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.storage = LocalStorage(str(path))
        self.registry = Registry(self.storage)
        self.ids = [f"c{i:03d}" for i in range(N)]

    def folder(self, release: str, kind: Kind) -> Path:
        return self.path / "runs" / release / kind

    def add(
        self,
        release: str,
        turn: np.ndarray | None = None,
        *,
        schema: Schema = SCHEMA,
        keep: slice = slice(None),
        extra: int = 0,
        targets: np.ndarray = WORLD.targets,
        warm: str | None = None,
        test_from: str = "2024-05-01",
        publish: bool = True,
    ) -> None:
        release_id = ReleaseId.parse(release)
        turn = np.eye(DIM, dtype=np.float32) if turn is None else turn
        order = np.random.default_rng(int(release_id.model_version)).permutation(np.arange(N)[keep])
        ids = [self.ids[i] for i in order] + [f"new{i}" for i in range(extra)]
        vectors = np.concatenate([WORLD.candidates[order], np.tile(WORLD.candidates[:1], (extra, 1))]) @ turn
        begun = None if warm is None else read_tag(self.folder(warm, Kind.QUERY_TOWER))
        tags = {
            Kind.QUERY_TOWER: write_tower(
                self.folder(release, Kind.QUERY_TOWER), release_id.model_version, WORLD.queries @ turn, schema, begun
            ),
            Kind.CANDIDATE_EMBEDDINGS: write_embeddings(
                self.folder(release, Kind.CANDIDATE_EMBEDDINGS), Kind.CANDIDATE_EMBEDDINGS, release_id, ids, vectors
            ),
            Kind.EXAMPLES: write_examples(self.folder(release, Kind.EXAMPLES), targets, self.ids),
        }
        parts = {
            str(kind): Part(kind, self.storage.relative(str(self.folder(release, kind))), tag.digest)
            for kind, tag in tags.items()
        }
        window = {"test_from": test_from}
        while release_id.model_version not in self.registry.versions():
            self.registry.mint_version("r", "test")
        self.registry.add_release(Release(release_id, "r", schema.digest, parts, kv={}, data_window=window))
        if publish:
            self.registry.publish(release_id, by="test", why="test")

    def measure(self, output: Path, *versions: int, ks: tuple[int, ...] = (20, 100), queries: int = 2_000) -> Any:
        return job.run(
            root=str(self.path), versions=[ModelVersion(v) for v in versions], ks=ks, queries=queries, output=output,
            threads=2,
        )  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> SkewRoot:
    """v1 = A, v2 = B (A turned), v3 = C (a copy of A, begun with its weights), v4 = D (of 68 dimensions)."""
    root = SkewRoot(tmp_path_factory.mktemp("skew") / "root")
    root.add("v1.1")
    root.add("v2.1", TURN)
    root.add("v3.1", warm="v1.1")
    root.add("v4.1", WIDER)
    return root


@pytest.fixture(scope="module")
def measured(root: SkewRoot, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    output = tmp_path_factory.mktemp("measured") / "new" / "folder"
    return root.measure(output), output


@pytest.fixture
def copied(root: SkewRoot, tmp_path: Path) -> SkewRoot:
    """The root, to be damaged."""
    shutil.copytree(root.path, tmp_path / "copy")
    return SkewRoot(tmp_path / "copy")


def pair(report: dict[str, Any], queries: int, candidates: int) -> dict[str, Any]:
    (found,) = (of for of in report["pairs"] if (of["query_version"], of["candidate_version"]) == (queries, candidates))
    return found


# The figures


@pytest.mark.parametrize("k", [20, 100])
@pytest.mark.parametrize("version", [1, 2, 3, 4])
def test_a_version_finds_half_of_its_targets_among_its_own(
    measured: tuple[dict[str, Any], Path], version: int, k: int
) -> None:
    own = pair(measured[0], version, version)
    assert own["matched"] is True
    assert own[f"recall@{k}"] == {"value": 0.5, "low": 0.5, "high": 0.5}  # the first target first, the second last
    assert own["mrr"]["value"] == 1.0
    assert own[f"kept@{k}"] == 1.0


@pytest.mark.parametrize(("queries", "candidates"), [(1, 2), (2, 1), (2, 3), (3, 2)])
def test_a_rotation_of_the_same_model_is_no_better_than_chance(
    measured: tuple[dict[str, Any], Path], queries: int, candidates: int
) -> None:
    mixed = pair(measured[0], queries, candidates)
    assert mixed["matched"] is False
    for k in (20, 100):
        recall, by_chance = mixed[f"recall@{k}"], k / 400
        # Two targets that are opposite, so in the top quarter at most one: a standard error of about 0.02 at most.
        assert recall["value"] == pytest.approx(by_chance, abs=0.06)
        assert recall["low"] < recall["value"] < recall["high"]
        assert mixed[f"kept@{k}"] == pytest.approx(recall["value"] / 0.5, abs=1e-5)


@pytest.mark.parametrize(("queries", "candidates"), [(1, 3), (3, 1)])
def test_a_copy_of_the_same_model_loses_nothing(
    measured: tuple[dict[str, Any], Path], queries: int, candidates: int
) -> None:
    mixed = pair(measured[0], queries, candidates)
    assert mixed["matched"] is False
    assert mixed["recall@20"]["value"] == mixed["recall@100"]["value"] == 0.5
    assert mixed["kept@20"] == 1.0


def test_other_dimensions_have_no_product(measured: tuple[dict[str, Any], Path]) -> None:
    assert pair(measured[0], 1, 4) == {
        "query_version": 1,
        "candidate_version": 4,
        "matched": False,
        "not_comparable": "vectors of v1 and v4 have different dimensions, and no product",
    }
    assert [of["dim"] for of in measured[0]["versions"]] == [64, 64, 64, 68]


def test_chance_and_popularity_stand_beside(measured: tuple[dict[str, Any], Path]) -> None:
    report = measured[0]
    assert report["chance"][0] == {"candidate_version": 1, "recall@20": 0.05, "recall@100": 0.25}
    for of in report["popularity"]:
        # Candidate 0 is every query's past, so the 20 most popular are those of index 1 to 20.
        assert of["recall@20"]["value"] == pytest.approx((WORLD.targets <= 20).sum() / (2 * QUERIES), abs=1e-6)


def test_a_warm_start_is_named(measured: tuple[dict[str, Any], Path]) -> None:
    assert measured[0]["notes"][0] == "v3 began with the weights of v1 (a warm start)"


def test_versions_that_are_one_model_are_named(measured: tuple[dict[str, Any], Path]) -> None:
    (note,) = measured[0]["notes"][1:]
    assert note.startswith("v1 and v3 are the same model, as the same data, settings and seed give")


def test_opposite_vectors_are_found_last() -> None:
    """A against -A: the first target comes last of 400, the second first; so nothing but the order decides."""
    queries = asked(WORLD.targets[:, :1])
    candidates = CandidateVectors(-WORLD.candidates, np.ones(N, dtype=bool))
    found = mix(WORLD.queries, candidates, Asked(queries, (399, 400)), "test")
    assert found is not None
    np.testing.assert_array_equal(found["recall@399"], 0.0)
    np.testing.assert_array_equal(found["recall@400"], 1.0)
    np.testing.assert_allclose(found["mrr"], 1 / 400)


def test_a_candidate_that_the_version_lacks_is_missed_and_not_ranked() -> None:
    held = np.ones(N, dtype=bool)
    held[WORLD.targets[:60, 0]] = False
    vectors = np.where(held[:, None], WORLD.candidates, 0)
    found = mix(WORLD.queries, CandidateVectors(vectors, held), Asked(asked(WORLD.targets), (340,)), "test")
    assert found is not None
    # 340 are ranked: all that are held but the past, so what is held is found.
    np.testing.assert_array_equal(found["recall@340"], [0.5] * 60 + [1.0] * 60)
    assert chance(held, asked(WORLD.targets), 17) == pytest.approx(17 / 340 * (0.5 * 0.5 + 0.5 * 1.0))


def test_a_chance_beyond_the_catalogue_is_certain_and_of_nothing_is_none() -> None:
    assert chance(np.ones(N, dtype=bool), asked(WORLD.targets), 1_000) == 1.0
    assert chance(np.zeros(N, dtype=bool), asked(WORLD.targets), 20) == 0.0


def test_queries_in_parts_are_measured_as_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    candidates = CandidateVectors(WORLD.candidates @ TURN, np.ones(N, dtype=bool))
    whole = mix(WORLD.queries, candidates, Asked(asked(WORLD.targets), (20,)), "test")
    monkeypatch.setattr("trainer.skew.mixing._SCORES_BETWEEN_LOOKS", 7 * N)
    parts = mix(WORLD.queries, candidates, Asked(asked(WORLD.targets), (20,)), "test")
    assert whole is not None
    assert parts is not None
    assert whole.keys() == parts.keys() == {"recall@20", "mrr"}
    for name in whole:
        np.testing.assert_array_equal(whole[name], parts[name])


def asked(targets: np.ndarray) -> Queries:
    rows = len(targets)
    return Queries(
        pa.array([{"name": "q"}] * rows),
        [np.array([0])] * rows,
        [np.sort(of) for of in targets],
        np.full(rows, targets.shape[1]),
        np.zeros(rows, dtype=bool),
    )


# What is compared


def test_catalogues_meet_by_id(tmp_path: Path) -> None:
    """v1 knows half of the candidates, in another order, and some that the queries' catalogue lacks."""
    root = SkewRoot(tmp_path / "root")
    root.add("v1.1", keep=slice(0, 201), extra=3)  # the first half of each pair: every first target, no second
    root.add("v2.1")
    report = root.measure(tmp_path / "out")
    assert [(of["candidates"], of["ranked"], of["held_out_known"]) for of in report["versions"]] == [
        (204, 201, 0.5),
        (401, 401, 1.0),
    ]
    assert pair(report, 2, 1)["recall@20"]["value"] == pair(report, 1, 1)["recall@20"]["value"] == 0.5
    assert pair(report, 2, 1)["mrr"]["value"] == 1.0
    assert report["chance"][0]["recall@20"] == pytest.approx(20 / 200 * 0.5)
    assert "201 to 401 candidates" in table(report)


def test_all_are_asked_the_queries_of_the_newest(root: SkewRoot, tmp_path: Path, copied: SkewRoot) -> None:
    copied.add("v5.1", targets=WORLD.targets[:30])
    report = copied.measure(tmp_path / "out", 5, 1)
    assert report["queries"]["model_version"] == 5
    assert report["queries"]["asked"] == report["queries"]["of"] == 30
    assert [of["model_version"] for of in report["versions"]] == [1, 5]


def test_fewer_queries_are_drawn_the_same_each_time(root: SkewRoot, tmp_path: Path) -> None:
    reports = [root.measure(tmp_path / name, 1, 2, queries=25) for name in ("a", "b")]
    assert (reports[0]["queries"]["asked"], reports[0]["queries"]["of"]) == (25, 120)
    assert reports[0]["pairs"] == reports[1]["pairs"]
    assert pair(reports[0], 1, 1)["recall@20"]["value"] == 0.5  # each query still has its own vector and targets


def test_a_version_is_its_newest_snapshot(copied: SkewRoot, tmp_path: Path) -> None:
    copied.add("v1.2", TURN)
    report = copied.measure(tmp_path / "out", 1, 2)
    assert [of["release"] for of in report["versions"]] == ["v1.2", "v2.1"]
    assert pair(report, 1, 2)["kept@20"] == 1.0  # turned alike


def test_by_default_the_retained_are_compared(copied: SkewRoot, tmp_path: Path) -> None:
    copied.add("v5.1", publish=False)
    assert [of["model_version"] for of in copied.measure(tmp_path / "a")["versions"]] == [1, 2, 3, 4]
    assert [of["model_version"] for of in copied.measure(tmp_path / "b", 5, 5, 2)["versions"]] == [2, 5]


def test_a_version_that_may_have_seen_the_answers_is_named(copied: SkewRoot, tmp_path: Path) -> None:
    copied.add("v5.1", test_from="2024-04-01")
    (note,) = copied.measure(tmp_path / "out", 2, 5)["notes"]
    assert note.startswith("v2 may have learnt from events after 2024-04-01, which the test queries of v5 hold out")


def test_a_release_whose_parts_are_gone_is_left_out(copied: SkewRoot, tmp_path: Path) -> None:
    shutil.rmtree(copied.folder("v2.1", Kind.CANDIDATE_EMBEDDINGS))
    report = copied.measure(tmp_path / "out")
    assert [of["model_version"] for of in report["versions"]] == [1, 3, 4]
    assert list(report["left_out"]) == ["v2"]
    assert "is no finished artifact: there is no such folder" in report["left_out"]["v2"]
    assert "v2 is left out: " in table(report)


def test_a_damaged_part_is_left_out(copied: SkewRoot, tmp_path: Path) -> None:
    file = copied.folder("v1.1", Kind.CANDIDATE_EMBEDDINGS) / "part-00000-of-00001.parquet"
    data = bytearray(file.read_bytes())
    data[100] ^= 1
    file.write_bytes(data)
    assert "is corrupt: found sha256" in copied.measure(tmp_path / "out")["left_out"]["v1"]


def test_a_tower_of_other_features_is_left_out(copied: SkewRoot, tmp_path: Path) -> None:
    copied.add("v5.1", schema=OTHER_SCHEMA)
    copied.add("v6.1")
    report = copied.measure(tmp_path / "out", 1, 5, 6)
    assert report["left_out"] == {
        "v5": "its query tower takes mood, which the test queries of v6 do not have, or have of another type or column"
    }


# What is refused


def refused(root: SkewRoot, output: Path, error: type[LockstepError], *versions: int) -> str:
    with pytest.raises(error) as caught:
        root.measure(output, *versions)
    assert not output.exists()
    return str(caught.value)


def test_nothing_published(tmp_path: Path) -> None:
    sentence = refused(SkewRoot(tmp_path / "none"), tmp_path / "out", ReleaseError)
    assert sentence == f"nothing is published in {tmp_path}/none: `lockstep run --config FILE` publishes a release"


def test_one_version(tmp_path: Path) -> None:
    root = SkewRoot(tmp_path / "root")
    root.add("v1.1")
    root.add("v1.2")
    assert refused(root, tmp_path / "out", ReleaseError) == (
        f"there is one version to compare in {root.path}, v1: train again (`lockstep run`), then compare"
    )


def test_an_unknown_version(root: SkewRoot, tmp_path: Path) -> None:
    sentence = refused(root, tmp_path / "out", ReleaseError, 1, 9)
    assert sentence == f"v9 has no release in {root.path}, which has releases of v1, v2, v3, v4"


def test_only_one_left(copied: SkewRoot, tmp_path: Path) -> None:
    shutil.rmtree(copied.folder("v1.1", Kind.QUERY_TOWER))
    sentence = refused(copied, tmp_path / "out", ReleaseError, 1, 2)
    assert sentence.startswith("only v2 is left to compare (v1: ")
    shutil.rmtree(copied.folder("v2.1", Kind.QUERY_TOWER))
    assert refused(copied, tmp_path / "out", ReleaseError, 1, 2).startswith("no version is left to compare (v2: ")


@pytest.mark.parametrize("name", ["test/part-0.parquet", "catalogue.parquet"])
def test_damaged_or_lost_test_queries(copied: SkewRoot, tmp_path: Path, name: str) -> None:
    file = copied.folder("v4.1", Kind.EXAMPLES) / name
    file.write_bytes(file.read_bytes()[:-1])
    sentence = refused(copied, tmp_path / "out", ArtifactError)
    assert sentence.startswith("the test queries of v4, which all versions are asked, cannot be read: ")
    assert sentence.endswith("or leave it out with --versions")
    file.unlink()
    refused(copied, tmp_path / "out", ArtifactError)
    assert copied.measure(tmp_path / "out", 1, 2, 3)["queries"]["model_version"] == 3


def test_damage_to_what_is_not_read_does_not_matter(copied: SkewRoot, tmp_path: Path) -> None:
    (copied.folder("v4.1", Kind.EXAMPLES) / "train" / "part-0.tfrecord").unlink()
    assert copied.measure(tmp_path / "out")["queries"]["model_version"] == 4


def test_no_test_queries(copied: SkewRoot, tmp_path: Path) -> None:
    copied.add("v5.1", targets=np.empty((0, 2), dtype=np.int64))
    assert "has no test queries: move [data] test_from back" in refused(copied, tmp_path / "out", DataError)


def test_nothing_in_common(copied: SkewRoot, tmp_path: Path) -> None:
    copied.add("v5.1", keep=slice(0, 0), extra=5)
    with pytest.raises(DataError, match=r"none of the 401 candidates of the test queries is among the 5 of v5\.1"):
        copied.measure(tmp_path / "out", 1, 5)


def test_an_artifact_is_never_written_to(root: SkewRoot) -> None:
    folder = root.folder("v1.1", Kind.EXAMPLES)
    with pytest.raises(StorageError, match="is an artifact, which never changes"):
        root.measure(folder)
    open_artifact(folder, Kind.EXAMPLES)


def test_an_output_that_cannot_be_made(root: SkewRoot, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for output in (tmp_path / "file" / "out", tmp_path / "file", Path("/proc")):
        with pytest.raises(StorageError, match=f"cannot write {output}: .*; name another folder with --output"):
            root.measure(output)


# What is written


def test_the_result_says_what_it_is_and_is_no_artifact(measured: tuple[dict[str, Any], Path]) -> None:
    report, output = measured
    assert sorted(path.name for path in output.iterdir()) == ["skew.csv", "skew.json", "skew.svg"]
    written = json.loads((output / "skew.json").read_text())
    assert written == report
    assert next(iter(written)) == "what"
    assert "mixed on purpose" in written["what"]
    assert table(report).replace("\n", " ").startswith(written["what"])
    assert written["what"] in (output / "skew.svg").read_text()


def test_no_vector_or_candidate_is_written(measured: tuple[dict[str, Any], Path]) -> None:
    for path in measured[1].iterdir():
        assert "c001" not in path.read_text()


def test_only_the_command_reaches_it() -> None:
    """Nothing that serves, and no step of a pipeline, imports the module in which versions are mixed."""
    importers = set()
    for folder in ("lockstep", "dataflow", "trainer", "serving", "components", "pipelines"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                names += [f"{name}.{a.name}" for name in names for a in node.names]
                names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                if any(name.startswith(("trainer.skew", "pipelines.skew")) for name in names):
                    importers.add(path.relative_to(ROOT).as_posix())
    outside = {name for name in importers if not name.startswith("trainer/skew/")}
    assert outside == {"pipelines/skew.py", "pipelines/cli.py"}
    assert "trainer/skew/job.py" in importers  # the search finds something


def test_the_table(measured: tuple[dict[str, Any], Path]) -> None:
    lines = table(measured[0]).splitlines()
    assert lines[2] == "120 of 120 test queries of v4, 401 candidates, each query's own past left out"
    heading = next(line for line in lines if line.startswith("recall@20 "))
    assert heading.split("  ")[0] == "recall@20"
    assert heading.count("candidates of v") == 4
    of_v1 = lines[lines.index(heading) + 1]
    assert of_v1.startswith("queries of v1  0.5000* [0.5000, 0.5000]  ")
    assert of_v1.endswith("  -")
    assert lines[lines.index(heading) + 6].split() == ["chance", "0.0500", "0.0500", "0.0500", "0.0500"]
    assert any(line.startswith("- vectors of v1 and v4 have different dimensions") for line in lines)


def test_the_range_that_mixed_pairs_keep(measured: tuple[dict[str, Any], Path]) -> None:
    report = measured[0]
    shares = [of["kept@20"] for of in report["pairs"] if not of["matched"] and "kept@20" in of]
    assert len(shares) == 6
    sentence = f"those of another version keep {100 * min(shares):.1f} to 100.0 %"
    assert sentence in table(report)


def test_the_csv(measured: tuple[dict[str, Any], Path]) -> None:
    rows = list(csv.DictReader(csv_of(measured[0]).splitlines()))
    assert len(rows) == 4 * 4 + 2 * 4
    assert (rows[0]["queries"], rows[0]["candidates"], rows[0]["matched"], rows[0]["recall@20"]) == (
        "v1", "v1", "true", "0.5",
    )  # fmt: skip
    assert rows[3]["recall@20"] == rows[3]["mrr_low"] == ""
    assert (rows[-1]["queries"], rows[-1]["candidates"], rows[-1]["recall@100"], rows[-1]["recall@100_low"]) == (
        "chance", "v4", "0.25", "",
    )  # fmt: skip


SVG = "{http://www.w3.org/2000/svg}"


def test_the_heat_map_has_every_figure_in_its_place(measured: tuple[dict[str, Any], Path]) -> None:
    report, output = measured
    svg = ElementTree.parse(output / "skew.svg").getroot()
    assert svg.findtext(f"{SVG}title") == "Offline: what mixing model versions would cost"
    texts = [(float(t.get("y")), float(t.get("x")), t.text) for t in svg.iter(f"{SVG}text")]  # type: ignore[arg-type]
    tops = [y for y, _, text in texts if text in ("recall@20", "recall@100")]
    columns = {text: x for y, x, text in texts if y == tops[0] and str(text).startswith("candidates")}
    for panel, k in enumerate((20, 100)):
        bottom = tops[panel + 1] if panel == 0 else float("inf")
        lines = {
            text: y for y, _, text in texts if tops[panel] < y < bottom and str(text).startswith(("queries", "chance"))
        }
        for of in report["pairs"] + [{"query_version": None, **of} for of in report["chance"]]:
            label = "chance" if of["query_version"] is None else f"queries of v{of['query_version']}"
            x = columns[f"candidates of v{of['candidate_version']}"]
            found = of.get(f"recall@{k}")
            value = found["value"] if isinstance(found, dict) else found
            cell = [text for y, at, text in texts if at == x and abs(y - lines[label]) < 20]
            expected = ["-"] if value is None else [f"{value:.4f}"]
            if isinstance(found, dict):
                expected.append(f"{found['low']:.4f} – {found['high']:.4f}")
            assert cell == expected


def test_matched_pairs_are_framed_and_more_is_darker(measured: tuple[dict[str, Any], Path]) -> None:
    svg = ElementTree.parse(measured[1] / "skew.svg").getroot()
    boxes = list(svg.iter(f"{SVG}rect"))
    assert len([box for box in boxes if box.get("fill") == "none" and box.get("stroke")]) == 2 * 4
    lightness = [contrast(colour(share / 100), "#000000") for share in range(101)]
    assert lightness == sorted(lightness, reverse=True)
    assert min(contrast(ink_on(colour(share / 100)), colour(share / 100)) for share in range(101)) >= 4.5


def test_a_pair_without_a_product_says_why_in_the_picture(measured: tuple[dict[str, Any], Path]) -> None:
    svg = ElementTree.parse(measured[1] / "skew.svg").getroot()
    reasons = [title.text for box in svg.iter(f"{SVG}rect") for title in box.iter(f"{SVG}title")]
    assert len(reasons) == 2 * 6
    assert "vectors of v4 and v2 have different dimensions, and no product" in reasons


def test_few_queries_have_no_interval(root: SkewRoot, tmp_path: Path) -> None:
    report = root.measure(tmp_path / "out", 1, 2, queries=9)
    assert pair(report, 1, 1)["recall@20"] == {"value": 0.5, "low": None, "high": None}
    assert "queries of v1  0.5000*  " in table(report)
    assert b"0.5000 \xe2\x80\x93" not in heat_map(report)


def test_the_interval_is_that_of_the_evaluation(measured: tuple[dict[str, Any], Path], root: SkewRoot) -> None:
    candidates = CandidateVectors(WORLD.candidates @ TURN, np.ones(N, dtype=bool))
    found = mix(WORLD.queries, candidates, Asked(asked(WORLD.targets), (20,)), "test")
    assert found is not None
    low, high = intervals(found["recall@20"][:, None], 1_000, 1)
    of = pair(measured[0], 1, 2)["recall@20"]
    assert (of["low"], of["high"]) == (pytest.approx(low[0], abs=1e-6), pytest.approx(high[0], abs=1e-6))


# The command


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["skew", *map(str, arguments)])


def test_the_command_prints_the_table_and_writes_the_files(root: SkewRoot, tmp_path: Path) -> None:
    result = invoke("--root", root.path, "--versions", "v1, 2", "--k", "20,5,20", "--output", tmp_path / "out")
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "out" / "skew.json").read_text())
    assert report["ks"] == [5, 20]
    assert [of["model_version"] for of in report["versions"]] == [1, 2]
    assert table(report) in result.output
    assert result.output.rstrip().endswith(f"wrote skew.json, skew.csv and skew.svg to {tmp_path / 'out'}")


def test_by_default_it_writes_below_the_root(copied: SkewRoot) -> None:
    assert invoke("--root", copied.path, "--versions", "1,2").exit_code == 0
    (folder,) = (copied.path / "skew").iterdir()
    assert (folder / "skew.svg").exists()


def test_a_second_measurement_replaces_the_first(root: SkewRoot, tmp_path: Path) -> None:
    for versions in ("1,2", "1,3"):
        assert invoke("--root", root.path, "--versions", versions, "--output", tmp_path).exit_code == 0
    report = json.loads((tmp_path / "skew.json").read_text())
    assert [of["model_version"] for of in report["versions"]] == [1, 3]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--versions", "v1,x"], "a model version is written like v7, found 'x'"),
        (["--k", "20,0"], "a k is a whole number from 1 to 10,000, found '0'"),
        (["--k", ","], "--k names no depth"),
        (["--queries", "0"], "0 is not in the range x>=1"),
        (["--root", "gs://b/p"], "--root is gs://b/p: give --output, a local or mounted folder."),
        (["--root", "/proc/none"], "Error: nothing is published in /proc/none: `lockstep run --config FILE`"),
    ],
)
def test_each_mistake_is_one_sentence(arguments: list[str], sentence: str) -> None:
    result = invoke(*arguments)
    assert result.exit_code != 0
    assert sentence in result.output
    assert "Traceback" not in result.output


# Real towers


def test_two_trainings_on_the_same_data_do_not_understand_each_other(tmp_path: Path) -> None:
    """Both find their own group's candidates far better than chance, and nothing like it among the other's."""
    made = make_artifacts(tmp_path / "made", queries=60)
    examples = open_artifact(made.examples, Kind.EXAMPLES)
    catalogue = read_catalogue(examples)
    queries = read_queries(examples.path / "test", catalogue)
    features = candidate_features(made.entities / "candidates", catalogue)
    vectors, candidates = {}, {}
    for version in (V1, V2):
        sides = [tmp_path / str(version) / side for side in ("query_tower", "candidate_tower")]
        task.run(
            examples=made.examples, preprocessing=made.preprocessing, query_tower=sides[0], candidate_tower=sides[1],
            work=tmp_path / str(version) / "work", model_version=version, run_id="run-1",
            model=ModelSection(embedding_dim=16, query={"hidden": []}, candidate={"hidden": []}),
            train=TrainSection(batch_size=128, epochs=2, learning_rate=0.02, seed=int(version)),
        )  # fmt: skip
        kinds = (Kind.QUERY_TOWER, Kind.CANDIDATE_TOWER)
        query_tower, candidate_tower = (
            Tower.open(side, kind, version) for side, kind in zip(sides, kinds, strict=True)
        )
        vectors[version] = embed(query_tower, queries.features)
        candidates[version] = CandidateVectors(embed(candidate_tower, features), np.ones(CANDIDATES, dtype=bool))
    recall = {
        (row, column): mix(vectors[row], candidates[column], Asked(queries, (10,)), "test")["recall@10"].mean()  # type: ignore[index]
        for row in vectors
        for column in candidates
    }
    by_chance = chance(candidates[V1].held, queries, 10)
    for row, column in recall:
        if row == column:
            assert recall[row, column] > 4 * by_chance
        else:
            assert recall[row, column] < recall[row, row] / 2
    alone = evaluated(queries, Products(vectors[V1], candidates[V1].vectors), EvaluateSection(ks=(10,)))
    assert recall[V1, V1] == pytest.approx(alone["recall@10"])
