"""The Beam pipeline from training rows to training records.

    <rows>/shard=0/*.parquet, shard=1/...            read
    <destination>/part-00000-of-00004.tfrecord.gz    written: one file a shard, in the order of the hashes

An element is a shard, not a row: whoever takes it streams its rows in Arrow batches, encodes them, and holds no more
than the encoded records of that one shard, so that memory does not grow with the data and nothing is shuffled. Workers
reach rows, preprocessing and destination through Beam's file systems, wherever they are.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.metrics.metric import Metrics, MetricsFilter
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.runner import PipelineState
from apache_beam.utils.shared import Shared
from numpy.typing import NDArray

from dataflow.beam_options import LOCAL_RUNNERS, pipeline_options
from dataflow.encoded import TOWERS, EncodedFeature
from dataflow.encoding import load_modules
from dataflow.known import KnownCandidates
from dataflow.records import RecordFeature, RecordLayout
from dataflow.row_encoding import RowEncoder, own_features
from dataflow.sample import Sample
from dataflow.worker_files import local, matches, read, remove, seen_by_workers, written
from lockstep.errors import ConfigError, DataError, LockstepError
from lockstep.schema import Schema

_READERS = 16
"""Files of a bucket that are read at a time."""
_SAY_EVERY_SECONDS = 5.0
_COUNTERS = "lockstep/examples"
_BATCH_ROWS = 32_768
_COMPRESSION = 1
"""Of gzip: two thirds of the time of level 3 for a tenth more bytes."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExamplesPlan:
    """What every worker needs to know.

    Args:
        schema: Schema.to_json().
        encoded: the encoded features, by tower.
        candidates: rows of the catalogue.
        shards: number of files.
        rows: number of training rows.
    """

    schema: bytes
    encoded: Mapping[str, list[EncodedFeature]]
    candidates: int
    shards: int
    rows: int

    @property
    def layout(self) -> RecordLayout:
        """The records' layout."""
        schema = Schema.from_json(self.schema)
        own = own_features(schema)
        features = [
            RecordFeature(f"{tower}/{feature.name}", feature.length, feature.size)
            for tower in TOWERS
            for feature in self.encoded[tower]
            if feature.name in own[tower]
        ]
        features += [RecordFeature("candidate_index", 1, self.candidates)]
        if schema.max_history:
            features += [RecordFeature("past", schema.max_history, self.candidates + 1)]
        features += [RecordFeature(name, 1, None) for name in _NUMBERS]
        return RecordLayout(features)


_NUMBERS = ("age_days", "weight")


@dataclass(frozen=True)
class Folders:
    """Where things are, as workers address them.

    Args:
        rows: the folder of `Warehouse.export_shards`.
        known: the folder of `encode_known`.
        preprocessing: the folder with the SavedModels `query` and `candidate`.
        destination: where the records go.
    """

    rows: str
    known: str
    preprocessing: str
    destination: str


@dataclass(frozen=True)
class WrittenExamples:
    """What was written.

    Args:
        records: their number.
        counters: exact, over all rows: `rows_read`, `records_written`, `<tower>/<feature>/missing` and, of features
            with a vocabulary, `<tower>/<feature>/unknown`.
        sample: the SAMPLE_ROWS training rows of the smallest order_hash, in its order.
    """

    records: int
    counters: Mapping[str, int]
    sample: pa.Table


