"""The Beam pipeline from training rows to training records.

An element is a batch, not a row: the cost of an element is paid once for thousands of rows, on a laptop as on
Dataflow. Rows are spread over the files and ordered in them by a hash that the query computed, so that the same data
and seed give the same bytes however the work was divided.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.options.pipeline_options import PipelineOptions
from numpy.typing import NDArray

from dataflow.encoded import TOWERS, EncodedFeature
from dataflow.records import RecordFeature, RecordLayout
from lockstep.errors import DataError
from lockstep.features import features_type, tower_inputs
from lockstep.schema import Schema

_COUNTERS = "lockstep/examples"
_COMPRESSION = 3
"""Of gzip: half the time of the usual 6 for a tenth more bytes."""


@dataclass(frozen=True)
class ExamplesPlan:
    """What every worker needs to know.

    Args:
        schema: Schema.to_json().
        preprocessing: the folder with the SavedModels `query` and `candidate`.
        encoded: their outputs, by tower.
        candidates: rows of the catalogue.
        shards: number of files.
    """

    schema: bytes
    preprocessing: Path
    encoded: Mapping[str, list[EncodedFeature]]
    candidates: int
    shards: int

    @property
    def layout(self) -> RecordLayout:
        """The records' layout."""
        features = [
            RecordFeature(f"{tower}/{feature.name}", feature.length, feature.size)
            for tower in TOWERS
            for feature in self.encoded[tower]
        ]
        features += [
            RecordFeature("candidate_index", 1, self.candidates),
            RecordFeature("sampling_probability", 1, None),
            RecordFeature("age_days", 1, None),
        ]
        return RecordLayout(features)


def write_examples(rows: Path, destination: Path, plan: ExamplesPlan, *, runner: str) -> int:
    """Encode the training rows and write them as sharded, gzipped TFRecords.

    Args:
        rows: the Parquet file of queries/training_examples.sql.
        destination: an existing folder; its files are named part-00000-of-00004.tfrecord.gz.
        runner: a Beam runner's name.

    Returns:
        The number of records, as the pipeline counted them.
    """
    options = PipelineOptions(["--runner", _local(runner), "--no_save_main_session"])
    pipeline = beam.Pipeline(options=options)
    encoded = pipeline | "Read" >> beam.io.ReadFromParquetBatched(str(rows)) | "Encode" >> beam.ParDo(_Encode(plan))
    # An empty batch for each shard, so that every file exists.
    empty = pipeline | "Shards" >> beam.Create([(shard, b"") for shard in range(plan.shards)])
    (
        (encoded, empty)
        | "Flatten" >> beam.Flatten()
        | "Group" >> beam.GroupByKey()
        | "Write" >> beam.ParDo(_Write(plan, destination))
    )
    result = pipeline.run()
    result.wait_until_finish()
    counters = {c.key.metric.name: c.committed for c in result.metrics().query()["counters"]}
    logging.getLogger(__name__).info("beam counters: %s", counters)
    read, written = counters.get("rows_read", 0), counters.get("records_written", 0)
    if read != written:
        raise DataError(f"the examples pipeline read {read} rows but wrote {written} records: rerun the data step")
    return int(written)


def encode_rows(signature: Any, schema: Schema, tower: str, features: pa.StructArray) -> dict[str, NDArray[Any]]:
    """Run a tower's preprocessing on a column of raw features.

    Args:
        signature: serving_default of its SavedModel.
        features: [batch] struct, in any types that cast to `features_type`.

    Returns:
        name -> [batch, length] int64 or float32.
    """
    import tensorflow as tf

    inputs = tower_inputs(schema, tower, features.cast(features_type(schema, tower)))
    outputs = signature(**{name: tf.constant(values) for name, values in inputs.items()})
    return {name: tensor.numpy() for name, tensor in outputs.items()}


