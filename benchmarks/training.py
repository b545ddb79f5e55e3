"""Training speed against a plain TFRS implementation: examples a second, and time to the same validation recall.

    python benchmarks/training.py --output training.json

Playlists are generated (configs/demo.toml, larger), and the data step makes our records; the same training rows, as raw
features, become the records of the plain implementation (benchmarks/plain_tfrs.py). Both have the same features,
vocabularies, widths and batch size, and the optimizer that their users give them (Adagrad, Adam by rows); both are
measured on the same validation queries, exactly over the same candidates. Epochs of one and of the other alternate, so
that a slow minute of the machine slows both. A rate is the median over epochs, from opening the files to the last
step, or over windows of steps, which leave out what comes before the second window: reading, filling the shuffle
buffer (as many records for both), building the graph. Then a model with the configuration's own [train] is trained
until it reaches the recall at which the plain implementation ended.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")

import numpy as np
import pyarrow.parquet as pq
import tensorflow as tf
from plain_tfrs import PlainModel, PlainTower, filled_value, read_records, write_records

from dataflow import generate
from dataflow.dead_letters import DeadLetters
from dataflow.interactions import prepare_events
from dataflow.sample import with_features
from dataflow.sources import read_tables
from dataflow.split import find_cuts
from dataflow.training import KNOWN, write_training_rows
from dataflow.warehouse import open_warehouse
from lockstep.config import Config, load_config
from lockstep.model_sections import EvaluateSection, TrainSection
from lockstep.tags import Artifact, Kind, open_artifact
from trainer.encoding import EncodedFeatures, check_same_features
from trainer.evaluation.measures import measure
from trainer.evaluation.queries import candidate_features, read_catalogue, read_queries
from trainer.evaluation.ranking import Only, Products
from trainer.input_pipeline import TrainingRecords, open_training_records
from trainer.optimizer import build_optimizer
from trainer.towers import build_towers
from trainer.two_tower import TwoTowerModel
from trainer.validation import Validation, open_validation

WINDOW = 20
"""Steps that one figure of the rate is taken over."""
SECTION = EvaluateSection(ks=(100,), bootstrap=0)


def make_data(config: Config, work: Path) -> tuple[Artifact, Artifact]:
    """Our artifacts, and the same training rows as records of strings in <work>/plain."""
    folders = {name: work / name for name in ("examples", "preprocessing", "entities")}
    if (work / "plain").exists():
        return opened(folders)
    generate.run(**folders, run_id="benchmark", data=config.data, schema=config.schema_)
    rows = work / "rows"
    (rows / "examples").mkdir(parents=True)
    with DeadLetters(rows / "dead.jsonl") as letters, open_warehouse(config.data, rows, "benchmark") as warehouse:
        read_tables(config.data, warehouse, letters, rows)
        prepare_events(warehouse, config.data, letters, rows)
        cuts = find_cuts(warehouse, config.data)
        write_training_rows(warehouse, config.schema_, config.data, cuts, rows / "examples", rows)
    table = with_features(pq.read_table(rows / "training").sort_by("order_hash"), rows / KNOWN, config.schema_)
    pq.write_table(table, work / "raw.parquet")
    write_records(table, config.schema_, work / "plain", shards=4)
    return opened(folders)


def opened(folders: dict[str, Path]) -> tuple[Artifact, Artifact]:
    examples = open_artifact(folders["examples"], Kind.EXAMPLES)
    return examples, open_artifact(folders["preprocessing"], Kind.PREPROCESSING)


class Ours:
    """Lockstep's model and one step of its training loop."""

    def __init__(
        self,
        records: TrainingRecords,
        features: EncodedFeatures,
        config: Config,
        train: TrainSection,
        validation: Validation,
    ) -> None:
        self.records, self.validation = records, validation
        towers = build_towers(features, config.model, train.seed, train.unknown_id_share)
        self.model = TwoTowerModel(*towers, records.candidates, records.probability, config.model, train)
        self.optimizer = build_optimizer(train, records.steps_per_epoch * train.epochs)
        self.optimizer.build(self.model.trainable_variables)
        self.loss_sum = tf.Variable(0.0)
        self.step = tf.function(self._step, reduce_retracing=True)

    def _step(self, batch: dict[str, Any]) -> None:
        with tf.GradientTape() as tape:
            loss = self.model.compute_loss(batch, training=True)
        variables = self.model.trainable_variables
        self.optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        self.loss_sum.assign_add(loss)

    def epoch(self, number: int) -> list[float]:
        return timed(self.records.batches(number), self.step, self.records.batch_size)

    def recall(self) -> float:
        return self.validation.measure(self.model.query_tower, self.model.candidate_tower).recall


