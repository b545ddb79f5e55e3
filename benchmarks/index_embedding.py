"""Batch embedding against `predict(batch_size=128)` on string features, the way of the public TFRS references.

    python benchmarks/index_embedding.py --rows 1000000 --output embedding.json

A catalogue of 10 features is drawn from a seed: an id, six categoricals of 100 to 200,000 values, a title of 4 words,
two numbers. The vocabularies hold all of them. Both towers have tables of 32, a hidden layer of 128 and vectors of 64;
their weights are untrained, which costs the same. Runs are processes of their own, in turns, and medians count:

    predict    a Keras model with StringLookup and TextVectorization in it; reading, writing and building are not timed
    job        dataflow.embed.run: entities on disk to the tagged artifact
    loaded     the same with a tower that was loaded before
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lockstep.config import EmbedSection
from lockstep.embeddings import NUMERIC_RESTRICTS, RESTRICTS
from lockstep.features import features_type
from lockstep.model_sections import ModelSection
from lockstep.schema import Schema
from lockstep.tags import Kind, open_artifact, write_tag
from lockstep.version import ModelVersion

SIZES = {"artist": 100_000, "album": 200_000, "label": 20_000, "genre": 500, "country": 200, "language": 100}
WORDS = 20_000
GROUP, FILE = 32_768, 262_144
V1 = ModelVersion(1)
SCHEMA = Schema.model_validate(
    {
        "query": {"history": {"type": "id_sequence", "columns": ["history.candidate_id"], "max_length": 10}},
        "candidate": {
            "candidate_id": {"type": "id"},
            **{name: {"type": "categorical"} for name in SIZES},
            "title": {"type": "text", "ngrams": 1, "max_tokens": 8},
            "price": {"type": "numeric", "log": True},
            "duration": {"type": "numeric"},
        },
    }
)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--predict-rows", type=int, default=100_000, help="of `predict`, which is slow")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, help="where the results go")
    parser.add_argument("--child", nargs=2, metavar=("VERSION", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.child:
        version, folder = arguments.child
        os.environ.update(TF_USE_LEGACY_KERAS="1", TF_CPP_MIN_LOG_LEVEL="3")
        versions = {"make": make, "predict": predict, "job": job, "loaded": loaded}
        print(json.dumps(versions[version](Path(folder), arguments)))
        return
    result = measure_embedding(arguments.rows, arguments.predict_rows, arguments.repeats)
    if arguments.output is not None:
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")


def measure_embedding(rows: int, predict_rows: int, repeats: int) -> dict[str, Any]:
    """All runs and what they amount to."""
    with tempfile.TemporaryDirectory(prefix="embedding-") as folder:
        start("make", folder, rows, predict_rows)
        runs = [
            start(version, folder, rows, predict_rows)
            for _ in range(repeats)
            for version in ("predict", "job", "loaded")
        ]

    def median(version: str, figure: str) -> float:
        return statistics.median(run[figure] for run in runs if run["version"] == version)

    reference = median("predict", "rows_per_second")
    result: dict[str, Any] = {
        "rows": rows,
        "predict_rows_per_second": round(reference),
        "job_rows_per_second": round(median("job", "rows_per_second")),
        "job_rows_per_second_loaded": round(median("loaded", "rows_per_second")),
        "ratio": round(median("job", "rows_per_second") / reference, 1),
        "ratio_loaded": round(median("loaded", "rows_per_second") / reference, 1),
        "ratio_cpu": round(median("predict", "cpu_us_per_row") / median("job", "cpu_us_per_row"), 1),
        "job_peak_mb": round(median("job", "peak_mb")),
        "predict_peak_mb": round(median("predict", "peak_mb")),
        "cores": os.cpu_count(),
        "runs": runs,
    }
    print(
        f"job / predict(128): {result['ratio']} times the rows a second, {result['ratio_loaded']} times with the tower "
        f"loaded before; {result['ratio_cpu']} times less CPU time a row; peak {result['job_peak_mb']:,} MB"
    )
    return result


def start(version: str, folder: str, rows: int, predict_rows: int) -> dict[str, Any]:
    """One run in a process of its own."""
    options = ["--rows", str(rows), "--predict-rows", str(predict_rows)]
    load = os.getloadavg()[0]
    command = [sys.executable, __file__, "--child", version, folder, *options]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1]) | {"version": version, "load_before": load}
    figures = [f"{name} {value:,.1f}" for name, value in result.items() if isinstance(value, float)]
    print(f"{version:8} {', '.join(figures)}", flush=True)
    return result


def make(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Entities, preprocessing and a tower."""
    from dataflow.encoded import Learned, Statistics
    from dataflow.preprocessing import save_preprocessing
    from trainer.encoding import read_encoded_features
    from trainer.export import export_tower
    from trainer.towers import build_towers

    table = catalogue(arguments.rows)
    for name in ("candidates", "queries"):
        (folder / "entities" / name).mkdir(parents=True)
    for number, first in enumerate(range(0, arguments.rows, FILE)):
        part = folder / "entities" / "candidates" / f"part-{number:05d}.parquet"
        pq.write_table(table.slice(first, FILE), part, row_group_size=GROUP, compression="zstd")
    write_tag(folder / "entities", Kind.ENTITIES, run="r", schema=SCHEMA.digest, rows=arguments.rows)
    vocabularies = {f"candidate_{name}": values for name, values in vocabularies_of(table).items()}
    statistics_of = {("candidate", "price"): Statistics(), ("candidate", "duration"): Statistics(200, 50)}
    (folder / "preprocessing").mkdir()
    learned = Learned(vocabularies | {"query_history": ["x"]}, statistics_of)
    save_preprocessing(folder / "preprocessing", SCHEMA, learned)
    write_tag(folder / "preprocessing", Kind.PREPROCESSING, run="r", schema=SCHEMA.digest, rows=1)
    features = read_encoded_features(folder / "preprocessing" / "features.json")
    _, tower = build_towers(features, ModelSection(), seed=1)
    preprocessing = open_artifact(folder / "preprocessing", Kind.PREPROCESSING)
    export_tower(tower, "candidate", preprocessing, folder / "tower", model_version=V1, run_id="r", rows=1, inputs={})
    return {}


