"""The report as one HTML page that needs nothing else: no scripts, links or images."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from functools import cache
from typing import Any

import jinja2

from dataflow.feature_report import thresholds
from dataflow.feature_report.advice import percent

_WIDTH = 600.0
"""Of a drawing, in its own units."""


def render(report: Mapping[str, Any]) -> str:
    """The page.

    Args:
        report: as `build` returns it.
    """
    page = _environment().get_template("page.html")
    return page.render(report=report, limits=thresholds, timeline=_timeline(report["cuts"]), advised=_advised(report))


def _timeline(cuts: Mapping[str, str]) -> list[dict[str, Any]]:
    """The parts of the time line: label, beginning, end, left edge and width."""
    names = ("oldest_label", "validation_from", "test_from", "newest")
    moments = [datetime.fromisoformat(cuts[name]) for name in names]
    whole = max((moments[-1] - moments[0]).total_seconds(), 1.0)
    edges = [max((moment - moments[0]).total_seconds(), 0.0) / whole * _WIDTH for moment in moments]
    labels = ("training", "validation", "test")
    return [
        {"label": label, "from": a, "to": b, "x": x, "width": max(to - x, 0.0)}
        for label, a, b, x, to in zip(labels, moments, moments[1:], edges, edges[1:], strict=False)
    ]


def _advised(report: Mapping[str, Any]) -> dict[tuple[str, str], list[str]]:
    found: dict[tuple[str, str], list[str]] = {}
    for line in report["advice"]:
        found.setdefault((line["tower"], line["feature"]), []).append(line["text"])
    return found


def _bars(counts: list[float]) -> list[dict[str, float]]:
    """Bars of the width of the drawing, the highest 1 high."""
    highest, width = max([*counts, 0]) or 1, _WIDTH / max(len(counts), 1)
    return [
        {"x": place * width, "width": width, "height": count / highest, "count": count}
        for place, count in enumerate(counts)
    ]


def _percent(value: float | None) -> str:
    return "–" if value is None else percent(value)


def _number(value: float | None) -> str:
    """A number as people write it.

    >>> _number(1234567), _number(42187.6), _number(0.123456), _number(None)
    ('1,234,567', '42,188', '0.1235', '–')
    """
    if value is None:
        return "–"
    return f"{value:,.0f}" if 1_000 <= abs(value) < 1e15 or value == int(value) else f"{value:,.4g}"


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("dataflow", "feature_report"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=True,  # names and values are other people's data
    )
    environment.filters.update(percent=_percent, number=_number, bars=_bars)
    return environment
