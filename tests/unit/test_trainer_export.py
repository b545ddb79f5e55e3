"""The exported tower: raw features give the vectors that training computes from encoded ones."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf

from dataflow.encoded import Learned, Statistics
from dataflow.preprocessing import save_preprocessing
from lockstep.features import MISSING_TIME, features_type, tower_inputs
from lockstep.model_sections import ModelSection
from lockstep.schema import Schema
from lockstep.tags import Kind, open_artifact, write_tag
from lockstep.towers import Tower
from lockstep.version import ModelVersion
from trainer.encoding import EncodedFeature, Repeated, read_encoded_features
from trainer.export import export_tower
from trainer.towers import TowerNetwork, build_towers

V3 = ModelVersion(3)
_ALL: dict[str, dict[str, Any]] = {
    "maker": {"type": "id", "columns": ["maker"]},
    "kind": {"type": "categorical"},
    "shelf": {"type": "categorical", "encoding": "hash", "size": 5},
    "name": {"type": "text", "ngrams": 2, "max_tokens": 4},
    "words": {"type": "text", "columns": ["name"], "ngrams": 1, "max_tokens": 4},
    "price": {"type": "numeric", "log": True},
    "made": {"type": "timestamp"},
    "image": {"type": "vector", "size": 3},
    "tags": {"type": "id_sequence", "max_length": 3},
    "notes": {"type": "text_sequence", "max_length": 2, "max_tokens": 3},
    "scores": {"type": "numeric_sequence", "max_length": 3},
}
SCHEMA = Schema.model_validate({"query": _ALL, "candidate": _ALL})
WORDS = ["red", "blue", "old", "red old"]
LEARNED = Learned(
    {
        f"{side}_{name}": values
        for side in ("query", "candidate")
        for name, values in {
            "maker": ["m1", "m2"],
            "kind": ["x", "y"],
            "name": WORDS,
            "words": WORDS,
            "tags": ["t1", "t2", "t3"],
            "notes": WORDS,
        }.items()
    },
    {(side, name): Statistics(1.0, 2.0) for side in ("query", "candidate") for name in ("price", "scores")},
)
NOON = datetime(2024, 5, 6, 12, tzinfo=UTC)
FULL = {
    "maker": "m1",
    "kind": "y",
    "shelf": "s1",
    "name": "Red, old!",
    "words": "blue",
    "price": 12.5,
    "made": NOON,
    "image": [0.5, -1.0, 2.0],
    "tags": ["t3", "t1", "t2", "t1"],
    "notes": ["old", "red blue red blue", "blue"],
    "scores": [1.0, 2.0, 3.0, 4.0],
}
ROWS: list[dict[str, Any]] = [
    FULL,
    dict.fromkeys(FULL),
    FULL | {"maker": "new", "kind": "", "name": "green", "tags": ["", "t1"], "notes": ["", "red"], "made": None},
    FULL | {"price": None, "image": None, "tags": [], "notes": [], "scores": [], "shelf": None},
    {**dict.fromkeys(FULL), "notes": ["nothing known"], "tags": ["t2"], "scores": [5.0]},
]
MODEL = ModelSection(
    embedding_dim=8,
    feature_dim=4,
    pooling="recency",
    query={"hidden": [16], "cross_layers": 2, "pooling": {"notes": "attention"}},
    candidate={"hidden": [], "pooling": {"tags": "mean"}},
    residual=True,
    layer_norm=True,
    dropout=0.3,
)


class Exported:
    """Both towers in memory, and the exported one beside each."""

    def __init__(self, root: Path) -> None:
        (root / "preprocessing").mkdir()
        save_preprocessing(root / "preprocessing", SCHEMA, LEARNED)
        write_tag(root / "preprocessing", Kind.PREPROCESSING, run="r", schema=SCHEMA.digest, rows=1)
        self.preprocessing = open_artifact(root / "preprocessing", Kind.PREPROCESSING)
        features = read_encoded_features(root / "preprocessing" / "features.json")
        self.networks: dict[str, TowerNetwork] = dict(
            zip(("query", "candidate"), build_towers(features, MODEL, seed=1, unknown_id_share=0.5), strict=True)
        )
        self.towers: dict[str, Tower] = {}
        self.loaded: dict[str, Any] = {}
        for side, kind in (("query", Kind.QUERY_TOWER), ("candidate", Kind.CANDIDATE_TOWER)):
            folder = root / kind.value
            network = self.networks[side]
            _randomise(network)
            export_tower(network, side, self.preprocessing, folder, model_version=V3, run_id="r", rows=9, inputs={})
            self.towers[side] = Tower.open(folder, kind, V3)
            self.loaded[side] = tf.saved_model.load(str(folder / "saved_model"))
        self.encoders = {side: tf.saved_model.load(str(self.preprocessing / side)) for side in self.networks}

    def dense(self, side: str, rows: list[dict[str, Any]]) -> np.ndarray:
        """Of signature `serving_default`."""
        return self.towers[side].embed(pa.array(rows, features_type(SCHEMA, side))).vectors

    def examples(self, side: str, rows: list[bytes]) -> dict[str, np.ndarray]:
        """Of signature `tf_example`."""
        outputs = self.loaded[side].signatures["tf_example"](examples=tf.constant(rows, tf.string))
        return {name: values.numpy() for name, values in outputs.items()}

    def training_vectors(self, side: str, rows: list[dict[str, Any]]) -> np.ndarray:
        """From the preprocessing module's numbers, sequences as `Repeated`, in the way of a training batch."""
        encode = self.encoders[side].signatures["serving_default"]
        raw = tower_inputs(SCHEMA, side, pa.array(rows, features_type(SCHEMA, side)))
        specs = encode.structured_input_signature[1]
        encoded = encode(**{name: tf.constant(values, specs[name].dtype) for name, values in raw.items()})
        network = self.networks[side]
        return network({f.name: _in_training(f, encoded[f.name].numpy()) for f in network.features}).numpy()


