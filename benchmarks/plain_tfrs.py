"""What the training benchmark compares with: a two-tower model as the public TFRS references build it.

Strings go into the towers: each feature has a Sequential of its own, StringLookup or TextVectorization, an embedding,
and pooling where there are several. Records are tf.Examples of strings, parsed in batches. The Retrieval task has its
batch metrics, and the model is trained with `fit` and Adagrad.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import tensorflow as tf
import tensorflow_recommenders as tfrs

from lockstep.schema import Feature, Schema

TOP_K = (10, 50, 100)


def write_records(rows: pa.Table, schema: Schema, folder: Path, shards: int) -> None:
    """Write raw training rows as tf.Examples.

    Args:
        rows: with the structs `query` and `candidate` (dataflow.sample.with_features), in the order of training.
    """
    folder.mkdir(parents=True)
    options = tf.io.TFRecordOptions(compression_type="GZIP", compression_level=1)
    writers = [tf.io.TFRecordWriter(str(folder / f"part-{n}.tfrecord.gz"), options) for n in range(shards)]
    for number, values in enumerate(_raw(rows, schema)):
        feature = {name: _feature(value) for name, value in values.items()}
        example = tf.train.Example(features=tf.train.Features(feature=feature))
        writers[number % shards].write(example.SerializeToString())
    for writer in writers:
        writer.close()


def _raw(rows: pa.Table, schema: Schema) -> Iterator[dict[str, Any]]:
    for batch in rows.select(["query", "candidate"]).to_batches(10_000):
        for row in batch.to_pylist():
            yield {
                f"{side}_{name}": filled_value(row[side][name], feature)
                for side in ("query", "candidate")
                for name, feature in schema.features(side).items()
            }


def filled_value(value: Any, feature: Feature) -> Any:
    """A raw value as the towers take it: padded, and with something in place of nothing."""
    if feature.is_sequence:
        length = feature.max_length  # type: ignore[union-attr]
        kept = [element or "" for element in (value or [])[-length:]]
        return kept + [""] * (length - len(kept))
    if feature.type == "numeric":
        return 0.0 if value is None else float(value)
    if feature.type == "timestamp":
        return 0.0 if value is None else value.timestamp()
    return value or ""


def _feature(value: Any) -> tf.train.Feature:
    if isinstance(value, float):
        return tf.train.Feature(float_list=tf.train.FloatList(value=[value]))
    values = value if isinstance(value, list) else [value]
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=[of.encode() for of in values]))


def read_records(folder: Path, schema: Schema, batch_size: int, shuffle_buffer: int) -> tf.data.Dataset:
    """Batches of the records; the buffer is ours, so that as much is read before the first batch and while training."""
    spec = {
        f"{side}_{name}": _spec(feature)
        for side in ("query", "candidate")
        for name, feature in schema.features(side).items()
    }
    files = tf.data.Dataset.list_files(str(folder / "*.gz"), seed=1)
    records = files.interleave(
        lambda file: tf.data.TFRecordDataset(file, compression_type="GZIP"), num_parallel_calls=tf.data.AUTOTUNE
    )
    batches = records.shuffle(shuffle_buffer).batch(batch_size, drop_remainder=True)
    return batches.map(lambda batch: tf.io.parse_example(batch, spec), tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)


def _spec(feature: Feature) -> tf.io.FixedLenFeature:
    if feature.is_sequence:
        return tf.io.FixedLenFeature([feature.max_length], tf.string)  # type: ignore[union-attr]
    return tf.io.FixedLenFeature([], tf.float32 if feature.type in ("numeric", "timestamp") else tf.string)


class PlainTower(tf.keras.Model):
    """A tower over raw features.

    Args:
        vocabularies: table -> its values, most frequent first.
        tables: feature -> the name of its table.
    """

    def __init__(
        self,
        schema: Schema,
        side: str,
        tables: Mapping[str, str],
        vocabularies: Mapping[str, Sequence[str]],
        *,
        feature_dim: int,
        hidden: Sequence[int],
        dim: int,
    ) -> None:
        super().__init__()
        self.side = side
        self.blocks: dict[str, tf.keras.Sequential] = {}
        for name, feature in schema.features(side).items():
            if name in tables:
                width = getattr(feature, "dim", None) or feature_dim
                self.blocks[name] = tf.keras.Sequential(_layers(feature, vocabularies[tables[name]], width))
        self.normalise = {
            name: tf.keras.layers.Normalization(axis=None)
            for name, feature in schema.features(side).items()
            if feature.type in ("numeric", "timestamp")
        }
        layers = [tf.keras.layers.Dense(units, activation="relu") for units in hidden]
        self.dense = tf.keras.Sequential([*layers, tf.keras.layers.Dense(dim)])

    def adapt(self, rows: pa.Table) -> None:
        """Learn means and deviations."""
        for name, layer in self.normalise.items():
            values = pc.struct_field(rows[self.side].combine_chunks(), name)
            numbers = values.cast(pa.float64()) if pa.types.is_floating(values.type) else values.cast(pa.int64())
            scale = 1.0 if pa.types.is_floating(values.type) else 1e-6
            layer.adapt(np.asarray(pc.fill_null(numbers, 0)).astype(np.float32) * scale)

    def call(self, inputs: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """[batch] or [batch, length] raw features by name -> [batch, dim] of unit length."""
        outputs = [block(inputs[name]) for name, block in self.blocks.items()]
        outputs += [layer(inputs[name])[:, tf.newaxis] for name, layer in self.normalise.items()]
        return tf.math.l2_normalize(self.dense(tf.concat(outputs, axis=1)), axis=1)


def _layers(feature: Feature, vocabulary: Sequence[str], dim: int) -> list[tf.keras.layers.Layer]:
    pooled = MaskedAverage()
    if feature.type == "text":
        split = tf.keras.layers.TextVectorization(
            vocabulary=[token for token in vocabulary if " " not in token],
            output_sequence_length=feature.max_tokens,
        )
        size = len(split.get_vocabulary())
        return [split, tf.keras.layers.Embedding(size, dim, mask_zero=True), pooled]
    lookup = tf.keras.layers.StringLookup(vocabulary=list(vocabulary), mask_token="")
    embedding = tf.keras.layers.Embedding(lookup.vocabulary_size(), dim, mask_zero=True)
    return [lookup, embedding, pooled] if feature.is_sequence else [lookup, embedding]


class MaskedAverage(tf.keras.layers.Layer):
    """The mean of what is there; GlobalAveragePooling1D makes NaN of a row in which nothing is."""

    def call(self, inputs: tf.Tensor, mask: tf.Tensor | None = None) -> tf.Tensor:
        present = tf.cast(mask, tf.float32)[:, :, tf.newaxis]
        return tf.reduce_sum(inputs * present, axis=1) / tf.maximum(tf.reduce_sum(present, axis=1), 1.0)


class PlainModel(tfrs.Model):
    """Both towers and the Retrieval task, with top-k metrics of every training batch."""

    def __init__(self, query_tower: PlainTower, candidate_tower: PlainTower, temperature: float) -> None:
        super().__init__()
        self.query_tower, self.candidate_tower = query_tower, candidate_tower
        metrics = [tf.keras.metrics.TopKCategoricalAccuracy(k, name=f"batch_top_{k}") for k in TOP_K]
        self.task = tfrs.tasks.Retrieval(temperature=temperature, batch_metrics=metrics)

    def compute_loss(self, features: Mapping[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        """The sum of the softmax losses of a batch."""
        sides = {
            side: {name.removeprefix(f"{side}_"): of for name, of in features.items() if name.startswith(side)}
            for side in ("query", "candidate")
        }
        return self.task(
            self.query_tower(sides["query"]), self.candidate_tower(sides["candidate"]), compute_metrics=False
        )
