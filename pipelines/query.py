"""What `lockstep query` does: ask the planner, and show its answer with titles."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from lockstep.errors import LockstepError, ReleaseError, RequestError
from lockstep.registry import Registry, Release
from lockstep.schema import Schema
from lockstep.storage import Storage, open_root
from lockstep.tags import Artifact, Kind, open_artifact
from lockstep.version import ReleaseId
from pipelines.report import describe_quality
from serving.index import Comparison, Restricts
from serving.retriever import Answer, Request, Retriever

_OPERATORS = {
    "<": "LESS",
    "<=": "LESS_EQUAL",
    "=": "EQUAL",
    ">=": "GREATER_EQUAL",
    ">": "GREATER",
    "!=": "NOT_EQUAL",
}


def answer_query(
    root: str,
    entity: str | None,
    features: str | None,
    k: int,
    restricts: Restricts,
    exclude: Collection[str],
    new_only: bool,
    per_crowding_tag: int | None,
    as_json: bool,
) -> str:
    """Retrieve candidates and describe the answer.

    Args:
        features: a JSON object of raw query features.
        new_only: leave out what the query's own history holds.
    """
    storage = open_root(root)
    registry = Registry(storage)
    if registry.serving().live is None:
        raise ReleaseError(f"nothing is published in {storage.root}: `lockstep run --config FILE` publishes a release")
    given = None if features is None else _object(features)
    seen, reasons = _history(storage, registry, entity, given) if new_only else (set(), [])
    request = Request(entity, given, k, restricts, frozenset(set(exclude) | seen), per_crowding_tag)
    retriever = Retriever(storage)
    try:
        answer = retriever.answer(request)
    finally:
        retriever.close()
    titles, untitled = _titles(storage, registry, answer)
    answer = replace(answer, reasons=(*answer.reasons, *reasons, *untitled))
    return _as_json(answer, titles) if as_json else _as_text(registry, answer, titles)


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RequestError(
            f'--features is no JSON ({error}): give an object such as \'{{"title": "road trip"}}\''
        ) from error
    if not isinstance(value, dict):
        raise RequestError(f"--features is {text}: give a JSON object of feature names and values")
    return value


def parse_restricts(allow: Iterable[str], deny: Iterable[str], numbers: Iterable[str]) -> Restricts:
    """What is asked for on the command line.

    Args:
        allow: NAMESPACE=TOKEN each; tokens of one namespace are alternatives.
        deny: likewise; a candidate may have none of them.
        numbers: NAMESPACE, one of < <= = >= > != and a number.
    """
    return Restricts(_tokens("--restrict", allow), _tokens("--deny", deny), tuple(map(_comparison, numbers)))


def _tokens(option: str, pairs: Iterable[str]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for pair in pairs:
        namespace, equals, token = pair.partition("=")
        if not (namespace and equals and token):
            raise RequestError(f"{option} {pair!r}: write NAMESPACE=TOKEN, such as genre=rock")
        found.setdefault(namespace, set()).add(token)
    return found


def _comparison(text: str) -> Comparison:
    parts = re.fullmatch(r"([^<>=!]+)(<=|>=|!=|<|>|=)([^<>=!]+)", text)
    try:
        return Comparison(parts[1].strip(), _OPERATORS[parts[2]], float(parts[3]))  # type: ignore[index]
    except (TypeError, ValueError) as error:
        raise RequestError(f"--number {text!r}: write a namespace, one of {' '.join(_OPERATORS)}, a number") from error


def _history(
    storage: Storage, registry: Registry, entity: str | None, features: dict[str, Any] | None
) -> tuple[set[str], list[str]]:
    """The candidates that the query has seen, from the newest release that can tell; and why others could not."""
    reasons = []
    for release_id in registry.serving().plan():
        try:
            entities = _entities(storage, registry.release(release_id))
            schema = Schema.from_json(entities.read("schema.json"))
            known = [] if entity is None else [*_lookup(entities / "queries", "history", [entity]).values()]
        except (LockstepError, OSError, ValueError) as error:
            reasons.append(f"{release_id}: the query's history is not known from it ({error})")
            continue
        names = [name for name, feature in schema.query.items() if feature.columns == ("history.candidate_id",)]
        known += [value for name in names if isinstance(value := (features or {}).get(name), list)]
        return {candidate for history in known for candidate in history or [] if isinstance(candidate, str)}, reasons
    return set(), reasons


def _titles(storage: Storage, registry: Registry, answer: Answer) -> tuple[dict[str, str], list[str]]:
    """What a person calls the candidates; an answer without titles is still an answer, and says why."""
    if answer.release is None or not answer.candidates:
        return {}, []
    try:
        entities = _entities(storage, registry.release(ReleaseId.parse(answer.release)))
        ids = [candidate for candidate, _ in answer.candidates]
        return _lookup(entities / "candidates", "display", ids), []
    except (LockstepError, OSError, ValueError) as error:
        return {}, [f"{answer.release}: titles cannot be shown ({error})"]


def _entities(storage: Storage, release: Release) -> Artifact:
    part = release.part(Kind.ENTITIES)
    cache = Path.home() / ".cache" / "lockstep"
    return open_artifact(storage.local_copy(part.uri, cache), Kind.ENTITIES, digest=part.digest)


def _lookup(folder: Path, column: str, ids: list[str]) -> dict[str, Any]:
    import pyarrow.dataset as ds

    table = ds.dataset(folder).to_table(columns=["id", column], filter=ds.field("id").isin(ids))
    return dict(zip(table["id"].to_pylist(), table[column].to_pylist(), strict=True))


def _as_json(answer: Answer, titles: dict[str, str]) -> str:
    candidates = [{"id": id_, "score": score, "title": titles.get(id_)} for id_, score in answer.candidates]
    return json.dumps(
        {
            "release": answer.release,
            "rung": answer.rung,
            "degraded": answer.degraded,
            "reasons": list(answer.reasons),
            "candidates": candidates,
        },
        indent=1,
        ensure_ascii=False,
    )


def _as_text(registry: Registry, answer: Answer, titles: dict[str, str]) -> str:
    lines = [f"answered by release {answer.release or '-'}, rung: {answer.rung}{' (DEGRADED)' * answer.degraded}"]
    lines += [f"  because {reason}" for reason in answer.reasons]
    width = max((len(id_) for id_, _ in answer.candidates), default=0)
    for place, (id_, score) in enumerate(answer.candidates, 1):
        lines.append(f"{place:4}. {score:8.4g}  {id_:{width}}  {titles.get(id_, '')}".rstrip())
    if not answer.candidates:
        lines.append("  no candidate")
    elif answer.release is not None:
        lines.append(f"measured: {_quality(registry, answer.release)}")
    return "\n".join(lines)


def _quality(registry: Registry, release: str) -> str:
    try:
        return describe_quality(registry.release(ReleaseId.parse(release)))
    except LockstepError as error:
        return f"unknown ({error})"
