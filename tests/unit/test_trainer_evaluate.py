"""The evaluation job, with towers trained on structured data and with scores written by hand."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lockstep.errors import ConfigError, DataError, InputMismatchError, VersionMismatchError
from lockstep.model_sections import EvaluateSection, ModelSection, TrainSection
from lockstep.tags import Kind, open_artifact, read_tag, write_tag
from lockstep.towers import Tower
from lockstep.version import ModelVersion
from tests.unit.trainer_artifacts import (
    CANDIDATES,
    GROUPS,
    IDS,
    PER_GROUP,
    SCHEMA,
    TITLES,
    Artifacts,
    candidate_features,
    forget,
    make_artifacts,
    retag,
)
from trainer import evaluate, task
from trainer.evaluation.page import render
from trainer.evaluation.queries import read_catalogue, read_queries

V3 = ModelVersion(3)
SECTION = EvaluateSection(ks=(5, 10), baselines=("item_knn", "ease"), slices=("title", "mood"), bootstrap=200)


@dataclass(frozen=True)
class Evaluated:
    made: Artifacts
    root: Path

    def run(
        self,
        output: Path,
        made: Artifacts | None = None,
        version: ModelVersion = V3,
        section: EvaluateSection = SECTION,
    ):
        made = made or self.made
        return evaluate.run(
            examples=made.examples,
            entities=made.entities,
            query_tower=self.root / "query_tower",
            candidate_tower=self.root / "candidate_tower",
            evaluation=output,
            model_version=version,
            run_id="run-1",
            section=section,
        )


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory) -> Evaluated:
    root = tmp_path_factory.mktemp("evaluated")
    made = make_artifacts(root / "made", rows=6_000, queries=40)
    write_interactions(made)
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


def write_interactions(made: Artifacts) -> None:
    """Entities that stay within their group of candidates, as the queries do; every pair twice."""
    rng = np.random.default_rng(5)
    taken = [(q, q % GROUPS * PER_GROUP + c) for q in range(300) for c in rng.choice(PER_GROUP, 6, replace=False)] * 2
    columns = {"query": pa.array([q for q, _ in taken], pa.int32()), "candidate": pa.array([c for _, c in taken])}
    ages = pa.array(np.ones(len(taken)), pa.float32())
    pq.write_table(pa.table({**columns, "age_days": ages}), made.examples / "interactions.parquet")
    retag(made.examples)


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


def test_the_validation_split_ranks_only_what_was_known_before_it(evaluated, tmp_path, monkeypatch):
    """Without the most popular candidate of each group, which stood first in every ranking by popularity."""
    made = Artifacts(tmp_path / "examples", evaluated.made.preprocessing, evaluated.made.entities)
    shutil.copytree(evaluated.made.examples, made.examples)
    unknown = range(0, CANDIDATES, PER_GROUP)
    forget(made.examples, *unknown)
    # The towers are of the examples as they were.
    monkeypatch.setattr(evaluate, "_check_tower", lambda tower, examples: None)
    evaluated.run(tmp_path / "evaluation", made)
    report = json.loads((tmp_path / "evaluation" / "report.json").read_text())
    before = report_of(evaluated)
    assert report["test"] == before["test"]
    assert (report["validation"]["candidates"], report["test"]["candidates"]) == (114, 120)
    table = pq.read_table(made.examples / "validation")
    candidates = Tower.open(evaluated.root / "candidate_tower", Kind.CANDIDATE_TOWER, V3)
    queries = Tower.open(evaluated.root / "query_tower", Kind.QUERY_TOWER, V3)
    products = (
        queries.embed(table["features"].combine_chunks()).vectors
        @ candidates.embed(candidate_features(list(IDS), list(TITLES))).vectors.T
    )
    counts = pq.read_table(made.examples / "catalogue.parquet")["popular_30d_validation"].to_numpy()
    for name, scores in (("model", products), ("popularity", np.tile(counts, (len(products), 1)))):
        found = []
        for row, of_query in zip(table.to_pylist(), scores, strict=True):
            left_out = {*(IDS[index] for index in unknown), *row["history"]}
            ranked = [IDS[i] for i in np.argsort(-of_query, kind="stable") if IDS[i] not in left_out]
            found.append(len(set(ranked[:10]) & set(row["targets"])) / len(row["targets"]))
        assert report["validation"][name]["recall@10"] == pytest.approx(np.mean(found), abs=1e-6)
        assert report["validation"][name]["recall@10"] != before["validation"][name]["recall@10"]


def test_running_again_gives_the_same_bytes(evaluated, tmp_path):
    tag = evaluated.run(tmp_path / "again")
    assert tag.files == read_tag(evaluated.root / "evaluation").files
    assert (tag.kind, tag.model_version, tag.rows) == (Kind.EVALUATION, 3, 80)
    towers = {side: read_tag(evaluated.root / side).digest for side in ("query_tower", "candidate_tower")}
    made = {side: read_tag(getattr(evaluated.made, side)).digest for side in ("examples", "entities")}
    assert tag.inputs == {**towers, **made}


def test_baselines_that_see_the_history_are_measured_beside(evaluated):
    report = report_of(evaluated)
    for name in ("item_knn", "ease"):
        # A group has 20 candidates, 3 of them in the history and 5 held out: its members first, in whatever order,
        # find more than the third of the 5 that chance finds in the 17 left.
        assert report["test"][name]["recall@10"] > 0.45 > 3 * report["test"]["popularity"]["recall@10"]
        tried = report["baselines"][name]["tried"]
        best = max(tried, key=lambda row: row["recall@10"])
        assert report["baselines"][name]["settings"].items() <= best.items()
        assert report["validation"][name]["recall@10"] == best["recall@10"]


def test_every_mean_lies_in_its_interval_and_gains_are_differences(evaluated):
    report = report_of(evaluated)
    test, details = report["test"], report["details"]["test"]
    assert set(details["intervals"]) == {"model", "popularity", "popularity_all_time", "item_knn", "ease"}
    for name, measures in details["intervals"].items():
        assert set(test[name]) - set(measures) == {"coverage@5", "coverage@10"}
        for measure, of in measures.items():
            assert of["value"] == pytest.approx(test[name][measure], abs=1e-6)
            assert of["low"] <= of["value"] <= of["high"]
    gain = details["gains"]["popularity"]["recall@10"]
    assert gain["value"] == pytest.approx(test["model"]["recall@10"] - test["popularity"]["recall@10"], abs=1e-6)
    assert 0 < gain["low"] < gain["value"] < gain["high"]
    assert details["curves"]["model"]["10"] == pytest.approx(test["model"]["recall@10"], abs=1e-6)
    assert details["curves"]["model"]["100"] <= 1.0


def test_slices_count_what_is_in_them(evaluated):
    slices = report_of(evaluated)["details"]["test"]["slices"]
    found = {(s["of"], s["by"], s["value"]): s for s in slices}
    assert (found["queries", "history", "1 to 4"]["queries"], found["queries", "history", "0"]["queries"]) == (40, 0)
    assert found["candidates", "training", "warm"]["held_out"] == 200
    assert found["candidates", "training", "cold"]["recall"]["model"]["recall@10"]["value"] is None
    thirds = [found["candidates", "popularity", name]["held_out"] for name in ("head", "torso", "tail")]
    assert sum(thirds) == 200
    assert min(thirds) > 0
    # every title is another text: the ten first and the rest
    assert sum(s["held_out"] for s in slices if s["by"] == "title") == 200
    assert len([s for s in slices if s["by"] == "title"]) == 11
    mood = found["queries", "mood", "up to 0"]  # the one value of all queries
    assert mood["recall"]["model"]["recall@10"]["value"] == pytest.approx(
        report_of(evaluated)["test"]["model"]["recall@10"], abs=1e-6
    )


def test_a_baseline_that_does_not_fit_is_left_out_and_the_report_says_so(evaluated, tmp_path):
    evaluated.run(tmp_path / "evaluation", section=EvaluateSection(ks=(10,), bootstrap=0, baseline_max_candidates=100))
    report = json.loads((tmp_path / "evaluation" / "report.json").read_text())
    reason = "120 candidates, more than baseline_max_candidates = 100"
    assert report["baselines"] == {"item_knn": {"left_out": reason}}
    assert "item_knn" not in report["test"]
    assert report["details"]["test"]["intervals"]["model"]["recall@10"]["low"] is None
    assert reason in (tmp_path / "evaluation" / "report.html").read_text()


def test_examples_of_an_earlier_version_are_refused(tmp_path):
    examples = make_artifacts(tmp_path, rows=20, queries=1).examples
    table = pq.read_table(examples / "catalogue.parquet")
    pq.write_table(table.drop_columns("known_before_validation"), examples / "catalogue.parquet")
    retag(examples)
    with pytest.raises(DataError, match="an earlier version of Lockstep made it; rerun generate_examples"):
        read_catalogue(open_artifact(examples, Kind.EXAMPLES))


def test_repeated_targets_count_once(tmp_path, evaluated):
    (tmp_path / "test").mkdir()
    rows = pq.read_table(evaluated.made.examples / "test").slice(0, 2).to_pydict()
    rows["targets"] = [["c001", "c001", "new one"], []]
    pq.write_table(
        pa.table({name: pa.array(rows[name], t) for name, t in _types().items()}), tmp_path / "test" / "part-0.parquet"
    )
    catalogue = read_catalogue(open_artifact(evaluated.made.examples, Kind.EXAMPLES))
    queries = read_queries(tmp_path / "test", catalogue)
    assert [t.tolist() for t in queries.targets] == [[1]]  # the query with nothing held out is no query
    assert queries.held_out.tolist() == [2]


def _types() -> dict[str, pa.DataType]:
    from lockstep.features import features_type

    strings = pa.list_(pa.string())
    lists = {"history": strings, "targets": strings}
    return {"id": pa.string(), "features": features_type(SCHEMA, "query"), **lists, "cold": pa.bool_()}


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
    details = report["details"]["test"]
    interval = details["intervals"]["model"]["mrr"]  # stands in one table only
    gain = details["gains"]["ease"]["recall@10"]
    tail = next(of for of in details["slices"] if of["value"] == "tail")["recall"]["model"]["recall@10"]
    for figure in (report["test"]["model"]["recall@10"], report["test"]["ease"]["mrr"], gain["value"], tail["value"]):
        assert f"{figure:.4f}" in page
    assert f"{interval['low']:.4f} … {interval['high']:.4f}" in page
    assert "Evaluation of v3" in page
    assert page.count("<polyline") == 2 * 5  # a line a scorer in either split
    for outside in ("http", "src=", "href=", "<script", "url("):
        assert outside not in page


def test_the_page_escapes_what_it_is_given(evaluated):
    page = render({**report_of(evaluated), "run": "<script>alert(1)</script>"})
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_a_split_without_queries_still_makes_a_page():
    facts = {"model": {}, "popularity": {}, "popularity_all_time": {}, "queries": 0, "candidates": 5}
    split = {**facts, "held_out": 0, "held_out_unknown": 0}
    page = render({"model_version": 1, "run": "r", "validation": split, "details": {"validation": {}}, "baselines": {}})
    assert "0 queries" in page


def test_a_slice_by_what_the_schema_does_not_have_is_refused(evaluated, tmp_path):
    with pytest.raises(ConfigError, match=r"slices: 'country' is no feature: take one of \['mood', 'title', 'track'\]"):
        evaluated.run(tmp_path / "evaluation", section=EvaluateSection(slices=("country",)))
    with pytest.raises(ConfigError, match="'history' is of type id_sequence"):
        evaluated.run(tmp_path / "evaluation", section=EvaluateSection(slices=("history",)))
