"""The feature schema: declared once, in the configuration, and everything else derived from it.

    [schema]
    display = "track_name"                       # what a person is shown of a candidate
    restricts = ["genre"]                        # filter namespaces: candidate columns of tokens
    numeric_restricts = ["duration_ms"]          # filter namespaces: candidate columns of numbers or moments
    deny = { region = "blocked_regions" }        # namespace -> candidate column of the tokens it is not shown for
    crowding = "artist_name"                     # diversity tag: a candidate column

    [schema.query.history]                       # one table a feature
    type = "id_sequence"
    columns = ["history.candidate_id"]
    max_length = 20
    shares = "track"                             # same vocabulary and embedding table as that candidate feature

    [schema.candidate.track]
    type = "id"
    columns = ["candidate_id"]

Columns of a candidate feature are those of the candidates table (`candidate_id` included). Columns of a query
feature are those of the queries table (`query_id` included), `event_time` (the moment of the query), or
`history.X`: column X of the candidates of the entity's past events, oldest first. Both may count: `events.7d` is the
number of the entity's or candidate's events in the seven days before the day (UTC) of the moment in question.
"""

from __future__ import annotations

import hashlib
import json
import keyword
import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from lockstep.errors import ConfigError, SchemaError

NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")
HISTORY = "history."
_SLICED = ("id", "categorical", "text", "numeric")
_COUNT = re.compile(r"events\.([1-9][0-9]{0,2})d")
MAX_ID_BYTES = 256
"""Longest id of a candidate or query entity, in UTF-8; key-value stores have limits not far above."""


class FeatureType(StrEnum):
    """What a feature is; each has one class below."""

    ID = "id"
    CATEGORICAL = "categorical"
    TEXT = "text"
    NUMERIC = "numeric"
    TIMESTAMP = "timestamp"
    VECTOR = "vector"
    ID_SEQUENCE = "id_sequence"
    TEXT_SEQUENCE = "text_sequence"
    NUMERIC_SEQUENCE = "numeric_sequence"


