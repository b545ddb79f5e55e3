"""The Beam transform and the job on a Beam runner give what the local job gives."""

from __future__ import annotations

from pathlib import Path

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.testing.test_pipeline import TestPipeline
from apache_beam.testing.util import assert_that

from dataflow.embed.beam import EmbedBatches, WorkerTower
from dataflow.embed.rows import entity_rows
from lockstep.errors import ConfigError
from lockstep.tags import Kind, open_artifact, read_tag
from tests.unit.test_embed import candidate, make_tower, run, write_entities
from tests.unit.test_embed_restart import contents


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tower(tmp_path_factory.mktemp("towers") / "candidate", Kind.CANDIDATE_TOWER)


@pytest.fixture(scope="module")
def entities(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = [candidate(f"c{number}", "x" * (number % 9), float(number % 5)) for number in range(50)]
    return write_entities(tmp_path_factory.mktemp("entities") / "entities", made, files=2, group=7)


def test_the_job_on_a_beam_runner_makes_the_same_files(tower: Path, entities: Path, tmp_path: Path) -> None:
    run(tower, entities, tmp_path / "local", shard_rows=8)
    tag = run(tower, entities, tmp_path / "beam", shard_rows=8, runner="DirectRunner", beam={"direct_num_workers": 2})
    assert len(list((tmp_path / "beam").glob("part-*"))) == 7
    assert contents(tmp_path / "beam") == contents(tmp_path / "local")
    assert tag.files == read_tag(tmp_path / "local").files


def test_an_option_that_beam_does_not_have_is_refused(tower: Path, entities: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\[embed\.beam\] max_num_worker: Beam has no such option; did you mean"):
        run(tower, entities, tmp_path / "out", runner="DirectRunner", beam={"max_num_worker": 2})


def test_the_transform_embeds_batches(tower: Path, entities: Path, tmp_path: Path) -> None:
    run(tower, entities, tmp_path / "local")
    [part] = (tmp_path / "local").glob("part-*")
    expected = sorted(pq.read_table(part).to_pylist(), key=lambda row: row["id"])
    rows = entity_rows(open_artifact(entities, Kind.ENTITIES), "candidate")
    batches = list(rows.read(str(entities), 0, 50, 9))

    def check(found: list[pa.RecordBatch]) -> None:
        assert len(found) == len(batches)
        made = sorted((row for batch in found for row in batch.to_pylist()), key=lambda row: row["id"])
        for one, other in zip(made, expected, strict=True):
            assert one.pop("embedding") == pytest.approx(other.pop("embedding"), abs=1e-6)
        assert made == expected

    with TestPipeline() as pipeline:
        worker = WorkerTower(str(tower), "candidate", 7, read_tag(tower).digest)
        assert_that(pipeline | beam.Create(batches) | EmbedBatches(worker), check)


def test_the_transform_checks_what_the_job_checks(tower: Path, entities: Path) -> None:
    rows = entity_rows(open_artifact(entities, Kind.ENTITIES), "candidate")
    [batch] = rows.read(str(entities), 0, 1, 1)
    nameless = batch.set_column(0, "id", pa.array([""]))
    worker = WorkerTower(str(tower), "candidate", 7, read_tag(tower).digest)
    pipeline = TestPipeline()
    pipeline | beam.Create([nameless]) | EmbedBatches(worker)
    with pytest.raises(Exception, match="an entity has no id"):
        pipeline.run().wait_until_finish()
