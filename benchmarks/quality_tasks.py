"""The tasks of the quality benchmark: what is learnt from, and what is asked after the cut.

Two on Online Retail II, cut at 2011-10-01 (to choose settings: at 2011-08-15, with nothing from 2011-10-01 on read):
  basket    a later basket of at least 10 distinct candidates known before the cut; its first 5 in line order are the
            query, the rest are to be found
  customer  a customer with at least 5 distinct candidates before the cut; what they take later and never took before
And one on MovieLens: each user's last rating (to choose settings: the last but one), all earlier ones are the query.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb

log = logging.getLogger("quality")


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
    history, targets = [of[:5] for of in taken], [of[5:] for of in taken]
    return cut, Asked(history, targets, list(moments), attributes, [of or [] for of in cold])


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
