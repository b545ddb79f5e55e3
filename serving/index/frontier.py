"""What the tuning of an index measured, for people: recall against time, as JSON and as a picture.

frontier.json    {"target_recall", "exact_microseconds", "train_seconds", "tune_seconds", "chosen": point,
                 "points": [point, ...]}, where a point is {"count", "leaves", "reorder", "recall", "half_width",
                 "microseconds"}
frontier.svg     the same, with the points that no other one beats joined by a line
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from serving.index.scann import TunedTree
from serving.index.tuning import Point

FRONTIER = "frontier.json"
PICTURE = "frontier.svg"
_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 640, 360, 70, 50


def write_frontier(directory: Path, tuned: TunedTree, exact_microseconds: float, target_recall: float) -> None:
    """Write both files into an index's folder.

    Args:
        exact_microseconds: a query of exact search over everything.
    """
    values = {
        "target_recall": target_recall,
        "exact_microseconds": exact_microseconds,
        "train_seconds": tuned.train_seconds,
        "tune_seconds": tuned.tune_seconds,
        "chosen": asdict(tuned.chosen),
        "points": [asdict(point) for point in tuned.points],
    }
    (directory / FRONTIER).write_text(json.dumps(values, indent=1) + "\n")
    (directory / PICTURE).write_text(draw_frontier(tuned.points, tuned.chosen, target_recall))


def unbeaten(points: Iterable[Point]) -> list[Point]:
    """The points than which none has more recall in less time, by ascending time."""
    found: list[Point] = []
    for point in sorted(points, key=lambda one: (one.microseconds, -one.recall)):
        if not found or point.recall > found[-1].recall:
            found.append(point)
    return found


def draw_frontier(points: Iterable[Point], chosen: Point, target_recall: float) -> str:
    """An SVG: microseconds a query to the right (logarithmic), recall upwards."""
    points = list(points)
    low = math.floor(20 * min(point.recall for point in points)) / 20
    slow = math.log10(max(point.microseconds for point in points)) + 0.05
    fast = math.log10(min(point.microseconds for point in points)) - 0.05

    def x(microseconds: float) -> float:
        return _LEFT + (math.log10(microseconds) - fast) / (slow - fast) * (_WIDTH - _LEFT - 20)

    def y(recall: float) -> float:
        return _HEIGHT - _BOTTOM - (recall - low) / max(1e-9, 1 - low) * (_HEIGHT - _BOTTOM - 20)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" '
        'font-size="12">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        f'<text x="{_LEFT}" y="14">recall@{chosen.count} against microseconds a query; '
        f"chosen: {chosen.recall:.4f} in {chosen.microseconds:.0f} us</text>",
    ]
    steps = 5
    for step in range(steps + 1):
        recall = low + (1 - low) * step / steps
        microseconds = 10 ** (fast + (slow - fast) * step / steps)
        parts += [
            f'<line x1="{_LEFT}" y1="{y(recall):.1f}" x2="{_WIDTH - 20}" y2="{y(recall):.1f}" stroke="#ddd"/>',
            f'<text x="{_LEFT - 8}" y="{y(recall) + 4:.1f}" text-anchor="end">{recall:.3f}</text>',
            f'<text x="{x(microseconds):.1f}" y="{_HEIGHT - 28}" text-anchor="middle">{microseconds:.0f}</text>',
        ]
    parts.append(
        f'<line x1="{_LEFT}" y1="{y(target_recall):.1f}" x2="{_WIDTH - 20}" y2="{y(target_recall):.1f}" '
        'stroke="#b00" stroke-dasharray="4"/>'
    )
    line = " ".join(f"{x(point.microseconds):.1f},{y(point.recall):.1f}" for point in unbeaten(points))
    parts.append(f'<polyline points="{line}" fill="none" stroke="#246"/>')
    for point in points:
        title = f"{point.leaves} leaves, {point.reorder} reordered: {point.recall:.4f} in {point.microseconds:.0f} us"
        parts.append(
            f'<circle cx="{x(point.microseconds):.1f}" cy="{y(point.recall):.1f}" r="3" fill="#246">'
            f"<title>{title}</title></circle>"
        )
    parts.append(
        f'<circle cx="{x(chosen.microseconds):.1f}" cy="{y(chosen.recall):.1f}" r="6" fill="none" stroke="#b00" '
        'stroke-width="2"/>'
    )
    return "\n".join([*parts, "</svg>\n"])
