"""The exact evaluation over the full catalogue, against a plain one that sorts the scores of every query.

    python benchmarks/evaluation.py --json evaluation.json

Unit vectors of queries and candidates are drawn from a seed, so are each query's history and held-out candidates. Each
run is a process of its own; its clock starts after the vectors are drawn, its peak is the process's high-water mark:

    lockstep  trainer.evaluation.measures.measure, as the evaluation job calls it
    sorted    a query at a time: a product, an argsort of all candidates, the targets' places; recall, NDCG and MRR

The plain one is slow, so it gets fewer queries, and both are compared by the query. On the queries that both have,
their recall is the same: the benchmark checks it.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from lockstep.model_sections import EvaluateSection
from trainer.evaluation.measures import measure
from trainer.evaluation.queries import Queries
from trainer.evaluation.ranking import Products

KS = (10, 20, 100)
HISTORY, HELD_OUT = 50, 10


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--queries", type=int, default=10_000, help="of `lockstep`")
    parser.add_argument("--sorted", type=int, default=200, help="queries of `sorted`")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="[evaluate] threads of `lockstep`")
    parser.add_argument("--json", type=Path, help="where the results go")
    parser.add_argument("--child", nargs=2, metavar=("VERSION", "QUERIES"), help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.child:
        version, queries = arguments.child
        print(json.dumps(run(version, int(queries), arguments)))
        return
    sizes = (("lockstep", arguments.queries), ("lockstep", arguments.sorted), ("sorted", arguments.sorted))
    results = [start(version, queries, arguments) for version, queries in sizes]
    report(results, arguments.json)


def start(version: str, queries: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """One run in a process of its own."""
    options = [("--candidates", arguments.candidates), ("--dim", arguments.dim), ("--threads", arguments.threads)]
    command = [sys.executable, __file__, "--child", version, str(queries), *(str(x) for pair in options for x in pair)]
    load = os.getloadavg()[0]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    result = json.loads(done.stdout.splitlines()[-1]) | {"load_before": round(load, 2)}
    print(line(result), flush=True)
    return result


def run(version: str, count: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """One run, in this process."""
    queries, scorer = draw(count, arguments.candidates, arguments.dim)
    before, cpu, started = peak_mb(), sum(os.times()[:2]), time.perf_counter()
    if version == "lockstep":
        measures = measure(queries, scorer, EvaluateSection(ks=KS, threads=arguments.threads))
    else:
        measures = measure_sorted(queries, scorer)
    seconds = time.perf_counter() - started
    return {
        "version": version,
        "queries": count,
        "candidates": arguments.candidates,
        "dim": arguments.dim,
        "seconds": round(seconds, 2),
        "cpu_seconds": round(sum(os.times()[:2]) - cpu, 2),
        "ms_per_query": round(1000 * seconds / count, 3),
        "peak_mb": round(peak_mb()),
        "peak_before_mb": round(before),
        "recall": [round(measures[f"recall@{k}"], 9) for k in KS],
        "cores": os.cpu_count(),
    }


def draw(count: int, candidates: int, dim: int) -> tuple[Queries, Products]:
    """Queries whose held-out candidates are drawn near their vector, so that there is something to find."""
    candidate_vectors = unit(np.random.default_rng(1).standard_normal((candidates, dim), dtype=np.float32))
    rng = np.random.default_rng(2)
    history, targets, vectors = [], [], np.empty((count, dim), np.float32)
    for query in range(count):
        drawn = rng.choice(candidates, HISTORY + HELD_OUT, replace=False)
        history.append(np.sort(drawn[:HISTORY]))
        targets.append(np.sort(drawn[HISTORY:]))
        vectors[query] = candidate_vectors[targets[-1]].sum(axis=0)
    held_out = np.full(count, HELD_OUT)
    queries = Queries(pa.array([{}] * count, pa.struct([])), history, targets, held_out, np.zeros(count, dtype=bool))
    return queries, Products(unit(vectors), candidate_vectors)


def unit(vectors: np.ndarray) -> np.ndarray:
    vectors /= np.sqrt(np.einsum("ij,ij->i", vectors, vectors))[:, None]  # without a copy, which the peak would show
    return vectors


def measure_sorted(queries: Queries, scorer: Products) -> dict[str, float]:
    """The straightforward way."""
    ideal = np.cumsum(1 / np.log2(np.arange(max(KS)) + 2))
    sums: dict[str, float] = {}
    for query, vector in enumerate(scorer.vectors):
        scores = scorer.candidate_vectors @ vector
        scores[queries.history[query]] = -np.inf
        order = np.argsort(-scores)
        places = np.sort(np.flatnonzero(np.isin(order, queries.targets[query])))
        values = {"mrr": 1 / (places[0] + 1)}
        for k in KS:
            hits = places[places < k]
            values[f"recall@{k}"] = len(hits) / HELD_OUT
            values[f"ndcg@{k}"] = (1 / np.log2(hits + 2)).sum() / ideal[min(k, HELD_OUT) - 1]
        for name, value in values.items():
            sums[name] = sums.get(name, 0.0) + value / len(queries)
    return sums


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def line(result: dict[str, Any]) -> str:
    return (
        f"{result['version']:9} {result['queries']:7,} queries x {result['candidates']:,} x {result['dim']}: "
        f"{result['seconds']:7.1f} s, {result['cpu_seconds']:7.1f} CPU s, {result['ms_per_query']:7.2f} ms a query, "
        f"peak {result['peak_mb']:,} MB ({result['peak_before_mb']:,} before), load {result['load_before']}"
    )


def report(results: list[dict[str, Any]], path: Path | None) -> None:
    lockstep, few, plain = results
    if few["recall"] != plain["recall"]:
        raise SystemExit(f"the two disagree: recall at {KS} is {few['recall']} and {plain['recall']}")
    ratios = {
        "by_clock": round(plain["ms_per_query"] / lockstep["ms_per_query"], 1),
        "by_cpu": round((plain["cpu_seconds"] / plain["queries"]) / (lockstep["cpu_seconds"] / lockstep["queries"]), 1),
    }
    print(f"sorted / lockstep: {ratios['by_clock']} times the time a query, {ratios['by_cpu']} times the CPU time")
    if path is not None:
        path.write_text(json.dumps({"results": results, "ratios": ratios}, indent=1) + "\n")


if __name__ == "__main__":
    main()
