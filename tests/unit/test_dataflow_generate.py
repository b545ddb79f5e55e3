"""The whole data step on a small world, checked against plain Python that knows only the raw rows."""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf

from dataflow.dead_letters import DeadLetters
from dataflow.generate import run
from dataflow.interactions import prepare_events
from dataflow.sample import with_features
from dataflow.sources import read_tables
from dataflow.split import find_cuts, split_bucket
from dataflow.sql import render
from dataflow.training import KNOWN, write_training_rows
from dataflow.warehouse import DuckDBWarehouse
from lockstep.config import DataSection
from lockstep.errors import ConfigError, DataError, SchemaError, TooManyBadRowsError
from lockstep.features import features_type, tower_inputs
from lockstep.schema import Schema
from lockstep.tags import Kind, open_artifact
from tests.joined_records import joined_records

START = datetime(2024, 1, 1, tzinfo=UTC)
CUTS = {"validation_from": START + timedelta(days=60), "test_from": START + timedelta(days=80)}
MAX_HISTORY = 4
SCHEMA: dict[str, Any] = {
    "query": {
        "who": {"type": "id", "columns": ["query_id"]},
        "id": {"type": "categorical", "columns": ["country"]},  # a name that the rows have for themselves
        "history": {
            "type": "id_sequence",
            "columns": ["history.candidate_id"],
            "max_length": MAX_HISTORY,
            "shares": "track",
        },
        "past_titles": {"type": "text_sequence", "columns": ["history.title"], "max_length": 2, "shares": "title"},
        "past_prices": {"type": "numeric_sequence", "columns": ["history.price"], "max_length": 3},
        "country": {"type": "categorical"},
        "bio": {"type": "text", "columns": ["country", "age"]},
        "age": {"type": "numeric"},
        "when": {"type": "timestamp", "columns": ["event_time"]},
        "activity": {"type": "numeric", "columns": ["events.7d"]},
    },
    "candidate": {
        "track": {"type": "id", "columns": ["candidate_id"]},
        "title": {"type": "text", "min_count": 1},
        "price": {"type": "numeric", "log": True},
        "kind": {"type": "categorical", "encoding": "hash", "size": 3},
        "released": {"type": "timestamp"},
        "image": {"type": "vector", "size": 2},
        "tags": {"type": "id_sequence", "max_length": 3},
        "ratings": {"type": "numeric_sequence", "max_length": 2},
        "trend": {"type": "numeric", "columns": ["events.30d"]},
    },
    "display": "title",
    "restricts": ["kind", "tags"],
    "deny": {"tags": "title", "place": "tags"},
    "numeric_restricts": ["price", "released", "kept"],
    "crowding": "kind",
}
EVERY_TYPE = {
    *("id", "categorical", "text", "numeric", "timestamp", "vector"),
    *("id_sequence", "text_sequence", "numeric_sequence"),
}


@dataclass(frozen=True)
class World:
    """Raw rows, and what plain Python makes of them."""

    folder: Path
    events: list[tuple[str | None, str | None, datetime, int]]
    candidates: dict[str, dict[str, Any]]

    @property
    def used(self) -> dict[str, list[tuple[datetime, int, str]]]:
        """By entity, (time, position, candidate) of the first time that it took each known candidate, in order."""
        first: dict[tuple[str, str], tuple[datetime, int]] = {}
        for query, candidate, time, position in self.events:
            if query and candidate in self.candidates:
                key = (query, candidate)
                first[key] = min(first.get(key, (time, position)), (time, position))
        ordered: dict[str, list[tuple[datetime, int, str]]] = {}
        for (query, candidate), (time, position) in first.items():
            ordered.setdefault(query, []).append((time, position, candidate))
        return {query: sorted(events) for query, events in ordered.items()}


def make_world(folder: Path, seed: int = 7) -> World:
    rng = random.Random(seed)
    candidates = {
        f"c{number:02d}": {
            "title": rng.choice(["red car", "blue Car!", "old house", "", None]),
            "price": rng.choice([None, 1.0, 10.0, 99.5]),
            "kind": rng.choice(["x", "y", None]),
            "released": rng.choice([None, START - timedelta(days=number)]),
            "image": rng.choice([None, [0.5, float(number)]]),
            "tags": rng.choice([None, [], ["t1"], ["t2", "t1"]]),
            "ratings": rng.choice([None, [4.0, 5.0, 3.0], [1.0]]),
            "kept": (None, True, False)[number % 3],
        }
        for number in range(30)
    }
    names = sorted(candidates)
    events: list[tuple[str | None, str | None, datetime, int]] = []
    for entity in range(60):
        # A fifth of the entities are new near the end; moments and positions often tie.
        begin = 75 if entity % 5 == 0 else rng.randrange(30)
        for _ in range(rng.randrange(3, 15)):
            moment = START + timedelta(days=rng.randrange(begin, 100), hours=rng.randrange(2))
            events.append((f"e{entity:02d}", rng.choice(names), moment, rng.randrange(2)))
    events += [events[3], events[3], events[10]]  # duplicates
    events += [("e01", "nothing", START, 0), ("e02", "nothing", START, 1)]  # unknown candidates
    events += [(None, "c00", START, 0), ("e03", "", START, 0)]  # for the source to refuse
    rng.shuffle(events)
    queries = [(f"e{n:02d}", rng.choice(["DE", "UK", None]), rng.choice([None, 20, 40])) for n in range(1, 62)]
    queries.append(("e05", "later row", 99))
    write(folder / "events.parquet", ["user", "thing", "at", "pos"], events, {"at": pa.timestamp("us", "UTC")})
    write(folder / "users.parquet", ["id", "country", "age"], queries, {"age": pa.int64()})
    columns = ["id", *candidates["c00"]]
    kinds = {
        "price": pa.float64(),
        "released": pa.timestamp("us", "UTC"),
        "image": pa.list_(pa.float64()),
        "tags": pa.list_(pa.string()),
        "ratings": pa.list_(pa.float64()),
        "kept": pa.bool_(),
    }
    write(folder / "things.parquet", columns, [(name, *row.values()) for name, row in candidates.items()], kinds)
    return World(folder, events, candidates)