def catalogue(rows: int) -> pa.Table:
    """The entities: few values are frequent and many rare, ids are unique."""
    rng = np.random.default_rng(1)
    columns = {"candidate_id": named("track", rng.permutation(rows))}
    for name, size in SIZES.items():
        columns[name] = named(name, (size * rng.random(rows) ** 2.5).astype(np.int64))
    words = [named("word", (WORDS * rng.random(rows) ** 3).astype(np.int64)) for _ in range(4)]
    columns["title"] = pc.binary_join_element_wise(*words, " ")
    columns["price"] = pa.array(rng.lognormal(size=rows))
    columns["duration"] = pa.array(rng.normal(200, 50, rows))
    features = pa.StructArray.from_arrays(list(columns.values()), names=list(columns))
    places = np.arange(rows + 1, dtype=np.int32)
    genre = pa.ListArray.from_arrays(places, columns["genre"])
    none = pa.ListArray.from_arrays(np.zeros(rows + 1, np.int32), columns["genre"][:0])
    namespaces = [pa.array(np.full(rows, name)) for name in ("genre", "price")]
    restricts = pa.StructArray.from_arrays([namespaces[0], genre, none], names=["namespace", "allow", "deny"])
    numbers = pa.StructArray.from_arrays([namespaces[1], columns["price"]], names=["namespace", "value"])
    return pa.table(
        {
            "id": columns["candidate_id"],
            "features": features.cast(features_type(SCHEMA, "candidate")),
            "display": columns["title"],
            "restricts": pa.ListArray.from_arrays(places, restricts).cast(RESTRICTS),
            "numeric_restricts": pa.ListArray.from_arrays(places, numbers).cast(NUMERIC_RESTRICTS),
            "crowding_tag": columns["artist"],
        }
    )


def named(name: str, numbers: np.ndarray) -> pa.StringArray:
    return pc.binary_join_element_wise(f"{name}-", pc.utf8_lpad(pa.array(numbers).cast(pa.string()), 7, "0"), "")


def vocabularies_of(table: pa.Table) -> dict[str, list[str]]:
    """By feature, every value in it."""
    features = table["features"].combine_chunks()
    found = {name: pc.unique(pc.struct_field(features, name)).to_pylist() for name in ("candidate_id", *SIZES)}
    return found | {"title": named("word", np.arange(WORDS)).to_pylist()}


def predict(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """`predict(batch_size=128)` of a plain tower over the first rows, which are in memory."""
    from plain_tfrs import PlainTower

    table = pq.read_table(folder / "entities" / "candidates", columns=["features"])
    vocabularies = vocabularies_of(table)
    model = ModelSection()
    tower = PlainTower(
        SCHEMA,
        "candidate",
        {name: name for name in vocabularies},
        vocabularies,
        feature_dim=model.feature_dim,
        hidden=model.candidate.hidden,
        dim=model.embedding_dim,
    )
    some = table.slice(0, arguments.predict_rows)
    features = some["features"].combine_chunks()
    tower.adapt(pa.table({"candidate": features}))
    inputs = {}
    for field in features.type:
        values = pc.struct_field(features, field.name).to_numpy(zero_copy_only=False)
        inputs[field.name] = values.astype("S" if pa.types.is_string(field.type) else np.float32)
    tower.predict({name: values[:1_280] for name, values in inputs.items()}, batch_size=128, verbose=0)
    cpu, began = time.process_time(), time.perf_counter()
    vectors = tower.predict(inputs, batch_size=128, verbose=0)
    seconds = time.perf_counter() - began
    return figures(len(vectors), seconds, time.process_time() - cpu)


def job(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """The whole job."""
    import tensorflow as tf

    from dataflow import embed
    from dataflow.embed.probing import share_cores

    share_cores()  # which the job itself can do only in a process that has not computed yet
    tf.constant(0) + 1  # what a process does once is no part of either run
    shutil.rmtree(folder / "out", ignore_errors=True)
    cpu, began = time.process_time(), time.perf_counter()
    tag = embed.run(
        tower=folder / "tower",
        entities=folder / "entities",
        output=folder / "out",
        side="candidate",
        model_version=V1,
        snapshot=1,
        run_id="r",
        section=EmbedSection(),
    )
    return figures(tag.rows, time.perf_counter() - began, time.process_time() - cpu)


def loaded(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """The job with a tower that is there."""
    from dataflow.embed import job as steps
    from dataflow.embed.probing import share_cores
    from lockstep.towers import Tower

    share_cores()
    tower = Tower(open_artifact(folder / "tower", Kind.CANDIDATE_TOWER, model_version=V1))
    steps.Tower = lambda artifact: tower  # type: ignore[assignment, misc, attr-defined]
    return job(folder, arguments)


def figures(rows: int, seconds: float, cpu: float) -> dict[str, Any]:
    return {
        "rows": rows,
        "seconds": seconds,
        "rows_per_second": rows / seconds,
        "cpu_us_per_row": 1e6 * cpu / rows,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


if __name__ == "__main__":
    main()
