# SPDX-License-Identifier: GPL-2.0-or-later
"""The address space of one run as SVG: what should be above the axis, what was found below.

Colours come from the page's style sheet, by class. Owners differ by pattern and by name too, and
what is wrong has a heavy dashed outline and a cross: colours are not needed to read it.
"""

from __future__ import annotations

from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from harness.platform.memory_range import format_size
from harness.reports.html.address_space import AddressSpace, Box, Kind, Lane, Scale

_LEFT = 190.0
_RIGHT = 96.0
_LEAST = 860.0
_LETTER = 6.7  # pixels of a letter of the page's monospace font at 11 pixels
_HEIGHTS: dict[Kind, float] = {"owner": 40.0}
_HEIGHT = 24.0
_SPACE = 6.0
_AXIS = 42.0
_OWNERS = ("dax_cxl", "dax_hmem", "nobody")


def address_picture(space: AddressSpace) -> str:
    """The SVG element, or an empty text where there is nothing to draw."""
    boxes = space.boxes()
    if not boxes:
        return ""
    scale = Scale([box.range for box in boxes], _LEAST)
    above = sum(_height(lane) + _SPACE for lane in space.expected)
    below = sum(_height(lane) + _SPACE for lane in space.observed)
    width, height = _LEFT + scale.width + _RIGHT, above + _AXIS + below + 4
    svg = Element(
        "svg",
        {
            "xmlns": "http://www.w3.org/2000/svg",
            "class": "address-space",
            "role": "img",
            "width": f"{width:.0f}",
            "height": f"{height:.0f}",
            "viewBox": f"0 0 {width:.0f} {height:.0f}",
        },
    )
    SubElement(svg, "title").text = _clean(_spoken(space))
    _patterns(svg)
    _wrong_bands(svg, space, scale, height)
    y = 2.0
    for lane in space.expected:
        _lane(svg, lane, scale, y, "expected")
        y += _height(lane) + _SPACE
    _axis(svg, scale, y)
    y += _AXIS
    for lane in space.observed:
        _lane(svg, lane, scale, y, "observed")
        y += _height(lane) + _SPACE
    return ElementTree.tostring(svg, encoding="unicode")


def _height(lane: Lane) -> float:
    return _HEIGHTS.get(lane.kind, _HEIGHT)


def _spoken(space: AddressSpace) -> str:
    """Describe the picture for screen readers."""
    owners = [
        (side, box)
        for side, lanes in (("expected", space.expected), ("observed", space.observed))
        for lane in lanes
        if lane.kind == "owner"
        for box in lane.boxes
    ]
    words = [
        f"{box.range} {side} {_words(box)}{', wrong' if box.wrong else ''}" for side, box in owners
    ]
    return f"Address space: {'; '.join(words)}" if words else "Address space"


def _words(box: Box) -> str:
    return f"{box.label} {box.more}".strip()


def _patterns(svg: Element) -> None:
    """Define stripes for dax_hmem and a hatch for stranded memory; dax_cxl is plain."""
    defs = SubElement(svg, "defs")
    for name, paths in (
        ("dax_hmem", ("M-2,2 l4,-4 M0,8 l8,-8 M6,10 l4,-4",)),
        ("nobody", ("M-2,2 l4,-4 M0,8 l8,-8 M6,10 l4,-4", "M-2,6 l4,4 M0,0 l8,8 M6,-2 l4,4")),
    ):
        pattern = SubElement(
            defs,
            "pattern",
            {"id": f"as-{name}", "width": "8", "height": "8", "patternUnits": "userSpaceOnUse"},
        )
        for path in paths:
            SubElement(pattern, "path", {"d": path, "class": f"as-line-{name}"})


def _wrong_bands(svg: Element, space: AddressSpace, scale: Scale, height: float) -> None:
    """A faint band over the whole height behind what is wrong, so that the eye goes there."""
    for lane in space.observed:
        for box in lane.boxes:
            if box.wrong:
                x, width = scale.span(box.range)
                _rect(svg, _LEFT + x, 0, width, height, "as-band")


def _lane(svg: Element, lane: Lane, scale: Scale, y: float, side: str) -> None:
    height = _height(lane)
    if lane.title:
        text = _text(svg, _LEFT - 10, y + height / 2 + 4, lane.title, f"as-title as-{side}")
        text.set("text-anchor", "end")
    for box in lane.boxes:
        x, width = scale.span(box.range)
        group = SubElement(svg, "g", {"class": _classes(lane, box)})
        SubElement(group, "title").text = _clean(_tooltip(lane, box))
        _rect(group, _LEFT + x + 1, y, max(width - 2, 2), height, "as-fill")
        if _hatched(box):
            hatch = _rect(group, _LEFT + x + 1, y, max(width - 2, 2), height, "as-hatch")
            hatch.set("fill", f"url(#as-{box.owner})")
        middle = _LEFT + x + width / 2
        lines = _label(lane, box, side, width - 8)
        first = y + height / 2 + 4 - 7 * (len(lines) - 1)
        if _hatched(box):
            letters = max(map(len, lines)) * (_LETTER + 0.4) + 10
            plate = min(letters, width - 4)
            _rect(group, middle - plate / 2, y + 3, plate, height - 6, "as-plate")
        for number, line in enumerate(lines):
            text = _text(group, middle, first + 14 * number, line, "as-label")
            text.set("text-anchor", "middle")


