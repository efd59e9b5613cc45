"""Charts, as PNG for papers and issues and as SVG for the report's page."""

from __future__ import annotations

import io
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final
from warnings import catch_warnings, filterwarnings

from ensdistill.cli.render.texts import number
from ensdistill.pipeline.escaping import escaped
from ensdistill.stages.fusions import LABEL_MODEL, MAJORITY

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DPI: Final = 120
# Okabe and Ito's colours, which colour-blind people can tell apart; and a shape for each.
_METHODS: Final = {LABEL_MODEL.name: ("#0072B2", "o"), MAJORITY.name: ("#D55E00", "s")}
_ESTIMATES: Final = {"certainty": ("#D55E00", "^"), "reliability": ("#0072B2", "o")}
_COLUMNS: Final = 3  # of panels


def ablation(found: Mapping[str, Any]) -> Figure:
    """Draw what bad teachers cost, what each gives, and compositions beside their best members.

    In mIoU present, of the content of ``ablation.json``.
    """
    figure = _figure(16, 4.8)
    left, middle, right = figure.subplots(1, 3)
    _losses(left, found["present"]["robustness"])
    _gains(middle, found["present"]["leave_one_out"]["teachers"])
    _compositions(right, found["present"]["flexibility"]["compositions"])
    figure.suptitle(f"Which teachers help, on {found['split']}")
    return figure


def noise(found: Mapping[str, Any]) -> Figure:
    """Draw certainty by noise, its mean and that of each class, of ``noise.json``'s content."""
    rows = found["levels"]
    figure = _figure(6.4, 4.8)
    axes = figure.subplots()
    levels = [100 * row["noise"] for row in rows]
    for k, name in enumerate(found["classes"]):
        values = [_or_nan(row["certainty"][name]) for row in rows]
        label = None if k else "a class of it"
        axes.plot(levels, values, color="#BBBBBB", linewidth=1, label=label)
    mean = [_or_nan(row["mean"]) for row in rows]
    axes.plot(levels, mean, "o-", color="#0072B2", clip_on=False, label="mean")
    axes.set(xlabel="segments with another class, percent", ylabel="certainty", ylim=(0, 1))
    title = f"Noise in the labels of {found['teacher']}: rank correlation"
    axes.set_title(f"{title} {number(found['rank'], 2)}", fontsize=10, parse_math=False)
    axes.grid(alpha=0.3)
    axes.legend(loc="upper right")
    return figure


def estimates(found: Mapping[str, Any]) -> Figure:
    """Draw a panel a teacher: by class its IoU, and what was estimated without ground truth.

    Of the content of ``results.json`` with at least one teacher in `estimates`.
    """
    iou = {m["name"]: m["iou"] for m in found["methods"] if m["kind"] == "teacher"}
    classes = [c for c in found["classes"] if any(of[c] is not None for of in iou.values())]
    rows = range(len(classes))
    teachers: Mapping[str, Any] = found["estimates"]
    columns = min(_COLUMNS, len(teachers))
    lines = -(-len(teachers) // columns)
    figure = _figure(3.2 * columns + 0.8, (0.18 * len(classes) + 0.9) * lines + 0.4)
    panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for axes, (teacher, of) in zip(panels, teachers.items(), strict=False):
        axes.barh(rows, _fractions(iou[teacher], classes, 100), color="#BBBBBB")
        for kind, (colour, marker) in _ESTIMATES.items():
            if kind in of:
                values = _fractions(found[kind][teacher], classes)
                axes.plot(values, rows, marker, color=colour, markersize=5, clip_on=False)
        axes.set_title(_title(teacher, of), fontsize=8, parse_math=False)
        axes.set_xlim(0, 1)
        axes.margins(y=0.01)
        axes.grid(axis="x", alpha=0.3)
        axes.tick_params(labelsize=8)
    panels[0].set_yticks(rows, map(escaped, classes), parse_math=False)
    panels[0].invert_yaxis()
    for axes in panels[len(teachers) :]:
        axes.set_visible(False)
    for axes in panels[len(teachers) - columns : len(teachers)]:
        axes.tick_params(labelbottom=True)  # also where the panel below is empty
    _legend(figure, [k for k in _ESTIMATES if any(k in of for of in teachers.values())])
    return figure


def curve(points: Sequence[tuple[int, float]]) -> Figure:
    """Draw a figure of a training: steps and values, at least one of each."""
    figure = _figure(3.3, 2)
    axes = figure.subplots()
    steps, values = zip(*points, strict=True)
    axes.plot(steps, values, "-" if len(points) > 1 else "o", color="#0072B2", clip_on=False)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xlim(0, max(*steps, 1))
    axes.locator_params(axis="x", integer=True, nbins=5)
    axes.set_xlabel("step", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(axis="y", alpha=0.3)
    return figure


def png(figure: Figure) -> bytes:
    """Return a chart as a PNG file."""
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


def svg(figure: Figure) -> bytes:
    """Return a chart as an SVG file without a background, in the fonts of whoever looks at it."""
    from matplotlib import rc_context

    content = io.BytesIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))  # the same file at any time
    settings = {"svg.fonttype": "none", "svg.hashsalt": "charts", "font.sans-serif": "DejaVu Sans"}
    with rc_context(settings), catch_warnings():
        filterwarnings("ignore", "Glyph .* missing from font")  # which only measures the text
        figure.savefig(content, format="svg", transparent=True, metadata=nothing)
    return content.getvalue()


