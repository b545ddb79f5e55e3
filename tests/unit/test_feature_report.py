"""The feature report of a small hand-made world: every measure worked out by hand, planted leaks, hostile values."""

from __future__ import annotations

import copy
import json
import logging
import math
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataflow import feature_report
from dataflow.encoded import Learned, ValueCounts
from dataflow.feature_report import Artifacts
from dataflow.feature_report.advice import advise
from dataflow.feature_report.validation import validation_rows
from dataflow.preprocessing import save_preprocessing
from dataflow.split import split_bucket
from lockstep.config import DataSection
from lockstep.errors import DataError
from lockstep.features import features_type
from lockstep.schema import Schema

HOSTILE = "<script>alert(1)</script>"
SCHEMA = Schema.model_validate(
    {
        "query": {
            "history": {"type": "id_sequence", "columns": ["history.candidate_id"], "max_length": 3, "shares": "track"},
            "country": {"type": "categorical"},
            "city": {"type": "categorical", "encoding": "hash", "size": 100},
            "age": {"type": "numeric"},
            "when": {"type": "timestamp", "columns": ["event_time"]},
        },
        "candidate": {
            "track": {"type": "id", "columns": ["candidate_id"]},
            "title": {"type": "text", "ngrams": 1, "max_tokens": 2},
            "tags": {"type": "id_sequence", "max_length": 2},
            "image": {"type": "vector", "size": 2},
            "ratings": {"type": "numeric_sequence", "max_length": 2},
        },
    }
)
LEARNED = Learned(
    {
        "candidate_track": ["a", "b", "c"],
        "query_country": ["DE", HOSTILE],
        "candidate_title": ["red", "car"],
        "candidate_tags": ["t1"],
    },
    {},
    {
        ("query", "history"): ValueCounts(4, 1, 9),
        ("query", "country"): ValueCounts(3, 1, 1_000, covered=0.75),
        ("query", "city"): ValueCounts(251, 0, 900, colliding=153, colliding_occurrences=300),
        ("query", "age"): ValueCounts(3, 3, 3),
        ("candidate", "track"): ValueCounts(3, 0, 1_000, covered=1.0),
        ("candidate", "title"): ValueCounts(40, 0, 9_000, covered=0.95, tokens=60),
        ("candidate", "tags"): ValueCounts(3, 2, 6, covered=0.5),
    },
)
COUNTERS = {
    "rows_read": 1_000,
    "query/history/missing": 250,
    "query/history/unknown": 150,
    "query/age/missing": 900,
}
CUT = datetime(2024, 3, 1, tzinfo=UTC)
DATA = DataSection(holdout_share=0.02)
REPORT: dict[str, Any] = {
    "cuts": {
        "validation_from": CUT.isoformat(),
        "test_from": (CUT + timedelta(days=10)).isoformat(),
        "newest": (CUT + timedelta(days=20)).isoformat(),
    },
    "splits": {"train": 1_000, "validation": 2, "test": 1},
    "stages": [
        {"name": "source", "rows_in": 9, "used": 7, "dead_lettered": {"no <id>": 1}, "filtered": {"repeat": 1}},
    ],
}


def moment(day: int, hour: int) -> datetime:
    return datetime(2024, 1, day, hour, 30, tzinfo=UTC)


# 1 and 8 January 2024 are Mondays, the 3rd is a Wednesday.
QUERIES: list[dict[str, Any]] = [
    {"history": [], "country": "DE", "city": "x", "age": 10.0, "when": moment(1, 5)},
    {"history": ["a"], "country": "DE", "city": "x", "age": 20.0, "when": moment(3, 5)},
    {"history": ["b", "a", "d"], "country": HOSTILE, "city": "y", "age": 0.0, "when": moment(8, 23)},
    {"history": ["z"], "country": "IT", "city": None, "age": float("nan"), "when": None},
]
CANDIDATES: list[dict[str, Any]] = [
    {"track": "a", "title": "Red car", "tags": ["t1"], "image": [3.0, 4.0], "ratings": [1.0, 2.0, 3.0]},
    {"track": "b", "title": "red", "tags": ["t1", "t2", "t3"], "image": None, "ratings": None},
    {"track": "c", "title": "one two three", "tags": None, "image": [0.0, 0.0], "ratings": [5.0, float("nan")]},
    {"track": "a", "title": "", "tags": ["", "t1", "t2"], "image": [1.0], "ratings": []},
]
LABELS = {
    "candidate_index": [0, 1, 2, 0],
    "past": [[1], [0, 2], None, [1, 2]],
    "query_id": ["q1", "q2", "q2", "q3"],
    "event_time": [datetime(2024, 2, day, tzinfo=UTC) for day in (1, 2, 3, 4)],
    "newest_past_time": [None, *(datetime(2024, 2, day, tzinfo=UTC) for day in (1, 2, 3))],
}
NOW = {
    "a": CANDIDATES[0],
    "b": CANDIDATES[1],
    "n": {"track": "n", "title": "new car", "tags": [], "image": [6.0, 8.0], "ratings": [9.0]},
    "unused": {"track": "unused"},
}
VALIDATION = [
    ("v1", {"history": ["a", "b"], "country": "DE", "age": 20.0, "when": moment(1, 5)}, ["b"], ["n", "a"]),
    ("v2", {"history": ["a"], "country": "FR", "age": 30.0, "when": moment(2, 6)}, ["a"], ["n"]),
]