def write(path: Path, columns: Sequence[str], rows: Sequence[tuple[Any, ...]], kinds: dict[str, pa.DataType]) -> None:
    values = zip(*rows, strict=True)
    arrays = {name: pa.array(of, kinds.get(name)) for name, of in zip(columns, values, strict=True)}
    pq.write_table(pa.table(arrays), path)


def section(folder: Path, **changes: Any) -> DataSection:
    tables = {
        "events": {
            "file": "events.parquet",
            "query": "user",
            "candidate": "thing",
            "timestamp": "at",
            "position": "pos",
        },
        "candidates": {"file": "things.parquet", "id": "id"},
        "queries": {"file": "users.parquet", "id": "id"},
    }
    values = {
        "source": "tables",
        "path": str(folder),
        "tables": tables,
        "bad_rows_max_share": 0.1,
        "holdout_share": 0.1,
        "seed_events": 2,
        "warehouse_memory": "1GB",
        **CUTS,
    }
    return DataSection.model_validate(values | changes)


def generate(out: Path, data: DataSection, schema: dict[str, Any] | None = None) -> Path:
    out.mkdir(parents=True, exist_ok=True)
    outputs = {name: out / name for name in ("examples", "preprocessing", "entities")}
    run(**outputs, run_id="run-1", data=data, schema=Schema.model_validate(schema or SCHEMA))
    return out


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def made(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate(tmp_path_factory.mktemp("made"), section(world.folder))


@pytest.fixture(scope="module")
def report(made: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((made / "examples" / "report.json").read_text())
    return loaded


def records(made: Path) -> list[dict[str, Any]]:
    return joined_records(made / "examples")


def vocabulary(made: Path, table: str) -> list[str]:
    text = (made / "preprocessing" / "vocabulary" / f"{table}.txt").read_text(encoding="utf-8")
    return ["<missing>", "<unknown>", *text.split("\n")[:-1]]


def decoded(made: Path) -> list[tuple[str, str, list[str]]]:
    """(entity, label, history) of every record, from ids back to names."""
    who, track = vocabulary(made, "query_who"), vocabulary(made, "candidate_track")
    catalogue = pq.read_table(made / "examples" / "catalogue.parquet").column("id").to_pylist()
    return [
        (
            who[record["query/who"][0]],
            catalogue[record["candidate_index"][0]],
            [track[number] for number in record["query/history"] if number],
        )
        for record in records(made)
    ]


def leaks(world: World, rows: Iterable[tuple[str, str, list[str]]]) -> list[tuple[str, str, str]]:
    """Every (entity, label, past candidate) whose past candidate is not strictly before the label."""
    found = []
    for entity, label, history in rows:
        taken = {candidate: (time, position) for time, position, candidate in world.used[entity]}
        found += [(entity, label, past) for past in history if past == label or taken[past] >= taken[label]]
    return found


def counted(world: World, moment: datetime, days: int, *, entity: str | None = None, label: str | None = None) -> int:
    """The events of an entity or of a candidate in the whole days before the day of a moment."""
    midnight = moment.replace(hour=0, minute=0, second=0, microsecond=0)
    return sum(
        midnight - timedelta(days=days) <= time < midnight
        for who, events in world.used.items()
        for time, _, candidate in events
        if who == entity or (candidate == label and not held_out(who))
    )


def held_out(entity: str) -> bool:
    return split_bucket(entity) < 1_000


def expected_examples(world: World) -> list[tuple[str, str, list[str]]]:
    rows = []
    for entity, events in world.used.items():
        for time, position, label in events:
            before = [candidate for t, p, candidate in events if (t, p) < (time, position)]
            if before and time < CUTS["validation_from"] and not held_out(entity):
                rows.append((entity, label, before[-MAX_HISTORY:]))
    return sorted(rows)


def test_the_world_is_worth_testing(world: World) -> None:
    used = world.used
    ties = sum(n - 1 for events in used.values() for n in Counter((t, p) for t, p, _ in events).values())
    assert ties > 5
    assert len(expected_examples(world)) > 80
    assert sum(held_out(entity) for entity in used) >= 2
    assert {feature["type"] for tower in ("query", "candidate") for feature in SCHEMA[tower].values()} == EVERY_TYPE


def test_training_records_are_exactly_those_that_plain_python_derives(world: World, made: Path) -> None:
    assert sorted(decoded(made)) == expected_examples(world)


def test_no_label_is_in_its_own_history_and_history_is_strictly_before(world: World, made: Path) -> None:
    assert leaks(world, decoded(made)) == []


def exported(world: World, work: Path, data: DataSection) -> list[dict[str, Any]]:
    """The training rows as they leave the warehouse, with the candidates' ids in place of their indices."""
    schema = Schema.model_validate(SCHEMA)
    work.mkdir(exist_ok=True)
    with DeadLetters(work / "dead.jsonl") as letters, DuckDBWarehouse(work, threads=1) as warehouse:
        read_tables(data, warehouse, letters, work)
        prepare_events(warehouse, data, letters, work)
        cuts = find_cuts(warehouse, data)
        (work / "examples").mkdir()
        written = write_training_rows(warehouse, schema, data, cuts, work / "examples", work)
    ids = pq.read_table(work / "examples" / "catalogue.parquet").column("id").to_pylist()
    assert ids == pq.read_table(work / KNOWN).column("candidate_id").to_pylist()
    rows = pq.read_table(work / "training").to_pylist()
    assert len(rows) == written.examples
    return [
        {**row, "label": ids[row["candidate_index"]], "past": [ids[index] for index in row["past"] or []]}
        for row in rows
    ]


def leaky(world: World, rows: list[dict[str, Any]]) -> list[str]:
    """What is wrong with training rows: a past that is not past, a count that holds more or less than it should."""
    found = []
    pasts = [(row["query_id"], row["label"], row["past"]) for row in rows]
    found += [f"history {leak}" for leak in leaks(world, pasts)]
    for row in rows:
        entity, label, moment = row["query_id"], row["label"], row["event_time"]
        if moment >= CUTS["validation_from"]:
            found.append(f"label {entity} {label}")
        if row["q_activity"] != counted(world, moment, 7, entity=entity):
            found.append(f"activity {entity} {label}")
        if row["c_trend"] != counted(world, moment, 30, label=label):
            found.append(f"trend {entity} {label}")
        if row["newest_past_time"] is None or row["newest_past_time"] > moment:
            found.append(f"time {entity} {label}")
    return found


@pytest.mark.parametrize(
    ("query", "right", "wrong", "what"),
    [
        ("training_examples", "AND 1 PRECEDING", "AND CURRENT ROW", "history"),  # the label itself
        ("training_examples", "AND 1 PRECEDING", "AND 1 FOLLOWING", "history"),  # the future
        ("training_examples", "past.place = label.first_place", "past.place = label.place", "history"),  # same moment
        ("training_examples", "ORDER BY event.place", "ORDER BY -event.place", "history"),
        ("days", "AND 1 PRECEDING", "AND CURRENT ROW", "trend"),  # the label's own day
        ("days", "AND 1 PRECEDING", "AND 1 FOLLOWING", "activity"),
        (
            "staged_events",
            "event_time >= TIMESTAMP",
            "event_time > TIMESTAMP '2999-01-01' AND event_time >= TIMESTAMP",
            "label",
        ),
    ],
)
def test_a_leaky_query_is_found(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, query: str, right: str, wrong: str, what: str
) -> None:
    spoilt = []

    def render_leaky(name: str, /, **parameters: Any) -> str:
        sql = render(name, **parameters)
        if name == query:
            assert right in sql
            spoilt.append(name)
            sql = sql.replace(right, wrong)
        return sql

    monkeypatch.setattr("dataflow.training.render", render_leaky)
    found = leaky(world, exported(world, tmp_path / "work", section(world.folder)))
    assert spoilt
    assert any(leak.startswith(what) for leak in found)


def test_nothing_leaks_into_the_training_rows(world: World, tmp_path: Path) -> None:
    rows = exported(world, tmp_path / "work", section(world.folder))
    assert leaky(world, rows) == []
    assert sum(row["q_activity"] > 0 for row in rows) > 20
    assert max(row["c_trend"] for row in rows) > 3


def baskets(world: World) -> Iterator[tuple[str, list[str]]]:
    """The candidates that training may see of each entity, in order."""
    for entity, events in world.used.items():
        if not held_out(entity):
            yield entity, [candidate for time, _, candidate in events if time < CUTS["validation_from"]]


def pairs_of(rows: list[dict[str, Any]]) -> list[tuple[str, str, list[str]]]:
    return sorted((row["query_id"], row["label"], row["past"]) for row in rows)


def test_co_occurrence_is_the_rest_of_the_basket(world: World, tmp_path: Path) -> None:
    expected = []
    for entity, basket in baskets(world):
        for place, label in enumerate(basket):
            # Five neighbouring places with the label's among them, in its middle where the basket allows.
            start = max(0, min(place - MAX_HISTORY // 2, len(basket) - MAX_HISTORY - 1))
            rest = [c for c in basket[start : start + MAX_HISTORY + 1] if c != label]
            if rest:
                expected.append((entity, label, rest))
    rows = exported(world, tmp_path / "work", section(world.folder, pairing="co_occurrence"))
    assert pairs_of(rows) == sorted(expected)
    assert not any(label in rest for _, label, rest in pairs_of(rows))
    counts = [counted(world, row["event_time"], 30, label=row["label"]) for row in rows]
    assert [row["c_trend"] for row in rows] == counts


@pytest.mark.parametrize("window", [1, 3])
def test_candidate_pairs_are_all_that_stand_near_each_other(world: World, tmp_path: Path, window: int) -> None:
    expected = [
        (entity, label, [other])
        for entity, basket in baskets(world)
        for place, label in enumerate(basket)
        for near, other in enumerate(basket)
        if 0 < abs(place - near) <= window
    ]
    rows = exported(world, tmp_path / "work", section(world.folder, pairing="candidate_pairs", window=window))
    assert pairs_of(rows) == sorted(expected)
    assert len({row["order_hash"] for row in rows}) == len(rows)
    examples = tmp_path / "work" / "examples"
    ids = pq.read_table(examples / "catalogue.parquet").column("id").to_pylist()
    counts: Counter[str] = Counter()
    for row in pq.read_table(examples / "labels.parquet").to_pylist():
        counts[ids[row["candidate"]]] += row["examples"]
    assert counts == Counter(label for _, label, _ in expected)


def test_pairs_of_candidates_need_a_feature_of_the_other_one(world: World, tmp_path: Path) -> None:
    schema = {**SCHEMA, "query": {"country": SCHEMA["query"]["country"]}}
    fails(
        world, tmp_path, ConfigError, "needs a query feature of the other candidate", schema, pairing="candidate_pairs"
    )


def test_labels_older_than_max_age_days_are_filtered_by_name(world: World, tmp_path: Path) -> None:
    made = generate(tmp_path, section(world.folder, max_age_days=20))
    oldest = CUTS["validation_from"] - timedelta(days=20)
    times = {(entity, c): time for entity, events in world.used.items() for time, _, c in events}
    young = [row for row in expected_examples(world) if times[row[0], row[1]] >= oldest]
    assert sorted(decoded(made)) == young
    stages = {stage["name"]: stage for stage in json.loads((made / "examples" / "report.json").read_text())["stages"]}
    assert stages["training"]["filtered"]["too old"] == len(expected_examples(world)) - len(young) > 0


def test_records_hold_exact_numbers(world: World, made: Path) -> None:
    times = {(entity, c): time for entity, events in world.used.items() for time, _, c in events}
    training = Counter(
        candidate
        for entity, events in world.used.items()
        for time, _, candidate in events
        if time < CUTS["validation_from"] and not held_out(entity)
    )
    priced = {c: np.log1p(row["price"]) for c, row in world.candidates.items() if row["price"] is not None}
    prices = [value for c, value in priced.items() for _ in range(training[c])]
    track = vocabulary(made, "candidate_track")
    assert track[2:] == [c for c, _ in sorted(training.items(), key=lambda item: (-item[1], item[0]))]
    who = vocabulary(made, "query_who")
    for record in records(made):
        label, entity = track[record["candidate/track"][0]], who[record["query/who"][0]]
        price = (priced[label] - np.mean(prices)) / np.std(prices) if label in priced else 0.0
        assert record["candidate/price"] == [pytest.approx(price, abs=1e-5), float(label not in priced)]
        image = world.candidates[label]["image"]
        assert record["candidate/image"] == (image or [0.0, 0.0])
        hour = times[entity, label].hour
        assert record["query/when"][:2] == pytest.approx([np.sin(hour * np.pi / 12), np.cos(hour * np.pi / 12)])


def test_labels_are_counted_by_candidate_and_age_and_records_have_their_age(world: World, made: Path) -> None:
    times = {(entity, c): time for entity, events in world.used.items() for time, _, c in events}
    labels = [(label, times[entity, label]) for entity, label, _ in expected_examples(world)]
    newest = max(time for _, time in labels)
    table = pq.read_table(made / "examples" / "labels.parquet")
    assert table.schema.names == ["candidate", "age_hours", "examples"]
    assert table.schema.types == [pa.int32(), pa.int32(), pa.int64()]
    ids = pq.read_table(made / "examples" / "catalogue.parquet").column("id").to_pylist()
    found = {(ids[row["candidate"]], row["age_hours"]): row["examples"] for row in table.to_pylist()}
    assert found == Counter((label, (newest - time) // timedelta(hours=1)) for label, time in labels)
    assert table.num_rows == len(found)
    ages = []
    for file in (made / "examples" / "train").iterdir():
        for record in tf.data.TFRecordDataset(str(file), "GZIP").as_numpy_iterator():
            feature = tf.train.Example.FromString(record).features.feature
            assert "sampling_probability" not in feature
            ages.append((ids[feature["candidate_index"].int64_list.value[0]], feature["age_days"].float_list.value[0]))
    expected = sorted((label, (newest - time) / timedelta(days=1)) for label, time in labels)
    assert [label for label, _ in sorted(ages)] == [label for label, _ in expected]
    assert [age for _, age in sorted(ages)] == pytest.approx([age for _, age in expected], abs=1e-4)


@pytest.mark.parametrize("tower", ["query", "candidate"])
def test_records_hold_what_serving_makes_of_the_raw_features(
    world: World, made: Path, tmp_path: Path, tower: str
) -> None:
    """Candidates looked up by index, and whole rows through the saved signature, give equal numbers."""
    schema = Schema.model_validate(SCHEMA)
    exported(world, tmp_path / "work", section(world.folder))
    rows = with_features(pq.read_table(tmp_path / "work" / "training"), tmp_path / "work" / KNOWN, schema)
    inputs = tower_inputs(schema, tower, rows[tower].combine_chunks())
    served = tf.saved_model.load(str(made / "preprocessing" / tower)).signatures["serving_default"]
    outputs = served(**{name: tf.constant(values) for name, values in inputs.items()})
    names = zip(rows["query_id"].to_pylist(), rows["candidate_index"].to_pylist(), strict=True)
    place = {name: number for number, name in enumerate(names)}
    who = vocabulary(made, "query_who")
    joined = records(made)
    assert len(joined) == len(rows)
    for record in joined:
        row = place[who[record["query/who"][0]], record["candidate_index"][0]]
        for name, values in outputs.items():
            found, wanted = record[f"{tower}/{name}"], values[row].numpy().tolist()
            # Ids to the bit; the mean of a history of numbers is taken by another graph.
            assert found == (wanted if values.dtype != tf.float32 else pytest.approx(wanted, abs=1e-6)), name


def test_the_baselines_get_the_events_that_training_may_see(world: World, made: Path) -> None:
    catalogue = pq.read_table(made / "examples" / "catalogue.parquet").column("id").to_pylist()
    table = pq.read_table(made / "examples" / "interactions.parquet")
    by_entity: dict[int, set[str]] = {}
    for row in table.to_pylist():
        by_entity.setdefault(row["query"], set()).add(catalogue[row["candidate"]])
    expected = [
        {candidate for time, _, candidate in events if time < CUTS["validation_from"]}
        for entity, events in world.used.items()
        if not held_out(entity)
    ]
    assert sorted(map(sorted, by_entity.values())) == sorted(sorted(taken) for taken in expected if taken)
    assert list(by_entity) == list(range(len(by_entity)))  # numbered as they come
    assert table.num_rows == sum(map(len, expected))
    assert table["age_days"].to_numpy().min() == 0


def test_the_catalogue_is_what_was_known_before_the_test_cut(world: World, made: Path) -> None:
    rows = pq.read_table(made / "examples" / "catalogue.parquet").to_pylist()
    before = [
        (time, candidate) for events in world.used.values() for time, _, candidate in events if time < CUTS["test_from"]
    ]
    assert {row["id"] for row in rows} == {candidate for _, candidate in before}
    month = timedelta(days=30)
    for row in rows:
        times = [time for time, candidate in before if candidate == row["id"]]
        assert row["popular_30d"] == sum(time >= CUTS["test_from"] - month for time in times)
        cut = CUTS["validation_from"]
        seen = [
            time
            for entity, events in world.used.items()
            for time, _, candidate in events
            if candidate == row["id"] and not held_out(entity)
        ]
        assert row["popular_30d_validation"] == sum(cut - month <= time < cut for time in seen)
    assert [row["count"] for row in rows] == sorted((row["count"] for row in rows), reverse=True)
    known = {
        candidate
        for entity, events in world.used.items()
        for time, _, candidate in events
        if time < CUTS["validation_from"] and not held_out(entity)
    }
    assert {row["id"] for row in rows if row["known_before_validation"]} == known


@pytest.mark.parametrize("split", ["validation", "test"])
def test_evaluation_queries_are_those_that_plain_python_derives(world: World, made: Path, split: str) -> None:
    cut = CUTS[f"{split}_from"]
    end = CUTS["test_from"] if split == "validation" else START + timedelta(days=1_000)
    known = {
        c
        for entity, events in world.used.items()
        for time, _, c in events
        if time < cut and not (split == "validation" and held_out(entity))
    }
    expected = {}
    for entity, events in world.used.items():
        visible = [event for event in events if event[0] < end]
        before = [candidate for time, _, candidate in visible if time < cut]
        later = [candidate for time, _, candidate in visible if time >= cut]
        if not before or (split == "validation" and held_out(entity)):
            ordered = [candidate for _, _, candidate in visible]
            before, later = ordered[:2], ordered[2:]
        targets = [candidate for candidate in later if candidate in known]
        if targets:
            cold = held_out(entity) or events[0][0] >= CUTS["validation_from"]
            expected[entity] = (before, targets, cold)
    table = pq.read_table(made / "examples" / split)
    assert table.schema.field("features").type == features_type(Schema.model_validate(SCHEMA), "query")
    rows = table.to_pylist()
    assert {row["id"]: (row["history"], row["targets"], row["cold"]) for row in rows} == expected
    assert {row["cold"] for row in rows} == {True, False}
    assert all(row["features"]["history"] == row["history"][-MAX_HISTORY:] for row in rows)
    assert len(expected) > 3


def test_entities_are_everything_as_it_is_now(world: World, made: Path) -> None:
    schema = Schema.model_validate(SCHEMA)
    candidates = pq.read_table(made / "entities" / "candidates")
    assert candidates.schema.field("features").type == features_type(schema, "candidate")
    rows = {row["id"]: row for row in candidates.to_pylist()}
    assert sorted(rows) == sorted(world.candidates)
    for name, row in world.candidates.items():
        assert rows[name]["display"] == (row["title"] if row["title"] is not None else name)
        assert rows[name]["crowding_tag"] == row["kind"]
        assert rows[name]["restricts"] == expected_restricts(row)
        assert rows[name]["numeric_restricts"] == expected_numbers(row)
    queries = {row["id"]: row for row in pq.read_table(made / "entities" / "queries").to_pylist()}
    assert set(queries) == {f"e{number:02d}" for number in range(62)}  # e00 has events only, e60 and e61 none
    newest = max(time for events in world.used.values() for time, _, _ in events)
    for name, row in queries.items():
        assert row["history"] == [c for _, _, c in world.used.get(name, [])][-MAX_HISTORY:]
        assert row["features"]["when"] == newest
    popular = pq.read_table(made / "entities" / "popular.parquet").to_pylist()
    counts = Counter(c for events in world.used.values() for t, _, c in events if t > newest - timedelta(days=30))
    assert {row["id"]: row["count"] for row in popular if row["count"]} == dict(counts)
    assert [row["count"] for row in popular] == sorted((row["count"] for row in popular), reverse=True)
    for row in popular:
        for column in ("restricts", "numeric_restricts", "crowding_tag"):
            assert row[column] == rows[row["id"]][column]


def expected_restricts(row: dict[str, Any]) -> list[dict[str, Any]]:
    """What the schema says that a candidate is filtered by, in the order of `restricts`, then of `deny`."""
    tokens = {
        "kind": ([row["kind"]] if row["kind"] else [], []),
        "tags": (row["tags"] or [], [row["title"]] if row["title"] else []),
        "place": ([], row["tags"] or []),
    }
    return [{"namespace": of, "allow": allow, "deny": deny} for of, (allow, deny) in tokens.items() if allow or deny]


def expected_numbers(row: dict[str, Any]) -> list[dict[str, Any]]:
    released = row["released"] and row["released"].timestamp()
    kept = None if row["kept"] is None else float(row["kept"])
    numbers = {"price": row["price"], "released": released, "kept": kept}
    return [{"namespace": name, "value": value} for name, value in numbers.items() if value is not None]


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"restricts": ["image"]}, r"\[schema\] restricts: categorical cannot be made from column 'image'"),
        ({"restricts": ["colour"]}, r"\[schema\] restricts: there is no column 'colour'; the table has"),
        ({"deny": {"kind": "colour"}}, r"\[schema\] deny\.kind: there is no column 'colour'; the table has"),
        ({"deny": {"kind": "ratings"}}, r"\[schema\] deny\.kind: categorical cannot be made from column 'ratings'"),
        ({"numeric_restricts": ["title"]}, r"\[schema\] numeric_restricts: numeric cannot be made from column 'title'"),
        ({"numeric_restricts": ["colour"]}, r"\[schema\] numeric_restricts: there is no column 'colour'"),
    ],
)
def test_a_filter_that_its_column_cannot_give_is_refused(
    world: World, tmp_path: Path, changes: dict[str, Any], match: str
) -> None:
    fails(world, tmp_path, SchemaError, match, schema={**SCHEMA, **changes})


def test_no_row_vanishes(world: World, made: Path, report: dict[str, Any]) -> None:
    for stage in report["stages"]:
        out = stage["used"] + sum(stage["dead_lettered"].values()) + sum(stage["filtered"].values())
        assert stage["rows_in"] == out, stage["name"]
    stages = {stage["name"]: stage for stage in report["stages"]}
    used = sum(len(events) for events in world.used.values())
    events = stages["events"]
    assert events["rows_in"] == len(world.events) - 2
    assert events["dead_lettered"] == {"unknown candidate": 2, "duplicate event": duplicates(world)}
    assert events["used"] == used
    assert events["filtered"] == {"repeat": len(world.events) - 2 - 2 - duplicates(world) - used}
    assert stages["training"]["rows_in"] == used
    assert stages["training"]["used"] == stages["training records"]["used"] == len(expected_examples(world))
    assert stages["query entities"]["filtered"] == {"later row of an id": 1}
    letters = [json.loads(line) for line in (made / "examples" / "dead_letters.jsonl").read_text().splitlines()]
    assert Counter(letter["reason"] for letter in letters) == {
        "empty id": 2,
        "unknown candidate": 2,
        "duplicate event": duplicates(world),
    }
    assert {letter["row"]["candidate_id"] for letter in letters if letter["reason"] == "unknown candidate"} == {
        "nothing"
    }


def duplicates(world: World) -> int:
    good = [event for event in world.events if event[0] and event[1] in world.candidates]
    return len(good) - len(set(good))


def test_the_artifacts_are_tagged_and_nothing_else_is_left(made: Path) -> None:
    schema = Schema.model_validate(SCHEMA)
    examples = open_artifact(made / "examples", Kind.EXAMPLES).tag
    preprocessing = open_artifact(made / "preprocessing", Kind.PREPROCESSING).tag
    entities = open_artifact(made / "entities", Kind.ENTITIES).tag
    assert {tag.schema for tag in (examples, preprocessing, entities)} == {schema.digest}
    assert {tag.run for tag in (examples, preprocessing, entities)} == {"run-1"}
    assert examples.rows == len(records(made))
    assert entities.rows == 30 + 62
    assert preprocessing.rows == sum(
        len(path.read_bytes().splitlines()) for path in (made / "preprocessing" / "vocabulary").iterdir()
    )
    assert examples.inputs == {"preprocessing": preprocessing.digest}
    assert sorted(path.name for path in made.iterdir()) == ["entities", "examples", "preprocessing"]
    assert sorted(name for name in examples.files if name.startswith("train/")) == [
        f"train/part-0000{shard}-of-00004.tfrecord.gz" for shard in range(4)
    ]


def test_a_second_run_writes_the_same_bytes(world: World, made: Path, tmp_path: Path) -> None:
    again = generate(tmp_path, section(world.folder))
    for name in (*(f"train/part-0000{n}-of-00004.tfrecord.gz" for n in range(4)), "report.json", "report.html"):
        assert digest(again / "examples" / name) == digest(made / "examples" / name), name
    for name in ("examples/catalogue.parquet", "examples/test", "entities/candidates", "entities/queries"):
        # As text, in which NaN equals itself.
        assert str(pq.read_table(again / name).to_pylist()) == str(pq.read_table(made / name).to_pylist()), name
    for path in (made / "preprocessing" / "vocabulary").iterdir():
        assert digest(again / "preprocessing" / "vocabulary" / path.name) == digest(path)


def test_on_a_mounted_bucket_databases_and_mapped_files_stay_on_the_local_disk(
    world: World, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lockstep.storage._MOUNT", tmp_path)
    opened: list[Path] = []

    def noted(data: DataSection, work: Path, run: str) -> DuckDBWarehouse:
        opened.append(work)
        return DuckDBWarehouse(work)

    monkeypatch.setattr("dataflow.generate.open_warehouse", noted)
    mounted = generate(tmp_path / "bucket", section(world.folder))
    assert len(opened) == 1
    assert not opened[0].is_relative_to(tmp_path)
    assert not opened[0].exists()
    assert sorted(path.name for path in mounted.iterdir()) == ["entities", "examples", "preprocessing"]
    name = "train/part-00000-of-00004.tfrecord.gz"
    assert digest(mounted / "examples" / name) == digest(made / "examples" / name)


def test_a_held_out_target_is_in_no_count_and_not_known_by_itself(tmp_path: Path) -> None:
    """The only event of `secret` is a target of validation: nothing may tell that it will be taken."""
    held = next(f"h{number}" for number in range(1_000) if held_out(f"h{number}"))
    rows = [(f"u{n % 7}x{n % 3}", f"c{n % 5}", START + timedelta(days=n), 0) for n in range(90)]
    rows = [row for row in rows if not held_out(row[0])]
    rows += [(held, f"c{n}", START + timedelta(days=n), 1) for n in range(3)]
    rows += [(held, "secret", START + timedelta(days=58), 0)]
    folder = tmp_path / "data"
    folder.mkdir()
    write(folder / "events.parquet", ["user", "thing", "at", "pos"], rows, {"at": pa.timestamp("us", "UTC")})
    tables = {
        "events": {
            "file": "events.parquet",
            "query": "user",
            "candidate": "thing",
            "timestamp": "at",
            "position": "pos",
        }
    }
    schema = {
        "query": {"history": {"type": "id_sequence", "columns": ["history.candidate_id"], "shares": "track"}},
        "candidate": {
            "track": {"type": "id", "columns": ["candidate_id"]},
            "trend": {"type": "numeric", "columns": ["events.7d"]},
        },
    }
    made = generate(tmp_path / "out", section(folder, tables=tables, seed_events=3), schema)
    catalogue = {row["id"]: row for row in pq.read_table(made / "examples" / "catalogue.parquet").to_pylist()}
    assert catalogue["secret"]["popular_30d_validation"] == 0
    assert {row["id"] for row in catalogue.values() if not row["known_before_validation"]} == {"secret"}
    candidates = {row["id"]: row for row in pq.read_table(made / "examples" / "validation_candidates").to_pylist()}
    assert candidates["secret"]["features"]["trend"] == 0.0
    queries = pq.read_table(made / "examples" / "validation").to_pylist()
    assert "secret" not in {target for row in queries for target in row["targets"]}


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        (
            {"beam": {"max_num_worker": 3}},
            r"\[data.beam\] max_num_worker: Beam has no such option; did you mean 'max_num",
        ),
        ({"beam": {"nonsense": 3}}, "Beam has no such option: see its documentation"),
        ({"beam": {"help": True}}, "help: leave it out"),
        ({"runner": "DataflowRunner"}, "cannot see"),
        ({"min_engagement": 3.0}, "need a column to go by"),
    ],
)
def test_what_cannot_run_is_said_before_anything_is_read(
    world: World, tmp_path: Path, changes: dict[str, Any], match: str
) -> None:
    with pytest.raises(ConfigError, match=match):
        generate(tmp_path, section(world.folder, **changes))
    assert not list(tmp_path.rglob("*.parquet"))


def test_without_a_position_events_of_one_moment_are_in_no_history_of_each_other(tmp_path: Path) -> None:
    rows = [(f"u{n % 40}", f"c{n % 13}", START + timedelta(days=n % 90)) for n in range(700)]
    folder = tmp_path / "data"
    folder.mkdir()
    write(folder / "events.parquet", ["user", "thing", "at"], rows, {"at": pa.timestamp("us", "UTC")})
    tables = {"events": {"file": "events.parquet", "query": "user", "candidate": "thing", "timestamp": "at"}}
    schema = {
        "query": {
            "who": {"type": "id", "columns": ["query_id"]},
            "history": {"type": "id_sequence", "columns": ["history.candidate_id"], "shares": "track"},
        },
        "candidate": {"track": {"type": "id", "columns": ["candidate_id"]}},
    }
    made = generate(tmp_path / "out", section(folder, tables=tables), schema)
    first: dict[tuple[str, str], datetime] = {}
    for user, thing, moment in rows:
        first[user, thing] = min(first.get((user, thing), moment), moment)
    found = decoded(made)
    assert len(found) > 100
    assert all(first[user, past] < first[user, label] for user, label, history in found for past in history)


def test_another_seed_changes_the_order_only(world: World, made: Path, tmp_path: Path) -> None:
    other = generate(tmp_path, section(world.folder, seed=2, shard_rows=20))
    first, second = decoded(made), decoded(other)
    assert first != second
    assert sorted(first) == sorted(second)
    assert len(list((other / "examples" / "train").iterdir())) == -(-len(first) // 20)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def fails(world: World, out: Path, error: type[Exception], match: str, schema: Any = None, **changes: Any) -> None:
    with pytest.raises(error, match=match):
        generate(out, section(world.folder, **changes), schema)
    assert not list(out.glob("*/tag.json"))
    assert not list(out.glob(".*"))


def test_too_many_bad_rows_stop_the_step_and_leave_the_dead_letters(world: World, tmp_path: Path) -> None:
    fails(world, tmp_path, TooManyBadRowsError, "bad_rows_max_share", bad_rows_max_share=0.001)
    assert (tmp_path / "examples" / "dead_letters.jsonl").stat().st_size > 0


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"test_from": START + timedelta(days=500)}, r"no event is at or after \[data\] test_from"),
        ({"validation_from": START + timedelta(days=90)}, "is after test_from"),
        ({"validation_from": START - timedelta(days=1)}, "no training example is left"),
        ({"min_history": 1_000}, "lower .* min_history"),
        (
            {"validation_from": CUTS["test_from"], "holdout_share": 0.0},
            r"the validation split is empty.*validation_from",
        ),
    ],
)
def test_an_empty_split_says_what_to_change(world: World, tmp_path: Path, changes: dict[str, Any], match: str) -> None:
    fails(world, tmp_path, DataError, match, **changes)


