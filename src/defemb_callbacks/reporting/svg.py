"""Convert figures to inline SVG: text stays text, and colours follow the light or dark palette of the page."""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ET
from typing import TYPE_CHECKING

from defemb_callbacks.reporting.style import PALETTE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SVG, _XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"
_COLOUR = re.compile(r"#[0-9a-fA-F]{6}\b")
_REFERENCE = re.compile(r"url\(#([^)]+)\)")
_LONG_NUMBER = re.compile(r"-?\d+\.\d{2,}")
_VARIABLES = {light: f"var(--{name})" for name, (light, _) in PALETTE.items()}


def inline_svg(figure: Figure, name: str, alt: str) -> str:
    """Convert a figure to an `<svg>` element for an HTML page.

    Colours become the CSS variables of `PALETTE`, fonts those of the page, and ids get the prefix `name`, so that
    several such elements do not clash. Coordinates are rounded to tenths of a point.

    Args:
        figure: Figure that uses only colours of `PALETTE`.
        name: Unique name of the figure on the page: letters, digits and hyphens.
        alt: Description for readers who cannot see the figure; empty if the text next to it suffices.

    Raises:
        ValueError: If a colour is not in the palette; it would not follow the dark mode of the page.

    Example:
        >>> from matplotlib.figure import Figure
        >>> inline_svg(Figure(figsize=(1, 1)), "empty", "an empty figure")[:37]
        '<svg viewBox="0 0 72 72" width="96" s'
    """
    from matplotlib import rc_context

    written = io.BytesIO()
    with rc_context({"svg.fonttype": "none"}):
        figure.savefig(written, format="svg", transparent=True, metadata={"Date": None})
    root = ET.fromstring(written.getvalue())
    _drop(root, "metadata", "style")
    _rename_ids(root, name)
    for element in root.iter():
        element.tag = element.tag.removeprefix(_SVG)
        for attribute in ("d", "x", "y", "width", "height", "transform", "points"):
            if attribute in element.attrib:
                element.set(attribute, _LONG_NUMBER.sub(_rounded, element.attrib[attribute]).replace("\n", ""))
        if "style" in element.attrib:
            element.set("style", _themed(element.attrib["style"], element.tag))
        element.text, element.tail = (element.text or "").strip() or None, None
    _, _, width, height = root.attrib["viewBox"].split()
    root.attrib.clear()
    root.attrib["viewBox"] = f"0 0 {float(width):g} {float(height):g}"
    root.attrib["width"] = f"{float(width) * 4 / 3:.0f}"  # from points to CSS pixels
    root.attrib["style"] = "stroke-linejoin:round;stroke-linecap:butt"
    root.attrib |= {"role": "img", "aria-label": alt} if alt else {"aria-hidden": "true"}
    return ET.tostring(root, encoding="unicode")


def _drop(root: ET.Element, *names: str) -> None:
    for parent in root.iter():
        for child in list(parent):
            if child.tag.removeprefix(_SVG) in names:
                parent.remove(child)


def _rename_ids(root: ET.Element, name: str) -> None:
    """Give referenced elements short ids that are unique on the page, and remove all other ids."""
    used: dict[str, str] = {}

    def new(old: str) -> str:
        return used.setdefault(old, f"{name}-{len(used)}")

    for element in root.iter():
        target = element.attrib.pop(f"{_XLINK}href", None)
        if target is not None:
            element.set("href", f"#{new(target.removeprefix('#'))}")
        for key, value in element.attrib.items():
            element.set(key, _REFERENCE.sub(lambda match: f"url(#{new(match[1])})", value))
    for element in root.iter():
        old = element.attrib.pop("id", None)
        if old in used:
            element.set("id", used[old])


def _themed(style: str, tag: str) -> str:
    kept = {}
    for declaration in filter(None, (part.strip() for part in style.split(";"))):
        key, value = (part.strip() for part in declaration.split(":", 1))
        if key == "font":  # "10px 'DejaVu Sans', …"
            key, value = "font-size", value.split()[0]
        if key == "font-family":  # the page sets the font
            continue
        kept[key] = _COLOUR.sub(_css_variable, value)
    if tag == "text":
        kept.setdefault("fill", "var(--ink)")
    return ";".join(f"{key}:{value}" for key, value in kept.items())


def _css_variable(match: re.Match[str]) -> str:
    try:
        return _VARIABLES[match[0].lower()]
    except KeyError:
        raise ValueError(
            f"The figure has the colour {match[0]}, which is not in the palette. Use a colour of `PALETTE`."
        ) from None


def _rounded(match: re.Match[str]) -> str:
    return f"{float(match[0]):.1f}".removesuffix(".0")
