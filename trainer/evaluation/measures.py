"""The measures of a ranking: one value a query, and the mean over queries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from lockstep.model_sections import EvaluateSection
from trainer.evaluation.queries import Queries
from trainer.evaluation.ranking import UNRANKED, Ranking, Scorer, rank

Values = NDArray[np.float64]
"""[queries]; NaN where a query has no value."""
_PAGE, _PAGES = 10, 50
"""Candidates that a listener sees at once, and how many times they ask for more."""


def measure(queries: Queries, scorer: Scorer, section: EvaluateSection) -> dict[str, float]:
    """The means over the queries of recall, NDCG, hit rate, MRR, R-precision and clicks; {} without queries.

    What training watches and `lockstep tune` compares: `measure(queries, Products(vectors, candidates), section)`.
    """
    if not len(queries):
        return {}
    depth = depth_for(queries, section.ks)
    ranking = rank(scorer, queries, depth, exclude_history=section.exclude_history, threads=section.threads)
    return means(query_measures(ranking, queries.held_out, section.ks))


def depth_for(queries: Queries, ks: Sequence[int]) -> int:
    """How many of the best candidates the measures look at."""
    return max(*ks, int(queries.held_out.max(initial=1)))


def query_measures(ranking: Ranking, held_out: NDArray[np.int64], ks: Sequence[int]) -> dict[str, Values]:
    """Every measure of every query.

    Args:
        ranking: at least `depth_for` deep, or of the whole catalogue.
        held_out: [queries] number of distinct held-out candidates, those unknown to the catalogue included; at least 1.
    """
    values: dict[str, Values] = {}
    found = np.cumsum(ranking.hits, axis=1, dtype=np.int64)
    for k in ks:
        depth = min(k, found.shape[1])
        values[f"recall@{k}"] = recall(found[:, depth - 1], held_out)
        values[f"ndcg@{k}"] = ndcg(ranking.hits[:, :depth], held_out, k)
        values[f"hit_rate@{k}"] = (ranking.first < k).astype(np.float64)
    values["mrr"] = reciprocal_rank(ranking.first)
    values["r_precision"] = r_precision(found, held_out)
    values["clicks"] = clicks(ranking.first)
    return values


def means(values: Mapping[str, Values]) -> dict[str, float]:
    """The mean of each measure over the queries that have a value; 0 where none has."""
    present = {name: of_queries[~np.isnan(of_queries)] for name, of_queries in values.items()}
    return {name: float(of_queries.mean()) if len(of_queries) else 0.0 for name, of_queries in present.items()}


def recall(found: NDArray[np.int64], held_out: NDArray[np.int64]) -> Values:
    """Share of the held-out candidates that stand in the top k.

    Args:
        found: [queries] number of held-out candidates in the top k.
        held_out: [queries] number of all of them.
    """
    return found / held_out


def ndcg(hits: NDArray[np.bool_], held_out: NDArray[np.int64], k: int) -> Values:
    """Discounted gain of the top k with binary relevance, over that of the best order possible.

    Args:
        hits: [queries, k] whether each of the top k is held out; fewer columns where the catalogue is smaller.

    Reference: Järvelin & Kekäläinen, "Cumulated gain-based evaluation of IR techniques", TOIS 2002.
    """
    discounts = 1.0 / np.log2(np.arange(k) + 2.0)
    ideal = np.cumsum(discounts)[np.minimum(k, held_out) - 1]
    return hits @ discounts[: hits.shape[1]] / ideal


def reciprocal_rank(first: NDArray[np.int64]) -> Values:
    """One over the position of the first held-out candidate, 0 where none is ranked.

    Reference: Voorhees, "The TREC-8 question answering track report", TREC 1999.
    """
    return np.where(first < UNRANKED, 1.0 / (first + 1.0), 0.0)


def r_precision(found: NDArray[np.int64], held_out: NDArray[np.int64]) -> Values:
    """Share of the held-out candidates that stand in the top n, where n is their own number.

    Args:
        found: [queries, depth] number of held-out candidates in the top 1, 2, 3 ...

    Reference: Chen, Lamere, Schedl & Zamani, "RecSys Challenge 2018: automatic music playlist continuation",
    RecSys 2018, section 3.3 (of tracks, without the artists that some later reports add).
    """
    last = np.minimum(held_out, found.shape[1]) - 1
    return found[np.arange(len(found)), last] / held_out


def clicks(first: NDArray[np.int64]) -> Values:
    """How often a listener asks for ten more until a held-out candidate shows: floor((R - 1) / 10), 51 beyond 500.

    The less the better.

    Args:
        first: [queries] rank of the best target, which is R - 1.

    Reference: as of `r_precision`, "recommended songs clicks".
    """
    return np.where(first < _PAGE * _PAGES, first // _PAGE, _PAGES + 1).astype(np.float64)


def coverage(ranking: Ranking, k: int) -> float:
    """Share of the catalogue, with what is not ranked, that stands in the top k of some query.

    Reference: Ge, Delgado-Battenfeld & Jannach, "Beyond accuracy: evaluating recommender systems by coverage and
    serendipity", RecSys 2010.
    """
    shown = np.unique(ranking.top[:, :k])
    return float(np.count_nonzero(shown >= 0)) / ranking.candidates


def mean_popularity(top: NDArray[np.int32], popularity: NDArray[np.floating]) -> Values:
    """Average recommendation popularity: the mean training count of what stands in the top k.

    Args:
        top: [queries, k] candidate indices, -1 for nothing.
        popularity: [candidates] training labels of each.

    Returns:
        [queries]; NaN where nothing is ranked.

    Reference: Yin, Cui, Li, Yao & Chen, "Challenging the long tail recommendation", VLDB 2012; named so by
    Abdollahpouri, Burke & Mobasher, "Managing popularity bias in recommender systems with personalized re-ranking",
    FLAIRS 2019.
    """
    ranked = top >= 0
    total = np.where(ranked, popularity[top], 0.0).sum(axis=1, dtype=np.float64)
    count = ranked.sum(axis=1)
    return np.divide(total, count, out=np.full(len(top), np.nan), where=count > 0)
