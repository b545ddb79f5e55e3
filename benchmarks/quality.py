"""Retrieval quality on real data, against popularity, item-kNN, EASE and ALS on the same split, over several seeds.

    python benchmarks/quality.py basket --data data/online-retail-ii --output basket.json
    python benchmarks/quality.py customer --data data/online-retail-ii --validate --set epochs=4 --set dropout=0.2
    python benchmarks/quality.py movielens --data data/ml-latest-small

The tasks are described in benchmarks/quality_tasks.py. `--validate` asks at an earlier cut, and reads nothing from the
test cut on: settings are chosen there. `--set` takes a key of [model] or [train] and a TOML value, as often as wanted;
with `--work`, what was made is kept, and calls that differ in settings alone share the data step's output.

Everything is trained on what came before the cut, and every candidate known before it is ranked but the query's own.
Recall@k is found / held out, NDCG@k binary with the ideal over min(k, held out); both are means over the queries. The
model is what the pipeline's own jobs make of the configuration in configs/: data step, training, exported towers.
The baselines' settings are the best of their grids, chosen on these very queries, which flatters them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import tempfile
import time
import tomllib
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from cold_start import ColdStart
from numpy.typing import NDArray
from quality_baselines import COLUMNS, SECTION, baselines
from quality_tasks import TASKS, Asked

from dataflow import generate
from lockstep.config import Config, load_config
from lockstep.errors import ConfigError
from lockstep.features import features_type
from lockstep.model_sections import ModelSection, TrainSection
from lockstep.schema import HISTORY, Schema
from lockstep.tags import Kind, open_artifact
from lockstep.towers import Tower
from lockstep.version import ModelVersion
from trainer import task
from trainer.evaluate import embed
from trainer.evaluation.measures import measure
from trainer.evaluation.queries import Queries, candidate_features, read_catalogue
from trainer.evaluation.ranking import Products
from trainer.tune import with_settings

log = logging.getLogger("quality")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--config", type=Path, help="another configuration than the task's")
    parser.add_argument(
        "--set",
        dest="settings",
        type=setting,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help='a key of [model] or [train], such as epochs=4, train.optimizer="adam" or half_life_days="unset"',
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--validate", action="store_true", help="ask before the test cut, for choosing settings")
    parser.add_argument("--no-baselines", action="store_true")
    parser.add_argument("--work", type=Path, help="keep what is made here")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    try:
        config = configuration(arguments.config or Path(TASKS[arguments.task].config), dict(arguments.settings))
    except ConfigError as error:
        parser.error(str(error))
    with tempfile.TemporaryDirectory() as folder:
        work = arguments.work or Path(folder)
        work.mkdir(parents=True, exist_ok=True)
        report = run(arguments, config, work)
    text = json.dumps(report, indent=1)
    if arguments.output:
        arguments.output.write_text(text + "\n")
    print(text)


def setting(text: str) -> tuple[str, Any]:
    """`epochs=4` as ("train.epochs", 4)."""
    name, equals, value = text.partition("=")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError as error:
        parsed = error
    if not equals or isinstance(parsed, tomllib.TOMLDecodeError):
        raise argparse.ArgumentTypeError(f"{text!r} is no NAME=VALUE with a TOML value (text in quotes)")
    for section, fields in (("model", ModelSection.model_fields), ("train", TrainSection.model_fields)):
        if name.partition(".")[0] in fields:
            name = f"{section}.{name}"
    if name == "train.seed":
        raise argparse.ArgumentTypeError("the seeds are given by --seeds")
    return name, parsed


def configuration(path: Path, settings: Mapping[str, Any]) -> Config:
    """The configuration with some settings of [model] and [train], and with nothing to stop early by."""
    config = load_config(path)
    model, train = with_settings(config.model, config.train, {"train.early_stopping": "unset", **settings})
    return config.model_copy(update={"model": model, "train": train})


def trained_on_everything_before(config: Config, cut: datetime, work: Path) -> Config:
    """The configuration with all events before the cut as training."""
    data = {"path": str(work), "test_from": cut.replace(tzinfo=UTC), "validation_from": None}
    split = {"validation_share": 0.0, "holdout_share": 0.0}
    return config.model_copy(update={"data": config.data.model_copy(update=data | split)})


def raw_features(schema: Schema, asked: Asked, columns: Mapping[str, Mapping[str, Any]]) -> pa.StructArray:
    """The queries as raw features.

    Args:
        columns: by column of a candidate, its value by candidate id.
    """
    rows = []
    for number, history in enumerate(asked.history):
        row: dict[str, Any] = {}
        for name, feature in schema.query.items():
            column = feature.columns[0]
            if column.startswith(HISTORY):
                values = columns[column.removeprefix(HISTORY)]
                row[name] = [values.get(candidate) for candidate in history]
            else:
                row[name] = asked.moments[number] if column == "event_time" else asked.attributes[column][number]
        rows.append(row)
    return pa.array(rows, features_type(schema, "query"))


def indices(lists: list[list[str]], ids: pa.Array) -> list[NDArray[np.int64]]:
    place = {candidate: number for number, candidate in enumerate(ids.to_pylist())}
    return [np.unique([place[candidate] for candidate in of if candidate in place]).astype(np.int64) for of in lists]


def generate_once(arguments: argparse.Namespace, config: Config, cut: datetime, work: Path) -> dict[str, Path]:
    """The data step's output, from an earlier call where that had the same task, cut, data and schema."""
    folders = {name: work / name for name in ("examples", "preprocessing", "entities")}
    sections = [section.model_dump(mode="json") for section in (config.data, config.schema_)]
    asked = [arguments.task, str(arguments.data.resolve()), arguments.validate, str(cut)]
    facts = json.dumps([*asked, *sections], sort_keys=True)
    made_of = work / "made_of.json"
    if made_of.exists() and made_of.read_text() != facts:
        raise SystemExit(f"{work} was made of another task, data, schema or cut: name another --work")
    made_of.write_text(facts)
    if not (folders["examples"] / "tag.json").exists():
        generate.run(**folders, run_id="quality", data=config.data, schema=config.schema_)
    return folders


