"""Tables on stdout."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ensdistill.pipeline.plan import Decision, State
from ensdistill.pipeline.runner import Report

_STYLES = {
    State.FRESH: "green",
    State.PARTIAL: "yellow",
    State.STALE: "yellow",
    State.MISSING: "cyan",
    State.WAITING: "dim",
    State.CORRUPT: "red",
}


def print_table(table: Table) -> None:
    """Print a table as wide as it is: a figure folded over two lines cannot be read."""
    # without markup: names such as infer[t] are no style tags
    console = Console(width=1000, highlight=False, markup=False)
    with console.capture() as captured:
        console.print(table)
    for line in captured.get().splitlines():
        click.echo(line.rstrip())  # the padding of a long line would wrap all others


def decisions(found: Mapping[str, Decision], *, as_json: bool) -> None:
    """Print the state of nodes and why they are not fresh."""
    if as_json:
        click.echo(json.dumps([decision_json(d) for d in found.values()], indent=1))
        return
    table = Table(box=None, pad_edge=False)
    for column in ("node", "state", "items", "why"):
        table.add_column(column)
    for d in found.values():
        items = f"{d.done}/{d.total}" if d.total else ""
        table.add_row(Text(d.node.id), Text(d.state, style=_STYLES[d.state]), items, Text(d.reason))
    print_table(table)
    count = {s: sum(d.state is s for d in found.values()) for s in State}
    click.echo(", ".join(f"{n} {s}" for s, n in count.items() if n))


def decision_json(d: Decision) -> dict[str, Any]:
    """Return a decision as JSON-able data."""
    return {
        "node": d.node.id,
        "state": d.state.value,
        "reason": d.reason,
        "done": d.done,
        "total": d.total,
        "changes": [{"field": c.field, "old": c.old, "new": c.new} for c in d.changes],
        "fingerprint": d.fingerprint,
        "path": str(d.artifact.path) if d.artifact else None,
    }


def report(found: Report) -> None:
    """Print what a command did."""
    for r in found.ran:
        items = f"{r.written} of {r.total} written, " if r.total else ""
        click.echo(f"{r.node}: {items}{r.seconds:.1f} s")
    if not found.ran:
        click.echo(f"nothing to do: {', '.join(found.fresh)} fresh")


def policy(chosen: Mapping[str, Any] | None, certainty: Mapping[str, Mapping[str, Any]]) -> None:
    """Print the policy, class by class, with the probe certainty of every teacher."""
    if chosen is None:
        return
    table = Table(box=None, pad_edge=False, title="policy, and certainty of each teacher's probe")
    table.add_column("class")
    table.add_column("teacher")
    for teacher in certainty:
        table.add_column(teacher, justify="right")
    for name, teacher in chosen["teacher"].items():
        cells = []
        for t, values in certainty.items():
            value = values["certainty"][name]
            text = "-" if value is None else f"{value:.3f}"
            cells.append(Text(text, style="bold" if t == teacher else ""))
        mark = " (fallback)" if name in chosen["fallback"] else ""
        table.add_row(name, Text((teacher or "-") + mark), *cells)
    print_table(table)
    if chosen["fallback"]:
        click.echo("fallback: no probe is sure of the class on enough pixels (min_support)")


def scores(results: Mapping[str, Any], not_covered: Sequence[str]) -> None:
    """Print IoU per class and mIoU of every method, in percent, 255 counted as wrong.

    Parameters
    ----------
    results : mapping
        The content of ``results.json``.
    not_covered : sequence of str
        Teachers without label maps on the split.
    """
    methods: Sequence[Mapping[str, Any]] = results["methods"]
    shown = [c for c in results["classes"] if any(m["iou"][c] is not None for m in methods)]
    table = Table(box=None, pad_edge=False, title=f"IoU on {results['split']}, percent")
    table.add_column("class")
    for m in methods:
        table.add_column(m["name"], justify="right")
    for c in shown:
        table.add_row(c, *(_number(m["iou"][c]) for m in methods))
    table.add_section()
    table.add_row("mIoU", *(_number(m["miou"]) for m in methods), style="bold")
    for subset in methods[0]["miou_subsets"]:
        table.add_row(subset, *(_number(m["miou_subsets"][subset]) for m in methods))
    table.add_row("mIoU where covered", *(_number(m["miou_covered"]) for m in methods))
    table.add_row("coverage", *(_number(m["coverage"], 3) for m in methods))
    print_table(table)
    absent = [c for c in results["classes"] if c not in shown]
    if absent:
        click.echo(f"absent from ground truth and predictions: {', '.join(absent)}")
    if not_covered:
        click.echo(
            f"without label maps on {results['split']}: {', '.join(not_covered)}; so the policy "
            "cannot be applied there and `channel` is left out"
        )
    _margins(results)


def _margins(results: Mapping[str, Any]) -> None:
    """Print what the fusion gains over the best teacher and majority, and loses to the oracle."""
    by_name = {m["name"]: m["miou"] for m in results["methods"]}
    teachers = {m["name"]: m["miou"] for m in results["methods"] if m["kind"] == "teacher"}
    if "channel" not in by_name or any(v is None for v in by_name.values()):
        return
    best = max(teachers, key=lambda t: teachers[t])
    for text, other in (
        (f"best teacher ({best})", teachers[best]),
        ("majority", by_name["majority"]),
        ("oracle policy (regret)", by_name["channel-oracle"]),
    ):
        click.echo(f"channel against {text}: {by_name['channel'] - other:+.2f} mIoU")


def _number(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
