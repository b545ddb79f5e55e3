"""Preprocessing: exact ids and floats of each feature type, worked out by hand."""

from __future__ import annotations

import datetime as dt
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from dataflow.encoded import Learned, Statistics
from dataflow.preprocessing import _day_of_year, save_preprocessing
from dataflow.text import tokenize
from lockstep.features import MISSING_TIME
from lockstep.schema import Schema

SCHEMA = Schema.model_validate(
    {
        "query": {
            "history": {"type": "id_sequence", "columns": ["history.candidate_id"], "max_length": 3, "shares": "track"},
            "titles": {
                "type": "text_sequence",
                "columns": ["history.title"],
                "max_length": 2,
                "max_tokens": 3,
                "shares": "title",
            },
            "prices": {"type": "numeric_sequence", "columns": ["history.price"], "max_length": 2},
            "when": {"type": "timestamp", "columns": ["event_time"]},
            "season": {"type": "timestamp", "columns": ["event_time"], "cycles": ["year"]},
            "country": {"type": "categorical", "encoding": "hash", "size": 7, "dim": 4},
        },
        "candidate": {
            "track": {"type": "id", "columns": ["candidate_id"], "dim": 8},
            "title": {"type": "text", "ngrams": 2, "max_tokens": 4},
            "price": {"type": "numeric"},
            "plays": {"type": "numeric", "log": True},
            "range": {"type": "numeric", "columns": ["price"], "buckets": 4, "dim": 3},
            "vector": {"type": "vector", "size": 2},
            "genre": {"type": "categorical"},
        },
    }
)
LEARNED = Learned(
    {
        "candidate_track": ["a", "b", "new\nline", "new\\nline", " "],
        "candidate_title": ["red", "blue", "red blue"],
        "candidate_genre": [],
    },
    {
        ("candidate", "price"): Statistics(10.0, 4.0),
        ("candidate", "plays"): Statistics(math.log(10), 1.0),
        ("query", "prices"): Statistics(1.0, 2.0),
    },
    boundaries={("candidate", "range"): [0.1, 2.5, 7.0]},
)
MISSING: dict[str, Any] = {
    "track": b"",
    "title": b"",
    "price": np.nan,
    "plays": np.nan,
    "range": np.nan,
    "vector": [np.nan, 0],
    "genre": b"",
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("made")
    save_preprocessing(made, SCHEMA, LEARNED)
    # Moved, as an artifact may be: nothing may point back to where it was made.
    moved = tmp_path_factory.mktemp("moved") / "preprocessing"
    shutil.move(made, moved)
    return moved


def call(saved: Path, tower: str, inputs: dict[str, Any]) -> dict[str, Any]:
    signature = tf.saved_model.load(str(saved / tower)).signatures["serving_default"]
    types = {name: spec.dtype for name, spec in signature.structured_input_signature[1].items()}
    tensors = {name: tf.constant(values, types[name]) for name, values in inputs.items()}
    return {name: tensor.numpy().tolist() for name, tensor in signature(**tensors).items()}


def candidate(saved: Path, **values: list[Any]) -> dict[str, Any]:
    rows = len(next(iter(values.values())))
    return call(saved, "candidate", {name: values.get(name, [missing] * rows) for name, missing in MISSING.items()})


def query(saved: Path, **values: list[Any]) -> dict[str, Any]:
    rows = len(next(iter(values.values())))
    missing = {
        "history": [[b""]] * rows,
        "titles": [[b""]] * rows,
        "prices": [[np.nan]] * rows,
        "when": [MISSING_TIME] * rows,
        "season": [MISSING_TIME] * rows,
        "country": [b""] * rows,
    }
    return call(saved, "query", missing | values)


def test_ids_count_from_two_with_missing_zero_and_unknown_one(saved: Path) -> None:
    ids = candidate(saved, track=[b"a", b"b", b"new\nline", b"new\\nline", b" ", b"", b"zzz", b"\xff"])["track"]
    assert ids == [[2], [3], [4], [5], [6], [0], [1], [1]]


def test_an_empty_vocabulary_knows_nothing(saved: Path) -> None:
    assert candidate(saved, genre=[b"rock", b""])["genre"] == [[1], [0]]


def test_hashed_categories_are_in_their_bins(saved: Path) -> None:
    ids = query(saved, country=[b"UK", b"DE", b""])["country"]
    # FarmHash fingerprints are stable: the operation is the specification.
    expected = tf.strings.to_hash_bucket_fast([b"UK", b"DE"], 7).numpy() + 1
    assert ids == [[expected[0]], [expected[1]], [0]]
    assert all(1 <= row[0] <= 7 for row in ids[:2])


def test_a_number_falls_into_the_bucket_that_begins_at_or_below_it(saved: Path) -> None:
    numbers = [-1e30, 0.0, 0.1, 2.4999, 2.5, 7.0, 1e30, np.nan, np.inf]
    assert candidate(saved, range=numbers)["range"] == [[2], [2], [3], [3], [4], [5], [5], [0], [0]]


def test_texts_become_words_and_pairs(saved: Path) -> None:
    titles = [b"Red, BLUE!", b"blue red", b"", b"RED", b"rot-blau", b"..."]
    assert candidate(saved, title=titles)["title"] == [
        [2, 3, 4, 0],  # red, blue, red blue
        [3, 2, 1, 0],  # the pair is unknown
        [0, 0, 0, 0],
        [2, 0, 0, 0],
        [1, 1, 1, 0],
        [0, 0, 0, 0],
    ]


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("Don't  STOP", ["dont", "stop"]),
        ("ÉTÉ “quoted” — dash…", ["été", "quoted", "dash"]),
        ("rock/pop\u00a0&\u3000soul\nx", ["rock", "pop", "soul", "x"]),
        ("$5 + 6 = 11", ["5", "6", "11"]),
        ("party 🎉 2024", ["party", "🎉", "2024"]),
        ("ΑΒΓ", ["αβγ"]),
        ("", []),
        ("?!", []),
    ],
)
def test_tokens(text: str, tokens: list[str]) -> None:
    assert [token.decode() for token in tokenize(tf.constant([text]), 1).to_list()[0]] == tokens


