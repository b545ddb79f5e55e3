"""The measurement as text: a table for the terminal, and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from typing import Any

REFERENCES = ("popularity", "chance")
_MATCHED = "*"


def table(report: Mapping[str, Any]) -> str:
    """Query versions down, candidate versions across, a block for each k.

    Args:
        report: as trainer.skew.job writes it to skew.json.
    """
    lines = [report["what"].replace(". ", ".\n"), f"{heading(report)}, each query's own past left out", ""]
    for k in report["ks"]:
        rows = [[f"recall@{k}", *(f"candidates of v{v}" for v in _versions(report))]]
        rows += [[f"queries of v{v}", *(_cell(of, k) for of in row(report, v))] for v in _versions(report)]
        rows += [[name, *(_cell(of, k) for of in report[name])] for name in REFERENCES]
        lines += [*_aligned(rows), ""]
    lines.append(f"{_MATCHED} one version on both sides, as it is served; in brackets 95 % intervals over the queries")
    lines += [sentence for k in report["ks"] if (sentence := kept(report, k))]
    why = {of["not_comparable"] for of in report["pairs"] if "not_comparable" in of}
    lines += [f"- {reason}" for reason in sorted(why)]
    lines += [f"{version} is left out: {reason}" for version, reason in report["left_out"].items()]
    return "\n".join([*lines, *report["notes"]])


def heading(report: Mapping[str, Any]) -> str:
    """What was asked, and of what."""
    queries, ranked = report["queries"], {of["ranked"] for of in report["versions"]}
    counts = " to ".join(f"{count:,}" for count in sorted({min(ranked), max(ranked)}))
    return f"{queries['asked']:,} of {queries['of']:,} test queries of v{queries['model_version']}, {counts} candidates"


def kept(report: Mapping[str, Any], k: int) -> str:
    """The range of what mixed pairs keep, in a sentence; empty where there is no such pair."""
    shares = [of[f"kept@{k}"] for of in report["pairs"] if not of["matched"] and of.get(f"kept@{k}") is not None]
    if not shares:
        return ""
    low, high = (f"{100 * share:.1f}" for share in (min(shares), max(shares)))
    share = f"{low} %" if low == high else f"{low} to {high} %"
    return f"of a query tower's recall@{k} on its own candidates, those of another version keep {share}"


def row(report: Mapping[str, Any], version: int) -> list[Mapping[str, Any]]:
    """The pairs of one query version."""
    return [of for of in report["pairs"] if of["query_version"] == version]


def csv_of(report: Mapping[str, Any]) -> str:
    """A row for each pair, and for each reference with `popularity` or `chance` in the place of the query version."""
    measures = [*(f"recall@{k}" for k in report["ks"]), "mrr"]
    columns = [f"{name}{part}" for name in measures for part in ("", "_low", "_high")]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["queries", "candidates", "matched", *columns])
    named = [(f"v{of['query_version']}", of) for of in report["pairs"]]
    named += [(name, of) for name in REFERENCES for of in report[name]]
    for name, of in named:
        figures = [figure for measure in measures for figure in _figures(of.get(measure))]
        writer.writerow([name, f"v{of['candidate_version']}", str(of.get("matched", False)).lower(), *figures])
    return text.getvalue()


def _figures(value: Any) -> list[float | None]:
    """An estimate with its bounds; of a number that has none, the number."""
    return [value.get("value"), value.get("low"), value.get("high")] if isinstance(value, dict) else [value, None, None]


def _cell(of: Mapping[str, Any], k: int) -> str:
    value, low, high = _figures(of.get(f"recall@{k}"))
    if value is None:
        return "-"
    bounds = "" if low is None else f" [{low:.4f}, {high:.4f}]"
    return f"{value:.4f}{_MATCHED if of.get('matched') else ''}{bounds}"


def _versions(report: Mapping[str, Any]) -> list[int]:
    return [of["model_version"] for of in report["versions"]]


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(f"{cell:{width}}" for cell, width in zip(cells, widths, strict=True)).rstrip() for cells in rows]
