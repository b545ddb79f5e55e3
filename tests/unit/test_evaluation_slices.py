"""Slices of a made-up evaluation whose members can be counted by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from lockstep.features import features_type
from lockstep.model_sections import EvaluateSection
from lockstep.schema import Schema
from tests.unit.test_evaluation_measures import queries_of
from trainer.evaluation.comparison import compare
from trainer.evaluation.queries import Catalogue
from trainer.evaluation.ranking import SameForAll, rank
from trainer.evaluation.slices import (
    Slice,
    column_slices,
    popularity_thirds,
    slice_held_out,
    slice_recall,
    standard_slices,
)

SCHEMA = Schema.model_validate(
    {
        "query": {
            "land": {"type": "categorical", "columns": ["country"]},
            "past": {"type": "id_sequence", "columns": ["history.candidate_id"], "max_length": 3},
        },
        "candidate": {"genre": {"type": "categorical"}, "price": {"type": "numeric"}},
    }
)


def catalogue_of(counts: list[float]) -> Catalogue:
    count = np.array(counts, dtype=np.float32)
    return Catalogue(pa.array([f"c{i}" for i in range(len(counts))]), count, count, count, np.ones(len(counts), bool))


def members(slices: list[Slice]) -> dict[tuple[str, str, str], list[int]]:
    return {(s.of, s.by, s.value): np.flatnonzero(s.members).tolist() for s in slices}


def test_head_torso_and_tail_each_begin_where_a_third_of_the_events_ends():
    # 9 events: 4 | 2 1 | 1 1. Before them stand 0; 4, 6 (a third is 3, so both past it); 7, 8 (two thirds are 6).
    thirds = dict(popularity_thirds(np.array([1.0, 4.0, 0.0, 2.0, 1.0, 1.0])))
    assert {name: np.flatnonzero(of).tolist() for name, of in thirds.items()} == {
        "head": [1],
        "torso": [3],
        "tail": [0, 4, 5],
    }
    assert not any(of.any() for _, of in popularity_thirds(np.zeros(3)))


def test_a_candidate_that_begins_within_a_third_belongs_to_it():
    thirds = dict(popularity_thirds(np.full(6, 5.0)))  # before them stand 0, 5, 10, 15, 20, 25 of 30
    assert [np.flatnonzero(of).tolist() for of in thirds.values()] == [[0, 1], [2, 3], [4, 5]]


def test_standard_slices():
    queries = queries_of([[], [0], [0, 1, 2, 3], list(range(5)), list(range(60))], [[1]] * 5)
    queries = replace(queries, cold=np.array([True, False, False, True, False]))
    found = members(standard_slices(queries, catalogue_of([6, 3, 0, 0])))
    assert (found["queries", "training", "cold"], found["queries", "training", "warm"]) == ([0, 3], [1, 2, 4])
    assert [found["queries", "history", value] for value in ("0", "1 to 4", "5 to 9", "10 to 19", "50 or more")] == [
        [0],
        [1, 2],
        [3],
        [],
        [4],
    ]
    assert (found["candidates", "training", "cold"], found["candidates", "training", "warm"]) == ([2, 3], [0, 1])


def test_slices_by_column_are_the_most_frequent_values_of_either_tower():
    lands = ["b"] * 3 + ["a"] * 2 + [None] + [f"z{i:02d}" for i in range(11)]
    features = {
        "query": pa.array([{"land": land, "past": []} for land in lands], features_type(SCHEMA, "query")),
        "candidate": pa.array(
            [{"genre": g, "price": p} for g, p in zip("xyxyx", (1.0, 2.0, 3.0, None, 4.0), strict=True)],
            features_type(SCHEMA, "candidate"),
        ),
    }
    by_land = members(column_slices(["country"], SCHEMA, features))
    assert by_land["queries", "country", "b"] == [0, 1, 2]
    assert by_land["queries", "country", "a"] == [3, 4]
    assert by_land["queries", "country", "(missing)"] == [5]
    assert by_land["queries", "country", "z07"] == [13]  # the tenth by count and name
    assert by_land["queries", "country", "(other)"] == [14, 15, 16]
    assert len(by_land) == 12
    by_genre = members(column_slices(["genre"], SCHEMA, features))
    assert by_genre == {("candidates", "genre", "x"): [0, 2, 4], ("candidates", "genre", "y"): [1, 3]}
    by_price = members(column_slices(["price"], SCHEMA, features))
    assert list(by_price.values()) == [[0], [1], [2], [4], [3]]
    assert [value for _, _, value in by_price] == ["up to 1", "up to 2", "up to 3", "up to 4", "(missing)"]


def test_recall_in_a_slice_of_candidates_is_over_its_own_held_out():
    queries = queries_of([[], [], []], [[0, 1, 4], [4], [2]], held_out=[5, 1, 1])
    ranking = rank(SameForAll(np.array([5, 4, 3, 2, 1], dtype=np.float32)), queries, 5, exclude_history=True)
    part = Slice("candidates", "by", "value", np.array([True, False, False, False, True]))
    assert slice_held_out(part, queries).tolist() == [2, 1, 0]
    found = slice_recall(part, ranking, queries, (1, 10))
    # candidate 0 is first and 4 last: of {0, 4} one is in the top 1, both are in the top 10; query 2 holds out neither
    np.testing.assert_array_equal(found["recall@1"], [0.5, 0.0, np.nan])
    np.testing.assert_array_equal(found["recall@10"], [1.0, 1.0, np.nan])


def test_recall_in_a_slice_of_queries_counts_what_the_catalogue_does_not_know():
    queries = queries_of([[], []], [[0, 1], [4]], held_out=[5, 1])
    ranking = rank(SameForAll(np.array([5, 4, 3, 2, 1], dtype=np.float32)), queries, 5, exclude_history=True)
    part = Slice("queries", "by", "value", np.array([True, False]))
    assert slice_held_out(part, queries).tolist() == [5, 0]
    np.testing.assert_array_equal(slice_recall(part, ranking, queries, (2,))["recall@2"], [2 / 5, np.nan])


def land_slices(lands: list[str | None]) -> dict[str, list[int]]:
    features = {"query": pa.array([{"land": land, "past": []} for land in lands], features_type(SCHEMA, "query"))}
    return {value: of for (_, _, value), of in members(column_slices(["land"], SCHEMA, features)).items()}


def test_an_empty_text_and_nan_are_missing_as_null_is():
    assert land_slices(["", None, "a", "a"]) == {"a": [2, 3], "(missing)": [0, 1]}
    prices = pa.array([{"price": p} for p in (np.nan, None, 2.0)], features_type(SCHEMA, "candidate"))
    by_price = members(column_slices(["price"], SCHEMA, {"candidate": prices}))
    assert {value: of for (_, _, value), of in by_price.items()} == {"up to 2": [2], "(missing)": [0, 1]}


def test_no_value_can_be_taken_for_the_missing_the_others_or_another_value():
    lands = [None, "missing", "(missing)", '"(missing)"', " ", "a  b", "a b", "other", "(other)", "y", "z", "zz"]
    assert land_slices(lands) == {
        '" "': [4],
        '"\\"(missing)\\""': [3],
        '"(missing)"': [2],
        '"(other)"': [8],
        '"a  b"': [5],
        "a b": [6],
        "missing": [1],
        "other": [7],
        "y": [9],
        "z": [10],
        "(other)": [11],
        "(missing)": [0],
    }


def test_quarters_have_as_many_digits_as_it_takes_to_tell_them_apart():
    candidates = pa.array([{"price": 1e7 + i} for i in range(4)], features_type(SCHEMA, "candidate"))
    found = column_slices(["price"], SCHEMA, {"candidate": candidates})
    assert [of.value for of in found] == ["up to 10000000", "up to 10000001", "up to 10000002", "up to 10000003"]


def test_there_is_one_slice_a_column_and_side_however_many_features_are_of_it():
    book = {
        "bulk": {"type": "categorical", "columns": ["pages"]},
        "pages": {"type": "numeric"},
        "seconds": {"type": "numeric", "columns": ["length"]},
        "duration": {"type": "categorical", "columns": ["length"]},
    }
    schema = Schema.model_validate({"query": {"long": book["bulk"]}, "candidate": book})
    features = {
        "query": pa.array([{"long": "much"}], features_type(schema, "query")),
        "candidate": pa.array(
            [{"bulk": "few", "pages": 90.0, "seconds": 1.0, "duration": "low"}], features_type(schema, "candidate")
        ),
    }
    found = column_slices(["pages", "length", "pages"], schema, features)
    assert [(of.of, of.by, of.value) for of in found] == [
        ("queries", "pages", "much"),
        ("candidates", "pages", "up to 90"),  # the feature of that name, though another of the column comes first
        ("candidates", "length", "low"),  # the first by name
    ]


def test_the_popularity_of_the_held_out_is_the_mean_over_queries():
    queries = queries_of([[], [], []], [[0, 1], [2], []], held_out=[2, 1, 1])
    catalogue = catalogue_of([7, 3, 1])
    _, details = compare({"model": SameForAll(catalogue.count)}, queries, catalogue, [], EvaluateSection(bootstrap=0))
    assert details["held_out_popularity"] == 3.0  # of 5 and 1; the third holds out nothing that is known
    assert (details["gains"], details["slices"]) == ({}, [])


def test_a_comparison_puts_all_scorers_side_by_side():
    queries = queries_of([[]] * 20, [[0], [2]] * 10)
    scorers = {
        "model": SameForAll(np.array([1, 2, 3], dtype=np.float32)),
        "popularity": SameForAll(np.array([3, 2, 1], dtype=np.float32)),
    }
    catalogue = catalogue_of([7, 3, 0])
    part = Slice("candidates", "genre", "x", np.array([True, False, False]))
    empty = Slice("candidates", "genre", "y", np.array([False, True, False]))
    section = EvaluateSection(ks=(1, 2), bootstrap=1_000)
    measures, details = compare(scorers, queries, catalogue, [part, empty], section)
    assert (measures["model"]["recall@1"], measures["popularity"]["recall@1"]) == (0.5, 0.5)
    assert (measures["model"]["mrr"], measures["model"]["coverage@2"]) == (pytest.approx(2 / 3), pytest.approx(2 / 3))
    assert (measures["model"]["popularity@1"], measures["popularity"]["popularity@2"]) == (0.0, 5.0)
    assert details["held_out_popularity"] == 3.5
    assert details["curves"] == {"model": {"1": 0.5, "2": 0.5}, "popularity": {"1": 0.5, "2": 0.5}}
    # ten queries gain 1, ten lose 1: of 20 drawn 6 to 14 gain in 95 of 100 cases, which makes means of -0.4 to 0.4
    assert details["gains"]["popularity"]["recall@1"] == {"value": 0.0, "low": -0.4, "high": 0.4}
    assert details["gains"]["popularity"]["popularity@1"]["value"] == -7.0
    first, second = details["slices"]
    assert (first["queries"], first["held_out"]) == (10, 10)
    assert first["recall"]["popularity"]["recall@1"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert first["recall"]["model"]["recall@2"]["value"] == 0.0
    assert (second["queries"], second["recall"]["model"]["recall@1"]) == (0, {"value": None, "low": None, "high": None})