def test_a_test_split_without_targets_says_what_to_change(world: World, tmp_path: Path) -> None:
    events = [("u1", "c01", 1), ("u1", "c02", 2), ("u1", "c03", 30), ("u2", "c03", 1), ("new", "c01", 50)]
    rows = [(user, thing, START + timedelta(days=day), 0) for user, thing, day in events]
    folder = tmp_path / "data"
    folder.mkdir()
    write(folder / "events.parquet", ["user", "thing", "at", "pos"], rows, {"at": pa.timestamp("us", "UTC")})
    for name in ("users.parquet", "things.parquet"):
        (folder / name).symlink_to(world.folder / name)
    days = {"validation_from": START + timedelta(days=20), "test_from": START + timedelta(days=40)}
    data = section(folder, holdout_share=0.0, **days)
    with pytest.raises(DataError, match=r"the test split is empty.*'no event to predict': 3.*test_from"):
        generate(tmp_path / "out", data)


@pytest.mark.parametrize(
    ("tower", "feature", "match"),
    [
        ("candidate", {"type": "numeric", "columns": ["absent"]}, r"there is no column 'absent'; the table has \["),
        ("candidate", {"type": "numeric", "columns": ["title"]}, "numeric cannot be made from column 'title'"),
        ("candidate", {"type": "vector", "size": 2, "columns": ["tags"]}, "needs a list of numbers"),
        ("candidate", {"type": "id", "columns": ["image"]}, "id cannot be made from column 'image'"),
        ("query", {"type": "timestamp", "columns": ["age"]}, "timestamp cannot be made from column 'age'"),
        ("query", {"type": "text", "columns": ["event_time"]}, "use type = 'timestamp'"),
        ("query", {"type": "id_sequence", "columns": ["history.absent"]}, "there is no column 'absent'"),
    ],
)
def test_a_feature_that_its_column_cannot_give_is_refused(
    world: World, tmp_path: Path, tower: str, feature: dict[str, Any], match: str
) -> None:
    schema = {**SCHEMA, tower: {**SCHEMA[tower], "extra": feature}}
    fails(world, tmp_path, SchemaError, rf"\[schema\.{tower}\.extra\].*{match}", schema=schema)


