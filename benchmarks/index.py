"""The index: build, tuning, load, one query, many queries, filters, growth, changes.

    python benchmarks/index.py PART --output FILE.json [--rows N] [--root RUN_ROOT] [--hnswlib]

Parts
  million   1 M x 64: build, tuning, load, memory; one query by us and by ScaNN with plain settings (1,000 leaves, 100
            searched, 400 scored again) in the same process, and by hnswlib with --hnswlib
  batched   200 k x 128, k = 100, recall of about .99: many queries, against hnswlib's
  targets   recall for queries that the tuning has not seen, for targets from .80 to .995
  filters   recall and time under filters that keep 0.1 to 50 % of the candidates, at random and by direction
  growth    build, load, memory and times for 10^4, 10^5, ... up to --rows candidates (10^6)
  changes   recall and times while an index changes, at random and towards directions of their own

With --root the embeddings are those of the newest run of a model below that root, with fewer rows as there are.
hnswlib is not among the dependencies: pip install hnswlib.
"""

from __future__ import annotations

import argparse
import json
import logging
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from index_conditions import changes, filters
from index_data import VERSION, Vectors, made_by_a_model, mixture, write_artifacts
from index_peers import Rows, hnswlib_search, last_scores, plain_scann, recalls, singles

from lockstep.config import IndexSection
from lockstep.embeddings import VersionedEmbedding, VersionedEmbeddings
from serving import build_index
from serving.index import Index, open_index

SEED = 1
K = 100
EFS = (200, 300, 500, 700)
TURNS = 3
Report = dict[str, Any]


def million(arguments: argparse.Namespace, work: Path) -> Report:
    candidates, queries = embeddings(arguments, 1_000_000, 4_000, 64)
    index, report = build(work, candidates, queries[:2_000], IndexSection(target_recall=0.96))
    asked = queries[2_000:3_000]
    last = last_scores(candidates, asked, K)
    plain, seconds = plain_scann(candidates, 1_000)
    report["plain build s"] = round(seconds, 1)
    searches: dict[str, Callable[[Vectors], Rows]] = {"ours": ours(index), "plain ScaNN": plain}
    if arguments.hnswlib:
        graph, seconds = hnswlib_search(candidates, 2)
        report["hnswlib build s"] = round(seconds, 1)
        searches |= {f"hnswlib ef {ef}": lambda query, ef=ef: graph(query[None], K, ef)[0] for ef in EFS}
    for _ in range(TURNS):
        for name, search in searches.items():
            report.setdefault(name, []).append(singles(search, candidates, asked, last, K))
    return report


def batched(arguments: argparse.Namespace, work: Path) -> Report:
    candidates, queries = embeddings(arguments, 200_000, 8_000, 128)
    index, report = build(work, candidates, queries[:2_000], IndexSection(target_recall=0.9875))
    asked = queries[2_000:6_000]
    checked = asked[:1_000]
    last = last_scores(candidates, checked, K)
    graph, seconds = hnswlib_search(candidates, 2)
    report["hnswlib build s"] = round(seconds, 1)

    def together(some: Vectors) -> list[Rows]:
        return [rows_of(found.ids) for found in index.search_batch(VersionedEmbeddings(some, VERSION), K)]

    searches: dict[str, Callable[[Vectors], Any]] = {
        # What the names are made numbers for is the comparison; it is not timed.
        "ours": lambda some: index.search_batch(VersionedEmbeddings(some, VERSION), K),
        **{f"hnswlib ef {ef}": lambda some, ef=ef: graph(some, K, ef) for ef in EFS},
    }
    for name, search in searches.items():
        found = together(checked) if name == "ours" else list(search(checked))
        share = float(recalls(candidates, checked, found, last, K).mean())
        report[name] = {f"recall@{K}": round(share, 4), "queries/s": []}
    for _ in range(TURNS):
        for name, search in searches.items():
            start = time.perf_counter()
            search(asked)
            report[name]["queries/s"].append(round(len(asked) / (time.perf_counter() - start)))
    return report


