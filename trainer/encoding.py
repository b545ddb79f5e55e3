"""Encoded features: what the training records hold and what the preprocessing module returns.

`features.json` of the `examples` and of the `preprocessing` artifact describe them, and are equal where both come
from one run:

    {"query":     [{"name", "type", "dtype": "int64" | "float32", "length", "elements", "past", "size", "table", "dim"},
                   ...],
     "candidate": [...]}
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import tensorflow as tf

from lockstep.errors import CorruptArtifactError, InputMismatchError
from lockstep.tags import Artifact

Side = Literal["query", "candidate"]
SIDES: tuple[Side, Side] = ("query", "candidate")


@dataclass(frozen=True)
class EncodedFeature:
    """One feature as numbers.

    Args:
        length: values in a row, fixed; ids are padded with 0.
        elements: of a sequence, how many, oldest first (ids and texts share `length` among them evenly); else 1.
        past: the values are read off the candidates of the query's past.
        size: number of ids, 0 (missing) and 1 (unknown) included; None for floats.
        table: the embedding table; features that name the same one share its weights.
        dim: width of that table, or None for the model's default.
    """

    name: str
    type: str
    dtype: Literal["int64", "float32"]
    length: int
    elements: int = 1
    past: bool = False
    size: int | None = None
    table: str | None = None
    dim: int | None = None


class Repeated(NamedTuple):
    """A sequence feature of a batch whose elements repeat: each distinct element once, and where it stands.

    Args:
        elements: [distinct, n] ids of each distinct element; row 0 is padding, all zeros.
        places: [batch, elements] int32 rows of `elements`, oldest first; 0 where nothing stands, anywhere in the row.
    """

    elements: tf.Tensor
    places: tf.Tensor


@dataclass(frozen=True)
class EncodedFeatures:
    """The encoded features of both towers, in the order in which a tower concatenates them."""

    query: tuple[EncodedFeature, ...]
    candidate: tuple[EncodedFeature, ...]

    def side(self, side: Side) -> tuple[EncodedFeature, ...]:
        """The features of one tower."""
        return self.query if side == "query" else self.candidate


def read_encoded_features(path: Path) -> EncodedFeatures:
    """Read and check a `features.json`.

    Raises:
        CorruptArtifactError: it is not what its docstring above describes.
    """
    try:
        raw = json.loads(path.read_bytes())
        return EncodedFeatures(_side(raw["query"]), _side(raw["candidate"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorruptArtifactError(path, repr(error), "a list of encoded features for each tower") from error


def check_same_origin(left: Artifact, right: Artifact) -> None:
    """Refuse two artifacts that were not made by one run for one schema.

    Ids of one run's vocabulary mean nothing in another's, and nothing in the numbers would show it.

    Raises:
        InputMismatchError: another schema or another run.
    """
    for what, found, expected in (
        ("schema", left.tag.schema[:12], right.tag.schema[:12]),
        ("run", left.tag.run, right.tag.run),
    ):
        if found != expected:
            raise InputMismatchError(what, _named(left), found, _named(right), expected)


def check_same_features(examples: Artifact, preprocessing: Artifact) -> EncodedFeatures:
    """The encoded features that both artifacts describe.

    Raises:
        InputMismatchError: they describe different ones.
    """
    ours = read_encoded_features(examples / "features.json")
    theirs = read_encoded_features(preprocessing / "features.json")
    for side in SIDES:
        left = {feature.name: feature for feature in ours.side(side)}
        right = {feature.name: feature for feature in theirs.side(side)}
        for name in sorted({**left, **right}):
            if left.get(name) != right.get(name):
                what = f"encoding of {side}/{name}"
                raise InputMismatchError(what, _named(examples), left.get(name), _named(preprocessing), right.get(name))
    return ours


def _named(artifact: Artifact) -> str:
    return f"{artifact.tag.kind} at {artifact.path}"


def _side(raw: list[Mapping[str, Any]]) -> tuple[EncodedFeature, ...]:
    features = tuple(EncodedFeature(**feature) for feature in raw)
    for feature in features:
        ids = feature.dtype == "int64"
        if feature.dtype not in ("int64", "float32") or feature.length < 1:
            raise ValueError(f"{feature.name}: dtype {feature.dtype!r}, length {feature.length}")
        if ids and (feature.table is None or feature.size is None or feature.size < 1):
            raise ValueError(f"{feature.name}: ids without a table or its size")
    if not features:
        raise ValueError("a tower without features")
    return features
