"""The evaluation report as one HTML file that needs nothing else."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem; color: #1d2430 }
table { border-collapse: collapse; width: 100% } th, td { padding: .3rem .7rem; border-bottom: 1px solid #dde1e8 }
th { text-align: left } td { text-align: right; font-variant-numeric: tabular-nums }
td.bar { width: 30%; text-align: left }
.bar span { display: block; height: .7rem; background: #3b6fd4; border-radius: 2px }
p { color: #566073 }
"""
_TITLES = {"test": "Test split", "validation": "Validation split"}


def html_report(report: Mapping[str, Any]) -> str:
    """Render a report.

    Args:
        report: as `trainer.evaluate` writes it to report.json.

    Returns:
        An HTML document without scripts, links or images.
    """
    heading = f"Evaluation of v{report['model_version']}"
    run = f"Run {html.escape(str(report['run']))}. Exact ranking of the full catalogue by the exported towers."
    sections = "".join(_split(title, report[split]) for split, title in _TITLES.items() if split in report)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(heading)}</title>'
        f"<style>{_STYLE}</style></head>\n<body><h1>{html.escape(heading)}</h1><p>{run}</p>\n{sections}</body></html>\n"
    )


def _split(title: str, split: Mapping[str, Any]) -> str:
    counts = (
        f"{split['queries']:,} queries, {split['candidates']:,} candidates, {split['held_out']:,} held out, "
        f"{split['held_out_unknown']:,} of them unknown to the catalogue."
    )
    model = split["model"]
    rows = "".join(
        _row(name, model[name], split["popularity"].get(name), split["popularity_all_time"].get(name))
        for name in sorted(model, key=_order)
    )
    header = "<tr><th>measure<th>model<th>popularity, 30 days<th>popularity, all time<th>model / popularity<th></tr>"
    return f"<h2>{html.escape(title)}</h2><p>{counts}</p>\n<table>{header}{rows}</table>\n"


def _row(name: str, value: float, recent: float | None, always: float | None) -> str:
    ratio = f"{value / recent:.2f}" if recent else "-"
    cells = "".join("<td>-" if v is None else f"<td>{v:.4f}" for v in (value, recent, always))
    bar = f'<td class="bar"><span style="width:{min(max(value, 0.0), 1.0):.1%}"></span>'
    return f"<tr><th>{html.escape(name)}{cells}<td>{ratio}{bar}</tr>\n"


def _order(name: str) -> tuple[str, int]:
    measure, _, k = name.partition("@")
    return measure, int(k or 0)
