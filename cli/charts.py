"""Charts of a report, as SVG that takes its colours from the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from markupsafe import Markup

_WIDTH: Final = 320
_HEIGHT: Final = 190  # of a curve
_AXIS: Final = 34  # of its values
_LEFT: Final = 92  # of class names
_ROW: Final = 15  # of a class
_TICKS: Final = (0.0, 0.25, 0.5, 0.75, 1.0)


def estimates(
    title: str,
    iou: Mapping[str, float | None],
    estimated: Mapping[str, Mapping[str, float | None]],
) -> Markup:
    """Draw a teacher's IoU by class, and beside it what was estimated without ground truth.

    Parameters
    ----------
    title : str
        For who cannot see it.
    iou : mapping
        Class to percent, None where there is none.
    estimated : mapping
        ``certainty`` and ``reliability``, or one of them, to class to a fraction or None.
    """
    height = _ROW * len(iou) + 20
    parts = []
    for tick in _TICKS:
        x = _x(tick)
        parts.append(_tag("line", class_="grid", x1=x, x2=x, y1=0, y2=height - 18))
        parts.append(_text(f"{tick:g}", x, height - 5, "middle", "tick"))
    for k, (name, percent) in enumerate(iou.items()):
        y = _ROW * k
        parts.append(_text(name, _LEFT - 6, y + 11, "end"))
        if percent is not None:
            width = round(_x(percent / 100) - _LEFT, 1)
            parts.append(_tag("rect", class_="iou", x=_LEFT, y=y + 3, width=width, height=9))
        for kind, mark in (("certainty", _triangle), ("reliability", _circle)):
            value = estimated.get(kind, {}).get(name)
            if value is not None:
                parts.append(mark(kind, _x(value), y + 7.5))
    return _svg(height, title, parts)


def curve(title: str, points: Sequence[tuple[int, float]]) -> Markup:
    """Draw a figure over the steps of a training.

    Parameters
    ----------
    title : str
        For who cannot see it.
    points : sequence
        Steps and values, at least one.
    """
    last = max(step for step, _ in points) or 1
    values = [value for _, value in points]
    low, high = min(0.0, *values), max(0.0, *values)
    room = (high - low) or 1.0

    def place(step: int, value: float) -> tuple[float, float]:
        x = _AXIS + step / last * (_WIDTH - _AXIS - 10)
        return round(x, 1), round(8 + (high - value) / room * (_HEIGHT - 34), 1)

    parts = []
    for value in (low, low + room / 2, low + room):
        _, y = place(0, value)
        parts.append(_tag("line", class_="grid", x1=_AXIS, x2=_WIDTH - 10, y1=y, y2=y))
        parts.append(_text(f"{value:.2g}", _AXIS - 4, y + 4, "end", "tick"))
    parts.append(_text("0", _AXIS, _HEIGHT - 8, "start", "tick"))
    parts.append(_text(f"step {last}", _WIDTH - 10, _HEIGHT - 8, "end", "tick"))
    places = " ".join("{},{}".format(*place(*point)) for point in points)
    parts.append(_tag("polyline", class_="line s1", points=places))
    return _svg(_HEIGHT, title, parts)


def _svg(height: int, title: str, parts: Sequence[Markup]) -> Markup:
    content = Markup("").join(parts)
    view = f"0 0 {_WIDTH} {height}"
    return _tag("svg", content, viewBox=view, role="img", aria_label=title)


def _text(text: str, x: float, y: float, anchor: str, kind: str = "name") -> Markup:
    return _tag("text", text, class_=kind, x=x, y=y, text_anchor=anchor)


def _circle(kind: str, x: float, y: float) -> Markup:
    return _tag("circle", class_=kind, cx=x, cy=y, r=4)


def _triangle(kind: str, x: float, y: float) -> Markup:
    points = f"{x},{y - 4.5} {x + 4.5},{y + 3.5} {x - 4.5},{y + 3.5}"
    return _tag("polygon", class_=kind, points=points)


def _tag(name: str, content: str | Markup = "", **attributes: object) -> Markup:
    """Return an element; an underscore in an attribute's name is a hyphen, at its end nothing."""
    pairs = [
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), value)
        for key, value in attributes.items()
    ]
    return Markup("<{0}{1}>{2}</{0}>").format(name, Markup("").join(pairs), content)


def _x(fraction: float) -> float:
    return round(_LEFT + min(max(fraction, 0.0), 1.0) * (_WIDTH - _LEFT - 12), 1)
