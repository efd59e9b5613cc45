"""A report as one HTML file that needs nothing else: no network, no other file."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from importlib import resources
from itertools import compress
from typing import Any, Final

import jinja2
from markupsafe import Markup

from ensdistill.cli import charts
from ensdistill.cli.render.texts import number
from ensdistill.pipeline.escaping import escaped
from ensdistill.pipeline.figures import duration, size
from ensdistill.stages.fusions import MAJORITY, is_yardstick, method_called
from ensdistill.stages.reading.tables import between_notes, means, method_label, notes

_STRONG: Final = 0.73  # from here on a shade is nearer to the other theme's page than to its own


def page(content: Mapping[str, Any]) -> str:
    """Return the page of a report (see `stages.reading.report.gather`)."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_template),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_spelt,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": number,
        "percent": _percent,
        "seconds": _seconds,
        "size": size,
        "data": _data,
        "chart": lambda figure: _data(charts.svg(figure), "image/svg+xml"),
        "shade": _shade,
    }
    scores = content["scores"]
    return environment.get_template("report.html").render(
        content,
        matrices=_matrices(content),
        pair_range=_pair_range(content["agreement"]),
        **({} if scores is None else _scored(scores)),
        charts=charts,
        method_label=method_label,
        by_policy=method_called(content["about"]["method"]).policy is not None,
        is_yardstick=is_yardstick,
    )


def _spelt(value: Any) -> Any:
    """Return what a page shows of a value: a browser obeys marks of direction as well."""
    return type(value)(escaped(value)) if isinstance(value, str) else value


def _template(name: str) -> str:
    return (resources.files("ensdistill.cli.page") / "templates" / name).read_text("utf-8")


def _matrices(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what is known of each teacher at each class, without ground truth (paper, Fig. 4)."""
    policy = content["policy"]
    found = []
    for kind, text, of in (
        (
            "certainty",
            "Mean certainty of the probe that was trained on a teacher's labels alone",
            content["certainty"],
        ),
        ("reliability", "IoU that the label model expects of a teacher", content["reliability"]),
    ):
        values = [v for row in of.values() for v in row.values() if v is not None]
        if values:
            low, high = min(values), max(values)
            found.append(
                {
                    "kind": kind,
                    "text": text,
                    "values": of,
                    "low": low,
                    "high": high,
                    "chosen": policy.teacher if policy and policy.strategy == kind else {},
                    "seldom": content["seldom"] if kind == "certainty" else {},
                }
            )
    return found


def _pair_range(agreement: Mapping[str, Any] | None) -> tuple[float, float]:
    pairs = {} if agreement is None else agreement["pairs"]
    values = [
        v
        for one, row in pairs.items()
        for other, v in row.items()
        if one != other and v is not None
    ]
    return min(values, default=0.0), max(values, default=1.0)


def _scored(scores: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is shown of scores."""
    methods: Sequence[Mapping[str, Any]] = scores["methods"]
    shown = [c for c in scores["classes"] if any(m["iou"][c] is not None for m in methods)]
    groups: dict[str, list[tuple[int, Mapping[str, Any]]]] = {}
    for k, method in enumerate(methods):
        groups.setdefault(method["kind"], []).append((k, method))
    # not there where a teacher lacks the split
    own = [m for m in methods if m["kind"] == "fusion" and m["name"] == scores["fusion"]]
    student = [m for m in methods if m["kind"] == "student"]
    majority = [m for m in methods if m["name"] == MAJORITY.name and m not in own]
    teachers = [m for m in methods if m["kind"] == "teacher" and m["miou_present"] is not None]
    best = sorted(teachers, key=lambda m: -m["miou_present"])[:1]
    return {
        "shown": shown,
        "groups": groups,
        "columns": _columns(scores, shown),
        "notes": notes(scores),
        "between_notes": between_notes(scores["between_teachers"]),
        "compared": [*own, *student, *majority, *best],
        "own": next(iter(own), None),
        "student": next(iter(student), None),
    }


def _columns(scores: Mapping[str, Any], shown: Sequence[str]) -> list[dict[str, Any]]:
    """Return the columns of the table of scores: those of the classes shown, and the means.

    Each has its ``label`` and ``values``, a method each, of which the ``best`` is not the oracle's;
    a mean has ``over``, of how many classes it is, where these are not the same for all. Nothing
    is best then.
    """
    methods = scores["methods"]
    found: list[dict[str, Any]] = [
        {"label": c, "values": [m["iou"][c] for m in methods], "over": None, "mean": False}
        for c in shown
    ]
    for mean in means(scores).values():
        over = None if mean.alike else [len(of) for of in mean.classes]
        found.append({"label": mean.label, "values": mean.values, "over": over, "mean": True})
    ranked = [not is_yardstick(m["name"]) for m in methods]
    for column in found:
        values = [v for v in compress(column["values"], ranked) if v is not None]
        # of a class that nobody hits, nothing is
        column["best"] = None if column["over"] else max(values, default=0) or None
    return found


def _percent(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{100 * value:.{digits}f} %"


def _seconds(value: float | None) -> str:
    return "-" if value is None else duration(value)


def _data(content: bytes, mime: str) -> str:
    return f"data:{mime};base64,{base64.b64encode(content).decode()}"


def _shade(value: float | None, low: float = 0.0, high: float = 1.0) -> str:
    """Return the attributes of a cell whose shade tells its value."""
    if value is None:
        return ""
    share = (value - low) / (high - low) if high > low else 1.0
    strong = " strong" if share >= _STRONG else ""
    return Markup(f'class="shade{strong}" style="--v:{share:.2f}"')