class Plain:
    """The plain implementation, one `fit` an epoch."""

    def __init__(self, config: Config, examples: Artifact, features: EncodedFeatures, work: Path, rate: float) -> None:
        schema = config.schema_
        vocabularies = {
            file.stem: file.read_text(encoding="utf-8").split("\n")[:-1]
            for file in (work / "preprocessing" / "vocabulary").iterdir()
        }
        raw = pq.read_table(work / "raw.parquet")
        towers = []
        for side, section in (("query", config.model.query), ("candidate", config.model.candidate)):
            tables = {f.name: f.table for f in features.side(side) if f.table is not None}  # type: ignore[arg-type]
            sizes = {
                "feature_dim": config.model.feature_dim,
                "hidden": section.hidden,
                "dim": config.model.embedding_dim,
            }
            towers.append(PlainTower(schema, side, tables, vocabularies, **sizes))
            towers[-1].adapt(raw)
        self.model = PlainModel(*towers, temperature=config.model.temperature)
        self.model.compile(optimizer=tf.keras.optimizers.Adagrad(rate))
        self.batch_size = config.train.batch_size
        self.data = read_records(work / "plain", schema, self.batch_size, config.train.shuffle_buffer)
        self.schema, self.examples, self.work = schema, examples, work

    def epoch(self) -> list[float]:
        watch = Windows(self.batch_size)
        self.model.fit(self.data, epochs=1, verbose=0, callbacks=[watch])
        return watch.rates

    def recall(self) -> float:
        catalogue = read_catalogue(self.examples)
        queries = read_queries(self.examples.path / "validation", catalogue)
        candidates = candidate_features(self.work / "entities" / "candidates", catalogue)
        vectors = [
            self._embed(tower, features)
            for tower, features in (
                (self.model.query_tower, queries.features),
                (self.model.candidate_tower, candidates),
            )
        ]
        return measure(queries, Only(Products(*vectors), catalogue.known_before_validation), SECTION)["recall@100"]

    def _embed(self, tower: PlainTower, features: Any) -> np.ndarray:
        rows, declared = features.to_pylist(), self.schema.features(tower.side)
        parts = []
        for start in range(0, len(rows), 2048):
            chunk = rows[start : start + 2048]
            inputs = {
                name: tf.constant([filled_value(row[name], feature) for row in chunk])
                for name, feature in declared.items()
            }
            parts.append(tower(inputs).numpy())
        return np.concatenate(parts)


class Windows(tf.keras.callbacks.Callback):
    """Examples a second of each window of steps but the first, in which the graph is built."""

    def __init__(self, batch_size: int) -> None:
        super().__init__()
        self.rates: list[float] = []
        self._batch_size, self._since = batch_size, 0.0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if (batch + 1) % WINDOW == 0:
            now = time.perf_counter()
            if batch + 1 > WINDOW:
                self.rates.append(WINDOW * self._batch_size / (now - self._since))
            self._since = now


def timed(batches: tf.data.Dataset, step: Callable[[Any], Any], batch_size: int) -> list[float]:
    rates, since = [], 0.0
    for number, batch in enumerate(batches, start=1):
        step(batch)
        if number % WINDOW == 0:
            now = time.perf_counter()
            if number > WINDOW:
                rates.append(WINDOW * batch_size / (now - since))
            since = now
    return rates


