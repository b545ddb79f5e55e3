"""The parts of batch embedding by themselves: ranges of rows, the batch size, float16, canaries."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataflow.embed import probing
from dataflow.embed.__main__ import main as worker
from dataflow.embed.batches import BatchTower
from dataflow.embed.rows import EntityRows, entity_rows
from lockstep.embeddings import VersionedEmbeddings, read_embeddings
from lockstep.errors import EmbeddingError, IncompleteArtifactError
from lockstep.tags import Kind, open_artifact, read_tag
from tests.unit.test_embed import V7, candidate, make_tower, run, write_entities


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tower(tmp_path_factory.mktemp("towers") / "candidate", Kind.CANDIDATE_TOWER)


def test_any_range_of_rows_can_be_read(tmp_path: Path) -> None:
    write_entities(tmp_path / "entities", [candidate(f"c{number}") for number in range(23)], files=3, group=3)
    rows = entity_rows(open_artifact(tmp_path / "entities", Kind.ENTITIES), "candidate")
    assert [file.groups for file in rows.files] == [(3, 3, 2), (3, 3, 2), (3, 3, 1)]
    ids = [f"c{number}" for first in range(3) for number in range(first, 23, 3)]

    def read(start: int, stop: int, size: int) -> list[str]:
        found = list(rows.read(str(tmp_path / "entities"), start, stop, size))
        assert all(0 < len(batch) <= size for batch in found)
        return [row for batch in found for row in batch.column("id").to_pylist()]

    for start in range(23):
        for stop in range(start, 24):
            assert read(start, stop, 100) == ids[start:stop]
            assert read(start, stop, 2) == ids[start:stop]


def test_row_groups_outside_a_range_are_not_read(tmp_path: Path) -> None:
    write_entities(tmp_path / "entities", [candidate(f"c{number}") for number in range(8)], files=2, group=2)
    rows = entity_rows(open_artifact(tmp_path / "entities", Kind.ENTITIES), "candidate")
    opened: list[str] = []

    def note(address: str) -> str:
        opened.append(Path(address).name)
        return address

    assert sum(map(len, rows.read(str(tmp_path / "entities"), 5, 7, 9, note))) == 2
    assert opened == ["part-00001.parquet"]
    assert EntityRows("candidate", rows.files[:1]).rows == 4


@pytest.mark.parametrize(
    ("rates", "best"),
    [
        ({1024: 100, 2048: 150, 4096: 200, 8192: 205}, 4096),  # 2.5 % more is not worth it
        ({1024: 100, 2048: 104}, 1024),
        ({1024: 100, 2048: 106, 4096: 106}, 2048),
    ],
)
def test_the_batch_grows_as_long_as_that_pays(rates: dict[int, float], best: int) -> None:
    assert probing.fastest(rates.__getitem__, lambda: True) == (best, rates[best])


def test_the_batch_does_not_grow_beyond_memory() -> None:
    sizes: list[int] = []
    found = probing.fastest(lambda size: sizes.append(size) or 1.0 * size, lambda: len(sizes) < 3)
    assert (found, sizes) == ((4096, 4096.0), [1024, 2048, 4096])


@pytest.mark.parametrize(("most", "best"), [(3_000, 2048), (700, 512), (1, 1)])
def test_a_batch_that_finds_no_memory_is_not_taken(most: int, best: int) -> None:
    def rate(size: int) -> float:
        if size > most:
            raise MemoryError
        return float(size)

    assert probing.fastest(rate, lambda: True)[0] == best


def test_errors_that_are_not_of_memory_are_not_swallowed() -> None:
    with pytest.raises(ZeroDivisionError):
        probing.fastest(lambda size: size / 0, lambda: True)


@pytest.mark.parametrize(("taken", "free", "room"), [(100, 400, True), (101, 400, False), (0, 0, True)])
def test_room_is_twice_what_batches_took_in_half_of_what_is_free(
    monkeypatch: pytest.MonkeyPatch, taken: int, free: int, room: bool
) -> None:
    peaks = iter([1_000, 1_000 + taken])
    monkeypatch.setattr(probing, "_peak", lambda: next(peaks))
    monkeypatch.setattr(probing, "_free", lambda: free)
    assert probing.MemoryMeter().has_room() is room


def test_a_tower_that_runs_out_of_memory_goes_on_with_smaller_batches() -> None:
    tf = pytest.importorskip("tensorflow")
    sizes: list[int] = []

    def embed_encoded(encoded: dict[str, np.ndarray]) -> VersionedEmbeddings:
        sizes.append(len(encoded["x"]))
        if sizes[-1] > 3:
            raise tf.errors.ResourceExhaustedError(None, None, "no memory")
        return VersionedEmbeddings(encoded["x"].astype(np.float32), V7)

    stub: Any = SimpleNamespace(
        schema=SimpleNamespace(features=lambda side: {}), side="query", model_version=V7, embed_encoded=embed_encoded
    )
    tower = BatchTower(stub, 8)
    rows = np.arange(20).reshape(10, 2)
    np.testing.assert_array_equal(tower.embed({"x": rows}).vectors, rows)
    assert (sizes, tower.batch_size) == ([8, 4, 2, 2, 2, 2, 2], 2)


def test_a_batch_size_that_is_left_open_is_found_and_said(
    tower: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    entities = write_entities(tmp_path / "entities", [candidate("a"), candidate("b")])
    with caplog.at_level("INFO", logger="dataflow.embed"):
        run(tower, entities, tmp_path / "out", batch_size=None)
    assert "batches of " in caplog.text
    assert "rows on the CPU" in caplog.text or "rows on " in caplog.text


def test_float16_takes_half_the_room_and_reads_as_float32(tower: Path, tmp_path: Path) -> None:
    made = [candidate(f"c{number}", "t" * number, float(number % 5)) for number in range(20)]
    entities = write_entities(tmp_path / "entities", made)
    vectors = {}
    for dtype in ("float32", "float16"):
        run(tower, entities, tmp_path / dtype, dtype=dtype)
        artifact = open_artifact(tmp_path / dtype, Kind.CANDIDATE_EMBEDDINGS)
        [(batch, embeddings)] = read_embeddings(artifact)
        assert batch.schema.field("embedding").type == pa.list_(getattr(pa, dtype)(), 3)
        assert embeddings.vectors.dtype == np.float32
        vectors[dtype] = embeddings.vectors
    np.testing.assert_array_equal(vectors["float16"], vectors["float32"].astype(np.float16).astype(np.float32))
    assert (vectors["float16"] != vectors["float32"]).any()


def test_length_is_checked_as_it_is_on_disk(tmp_path: Path) -> None:
    entities = write_entities(tmp_path / "entities", [candidate("a")])
    long = make_tower(tmp_path / "long", Kind.CANDIDATE_TOWER, length=1.0015)
    run(long, entities, tmp_path / "out", dtype="float16")
    with pytest.raises(EmbeddingError, match="1 vectors are not of length 1"):
        run(long, entities, tmp_path / "out32")
    longer = make_tower(tmp_path / "longer", Kind.CANDIDATE_TOWER, length=1.003)
    with pytest.raises(EmbeddingError, match="1 vectors are not of length 1"):
        run(longer, entities, tmp_path / "out", dtype="float16")


def test_a_vector_of_no_length_is_refused(tmp_path: Path) -> None:
    none = make_tower(tmp_path / "none", Kind.CANDIDATE_TOWER, length=0.0)
    entities = write_entities(tmp_path / "entities", [candidate("a")])
    with pytest.raises(EmbeddingError, match=r"1 vectors are not of length 1 \(such as 'a'\)"):
        run(none, entities, tmp_path / "out")


def test_canaries_are_the_rows_of_the_smallest_digests(tower: Path, tmp_path: Path) -> None:
    made = [candidate(f"c{number}", "t" * (number % 7), float(number)) for number in range(40)]
    entities = write_entities(tmp_path / "entities", made)
    for shard_rows in (7, 100):
        output = tmp_path / f"out{shard_rows}"
        run(tower, entities, output, shard_rows=shard_rows)
        rows = [row for part in sorted(output.glob("part-*")) for row in pq.read_table(part).to_pylist()]
        expected = sorted(rows, key=lambda row: row["feature_digest"])[:16]
        canaries = sorted(pq.read_table(output / "canaries.parquet").to_pylist(), key=lambda row: row["feature_digest"])
        features = {row["id"]: row["features"] for row in made}
        assert canaries == [
            {name: row[name] for name in ("id", "embedding", "feature_digest")} | {"features": features[row["id"]]}
            for row in expected
        ]
        assert "canaries.parquet" in read_tag(output).files


def test_vectors_that_serving_would_not_make_are_refused(tmp_path: Path) -> None:
    skewed = make_tower(tmp_path / "skewed", Kind.CANDIDATE_TOWER, skew=0.01)
    entities = write_entities(tmp_path / "entities", [candidate("a"), candidate("b", "cd", 3.0)])
    with pytest.raises(EmbeddingError, match=r"serving makes vectors that differ by .*e-03 \(such as 'a'|'b'"):
        run(skewed, entities, tmp_path / "out")
    with pytest.raises(IncompleteArtifactError):
        read_tag(tmp_path / "out")


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"worker": "0", "workers": "0"}, "--worker 0 of --workers 0: expected one of them, from 0"),
        ({"worker": "2", "workers": "2"}, "--worker 2 of --workers 2"),
        ({"model-version": "0"}, "a model version is written like v7, found '0'"),
        ({}, "Error: there is no configuration file nope.toml"),
    ],
)
def test_mistakes_of_a_worker_are_sentences(
    given: dict[str, str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"tower": "t", "entities": "e", "output": "o", "side": "query", "config": "nope.toml"}
    options |= {"model-version": "v1", "worker": "0", "workers": "1"} | given
    with pytest.raises(SystemExit):
        worker([part for name, value in options.items() for part in (f"--{name}", value)])
    assert sentence in capsys.readouterr().err
