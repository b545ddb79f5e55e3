"""Encoded features: what preprocessing makes of the raw ones and training parses.

`features.json` of the artifacts `preprocessing` and `examples`:

    {"query": [{"name", "type", "dtype", "length", "elements", "past", "size", "table", "dim"}, ...],
     "candidate": [...]}

Every feature has a fixed length. Ids: 0 is missing or padding, 1 is unknown, 2 and on are the vocabulary, most
frequent first (hashed: 1 to the number of bins). Features of one `table` share an embedding table.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from lockstep.schema import HISTORY, Feature, NumericFeature, Schema

FIRST_ID = 2
"""The id of the most frequent value; 0 is missing and 1 unknown."""
TOWERS = ("query", "candidate")

_FLOATS = {"numeric": 2, "numeric_sequence": 3}


@dataclass(frozen=True)
class EncodedFeature:
    """One encoded feature.

    `size` counts the ids, 0 included; it, `table` and `dim` are None where there is nothing to embed. `elements` are
    those of a sequence; ids and texts share `length` among them evenly. `past` features are read off the candidates of
    the query's past.
    """

    name: str
    type: str
    dtype: str
    length: int
    elements: int = 1
    past: bool = False
    size: int | None = None
    table: str | None = None
    dim: int | None = None


@dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation of a number in the training data, after the logarithm where it is taken."""

    mean: float = 0.0
    deviation: float = 1.0


@dataclass(frozen=True)
class ValueCounts:
    """How many values a feature has in the training data, exactly.

    Args:
        distinct: different values.
        once: those that only one training event (of a candidate) or example (of a query entity) has.
        occurrences: training events or examples that have a value, one for each element of a sequence.
        covered: share of the occurrences (of a text: of those of its tokens) that the vocabulary has; None where the
            feature has no vocabulary of its own.
        tokens: different tokens of a text with a vocabulary of its own.
        colliding: of hashed values, those that share their bin with another.
        colliding_occurrences: theirs.
    """

    distinct: int
    once: int
    occurrences: int
    covered: float | None = None
    tokens: int | None = None
    colliding: int | None = None
    colliding_occurrences: int | None = None


@dataclass(frozen=True)
class Learned:
    """What preprocessing takes from the training data, and what the report says of it.

    Args:
        vocabularies: by table (see `table_name`), distinct values, most frequent first.
        statistics: by tower and feature.
        boundaries: by tower and feature of the numbers in buckets, where each bucket but the first begins, ascending.
        values: by tower and feature, where values can be counted: not of moments, vectors and counts of events.
    """

    vocabularies: Mapping[str, Sequence[str]]
    statistics: Mapping[tuple[str, str], Statistics]
    values: Mapping[tuple[str, str], ValueCounts] = field(default_factory=dict)
    boundaries: Mapping[tuple[str, str], Sequence[float]] = field(default_factory=dict)


def table_owner(schema: Schema, tower: str, name: str) -> tuple[str, str] | None:
    """The tower and name of the feature whose vocabulary and table a feature uses; None where it has none."""
    feature = schema.features(tower)[name]
    shares = getattr(feature, "shares", None)
    if shares is not None:
        return "candidate", shares
    return (tower, name) if hasattr(feature, "shares") else None


def table_name(owner: tuple[str, str]) -> str:
    """The name of an embedding table and its vocabulary file."""
    return "_".join(owner)


def hash_bins(schema: Schema, owner: tuple[str, str]) -> int | None:
    """The number of bins of a table whose values are hashed; None where it has a vocabulary."""
    feature = schema.features(owner[0])[owner[1]]
    return feature.size if feature.type == "categorical" and feature.encoding == "hash" else None


def buckets_of(feature: Feature) -> int | None:
    """The number of buckets of a number that is encoded as the one it falls into: 0 is missing, 2 the lowest."""
    return feature.buckets if isinstance(feature, NumericFeature) else None


def encoded_features(schema: Schema, vocabularies: Mapping[str, Sequence[str]]) -> dict[str, list[EncodedFeature]]:
    """Describe the encoded features of both towers.

    Args:
        vocabularies: by table, the values in the order of their ids.
    """
    return {
        tower: [_encoded(schema, tower, name, vocabularies) for name in sorted(schema.features(tower))]
        for tower in TOWERS
    }


def features_json(features: Mapping[str, Sequence[EncodedFeature]]) -> bytes:
    """The bytes of `features.json`."""
    return json.dumps({tower: [asdict(feature) for feature in of] for tower, of in features.items()}, indent=1).encode()


def _encoded(schema: Schema, tower: str, name: str, vocabularies: Mapping[str, Sequence[str]]) -> EncodedFeature:
    feature = schema.features(tower)[name]
    owner = table_owner(schema, tower, name)
    past = feature.columns[0].startswith(HISTORY)
    elements = feature.max_length if feature.is_sequence else 1  # type: ignore[union-attr]
    if isinstance(feature, NumericFeature) and feature.buckets is not None:
        size, table = feature.buckets + FIRST_ID, table_name((tower, name))
        return EncodedFeature(name, feature.type, "int64", 1, size=size, table=table, dim=feature.dim)
    if owner is None:
        return EncodedFeature(name, feature.type, "float32", _length(feature), elements, past)
    bins = hash_bins(schema, owner)
    table = table_name(owner)
    size = len(vocabularies[table]) + FIRST_ID if bins is None else bins + 1
    dim = getattr(schema.features(owner[0])[owner[1]], "dim", None)
    return EncodedFeature(name, feature.type, "int64", _length(feature), elements, past, size, table, dim)


def _length(feature: Feature) -> int:
    if feature.type == "vector":
        return feature.size
    if feature.type == "timestamp":
        return 2 * len(feature.cycles)
    if feature.type == "text":
        return feature.max_tokens
    if feature.type == "id_sequence":
        return feature.max_length
    if feature.type == "text_sequence":
        return feature.max_length * feature.max_tokens
    return _FLOATS.get(feature.type, 1)