def write_examples(
    rows: Path,
    known: Path,
    preprocessing: Path,
    destination: Path,
    plan: ExamplesPlan,
    *,
    runner: str,
    options: Mapping[str, Any],
    run_id: str,
) -> WrittenExamples:
    """Encode the training rows and write them as sharded, gzipped TFRecords.

    The same rows give the same bytes, however they are divided into Parquet files and among workers.

    Args:
        rows: the folder of `Warehouse.export_shards`; the folder `sample` is made in it.
        known: the folder of `encode_known`.
        preprocessing: the folder with the SavedModels `query` and `candidate`.
        destination: an existing folder.
        runner: a Beam runner's name.
        options: Beam's own options, by name.
        run_id: names the job.

    Raises:
        ConfigError: an option that Beam does not take.
        DataError: the rows read, the records written and the plan's rows are not the same number.
    """
    started = time.monotonic()
    folders = Folders(*(seen_by_workers(path, runner) for path in (rows, known, preprocessing, destination)))
    pipeline = examples_pipeline(pipeline_options(runner, options, run_id), plan, folders)
    with _progress(plan, folders.destination) if runner in LOCAL_RUNNERS else _elsewhere(runner):
        result = pipeline.run()
        state = result.wait_until_finish()
    if state not in (None, PipelineState.DONE):
        raise DataError(f"the examples job ended as {state}: see its log at the {runner}, mend the cause and rerun")
    found = result.metrics().query(MetricsFilter().with_namespace(_COUNTERS))["counters"]
    counters = {counter.key.metric.name: int(counter.committed) for counter in found}
    rows_read, records = counters.get("rows_read", 0), counters.get("records_written", 0)
    if not rows_read == records == plan.rows:
        raise DataError(
            f"the examples job read {rows_read} rows and wrote {records} records of {plan.rows} training rows: "
            "rerun the data step"
        )
    # A worker that died leaves what it had not renamed yet.
    remove(matches(folders.destination, ".part-*"))
    seconds = time.monotonic() - started
    _log.info("wrote %d records in %.1f s, %.0f rows/s", records, seconds, records / seconds)
    return WrittenExamples(records, counters, _sample(plan, folders.rows))


def examples_pipeline(options: PipelineOptions, plan: ExamplesPlan, folders: Folders) -> beam.Pipeline:
    """The pipeline, not yet run."""
    try:
        pipeline = beam.Pipeline(options=options)
    except ValueError as error:  # the runner's validation
        raise ConfigError(f"[data.beam]: {str(error).partition(':')[2].strip() or error}") from error
    (
        pipeline
        | "Shards" >> beam.Create(range(plan.shards))
        | "Spread" >> beam.Reshuffle()
        | "Write" >> beam.ParDo(_WriteShard(plan, folders))
    )
    return pipeline


def _sample_file(rows: str, shard: int) -> str:
    return f"{rows}/sample/shard-{shard:05d}.parquet"


def _sample(plan: ExamplesPlan, rows: str) -> pa.Table:
    """The sample of all shards, which most have no more than a few rows of."""

    def rows_of(address: str) -> pa.Table:
        with read(address) as file:
            return pq.read_table(file)

    with ThreadPoolExecutor(_READERS, "read-sample") as pool:
        tables = list(pool.map(rows_of, matches(f"{rows}/sample", "*.parquet")))
    return Sample(plan.rows).smallest(tables)


@contextmanager
def _elsewhere(runner: str) -> Iterator[None]:
    """Say what a runner that is not in this process complains of; it raises whatever it likes."""
    try:
        yield
    except LockstepError:
        raise
    except Exception as error:
        first = str(error).strip().partition("\n")[0]
        raise DataError(
            f"the {runner} did not run the examples job: {first}; see [data.beam], and the runner's own log"
        ) from error