def _randomise(network: TowerNetwork) -> None:
    """Larger weights than those of the start, so that no feature is drowned."""
    rng = np.random.default_rng(5)
    for variable in network.trainable_variables:
        variable.assign(rng.normal(size=variable.shape) * 0.5)


def _in_training(feature: EncodedFeature, values: np.ndarray) -> tf.Tensor | Repeated:
    if feature.dtype == "float32":
        return tf.constant(values)
    ids = values.astype(np.int32)
    if feature.elements == 1:
        return tf.constant(ids)
    flat = ids.reshape(-1, feature.length // feature.elements)
    elements, places = np.unique(np.concatenate([np.zeros_like(flat[:1]), flat]), axis=0, return_inverse=True)
    assert not elements[0].any()
    places = places.reshape(-1)[1:].reshape(-1, feature.elements)
    # The holes of a training batch stand anywhere: here before the elements.
    return Repeated(tf.constant(elements), tf.constant(np.pad(places, [[0, 0], [2, 0]]).astype(np.int32)))


def serialized(row: dict[str, Any]) -> bytes:
    """As a client would write it: what is None is left out."""
    example = tf.train.Example()
    for name, value in row.items():
        values = value if isinstance(value, list) else [value]
        if value is None:
            continue
        feature = example.features.feature[name]
        if SCHEMA.query[name].type == "timestamp":
            feature.int64_list.value.extend(int(v.timestamp()) for v in values)
        elif SCHEMA.query[name].type in ("numeric", "vector", "numeric_sequence"):
            feature.float_list.value.extend(values)
        else:
            feature.bytes_list.value.extend(v.encode() for v in values)
    return example.SerializeToString()


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return Exported(tmp_path_factory.mktemp("exported"))


def test_every_type_of_feature_is_here() -> None:
    encoded = {feature.type for feature in SCHEMA.query.values()}
    assert len(encoded) == 9
    assert {row["maker"] for row in ROWS} >= {None, "m1", "new"}


@pytest.mark.parametrize("side", ["query", "candidate"])
@pytest.mark.parametrize("rows", [ROWS, *([row] for row in ROWS)], ids=["all", *map(str, range(len(ROWS)))])
def test_both_signatures_give_the_vectors_of_training(exported: Exported, side: str, rows: list[Any]) -> None:
    expected = exported.training_vectors(side, rows)
    np.testing.assert_allclose(np.linalg.norm(expected, axis=1), 1.0, rtol=1e-5)
    np.testing.assert_allclose(exported.dense(side, rows), expected, atol=1e-5)
    outputs = exported.examples(side, [serialized(row) for row in rows])
    np.testing.assert_allclose(outputs["embedding"], expected, atol=1e-5)
    assert outputs["model_version"].tolist() == [3] * len(rows)
    assert outputs["model_version"].dtype == np.int64


@pytest.mark.parametrize("side", ["query", "candidate"])
@pytest.mark.parametrize("name", sorted(FULL))
def test_every_feature_moves_the_vector_of_both_signatures(exported: Exported, side: str, name: str) -> None:
    rows = [FULL, FULL | {name: None}]
    of_examples = exported.examples(side, [serialized(row) for row in rows])["embedding"]
    for vectors in (exported.dense(side, rows), of_examples):
        assert np.abs(vectors[0] - vectors[1]).max() > 1e-3


def test_missing_values_may_be_written_or_left_out(exported: Exported) -> None:
    written = tf.train.Example()
    for name, feature in SCHEMA.query.items():
        values = written.features.feature[name]
        if feature.type == "timestamp":
            values.int64_list.value.append(MISSING_TIME)
        elif feature.type in ("numeric", "vector", "numeric_sequence"):
            values.float_list.value.extend([float("nan")] * (3 if feature.type == "vector" else 1))
        else:
            values.bytes_list.value.append(b"")
    vectors = exported.examples("query", [written.SerializeToString(), b""])["embedding"]
    np.testing.assert_array_equal(vectors[0], vectors[1])


def test_no_rows_are_no_vectors(exported: Exported) -> None:
    for side in ("query", "candidate"):
        outputs = exported.examples(side, [])
        assert outputs["embedding"].shape == (0, 8)
        assert outputs["model_version"].shape == (0,)
