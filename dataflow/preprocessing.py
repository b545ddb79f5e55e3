"""Preprocessing as an artifact: one TensorFlow module a tower, from raw features to ids and scaled floats.

    <artifact>/                    kind preprocessing; rows = entries of all vocabularies
      query/, candidate/           SavedModels; signature serving_default takes the arrays of
                                   lockstep.features.tower_inputs and returns the encoded features, by the same names;
                                   signature distinct takes strings one by one (see TowerPreprocessing)
      vocabulary/<table>.txt       a value a line, in the order of their ids from 2; `\\`, newline and return escaped
      features.json                see dataflow.encoded
      schema.json
      tag.json

The data step encodes training records with it, the trainer wraps it into the exported towers: the same graph makes
the ids of training and of serving, so they cannot disagree.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from dataflow.encoded import (
    FIRST_ID,
    TOWERS,
    Learned,
    Statistics,
    buckets_of,
    encoded_features,
    features_json,
    hash_bins,
    table_name,
    table_owner,
)
from dataflow.text import tokenize
from lockstep.features import MISSING_TIME
from lockstep.schema import Feature, Schema

LIMIT = 100.0
"""Standardised numbers are cut at this many deviations, so that an outlier cannot overflow."""

_ESCAPED = re.compile(r"[\\\n\r]")
_ESCAPES = {"\\": "\\\\", "\n": "\\n", "\r": "\\r"}


def save_preprocessing(destination: Path, schema: Schema, learned: Learned) -> None:
    """Write everything of the artifact but its tag into an empty folder."""
    files = destination / "vocabulary"
    files.mkdir()
    for table, values in learned.vocabularies.items():
        (files / f"{table}.txt").write_bytes("".join(escape(value) + "\n" for value in values).encode())
    for tower in TOWERS:
        module = TowerPreprocessing(schema, tower, learned, files)
        signatures = {"serving_default": module.encode, "distinct": module.encode_distinct}
        tf.saved_model.save(module, str(destination / tower), signatures=signatures)
    (destination / "features.json").write_bytes(features_json(encoded_features(schema, learned.vocabularies)))
    (destination / "schema.json").write_bytes(schema.to_json())


def escape(value: str) -> str:
    """A vocabulary entry on one line."""
    return _ESCAPED.sub(lambda found: _ESCAPES[found[0]], value)


class TowerPreprocessing(tf.Module):
    """The preprocessing of one tower, as two functions of the same tables.

    `encode` takes rows. `encode_distinct` differs in the features of strings: it takes [any number] of them, wherever
    in the rows they stand, and returns [that number, 1 or max_tokens] ids, so that what repeats is encoded once.

    Args:
        files: the folder of the vocabulary files, which the SavedModel copies.
    """

    def __init__(self, schema: Schema, tower: str, learned: Learned, files: Path) -> None:
        super().__init__(name=f"{tower}_preprocessing")
        features = schema.features(tower)
        by_table: dict[str, _Table] = {}
        self._tables = {}
        self._statistics = {}
        self._boundaries: dict[str, Sequence[float]] = {}
        for name in sorted(features):
            owner = table_owner(schema, tower, name)
            if owner is not None:
                bins, table = hash_bins(schema, owner), table_name(owner)
                values = () if bins is not None else learned.vocabularies[table]
                self._tables[name] = by_table.setdefault(table, _Table(bins, values, files / f"{table}.txt"))
            self._statistics[name] = learned.statistics.get((tower, name), Statistics())
            self._boundaries[name] = learned.boundaries.get((tower, name), ())
        specs = {name: _input_spec(name, feature) for name, feature in features.items()}
        self.encode = _concrete(self._encode, features, specs)
        single = {name: tf.TensorSpec([None], tf.string, name) for name in self._tables}
        self.encode_distinct = _concrete(self._encode_distinct, features, specs | single)

    def _encode_distinct(self, name: str, feature: Feature, raw: tf.Tensor) -> tf.Tensor:
        if feature.type in ("text", "text_sequence"):
            return _text_ids(raw, self._tables[name], feature.ngrams, feature.max_tokens)
        return self._tables[name].ids(raw)[:, tf.newaxis] if name in self._tables else self._encode(name, feature, raw)

    def _encode(self, name: str, feature: Feature, raw: tf.Tensor) -> tf.Tensor:
        if feature.type == "text":
            return _text_ids(raw, self._tables[name], feature.ngrams, feature.max_tokens)
        if buckets_of(feature) is not None:
            return _bucket(raw, self._boundaries[name])
        if feature.type == "numeric":
            return _numeric(raw, feature.log, self._statistics[name])
        if feature.type == "timestamp":
            return _timestamp(raw, feature.cycles)
        if feature.type == "vector":
            return tf.where(tf.math.is_finite(raw), raw, 0.0)
        if feature.type == "id_sequence":
            return _last(self._tables[name].ids(raw), tf.not_equal(raw, ""), feature.max_length)
        if feature.type == "text_sequence":
            flat = tf.reshape(raw, [-1])
            ids = _text_ids(flat, self._tables[name], feature.ngrams, feature.max_tokens)
            rows = tf.reshape(ids, [tf.shape(raw)[0], tf.shape(raw)[1], feature.max_tokens])
            kept = _last(rows, tf.not_equal(raw, ""), feature.max_length)
            return tf.reshape(kept, [-1, feature.max_length * feature.max_tokens])
        if feature.type == "numeric_sequence":
            return _numeric_sequence(raw, feature.log, feature.max_length, self._statistics[name])
        return self._tables[name].ids(raw)[:, tf.newaxis]


def _concrete(
    encode: Callable[[str, Feature, tf.Tensor], tf.Tensor],
    features: Mapping[str, Feature],
    specs: Mapping[str, tf.TensorSpec],
) -> Any:
    """The graph that encodes every feature by itself."""

    def encode_all(**inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        return {name: encode(name, features[name], inputs[name]) for name in sorted(features)}

    return tf.function(encode_all, autograph=False).get_concrete_function(**specs)


class _Table(tf.Module):
    """From strings to ids, by a vocabulary file or by FarmHash."""

    def __init__(self, bins: int | None, values: Sequence[str], file: Path) -> None:
        super().__init__(name="table")
        self._bins = bins
        self._table = None
        # A file's line cannot hold a newline: where the vocabulary has one, the graph escapes what it looks up.
        self._escapes = any(_ESCAPED.search(value) for value in values)
        if values:
            whole, number = tf.lookup.TextFileIndex.WHOLE_LINE, tf.lookup.TextFileIndex.LINE_NUMBER
            lines = tf.lookup.TextFileInitializer(str(file), tf.string, whole, tf.int64, number)
            self._table = tf.lookup.StaticHashTable(lines, default_value=1 - FIRST_ID)

    def ids(self, values: tf.Tensor) -> tf.Tensor:
        """int64 ids of the same shape."""
        if self._bins is not None:
            found = tf.strings.to_hash_bucket_fast(values, self._bins) + 1
        elif self._table is None:
            found = tf.ones_like(values, tf.int64)
        else:
            keys = values
            if self._escapes:
                for character, written in _ESCAPES.items():
                    pattern, rewrite = re.escape(character), written.replace("\\", "\\\\")
                    keys = tf.strings.regex_replace(keys, pattern, rewrite)
            found = self._table.lookup(keys) + FIRST_ID
        return tf.where(tf.equal(values, ""), tf.zeros_like(found), found)


def _input_spec(name: str, feature: Feature) -> tf.TensorSpec:
    if feature.type == "vector":
        return tf.TensorSpec([None, feature.size], tf.float32, name)
    shape = [None, None] if feature.is_sequence else [None]
    if feature.type in ("numeric", "numeric_sequence"):
        return tf.TensorSpec(shape, tf.float32, name)
    return tf.TensorSpec(shape, tf.int64 if feature.type == "timestamp" else tf.string, name)


def _text_ids(texts: tf.Tensor, table: _Table, ngrams: int, max_tokens: int) -> tf.Tensor:
    """[batch] string -> [batch, max_tokens] int64; a text that repeats in the batch is read once."""
    distinct, rows = tf.unique(texts)
    tokens = tokenize(distinct, ngrams)
    ids = tokens.with_flat_values(table.ids(tokens.flat_values)).to_tensor(0, shape=[None, max_tokens])
    return tf.gather(ids, rows)


def _last(values: tf.Tensor, present: tf.Tensor, length: int) -> tf.Tensor:
    """Keep the last `length` elements of rows that are padded on the right, and pad to that length.

    Args:
        values: [batch, width, ...], 0 where not present.
        present: [batch, width] bool; what follows a row's last True is padding.
    """
    width = tf.shape(present)[1]
    rest = [[0, 0]] * (values.shape.rank - 2)

    def padded() -> tf.Tensor:
        return tf.pad(values, [[0, 0], [0, length - width], *rest])

    def cut() -> tf.Tensor:
        ends = tf.reduce_max(tf.where(present, tf.range(1, width + 1)[tf.newaxis, :], 0), axis=1)
        starts = tf.maximum(ends - length, 0)
        # What stands behind a row's end is padding, which is 0 already.
        return tf.gather(values, starts[:, tf.newaxis] + tf.range(length)[tf.newaxis, :], batch_dims=1)

    # Inputs of lockstep.features.tower_inputs are never wider; any other width is taken all the same.
    kept = tf.cond(width <= length, padded, cut)
    return tf.ensure_shape(kept, [None, length, *values.shape[2:]])


def _numeric(raw: tf.Tensor, log: bool, statistics: Statistics) -> tf.Tensor:
    """[batch] float32 -> [batch, 2]: standardised (0 where missing), and 1 where missing."""
    present = tf.math.is_finite(raw)
    scaled = _standardise(tf.where(present, raw, 0.0), log, statistics)
    missing = tf.cast(tf.logical_not(present), tf.float32)
    return tf.stack([tf.where(present, tf.cast(scaled, tf.float32), 0.0), missing], axis=1)


def _bucket(raw: tf.Tensor, boundaries: Sequence[float]) -> tf.Tensor:
    """[batch] float32 -> [batch, 1] int64: 0 where missing, else the number of its bucket from FIRST_ID on."""
    present = tf.math.is_finite(raw)
    # In float32, as the tower gets the number, so that a boundary falls on the same side everywhere.
    begins = tf.constant(np.array(boundaries, np.float32), tf.float32)
    found = tf.searchsorted(begins, tf.where(present, raw, 0.0), side="right", out_type=tf.int64) + FIRST_ID
    return tf.where(present, found, 0)[:, tf.newaxis]


def _standardise(values: tf.Tensor, log: bool, statistics: Statistics) -> tf.Tensor:
    """Float64, whose last bit may depend on the place in the batch (vectorised or not), as the result's must not."""
    values = tf.cast(values, tf.float64)
    if log:
        values = tf.sign(values) * tf.math.log1p(tf.abs(values))
    scaled = (values - statistics.mean) / (statistics.deviation or 1.0)
    return tf.clip_by_value(scaled, -LIMIT, LIMIT)


