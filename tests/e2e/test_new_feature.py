"""A new feature is one table of the schema: nothing else is edited, and it reaches the towers.

One data step and one training hold every type of feature of both towers at once; each is then looked for in
features.json, in the training records, in the tower's signature and in what the tower answers.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf

from dataflow import generate
from lockstep.config import Config, load_config
from lockstep.features import features_from_json
from lockstep.tags import Kind
from lockstep.towers import Tower
from lockstep.version import ModelVersion
from tests.joined_records import joined_records
from trainer import task

pytestmark = pytest.mark.e2e

VERSION = ModelVersion(3)
NOON = datetime(2024, 5, 6, 12, tzinfo=UTC)
BASE = """
[data]
source = "tables"
path = "."
min_history = 0
[data.tables.events]
file = "events.parquet"
query = "user"
candidate = "thing"
timestamp = "at"
[data.tables.candidates]
file = "things.parquet"
id = "thing"
[data.tables.queries]
file = "users.parquet"
id = "user"

[schema.query.user]
type = "id"
columns = ["query_id"]
[schema.candidate.thing]
type = "id"
columns = ["candidate_id"]

[model]
embedding_dim = 8
feature_dim = 4
query = { hidden = [] }
candidate = { hidden = [] }
[train]
batch_size = 64
epochs = 1
"""


@dataclass(frozen=True)
class NewFeature:
    """What is added to the schema, and two values between which an embedding must move."""

    tower: str
    name: str
    type: str
    values: tuple[Any, Any]
    rest: str = ""

    @property
    def toml(self) -> str:
        """All that a person writes."""
        return f'[schema.{self.tower}.{self.name}]\ntype = "{self.type}"\n{self.rest}\n'


WORDS = ("red", "blue", "green", "old", "new", "small")
MOMENTS = ("2024-01-01T06:00:00Z", "2024-05-04T18:00:00Z")
OF_EITHER = [
    ("maker", "id", ("m1", "m2"), ""),
    ("kind", "categorical", ("x", "y"), ""),
    ("shelf", "categorical", ("s1", "s2"), 'encoding = "hash"\nsize = 50'),
    ("name", "text", ("red old", "blue new"), "min_count = 1"),
    ("price", "numeric", (1.0, 90.0), "log = true"),
    ("made", "timestamp", MOMENTS, ""),
    ("image", "vector", ([1.0, 0.0, 0.0], [0.0, 0.0, 1.0]), "size = 3"),
    ("tags", "id_sequence", (["m1"], ["m2", "m3"]), "max_length = 3"),
    ("notes", "text_sequence", (["red old"], ["blue", "new"]), "min_count = 1\nmax_length = 3"),
    ("scores", "numeric_sequence", ([1.0], [5.0, 4.0]), "max_length = 3"),
]
NEW = [NewFeature(tower, *feature) for tower in ("query", "candidate") for feature in OF_EITHER]
NEW += [
    NewFeature("query", "last_week", "numeric", (0.0, 9.0), 'columns = ["events.7d"]'),
    NewFeature("candidate", "last_month", "numeric", (0.0, 9.0), 'columns = ["events.30d"]'),
    NewFeature("query", "now", "timestamp", MOMENTS, 'columns = ["event_time"]'),
    NewFeature(
        "query", "past", "id_sequence", (["t1"], ["t2"]), 'columns = ["history.candidate_id"]\nshares = "thing"'
    ),
    NewFeature("query", "past_kinds", "id_sequence", (["x"], ["y"]), 'columns = ["history.kind"]'),
    NewFeature(
        "query", "past_names", "text_sequence", (["red"], ["blue"]), 'columns = ["history.name"]\nmin_count = 1'
    ),
    NewFeature("query", "past_prices", "numeric_sequence", ([1.0], [90.0]), 'columns = ["history.price"]'),
]
IDS = [f"{feature.tower}.{feature.name}" for feature in NEW]


def config_of(folder: Path, *added: NewFeature) -> Config:
    path = folder / "config.toml"
    path.write_text(BASE + "".join(feature.toml for feature in added), encoding="utf-8")
    return load_config(path, {"data": {"path": str(folder)}})


def write_tables(folder: Path) -> None:
    rng = random.Random(4)

    def attributes() -> dict[str, Any]:
        return {
            "maker": f"m{rng.randrange(4)}",
            "kind": rng.choice("xyz"),
            "shelf": f"s{rng.randrange(9)}",
            "name": " ".join(rng.sample(WORDS, 2)),
            "price": rng.uniform(1, 100),
            "made": NOON - timedelta(hours=rng.randrange(5_000)),
            "image": [rng.random() for _ in range(3)],
            "tags": [f"m{rng.randrange(4)}" for _ in range(rng.randrange(4))],
            "notes": [rng.choice(WORDS) for _ in range(rng.randrange(4))],
            "scores": [float(rng.randrange(6)) for _ in range(rng.randrange(4))],
        }

    things = [{"thing": f"t{number}", **attributes()} for number in range(25)]
    users = [{"user": f"u{number}", **attributes()} for number in range(60)]
    events = [
        {"user": user["user"], "thing": thing["thing"], "at": NOON + timedelta(hours=rng.randrange(60 * 24))}
        for user in users
        for thing in rng.sample(things, 12)
    ]
    for name, rows in (("things", things), ("users", users), ("events", events)):
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet")


@dataclass(frozen=True)
class Made:
    config: Config
    features: dict[str, dict[str, Any]]
    records: list[dict[str, list[Any]]]
    towers: dict[str, Tower]
    inputs: dict[str, set[str]]
    """Of each tower's signature."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The data step and one epoch, with every new feature."""
    folder = tmp_path_factory.mktemp("new_feature")
    write_tables(folder)
    config = config_of(folder, *NEW)
    inputs = {"examples": folder / "examples", "preprocessing": folder / "preprocessing"}
    generate.run(**inputs, entities=folder / "entities", run_id="r", data=config.data, schema=config.schema_)
    outputs = {kind.value: folder / kind.value for kind in (Kind.QUERY_TOWER, Kind.CANDIDATE_TOWER)}
    trained = {"model": config.model, "train": config.train, "model_version": VERSION, "run_id": "r"}
    task.run(**inputs, **outputs, work=folder / "work", **trained)  # type: ignore[arg-type]
    listed = json.loads((folder / "examples" / "features.json").read_bytes())
    features = {tower: {feature["name"]: feature for feature in listed[tower]} for tower in listed}
    towers = {
        tower: Tower.open(folder / f"{tower}_tower", Kind(f"{tower}_tower"), VERSION)
        for tower in ("query", "candidate")
    }
    loaded = {tower: tf.saved_model.load(str(folder / f"{tower}_tower" / "saved_model")) for tower in towers}
    taken = {tower: set(of.signatures["serving_default"].structured_input_signature[1]) for tower, of in loaded.items()}
    return Made(config, features, joined_records(folder / "examples"), towers, taken)


