"""LMDB against SQLite for the embedded store: 64 floats, 7 versions written, the last 5 read.

    python benchmarks/kv.py [entities]

Both hold the same values under the same keys. LMDB has a database a version, SQLite (WAL) a table a version with the
id as its primary key. Written in batches of 10,000, read one entity at a time.
"""

from __future__ import annotations

import shutil
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from lockstep.embeddings import VersionedEmbeddings
from lockstep.version import ModelVersion
from serving.kv.embedded import EmbeddedStore
from serving.kv.store import decode_value, encode_key, encode_values

DIM = 64
VERSIONS = range(1, 8)
KEEP = 5
BATCH = 10_000
READS = 20_000


def main(entities: int) -> None:
    generator = np.random.default_rng(0)
    ids = [f"entity-{number:09d}" for number in generator.permutation(entities)]
    vectors = generator.standard_normal((entities, DIM)).astype(np.float32)
    wanted = [ids[row] for row in generator.integers(0, entities, READS)]
    print(f"{entities} entities, {DIM} floats, {len(VERSIONS)} versions written, last {KEEP} read")
    for name, run in {"lmdb (serving.kv.embedded)": lmdb, "sqlite (WAL)": sqlite}.items():
        directory = Path(tempfile.mkdtemp())
        try:
            puts, gets = run(directory, ids, vectors, wanted)
            size = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file()) / 1e6
            print(f"{name:28} {puts:10,.0f} put/s {gets:10,.0f} get of {KEEP} versions/s {size:8,.0f} MB")
        finally:
            shutil.rmtree(directory)


def lmdb(directory: Path, ids: list[str], vectors: np.ndarray, wanted: list[str]) -> tuple[float, float]:
    store = EmbeddedStore(directory, keep=KEEP, create=True)

    def write() -> None:
        for version in VERSIONS:
            load = store.begin(ModelVersion(version), 1, DIM, "", "tower")
            for first in range(0, len(ids), BATCH):
                rows = VersionedEmbeddings(vectors[first : first + BATCH], ModelVersion(version))
                load.put_many(ids[first : first + BATCH], rows)
            load.publish(len(ids))

    def read() -> None:
        for one in wanted:
            assert len(store.get(one)) == KEEP

    rates = per_second(len(ids) * len(VERSIONS), write), per_second(len(wanted), read)
    store.close()
    return rates


def sqlite(directory: Path, ids: list[str], vectors: np.ndarray, wanted: list[str]) -> tuple[float, float]:
    database = sqlite3.connect(directory / "kv.sqlite", isolation_level=None)
    database.execute("PRAGMA journal_mode = WAL")

    def write() -> None:
        for version in VERSIONS:
            database.execute(f"CREATE TABLE v{version} (id BLOB PRIMARY KEY, value BLOB) WITHOUT ROWID")
            for first in range(0, len(ids), BATCH):
                keys = [encode_key(one) for one in ids[first : first + BATCH]]
                rows = VersionedEmbeddings(vectors[first : first + BATCH], ModelVersion(version))
                database.execute("BEGIN")
                pairs = zip(keys, encode_values(keys, rows), strict=True)
                database.executemany(f"INSERT OR REPLACE INTO v{version} VALUES (?, ?)", sorted(pairs))
                database.execute("COMMIT")

    def read() -> None:
        for one in wanted:
            key = encode_key(one)
            for version in VERSIONS[-KEEP:]:
                value = database.execute(f"SELECT value FROM v{version} WHERE id = ?", (key,)).fetchone()[0]
                decode_value(key, value, ModelVersion(version), DIM, directory)

    rates = per_second(len(ids) * len(VERSIONS), write), per_second(len(wanted), read)
    database.close()
    return rates


def per_second(count: int, work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return count / (time.perf_counter() - start)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)
