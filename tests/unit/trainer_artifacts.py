"""Tiny artifacts for the trainer's tests: candidates in groups, and queries that stay within theirs.

Popularity cannot tell the groups apart, so whatever beats it by far has learnt from the history.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow as tf

from lockstep.embeddings import RESTRICTS
from lockstep.features import features_type
from lockstep.schema import Schema
from lockstep.tags import Kind, read_tag, write_tag

GROUPS, PER_GROUP, LENGTH, TOKENS = 6, 20, 5, 3
CANDIDATES = GROUPS * PER_GROUP
TITLES = [f"group{i // PER_GROUP} number{i % PER_GROUP}" for i in range(CANDIDATES)]
IDS = [f"c{i:03d}" for i in range(CANDIDATES)]
SCHEMA = Schema.model_validate(
    {
        "display": "title",
        "query": {
            "history": {
                "type": "id_sequence",
                "columns": ["history.candidate_id"],
                "max_length": LENGTH,
                "shares": "track",
            },
            "mood": {"type": "numeric"},
        },
        "candidate": {
            "track": {"type": "id", "columns": ["candidate_id"]},
            "title": {"type": "text", "max_tokens": TOKENS, "ngrams": 1},
        },
    }
)
FEATURES = {
    "query": [
        _history := {
            "name": "history",
            "type": "id_sequence",
            "dtype": "int64",
            "length": LENGTH,
            "elements": LENGTH,
            "past": True,
            "size": CANDIDATES + 2,
            "table": "track",
            "dim": 16,
        },
        {
            "name": "mood",
            "type": "numeric",
            "dtype": "float32",
            "length": 1,
            "size": None,
            "table": None,
            "dim": None,
        },
    ],
    "candidate": [
        {**_history, "name": "track", "type": "id", "length": 1, "elements": 1, "past": False},
        {
            "name": "title",
            "type": "text",
            "dtype": "int64",
            "length": TOKENS,
            "size": GROUPS + PER_GROUP + 2,
            "table": "title",
            "dim": None,
        },
    ],
}


@dataclass(frozen=True)
class Artifacts:
    examples: Path
    preprocessing: Path
    entities: Path


def make_artifacts(
    root: Path,
    *,
    seed: int = 1,
    rows: int = 4_000,
    queries: int = 60,
    run: str = "run-1",
    oldest_days: float = 1.0,
    weighed: bool = False,
) -> Artifacts:
    """Training examples are evenly as old as up to `oldest_days`; all weigh 1, or as the logarithm of a normal."""
    rng = np.random.default_rng(seed)
    made = Artifacts(root / "examples", root / "preprocessing", root / "entities")
    for path in (made.examples, made.preprocessing, made.entities):
        path.mkdir(parents=True)
    _write_preprocessing(made.preprocessing, run)
    _write_entities(made.entities, run)
    # Numbers of their own, so that the rest does not depend on how old the examples are and what they weigh.
    ages = np.random.default_rng(seed + 1).uniform(0.0, oldest_days, rows).astype(np.float32)
    weights = np.random.default_rng(seed + 2).lognormal(size=rows) if weighed else np.ones(rows)
    _write_examples(made, rng, ages, weights, queries, run)
    return made


def popularity() -> np.ndarray:
    """[CANDIDATES] share of labels; the first of each group are the popular ones."""
    weights = np.tile(1.0 / (1.0 + np.arange(PER_GROUP)) ** 0.5, GROUPS)
    return weights / weights.sum()


def query_features(histories: list[list[str] | None], moods: list[float | None]) -> pa.StructArray:
    rows = [{"history": h, "mood": m} for h, m in zip(histories, moods, strict=True)]
    return pa.array(rows, features_type(SCHEMA, "query"))


def candidate_features(ids: list[str | None], titles: list[str | None]) -> pa.StructArray:
    rows = [{"track": i, "title": t} for i, t in zip(ids, titles, strict=True)]
    return pa.array(rows, features_type(SCHEMA, "candidate"))


class _Preprocessing(tf.Module):
    """What dataflow.preprocessing makes, in small: vocabulary lookup from an asset file, padded to fixed length."""

    def __init__(self, side: str, vocabularies: dict[str, Path]) -> None:
        super().__init__()
        self.side = side
        self.tables = {name: _table(path) for name, path in vocabularies.items()}

    def ids(self, table: str, values: tf.Tensor, length: int) -> tf.Tensor:
        found = self.tables[table].lookup(values)
        ids = tf.where(values == "", tf.zeros_like(found), tf.where(found < 0, tf.ones_like(found), found + 2))
        padded = tf.pad(ids[:, :length], [[0, 0], [0, length]])[:, :length]
        return tf.ensure_shape(padded, [None, length])

    @tf.function(
        input_signature=[tf.TensorSpec([None, None], tf.string, "history"), tf.TensorSpec([None], tf.float32, "mood")]
    )
    def query(self, history: tf.Tensor, mood: tf.Tensor) -> dict[str, tf.Tensor]:
        mood = tf.where(tf.math.is_nan(mood), tf.zeros_like(mood), mood)
        return {"history": self.ids("track", history, LENGTH), "mood": mood[:, tf.newaxis]}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "track"), tf.TensorSpec([None], tf.string, "title")])
    def candidate(self, track: tf.Tensor, title: tf.Tensor) -> dict[str, tf.Tensor]:
        words = tf.strings.split(tf.strings.lower(title)).to_tensor("")
        return {"track": self.ids("track", track[:, tf.newaxis], 1), "title": self.ids("title", words, TOKENS)}

    @tf.function(
        input_signature=[tf.TensorSpec([None], tf.string, "history"), tf.TensorSpec([None], tf.float32, "mood")]
    )
    def query_distinct(self, history: tf.Tensor, mood: tf.Tensor) -> dict[str, tf.Tensor]:
        encoded = self.query(history[:, tf.newaxis], mood)
        return {"history": encoded["history"][:, :1], "mood": encoded["mood"]}

    # A candidate has no sequences.
    candidate_distinct = candidate


def _table(path: Path) -> tf.lookup.StaticHashTable:
    return tf.lookup.StaticHashTable(
        tf.lookup.TextFileInitializer(
            str(path), tf.string, tf.lookup.TextFileIndex.WHOLE_LINE, tf.int64, tf.lookup.TextFileIndex.LINE_NUMBER
        ),
        -1,
    )


def _write_preprocessing(path: Path, run: str) -> None:
    words = [f"group{i}" for i in range(GROUPS)] + [f"number{i}" for i in range(PER_GROUP)]
    (path / "vocabulary").mkdir()
    vocabularies = {}
    for name, lines in (("track", IDS), ("title", words)):
        vocabularies[name] = path / "vocabulary" / f"{name}.txt"
        vocabularies[name].write_text("\n".join(lines) + "\n")
    for side in ("query", "candidate"):
        module = _Preprocessing(side, vocabularies)
        serve, distinct = (getattr(module, name).get_concrete_function() for name in (side, f"{side}_distinct"))
        tf.saved_model.save(module, str(path / side), signatures={"serving_default": serve, "distinct": distinct})
    (path / "features.json").write_text(json.dumps(FEATURES))
    (path / "schema.json").write_bytes(SCHEMA.to_json())
    write_tag(path, Kind.PREPROCESSING, run=run, schema=SCHEMA.digest, rows=len(IDS) + len(words))


def _write_entities(path: Path, run: str) -> None:
    (path / "candidates").mkdir()
    order = np.random.default_rng(3).permutation(CANDIDATES)
    ids = [IDS[i] for i in order]
    table = {
        "id": pa.array(ids),
        "features": candidate_features(list(ids), [TITLES[i] for i in order]),
        "display": pa.array([TITLES[i] for i in order]),
        "restricts": pa.nulls(CANDIDATES, RESTRICTS),
        "crowding_tag": pa.nulls(CANDIDATES, pa.string()),
    }
    pq.write_table(pa.table(table), path / "candidates" / "part-0.parquet")
    (path / "schema.json").write_bytes(SCHEMA.to_json())
    write_tag(path, Kind.ENTITIES, run=run, schema=SCHEMA.digest, rows=CANDIDATES)


def _write_examples(
    made: Artifacts, rng: np.random.Generator, ages: np.ndarray, weights: np.ndarray, queries: int, run: str
) -> None:
    path, rows = made.examples, len(ages)
    share = popularity()
    within = share[:PER_GROUP] / share[:PER_GROUP].sum()
    encode = tf.saved_model.load(str(made.preprocessing / "candidate")).signatures["serving_default"]
    titles = encode(track=tf.constant(IDS), title=tf.constant(TITLES))["title"].numpy()

    def draw(count: int) -> np.ndarray:
        group = rng.integers(GROUPS)
        return group * PER_GROUP + rng.choice(PER_GROUP, count, replace=False, p=within)

    (path / "candidates").mkdir()
    tracks = np.arange(2, CANDIDATES + 2, dtype=np.int32)[:, None]
    for name, values in (("candidate_track", tracks), ("candidate_title", titles), ("query_history", tracks)):
        np.save(path / "candidates" / f"{name}.npy", values.astype(np.int32))
    (path / "train").mkdir()
    events: list[tuple[int, int, float]] = []
    labels: Counter[tuple[int, int]] = Counter()
    for shard in range(2):
        name = str(path / "train" / f"part-{shard:05d}-of-00002.tfrecord.gz")
        with tf.io.TFRecordWriter(name, tf.io.TFRecordOptions(compression_type="GZIP")) as writer:
            for row in range(shard, rows, 2):
                *history, label = draw(rng.integers(2, LENGTH + 2))
                labels[int(label), int(ages[row] * 24)] += 1
                events += [(row, int(c), float(ages[row]) + days) for days, c in enumerate((label, *history[::-1]))]
                padded = [h + 1 for h in history] + [0] * (LENGTH - len(history))
                writer.write(
                    _example(
                        {"past": padded},
                        {"query/mood": [rng.normal()], "age_days": [ages[row]], "weight": [weights[row]]},
                        int(label),
                    )
                )
    write_labels(path, labels)
    _write_interactions(path, events)
    for split in ("validation", "test"):
        (path / split).mkdir()
        drawn = [draw(8) for _ in range(queries)]
        table = {
            "id": pa.array([f"q{i}" for i in range(queries)]),
            "features": query_features([[IDS[c] for c in d[:3]] for d in drawn], [0.0] * queries),
            "history": pa.array([[IDS[c] for c in d[:3]] for d in drawn]),
            "targets": pa.array([[IDS[c] for c in d[3:]] for d in drawn]),
            "cold": pa.array([number % 4 == 0 for number in range(queries)], pa.bool_()),
        }
        pq.write_table(pa.table(table), path / split / "part-0.parquet")
    counts = np.round(share * 10_000).astype(np.int64)
    catalogue = {
        "id": IDS,
        "count": counts,
        "popular_30d": counts,
        "popular_30d_validation": counts,
        "known_before_validation": [True] * CANDIDATES,
    }
    pq.write_table(pa.table(catalogue), path / "catalogue.parquet")
    (path / "features.json").write_text(json.dumps(FEATURES))
    (path / "schema.json").write_bytes(SCHEMA.to_json())
    write_tag(path, Kind.EXAMPLES, run=run, schema=SCHEMA.digest, rows=rows)


def write_labels(path: Path, labels: Mapping[tuple[int, int], int]) -> None:
    """Examples by candidate and age in whole hours."""
    types = {"candidate": pa.int32(), "age_hours": pa.int32(), "examples": pa.int64()}
    columns = zip(*((*of, count) for of, count in sorted(labels.items())), strict=True) if labels else ((), (), ())
    table = {name: pa.array(values, types[name]) for name, values in zip(types, columns, strict=True)}
    pq.write_table(pa.table(table), path / "labels.parquet")


def forget(path: Path, *unknown: int) -> None:
    """Make some candidates of an `examples` artifact ones that were not known before the validation cut."""
    table = pq.read_table(path / "catalogue.parquet")
    known = pa.array([index not in unknown for index in range(CANDIDATES)])
    place = table.column_names.index("known_before_validation")
    pq.write_table(table.set_column(place, "known_before_validation", known), path / "catalogue.parquet")
    retag(path)


def retag(path: Path) -> None:
    """Write the tag of an artifact whose files a test has changed anew."""
    tag = read_tag(path)
    write_tag(path, tag.kind, run=tag.run, schema=tag.schema, rows=tag.rows)


def _write_interactions(path: Path, events: list[tuple[int, int, float]]) -> None:
    """Each example's label and past, a day between two of them."""
    types = {"query": pa.int32(), "candidate": pa.int32(), "age_days": pa.float32()}
    columns = zip(*events, strict=True) if events else ((), (), ())
    table = {name: pa.array(values, types[name]) for name, values in zip(types, columns, strict=True)}
    pq.write_table(pa.table(table), path / "interactions.parquet")


def _example(ids: dict[str, list[int]], floats: dict[str, list[float]], index: int) -> bytes:
    feature = {name: tf.train.Feature(int64_list=tf.train.Int64List(value=values)) for name, values in ids.items()}
    feature |= {name: tf.train.Feature(float_list=tf.train.FloatList(value=values)) for name, values in floats.items()}
    feature["candidate_index"] = tf.train.Feature(int64_list=tf.train.Int64List(value=[index]))
    return tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()