def sample(**labels: list[Any]) -> pa.Table:
    columns = LABELS | labels
    kinds = dict.fromkeys(("event_time", "newest_past_time"), pa.timestamp("us", "UTC"))
    kinds |= {"candidate_index": pa.int64(), "past": pa.list_(pa.int64()), "query_id": pa.string()}
    return pa.table(
        {
            "query": pa.array(QUERIES, features_type(SCHEMA, "query")),
            "candidate": pa.array(CANDIDATES, features_type(SCHEMA, "candidate")),
            "age_days": [3.0, 2.0, 1.0, 0.0],
            "weight": [1.0] * 4,
            **{name: pa.array(values, kinds[name]) for name, values in columns.items()},
        }
    )


def write_queries(
    folder: Path, queries: list[tuple[str, dict[str, Any], list[str], list[str]]], name: str = "part-00000.parquet"
) -> None:
    folder.mkdir(exist_ok=True)
    ids, features, histories, targets = (list(of) for of in zip(*queries, strict=True)) if queries else ([],) * 4
    table = {
        "id": pa.array(ids, pa.string()),
        "features": pa.array(features, features_type(SCHEMA, "query")),
        "history": pa.array(histories, pa.list_(pa.string())),
        "targets": pa.array(targets, pa.list_(pa.string())),
    }
    pq.write_table(pa.table(table), folder / name)


@pytest.fixture(scope="module")
def preprocessing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("preprocessing")
    save_preprocessing(made, SCHEMA, LEARNED)
    return made


def write_artifacts(tmp_path: Path, preprocessing: Path) -> Artifacts:
    (tmp_path / "entities" / "candidates").mkdir(parents=True)
    features = pa.array(list(NOW.values()), features_type(SCHEMA, "candidate"))
    table = pa.table({"id": list(NOW), "features": features})
    pq.write_table(table, tmp_path / "entities" / "candidates" / "part-00000.parquet")
    write_queries(tmp_path / "validation", VALIDATION)
    write_queries(tmp_path / "test", VALIDATION[:1])
    return Artifacts(examples=tmp_path, preprocessing=preprocessing, entities=tmp_path / "entities")


def build(artifacts: Artifacts, table: pa.Table | None = None) -> dict[str, Any]:
    return feature_report.build(
        REPORT,
        schema=SCHEMA,
        data=DATA,
        learned=LEARNED,
        counters=COUNTERS,
        sample=sample() if table is None else table,
        artifacts=artifacts,
    )


@pytest.fixture
def artifacts(tmp_path: Path, preprocessing: Path) -> Artifacts:
    return write_artifacts(tmp_path, preprocessing)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, preprocessing: Path) -> dict[str, Any]:
    return build(write_artifacts(tmp_path_factory.mktemp("artifacts"), preprocessing))


def test_coverage_is_exact_in_training(report: dict[str, Any]) -> None:
    query, candidate = report["features"]["query"], report["features"]["candidate"]
    assert query["history"]["coverage"] == {"train": 0.75, "validation": 1.0}
    assert query["age"]["coverage"] == {"train": 0.1, "validation": 1.0}
    assert query["city"]["coverage"] == {"train": 1.0, "validation": 0.0}
    # Of the three targets n, a, n only a has tags.
    assert candidate["tags"]["coverage"]["validation"] == 0.333333


