"""Records: what the matrix of bytes says to any reader of tf.Example."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from dataflow.records import RecordFeature, RecordLayout


def test_a_record_reads_back_exactly() -> None:
    layout = RecordLayout(
        [RecordFeature("query/history", 3, 20_000), RecordFeature("candidate/price", 2, None), RecordFeature("i", 1, 2)]
    )
    values = {
        "query/history": np.array([[0, 1, 19_999], [127, 128, 16_384]]),
        "candidate/price": np.array([[0.1, -1e30], [0.0, 1.0]], np.float32),
        "i": np.array([[1], [0]]),
    }
    records = layout.serialize(values)
    assert records.shape == (2, layout.bytes)
    first = tf.train.Example.FromString(records[0].tobytes())
    assert sorted(first.features.feature) == ["candidate/price", "i", "query/history"]
    assert list(first.features.feature["query/history"].int64_list.value) == [0, 1, 19_999]
    parsed = tf.io.parse_example(
        [record.tobytes() for record in records],
        {
            "query/history": tf.io.FixedLenFeature([3], tf.int64),
            "candidate/price": tf.io.FixedLenFeature([2], tf.float32),
            "i": tf.io.FixedLenFeature([1], tf.int64),
        },
    )
    for name, expected in values.items():
        assert np.array_equal(parsed[name].numpy(), expected), name


@settings(max_examples=50, deadline=None)
@given(st.data(), st.integers(1, 2**40), st.integers(1, 300))
def test_any_integers_below_the_size_survive(data: st.DataObject, size: int, length: int) -> None:
    row = data.draw(st.lists(st.integers(0, size - 1), min_size=length, max_size=length))
    record = RecordLayout([RecordFeature("x", length, size)]).serialize({"x": np.array([row])})[0]
    assert list(tf.train.Example.FromString(record.tobytes()).features.feature["x"].int64_list.value) == row


def test_an_id_outside_its_vocabulary_is_refused() -> None:
    layout = RecordLayout([RecordFeature("x", 1, 10)])
    with pytest.raises(ValueError, match="x holds 10 to 10, expected 0 to 9"):
        layout.serialize({"x": np.array([[10]])})