def test_there_is_every_type_on_both_sides() -> None:
    types = {"id", "categorical", "text", "numeric", "timestamp", "vector"}
    types |= {"id_sequence", "text_sequence", "numeric_sequence"}
    for tower in ("query", "candidate"):
        assert {feature.type for feature in NEW if feature.tower == tower} == types


@pytest.mark.parametrize("new", NEW, ids=IDS)
def test_one_table_of_the_schema_is_all_that_is_added(tmp_path: Path, new: NewFeature) -> None:
    before, after = config_of(tmp_path).schema_, config_of(tmp_path, new).schema_
    grown = {**before.features(new.tower), new.name: after.features(new.tower)[new.name]}
    assert after.features(new.tower) == grown
    assert after.features(new.tower)[new.name].type == new.type
    other = {"query": "candidate", "candidate": "query"}[new.tower]
    assert after.features(other) == before.features(other)
    assert after.digest != before.digest  # so that no artifact of the old schema is taken for one of the new


@pytest.mark.parametrize("new", NEW, ids=IDS)
def test_it_is_listed_and_in_every_record(made: Made, new: NewFeature) -> None:
    listed = made.features[new.tower][new.name]
    assert listed["type"] == new.type
    values = [record[f"{new.tower}/{new.name}"] for record in made.records]
    assert {len(value) for value in values} == {listed["length"]}
    assert len({tuple(value) for value in values}) > 1  # what the table holds, not a constant


@pytest.mark.parametrize("new", NEW, ids=IDS)
def test_the_exported_tower_takes_it_and_answers_by_it(made: Made, new: NewFeature) -> None:
    tower = made.towers[new.tower]
    assert new.name in made.inputs[new.tower]
    one, other = (
        tower.embed(features_from_json(made.config.schema_, new.tower, {new.name: value})).vectors[0]
        for value in new.values
    )
    assert np.linalg.norm(one) == pytest.approx(1, abs=1e-5)
    assert np.linalg.norm(one - other) > 1e-3
