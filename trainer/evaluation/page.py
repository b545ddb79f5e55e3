"""The evaluation report as one HTML page that needs nothing else: no scripts, links or images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import jinja2

from trainer.evaluation.bootstrap import FEWEST_QUERIES

_TITLES = {"test": "Test split", "validation": "Validation split"}
_NAMES = {
    "model": "model",
    "popularity": "popularity, 30 days",
    "popularity_all_time": "popularity, all time",
    "item_knn": "item-kNN",
    "ease": "EASE",
    "als": "ALS",
}
"""The scorers in the order of their columns."""
_COLOURS = ("#3b6fd4", "#9aa4b2", "#c4cad3", "#e08a3c", "#2a8f64", "#a5519b")
_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 640.0, 260.0, 44.0, 24.0
_LESS_IS_BETTER = ("clicks",)
_NEITHER = ("popularity",)
"""Measures of which neither more nor less is better."""


def render(report: Mapping[str, Any]) -> str:
    """The page.

    Args:
        report: as `trainer.evaluate` writes it to report.json.
    """
    splits = [_split(title, report, split) for split, title in _TITLES.items() if split in report]
    page = _environment().get_template("page.html")
    return page.render(report=report, splits=splits, names=_NAMES, fewest=FEWEST_QUERIES)


def _split(title: str, report: Mapping[str, Any], split: str) -> dict[str, Any]:
    facts, details = report[split], report["details"][split]
    scorers = [name for name in _NAMES if name in facts]
    measures = sorted(facts["model"], key=_order)
    recalls = [name for name in measures if name.startswith("recall@")]
    return {
        "title": title,
        "facts": facts,
        "details": details,
        "scorers": scorers,
        "measures": measures,
        "best": {measure: _best(measure, facts, scorers) for measure in measures},
        "gained": [name for name in measures if name in next(iter(details.get("gains", {}).values()), {})],
        "plot": _plot(details["curves"], scorers) if details else None,
        "bars": _bars(details["slices"], recalls[-1]) if details else [],
        "recall": recalls[-1] if recalls else "",
    }


def _order(name: str) -> tuple[str, int]:
    measure, _, k = name.partition("@")
    return measure, int(k or 0)


def _best(measure: str, facts: Mapping[str, Any], scorers: Sequence[str]) -> str | None:
    if measure.startswith(_NEITHER):
        return None
    choose = min if measure in _LESS_IS_BETTER else max
    return choose(scorers, key=lambda name: float(facts[name][measure]))


def _verdict(measure: str, estimate: Mapping[str, float | None]) -> str:
    """The class of a gain: good or bad where its interval leaves out 0."""
    low, high = estimate["low"], estimate["high"]
    if low is None or high is None or measure.startswith(_NEITHER) or low <= 0 <= high:
        return ""
    return "good" if (low > 0) != (measure in _LESS_IS_BETTER) else "bad"


def _plot(curves: Mapping[str, Mapping[str, float]], scorers: Sequence[str]) -> dict[str, Any]:
    """Lines of recall@k over the logarithm of k, with ticks."""
    ks = [int(k) for k in curves["model"]]
    highest = max((value for curve in curves.values() for value in curve.values()), default=0.0)
    top = _round_up(highest)
    right = math.log(max(ks[-1], 2))

    def x(k: int) -> float:
        return _LEFT + (_WIDTH - _LEFT - 12) * math.log(k) / right

    def y(value: float) -> float:
        return 8 + (_HEIGHT - _BOTTOM - 8) * (1 - value / top)

    lines = [
        {
            "name": _NAMES[name],
            "colour": _colour(name),
            "points": " ".join(f"{x(k):.1f},{y(curves[name][str(k)]):.1f}" for k in ks),
        }
        for name in reversed(scorers)  # the model last, so on top
    ]
    return {
        "lines": lines,
        "ticks_x": [(x(k), k) for k in ks],
        "ticks_y": [(y(top * part / 4), f"{top * part / 4:.3g}") for part in range(5)],
        "left": _LEFT,
        "right": _WIDTH - 12,
        "bottom": _HEIGHT - _BOTTOM,
    }


def _bars(slices: Sequence[Mapping[str, Any]], recall: str) -> list[dict[str, Any]]:
    """The model's recall in each slice as a bar, in hundredths of the widest; whiskers where it has an interval."""
    found = [of["recall"]["model"][recall] for of in slices]
    widest = max((max(of["value"] or 0.0, of["high"] or 0.0) for of in found), default=0.0) or 1.0

    def scaled(value: float | None) -> float | None:
        return None if value is None else 100 * value / widest

    return [{name: scaled(of[name]) for name in ("value", "low", "high")} for of in found]


def _round_up(value: float) -> float:
    """The next number with one digit, at least.

    >>> _round_up(0.317), _round_up(0.05), _round_up(0.0)
    (0.4, 0.05, 1.0)
    """
    if value <= 0:
        return 1.0
    unit = 10.0 ** math.floor(math.log10(value))
    return round(math.ceil(round(value / unit, 9)) * unit, 12)


def _colour(name: str) -> str:
    return _COLOURS[list(_NAMES).index(name)]


def _figure(value: float | None) -> str:
    """A measure as people write it.

    >>> _figure(0.12344), _figure(12.345), _figure(4321.5), _figure(None)
    ('0.1234', '12.3', '4,322', '–')
    """
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.4f}"


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("trainer", "evaluation"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=True,  # names and values are other people's data
    )
    environment.filters.update(figure=_figure)
    environment.globals.update(verdict=_verdict)
    return environment