def test_cardinality_and_vocabulary(report: dict[str, Any]) -> None:
    country = report["features"]["query"]["country"]
    assert (country["cardinality"], country["once"], country["occurrences"]) == (3, 0.333333, 1_000)
    assert country["vocabulary"] == {
        "table": "query_country",
        "size": 2,
        "limit": 10_000,
        "min_count": 1,
        "covered": 0.75,
        "tokens": None,
    }
    history = report["features"]["query"]["history"]
    assert history["vocabulary"] == {"table": "candidate_track", "size": 3}
    assert report["features"]["candidate"]["title"]["vocabulary"]["tokens"] == 60


def test_unknown_is_what_the_tower_reads(report: dict[str, Any]) -> None:
    query, candidate = report["features"]["query"], report["features"]["candidate"]
    # Histories a; b a d; z: of five, d and z are unknown. Rows are of all training data: 150 of 750.
    assert query["history"]["unknown"]["train"] == {"occurrences": 0.4, "rows": 0.2}
    assert query["history"]["unknown"]["validation"] == {"occurrences": 0.0, "rows": 0.0}
    assert query["country"]["unknown"]["validation"] == {"occurrences": 0.5, "rows": 0.5}
    assert candidate["track"]["unknown"]["validation"] == {"occurrences": 0.666667, "rows": 0.666667}
    # Texts are cut at two tokens: red car, red, one two.
    assert candidate["title"]["unknown"]["train"]["occurrences"] == 0.4
    assert "unknown" not in query["city"]


def test_hash(report: dict[str, Any]) -> None:
    assert report["features"]["query"]["city"]["hash"] == {
        "bins": 100,
        "values": 251,
        "expected": pytest.approx(1 - 0.99**250, rel=1e-5),
        "colliding": 0.609562,
        "colliding_occurrences": 0.333333,
        "goal": 0.01,
        "bins_for_goal": 24_876,
    }


def test_numbers(report: dict[str, Any]) -> None:
    age = report["features"]["query"]["age"]["numbers"]
    assert (age["mean"], age["zero"]) == (10.0, 0.333333)
    assert age["deviation"] == pytest.approx(math.sqrt(200 / 3), rel=1e-5)
    assert (age["quantiles"]["min"], age["quantiles"]["p50"], age["quantiles"]["max"]) == (0.0, 10.0, 20.0)
    assert age["histogram"]["train"] == [1, *[0] * 9, 1, *[0] * 8, 1]
    assert age["histogram"]["validation"] == [0] * 19 + [2]
    ratings = report["features"]["candidate"]["ratings"]["numbers"]
    assert (ratings["mean"], ratings["quantiles"]["p50"]) == (2.75, 2.0)


def test_moments(report: dict[str, Any]) -> None:
    when = report["features"]["query"]["when"]["moments"]
    assert (when["first"], when["last"]) == ("2024-01-01T05:30:00+00:00", "2024-01-08T23:30:00+00:00")
    assert when["weekdays"] == {"Mon": 2, "Tue": 0, "Wed": 1, "Thu": 0, "Fri": 0, "Sat": 0, "Sun": 0}
    assert when["hours"] == [0] * 5 + [2] + [0] * 17 + [1]


def test_texts_and_their_cut(report: dict[str, Any]) -> None:
    tokens = report["features"]["candidate"]["title"]["tokens"]
    assert tokens == {"max_tokens": 2, "p50": 2.0, "p95": 3.0, "max": 3.0, "cut": 0.333333}


def test_sequences_and_their_cut(report: dict[str, Any]) -> None:
    tags = report["features"]["candidate"]["tags"]["lengths"]
    assert (tags["full"], tags["cut"], tags["quantiles"]["max"]) == (0.5, 0.25, 3.0)
    history = report["features"]["query"]["history"]["lengths"]
    # The warehouse keeps three of a history: whether it was longer is not known.
    assert (history["full"], history["cut"], history["quantiles"]["p50"]) == (0.25, None, 1.0)


def test_vectors(report: dict[str, Any]) -> None:
    image = report["features"]["candidate"]["image"]["vectors"]
    assert (image["wrong"], image["zero"]) == (0.333333, 0.333333)
    assert (image["norms"]["min"], image["norms"]["p50"], image["norms"]["max"]) == (0.0, 1.0, 5.0)


