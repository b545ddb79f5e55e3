"""What `lockstep run` and `lockstep releases` print."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from lockstep.errors import LockstepError, ReleaseError
from lockstep.registry import Registry, Release, Serving
from lockstep.storage import open_root
from lockstep.version import ReleaseId


def describe_run(root: str, run: str) -> str:
    """What a finished run made: its release, whether it is live, and how good it is."""
    registry = Registry(open_root(root))
    for release_id in reversed(registry.releases()):
        release = registry.release(release_id)
        if release.run == run:
            state = _state(release_id, registry.serving())
            return f"release {release_id} is {state}: {describe_quality(release)}"
    raise ReleaseError(f"run {run} has no release in {root}: see its logs in {root}/runs/{run}/logs")


def describe_quality(release: Release) -> str:
    """One line of figures: recall against popularity on the test split, and the index against exact search."""
    test = release.metrics.get("test", {})
    model, popularity = test.get("model", {}), test.get("popularity", {})
    parts = []
    for name in sorted((n for n in model if n.startswith("recall@")), key=lambda n: int(n.split("@")[1])):
        parts.append(f"{name} {model[name]:.3f} (popularity {popularity.get(name, float('nan')):.3f})")
    text = f"{', '.join(parts)} on {test.get('queries', 0):,} held-out queries" if parts else "not evaluated"
    checks = [check for check in release.gate.get("checks", []) if "against exact search" in check["name"]]
    return text + "".join(f"; {check['name'].replace(':', '')} {check['value']:.3f}" for check in checks)


def describe_releases(root: str, as_json: bool) -> str:
    """Every release, newest first: its state, when and by which run it was made, and how good it is."""
    registry = Registry(open_root(root))
    serving = registry.serving()
    rows = [_row(registry, release_id, serving) for release_id in reversed(registry.releases())]
    if as_json:
        return json.dumps({"live": None if serving.live is None else str(serving.live), "releases": rows}, indent=1)
    if not rows:
        return f"no release in {registry.storage.root} yet: `lockstep run --config FILE` makes one"
    lines = [f"{row['release']:8} {row['state']:9} {row['created_at'][:19]:19}  {row['quality']}" for row in rows]
    return "\n".join([f"{'release':8} {'state':9} {'created (UTC)':19}  quality", *lines])


def _row(registry: Registry, release_id: ReleaseId, serving: Serving) -> dict[str, Any]:
    row: dict[str, Any] = {"release": str(release_id), "state": _state(release_id, serving)}
    try:
        release = registry.release(release_id)
    except LockstepError as error:
        return {**row, "run": "", "created_at": "", "quality": f"unreadable: {error}", "metrics": {}}
    metrics: Mapping[str, Any] = release.metrics
    return {
        **row,
        "run": release.run,
        "created_at": release.created_at,
        "quality": describe_quality(release),
        "metrics": metrics,
    }


def _state(release_id: ReleaseId, serving: Serving) -> str:
    if release_id == serving.live:
        return "live"
    return "retained" if release_id in serving.retained else "built"