@contextmanager
def _progress(plan: ExamplesPlan, destination: str) -> Iterator[None]:
    """Say every few seconds how many files are there; a remote runner says so itself."""
    started, finished = time.monotonic(), threading.Event()

    def say() -> None:
        while not finished.wait(_SAY_EVERY_SECONDS):
            files = len(matches(destination, "part-*"))
            rate = files / plan.shards * plan.rows / (time.monotonic() - started)
            _log.info("training records: %d of %d files, about %.0f rows/s", files, plan.shards, rate)

    thread = threading.Thread(target=say, name="examples-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join()


@dataclass
class _Loaded:
    """What the threads of a process share."""

    modules: dict[str, Any]
    known: KnownCandidates


class _WriteShard(beam.DoFn):
    """A shard's number -> its file, and one of the rows that may belong to the sample."""

    def __init__(self, plan: ExamplesPlan, folders: Folders) -> None:
        self._plan, self._folders = plan, folders
        self._shared = Shared()

    def setup(self) -> None:
        self._layout = self._plan.layout
        self._loaded = self._shared.acquire(self._load)
        schema = Schema.from_json(self._plan.schema)
        self._encoder = RowEncoder(schema, self._loaded.modules, self._loaded.known)
        self._sample = Sample(self._plan.rows)

    def _load(self) -> _Loaded:
        with local(self._folders.preprocessing) as preprocessing, local(self._folders.known) as known:
            return _Loaded(load_modules(preprocessing), KnownCandidates(known, Schema.from_json(self._plan.schema)))

    def process(self, shard: int) -> None:
        with ExitStack() as opened:
            addresses = matches(f"{self._folders.rows}/shard={shard}", "*.parquet")
            files = [pq.ParquetFile(opened.enter_context(read(address))) for address in addresses]
            rows = sum(file.metadata.num_rows for file in files)
            records, hashes = np.empty((rows, self._layout.bytes), np.uint8), np.empty(rows, np.int64)
            sampled, row = [], 0
            for batch in _batches(files):
                end = row + len(batch)
                records[row:end] = self._encode(batch)
                hashes[row:end] = batch.column("order_hash")
                sampled.append(self._sample.candidates(batch))
                row = end
        order = _order(hashes, records)
        self._write(shard, records, order)
        if sampled:
            # A file beside the rows, not an element: Beam would copy it many times over.
            with written(_sample_file(self._folders.rows, shard)) as sample:
                pq.write_table(self._sample.of_shard(sampled, hashes, order), sample)

    def _encode(self, batch: pa.RecordBatch) -> NDArray[np.uint8]:
        encoded = self._encoder.encode(batch)
        _count({"rows_read": len(batch)} | self._encoder.counts(batch, encoded))
        columns = {name: batch.column(name).to_numpy()[:, None] for name in ("candidate_index", *_NUMBERS)}
        return self._layout.serialize(encoded | columns)

    def _write(self, shard: int, records: NDArray[np.uint8], rows: NDArray[np.int64]) -> None:
        import tensorflow as tf

        options = tf.io.TFRecordOptions(compression_type="GZIP", compression_level=_COMPRESSION)
        address = f"{self._folders.destination}/part-{shard:05d}-of-{self._plan.shards:05d}.tfrecord.gz"
        with written(address) as file, tf.io.TFRecordWriter(str(file), options) as writer:
            for row in rows:
                writer.write(records[row].tobytes())
        _count({"records_written": len(rows)})


def _batches(files: Sequence[pq.ParquetFile]) -> Iterator[pa.RecordBatch]:
    """The rows of several files, in batches of about _BATCH_ROWS, however small their row groups are."""
    held: list[pa.RecordBatch] = []
    for file in files:
        for batch in file.iter_batches(_BATCH_ROWS):
            if held and sum(map(len, held)) + len(batch) > _BATCH_ROWS:
                yield _joined(held)
                held = []
            held.append(batch)
    if held:
        yield _joined(held)


def _joined(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    return batches[0] if len(batches) == 1 else pa.concat_batches(batches)


def _order(hashes: NDArray[np.int64], records: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Rows by hash; equal hashes, which are rare, by their bytes, so that no accident of the export decides."""
    by_hash = np.argsort(hashes, kind="stable")
    if (np.diff(hashes[by_hash]) == 0).any():
        return np.array(sorted(range(len(hashes)), key=lambda row: (hashes[row], records[row].tobytes())))
    return by_hash


def _count(counted: Mapping[str, int]) -> None:
    for name, count in counted.items():
        Metrics.counter(_COUNTERS, name).inc(count)