class _Encode(beam.DoFn):
    """Arrow rows -> (shard, order hashes and records)."""

    def __init__(self, plan: ExamplesPlan) -> None:
        self._plan = plan
        self._rows = beam.metrics.Metrics.counter(_COUNTERS, "rows_read")

    def setup(self) -> None:
        import tensorflow as tf

        self._schema = Schema.from_json(self._plan.schema)
        self._layout = self._plan.layout
        self._modules = {tower: tf.saved_model.load(str(self._plan.preprocessing / tower)) for tower in TOWERS}

    def process(self, table: pa.Table) -> Iterator[tuple[int, bytes]]:
        self._rows.inc(len(table))
        values: dict[str, NDArray[Any]] = {}
        for tower, module in self._modules.items():
            features = table.column(tower).combine_chunks()
            encoded = encode_rows(module.signatures["serving_default"], self._schema, tower, features)
            values |= {f"{tower}/{name}": array for name, array in encoded.items()}
        for name in ("candidate_index", "sampling_probability", "age_days"):
            values[name] = table.column(name).to_numpy()[:, None]
        records = self._layout.serialize(values)
        hashes = table.column("order_hash").to_numpy()
        shards = hashes % self._plan.shards
        for shard in range(self._plan.shards):
            chosen = np.flatnonzero(shards == shard)
            if len(chosen):
                yield shard, _packed(hashes[chosen], records[chosen])


class _Write(beam.DoFn):
    """(shard, batches) -> one file, in the order of the hashes."""

    def __init__(self, plan: ExamplesPlan, destination: Path) -> None:
        self._plan = plan
        self._destination = destination
        self._written = beam.metrics.Metrics.counter(_COUNTERS, "records_written")

    def process(self, element: tuple[int, Iterable[bytes]]) -> Iterator[int]:
        import tensorflow as tf

        shard, batches = element
        unpacked = [_unpacked(batch, self._plan.layout.bytes) for batch in batches]
        hashes = np.concatenate([hashes for hashes, _ in unpacked])
        records = np.concatenate([records for _, records in unpacked])
        order = _order(hashes, records)
        name = f"part-{shard:05d}-of-{self._plan.shards:05d}.tfrecord.gz"
        options = tf.io.TFRecordOptions(compression_type="GZIP", compression_level=_COMPRESSION)
        # A bundle that is tried twice writes the same bytes; the rename makes the file appear whole.
        unfinished = self._destination / f".{name}.{os.getpid()}"
        with tf.io.TFRecordWriter(str(unfinished), options) as writer:
            for row in order:
                writer.write(records[row].tobytes())
        unfinished.replace(self._destination / name)
        self._written.inc(len(order))
        yield len(order)


def _packed(hashes: NDArray[np.int64], records: NDArray[np.uint8]) -> bytes:
    """Rows as bytes: their number, then everything compressed, for most of a record is padding."""
    body = hashes.tobytes() + records.tobytes()
    return len(hashes).to_bytes(8, "little") + pa.compress(body, "lz4", asbytes=True)


def _unpacked(batch: bytes, width: int) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """The inverse of `_packed`; an empty batch has no rows."""
    rows = int.from_bytes(batch[:8], "little")
    body = pa.decompress(batch[8:], rows * (8 + width), "lz4", asbytes=True) if rows else b""
    records = np.frombuffer(body, np.uint8, offset=8 * rows).reshape(rows, width)
    return np.frombuffer(body, np.int64, rows), records


def _order(hashes: NDArray[np.int64], records: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Rows by hash; equal hashes, which are rare, by their bytes, so that no accident of the runner decides."""
    order = np.argsort(hashes, kind="stable")
    if (np.diff(hashes[order]) == 0).any():
        return np.array(sorted(range(len(hashes)), key=lambda row: (hashes[row], records[row].tobytes())))
    return order


def _local(runner: str) -> str:
    # Beam's DirectRunner tries first to download another runner; this is the one that it falls back on.
    return "apache_beam.runners.portability.fn_api_runner.FnApiRunner" if runner == "DirectRunner" else runner
