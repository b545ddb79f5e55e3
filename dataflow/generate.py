"""The data step: from a source to training records, evaluation queries, preprocessing and entities.

The artifact `examples`:

    <artifact>/                                       kind examples; rows = training examples
      train/part-00000-of-00004.tfrecord.gz           tf.Example: candidate_index, past (candidate indices + 1, oldest
                                                      first, padded with 0), query/<feature> and candidate/<feature>
                                                      (encoded) of those that `candidates` has not, age_days,
                                                      weight
      labels.parquet                                  candidate (index), age_hours, examples: how many examples have
                                                      it as their label, by age in whole hours
      candidates/*.npy                                the encoded candidates by index: see dataflow.known
      interactions.parquet                            query (a number), candidate (index), age_days: the training
                                                      events of at most about 20 M, by entity, for the baselines
      validation/part-*.parquet, test/part-*.parquet  id, features, history: list<string>, targets: list<string>,
                                                      cold: training has not seen the entity
      catalogue.parquet                               row number = candidate_index: id, count, popular_30d,
                                                      popular_30d_validation, known_before_validation
      features.json                                   see dataflow.encoded
      validation_candidates/, test_candidates/        part-*.parquet: id, features, in the catalogue's order, as of the
                                                      split's cut; only where a candidate feature counts events
      report.json                                     rows of every stage, cuts, features, advice, leak checks
      report.html                                     the same for a person
      dead_letters.jsonl                              see dataflow.dead_letters
      schema.json
      tag.json

The other two are drawn in dataflow.preprocessing and dataflow.entities.
"""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from dataflow.dead_letters import DeadLetters
from dataflow.encoded import Learned, encoded_features, features_json
from dataflow.entities import write_entities
from dataflow.evaluation_queries import write_evaluation
from dataflow.interactions import prepare_events
from dataflow.sample import with_features
from dataflow.sources import SourceCounts, read_tables
from dataflow.split import Cuts, find_cuts
from dataflow.stages import Stage
from dataflow.training import KNOWN, TrainingRows, write_training_rows
from dataflow.warehouse import Warehouse, open_warehouse
from lockstep.config import DataSection
from lockstep.errors import DataError
from lockstep.schema import Schema
from lockstep.storage import bucket_uri, fresh_directory
from lockstep.tags import Kind, Tag, write_tag

if TYPE_CHECKING:
    from dataflow.examples import WrittenExamples

_log = logging.getLogger(__name__)


def run(*, examples: Path, preprocessing: Path, entities: Path, run_id: str, data: DataSection, schema: Schema) -> Tag:
    """Make everything that training, evaluation and embedding read.

    The artifacts are finished in the order preprocessing, entities, examples: where there are examples, there is
    all that they were made with.

    Args:
        examples: folder of the artifact `examples`.
        preprocessing: folder of the artifact `preprocessing`.
        entities: folder of the artifact `entities`.
        run_id: the run that the tags name.

    Returns:
        The tag of the examples.

    Raises:
        DataError: the source cannot be read, too many rows are bad, a split is empty, or rows have vanished.
        SchemaError: a feature's column is missing or of the wrong type.
        ConfigError: an option that Beam does not take, or a runner whose workers cannot see the output.
    """
    from dataflow.beam_options import pipeline_options
    from dataflow.worker_files import seen_by_workers

    # Before anything is read or paid for.
    pipeline_options(data.runner, data.beam, run_id)
    seen_by_workers(examples, data.runner)
    job = _Job(fresh_directory(examples), fresh_directory(preprocessing), fresh_directory(entities), data, schema)
    # Beside the output, on the same disk; a crashed attempt's is replaced.
    work = fresh_directory(examples.parent / f".{examples.name}.work")
    try:
        with _local(work) as local:
            with DeadLetters(examples / "dead_letters.jsonl") as dead_letters:
                job.read(dead_letters, work, local, run_id)
            job.encode(work, local, run_id)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return job.finish(run_id)


