"""Raw features: from Arrow and from JSON to what a tower takes."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from lockstep.config import parse_schema
from lockstep.errors import RequestError
from lockstep.features import (
    MISSING_TIME,
    features_from_json,
    features_type,
    tower_inputs,
)

SCHEMA = parse_schema(
    {
        "query": {
            "history": {"type": "id_sequence", "columns": ("history.candidate_id",), "max_length": 3},
            "moment": {"type": "timestamp", "columns": ("event_time",)},
            "name": {"type": "text"},
            "prices": {"type": "numeric_sequence", "max_length": 2},
            "size": {"type": "numeric"},
            "vec": {"type": "vector", "size": 2},
        },
        "candidate": {"c": {"type": "id"}},
    }
)
TYPE = features_type(SCHEMA, "query")


def rows(*values: dict[str, Any]) -> pa.StructArray:
    names = [field.name for field in TYPE]
    return pa.array([{name: value.get(name) for name in names} for value in values], type=TYPE)


def test_the_last_values_are_kept_and_the_rest_padded_on_the_right() -> None:
    batch = rows({"history": ["a", "b", "c", "d"]}, {"history": ["é"]}, {"history": None}, {"history": []})
    inputs = tower_inputs(SCHEMA, "query", batch)
    assert inputs["history"].tolist() == [
        [b"b", b"c", b"d"],
        ["é".encode(), b"", b""],
        [b"", b"", b""],
        [b"", b"", b""],
    ]


def test_missing_values_have_one_form_each() -> None:
    inputs = tower_inputs(SCHEMA, "query", rows({}))
    assert inputs["name"].tolist() == [b""]
    assert np.isnan(inputs["size"]).tolist() == [True]
    assert inputs["moment"].tolist() == [MISSING_TIME]
    assert inputs["history"].tolist() == [[b""]]
    assert np.isnan(inputs["prices"]).tolist() == [[True]]
    assert inputs["vec"].tolist() == [[0.0, 0.0]]


def test_numbers_moments_and_vectors() -> None:
    moment = datetime(1969, 12, 31, 23, 59, 58, 500_000, tzinfo=UTC)  # 1.5 s before 1970 is second -2
    inputs = tower_inputs(
        SCHEMA, "query", rows({"size": 2.5, "moment": moment, "prices": [1.0, None, 3.0], "vec": [0.5, 1.5]})
    )
    assert inputs["size"].dtype == np.float32
    assert inputs["size"].tolist() == [2.5]
    assert inputs["moment"].tolist() == [-2]
    np.testing.assert_array_equal(inputs["prices"], [[np.nan, 3.0]])
    assert inputs["vec"].tolist() == [[0.5, 1.5]]


def test_a_slice_of_a_batch_gives_the_same_as_the_rows_alone() -> None:
    batch = rows(*({"history": [str(n), "x"], "name": str(n), "prices": [float(n)]} for n in range(6)))
    whole = tower_inputs(SCHEMA, "query", batch)
    part = tower_inputs(SCHEMA, "query", batch.slice(2, 3))
    for name, values in part.items():
        np.testing.assert_array_equal(values, whole[name][2:5])


def test_json_features_equal_the_same_row_from_arrow() -> None:
    row = {"history": ["a"], "name": "n", "size": 2, "prices": [1.5], "vec": [1, 2], "moment": "2026-01-02T03:04:05Z"}
    expected = rows({**row, "moment": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)})
    assert features_from_json(SCHEMA, "query", row).equals(expected)
    assert features_from_json(SCHEMA, "query", {**row, "moment": 1767323045}).equals(expected)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"nam": "x"}, r"unknown query features \['nam'\]: the schema has \['history'"),
        ({"history": "a"}, "'history' is of type id_sequence: expected a list, found 'a'"),
        ({"history": [1]}, "'history' is id_sequence: expected a string, found 1"),
        ({"name": "\ud800"}, "'name': '.ud800' is no Unicode text"),
        ({"name": 3}, "'name' is text: expected a string, found 3"),
        ({"size": "3"}, "'size' is numeric: expected a finite number, found '3'"),
        ({"size": True}, "expected a finite number, found True"),
        ({"size": float("nan")}, "expected a finite number, found nan"),
        ({"vec": [1.0]}, "'vec' is a vector of 2 floats, found 1"),
        ({"moment": "yesterday"}, "expected seconds since 1970 or ISO 8601, found 'yesterday'"),
        ({"moment": 1e30}, "expected seconds since 1970 or ISO 8601"),
        ({"moment": None, "name": None, "x": None}, r"unknown query features \['x'\]"),
    ],
)
def test_wrong_json_features_are_request_errors(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RequestError, match=sentence):
        features_from_json(SCHEMA, "query", values)