def _losses(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    for method, (colour, marker) in _METHODS.items():
        loss = [_or_nan(row["loss"][method]) for row in rows]
        axes.plot(range(len(rows)), loss, marker=marker, color=colour, label=method)
    names = ["none" if row["added"] is None else f"{row['bad']}: + {row['added']}" for row in rows]
    axes.set_xticks(range(len(rows)), names)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set(xlabel="bad teachers", ylabel="loss of mIoU present, points", title="Robustness")
    axes.grid(axis="y", alpha=0.3)
    axes.legend()


def _gains(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    axes.set(
        xlabel="mIoU present that it gives, points", ylabel="teacher", title="Without one teacher"
    )
    if not rows:
        axes.text(0.5, 0.5, "fewer than four teachers", ha="center", transform=axes.transAxes)
        return
    for method, (colour, marker) in reversed(_METHODS.items()):  # the label model on top
        gives = [_or_nan(row["gives"][method]) for row in rows]
        axes.plot(gives, range(len(rows)), marker, color=colour, label=method)
    names = [escaped(row["teacher"]) for row in rows]
    axes.set_yticks(range(len(rows)), names, parse_math=False)
    axes.invert_yaxis()
    axes.axvline(0, color="black", linewidth=0.8)
    axes.grid(axis="x", alpha=0.3)
    axes.legend()


def _compositions(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    axes.set(
        xlabel="mIoU present of the best member, percent",
        ylabel="mIoU present of the composition, percent",
        title="Flexibility: all compositions of at least three",
    )
    if not rows:
        axes.text(0.5, 0.5, "fewer than three teachers", ha="center", transform=axes.transAxes)
        return
    best = [_or_nan(row["best_miou"]) for row in rows]
    values = list(best)
    for method, (colour, marker) in reversed(_METHODS.items()):  # the label model on top
        fused = [_or_nan(row[method]) for row in rows]
        # hollow, as many compositions have one best member
        axes.scatter(best, fused, marker=marker, facecolors="none", edgecolors=colour, label=method)
        values += fused
    low, high = min(values), max(values)
    room = 0.05 * (high - low) + 0.1
    ends = (low - room, high + room)
    axes.plot(ends, ends, "--", color="gray", linewidth=1, label="as good as the best member")
    axes.set(xlim=ends, ylim=ends, aspect="equal")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize=8)


def _title(teacher: str, of: Mapping[str, Mapping[str, float | None]]) -> str:
    """Name a teacher, and how well each estimate of it goes with its IoU over so many classes."""
    texts = [
        f"{kind}: cosine {number(values['cosine'], 2)}, rank {number(values['rank'], 2)}"
        f" over {values['classes']} classes"
        for kind, values in of.items()
    ]
    return "\n".join([teacher, *texts])


def _legend(figure: Figure, kinds: Sequence[str]) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Artist] = [Patch(color="#BBBBBB", label="IoU, with ground truth")]
    names = {"certainty": "certainty of its probe", "reliability": "reliability by the label model"}
    for kind in kinds:
        colour, marker = _ESTIMATES[kind]
        handles.append(Line2D([], [], color=colour, marker=marker, ls="", label=names[kind]))
    figure.legend(
        handles=handles, loc="outside upper center", ncols=len(handles), fontsize=9, frameon=False
    )


def _figure(width: float, height: float) -> Figure:
    """Return a figure of so many inches, apart from pyplot's state and any display."""
    # where there is no home it tells at length that it made a temporary folder of its own
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", dpi=_DPI)


def _fractions(
    values: Mapping[str, float | None], classes: Sequence[str], whole: float = 1
) -> list[float]:
    return [_or_nan(values[c]) / whole for c in classes]


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value
