"""Writing candidates for Vertex AI Vector Search: json.dumps, orjson and fastavro a row, against Lockstep's writers.

    python benchmarks/index_export.py --rows 1000000 --output index-export.json

A row has an id, 64 float32 and, every second one, a namespace with one token. All are in memory and are written to one
file, which ends with fsync. The references hold ids, vectors and tokens as Python has them and make a record a row,
orjson of NumPy's floats; they write `--reference-rows`, for their time a row does not depend on how many there are.
`export` is the whole job: a Parquet artifact is checked, read and written. Each is run three times, in turns, and the
median counts.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import fastavro
import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lockstep.embeddings import RESTRICTS, VersionedEmbeddings, embedding_batch
from lockstep.tags import Kind, write_tag
from lockstep.version import ModelVersion
from serving.index.vector_search import FORMATS, FilesWriter, export_candidates, write_records
from serving.index.vector_search_avro import AVRO_SCHEMA

DIM = 64
BATCH = 65_536
REPEATS = 3
V1 = ModelVersion(1)
COMPARED = (
    ("lockstep json", "json.dumps"),
    ("lockstep json", "orjson"),
    ("lockstep avro", "fastavro"),
    ("lockstep json export", "json.dumps"),
    ("lockstep avro export", "fastavro"),
)


class Rows:
    """The candidates, as each writer takes them."""

    def __init__(self, count: int) -> None:
        vectors = np.random.default_rng(0).standard_normal((count, DIM)).astype(np.float32)
        self.vectors: NDArray[np.float32] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        self.ids = [f"candidate-{number}" for number in range(count)]
        self.tokens = [f"token-{number % 100}" if number % 2 else None for number in range(count)]
        self.batches = [self._batch(first) for first in range(0, count, BATCH)]

    def _batch(self, first: int) -> pa.RecordBatch:
        some = slice(first, first + BATCH)
        restricts = [[restrict(token)] if token else [] for token in self.tokens[some]]
        ids, digests = pa.array(self.ids[some]), pa.array(["0" * 64] * len(restricts))
        embeddings = VersionedEmbeddings(self.vectors[some], V1)
        return embedding_batch(Kind.CANDIDATE_EMBEDDINGS, ids, embeddings, digests, pa.array(restricts, RESTRICTS))

    def read(self) -> Iterator[tuple[pa.RecordBatch, NDArray[np.float32]]]:
        for number, batch in enumerate(self.batches):
            yield batch, self.vectors[number * BATCH : number * BATCH + len(batch)]

    def records(self, count: int, vector: Callable[[NDArray[np.float32]], Any]) -> Iterator[dict[str, Any]]:
        for row in range(min(count, len(self.ids))):
            record = {"id": self.ids[row], "embedding": vector(self.vectors[row])}
            if token := self.tokens[row]:
                record["restricts"] = [restrict(token)]
            yield record


def restrict(token: str) -> dict[str, Any]:
    return {"namespace": "genre", "allow": [token]}


def with_json(rows: Rows, count: int, folder: Path) -> None:
    with (folder / "rows.json").open("w", encoding="utf-8") as file:
        for record in rows.records(count, lambda vector: vector.tolist()):
            file.write(json.dumps(record) + "\n")
        sync(file)


def with_orjson(rows: Rows, count: int, folder: Path) -> None:
    options = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE
    with (folder / "rows.json").open("wb") as file:
        for record in rows.records(count, lambda vector: vector):
            file.write(orjson.dumps(record, option=options))
        sync(file)


def with_fastavro(rows: Rows, count: int, folder: Path) -> None:
    blanks = {"sparse_embedding": None, "restricts": None, "numeric_restricts": None, "crowding_tag": None}
    with (folder / "rows.avro").open("wb") as file:
        records = ({**blanks, **record} for record in rows.records(count, lambda vector: vector.tolist()))
        fastavro.writer(file, fastavro.parse_schema(AVRO_SCHEMA), records)
        sync(file)


def with_lockstep(rows: Rows, count: int, folder: Path, file_format: str) -> None:
    write_records(rows.read(), FilesWriter(folder, FORMATS[file_format], count, count, "seed"))


def sync(file: IO[Any]) -> None:
    file.flush()
    os.fsync(file.fileno())


def make_artifact(rows: Rows, folder: Path) -> None:
    folder.mkdir()
    pq.write_table(pa.Table.from_batches(rows.batches), folder / "part-00000-of-00001.parquet")
    kind = Kind.CANDIDATE_EMBEDDINGS
    write_tag(folder, kind, run="benchmark", schema="s", rows=len(rows.ids), model_version=V1, snapshot=1)


def check(folder: Path) -> None:
    """The fast writers' files say what the references' say."""
    rows = Rows(1_000)
    with_json(rows, 1_000, folder)
    expected = [as_float32(json.loads(line)) for line in (folder / "rows.json").read_text().splitlines()]
    with_lockstep(rows, 1_000, folder, "json")
    (written,) = folder.glob("part-*.json")
    assert [as_float32(json.loads(line)) for line in written.read_text().splitlines()] == expected
    with_fastavro(rows, 1_000, folder)
    with_lockstep(rows, 1_000, folder, "avro")
    (written,) = folder.glob("part-*.avro")
    found, wanted = (list(fastavro.reader(io.BytesIO(path.read_bytes()))) for path in (written, folder / "rows.avro"))
    assert found == wanted


def as_float32(record: dict[str, Any]) -> dict[str, Any]:
    return {**record, "embedding": np.array(record["embedding"], np.float32).tolist()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--reference-rows", type=int, default=100_000)
    parser.add_argument("--output", type=Path, help="where to write the figures as JSON")
    arguments = parser.parse_args()
    work = Path(tempfile.mkdtemp())
    try:
        result = measure(arguments.rows, min(arguments.rows, arguments.reference_rows), work)
    finally:
        shutil.rmtree(work)
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def measure(count: int, few: int, work: Path) -> dict[str, Any]:
    (work / "check").mkdir()
    check(work / "check")
    rows = Rows(count)
    make_artifact(rows, work / "artifact")
    runs: dict[str, tuple[int, Callable[[Path], object]]] = {
        "json.dumps": (few, lambda folder: with_json(rows, few, folder)),
        "orjson": (few, lambda folder: with_orjson(rows, few, folder)),
        "fastavro": (few, lambda folder: with_fastavro(rows, few, folder)),
        "lockstep json": (count, lambda folder: with_lockstep(rows, count, folder, "json")),
        "lockstep avro": (count, lambda folder: with_lockstep(rows, count, folder, "avro")),
        "lockstep json export": (count, lambda folder: export(work, folder, "json")),
        "lockstep avro export": (count, lambda folder: export(work, folder, "avro")),
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    cpu_seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(REPEATS):
        for name, (_, run) in runs.items():
            folder = work / f"{name} {turn}"
            folder.mkdir()
            began, cpu = time.perf_counter(), time.process_time()
            run(folder)
            seconds[name].append(time.perf_counter() - began)
            cpu_seconds[name].append(time.process_time() - cpu)
            shutil.rmtree(folder)
    counts = {name: of for name, (of, _) in runs.items()}
    result = {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, load {os.getloadavg()[0]:.1f}",
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "rows": counts,
        "dim": DIM,
        "by_clock": rates(counts, seconds),
        "by_cpu": rates(counts, cpu_seconds),
    }
    show(result)
    return result


def export(work: Path, folder: Path, file_format: str) -> None:
    export_candidates(work / "artifact", folder / "out", file_format, model_version=V1)


def rates(counts: dict[str, int], seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Rows a second, of the medians, and how many times those of the references they are."""
    of = {name: round(counts[name] / statistics.median(all_)) for name, all_ in seconds.items()}
    ratios = {f"{ours} / {theirs}": round(of[ours] / of[theirs], 1) for ours, theirs in COMPARED}
    return {"rows_per_second": of, "ratios": ratios, "seconds": seconds}


def show(result: dict[str, Any]) -> None:
    clock, cpu = result["by_clock"], result["by_cpu"]
    print(result["machine"])
    for name, rate in clock["rows_per_second"].items():
        print(f"{name:40} {rate:>10,} rows/s {cpu['rows_per_second'][name]:>10,} rows/CPU s")
    for name, ratio in clock["ratios"].items():
        print(f"{name:40} {ratio:>10} times   {cpu['ratios'][name]:>10} times by CPU")


if __name__ == "__main__":
    main()