def where_time_goes(ours: Ours) -> dict[str, float]:
    """Microseconds an example of each part of a step, each measured alone on batches that are ready."""
    batches = list(ours.records.batches(0).take(WINDOW + 5))
    variables = ours.model.trainable_variables

    def gradients(batch: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = ours.model.compute_loss(batch, training=True)
        return tape.gradient(loss, variables)

    parts = {
        "forward": tf.function(lambda batch: ours.model.compute_loss(batch, training=True), reduce_retracing=True),
        "forward and backward": tf.function(gradients, reduce_retracing=True),
        "whole step": ours.step,
    }
    out = {}
    for name, part in parts.items():
        times = []
        for batch in batches:
            started = time.perf_counter()
            part(batch)
            times.append(time.perf_counter() - started)
        out[name] = statistics.median(times[5:]) / ours.records.batch_size * 1e6
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("configs/demo.toml"))
    parser.add_argument("--playlists", type=int, default=20_000)
    parser.add_argument("--tracks", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--learning-rate", type=float, default=0.1, help="the plain implementation's")
    parser.add_argument("--work", type=Path, help="keep the data here, and use what is there")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    config = load_config(arguments.config)
    synthetic = config.data.synthetic.model_copy(update={"playlists": arguments.playlists, "tracks": arguments.tracks})
    train = config.train.model_copy(update={"batch_size": arguments.batch_size, "epochs": arguments.epochs})
    config = config.model_copy(update={"data": config.data.model_copy(update={"synthetic": synthetic}), "train": train})
    with tempfile.TemporaryDirectory() as folder:
        report = compare(config, arguments, arguments.work or Path(folder))
    text = json.dumps(report, indent=1)
    if arguments.output:
        arguments.output.write_text(text + "\n")
    print(text)


def compare(config: Config, arguments: argparse.Namespace, work: Path) -> dict[str, Any]:
    examples, preprocessing = make_data(config, work)
    features = check_same_features(examples, preprocessing)
    alike = config.train.model_copy(update={"negatives": "in_batch", "sample_history": False})
    records = {
        train.sample_history: open_training_records(examples, features, train) for train in (alike, config.train)
    }
    validation = open_validation(examples, preprocessing, features, records[False].candidates, config.train)
    assert validation is not None
    plain = Plain(config, examples, features, work, arguments.learning_rate)
    ours = Ours(records[False], features, config, alike, validation)
    report: dict[str, Any] = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "examples": records[False].rows,
        "batch_size": arguments.batch_size,
        "epochs": [],
    }
    windows: dict[str, list[float]] = {"plain": [], "ours": []}
    epochs: dict[str, list[float]] = {"plain": [], "ours": []}
    for epoch in range(arguments.epochs):
        row: dict[str, float] = {}
        for name, run in (("plain", plain.epoch), ("ours", lambda: ours.epoch(epoch))):  # noqa: B023 - called at once
            started = time.perf_counter()
            windows[name] += run()
            epochs[name].append(time.perf_counter() - started)
            row[f"{name}_recall@100"] = plain.recall() if name == "plain" else ours.recall()
            row[f"{name}_seconds"] = sum(epochs[name])
        report["epochs"].append(row)
        print(row, flush=True)
    trained = ours.records.steps_per_epoch * arguments.batch_size
    report["whole_epochs"] = compared({name: trained / statistics.median(of) for name, of in epochs.items()})
    report["windows_of_steps"] = compared({name: statistics.median(of) for name, of in windows.items()})
    report["microseconds_an_example"] = where_time_goes(ours)
    report["input_pipeline_examples_per_second"] = {
        "ours": statistics.median(timed(ours.records.batches(0), lambda _: None, arguments.batch_size)),
        "plain": statistics.median(timed(plain.data, lambda _: None, arguments.batch_size)),
    }
    goal = report["epochs"][-1]["plain_recall@100"]
    raced = race(Ours(records[config.train.sample_history], features, config, config.train, validation), goal)
    report["to_the_plain_recall"] = raced | {"share_of_plain_seconds": raced["seconds"] / sum(epochs["plain"])}
    return report


def compared(rates: dict[str, float]) -> dict[str, Any]:
    return {"examples_per_second": rates, "ratio": rates["ours"] / rates["plain"]}


def race(ours: Ours, goal: float, looks: int = 4) -> dict[str, Any]:
    """Train until validation recall reaches a goal; looks are not counted, building the graph is."""
    seconds, every = 0.0, max(1, ours.records.steps_per_epoch // looks)
    for epoch in range(100):
        batches = iter(ours.records.batches(epoch))
        for look in range(looks):
            started = time.perf_counter()
            for _ in range(every):
                ours.step(next(batches))
            seconds += time.perf_counter() - started
            recall = ours.recall()
            print({"epoch": epoch, "look": look, "seconds": seconds, "recall@100": recall}, flush=True)
            if recall >= goal:
                return {"goal": goal, "recall@100": recall, "seconds": seconds, "epochs": epoch + (look + 1) / looks}
    raise SystemExit(f"recall@100 never reached {goal}")


if __name__ == "__main__":
    main()
