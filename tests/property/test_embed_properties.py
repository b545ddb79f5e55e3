"""Batch embedding gives what serving gives, row by row, whatever the features hold and however rows are batched."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataflow.embed.batches import BatchTower
from lockstep.features import features_type
from tests.unit.test_trainer_export import SCHEMA, Exported

IDS = st.sampled_from([None, "", "m1", "m2", "x", "y", "t1", "t2", "t3", "s1", "new"])
WORDS = st.sampled_from(["red", "Blue", "old,", "red-old", "x", "", "ÉTÉ", "ΑΣ", "a\u00a0b", "don't", "\0", "\u2028"])
TEXTS = st.none() | st.lists(WORDS, max_size=7).map(" ".join) | st.text(max_size=5)
FLOATS = st.floats(width=32, allow_subnormal=False)
ROWS = st.fixed_dictionaries(
    {
        "maker": IDS,
        "kind": IDS,
        "shelf": IDS,
        "name": TEXTS,
        "words": TEXTS,
        "price": st.none() | FLOATS,
        "made": st.none() | st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC)),
        "image": st.none() | st.lists(st.floats(-2, 2, width=32), min_size=3, max_size=3),
        "tags": st.none() | st.lists(IDS, max_size=5),
        "notes": st.none() | st.lists(TEXTS, max_size=4),
        "scores": st.none() | st.lists(st.none() | FLOATS, max_size=5),
    }
)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return Exported(tmp_path_factory.mktemp("exported"))


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["query", "candidate"]), st.lists(ROWS, min_size=1, max_size=12), st.integers(1, 13))
def test_batch_embedding_gives_what_serving_gives(exported: Exported, side: str, rows: list, size: int) -> None:
    assert set(rows[0]) == set(SCHEMA.features(side))
    features = pa.array(rows, features_type(SCHEMA, side))
    tower = exported.towers[side]
    served = tower.embed(features)
    batched = BatchTower(tower, size)
    for _ in range(2):  # the second time, words are remembered
        found = batched.embed(batched.encode(features))
        assert found.model_version == served.model_version
        # Batches of another size are added up in another order.
        tolerance = 1e-6 if size >= len(rows) else 1e-5
        np.testing.assert_allclose(found.vectors, served.vectors, rtol=0, atol=tolerance)


@settings(max_examples=50, deadline=None)
@given(st.lists(ROWS, min_size=2, max_size=8), st.data())
def test_slices_of_a_column_are_embedded_as_what_they_hold(exported: Exported, rows: list, data: st.DataObject) -> None:
    start = data.draw(st.integers(1, len(rows) - 1))
    tower = BatchTower(exported.towers["candidate"], 100)
    found = tower.embed(tower.encode(pa.array(rows, features_type(SCHEMA, "candidate")).slice(start)))
    alone = pa.array(rows[start:], features_type(SCHEMA, "candidate"))
    served = exported.towers["candidate"].embed(alone)
    np.testing.assert_allclose(found.vectors, served.vectors, rtol=0, atol=1e-6)
