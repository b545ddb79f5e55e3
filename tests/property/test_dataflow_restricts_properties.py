"""Filters of candidates: whatever the columns hold, the lists are those that plain Python makes row by row."""

from __future__ import annotations

import math
from typing import Any

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from dataflow.entities import candidate_rows
from dataflow.restricts import numeric_restricts_of, restricts_of
from lockstep.embeddings import NUMERIC_RESTRICTS, RESTRICTS
from lockstep.schema import Schema

TOWERS = {"query": {"q": {"type": "id"}}, "candidate": {"c": {"type": "id"}}}
SCHEMA = Schema.model_validate(
    {**TOWERS, "restricts": ["b", "a"], "deny": {"z": "x", "a": "y"}, "numeric_restricts": ["n", "a"]}
)
TOKEN = st.one_of(st.none(), st.just(""), st.text("aé字", max_size=3))
LISTS = st.one_of(st.none(), st.lists(TOKEN, max_size=3))
NUMBER = st.one_of(st.none(), st.floats(), st.integers(-3, 3).map(float))
COLUMNS = {
    "allow_b": (pa.string(), TOKEN),
    "allow_a": (pa.list_(pa.string()), LISTS),
    "deny_z": (pa.list_(pa.string()), LISTS),
    "deny_a": (pa.string(), TOKEN),
    "number_n": (pa.float64(), NUMBER),
    "number_a": (pa.float64(), NUMBER),
}
ROW = st.fixed_dictionaries({name: values for name, (_, values) in COLUMNS.items()})


def batch_of(rows: list[dict[str, Any]]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist(rows, schema=pa.schema([(name, of) for name, (of, _) in COLUMNS.items()]))


def tokens(value: Any) -> list[str]:
    return [token for token in (value if isinstance(value, list) else [value]) if token]


def restricts(row: dict[str, Any]) -> list[dict[str, Any]]:
    found = [
        {"namespace": "b", "allow": tokens(row["allow_b"]), "deny": []},
        {"namespace": "a", "allow": tokens(row["allow_a"]), "deny": tokens(row["deny_a"])},
        {"namespace": "z", "allow": [], "deny": tokens(row["deny_z"])},
    ]
    return [one for one in found if one["allow"] or one["deny"]]


def numbers(row: dict[str, Any]) -> list[dict[str, Any]]:
    values = (("n", row["number_n"]), ("a", row["number_a"]))
    return [{"namespace": of, "value": value} for of, value in values if value is not None and math.isfinite(value)]


@settings(max_examples=200)
@given(rows=st.lists(ROW, max_size=8), first=st.integers(0, 3))
def test_each_row_has_what_it_allows_denies_and_measures(rows: list[dict[str, Any]], first: int) -> None:
    # A slice: its arrays do not begin where their buffers do.
    batch = batch_of(rows).slice(first)
    found, values = restricts_of(batch, SCHEMA), numeric_restricts_of(batch, SCHEMA)
    found.validate(full=True)
    values.validate(full=True)
    assert (found.type, values.type) == (RESTRICTS, NUMERIC_RESTRICTS)
    assert found.to_pylist() == [restricts(row) for row in rows[first:]]
    assert values.to_pylist() == [numbers(row) for row in rows[first:]]


def test_without_filters_each_row_has_none() -> None:
    batch = pa.RecordBatch.from_pydict({"id": ["a", "b"]})
    schema = Schema.model_validate(TOWERS)
    assert restricts_of(batch, schema).equals(pa.array([[], []], RESTRICTS))
    assert numeric_restricts_of(batch, schema).equals(pa.array([[], []], NUMERIC_RESTRICTS))


def test_an_empty_crowding_tag_is_none() -> None:
    rows = [{"id": tag, "features": {"c": "x"}, "display": "d", "crowding_tag": tag} for tag in ("a", "", None)]
    batch = pa.RecordBatch.from_pylist(rows)
    assert candidate_rows(batch, Schema.model_validate(TOWERS)).column("crowding_tag").to_pylist() == ["a", None, None]
