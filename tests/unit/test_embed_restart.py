"""A job that was killed, and one that several workers share, give the artifact of one that ran through."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from dataflow.embed import batches, embed_shards
from lockstep.config import EmbedSection
from lockstep.errors import StorageError
from lockstep.storage import UNFINISHED
from lockstep.tags import Kind, open_artifact
from tests.unit.test_embed import V7, candidate, make_tower, run, write_entities

CONFIG = """
[schema.query.history]
type = "id_sequence"
columns = ["history.candidate_id"]
max_length = 4
[schema.candidate.title]
type = "text"
[embed]
batch_size = 64
shard_rows = 4
"""


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tower(tmp_path_factory.mktemp("towers") / "candidate", Kind.CANDIDATE_TOWER)


def entities_of(root: Path, rows: int) -> Path:
    made = [candidate(f"c{number}", "x" * (number % 9), float(number % 5)) for number in range(rows)]
    return write_entities(root / "entities", made, files=2, group=7)


def contents(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in output.iterdir() if path.name != "tag.json"}


def worker(tower: Path, entities: Path, output: Path, number: int, workers: int) -> subprocess.Popen[bytes]:
    config = output.parent / "config.toml"
    config.write_text(CONFIG)
    line = [sys.executable, "-m", "dataflow.embed", "--tower", tower, "--entities", entities, "--output", output]
    line += ["--side", "candidate", "--model-version", "7", "--snapshot", "2", "--config", config]
    line += ["--worker", str(number), "--workers", str(workers)]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def test_a_killed_job_goes_on_after_its_last_whole_file(tower: Path, tmp_path: Path) -> None:
    entities = entities_of(tmp_path, 4_000)
    run(tower, entities, tmp_path / "whole", shard_rows=4)
    output = tmp_path / "out"
    process = worker(tower, entities, output, 0, 1)
    while process.poll() is None and len(list(output.glob("part-*"))) < 20:
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    finished = {path.name: path.stat().st_mtime_ns for path in output.glob("part-*")}
    assert 20 <= len(finished) < 1_000
    tag = run(tower, entities, output, shard_rows=4)
    assert {name: (output / name).stat().st_mtime_ns for name in finished} == finished
    assert contents(output) == contents(tmp_path / "whole")
    assert tag.rows == 4_000
    assert open_artifact(output, Kind.CANDIDATE_EMBEDDINGS, model_version=V7, snapshot=2).tag == tag


def test_workers_share_the_files_out_and_one_call_finishes(tower: Path, tmp_path: Path) -> None:
    entities = entities_of(tmp_path, 50)
    run(tower, entities, tmp_path / "whole", shard_rows=4)
    output = tmp_path / "out"
    processes = [worker(tower, entities, output, number, 3) for number in range(3)]
    said = [process.communicate()[0].decode() for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], said
    assert [f"worker {n} of 3 made {made} files" in said[n] for n, made in enumerate((5, 4, 4))] == [True] * 3, said
    before = {path.name: path.stat().st_mtime_ns for path in output.glob("part-*")}
    run(tower, entities, output, shard_rows=4)
    assert {path.name: path.stat().st_mtime_ns for path in output.glob("part-*")} == before
    assert contents(output) == contents(tmp_path / "whole")


def test_a_job_makes_only_what_is_missing(tower: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entities = entities_of(tmp_path, 10)
    common = {"tower": tower, "entities": entities, "output": tmp_path / "out", "side": "candidate"}
    section = EmbedSection(batch_size=64, shard_rows=4)
    made = embed_shards(**common, model_version=V7, snapshot=2, section=section, worker=1, workers=2)  # type: ignore[arg-type]
    assert (made, [path.name[:10] for path in (tmp_path / "out").glob("part-*")]) == (1, ["part-00001"])
    embedded = []
    encode = batches.BatchEmbedder.encode
    monkeypatch.setattr(
        batches.BatchEmbedder, "encode", lambda self, rows: embedded.extend(rows[0].to_pylist()) or encode(self, rows)
    )
    run(tower, entities, tmp_path / "out", shard_rows=4)
    # c0, c2 ... c8 are in the first file of the entities, c1, c3 ... in the second; the middle shard was there.
    assert embedded == ["c0", "c2", "c4", "c6", "c7", "c9"]


@pytest.mark.parametrize("change", [{"snapshot": 3}, {"dtype": "float16"}, {"shard_rows": 5}, {"batch_size": 2}])
def test_files_of_another_job_are_replaced(tower: Path, tmp_path: Path, change: dict[str, object]) -> None:
    entities = entities_of(tmp_path, 10)
    output = tmp_path / "out"
    section = EmbedSection(batch_size=64, shard_rows=4)
    common = {"tower": tower, "entities": entities, "output": output, "side": "candidate", "model_version": V7}
    embed_shards(**common, snapshot=2, section=section, worker=0, workers=2)  # type: ignore[arg-type]
    wrong = output / "part-00000-of-00003.parquet"
    wrong.write_bytes(b"of another job")
    run(tower, entities, output, **{"shard_rows": 4} | change)  # type: ignore[arg-type]
    assert sum(pq.read_metadata(path).num_rows for path in output.glob("part-*")) == 10


def test_entities_or_towers_that_were_made_anew_are_another_job(tower: Path, tmp_path: Path) -> None:
    common = {"output": tmp_path / "out", "side": "candidate", "model_version": V7, "snapshot": 2}
    section = EmbedSection(batch_size=64, shard_rows=4)
    first = entities_of(tmp_path / "first", 10)
    embed_shards(**common, tower=tower, entities=first, section=section, worker=0, workers=1)  # type: ignore[arg-type]
    other = write_entities(tmp_path / "second" / "entities", [candidate(f"d{number}") for number in range(10)])
    run(tower, other, tmp_path / "out", shard_rows=4)
    parts = sorted((tmp_path / "out").glob("part-*"))
    assert [row for part in parts for row in pq.read_table(part)["id"].to_pylist()] == [f"d{n}" for n in range(10)]


def test_a_worker_refuses_a_folder_that_is_not_of_its_job(tower: Path, tmp_path: Path) -> None:
    entities = entities_of(tmp_path, 10)
    common = {"tower": tower, "entities": entities, "output": tmp_path / "out", "side": "candidate"}
    section = EmbedSection(batch_size=64)
    embed_shards(**common, model_version=V7, snapshot=2, section=section, worker=0, workers=1)  # type: ignore[arg-type]
    with pytest.raises(StorageError, match="holds what is not of this job: remove it"):
        embed_shards(**common, model_version=V7, snapshot=3, section=section, worker=0, workers=1)  # type: ignore[arg-type]
    assert len(list((tmp_path / "out").glob("part-*"))) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["entities", "out"]


def test_a_batch_size_that_was_found_stays_for_the_rest_of_the_job(tower: Path, tmp_path: Path) -> None:
    entities = entities_of(tmp_path, 10)
    common = {"tower": tower, "entities": entities, "output": tmp_path / "out", "side": "candidate"}
    section = EmbedSection(shard_rows=4)
    embed_shards(**common, model_version=V7, snapshot=2, section=section, worker=0, workers=2)  # type: ignore[arg-type]
    settled = tmp_path / "out" / ".batch_size"
    assert int(settled.read_text()) >= 1_024
    settled.write_text("3")
    embed_shards(**common, model_version=V7, snapshot=2, section=section, worker=1, workers=2)  # type: ignore[arg-type]
    assert settled.read_text() == "3"
    run(tower, entities, tmp_path / "out", batch_size=None, shard_rows=4)
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    parts = [f"part-{n:05d}-of-00003.parquet" for n in range(3)]
    assert names == ["canaries.parquet", *parts, "tag.json"]
    assert not (tmp_path / "out" / UNFINISHED).exists()
