"""Preprocessing takes anything, and a row's encoding depends on nothing but the row."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dataflow.encoded import Learned, Statistics, encoded_features, features_json
from dataflow.encoding import TowerEncoder, load_modules
from dataflow.known import encode_known
from dataflow.preprocessing import save_preprocessing
from lockstep.features import features_type, tower_inputs
from lockstep.schema import Schema
from tests.joined_records import dense
from trainer.candidates import CandidateTable
from trainer.encoding import read_encoded_features

FEATURES: dict[str, Any] = {
    "id": {"type": "id"},
    "lookup": {"type": "categorical"},
    "hashed": {"type": "categorical", "encoding": "hash", "size": 5},
    "text": {"type": "text", "max_tokens": 5, "ngrams": 3},
    "number": {"type": "numeric", "log": True},
    "moment": {"type": "timestamp"},
    "vector": {"type": "vector", "size": 3},
    "ids": {"type": "id_sequence", "max_length": 3, "columns": ["ids"]},
    "texts": {"type": "text_sequence", "max_length": 3, "max_tokens": 2, "columns": ["texts"]},
    "numbers": {"type": "numeric_sequence", "max_length": 3, "columns": ["numbers"], "log": True},
}
SCHEMA = Schema.model_validate({"query": FEATURES, "candidate": {"id": {"type": "id"}}})
IDS = ["a", "é\n", "\\", "\r", "tab\t", "日本", "\x00", " "]
LEARNED = Learned(
    {
        "query_id": IDS,
        "query_lookup": ["x"],
        "query_text": ["a", "b", "a b", "é"],
        "query_ids": IDS,
        "query_texts": ["a", "b"],
        "candidate_id": ["a"],
    },
    {("query", "number"): Statistics(1.0, 3.0), ("query", "numbers"): Statistics(0.5, 0.1)},
)

texts = st.one_of(st.none(), st.text(max_size=30), st.sampled_from([*IDS, "a b", "A, b! é", "a" * 10_001]))
numbers = st.one_of(st.none(), st.floats(width=32))
moments = st.one_of(st.none(), st.integers(-(2**62), 2**62 - 1))
row = st.fixed_dictionaries(
    {
        "id": texts,
        "lookup": texts,
        "hashed": texts,
        "text": texts,
        "number": numbers,
        "moment": moments,
        "vector": st.one_of(st.none(), st.lists(st.floats(width=32), max_size=5)),
        "ids": st.one_of(st.none(), st.lists(texts, max_size=5)),
        "texts": st.one_of(st.none(), st.lists(texts, max_size=5)),
        "numbers": st.one_of(st.none(), st.lists(numbers, max_size=5)),
    }
)
SETTINGS = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    made = tmp_path_factory.mktemp("preprocessing")
    save_preprocessing(made, SCHEMA, LEARNED)
    return load_modules(made)


@pytest.fixture(scope="module")
def signature(modules: dict[str, Any]) -> Any:
    return modules["query"].signatures["serving_default"]


def served(signature: Any, features: pa.StructArray) -> dict[str, np.ndarray]:
    """What serving makes of raw features."""
    inputs = tower_inputs(SCHEMA, "query", features)
    outputs = signature(**{name: tf.constant(values) for name, values in inputs.items()})
    return {name: tensor.numpy() for name, tensor in outputs.items()}


def struct(rows: list[dict[str, Any]]) -> pa.StructArray:
    kinds = features_type(SCHEMA, "query")
    columns = [
        pa.array([r[field.name] for r in rows], pa.int64()).cast(field.type)
        if field.name == "moment"
        else pa.array([r[field.name] for r in rows], field.type)
        for field in kinds
    ]
    return pa.StructArray.from_arrays(columns, fields=list(kinds))


@SETTINGS
@given(st.lists(row, min_size=2, max_size=5))
def test_a_batch_encodes_as_its_rows_do_bit_for_bit(signature: Any, rows: list[dict[str, Any]]) -> None:
    together = served(signature, struct(rows))
    for number, one in enumerate(rows):
        alone = served(signature, struct([one]))
        for name, values in together.items():
            assert values[number].tobytes() == alone[name][0].tobytes(), (name, one[name])


@SETTINGS
@given(st.lists(st.lists(row, min_size=1, max_size=5), min_size=2, max_size=3), st.integers(0, 3))
def test_training_records_hold_what_serving_makes_bit_for_bit(
    modules: dict[str, Any], signature: Any, batches: list[list[dict[str, Any]]], remembered: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dataflow.encoding.REMEMBERED", remembered)  # forgets in the middle
        encoder = TowerEncoder(SCHEMA, "query", modules["query"])
        for rows in batches:
            features = struct(rows)
            recorded = encoder.encode({field.name: features.field(field.name) for field in features.type})
            for name, values in served(signature, features).items():
                found = recorded[name]
                assert found.shape == values.shape, name
                assert found.astype(values.dtype).tobytes() == values.tobytes(), name


PAST = Schema.model_validate(
    {
        "query": {
            "ids": {"type": "id_sequence", "max_length": 3, "columns": ["history.id"]},
            "texts": {"type": "text_sequence", "max_length": 2, "max_tokens": 2, "columns": ["history.text"]},
            "numbers": {"type": "numeric_sequence", "max_length": 3, "columns": ["history.number"], "log": True},
        },
        "candidate": {"id": {"type": "id"}},
    }
)
VOCABULARIES = {"query_ids": IDS, "query_texts": ["a", "b"], "candidate_id": ["a"]}
candidate = st.fixed_dictionaries({"ids": st.text(max_size=8), "texts": texts.map(lambda text: text or "")})


@pytest.fixture(scope="module")
def past_modules(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    made = tmp_path_factory.mktemp("past")
    save_preprocessing(made, PAST, Learned(VOCABULARIES, {("query", "numbers"): Statistics(0.5, 0.1)}))
    return load_modules(made)


@settings(SETTINGS, max_examples=25)
@given(st.data())
def test_candidates_looked_up_by_index_are_what_serving_makes_of_the_history(
    past_modules: dict[str, Any], data: st.DataObject
) -> None:
    catalogue = data.draw(st.lists(st.tuples(candidate, st.floats(width=32)), min_size=1, max_size=5))
    indices = st.lists(st.integers(0, len(catalogue) - 1), max_size=6)
    pasts = data.draw(st.lists(st.one_of(st.none(), indices), min_size=1, max_size=4))
    elements = {name: [strings[name] for strings, _ in catalogue] for name in ("ids", "texts")}
    elements["numbers"] = [float(number) for _, number in catalogue]
    with tempfile.TemporaryDirectory() as work:
        columns = {"candidate_index": range(len(catalogue)), "c_id": ["a"] * len(catalogue)} | {
            f"past_{name}": of for name, of in elements.items()
        }
        pq.write_table(pa.table(columns), f"{work}/known.parquet")
        encode_known(Path(work) / "known.parquet", Path(work) / "known", PAST, past_modules, len(catalogue))
        (Path(work) / "features.json").write_bytes(features_json(encoded_features(PAST, VOCABULARIES)))
        features = read_encoded_features(Path(work) / "features.json")
        table = CandidateTable(Path(work) / "known", features)
    raw = [{name: past and [of[index] for index in past] for name, of in elements.items()} for past in pasts]
    inputs = tower_inputs(PAST, "query", pa.array(raw, features_type(PAST, "query")))
    expected = past_modules["query"].signatures["serving_default"](**{n: tf.constant(v) for n, v in inputs.items()})
    numbers = [[index + 1 for index in past or ()] for past in pasts]
    found = table.past(tf.constant([row + [0] * (6 - len(row)) for row in numbers], tf.int64))
    for feature in features.query:
        values = dense(found[feature.name], feature)
        wanted = expected[feature.name].numpy()
        if feature.dtype == "int64":
            assert values.tolist() == wanted.tolist(), feature.name
        else:  # the mean is taken by another graph, in float32
            assert values == pytest.approx(wanted, rel=1e-5, abs=1e-5)


@SETTINGS
@given(st.lists(row, min_size=1, max_size=4))
def test_whatever_goes_in_what_comes_out_is_within_its_description(signature: Any, rows: list[dict[str, Any]]) -> None:
    sizes = {"id": len(IDS) + 2, "lookup": 3, "hashed": 6, "text": 6, "ids": len(IDS) + 2, "texts": 4}
    encoded = served(signature, struct(rows))
    for name, values in encoded.items():
        if name in sizes:
            assert values.min() >= 0
            assert values.max() < sizes[name]
        else:
            assert np.isfinite(values).all()


@SETTINGS
@given(st.lists(st.binary(max_size=40), min_size=1, max_size=5))
def test_bytes_that_are_no_text_are_taken_too(signature: Any, values: list[bytes]) -> None:
    inputs = tower_inputs(SCHEMA, "query", struct([dict.fromkeys(FEATURES)] * len(values)))
    for name in ("id", "lookup", "hashed", "text"):
        inputs[name] = np.array(values, object)
    outputs = signature(**{name: tf.constant(array) for name, array in inputs.items()})
    known = {entry.encode(): number + 2 for number, entry in enumerate(IDS)}
    assert outputs["id"].numpy()[:, 0].tolist() == [0 if v == b"" else known.get(v, 1) for v in values]


@settings(SETTINGS, max_examples=8)
@given(st.lists(st.text(min_size=1, max_size=20), min_size=1, max_size=20, unique=True))
def test_every_id_of_a_vocabulary_is_found_again(tmp_path_factory: pytest.TempPathFactory, ids: list[str]) -> None:
    schema = Schema.model_validate({"query": {"x": {"type": "id"}}, "candidate": {"id": {"type": "id"}}})
    made = tmp_path_factory.mktemp("vocabulary")
    save_preprocessing(made, schema, Learned({"query_x": ids, "candidate_id": []}, {}))
    module = tf.saved_model.load(str(made / "query"))
    found = module.signatures["serving_default"](x=tf.constant([i.encode() for i in ids]))["x"]
    assert found.numpy()[:, 0].tolist() == list(range(2, len(ids) + 2))