@dataclass
class _Job:
    """One execution: its outputs, and what the report will say."""

    examples: Path
    preprocessing: Path
    entities: Path
    data: DataSection
    schema: Schema

    def __post_init__(self) -> None:
        self.stages: list[Stage] = []
        self.report: dict[str, Any] = {}
        self.training = TrainingRows([], 0, 0, 0)
        self.rows = {"entities": 0}
        self.learned = Learned({}, {})

    def read(self, dead_letters: DeadLetters, work: Path, local: Path, run_id: str) -> None:
        """Everything that needs the warehouse."""
        with open_warehouse(self.data, local, run_id) as warehouse:
            with _timed("reading the source"):
                counts = read_tables(self.data, warehouse, dead_letters, local)
                self.stages.append(_source_stage(counts))
                dead_letters.check_share(self.data, counts.rows_in)
            with _timed("ordering events"):
                self.stages += prepare_events(warehouse, self.data, dead_letters, work)
                dead_letters.check_share(self.data, max(counts.rows_in, 1))
                cuts = find_cuts(warehouse, self.data)
            with _timed("making training rows"):
                self.training = write_training_rows(warehouse, self.schema, self.data, cuts, self.examples, work)
                self.stages += self.training.stages
            with _timed("making evaluation queries"):
                self._evaluation(warehouse, cuts, work)
            with _timed("writing entities"):
                self.rows["entities"] = sum(write_entities(warehouse, self.schema, cuts, self.entities, work))
            with _timed("learning vocabularies"):
                from dataflow.vocabulary import learn

                self.learned = learn(warehouse, self.schema, work)
            self.report["warehouse"] = warehouse.usage.to_json()
        self.report["cuts"] = {
            name: getattr(cuts, name).isoformat() for name in ("validation_from", "test_from", "newest")
        }

    def encode(self, work: Path, local: Path, run_id: str) -> None:
        """Build preprocessing, and encode the training rows with it."""
        from dataflow.encoding import load_modules
        from dataflow.known import encode_counted, encode_known
        from dataflow.preprocessing import save_preprocessing

        with _timed("building preprocessing"):
            save_preprocessing(self.preprocessing, self.schema, self.learned)
        with _timed("encoding known candidates"):
            modules = load_modules(self.preprocessing)
            known = local / "known"
            encode_known(work / KNOWN, known, self.schema, modules, self.training.candidates)
            if self.schema.counts("candidate"):
                as_of_cut = self.examples / "validation_candidates"
                encode_counted(as_of_cut, known, self.schema, modules, self.training.candidates)
            shutil.copytree(known, self.examples / "candidates")
        written = self._records(work, run_id)
        self.stages.append(Stage("training records", self.training.examples, written.records).check())
        with _timed("reporting on features"):
            self._report(with_features(written.sample, work / KNOWN, self.schema), written.counters)

    def _records(self, work: Path, run_id: str) -> WrittenExamples:
        from dataflow.examples import ExamplesPlan, write_examples

        encoded = encoded_features(self.schema, self.learned.vocabularies)
        (self.examples / "features.json").write_bytes(features_json(encoded))
        training = self.training
        plan = ExamplesPlan(
            schema=self.schema.to_json(),
            encoded=encoded,
            candidates=training.candidates,
            shards=training.shards,
            rows=training.examples,
        )
        (self.examples / "train").mkdir()
        with _timed("writing training records"):
            return write_examples(
                work / "training",
                self.examples / "candidates",
                self.preprocessing,
                self.examples / "train",
                plan,
                runner=self.data.runner,
                options=self.data.beam,
                run_id=run_id,
            )

    def _report(self, sample: pa.Table, counters: Mapping[str, int]) -> None:
        """Write report.json and report.html.

        Raises:
            DataError: a leak check found a leak.
        """
        from dataflow import feature_report

        self.report |= {
            "stages": [stage.to_json() for stage in self.stages],
            "vocabularies": {table: len(values) for table, values in self.learned.vocabularies.items()},
            "statistics": {
                "/".join(name): {"mean": of.mean, "deviation": of.deviation}
                for name, of in self.learned.statistics.items()
            },
        }
        report = feature_report.build(
            self.report,
            schema=self.schema,
            data=self.data,
            learned=self.learned,
            counters=counters,
            sample=sample,
            artifacts=feature_report.Artifacts(self.examples, self.preprocessing, self.entities),
        )
        (self.examples / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        (self.examples / "report.html").write_text(feature_report.render(report), encoding="utf-8")
        feature_report.log_summary(report)
        feature_report.refuse_leaks(report["leaks"])

    def finish(self, run_id: str) -> Tag:
        """Write the three tags, the examples' last."""
        digest = self.schema.digest
        (self.examples / "schema.json").write_bytes(self.schema.to_json())
        entries = sum(len(values) for values in self.learned.vocabularies.values())
        made_of = write_tag(self.preprocessing, Kind.PREPROCESSING, run=run_id, schema=digest, rows=entries)
        write_tag(self.entities, Kind.ENTITIES, run=run_id, schema=digest, rows=self.rows["entities"])
        return write_tag(
            self.examples,
            Kind.EXAMPLES,
            run=run_id,
            schema=digest,
            rows=self.training.examples,
            inputs={"preprocessing": made_of},
        )

    def _evaluation(self, warehouse: Warehouse, cuts: Cuts, work: Path) -> None:
        sizes = {}
        for split in ("validation", "test"):
            destination = self.examples / split
            stages = write_evaluation(warehouse, self.schema, self.data, cuts, split, destination, work)
            self.stages += stages
            sizes[split] = stages[0].used
            _refuse_empty(split, stages[0], self.data, cuts)
        self.report["splits"] = {"train": self.training.examples, **sizes}


def _refuse_empty(split: str, stage: Stage, data: DataSection, cuts: Cuts) -> None:
    unwanted = data.validation_share == 0 and data.holdout_share == 0 and data.validation_from is None
    if stage.used or (split == "validation" and unwanted):
        return
    cut = cuts.validation_from if split == "validation" else cuts.test_from
    keys = "validation_from, validation_share or holdout_share" if split == "validation" else "test_from or test_share"
    raise DataError(
        f"the {split} split is empty: of {stage.rows_in} entities, none has a usable target after {cut} "
        f"({dict(stage.filtered)}): change [data] {keys}, or lower seed_events"
    )


def _source_stage(counts: SourceCounts) -> Stage:
    return Stage("source", counts.rows_in, counts.rows_written, counts.dead_lettered).check()


@contextmanager
def _local(work: Path) -> Iterator[Path]:
    """A folder on this machine's disk: a mounted bucket is no place for a database or for files that are mapped."""
    if not bucket_uri(work):
        yield work
        return
    with tempfile.TemporaryDirectory(prefix="lockstep-") as folder:
        yield Path(folder)


@contextmanager
def _timed(what: str) -> Iterator[None]:
    started = time.monotonic()
    _log.info("%s ...", what)
    yield
    _log.info("%s took %.1f s", what, time.monotonic() - started)