def _numeric_sequence(raw: tf.Tensor, log: bool, length: int, statistics: Statistics) -> tf.Tensor:
    """[batch, width] float32 -> [batch, 3]: mean and last of the standardised values, and 1 where there is none."""
    present = tf.math.is_finite(raw)
    scaled = _standardise(tf.where(present, raw, 0.0), log, statistics)
    kept = _last(tf.where(present, scaled, 0.0), present, length)
    counted = _last(tf.cast(present, tf.float64), present, length)
    count = tf.reduce_sum(counted, axis=1)
    mean = tf.reduce_sum(kept, axis=1) / tf.maximum(count, 1.0)
    latest = tf.reduce_max(tf.cast(counted, tf.int32) * tf.range(1, length + 1), axis=1) - 1
    last = tf.gather(kept, tf.maximum(latest, 0), batch_dims=1)
    missing = tf.cast(tf.equal(count, 0.0), tf.float64)
    return tf.cast(tf.stack([mean, last * (1.0 - missing), missing], axis=1), tf.float32)


def _timestamp(seconds: tf.Tensor, cycles: Sequence[str]) -> tf.Tensor:
    """[batch] int64 seconds since 1970 -> [batch, 2 * cycles]: sine and cosine of the place in each cycle.

    The circles are tables: the same bits on every machine, and no trigonometry while serving.
    """
    present = tf.not_equal(seconds, MISSING_TIME)
    days = tf.math.floordiv(seconds, 86_400)
    minute = tf.math.floordiv(tf.math.floormod(seconds, 86_400), 60)
    weekday = tf.math.floormod(days + 3, 7)  # 1970-01-01 was a Thursday; Monday is 0
    circles = {
        "day": tf.gather(_circle(1_440), minute),
        "week": tf.gather(_circle(7), weekday),
        "year": tf.gather(_circle(366), _day_of_year(days)),
    }
    return tf.where(present[:, tf.newaxis], tf.concat([circles[cycle] for cycle in cycles], axis=1), 0.0)


def _circle(steps: int) -> NDArray[np.float32]:
    angles = 2 * np.pi * np.arange(steps) / steps
    return np.stack([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


def _day_of_year(days: tf.Tensor) -> tf.Tensor:
    """Days since 1970 -> 0 for 1 January, in the proleptic Gregorian calendar.

    Eras of 400 years, whose years begin on 1 March so that the leap day is a year's last.
    Reference: H. Hinnant, "chrono-Compatible Low-Level Date Algorithms", days_from_civil and its inverse.
    """
    shifted = days + 719_468
    day_of_era = tf.math.floormod(shifted, 146_097)
    year_of_era = (day_of_era - day_of_era // 1_460 + day_of_era // 36_524 - day_of_era // 146_096) // 365
    since_march = day_of_era - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)
    leap = tf.equal(year_of_era % 4, 0) & (tf.not_equal(year_of_era % 100, 0) | tf.equal(year_of_era % 400, 0))
    # January and February belong to the year that began in the March before them.
    in_year = since_march + 59 + tf.cast(leap, tf.int64)
    day = tf.where(since_march >= 306, since_march - 306, in_year)
    return tf.clip_by_value(day, 0, 365)