def test_tokens_of_three_words_in_runs() -> None:
    found = tokenize(tf.constant(["a b c", "d"]), 3).to_list()
    assert found == [[b"a", b"b", b"c", b"a b", b"b c", b"a b c"], [b"d"]]


def test_numbers_are_standardised_and_missing_ones_marked(saved: Path) -> None:
    found = candidate(saved, price=[18.0, 10.0, np.nan, np.inf, 1e30], plays=[9.0, 0.0, -9.0, np.nan, 1.0])
    assert found["price"] == [[2.0, 0.0], [0.0, 0.0], [0.0, 1.0], [0.0, 1.0], [100.0, 0.0]]
    # log1p(9) = log(10): 0; log1p(0) - log(10); -log1p(9) - log(10)
    expected = [[0.0, 0.0], [-math.log(10), 0.0], [-2 * math.log(10), 0.0], [0.0, 1.0], [math.log(0.2), 0.0]]
    assert np.allclose(found["plays"], expected, atol=1e-6)


def test_vectors_pass_and_hold_no_nan(saved: Path) -> None:
    assert candidate(saved, vector=[[0.5, -2.0], [np.nan, np.inf]])["vector"] == [[0.5, -2.0], [0.0, 0.0]]


def test_sequences_keep_their_last_values_and_are_padded(saved: Path) -> None:
    found = query(
        saved,
        history=[[b"a", b"b", b"", b"a", b"zz", b""], [b"b", b"", b"", b"", b"", b""], [b""] * 6],
        titles=[[b"red", b"blue", b"red blue"], [b"red", b"", b""], [b"", b"", b""]],
        prices=[[9.0, 3.0, 5.0], [3.0, np.nan, np.nan], [np.nan] * 3],
    )
    assert found["history"] == [[0, 2, 1], [3, 0, 0], [0, 0, 0]]  # the gap stays, as missing
    assert found["titles"] == [[3, 0, 0, 2, 3, 0], [2, 0, 0, 0, 0, 0], [0] * 6]
    # (3 - 1) / 2 = 1 and (5 - 1) / 2 = 2: mean 1.5, last 2
    assert found["prices"] == [[1.5, 2.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]


def test_moments_become_points_on_three_circles(saved: Path) -> None:
    # Thursday 1970-01-01 00:00; Monday 2024-12-30 06:00, day 364 of a leap year, 0-based; no moment.
    monday = int(dt.datetime(2024, 12, 30, 6, tzinfo=dt.UTC).timestamp())
    found = query(saved, when=[0, monday, MISSING_TIME])["when"]
    thursday, december = 2 * math.pi * 3 / 7, 2 * math.pi * 364 / 366
    expected = [
        [0, 1, math.sin(thursday), math.cos(thursday), 0, 1],
        [1, 0, 0, 1, math.sin(december), math.cos(december)],
        [0, 0, 0, 0, 0, 0],
    ]
    assert np.allclose(found, expected, atol=1e-6)


def test_a_moment_has_the_cycles_that_are_asked_for(saved: Path) -> None:
    monday = int(dt.datetime(2024, 12, 30, 6, tzinfo=dt.UTC).timestamp())
    december = 2 * math.pi * 364 / 366
    assert np.allclose(query(saved, season=[monday])["season"], [[math.sin(december), math.cos(december)]], atol=1e-6)


def test_day_of_year_agrees_with_the_calendar() -> None:
    days = np.arange(-150_000, 150_000, 7)
    expected = [(dt.date(1970, 1, 1) + dt.timedelta(int(day))).timetuple().tm_yday - 1 for day in days]
    assert _day_of_year(tf.constant(days)).numpy().tolist() == expected


@pytest.mark.parametrize("seconds", [2**63 - 1, -(2**63), 10**17])
def test_absurd_moments_do_not_raise(saved: Path, seconds: int) -> None:
    assert np.isfinite(query(saved, when=[seconds])["when"]).all()


def test_empty_batches_and_empty_sequences(saved: Path) -> None:
    empty = call(saved, "candidate", {name: np.zeros((0, 2)) if name == "vector" else [] for name in MISSING})
    assert {name: np.shape(values)[0] for name, values in empty.items()} == dict.fromkeys(MISSING, 0)
    found = query(saved, history=np.zeros((2, 0), object), titles=np.zeros((2, 0), object), prices=np.zeros((2, 0)))  # type: ignore[arg-type]
    assert found["history"] == [[0, 0, 0]] * 2
    assert found["prices"] == [[0.0, 0.0, 1.0]] * 2


def test_features_json_describes_what_comes_out(saved: Path) -> None:
    declared = json.loads((saved / "features.json").read_bytes())
    by_name = {(tower, feature["name"]): feature for tower in declared for feature in declared[tower]}
    for tower in ("query", "candidate"):
        signature = tf.saved_model.load(str(saved / tower)).signatures["serving_default"]
        shapes = {
            name: (tensor.shape.as_list(), tensor.dtype.name) for name, tensor in signature.structured_outputs.items()
        }
        assert shapes == {f["name"]: ([None, f["length"]], f["dtype"]) for f in declared[tower]}
    table = {"size": 7, "table": "candidate_track", "dim": 8}
    alone = {"elements": 1, "past": False}
    track = {"name": "track", "type": "id", "dtype": "int64", "length": 1, **alone, **table}
    assert by_name["candidate", "track"] == track
    in_buckets = {"size": 6, "table": "candidate_range", "dim": 3}
    assert by_name["candidate", "range"] == track | {"name": "range", "type": "numeric", **in_buckets}
    # Shared: the other's table, size and dim.
    history = track | {"name": "history", "type": "id_sequence", "length": 3, "elements": 3, "past": True}
    assert by_name["query", "history"] == history
    assert (by_name["query", "titles"]["length"], by_name["query", "titles"]["table"]) == (6, "candidate_title")
    assert (by_name["query", "country"]["size"], by_name["query", "country"]["dim"]) == (8, 4)
    assert by_name["candidate", "price"]["size"] is None


def test_vocabulary_files_hold_one_escaped_value_a_line(saved: Path) -> None:
    lines = (saved / "vocabulary" / "candidate_track.txt").read_bytes().split(b"\n")
    assert lines == [b"a", b"b", b"new\\nline", b"new\\\\nline", b" ", b""]
    assert (saved / "vocabulary" / "candidate_genre.txt").read_bytes() == b""
    assert Schema.from_json((saved / "schema.json").read_bytes()) == SCHEMA


def test_a_tower_can_wrap_and_export_it(saved: Path, tmp_path: Path) -> None:
    """What the trainer does: the exported tower must carry the vocabulary with it."""
    copy = tmp_path / "preprocessing"
    shutil.copytree(saved / "candidate", copy)

    class Tower(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.preprocessing = tf.saved_model.load(str(copy))

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "track")])
        def embed(self, track: tf.Tensor) -> dict[str, tf.Tensor]:
            nothing = tf.fill([tf.shape(track)[0]], float("nan"))
            texts = tf.fill([tf.shape(track)[0]], "")
            encoded = self.preprocessing.signatures["serving_default"](
                track=track,
                title=texts,
                genre=texts,
                price=nothing,
                plays=nothing,
                range=nothing,
                vector=tf.stack([nothing] * 2, 1),
            )
            return {"ids": encoded["track"]}

    tower = Tower()
    tf.saved_model.save(tower, str(tmp_path / "tower"), signatures={"serving_default": tower.embed})
    shutil.rmtree(copy)
    loaded = tf.saved_model.load(str(tmp_path / "tower")).signatures["serving_default"]
    assert loaded(track=tf.constant(["b", "?"]))["ids"].numpy().tolist() == [[3], [1]]
