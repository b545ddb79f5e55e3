"""The table of encoded candidates: features by index, and pasts made of them, all by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from lockstep.errors import CorruptArtifactError
from trainer.candidates import CandidateTable
from trainer.encoding import EncodedFeature, EncodedFeatures, Repeated

NAN = float("nan")
IDS = EncodedFeature("ids", "id_sequence", "int64", 3, 3, True, 9, "track")
TITLES = EncodedFeature("titles", "text_sequence", "int64", 4, 2, True, 9, "title")
PRICES = EncodedFeature("prices", "numeric_sequence", "float32", 3, 3, True)
FEATURES = EncodedFeatures(
    (IDS, EncodedFeature("mood", "numeric", "float32", 1), TITLES, PRICES),
    (
        EncodedFeature("track", "id", "int64", 1, size=9, table="track"),
        EncodedFeature("title", "text", "int64", 2, size=9, table="title"),
        EncodedFeature("price", "numeric", "float32", 1),
    ),
)
FILES = {
    "candidate_track": np.array([[2], [3], [4], [5]], np.int32),
    "candidate_title": np.array([[6, 7], [8, 0], [0, 0], [7, 6]], np.int32),
    "candidate_price": np.array([[0.5], [-1.0], [0.0], [2.0]], np.float32),
    "query_ids": np.array([[2], [3], [4], [5]], np.int32),
    "query_titles": np.array([[6, 7], [8, 0], [0, 0], [7, 6]], np.int32),
    "query_prices": np.array([[0.5], [-1.0], [NAN], [2.0]], np.float32),
}


def write(folder: Path, **others: np.ndarray) -> Path:
    folder.mkdir(exist_ok=True)
    for name, values in (FILES | others).items():
        np.save(folder / f"{name}.npy", values)
    return folder


@pytest.fixture
def table(tmp_path) -> CandidateTable:
    return CandidateTable(write(tmp_path), FEATURES)


def past_of(table: CandidateTable, *rows: list[int]) -> dict[str, Repeated | tf.Tensor]:
    return table.past(tf.constant(rows, tf.int64))


def standing(feature: Repeated | tf.Tensor) -> list[list[list[int]]]:
    """By row, the elements where one stands."""
    assert isinstance(feature, Repeated)
    elements = feature.elements.numpy()
    return [elements[row[row > 0]].tolist() for row in feature.places.numpy()]


def test_features_of_candidates_by_index(table):
    found = table.features(tf.constant([3, 0, 3], tf.int64))
    assert {name: values.numpy().tolist() for name, values in found.items()} == {
        "track": [[5], [2], [5]],
        "title": [[7, 6], [6, 7], [7, 6]],
        "price": [[2.0], [0.5], [2.0]],
    }


def test_all_features_stand_in_the_order_of_the_index(table):
    assert table.rows == 4
    for name, values in table.all().items():
        np.testing.assert_array_equal(values, FILES[f"candidate_{name}"])
    assert list(table.all()) == ["track", "title", "price"]


def test_the_past_is_of_candidates_one_below_its_numbers(table):
    found = past_of(table, [1, 2, 4], [3, 0, 0])
    assert found.keys() == {"ids", "titles", "prices"}  # a feature that is none of the past is in the record
    assert standing(found["ids"]) == [[[2], [3], [5]], [[4]]]
    # Two elements at most: the last ones.
    assert standing(found["titles"]) == [[[8, 0], [7, 6]], [[0, 0]]]


def test_the_last_elements_are_kept_wherever_holes_stand(table):
    found = past_of(table, [1, 0, 2, 3, 0, 4, 0], [0, 0, 0, 0, 0, 0, 0], [0, 2, 0, 0, 0, 0, 1])
    assert standing(found["ids"]) == [[[3], [4], [5]], [], [[3], [2]]]
    assert standing(found["titles"]) == [[[0, 0], [7, 6]], [], [[8, 0], [6, 7]]]
    places = found["ids"].places.numpy()
    assert (places > 0).tolist()[0] == [False, False, True, True, False, True, False]


def test_a_candidate_that_repeats_is_one_element(table):
    found = past_of(table, [2, 2, 1], [0, 1, 2])
    for name, elements in (("ids", [[0], [3], [2]]), ("titles", [[0, 0], [8, 0], [6, 7]])):
        assert found[name].elements.numpy().tolist() == elements  # padding first, then as they come
    assert found["ids"].places.numpy().tolist() == [[1, 1, 2], [0, 2, 1]]


def test_numbers_of_the_past_are_a_mean_and_the_last_and_whether_there_is_none(table):
    found = past_of(
        table,
        [1, 2, 4],  # 0.5, -1, 2
        [2, 1, 0],  # -1, 0.5
        [4, 3, 0],  # 2, none: the last number is 2
        [3, 3, 0],  # no number at all
        [0, 0, 0],
    )["prices"]
    expected = [[0.5, 2.0, 0.0], [-0.25, 0.5, 0.0], [2.0, 2.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 1.0]]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_numbers_are_of_the_last_candidates_whether_or_not_they_have_one(table):
    # Of the last three, candidate 2 has no number: 2 and -1 are left, and not the 0.5 before them.
    found = past_of(table, [1, 4, 0, 3, 2])["prices"]
    np.testing.assert_allclose(found, [[0.5, -1.0, 0.0]], atol=1e-6)


def test_without_features_of_the_past_there_is_none(tmp_path):
    features = replace(FEATURES, query=FEATURES.query[1:2])
    table = CandidateTable(write(tmp_path), features)
    assert past_of(table, [1, 2]) == {}


@pytest.mark.parametrize(
    ("name", "values", "found"),
    [
        (
            "candidate_title",
            np.zeros((4, 3), np.int32),
            r"shape \(4, 3\), expected int32 of \[candidates, 2\]",
        ),
        ("query_titles", np.zeros((4, 4), np.int32), r"int32 of shape \(4, 4\), expected int32 of \[candidates, 2\]"),
        ("query_prices", np.zeros((4, 3), np.float32), r"\(4, 3\), expected float32 of \[candidates, 1\]"),
        ("candidate_track", np.zeros((4, 1), np.int64), r"int64 of shape \(4, 1\), expected int32"),
        ("candidate_track", np.zeros(4, np.int32), r"int32 of shape \(4,\)"),
        ("candidate_price", np.zeros((4, 1), np.float64), "float64 of .*, expected float32"),
        ("query_ids", np.array([["a"]], object), "ValueError"),
    ],
)
def test_a_file_of_another_shape_is_refused(tmp_path, name, values, found):
    with pytest.raises(CorruptArtifactError, match=rf"{name}\.npy is corrupt: .*{found}"):
        CandidateTable(write(tmp_path, **{name: values}), FEATURES)


def test_files_of_different_lengths_are_refused(tmp_path):
    for name in ("candidate_price", "query_ids"):
        with pytest.raises(CorruptArtifactError, match=r"files of \[3, 4\] candidates, expected one number"):
            CandidateTable(write(tmp_path / name, **{name: FILES[name][:3]}), FEATURES)


@pytest.mark.parametrize("name", ["candidate_title", "query_prices"])
def test_a_missing_or_an_empty_or_a_cut_file_is_refused(tmp_path, name):
    file = write(tmp_path) / f"{name}.npy"
    whole = file.read_bytes()
    for bytes_left in (None, 0, len(whole) - 1):
        file.unlink() if bytes_left is None else file.write_bytes(whole[:bytes_left])
        with pytest.raises(CorruptArtifactError, match=rf"{name}\.npy is corrupt: .* expected an array of encoded"):
            CandidateTable(tmp_path, FEATURES)
