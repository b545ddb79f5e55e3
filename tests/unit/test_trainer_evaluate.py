"""The evaluation job, with towers trained on structured data and with scores written by hand."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lockstep.errors import InputMismatchError, VersionMismatchError
from lockstep.model_sections import EvaluateSection, ModelSection, TrainSection
from lockstep.tags import Kind, read_tag, write_tag
from lockstep.towers import Tower
from lockstep.version import ModelVersion
from tests.unit.trainer_artifacts import IDS, SCHEMA, TITLES, Artifacts, candidate_features, make_artifacts
from trainer import evaluate, task
from trainer.evaluate import Queries, measure
from trainer.report import html_report

V3 = ModelVersion(3)
SECTION = EvaluateSection(ks=(5, 10))


@dataclass(frozen=True)
class Evaluated:
    made: Artifacts
    root: Path

    def run(self, output: Path, made: Artifacts | None = None, version: ModelVersion = V3):
        made = made or self.made
        return evaluate.run(
            examples=made.examples,
            entities=made.entities,
            query_tower=self.root / "query_tower",
            candidate_tower=self.root / "candidate_tower",
            evaluation=output,
            model_version=version,
            run_id="run-1",
            section=SECTION,
        )


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory) -> Evaluated:
    root = tmp_path_factory.mktemp("evaluated")
    made = make_artifacts(root / "made", rows=6_000, queries=40)
    task.run(
        examples=made.examples,
        preprocessing=made.preprocessing,
        query_tower=root / "query_tower",
        candidate_tower=root / "candidate_tower",
        work=root / "work",
        model_version=V3,
        run_id="run-1",
        model=ModelSection(embedding_dim=16, query={"hidden": []}, candidate={"hidden": []}),
        train=TrainSection(batch_size=128, epochs=2, learning_rate=0.02),
    )
    result = Evaluated(made, root)
    result.run(root / "evaluation")
    return result


def report_of(evaluated: Evaluated) -> dict:
    return json.loads((evaluated.root / "evaluation" / "report.json").read_text())


def test_the_model_beats_popularity_widely_on_structured_data(evaluated):
    for split in ("test", "validation"):
        report = report_of(evaluated)[split]
        assert report["model"]["recall@10"] > 3 * report["popularity"]["recall@10"]
        assert report["model"]["ndcg@5"] > 3 * report["popularity_all_time"]["ndcg@5"]
        assert report["model"]["coverage@10"] > 0.5 > report["popularity"]["coverage@10"]
        facts = {name: report[name] for name in ("queries", "candidates", "held_out", "held_out_unknown")}
        assert facts == {"queries": 40, "candidates": 120, "held_out": 200, "held_out_unknown": 0}


def test_the_report_equals_a_naive_count_over_the_exported_towers(evaluated):
    query = Tower.open(evaluated.root / "query_tower", Kind.QUERY_TOWER, V3)
    candidate = Tower.open(evaluated.root / "candidate_tower", Kind.CANDIDATE_TOWER, V3)
    table = pq.read_table(evaluated.made.examples / "test")
    queries = query.embed(table["features"].combine_chunks()).vectors
    candidates = candidate.embed(candidate_features(list(IDS), list(TITLES))).vectors
    found = []
    for vector, history, targets in zip(
        queries, table["history"].to_pylist(), table["targets"].to_pylist(), strict=True
    ):
        ranked = [IDS[i] for i in np.argsort(-(candidates @ vector), kind="stable") if IDS[i] not in history]
        found.append(len(set(ranked[:10]) & set(targets)) / len(targets))
    assert report_of(evaluated)["test"]["model"]["recall@10"] == pytest.approx(np.mean(found), abs=1e-6)


def test_popularity_is_measured_on_the_same_split(evaluated):
    counts = pq.read_table(evaluated.made.examples / "catalogue.parquet")["popular_30d"].to_numpy()
    order = [IDS[i] for i in np.argsort(-counts, kind="stable")]
    rows = pq.read_table(evaluated.made.examples / "test").to_pylist()
    found = [
        len(set([c for c in order if c not in row["history"]][:10]) & set(row["targets"])) / len(row["targets"])
        for row in rows
    ]
    assert report_of(evaluated)["test"]["popularity"]["recall@10"] == pytest.approx(np.mean(found))


def test_running_again_gives_the_same_bytes(evaluated, tmp_path):
    tag = evaluated.run(tmp_path / "again")
    assert tag.files == read_tag(evaluated.root / "evaluation").files
    assert (tag.kind, tag.model_version, tag.rows) == (Kind.EVALUATION, 3, 80)
    towers = {side: read_tag(evaluated.root / side).digest for side in ("query_tower", "candidate_tower")}
    made = {side: read_tag(getattr(evaluated.made, side)).digest for side in ("examples", "entities")}
    assert tag.inputs == {**towers, **made}


def test_history_is_left_out_and_unknown_targets_count_as_missed():
    queries = Queries(
        features=pa.array([{}]),
        history=[np.array([0, 1])],
        targets=[np.array([2, 3])],
        held_out=np.array([4]),  # two of four held-out candidates are unknown to the catalogue
    )
    scores = np.array([[0.9, 0.8, 0.7, 0.1, 0.2]], dtype=np.float32)
    with_history = measure(queries, iter([scores.copy()]), EvaluateSection(ks=(1, 3), exclude_history=False))
    assert (with_history["recall@1"], with_history["recall@3"], with_history["mrr"]) == (
        0.0,
        0.25,
        pytest.approx(1 / 3),
    )
    without = measure(queries, iter([scores.copy()]), EvaluateSection(ks=(1, 3)))
    assert (without["recall@1"], without["recall@3"], without["mrr"]) == (0.25, 0.5, 1.0)
    assert without["coverage@1"] == 0.2
    assert without["coverage@3"] == 0.6


def test_repeated_targets_count_once(tmp_path, evaluated):
    (tmp_path / "test").mkdir()
    rows = pq.read_table(evaluated.made.examples / "test").slice(0, 2).to_pydict()
    rows["targets"] = [["c001", "c001", "new one"], []]
    pq.write_table(
        pa.table({name: pa.array(rows[name], t) for name, t in _types().items()}), tmp_path / "test" / "part-0.parquet"
    )
    catalogue = evaluate.read_catalogue(evaluate.open_artifact(evaluated.made.examples, Kind.EXAMPLES))
    queries = evaluate.read_queries(tmp_path / "test", catalogue)
    assert [t.tolist() for t in queries.targets] == [[1]]  # the query with nothing held out is no query
    assert queries.held_out.tolist() == [2]


def _types() -> dict[str, pa.DataType]:
    from lockstep.features import features_type

    strings = pa.list_(pa.string())
    return {"id": pa.string(), "features": features_type(SCHEMA, "query"), "history": strings, "targets": strings}


def test_towers_of_another_version_are_refused(evaluated, tmp_path):
    with pytest.raises(VersionMismatchError, match=r"query_tower .* is of v3, but its reader is of v4"):
        evaluated.run(tmp_path / "evaluation", version=ModelVersion(4))
    assert not (tmp_path / "evaluation").exists()


def test_towers_trained_on_other_examples_are_refused(evaluated, tmp_path):
    other = make_artifacts(tmp_path / "other", rows=100, queries=5)
    with pytest.raises(InputMismatchError, match="the examples of query_tower"):
        evaluated.run(tmp_path / "evaluation", other)


def test_entities_of_another_run_are_refused(evaluated, tmp_path):
    other = make_artifacts(tmp_path / "other", rows=100, queries=5, run="run-2")
    with pytest.raises(InputMismatchError, match="the run of examples"):
        evaluated.run(tmp_path / "evaluation", Artifacts(evaluated.made.examples, Path(), other.entities))


def test_a_catalogue_that_the_entities_do_not_hold_is_refused(evaluated, tmp_path):
    other = make_artifacts(tmp_path / "other", rows=100, queries=5)
    path = other.entities / "candidates" / "part-0.parquet"
    table = pq.read_table(path)
    pq.write_table(table.filter(pa.compute.not_equal(table["id"], "c007")), path)
    write_tag(other.entities, Kind.ENTITIES, run="run-1", schema=SCHEMA.digest, rows=119)
    with pytest.raises(InputMismatchError, match="candidate 'c007' and 0 others"):
        evaluated.run(tmp_path / "evaluation", Artifacts(evaluated.made.examples, Path(), other.entities))


def test_the_page_shows_the_numbers_and_needs_nothing_else(evaluated):
    page = (evaluated.root / "evaluation" / "report.html").read_text()
    report = report_of(evaluated)
    assert f"{report['test']['model']['recall@10']:.4f}" in page
    assert "Evaluation of v3" in page
    for outside in ("http", "src=", "href=", "<script", "url("):
        assert outside not in page


def test_the_page_escapes_what_it_is_given(evaluated):
    page = html_report({**report_of(evaluated), "run": "<script>alert(1)</script>"})
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_a_split_without_queries_still_makes_a_page():
    empty = {"model": {}, "popularity": {}, "popularity_all_time": {}}
    counts = {"queries": 0, "candidates": 5, "held_out": 0, "held_out_unknown": 0}
    assert "0 queries" in html_report({"model_version": 1, "run": "r", "validation": {**empty, **counts}})
