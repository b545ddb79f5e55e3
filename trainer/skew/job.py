"""The measurement of every pair of model versions, and what is written of it.

<output>/        a plain folder, no artifact: it has no tag
  skew.json      {"what", "root", "created_at", "lockstep", "ks",
                  "queries": {"model_version", "run", "split", "asked", "of", "held_out", "test_from"},
                  "versions": [{"model_version", "release", "run", "dim", "candidates", "ranked",
                                "held_out_known"}],
                  "pairs": [{"query_version", "candidate_version", "matched", "recall@20": estimate, ..., "mrr":
                             estimate, "kept@20", ...} or, for other dimensions, {..., "not_comparable": why}],
                  "popularity": [{"candidate_version", "recall@20": estimate, ..., "mrr": estimate}],
                  "chance": [{"candidate_version", "recall@20", ...}],
                  "left_out": {version: why}, "notes": [sentences]}
                 where an estimate is {"value", "low", "high"}: the mean and its 95 % bootstrap interval, and
                 kept@20 is the recall@20 over that of the same queries on their own version's candidates
  skew.csv       the pairs and references, a row each
  skew.svg       the same as a heat map
"""

from __future__ import annotations

import json
import logging
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from lockstep import __version__
from lockstep.errors import StorageError
from lockstep.registry import Registry
from lockstep.storage import open_root, write_atomically
from lockstep.tags import TAG_FILE
from lockstep.towers import Tower
from lockstep.version import ModelVersion
from trainer.evaluate import embed
from trainer.evaluation.bootstrap import intervals
from trainer.evaluation.queries import Catalogue, Queries
from trainer.evaluation.ranking import SameForAll
from trainer.skew.heat_map import heat_map
from trainer.skew.mixing import Asked, CandidateVectors, Measures, Vectors, chance, measure, mix
from trainer.skew.releases import Compared, choose, open_versions, read_asked, read_candidates
from trainer.skew.table import csv_of

_log = logging.getLogger(__name__)
WHAT = (
    "An offline measurement in which model versions are mixed on purpose, to show what that would cost. "
    "Serving never compares two versions, and nothing in this folder can be served."
)
Key = tuple[ModelVersion | None, ModelVersion]
"""The version of the queries, None for popularity; and that of the candidates."""
_RESAMPLES = 1_000
_DIGITS = 6


def run(
    *,
    root: str,
    versions: Sequence[ModelVersion],
    ks: Sequence[int],
    queries: int,
    output: Path,
    threads: int,
    seed: int = 1,
    now: datetime | None = None,
) -> dict[str, Any]:
    """Measure the queries of every version on the candidates of every version, and write it down.

    Args:
        root: local folder or gs:// prefix.
        versions: which; none for those of the live and the retained releases.
        ks: where recall is measured.
        queries: at most so many of the newest version's test queries.
        output: a new folder, or one that holds no artifact; an earlier result in it is replaced.
        threads: blocks of queries at a time, 64 MB of scores each.
        seed: of the choice of queries and of the intervals.
        now: the moment of writing; the clock's by default.

    Returns:
        What `skew.json` holds.

    Raises:
        ReleaseError: nothing is published, a version has no release, or fewer than two versions can be compared.
        ArtifactError: the test queries are gone.
        DataError: there are none, or vectors that are not finite.
        StorageError: the output cannot be written.
    """
    storage = open_root(root)
    registry = Registry(storage)
    compared, left_out = open_versions(registry, choose(registry, versions))
    newest = compared[-1]
    catalogue, chosen, there = read_asked(storage, newest, queries, seed)
    asked = Asked(chosen, sorted(set(ks)), threads)
    _make_folder(output)
    _log.info("%s of %s test queries of %s", f"{len(chosen):,}", f"{there:,}", newest.model_version)
    measured = _measure_all(compared, catalogue, asked, seed)
    report = {
        "what": WHAT,
        "root": storage.root,
        "created_at": (now or datetime.now(UTC)).isoformat(timespec="seconds"),
        "lockstep": __version__,
        "ks": list(asked.ks),
        "queries": _asked_facts(newest, asked, there),
        **measured,
        "left_out": left_out,
        "notes": [*_notes(compared), *_alike(measured["pairs"], max(ks))],
    }
    write_atomically(output / "skew.csv", csv_of(report).encode())
    write_atomically(output / "skew.svg", heat_map(report))
    write_atomically(output / "skew.json", json.dumps(report, indent=1).encode() + b"\n")
    return report


def _asked_facts(newest: Compared, asked: Asked, there: int) -> dict[str, Any]:
    return {
        "model_version": int(newest.model_version),
        "run": newest.release.run,
        "split": "test",
        "asked": len(asked.queries),
        "of": there,
        "held_out": int(asked.queries.held_out.sum()),
        "test_from": newest.release.data_window.get("test_from"),
    }


def _make_folder(output: Path) -> None:
    if (output / TAG_FILE).exists():
        raise StorageError(f"{output} is an artifact, which never changes: name another folder with --output")
    try:
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output):
            pass  # it can be written, which is better known before the work than after
    except OSError as error:
        raise StorageError(f"cannot write {output}: {error.strerror}; name another folder with --output") from error