def targets(arguments: argparse.Namespace, work: Path) -> Report:
    candidates, queries = embeddings(arguments, 200_000, 12_000, 64)
    half = len(queries) // 2
    asked = queries[half:]
    last = last_scores(candidates, asked, K)
    report: Report = {"rows": len(candidates), "dim": candidates.shape[1], "fresh queries": len(asked)}
    for target in (0.8, 0.85, 0.9, 0.95, 0.98, 0.99, 0.995):
        section = IndexSection(target_recall=target, backend="scann")
        index, built = build(work, candidates, queries[:half], section)
        answers = index.search_batch(VersionedEmbeddings(asked, VERSION), K)
        shares = recalls(candidates, asked, (rows_of(found.ids) for found in answers), last, K)
        report[str(target)] = {
            "measured": round(float(shares.mean()), 4),
            "above by": round(float(shares.mean()) - target, 4),
            "half width": round(1.96 * float(shares.std(ddof=1)) / len(shares) ** 0.5, 4),
            "tuned": built["tuned"],
        }
        logging.info("target %s: %s", target, report[str(target)])
    return report


def growth(arguments: argparse.Namespace, work: Path) -> Report:
    most = arguments.rows or 1_000_000
    report: Report = {}
    rows = 10_000
    while rows <= most:
        candidates, queries = mixture(rows, 3_000, 64, SEED)
        index, found = build(work, candidates, queries[:2_000], IndexSection())
        asked = queries[2_000:]
        found["query"] = singles(ours(index), candidates, asked, last_scores(candidates, asked, K), K)
        report[str(rows)] = found
        logging.info("%d: %s", rows, found)
        rows *= 10
    return report


def embeddings(arguments: argparse.Namespace, rows: int, queries: int, dim: int) -> tuple[Vectors, Vectors]:
    """Candidates and queries, the latter in random order."""
    if arguments.root is not None:
        candidates, asked = made_by_a_model(arguments.root)
        order = np.random.default_rng(SEED).permutation(len(asked))[:queries]
        return candidates, asked[order]
    return mixture(arguments.rows or rows, queries, dim, SEED)


def build(work: Path, candidates: Vectors, queries: Vectors, section: IndexSection) -> tuple[Index, Report]:
    """Build an index as the pipeline does and open it, with the times of both and the memory of the latter."""
    made, asked = write_artifacts(work, candidates, queries)
    start = time.perf_counter()
    build_index.run(
        candidate_embeddings=made,
        query_embeddings=asked,
        index=work / "index",
        model_version=VERSION,
        run_id="b",
        section=section,
    )
    whole = time.perf_counter() - start
    before, start = resident_bytes(), time.perf_counter()
    index = open_index(work / "index", VERSION, 1)
    loaded = time.perf_counter() - start
    frontier = work / "index" / "frontier.json"
    report = {
        "rows": len(candidates),
        "dim": candidates.shape[1],
        "backend": type(index).__name__,
        "target": section.target_recall,
        "whole job s": round(whole, 1),
        "load s": round(loaded, 2),
        "memory of the load MB": round((resident_bytes() - before) / 1e6),
        "files MB": round(sum(path.stat().st_size for path in (work / "index").rglob("*") if path.is_file()) / 1e6),
    }
    if frontier.exists():
        values = json.loads(frontier.read_bytes())
        report["tuned"] = values["chosen"]
        report["exact us"] = round(values["exact_microseconds"])
        report["train s"], report["tune s"] = (round(values[f"{what}_seconds"], 1) for what in ("train", "tune"))
    return index, report


def ours(index: Index) -> Callable[[Vectors], Rows]:
    """A search as the retriever makes it; that ids become numbers is in the time, some 5 us."""
    return lambda query: rows_of(index.search(VersionedEmbedding(query, VERSION), K).ids)


def rows_of(ids: tuple[str, ...]) -> Rows:
    return np.array([int(name[1:]) for name in ids], np.int64)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


PARTS: dict[str, Callable[[argparse.Namespace, Path], Report]] = {
    "million": million,
    "batched": batched,
    "targets": targets,
    "growth": growth,
    "filters": lambda arguments, work: filters(*embeddings(arguments, 1_000_000, 3_000, 64), work),
    "changes": lambda arguments, work: changes(*embeddings(arguments, 200_000, 3_000, 64), work),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=sorted(PARTS))
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--rows", type=int)
    parser.add_argument("--root", type=Path)
    parser.add_argument("--hnswlib", action="store_true")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    work = Path(tempfile.mkdtemp(prefix="index-"))
    try:
        report = PARTS[arguments.part](arguments, work / "work")
    finally:
        shutil.rmtree(work)
    arguments.output.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