def test_drift(report: dict[str, Any]) -> None:
    drift = report["features"]["query"]["country"]["drift"]
    assert drift["bins"] == [
        {"label": "DE", "train": 0.5, "validation": 0.5},
        {"label": HOSTILE, "train": 0.25, "validation": 0.0},
        {"label": "IT", "train": 0.25, "validation": 0.0},
        {"label": "all others", "train": 0.0, "validation": 0.5},
    ]
    # An empty bin counts as half a row: .25 and .25, and .125 and .5.
    assert drift["index"] == pytest.approx(0.375 * math.log(4), rel=1e-5)
    # Four bins, two queries; four training rows of entities with 1, 2, 1: 16 / 6, rounded up.
    assert drift["by_chance"] == pytest.approx((1 / 3 + 1 / 2) * (3 + 2 * math.sqrt(6)), rel=1e-5)
    candidate = report["features"]["candidate"]["track"]["drift"]
    assert {bin["label"]: bin["validation"] for bin in candidate["bins"]} == {
        "a": 0.333333,
        "b": 0.0,
        "c": 0.0,
        "all others": 0.666667,
    }


def test_advice_says_what_to_do(report: dict[str, Any]) -> None:
    advice = {(line["feature"], line["text"]) for line in report["advice"]}
    expected = {
        ("age", "only 10 % of the training rows have a value: look at the column age"),
        (
            "country",
            "50 % of validation values are not in the vocabulary: the training data does not have them: "
            "train on newer data, or use encoding = 'hash'",
        ),
        (
            "city",
            "hash with 100 bins: 61 % of 251 values collide (expected 92 %); 25,000 bins would bring it under 1 %, "
            "and encoding = 'lookup' has none at all",
        ),
        (
            "title",
            "33 % of the texts are cut at 2 tokens: raise max_tokens (95 % of them have at most 3), or lower ngrams",
        ),
        ("title", "has only 40 different texts: type = 'categorical' gives each an embedding row of its own"),
        ("image", "33 % of the vectors do not have 2 finite numbers: mend the source"),
        ("image", "33 % of the vectors are all zero: leave them out of the source"),
    }
    assert expected <= advice
    # So few rows differ by chance.
    assert not any("distributed otherwise" in text for _, text in advice)
    weights = [line["weight"] for line in report["advice"]]
    assert weights == sorted(weights, reverse=True)


QUIET: dict[str, Any] = {
    "type": "categorical",
    "columns": ["c"],
    "coverage": {"train": 0.9, "validation": 0.9},
    "cardinality": 50,
    "drift": {
        "over": "values",
        "index": 0.2,
        "by_chance": 0.1,
        "bins": [{"label": "a", "train": 0.9, "validation": 0.1}, {"label": "b", "train": 0.1, "validation": 0.9}],
    },
}
VOCABULARY = {"table": "t", "size": 50, "limit": 100, "min_count": 3, "covered": 0.95, "tokens": None}
NUMBERS = {"log": False, "quantiles": {"min": 0.0, "p50": 2.0, "p99": 50.0}}
LOUD = [
    ({"coverage": {"train": 0.0}}, "no training row has a value: look at the column c in the source"),
    ({"cardinality": 1, "coverage": {"train": 1.0}}, "has one value in all training rows"),
    (
        {"vocabulary": {**VOCABULARY, "covered": 0.8}},
        "covers 80 % of the training occurrences: lower min_count (now 3)",
    ),
    ({"vocabulary": {**VOCABULARY, "covered": 0.8, "limit": 50}}, "raise its size (now 50)"),
    ({"once": 0.6, "vocabulary": {**VOCABULARY, "min_count": 1}}, "60 % of its values occur once"),
    (
        {
            "vocabulary": {"table": "candidate_track", "size": 3},
            "unknown": {"train": {"occurrences": 0.1}, "validation": {"occurrences": 0.384}},
        },
        "38 % of validation values are not in the vocabulary: see candidate_track, whose vocabulary it shares",
    ),
    ({"numbers": NUMBERS}, "the 99 % quantile is 25 times the median: set log = true"),
    ({"lengths": {"max_length": 20, "cut": 0.7}}, "70 % of the sequences are cut at max_length 20"),
    (
        {"drift": {**QUIET["drift"], "index": 0.3}},
        "validation is distributed otherwise than training (stability index 0.30 over values; most: 'b' 10 % → 90 %)",
    ),
]
QUIETER = [
    {"coverage": {"train": 0.5}},
    {"cardinality": 1},
    {"vocabulary": VOCABULARY, "once": 0.6, "unknown": {"validation": {"occurrences": 0.2}}},
    {"numbers": {**NUMBERS, "log": True}},
    {"numbers": {"log": False, "quantiles": {"min": -1.0, "p50": 2.0, "p99": 50.0}}},
    {"lengths": {"max_length": 20, "cut": None}},
    {"drift": {**QUIET["drift"], "index": 0.3, "by_chance": 0.3}},
    {"hash": {"bins": 10, "values": 2, "expected": 0.05, "colliding": 0.0, "bins_for_goal": 100, "goal": 0.01}},
]