def _embed(compared: Sequence[Compared], queries: Queries) -> dict[ModelVersion, Vectors]:
    """The same queries by the tower of each version, each opened once."""
    vectors = {}
    for version in compared:
        vectors[version.model_version] = embed(Tower(version.query_tower), queries.features)
        _log.info("embedded the queries with the query tower of %s", version.model_version)
    return vectors


def _measure_all(compared: Sequence[Compared], catalogue: Catalogue, asked: Asked, seed: int) -> dict[str, Any]:
    """The report on every pair and version; one version's candidates are in memory at a time."""
    vectors = _embed(compared, asked.queries)
    values: dict[Key, Measures | None] = {}
    facts, random = [], []
    popular = SameForAll(catalogue.popular_30d)
    for version in compared:
        candidates = read_candidates(version, catalogue)
        across = version.model_version
        for of_queries in vectors:
            name = f"queries of {of_queries}, candidates of {across}"
            started = time.monotonic()
            values[of_queries, across] = found = mix(vectors[of_queries], candidates, asked, name)
            _log.info("%s: %s", name, _line(found, asked, time.monotonic() - started))
        values[None, across] = measure(lambda _: popular, candidates.held, asked, "popularity")
        facts.append(_facts(version, candidates, asked))
        recalls = {f"recall@{k}": round(chance(candidates.held, asked.queries, k), _DIGITS) for k in asked.ks}
        random.append({"candidate_version": int(across), **recalls})
    return {"versions": facts, **_results(compared, values, asked, seed), "chance": random}


def _line(found: Measures | None, asked: Asked, seconds: float) -> str:
    if found is None:
        return "their dimensions differ"
    return ", ".join(f"recall@{k} {found[f'recall@{k}'].mean():.4f}" for k in asked.ks) + f" in {seconds:.0f} s"


def _facts(version: Compared, candidates: CandidateVectors, asked: Asked) -> dict[str, Any]:
    known = sum(int(np.count_nonzero(candidates.held[targets])) for targets in asked.queries.targets)
    return {
        "model_version": int(version.model_version),
        "release": str(version.release.id),
        "run": version.release.run,
        "dim": candidates.vectors.shape[1],
        "candidates": version.candidate_embeddings.tag.rows,
        "ranked": int(np.count_nonzero(candidates.held)),
        "held_out_known": round(known / int(asked.queries.held_out.sum()), _DIGITS),
    }


def _results(
    compared: Sequence[Compared], values: Mapping[Key, Measures | None], asked: Asked, seed: int
) -> dict[str, Any]:
    """The pairs and the popularity row, with intervals from the same draws for all."""
    columns = [(key, name, of) for key, found in values.items() if found is not None for name, of in found.items()]
    low, high = intervals(np.stack([of for _, _, of in columns], axis=1), _RESAMPLES, seed)
    estimates: dict[Key, dict[str, Any]] = {key: {} for key in values}
    for (key, name, of), *bounds in zip(columns, low, high, strict=True):
        value, bottom, top = (None if np.isnan(one) else round(float(one), _DIGITS) for one in (of.mean(), *bounds))
        estimates[key][name] = {"value": value, "low": bottom, "high": top}
    numbers = [version.model_version for version in compared]
    return {
        "pairs": [_pair(row, column, estimates, asked) for row in numbers for column in numbers],
        "popularity": [{"candidate_version": int(column), **estimates[None, column]} for column in numbers],
    }


def _pair(
    row: ModelVersion, column: ModelVersion, estimates: Mapping[Key, dict[str, Any]], asked: Asked
) -> dict[str, Any]:
    pair = {"query_version": int(row), "candidate_version": int(column), "matched": row == column}
    if not estimates[row, column]:
        return {**pair, "not_comparable": f"vectors of {row} and {column} have different dimensions, and no product"}
    kept = {}
    for k in asked.ks:
        own, here = (estimates[row, other][f"recall@{k}"]["value"] for other in (row, column))
        kept[f"kept@{k}"] = round(here / own, _DIGITS) if own else None
    return {**pair, **estimates[row, column], **kept}


def _notes(compared: Sequence[Compared]) -> list[str]:
    """What a reader of the figures has to know of the versions, as far as their manifests and tags tell."""
    newest = compared[-1]
    cut = newest.release.data_window.get("test_from")
    numbers = {version.query_tower.tag.digest: version.model_version for version in compared}
    notes = []
    for version in compared:
        before = numbers.get((version.query_tower.tag.inputs or {}).get("warm_start_query_tower", ""))
        if before is not None:
            notes.append(f"{version.model_version} began with the weights of {before} (a warm start)")
        theirs = version.release.data_window.get("test_from")
        if cut and theirs and theirs > cut:
            notes.append(
                f"{version.model_version} may have learnt from events after {cut}, which the test queries of "
                f"{newest.model_version} hold out: its figures flatter it"
            )
    return notes


def _alike(pairs: Sequence[Mapping[str, Any]], k: int) -> list[str]:
    """That versions give the same, where they do: then nothing was trained differently."""
    kept = {(pair["query_version"], pair["candidate_version"]): pair.get(f"kept@{k}") for pair in pairs}
    return [
        f"v{left} and v{right} are the same model, as the same data, settings and seed give: train with another "
        "[train] seed to see what a new training would cost"
        for left, right in kept
        if left < right and kept[left, right] == kept[right, left] == 1.0
    ]