def train_once(config: Config, seed: int, folders: Mapping[str, Path], work: Path) -> tuple[Tower, Tower]:
    """The towers of a seed, from an earlier call where that had the same settings."""
    train = config.train.model_copy(update={"seed": seed})
    settings = json.dumps([config.model.to_dict(), train.to_dict()], sort_keys=True)
    made = work / f"seed_{seed}_{hashlib.sha256(settings.encode()).hexdigest()[:16]}"
    query, candidate = made / "query_tower", made / "candidate_tower"
    if not (query / "tag.json").exists():  # the one that is written last
        task.run(
            examples=folders["examples"],
            preprocessing=folders["preprocessing"],
            query_tower=query,
            candidate_tower=candidate,
            work=made / "training",
            model_version=ModelVersion(seed),
            run_id="quality",
            model=config.model,
            train=train,
        )
    version = ModelVersion(seed)
    return Tower.open(query, Kind.QUERY_TOWER, version), Tower.open(candidate, Kind.CANDIDATE_TOWER, version)


def run(arguments: argparse.Namespace, config: Config, work: Path) -> dict[str, Any]:
    with duckdb.connect() as db:
        db.execute("SET TimeZone = 'UTC'")
        cut, asked = TASKS[arguments.task].prepare(db, arguments.data, work, arguments.validate)
    log.info("%d queries after %s", len(asked.history), cut)
    config = trained_on_everything_before(config, cut, work)
    folders = generate_once(arguments, config, cut, work)
    examples = open_artifact(folders["examples"], Kind.EXAMPLES)
    catalogue = read_catalogue(examples)
    candidates = ds.dataset(folders["entities"] / "candidates").to_table(["id", "features"])
    # What features of the past want of a candidate is a feature of the candidate as well.
    columns = {"candidate_id": {c: c for c in catalogue.ids.to_pylist()}}
    for name, feature in config.schema_.candidate.items():
        values = pc.struct_field(candidates["features"].combine_chunks(), name).to_pylist()
        columns[feature.columns[0]] = dict(zip(candidates["id"].to_pylist(), values, strict=True))
    features = raw_features(config.schema_, asked, columns)
    targets = indices(asked.targets, catalogue.ids)
    held_out = np.array([len(of) for of in asked.targets])
    history = indices(asked.history, catalogue.ids)
    queries = Queries(features, history, targets, held_out, np.zeros(len(targets), dtype=bool))
    settings = dict(arguments.settings)
    report: dict[str, Any] = {"task": arguments.task, "cut": str(cut), "queries": len(queries), "settings": settings}
    report["models"] = []
    for seed in arguments.seeds:
        started = time.monotonic()
        query, candidate = train_once(config, seed, folders, work)
        seconds = time.monotonic() - started
        query_vectors = embed(query, features)
        vectors = embed(candidate, candidate_features(folders["entities"] / "candidates", catalogue))
        found = measure(queries, Products(query_vectors, vectors), SECTION)
        report["models"].append({"seed": seed, "seconds": seconds} | {column: found[column] for column in COLUMNS})
        if asked.cold:
            every = pc.struct_field(candidates["features"].combine_chunks(), "title").to_pylist()
            cold_start = ColdStart(asked, candidates["id"].to_pylist(), every, catalogue)
            all_vectors = embed(candidate, candidates["features"].combine_chunks())
            report["models"][-1]["cold"] = cold_start.of_model(query_vectors, all_vectors)
            if "cold_baselines" not in report:
                report["cold_baselines"] = cold_start.of_baselines()
                log.info("cold start: %s", report["cold_baselines"])
        log.info("seed %d: %s", seed, report["models"][-1])
    report["mean"] = {c: float(np.mean([of[c] for of in report["models"]])) for c in COLUMNS}
    report["deviation"] = {
        c: float(np.std([of[c] for of in report["models"]], ddof=min(1, len(report["models"]) - 1))) for c in COLUMNS
    }
    if not arguments.no_baselines:
        report["baselines"] = baselines(examples, queries, catalogue.popular_30d)
    return report


if __name__ == "__main__":
    main()