@pytest.mark.parametrize(("feature", "text"), LOUD)
def test_a_passed_threshold_gives_one_sentence(feature: dict[str, Any], text: str) -> None:
    (advice,) = advise({"query": {"f": QUIET | feature}})
    assert text in advice.text
    assert (advice.tower, advice.feature) == ("query", "f")
    assert 0 < advice.weight <= 1


@pytest.mark.parametrize("feature", [{}, *QUIETER])
def test_no_threshold_passed_no_advice(feature: dict[str, Any]) -> None:
    assert advise({"query": {"f": QUIET | feature}}) == []


def test_the_weightiest_advice_is_logged(report: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    many = {**report, "advice": [{**report["advice"][0], "text": f"advice {n}"} for n in range(12)]}
    with caplog.at_level(logging.INFO, "dataflow"):
        feature_report.log_summary(many)
    assert len(caplog.messages) == 11
    assert caplog.messages[0].endswith(": advice 0")
    assert caplog.messages[-1] == "and 2 more in report.html"


def test_the_same_data_give_the_same_bytes(artifacts: Artifacts, report: dict[str, Any]) -> None:
    # The sample's rows in another order, in two pieces.
    again = build(artifacts, pa.concat_tables([sample().slice(2, 2), sample().slice(0, 2)]))
    assert json.dumps(again) == json.dumps(report)
    assert feature_report.render(again) == feature_report.render(report)


def test_nothing_leaks(report: dict[str, Any]) -> None:
    assert [(check["checked"], check["violations"], check["skipped"]) for check in report["leaks"]] == [
        (4, 0, None),
        (3, 0, None),
        (4, 0, None),
        (2, 0, None),
        (1, 0, None),
        (4, 0, None),
    ]
    feature_report.refuse_leaks(report["leaks"])


LATE = datetime(2024, 2, 2, 1, tzinfo=UTC)
HELD_OUT = next(f"q{n}" for n in range(10_000) if split_bucket(f"q{n}") < 200)
PLANTED = [
    (0, {"past": [[0], [0, 2], None, [1, 0]]}, 2, "the candidate of index 0"),
    (1, {"newest_past_time": [None, LATE, *LABELS["newest_past_time"][2:]]}, 1, "2024-02-02"),
    (2, {"event_time": [*LABELS["event_time"][:3], CUT]}, 1, "2024-03-01"),
    (5, {"query_id": ["q1", HELD_OUT, HELD_OUT, "q3"]}, 2, HELD_OUT),
]


@pytest.mark.parametrize(("place", "labels", "violations", "example"), PLANTED)
def test_a_planted_leak_is_found(
    artifacts: Artifacts, place: int, labels: dict[str, list[Any]], violations: int, example: str
) -> None:
    checks = [c.to_json() for c in feature_report.check_leaks(sample(**labels), artifacts.examples, DATA, CUT)]
    assert [check["violations"] for check in checks] == [violations if at == place else 0 for at in range(6)]
    assert example in checks[place]["example"]
    with pytest.raises(DataError, match=rf"{checks[place]['name']}: not so for {violations} of \d rows"):
        feature_report.refuse_leaks(checks)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_target_in_its_own_history_is_found(artifacts: Artifacts, split: str) -> None:
    entity, features, history, targets = VALIDATION[0]
    write_queries(artifacts.examples / split, [VALIDATION[1], (entity, features, history, [*targets, "b"])])
    checks = feature_report.check_leaks(sample(), artifacts.examples, DATA, CUT)
    found = [(check.name, check.checked, check.example) for check in checks if check.violations]
    assert found == [(f"no target of a {split} query is in its history", 2, "'b' of query 'v1'")]


def test_a_check_of_what_there_is_not_says_so(artifacts: Artifacts) -> None:
    bare = sample().drop_columns(["past", "newest_past_time"])  # no feature is made of a history
    checks = feature_report.check_leaks(bare, artifacts.examples, DATA, CUT)
    assert [check.checked for check in checks] == [0, 0, 4, 2, 1, 4]
    assert [bool(check.skipped) for check in checks] == [True, True, False, False, False, False]
    other = DataSection(pairing="co_occurrence")
    checks = feature_report.check_leaks(sample(), artifacts.examples, other, CUT)
    assert "co_occurrence" in (checks[1].skipped or "")


def test_many_validation_rows_are_taken_evenly(artifacts: Artifacts) -> None:
    queries = [(f"v{n}", {"age": float(n)}, [], ["a", "b"] if n % 2 else ["n"]) for n in range(10)]
    write_queries(artifacts.examples / "validation", queries[:5])
    write_queries(artifacts.examples / "validation", queries[5:], "part-00001.parquet")
    rows = validation_rows(SCHEMA, artifacts.examples, artifacts.entities, limit=4)
    assert rows["query"].features.field("age").to_pylist() == [0.0, 3.0, 6.0, 9.0]
    # Targets n, a, b, n, a, b ... fifteen of them, every fourth.
    assert rows["candidate"].features.field("track").to_pylist() == ["n", "a", "b", "n"]
    assert rows["candidate"].independent == 4
    # All fifteen, of five queries with one target and five with two: 225 / 25.
    assert validation_rows(SCHEMA, artifacts.examples, artifacts.entities)["candidate"].independent == 9


def test_candidates_are_those_at_the_cut_where_they_are_written(artifacts: Artifacts) -> None:
    (artifacts.examples / "validation_candidates").mkdir()
    then = [{**NOW[name], "title": f"{name} then"} for name in ("n", "a")]
    table = pa.table({"id": ["n", "a"], "features": pa.array(then, features_type(SCHEMA, "candidate"))})
    pq.write_table(table, artifacts.examples / "validation_candidates" / "part-00000.parquet")
    rows = validation_rows(SCHEMA, artifacts.examples, artifacts.entities)
    assert rows["candidate"].features.field("title").to_pylist() == ["n then", "a then", "n then"]


def test_a_lost_target_is_an_error(artifacts: Artifacts) -> None:
    write_queries(artifacts.examples / "validation", [("v", {}, [], ["a", "lost"])])
    with pytest.raises(DataError, match="the validation target 'lost' is not among the candidates"):
        validation_rows(SCHEMA, artifacts.examples, artifacts.entities)


def test_without_validation_there_is_a_report(artifacts: Artifacts) -> None:
    write_queries(artifacts.examples / "validation", [])
    report = build(artifacts)
    country = report["features"]["query"]["country"]
    assert (country["coverage"]["validation"], country["drift"]["index"]) == (None, None)
    assert country["unknown"]["validation"] == {"occurrences": None, "rows": None}
    assert "No drift" in feature_report.render(report)


class Page(HTMLParser):
    """Opened elements that were not closed, all elements, and the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.text: list[str] = []
        self.ids: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.ids += [value or "" for name, value in attributes if name == "id"]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, text: str) -> None:
        self.text.append(text)


def test_the_page_is_well_formed_and_needs_nothing_else(report: dict[str, Any]) -> None:
    page = feature_report.render(report)
    parsed = Page(page)
    assert parsed.open == []
    assert set(parsed.ids) == {f"{tower}-{name}" for tower in ("query", "candidate") for name in SCHEMA.features(tower)}
    assert not {"script", "link", "img", "iframe"} & set(parsed.seen)
    assert "src=" not in page
    assert "http" not in page
    text = " ".join(" ".join(parsed.text).split())
    assert "1,000 train examples" in text
    assert "24,876 bins" in text
    assert "repeat: 1" in text


def test_values_are_escaped(report: dict[str, Any]) -> None:
    page = feature_report.render(report)
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "no &lt;id&gt;: 1" in page


def test_a_violation_is_on_the_page(report: dict[str, Any]) -> None:
    leaking = copy.deepcopy(report)
    leaking["leaks"][0] |= {"violations": 7, "example": f"'{HOSTILE}'"}
    page = feature_report.render(leaking)
    assert '<td class="bad">7 (&#39;&lt;script&gt;' in page
    assert 'class="bad">7' not in feature_report.render(report)
