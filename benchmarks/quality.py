"""Retrieval quality on real data, against popularity, item-kNN, EASE and ALS on the same split, over several seeds.

    python benchmarks/quality.py basket --data data/online-retail-ii --output basket.json
    python benchmarks/quality.py customer --data data/online-retail-ii
    python benchmarks/quality.py movielens --data data/ml-latest-small

Two tasks on Online Retail II, cut at 2011-10-01 (`--validate`: at 2011-08-15, with nothing from 2011-10-01 on read):
  basket    a later basket of at least 10 distinct candidates known before the cut; its first 5 in line order are the
            query, the rest are to be found
  customer  a customer with at least 5 distinct candidates before the cut; what they take later and never took before
And one on MovieLens: each user's last rating (`--validate`: the last but one), all earlier ones are the query.

Everything is trained on what came before the cut, and every candidate known before it is ranked but the query's own.
Recall@k is found / held out, NDCG@k binary with the ideal over min(k, held out); both are means over the queries. The
model is what the pipeline's own jobs make of the configuration in configs/: data step, training, exported towers.
The baselines' settings are the best of their grids, chosen on these very queries, which flatters them.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from numpy.typing import NDArray

from dataflow import generate
from lockstep.config import Config, load_config
from lockstep.features import features_type
from lockstep.model_sections import EvaluateSection
from lockstep.schema import HISTORY, Schema
from lockstep.tags import Kind, open_artifact
from lockstep.towers import Tower
from lockstep.version import ModelVersion
from trainer import task
from trainer.evaluation.baselines import (
    Interactions,
    co_occurrences,
    ease,
    fit_baselines,
    item_knn,
    read_interactions,
)
from trainer.evaluation.measures import measure
from trainer.evaluation.queries import Catalogue, Queries, candidate_features, read_catalogue
from trainer.evaluation.ranking import HistorySums, Products, SameForAll, Scorer

log = logging.getLogger("quality")
KS = (20, 100)
COLUMNS = ("recall@20", "recall@100", "ndcg@20")
SECTION = EvaluateSection(ks=KS, bootstrap=0)
L2 = (30, 100, 300, 600, 1000, 2000)
NEIGHBOURS = tuple((n, s) for n in (50, 200, 5_000) for s in (0, 10, 50, 200))
HALF_LIVES = (60, 180)


@dataclass(frozen=True)
class Asked:
    """The queries of a task, by candidate id.

    Args:
        history: oldest first, distinct.
        targets: distinct.
        moments: when each query is asked.
        attributes: by column, a value a query.
        cold: what the query took that was not known before the cut.
    """

    history: list[list[str]]
    targets: list[list[str]]
    moments: list[datetime]
    attributes: Mapping[str, list[Any]]
    cold: list[list[str]] = field(default_factory=list)


@dataclass(frozen=True)
class Task:
    """One task: its configuration, and how its tables and queries are made from the source's files.

    Args:
        prepare: (connection, data folder, work folder, validate) -> the moment of the cut, and what is asked after it.
    """

    config: str
    prepare: Callable[[duckdb.DuckDBPyConnection, Path, Path, bool], tuple[datetime, Asked]]


def retail_events(
    db: duckdb.DuckDBPyConnection, data: Path, work: Path, validate: bool, where: str, name: str
) -> datetime:
    """Write the events and candidates that the data step reads, and the table `event` of them; return the cut."""
    cut, end = (
        (datetime(2011, 8, 15), datetime(2011, 10, 1)) if validate else (datetime(2011, 10, 1), datetime(2012, 1, 1))
    )
    db.execute(
        f"CREATE TABLE event AS SELECT * FROM read_parquet('{data}/transactions.parquet') WHERE ts < ? AND {where}",
        [end],
    )
    db.execute(f"COPY (SELECT * FROM event) TO '{work}/{name}.parquet'")
    db.execute(f"COPY (SELECT * FROM read_csv('{data}/items.csv', all_varchar = true)) TO '{work}/items.csv' (HEADER)")
    db.execute("CREATE TABLE known AS SELECT DISTINCT item_id FROM event WHERE ts < ?", [cut])
    return cut


def prepare_baskets(db: duckdb.DuckDBPyConnection, data: Path, work: Path, validate: bool) -> tuple[datetime, Asked]:
    cut = retail_events(db, data, work, validate, "TRUE", "transactions")
    rows = db.execute(
        """
        WITH line AS (
          SELECT invoice, item_id, MIN(line) AS line, MIN(ts) AS ts, ANY_VALUE(country) AS country
          FROM event
          GROUP BY invoice, item_id
        )
        SELECT
          LIST(item_id ORDER BY line) FILTER (is_known) AS taken,
          MIN(ts) AS ts,
          ANY_VALUE(country) AS country,
          LIST(item_id) FILTER (NOT is_known) AS cold
        FROM (SELECT *, item_id IN (SELECT item_id FROM known) AS is_known FROM line)
        GROUP BY invoice HAVING MIN(ts) >= ? AND COUNT(*) FILTER (is_known) >= 10 ORDER BY invoice
        """,
        [cut],
    ).fetchall()
    taken, moments, countries, cold = zip(*rows, strict=True)
    attributes = {"country": list(countries)}
    found = [[t[:5] for t in taken], [t[5:] for t in taken], list(moments)]
    return cut, Asked(*found, attributes, [of or [] for of in cold])


def prepare_customers(db: duckdb.DuckDBPyConnection, data: Path, work: Path, validate: bool) -> tuple[datetime, Asked]:
    cut = retail_events(db, data, work, validate, "customer_id <> 0", "customers")
    rows = db.execute(
        """
        WITH taken AS (
          SELECT
            customer_id, item_id, MIN(ts) AS ts, MIN((ts, line)) AS place,
            ARG_MAX(country, ts) FILTER (ts < $cut) AS country
          FROM event SEMI JOIN known USING (item_id)
          GROUP BY customer_id, item_id
        )
        SELECT
          LIST(item_id ORDER BY place) FILTER (ts < $cut) AS history,
          LIST(item_id ORDER BY place) FILTER (ts >= $cut) AS later,
          ANY_VALUE(country)
        FROM taken GROUP BY customer_id HAVING COUNT(*) FILTER (ts < $cut) >= 5 ORDER BY customer_id
        """,
        {"cut": cut},
    ).fetchall()
    log.info("%d customers with at least 5 distinct candidates before the cut", len(rows))
    history, later, countries = zip(*(row for row in rows if row[1]), strict=True)
    return cut, Asked(list(history), list(later), [cut] * len(history), {"country": list(countries)})


def prepare_ratings(db: duckdb.DuckDBPyConnection, data: Path, work: Path, validate: bool) -> tuple[datetime, Asked]:
    """The last rating of each user is moved behind all others, so that a cut in time leaves it out and nothing else."""
    last = 2 if validate else 1
    db.execute(
        f"""
        CREATE TABLE event AS
        SELECT *, ROW_NUMBER() OVER (PARTITION BY userId ORDER BY timestamp DESC, movieId DESC) AS back
        FROM read_csv('{data}/ratings.csv')
        """
    )
    cut = datetime(2030, 1, 1)
    db.execute(
        f"""
        COPY (SELECT userId, movieId, rating, IF(back = {last}, {int(cut.replace(tzinfo=UTC).timestamp())}, timestamp)
                AS timestamp FROM event WHERE back >= {last}) TO '{work}/ratings.csv' (HEADER)
        """
    )
    db.execute(
        f"COPY (SELECT * FROM read_csv('{data}/movies.csv', all_varchar = true)) TO '{work}/movies.csv' (HEADER)"
    )
    rows = db.execute(
        f"""
        SELECT LIST(CAST(movieId AS VARCHAR) ORDER BY back DESC) FILTER (back > {last}),
          LIST(CAST(movieId AS VARCHAR)) FILTER (back = {last}),
          to_timestamp(MAX(timestamp) FILTER (back = {last}))
        FROM event GROUP BY userId HAVING COUNT(*) > {last} ORDER BY userId
        """
    ).fetchall()
    history, targets, moments = zip(*rows, strict=True)
    return cut, Asked(list(history), list(targets), list(moments), {})


TASKS = {
    "basket": Task("configs/online_retail.toml", prepare_baskets),
    "customer": Task("configs/online_retail_customers.toml", prepare_customers),
    "movielens": Task("configs/movielens.toml", prepare_ratings),
}


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


def embed(tower: Tower, features: pa.StructArray) -> NDArray[np.float32]:
    return np.concatenate(
        [tower.embed(features[start : start + 4096]).vectors for start in range(0, len(features), 4096)]
    )


def indices(lists: list[list[str]], ids: pa.Array) -> list[NDArray[np.int64]]:
    place = {candidate: number for number, candidate in enumerate(ids.to_pylist())}
    return [np.unique([place[candidate] for candidate in of if candidate in place]).astype(np.int64) for of in lists]


def weighted_gram(interactions: Interactions, weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """As of `co_occurrences`, with a weight for each query entity."""
    gram = np.zeros((interactions.candidates, interactions.candidates), dtype=np.float32)
    starts = np.append(np.flatnonzero(np.diff(interactions.query, prepend=-1)), len(interactions.query))
    for start, end in pairwise(starts):
        taken = interactions.candidate[start:end]
        gram[np.ix_(taken, taken)] += weights[interactions.query[start]]
    return gram


class ColdStart:
    """Recall@100 of candidates first taken after the cut, ranked together with all that were known before it.

    Args:
        ids, titles: of every candidate.
    """

    def __init__(self, asked: Asked, ids: list[str], titles: list[str], catalogue: Catalogue) -> None:
        self.place = {candidate: number for number, candidate in enumerate(ids)}
        rows = [number for number, cold in enumerate(asked.cold) if cold]
        self.rows = np.array(rows)
        self.history = [np.array([self.place[c] for c in asked.history[row]]) for row in rows]
        self.targets = [np.unique([self.place[c] for c in asked.cold[row]]) for row in rows]
        taken = {candidate for of in asked.cold for candidate in of} | set(catalogue.ids.to_pylist())
        self.is_ranked = np.array([candidate in taken for candidate in ids])
        self.popular = np.zeros(len(ids), dtype=np.float32)
        self.popular[[self.place[c] for c in catalogue.ids.to_pylist()]] = catalogue.popular_30d
        self.is_warm = np.zeros(len(ids), dtype=bool)
        self.is_warm[[self.place[c] for c in catalogue.ids.to_pylist()]] = True
        self.words = [set((title or "").lower().split()) for title in titles]
        self.with_word: dict[str, list[int]] = {}
        for place, words in enumerate(self.words):
            for word in words:
                self.with_word.setdefault(word, []).append(place)
        self.category = np.array([(title or "?").lower().split()[-1:] or ["?"] for title in titles])[:, 0]

    def recall(self, scores: Callable[[int], NDArray[np.float32]]) -> float:
        """The mean over the queries of the share of their cold candidates in the top 100."""
        found = []
        for row, (history, targets) in enumerate(zip(self.history, self.targets, strict=True)):
            of_all = np.where(self.is_ranked, scores(row), -np.inf)
            of_all[history] = -np.inf
            top = np.argpartition(-of_all, 100)[:100]
            found.append(np.isin(targets, top).mean())
        return float(np.mean(found))

    def of_model(self, queries: NDArray[np.float32], candidates: NDArray[np.float32]) -> dict[str, float]:
        cold = len({int(target) for targets in self.targets for target in targets})
        found = self.recall(lambda row: candidates @ queries[self.rows[row]])
        return {"recall@100": found, "queries": len(self.rows), "candidates": cold}

    def of_baselines(self) -> dict[str, float]:
        """Two ways to rank what nobody has taken yet: a category is the last word of the title, such as `mug`."""
        of_category: dict[str, float] = {}
        for category in set(self.category):
            members = self.is_warm & (self.category == category)
            of_category[category] = float(self.popular[members].mean()) if members.any() else 0.0
        # What is new is as popular as its category is on average.
        popular = np.where(self.is_warm, self.popular, [of_category[category] for category in self.category])

        def within_category(row: int) -> NDArray[np.float32]:
            return popular + 1e6 * np.isin(self.category, self.category[self.history[row]])

        def similar_titles(row: int) -> NDArray[np.float32]:
            seeds = [self.words[place] for place in self.history[row]]
            overlap = np.zeros(len(self.words), dtype=np.float32)
            for of in seeds:
                for place in {place for word in of for place in self.with_word[word]}:
                    overlap[place] += len(self.words[place] & of) / len(self.words[place] | of)
            return overlap * (popular + 1e-3)

        return {
            "popularity within the category": self.recall(within_category),
            "similar titles x popularity": self.recall(similar_titles),
        }


def baselines(examples: Any, queries: Queries, popular: NDArray[np.float32]) -> dict[str, dict[str, float]]:
    """By baseline, the best of its grid in each column."""

    def best(scorers: list[Scorer]) -> dict[str, float]:
        found = [measure(queries, scorer, SECTION) for scorer in scorers]
        return {column: max(of[column] for of in found) for column in COLUMNS}

    interactions = read_interactions(examples, len(popular))
    assert interactions is not None
    grams = {"": co_occurrences(interactions)}
    table = ds.dataset(examples.path / "interactions.parquet").to_table()
    newest = table.group_by("query").aggregate([("age_days", "min")]).sort_by("query")["age_days_min"].to_numpy()
    for days in HALF_LIVES:
        grams[f", half-life {days} d"] = weighted_gram(interactions, 0.5 ** (newest / days).astype(np.float32))
    out = {"popularity 30 d": best([SameForAll(popular)])}
    for label, gram in grams.items():
        out[f"item-kNN{label}"] = best([HistorySums(item_knn(gram, n, s), queries.history) for n, s in NEIGHBOURS])
        out[f"EASE{label}"] = best([HistorySums(ease(gram, l2), queries.history) for l2 in L2])
        log.info("%s", {name: of for name, of in out.items() if name.endswith(label)})
    fitted, left_out = fit_baselines(
        interactions, queries, len(popular), SECTION.model_copy(update={"baselines": ("als",)})
    )
    if fitted:
        out["ALS"] = best([fitted["als"].scorer(queries)])
    else:
        log.warning("ALS: %s", left_out)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--config", type=Path, help="another configuration than the task's")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--validate", action="store_true", help="ask before the test cut, for choosing settings")
    parser.add_argument("--no-baselines", action="store_true")
    parser.add_argument("--work", type=Path, help="keep what is made here")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    with tempfile.TemporaryDirectory() as folder:
        work = arguments.work or Path(folder)
        work.mkdir(parents=True, exist_ok=True)
        report = run(arguments, work)
    text = json.dumps(report, indent=1)
    if arguments.output:
        arguments.output.write_text(text + "\n")
    print(text)


def run(arguments: argparse.Namespace, work: Path) -> dict[str, Any]:
    chosen = TASKS[arguments.task]
    with duckdb.connect() as db:
        db.execute("SET TimeZone = 'UTC'")
        cut, asked = chosen.prepare(db, arguments.data, work, arguments.validate)
    log.info("%d queries after %s", len(asked.history), cut)
    config = trained_on_everything_before(load_config(arguments.config or Path(chosen.config)), cut, work)
    folders = {name: work / name for name in ("examples", "preprocessing", "entities")}
    facts = json.dumps([str(cut), config.model_dump(mode="json")], sort_keys=True)
    made_of = work / "made_of.json"
    if made_of.exists() and made_of.read_text() != facts:
        raise SystemExit(f"{work} was made of another configuration or for another cut: name another --work")
    made_of.write_text(facts)
    if not (folders["examples"] / "tag.json").exists():
        generate.run(**folders, run_id="quality", data=config.data, schema=config.schema_)
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
    queries = Queries(features, indices(asked.history, catalogue.ids), targets, held_out)
    report: dict[str, Any] = {"task": arguments.task, "cut": str(cut), "queries": len(queries), "models": []}
    for seed in arguments.seeds:
        started = time.monotonic()
        towers = {side: work / f"{side}_{seed}" for side in ("query_tower", "candidate_tower")}
        if not (towers["query_tower"] / "tag.json").exists():
            task.run(
                examples=folders["examples"],
                preprocessing=folders["preprocessing"],
                **towers,
                work=work / f"training_{seed}",
                model_version=ModelVersion(seed),
                run_id="quality",
                model=config.model,
                train=config.train.model_copy(update={"seed": seed, "early_stopping": None}),
            )
        seconds = time.monotonic() - started
        query = Tower.open(towers["query_tower"], Kind.QUERY_TOWER, ModelVersion(seed))
        candidate = Tower.open(towers["candidate_tower"], Kind.CANDIDATE_TOWER, ModelVersion(seed))
        vectors = embed(candidate, candidate_features(folders["entities"] / "candidates", catalogue))
        found = measure(queries, Products(embed(query, features), vectors), SECTION)
        report["models"].append({"seed": seed, "seconds": seconds} | {column: found[column] for column in COLUMNS})
        if asked.cold:
            every = pc.struct_field(candidates["features"].combine_chunks(), "title").to_pylist()
            catalogue_and_cold = ColdStart(asked, candidates["id"].to_pylist(), every, catalogue)
            all_vectors = embed(candidate, candidates["features"].combine_chunks())
            report["models"][-1]["cold"] = catalogue_and_cold.of_model(embed(query, features), all_vectors)
            if "cold_baselines" not in report:
                report["cold_baselines"] = catalogue_and_cold.of_baselines()
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
