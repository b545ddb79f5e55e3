"""The measurement as a picture: an SVG that needs nothing else, every figure written in its cell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree

from trainer.skew.table import REFERENCES, heading, row

_SCALE = ("#ffffd9", "#edf8b1", "#c7e9b4", "#7fcdbb", "#41b6c4", "#1d91c0", "#225ea8")
"""ColorBrewer's YlGnBu without its last two, on which no frame would show; evenly darker to any eye."""
_DARK, _LIGHT, _GREY, _EMPTY = "#000000", "#ffffff", "#566073", "#eceff3"
_CELL, _ROW, _LABELS, _MARGIN, _TOP, _PANEL = 136, 52, 130, 16, 90, 54
_LEAST_WIDTH = 560
_TITLE = "Offline: what mixing model versions would cost"
Element = ElementTree.Element


def heat_map(report: Mapping[str, Any]) -> bytes:
    """One panel for each k: query versions down, candidate versions across, the matched pairs framed.

    Args:
        report: as trainer.skew.job writes it to skew.json.
    """
    versions = [of["model_version"] for of in report["versions"]]
    panel = _PANEL + _ROW * (len(versions) + len(REFERENCES)) + 12
    width = max(_LEAST_WIDTH, 2 * _MARGIN + _LABELS + _CELL * len(versions))
    height = _TOP + panel * len(report["ks"]) + _MARGIN
    svg = Element(
        "svg",
        {
            "xmlns": "http://www.w3.org/2000/svg",
            "viewBox": f"0 0 {width} {height}",
            "font-family": "system-ui, sans-serif",
            "font-size": "13",
            "role": "img",
        },
    )
    ElementTree.SubElement(svg, "title").text = _TITLE
    ElementTree.SubElement(svg, "desc").text = report["what"]
    ElementTree.SubElement(svg, "rect", {"width": str(width), "height": str(height), "fill": _LIGHT})
    _text(svg, _MARGIN, 26, _TITLE, {"font-size": "16", "font-weight": "600"})
    _text(svg, _MARGIN, 46, "Versions are mixed on purpose here; serving never mixes them.", _SMALL)
    _text(svg, _MARGIN, 63, f"{heading(report)}; 95 % intervals.", _SMALL)
    _text(svg, _MARGIN, 80, "Darker: more recall. Framed: one version on both sides, as it is served.", _SMALL)
    for place, k in enumerate(report["ks"]):
        _panel(svg, _TOP + panel * place, report, versions, k)
    ElementTree.indent(svg, " ")
    return ElementTree.tostring(svg, encoding="utf-8") + b"\n"


def _panel(svg: Element, top: int, report: Mapping[str, Any], versions: list[int], k: int) -> None:
    name = f"recall@{k}"
    rows = [(f"queries of v{version}", row(report, version)) for version in versions]
    rows += [(reference, report[reference]) for reference in REFERENCES]
    highest = max(_value(of, name) or 0.0 for _, cells in rows for of in cells) or 1.0
    _text(svg, _MARGIN, top + 38, name, {"font-weight": "600"})
    for place, version in enumerate(versions):
        x = _MARGIN + _LABELS + _CELL * place + _CELL // 2
        _text(svg, x, top + 38, f"candidates of v{version}", {"text-anchor": "middle"})
    for line, (label, cells) in enumerate(rows):
        y = top + _PANEL + _ROW * line
        _text(svg, _MARGIN, y + _ROW // 2 + 4, label)
        for place, of in enumerate(cells):
            x = _MARGIN + _LABELS + _CELL * place
            _cell(svg, x, y, of, name, highest)


def _cell(svg: Element, x: int, y: int, of: Mapping[str, Any], name: str, highest: float) -> None:
    value = _value(of, name)
    fill = _EMPTY if value is None else colour(value / highest)
    ink = {"fill": ink_on(fill), "text-anchor": "middle"}
    box = _box(svg, x, y, fill, {})
    if of.get("matched"):
        _box(svg, x, y, "none", {"stroke": _DARK, "stroke-width": "3"})
    middle = x + _CELL // 2
    if value is None:
        ElementTree.SubElement(box, "title").text = of.get("not_comparable", "no value")
        _text(svg, middle, y + 31, "-", ink)
        return
    estimate = of[name]
    bounded = isinstance(estimate, dict) and estimate["low"] is not None
    _text(svg, middle, y + (24 if bounded else 31), f"{value:.4f}", {**ink, "font-size": "15"})
    if bounded:
        bounds = f"{estimate['low']:.4f} – {estimate['high']:.4f}"
        _text(svg, middle, y + 41, bounds, {**ink, "font-size": "11"})


def _value(of: Mapping[str, Any], name: str) -> float | None:
    found = of.get(name)
    return found["value"] if isinstance(found, dict) else found


def colour(share: float) -> str:
    """The colour of a share of the highest value.

    >>> colour(0.0), colour(1.0), colour(0.0625)
    ('#ffffd9', '#225ea8', '#f8fcca')
    """
    place = min(max(share, 0.0), 1.0) * (len(_SCALE) - 1)
    below = min(int(place), len(_SCALE) - 2)
    part = place - below
    mixed = (a + (b - a) * part for a, b in zip(_rgb(_SCALE[below]), _rgb(_SCALE[below + 1]), strict=True))
    return "#" + "".join(f"{round(one):02x}" for one in mixed)


def ink_on(fill: str) -> str:
    """Dark or light ink, whichever stands out more.

    Reference: Web Content Accessibility Guidelines 2.2, contrast ratio and relative luminance.

    >>> ink_on("#ffffd9"), ink_on("#225ea8")
    ('#000000', '#ffffff')
    """
    return max(_DARK, _LIGHT, key=lambda ink: contrast(ink, fill))


def contrast(ink: str, fill: str) -> float:
    """The contrast ratio of two colours, 1 to 21.

    >>> round(contrast("#000000", "#ffffff"), 9)
    21.0
    """
    dark, light = sorted((_luminance(ink), _luminance(fill)))
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: str) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (n / 255 for n in _rgb(colour))]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _rgb(colour: str) -> tuple[int, ...]:
    return tuple(int(colour[at : at + 2], 16) for at in (1, 3, 5))


_SMALL = {"font-size": "12", "fill": _GREY}


def _box(svg: Element, x: int, y: int, fill: str, attributes: Mapping[str, str]) -> Element:
    """A cell with a gap to its neighbours, which a frame fills."""
    place = {"x": str(x + 2), "y": str(y + 2), "width": str(_CELL - 4), "height": str(_ROW - 4), "fill": fill}
    return ElementTree.SubElement(svg, "rect", {**place, **attributes})


def _text(svg: Element, x: int, y: int, text: str, attributes: Mapping[str, str] | None = None) -> None:
    given = {"x": str(x), "y": str(y), "fill": _DARK, **(attributes or {})}
    ElementTree.SubElement(svg, "text", given).text = text
