"""The Beam step of the data step: shards as elements, against rows as elements; speed and memory as rows grow.

    python benchmarks/examples.py --sizes 100000 1000000 --json examples.json

Training rows of the schema of configs/mpd.toml are drawn from a seed and exported as the warehouse exports them. Each
run is a process of its own on the DirectRunner; its clock starts after the imports and covers everything else, its peak
is the process's high-water mark. All versions encode with the same saved preprocessing and write gzipped TFRecords:

    shards   dataflow.known.encode_known and dataflow.examples.write_examples: an element is a shard, whose rows name
             candidates by number; also counts, samples and orders the records
    batches  rows as elements, brought together again by BatchElements, encoded 1,024 to 4,096 at a time
    rows     rows as elements, encoded one by one

The rows of the last two spell out every feature, as usual; their records are neither ordered nor counted nor sampled,
which would make them slower still.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
from examples_rows import Catalogue

from dataflow.beam_options import pipeline_options
from dataflow.encoded import TOWERS, encoded_features
from dataflow.encoding import load_modules
from dataflow.examples import ExamplesPlan, write_examples
from dataflow.known import encode_known
from dataflow.preprocessing import save_preprocessing
from dataflow.records import RecordFeature, RecordLayout
from lockstep.features import features_type, tower_inputs
from lockstep.schema import Schema

CONFIG = Path(__file__).parents[1] / "configs" / "mpd.toml"
SHARD_ROWS = 250_000
NUMBERS = ("candidate_index", "age_days", "weight")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[100_000, 1_000_000], help="training rows, of `shards`")
    parser.add_argument("--batches", type=int, default=100_000, help="training rows, of `batches`; 0 leaves it out")
    parser.add_argument("--rows", type=int, default=10_000, help="training rows, of `rows`; 0 leaves it out")
    parser.add_argument("--json", type=Path, help="where the results go")
    parser.add_argument("--work", type=Path, help="an empty folder for the rows; a temporary one by default")
    parser.add_argument("--child", nargs=3, metavar=("VERSION", "ROWS", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.child:
        version, rows, folder = arguments.child
        print(json.dumps(measure(version, int(rows), Path(folder))))
        return
    runs = [("shards", size) for size in arguments.sizes]
    runs += [(name, rows) for name, rows in (("batches", arguments.batches), ("rows", arguments.rows)) if rows]
    with tempfile.TemporaryDirectory(dir=arguments.work) as work:
        catalogue = Catalogue.draw(CONFIG)
        results = [run(catalogue, version, rows, Path(work)) for version, rows in runs]
    report(results, arguments.json)


def run(catalogue: Catalogue, version: str, rows: int, work: Path) -> dict[str, Any]:
    """Draw the rows, measure one version in a process of its own, and delete the rows."""
    with tempfile.TemporaryDirectory(dir=work) as folder:
        preprocessing = Path(folder) / "preprocessing"
        preprocessing.mkdir()
        save_preprocessing(preprocessing, catalogue.schema, catalogue.learned)
        shards = -(-rows // SHARD_ROWS)
        for shard in range(shards):
            of_shard = rows // shards + (shard < rows % shards)
            of_rows = Path(folder) / "rows" / f"shard={shard}"
            catalogue.write_shard(of_rows, shard, shards, of_shard, raw=version != "shards")
        catalogue.write_known(Path(folder) / "known.parquet")
        command = [sys.executable, __file__, "--child", version, str(rows), folder]
        load = os.getloadavg()[0]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    result = json.loads(done.stdout.splitlines()[-1]) | {"load_before": round(load, 2)}
    print(line(result), flush=True)
    return result


def measure(version: str, rows: int, folder: Path) -> dict[str, Any]:
    """One run, in this process."""
    import tensorflow  # noqa: F401 - its import is not what is measured

    logging.getLogger("apache_beam").setLevel(logging.ERROR)
    catalogue = Catalogue.draw(CONFIG)
    encoded = encoded_features(catalogue.schema, catalogue.learned.vocabularies)
    candidates, shards = len(catalogue.tracks), -(-rows // SHARD_ROWS)
    plan = ExamplesPlan(catalogue.schema.to_json(), encoded, candidates, shards, rows)
    train = folder / "train"
    train.mkdir()
    before, cpu, started = peak_mb(), sum(os.times()[:2]), time.perf_counter()
    if version == "shards":
        write_by_shards(folder, train, plan)
    else:
        write_by_rows(folder, train, plan, together=version == "batches")
    seconds = time.perf_counter() - started
    return {
        "version": version,
        "rows": rows,
        "seconds": round(seconds, 2),
        "cpu_seconds": round(sum(os.times()[:2]) - cpu, 2),
        "rows_per_second": round(rows / seconds),
        "peak_mb": round(peak_mb()),
        "peak_before_mb": round(before),
        "bytes": sum(file.stat().st_size for file in train.iterdir()),
        "cores": os.cpu_count(),
    }


def write_by_shards(folder: Path, train: Path, plan: ExamplesPlan) -> None:
    """What the data step does."""
    schema, preprocessing, known = Schema.from_json(plan.schema), folder / "preprocessing", folder / "known"
    encode_known(folder / "known.parquet", known, schema, load_modules(preprocessing), plan.candidates)
    write_examples(
        folder / "rows", known, preprocessing, train, plan, runner="DirectRunner", options={}, run_id="benchmark"
    )


def write_by_rows(folder: Path, train: Path, plan: ExamplesPlan, *, together: bool) -> None:
    """The usual pipeline: an element is a row."""
    pipeline = beam.Pipeline(options=pipeline_options("DirectRunner", {}, "benchmark"))
    elements = pipeline | beam.io.ReadFromParquet(f"{folder}/rows/shard=*/*.parquet")
    if together:
        elements = elements | beam.BatchElements(min_batch_size=1024, max_batch_size=4096)
    else:
        elements = elements | beam.Map(lambda row: [row])
    records = elements | beam.ParDo(EncodeRows(plan, folder / "preprocessing"))
    records | beam.io.WriteToTFRecord(f"{train}/part", file_name_suffix=".tfrecord.gz", num_shards=plan.shards)
    pipeline.run().wait_until_finish()


class EncodeRows(beam.DoFn):
    """Rows -> their records."""

    def __init__(self, plan: ExamplesPlan, preprocessing: Path) -> None:
        self._plan, self._preprocessing = plan, preprocessing

    def setup(self) -> None:
        self._schema = Schema.from_json(self._plan.schema)
        # Every feature spelt out, as the rows have them.
        features = [
            RecordFeature(f"{tower}/{feature.name}", feature.length, feature.size)
            for tower in TOWERS
            for feature in self._plan.encoded[tower]
        ]
        sizes = {"candidate_index": self._plan.candidates}
        self._layout = RecordLayout([*features, *(RecordFeature(name, 1, sizes.get(name)) for name in NUMBERS)])
        self._modules = load_modules(self._preprocessing)

    def process(self, rows: list[dict[str, Any]]) -> Iterator[bytes]:
        import tensorflow as tf

        values = {name: np.array([[row[name]] for row in rows]) for name in NUMBERS}
        for tower in TOWERS:
            features = pa.array([row[tower] for row in rows], type=features_type(self._schema, tower))
            inputs = tower_inputs(self._schema, tower, features)
            signature = self._modules[tower].signatures["serving_default"]
            outputs = signature(**{name: tf.constant(array) for name, array in inputs.items()})
            values |= {f"{tower}/{name}": tensor.numpy() for name, tensor in outputs.items()}
        for record in self._layout.serialize(values):
            yield record.tobytes()


def report(results: list[dict[str, Any]], destination: Path | None) -> None:
    """Print the ratios, and write everything down."""
    best = next(result for result in reversed(results) if result["version"] == "shards")
    ratios = {
        f"shards / {other['version']}": {
            "by_clock": round(best["rows_per_second"] / other["rows_per_second"], 1),
            "by_cpu": round((other["cpu_seconds"] / other["rows"]) / (best["cpu_seconds"] / best["rows"]), 1),
        }
        for other in results
        if other["version"] != "shards"
    }
    for name, ratio in ratios.items():
        print(f"{name}: {ratio['by_clock']} times the rows a second, {ratio['by_cpu']} times the rows a CPU second")
    if destination:
        destination.write_text(json.dumps({"results": results, "ratios": ratios}, indent=1) + "\n")


def line(result: dict[str, Any]) -> str:
    return (
        f"{result['version']:8} {result['rows']:>11,} rows {result['seconds']:>8,.1f} s "
        f"{result['rows_per_second']:>8,} rows/s {result['cpu_seconds'] / result['rows'] * 1e6:>7.1f} CPU µs/row "
        f"peak {result['peak_mb']:>6,} MB ({result['peak_before_mb']:,} before) load {result['load_before']}"
    )


def peak_mb() -> float:
    """The process's high-water mark so far."""
    status = Path("/proc/self/status").read_text()
    return int(next(part for part in status.splitlines() if part.startswith("VmHWM")).split()[1]) / 1024


if __name__ == "__main__":
    main()