def _hatched(box: Box) -> bool:
    """Return whether the box has a pattern; unowned memory has one only if it is stranded."""
    return box.owner == "dax_hmem" or (box.owner == "nobody" and box.wrong)


def _classes(lane: Lane, box: Box) -> str:
    words = ["as-box", f"as-{lane.kind}"]
    if lane.kind == "owner":
        known = box.owner in _OWNERS and (box.owner != "nobody" or box.wrong)
        words.append(f"as-{box.owner if known else 'other'}")
    if box.wrong:
        words.append("as-wrong")
    return " ".join(words)


def _tooltip(lane: Lane, box: Box) -> str:
    wrong = " (not as expected)" if box.wrong else ""
    return f"{box.range} {format_size(box.range.size)} {_words(box)}{wrong}"


def _label(lane: Lane, box: Box, side: str, room: float) -> list[str]:
    if lane.kind == "owner":
        mark = "" if side == "expected" else "✗ " if box.wrong else "✓ "
        stranded = box.owner == "nobody" and box.wrong
        name = f"{mark}{'STRANDED' if stranded else box.label}"
        lines = [name, box.more or ("nobody" if stranded else "")]
        return [_fitting((line,), room) for line in lines if line]
    size = format_size(box.range.size)
    if box.wrong:
        return [_fitting((f"✗ {box.label} · {box.more}", f"✗ {box.label}"), room)]
    more = f" · {box.more}" if box.more else ""
    choices = (f"{box.label}{more} · {size}", f"{box.label}{more}", f"{box.label}")
    return [_fitting(choices, room)]


def _fitting(choices: tuple[str, ...], room: float) -> str:
    """The first text that fits, or the last one cut short."""
    most = max(int(room / _LETTER), 1)
    for text in choices:
        if len(text) <= most:
            return text
    return f"{choices[-1][: most - 1]}…"


def _axis(svg: Element, scale: Scale, y: float) -> None:
    """The line between expected and observed, with the first address of each segment."""
    middle = y + 12
    ends: list[float] = []
    for segment in scale.segments:
        x = _LEFT + segment.x
        if segment.gap:
            zigzag = f"M{x:.1f},{middle:.1f} l8,0 l4,-5 l8,10 l4,-5 l{segment.width - 24:.1f},0"
            path = SubElement(svg, "path", {"d": zigzag, "class": "as-gap"})
            SubElement(path, "title").text = f"{format_size(segment.range.size)} of nothing shown"
        else:
            line = {"x1": x, "x2": x + segment.width, "y1": middle, "y2": middle}
            SubElement(
                svg, "line", {**{k: f"{v:.1f}" for k, v in line.items()}, "class": "as-axis"}
            )
        _tick(svg, x, middle, segment.range.start, ends)
    last = scale.segments[-1]
    _tick(svg, _LEFT + last.x + last.width, middle, last.range.end, ends)


def _tick(svg: Element, x: float, middle: float, address: int, ends: list[float]) -> None:
    """An address, on the first of two lines on which it does not run into another."""
    text = f"{address:08x}"
    line = {
        "x1": f"{x:.1f}",
        "x2": f"{x:.1f}",
        "y1": f"{middle - 4:.1f}",
        "y2": f"{middle + 4:.1f}",
    }
    SubElement(svg, "line", {**line, "class": "as-axis"})
    for row in range(2):
        if len(ends) <= row:
            ends.append(0.0)
        if ends[row] <= x or row == 1:
            ends[row] = x + len(text) * _LETTER + 8
            _text(svg, x, middle + 15 + 12 * row, text, "as-address")
            return


def _rect(parent: Element, x: float, y: float, width: float, height: float, kind: str) -> Element:
    place = {"x": x, "y": y, "width": width, "height": height}
    return SubElement(
        parent, "rect", {**{name: f"{value:.1f}" for name, value in place.items()}, "class": kind}
    )


def _text(parent: Element, x: float, y: float, words: str, kind: str) -> Element:
    element = SubElement(parent, "text", {"x": f"{x:.1f}", "y": f"{y:.1f}", "class": kind})
    element.text = _clean(words)
    return element


def _clean(words: str) -> str:
    """The text without letters that XML has no way to write."""
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in words)
