"""The baselines of the quality benchmark: the best of a grid in each column, chosen on the very queries asked.

Each is fitted plain and with query entities weighted by the age of their newest event.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lockstep.model_sections import EvaluateSection
from lockstep.tags import Artifact
from trainer.evaluation.baselines import GRIDS, Interactions, als, co_occurrences, ease, item_knn, read_interactions
from trainer.evaluation.measures import measure
from trainer.evaluation.queries import Queries
from trainer.evaluation.ranking import HistorySums, SameForAll, Scorer

log = logging.getLogger("quality")
COLUMNS = ("recall@20", "recall@100", "ndcg@20")
SECTION = EvaluateSection(ks=(20, 100), bootstrap=0)
L2 = (30, 100, 300, 600, 1000, 2000)
NEIGHBOURS = tuple((n, s) for n in (50, 200, 5_000) for s in (0, 10, 50, 200))
HALF_LIVES = (60, 180)


def baselines(examples: Artifact, queries: Queries, popular: NDArray[np.float32]) -> dict[str, dict[str, float] | str]:
    """By baseline, the best of its grid in each column, or why there is none."""

    def best(scorers: Iterable[Scorer]) -> dict[str, float]:
        found = [measure(queries, scorer, SECTION) for scorer in scorers]
        return {column: max(of[column] for of in found) for column in COLUMNS}

    out: dict[str, dict[str, float] | str] = {"popularity 30 d": best([SameForAll(popular)])}
    for label, interactions in weighted(examples, len(popular)).items():
        gram = co_occurrences(interactions)
        out[f"item-kNN{label}"] = best(HistorySums(item_knn(gram, n, s), queries.history) for n, s in NEIGHBOURS)
        out[f"EASE{label}"] = best(HistorySums(ease(gram, l2), queries.history) for l2 in L2)
        if find_spec("implicit") is None:
            out["ALS"] = "not installed"
        else:
            out[f"ALS{label}"] = best(als(interactions, of, SECTION)(queries) for of in GRIDS["als"])
        log.info("%s", {name: of for name, of in out.items() if name.endswith(label)})
    return out


def weighted(examples: Artifact, candidates: int) -> dict[str, Interactions]:
    """What training may see, by label: plain, and with entities that count half as much for each half-life."""
    plain = read_interactions(examples, candidates)
    assert plain is not None, "the data step has just written it"
    ages = pq.read_table(examples / "interactions.parquet", columns=["query", "age_days"])
    newest = ages.group_by("query").aggregate([("age_days", "min")]).sort_by("query")["age_days_min"].to_numpy()
    weights = {days: 0.5 ** (newest / days).astype(np.float32) for days in HALF_LIVES}
    return {"": plain} | {f", half-life {days} d": replace(plain, weights=of) for days, of in weights.items()}
