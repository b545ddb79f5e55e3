"""Digests are equal exactly when the features are."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
from hypothesis import example, given
from hypothesis import strategies as st

from dataflow.digests import FeatureDigests
from lockstep.features import features_type
from lockstep.schema import Schema

SCHEMA = Schema.model_validate(
    {
        "query": {"history": {"type": "id_sequence", "columns": ["history.candidate_id"], "max_length": 4}},
        "candidate": {
            "name": {"type": "text"},
            "price": {"type": "numeric"},
            "sold": {"type": "timestamp"},
            "tags": {"type": "id_sequence", "max_length": 4},
            "image": {"type": "vector", "size": 2},
        },
    }
)
TYPE = features_type(SCHEMA, "candidate")
TEXTS = st.none() | st.text(st.characters(exclude_categories=("Cs",)), max_size=4)
FLOATS = st.floats(width=32)
MOMENTS = st.datetimes(datetime(1700, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC))
ROWS = st.fixed_dictionaries(
    {
        "name": TEXTS,
        "price": st.none() | st.floats(),
        "sold": st.none() | MOMENTS,
        "tags": st.none() | st.lists(TEXTS, max_size=3),
        "image": st.none() | st.lists(FLOATS, min_size=2, max_size=2),
    }
)
DIGESTS = FeatureDigests()


def digests(*rows: dict[str, Any]) -> list[str]:
    found: list[str] = DIGESTS.of(pa.array(rows, TYPE)).to_pylist()
    return found


def plain(row: dict[str, Any]) -> str:
    return repr({name: "nan" if isinstance(of, float) and math.isnan(of) else of for name, of in sorted(row.items())})


def row(**values: Any) -> dict[str, Any]:
    return dict.fromkeys(SCHEMA.features("candidate")) | values


@given(ROWS, ROWS)
@example(row(), row(name=""))
@example(row(), row(name="null"))
@example(row(tags=[]), row())
@example(row(tags=[None]), row(tags=["null"]))
@example(row(tags=["a,b"]), row(tags=["a", "b"]))
@example(row(tags=['a","b']), row(tags=["a", "b"]))
@example(row(price=float("nan")), row())
@example(row(price=0.1), row(price=math.nextafter(0.1, 1)))
@example(row(price=1e308), row(price=math.nextafter(1e308, math.inf)))
@example(row(sold=datetime(2020, 1, 1, tzinfo=UTC)), row(sold=datetime(2020, 1, 1, 0, 0, 0, 1, tzinfo=UTC)))
@example(row(image=[1.0, 2.0]), row(image=[1.0, 2.0000002384185791015625]))
def test_digests_are_equal_exactly_when_the_features_are(left: dict[str, Any], right: dict[str, Any]) -> None:
    one, again, other = digests(left, left, right)
    assert len(one) == 32
    assert one == again
    assert (one == other) == (plain(left) == plain(right))


def test_digests_do_not_depend_on_the_batch() -> None:
    many = [row(name=str(number % 7), price=number % 3) for number in range(5_000)]
    assert digests(*many) == [of for start in range(0, 5_000, 999) for of in digests(*many[start : start + 999])]


def test_a_digest_stays_the_same() -> None:
    # Of another digest every refresh after an upgrade would embed everything again.
    made = row(name='a "b"', price=0.1, sold=datetime(2020, 1, 1, tzinfo=UTC), tags=["x", None], image=[1.0, 0.5])
    assert digests(made) == ["69f003fa88b7da69bc1a11ab8918b406"]