def test_the_smallest_schema_and_shares_by_quantile(world: World, tmp_path: Path) -> None:
    """No history, no vocabulary but one, a crashed attempt's remains in the way."""
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "tag.json").write_text("{}")
    (tmp_path / ".examples.work").mkdir()
    schema = {
        "query": {"country": {"type": "categorical"}},
        "candidate": {"track": {"type": "id", "columns": ["candidate_id"]}},
    }
    data = section(world.folder, validation_from=None, test_from=None, min_history=0, test_share=0.2)
    made = generate(tmp_path, data, schema)
    events = sorted(time for of in world.used.values() for time, _, _ in of)
    cuts = json.loads((made / "examples" / "report.json").read_text())["cuts"]
    # The latest moment that leaves a fifth of the events at or after it; likewise a fifth and a twentieth.
    for key, share in (("test_from", 0.2), ("validation_from", 0.25)):
        cut = datetime.fromisoformat(cuts[key])
        wanted = round(len(events) * share)
        assert sum(time >= cut for time in events) >= wanted
        assert sum(time > cut for time in events) < wanted + 5
    validation = datetime.fromisoformat(cuts["validation_from"])
    expected = sum(time < validation for entity, of in world.used.items() if not held_out(entity) for time, _, _ in of)
    assert len(records(made)) == expected
    assert pq.read_table(made / "entities" / "queries").column("history").to_pylist() == [[]] * 62