class _Feature(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    columns: tuple[str, ...] = ()
    """The source columns; the feature's own name where none is given. Only text takes more than one."""

    @property
    def is_sequence(self) -> bool:
        """Whether a row holds a list of values."""
        return self.type.endswith("_sequence")  # type: ignore[attr-defined,no-any-return]


class IdFeature(_Feature):
    """An id with a vocabulary and an embedding row of its own; rarer ids share one unknown row."""

    type: Literal["id"] = "id"
    min_count: int = Field(1, ge=1)
    max_size: int = Field(10_000_000, ge=1)
    dim: int | None = Field(None, ge=1)
    shares: str | None = None


class CategoricalFeature(_Feature):
    """One of few strings, by vocabulary (`lookup`) or by `hash` into `size` bins."""

    type: Literal["categorical"] = "categorical"
    encoding: Literal["lookup", "hash"] = "lookup"
    size: int = Field(10_000, ge=1)
    min_count: int = Field(1, ge=1)
    dim: int | None = Field(None, ge=1)
    shares: str | None = None


class TextFeature(_Feature):
    """Words and word n-grams, embedded and pooled."""

    type: Literal["text"] = "text"
    ngrams: int = Field(2, ge=1, le=4)
    size: int = Field(20_000, ge=1)
    min_count: int = Field(2, ge=1)
    max_tokens: int = Field(16, ge=1, le=512)
    dim: int | None = Field(None, ge=1)
    shares: str | None = None


class NumericFeature(_Feature):
    """A number, standardised with the training data's mean and deviation, after log1p where `log` is set.

    With `buckets`, an embedding for each of so many ranges of about equal frequency instead: for numbers that do not
    mean twice as much when they are twice as large.
    """

    type: Literal["numeric"] = "numeric"
    log: bool = False
    buckets: int | None = Field(None, ge=2, le=10_000)
    dim: int | None = Field(None, ge=1)


class TimestampFeature(_Feature):
    """A moment, as sine and cosine of its place in the day, the week and the year (UTC).

    A model knows only the moments that it was trained with. Where embeddings are made at an hour or on a day at which
    nothing ever happens, leave that cycle out.
    """

    type: Literal["timestamp"] = "timestamp"
    cycles: tuple[Literal["day", "week", "year"], ...] = Field(("day", "week", "year"), min_length=1)


class VectorFeature(_Feature):
    """A pre-trained vector of `size` floats, passed through."""

    type: Literal["vector"] = "vector"
    size: int = Field(ge=1)


class IdSequenceFeature(_Feature):
    """A list of ids, the last `max_length` kept, embedded and pooled."""

    type: Literal["id_sequence"] = "id_sequence"
    max_length: int = Field(20, ge=1, le=2_000)
    min_count: int = Field(1, ge=1)
    max_size: int = Field(10_000_000, ge=1)
    dim: int | None = Field(None, ge=1)
    shares: str | None = None


class TextSequenceFeature(_Feature):
    """A list of texts, the last `max_length` kept; each is embedded as a text is, then they are pooled."""

    type: Literal["text_sequence"] = "text_sequence"
    max_length: int = Field(20, ge=1, le=2_000)
    ngrams: int = Field(1, ge=1, le=4)
    size: int = Field(20_000, ge=1)
    min_count: int = Field(2, ge=1)
    max_tokens: int = Field(8, ge=1, le=512)
    dim: int | None = Field(None, ge=1)
    shares: str | None = None


class NumericSequenceFeature(_Feature):
    """A list of numbers, the last `max_length` kept, standardised; summarised by mean and last value."""

    type: Literal["numeric_sequence"] = "numeric_sequence"
    max_length: int = Field(20, ge=1, le=2_000)
    log: bool = False


Feature = Annotated[
    IdFeature
    | CategoricalFeature
    | TextFeature
    | NumericFeature
    | TimestampFeature
    | VectorFeature
    | IdSequenceFeature
    | TextSequenceFeature
    | NumericSequenceFeature,
    Field(discriminator="type"),
]

_VOCABULARY = {
    "id": "id",
    "id_sequence": "id",
    "categorical": "categorical",
    "text": "text",
    "text_sequence": "text",
}
"""Features whose vocabularies are made alike, so that they can share one."""


def count_days(column: str) -> int | None:
    """The days over which a column counts events; None where it is another column.

    >>> count_days("events.30d"), count_days("price")
    (30, None)
    """
    found = _COUNT.fullmatch(column)
    return int(found[1]) if found else None


class Schema(BaseModel):
    """The features of both towers and what else is kept of a candidate."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    query: Mapping[str, Feature]
    candidate: Mapping[str, Feature]
    display: str | None = None
    restricts: tuple[str, ...] = ()
    numeric_restricts: tuple[str, ...] = ()
    deny: Mapping[str, str] = Field(default_factory=dict)
    crowding: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _default_columns(cls, raw: object) -> object:
        if not isinstance(raw, dict):
            return raw
        filled = dict(raw)
        for tower in ("query", "candidate"):
            features = raw.get(tower)
            if isinstance(features, Mapping):
                filled[tower] = {
                    name: {"columns": (name,), **feature} if isinstance(feature, dict) else feature
                    for name, feature in sorted(features.items())
                }
        return filled

    @model_validator(mode="after")
    def _check(self) -> Schema:
        for tower, features in (("query", self.query), ("candidate", self.candidate)):
            if not features:
                raise SchemaError(f"[schema.{tower}] declares no feature: a tower needs at least one")
            for name, feature in features.items():
                self._check_feature(tower, name, feature)
        self._check_restricts()
        return self

    def _check_restricts(self) -> None:
        for key, columns in (("restricts", self.restricts), ("numeric_restricts", self.numeric_restricts)):
            for column in columns:
                if not NAME.fullmatch(column):
                    raise SchemaError(f"[schema] {key}: {column!r} is no column name ({NAME.pattern})")
                if columns.count(column) > 1:
                    raise SchemaError(f"[schema] {key}: {column!r} stands there twice: name each column once")
        for namespace, column in self.deny.items():
            if not NAME.fullmatch(namespace):
                raise SchemaError(f"[schema] deny: {namespace!r} is no namespace ({NAME.pattern})")
            if not NAME.fullmatch(column):
                raise SchemaError(f"[schema] deny.{namespace}: {column!r} is no column name ({NAME.pattern})")

    def _check_feature(self, tower: str, name: str, feature: Feature) -> None:
        where = f"[schema.{tower}.{name}]"
        if not NAME.fullmatch(name):
            raise SchemaError(f"{where}: a feature's name matches {NAME.pattern}")
        if keyword.iskeyword(name) or name == "self":
            raise SchemaError(f"{where}: {name!r} means something to Python: give it another name and set columns")
        if len(feature.columns) != 1 and feature.type != "text":
            raise SchemaError(f"{where}: {feature.type} takes one column, found {list(feature.columns)}")
        if isinstance(feature, NumericFeature) and feature.dim is not None and feature.buckets is None:
            raise SchemaError(f"{where}: only a number in buckets has an embedding to give a dim: set buckets as well")
        for column in feature.columns:
            if count_days(column) is not None:
                if feature.type != "numeric":
                    raise SchemaError(f"{where}: {column!r} is a count: use type = 'numeric', found {feature.type!r}")
                continue
            past = column.startswith(HISTORY)
            if not NAME.fullmatch(column.removeprefix(HISTORY)):
                raise SchemaError(f"{where}: {column!r} is no column name ({NAME.pattern})")
            if past and (tower == "candidate" or not feature.is_sequence):
                raise SchemaError(f"{where}: {column!r} is a sequence of the query's past: use a query *_sequence")
        shares = getattr(feature, "shares", None)
        if shares is not None:
            other = self.candidate.get(shares)
            if other is None:
                raise SchemaError(
                    f"{where}: shares = {shares!r} names no candidate feature (there are {sorted(self.candidate)})"
                )
            if _VOCABULARY.get(other.type) != _VOCABULARY.get(feature.type) or getattr(other, "shares", None):
                raise SchemaError(f"{where}: a {feature.type} cannot share the vocabulary of {shares!r}, {other.type}")

    @property
    def namespaces(self) -> tuple[str, ...]:
        """The namespaces in which candidates have tokens: those of `restricts`, then those of `deny` alone, sorted."""
        return (*self.restricts, *sorted(set(self.deny) - set(self.restricts)))

    @property
    def history_columns(self) -> tuple[str, ...]:
        """The candidate columns that some query feature wants of the entity's past, without their prefix."""
        columns = (c for f in self.query.values() for c in f.columns if c.startswith(HISTORY))
        return tuple(sorted({c.removeprefix(HISTORY) for c in columns}))

    @property
    def max_history(self) -> int:
        """The longest history that any feature reads; 0 where none does."""
        return max(
            (f.max_length for f in self.query.values() if f.is_sequence and f.columns[0].startswith(HISTORY)),  # type: ignore[union-attr]
            default=0,
        )

    def counts(self, tower: str) -> tuple[int, ...]:
        """The windows, in days, over which features of a tower count events; shortest first."""
        days = (count_days(column) for of in self.features(tower).values() for column in of.columns)
        return tuple(sorted({of for of in days if of is not None}))

    def features(self, tower: str) -> Mapping[str, Feature]:
        """The features of `query` or `candidate`."""
        return {"query": self.query, "candidate": self.candidate}[tower]

    def sliced_by(self, wanted: str) -> dict[str, str]:
        """The features that an evaluation cuts by: of each tower the one of a name, or else the first of that column.

        Raises:
            ConfigError: no tower has any, or only ones without a single value.
        """
        towers = {"query": self.query, "candidate": self.candidate}
        of_name = [
            (tower, n, f) for tower, all_ in towers.items() for n, f in all_.items() if wanted in (n, *f.columns)
        ]
        usable = [(tower, name) for tower, name, feature in of_name if feature.type in _SLICED]
        if not usable:
            what = f"is of type {of_name[0][2].type}" if of_name else "is no feature"
            names = sorted({n for features in towers.values() for n, f in features.items() if f.type in _SLICED})
            raise ConfigError(f"[evaluate] slices: {wanted!r} {what}: take one of {names}")
        found: dict[str, str] = {}
        for tower, name in usable:
            if name == wanted or tower not in found:
                found[tower] = name
        return found

    def to_json(self) -> bytes:
        """Canonical bytes: equal schemas are equal bytes."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, indent=1).encode() + b"\n"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, as a pipeline parameter carries them; KFP has no null, and None is always the default."""
        return self.model_dump(mode="json", exclude_none=True)

    @classmethod
    def from_json(cls, data: bytes) -> Schema:
        """The inverse of `to_json`."""
        return cls.model_validate_json(data)

    @property
    def digest(self) -> str:
        """The hash that every tag carries, so that artifacts of two schemas are never mixed."""
        return hashlib.sha256(self.to_json()).hexdigest()
