"""Tables on stdout."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any, Final

from rich.text import Text

from ensdistill.cli.grid import Table, print_table
from ensdistill.cli.screen import echo, echo_json
from ensdistill.pipeline.errors import grouped
from ensdistill.pipeline.figures import duration, size
from ensdistill.pipeline.manifest import RECORDED, Manifest
from ensdistill.pipeline.plan import Decision, State, left_out
from ensdistill.stages.reading.tables import (
    covered,
    means,
    method_label,
    notes,
    overlap_note,
    rivals_note,
    score_label,
)

if TYPE_CHECKING:
    from ensdistill.pipeline.explain import Estimate, ItemChanges
    from ensdistill.pipeline.gc import Kept
    from ensdistill.pipeline.repair import Repair
    from ensdistill.pipeline.runner import Report

_ABLATED: Final = ("label-model", "majority")
_STYLES = {
    State.FRESH: "green",
    State.PARTIAL: "yellow",
    State.STALE: "yellow",
    State.MISSING: "cyan",
    State.WAITING: "dim",
    State.CORRUPT: "red",
}


def decisions(found: Mapping[str, Decision], *, as_json: bool, verbose: bool = False) -> None:
    """Print the state of nodes and why they are not fresh; `verbose` adds how they were made."""
    if as_json:
        echo_json([decision_json(d, verbose=verbose) for d in found.values()])
        return
    table = Table()
    for column in ("node", "state", "items", "why"):
        table.add_column(column)
    for d in found.values():
        items = f"{d.done}/{d.total}" if d.total else ""
        without = left_out(d)
        why = d.reason or (f"without {', '.join(without)}" if without else "")
        table.add_row(Text(d.node.id), _state(d), items, Text(why))
    print_table(table)
    count = {s: sum(d.state is s for d in found.values()) for s in State}
    echo(", ".join(f"{n} {s}" for s, n in count.items() if n))
    if verbose:
        for d in found.values():
            if d.artifact is not None:
                echo()
                echo(f"{d.node.id}: {d.artifact.path}")
                made(d.artifact.manifest)


def _state(d: Decision) -> Text:
    return Text(d.state, style=_STYLES[d.state])


def decision_json(d: Decision, *, verbose: bool = False) -> dict[str, Any]:
    """Return a decision as JSON-able data."""
    found: dict[str, Any] = {
        "node": d.node.id,
        "state": d.state.value,
        "reason": d.reason,
        "done": d.done,
        "total": d.total,
        "changes": [{"field": c.field, "old": c.old, "new": c.new} for c in d.changes],
        "fingerprint": d.fingerprint,
        "path": str(d.artifact.path) if d.artifact else None,
    }
    if verbose:
        manifest = d.artifact.manifest if d.artifact else None
        found["made"] = manifest and {key: getattr(manifest, key) for key in RECORDED}
    return found


def made(manifest: Manifest) -> None:
    """Print how, where and when an artifact was made."""
    about = manifest.provenance
    written = f"{manifest.written} written, {manifest.reused} reused, " if manifest.written else ""
    memory = about.get("peak_memory")
    echo(
        f"  finished {manifest.finished or '-'} in {duration(manifest.seconds)}; {written}"
        f"{size(manifest.disk_bytes)} on disk, peak memory {size(memory) if memory else '-'}"
    )
    git = about.get("git")
    if git:
        about = about | {"git": git["commit"] + (" and changed files" if git["changed"] else "")}
    about = about | {k: v for k, v in manifest.runtime.items() if v is not None}
    for key in ("command", "git", "host", "platform", "python", "device", "threads", "workers"):
        if about.get(key) is not None:
            echo(f"  {key}: {about[key]}")
    packages = about.get("packages", {})
    echo(f"  packages: {', '.join(f'{k} {v}' for k, v in packages.items() if v)}")


def planned(
    found: Mapping[str, Decision], costs: Mapping[str, Estimate | None], *, as_json: bool
) -> None:
    """Print what a run would do."""
    if as_json:
        rows = [
            decision_json(d) | {"would": (c := costs[n]) and asdict(c)} for n, d in found.items()
        ]
        echo_json(rows)
        return
    table = Table()
    for column in ("node", "state", "compute", "reuse", "disk", "why"):
        table.add_column(column, justify="right" if column in ("compute", "reuse") else "left")
    for node_id, d in found.items():
        cost = costs[node_id]
        compute, reuse, disk = _cost(d, cost)
        table.add_row(Text(node_id), _state(d), compute, reuse, disk, Text(d.reason))
    print_table(table)
    known = [c for c in costs.values() if c is not None]
    counts: Counter[str] = Counter()
    for node_id, c in costs.items():
        counts[found[node_id].node.unit] += 0 if c is None else c.compute
    told = " and ".join(f"{count} {unit}" for unit, count in counts.items() if count)
    echo(
        f"would compute {'at most ' if any(c.at_most for c in known) else ''}"
        f"{told or '0 images'}, "
        f"take {sum(c.reuse for c in known)} from other "
        f"artifacts and write about {size(sum(c.bytes or 0 for c in known))}"
    )
    open_ends = [n for n, c in costs.items() if c is not None and c.bytes is None]
    waiting = [n for n, d in found.items() if d.state is State.WAITING]
    for names, text in ((open_ends, "on disk, not counted"), (waiting, "known after the others")):
        if names:
            echo(f"{text}: {', '.join(names)}")


def _cost(d: Decision, cost: Estimate | None) -> tuple[str, str, str]:
    if cost is None:
        return ("", "", "") if d.state is State.FRESH else ("?", "", "?")
    disk = "?" if cost.bytes is None else f"~{size(cost.bytes)}"
    if not d.total:
        return "", "", disk
    return f"{'<=' if cost.at_most else ''}{cost.compute}", str(cost.reuse or ""), disk


def report(found: Report) -> None:
    """Print what a command did."""
    for r in found.ran:
        items = f"{r.written} of {r.total} written, " if r.total else ""
        items += f"{r.reused} taken from other artifacts, " if r.reused else ""
        rest = f"; {r.open} are left to other parts" if r.open else ""
        echo(f"{r.node}: {items}{duration(r.seconds)}{rest}")
    if not found.ran:
        echo(f"nothing to do: {', '.join(found.fresh)} fresh")


def explanation(
    d: Decision,
    decisions: Mapping[str, Decision],
    images: ItemChanges | None,
    cost: Estimate | None,
    below: Sequence[str],
    config: Path,
) -> None:
    """Print why a node stands as it does."""
    unit = d.node.unit
    echo(f"{d.node.id} is {d.state}" + (f": {d.reason}" if d.reason else ""))
    if d.artifact is not None:
        echo(f"  {d.artifact.path}")
        made(d.artifact.manifest)
    elif d.previous is not None:
        echo(f"compared with the nearest that was made, {d.previous.path}:")
    for change in d.changes:
        echo(f"  {change.field}: {_value(change.old)} -> {_value(change.new)}")
    if images is not None and d.state is not State.FRESH:
        for what, ids in (("new", images.new), ("gone", images.gone)):
            if ids:
                echo(f"  {len(ids)} {unit} are {what}: {some(ids)}")
        if images.changed:
            named = [f"{i} ({', '.join(names)})" for i, names in images.changed.items()]
            echo(f"  {len(named)} {unit} changed: {some(named)}")
    if cost is not None:
        compute, reuse, disk = _cost(d, cost)
        items = f"compute {compute} {unit}, take {reuse or 0} from other artifacts and " * bool(
            d.total
        )
        echo(f"a run would {items}write {disk}, then look at what is below")
    without = left_out(d)
    needs = [f"{n} ({decisions[n].state})" for n in d.node.needs if n not in without]
    echo(f"made from: {', '.join(needs) or 'files alone'}")
    if without:
        absent = [f"{n} ({decisions[n].state})" for n in without]
        echo(f"without, as it is not there: {', '.join(absent)}")
    echo(f"below it: {', '.join(below) or 'nothing'}")
    file = "" if config == Path("experiment.yaml") else f" -c {quote(str(config))}"
    if d.state is State.CORRUPT:
        echo(f"to make it good: ensdistill verify --repair{file}")
    elif d.state is not State.FRESH:
        ready = all(decisions[n].state is State.FRESH for n in d.node.needs)
        more = "" if ready else " --upstream"
        echo(f"to make it: ensdistill {d.node.command}{more}{file}")


def _value(value: Any) -> str:
    return "nothing" if value is None else json.dumps(value, ensure_ascii=False)


def some(names: Sequence[str]) -> str:
    """Return the first names, and how many more there are."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more


def repaired(outcome: Repair) -> None:
    """Print what a repair did."""
    for r in outcome.ran:
        items = f"{r.written} of {r.total} images computed again" if r.total else "made again"
        items += f", {r.reused} taken from other artifacts" if r.reused else ""
        echo(f"{r.node}: {items}, {duration(r.seconds)}")
    for node_id in outcome.different:
        echo(f"{node_id} came out different from before: what is below it is stale now")
    left = ((why, f"{folder}: left as it is ({why})") for folder, why in outcome.left.items())
    for line in grouped(left):
        echo(line)
    if not outcome.left:
        echo("all damage is made good")


def garbage(found: Sequence[Kept], outcome: Mapping[Kept, str | None], *, delete: bool) -> None:
    """Print what nothing reaches, and what became of it."""
    table = Table()
    for column in ("folder", "kind", "node", "disk", "outcome")[: 4 + delete]:
        table.add_column(column, justify="right" if column == "disk" else "left")
    for kept in (k for k in found if k.reason is None):
        name = f"{kept.path.parent.name}/{kept.path.name}"
        if kept.files:
            name = f"{len(kept.files)} files of {kept.path.name}"
        row = [Text(name), kept.kind, Text(kept.node or "-"), size(kept.bytes)]
        if delete:
            row.append(Text(outcome[kept] or "deleted"))
        table.add_row(*row)
    gone = [k for k in found if k.reason is None]
    if gone:
        print_table(table)
    stays = sum(k.bytes for k in found if k.reason is not None)
    if delete:
        freed = [k for k in gone if outcome[k] is None]
        stays += sum(k.bytes for k in gone if outcome[k] is not None)
        echo(f"{size(sum(k.bytes for k in freed))} freed, {size(stays)} stay")
    else:
        counts = [sum(k.kind != "cache" for k in of) for of in (gone, found)]
        count = f"{counts[0]} of {counts[1]} folders"
        cached = [sum(len(k.files) for k in of) for of in (gone, found)]
        if cached[1]:
            count += f" and {cached[0]} of {cached[1]} decoded images"
        count += f", {size(sum(k.bytes for k in gone))}"
        echo(f"nothing reaches {count}; {size(stays)} stay")
        if gone:
            echo("nothing was deleted; --delete does it")


def teachers(found: Mapping[str, Mapping[str, Any]]) -> None:
    """Print what the label maps of each teacher hold, and how far they agree.

    Parameters
    ----------
    found : mapping
        See `stages.checks.teachers.published`.
    """
    for name, of in found.items():
        shares = some([f"{c} {100 * share:.0f} %" for c, share in of["shares"].items()])
        echo(f"{name}: {shares}; {100 * of['coverage']:.1f} % of the pixels labelled")
        if of["absent"]:
            echo(f"  nowhere: {some(of['absent'])}")
        if of["agrees"]:
            echo(f"  {agrees(of)}")
        for text in of["warnings"]:
            echo(f"warning: teachers[{name}]: {text}")


def fused(decisions: Mapping[str, Decision]) -> None:
    """Print how much of the pixels the published fusion labels."""
    artifact = decisions["fusion"].artifact
    assert artifact is not None
    result = artifact.manifest.result
    text = f"{result['coverage']:.1%} of the pixels are labelled"
    if "conflict" in result:
        text += f"; {result['conflict']:.1%} were in conflict, {result['hole']:.1%} in a hole"
    weights = decisions["weights"].artifact if "weights" in decisions else None
    if weights is not None and weights.manifest.result["mean"] is not None:
        text += f"; the mean weight of a label is {weights.manifest.result['mean']:.3f}"
    echo(text)


def agrees(found: Mapping[str, Any]) -> str:
    """Return how far a teacher agrees with each of the others, in words.

    Parameters
    ----------
    found : mapping
        Of that teacher, see `stages.checks.teachers.compared`.
    """
    shares = [f"{t} {'-' if s is None else f'{100 * s:.0f} %'}" for t, s in found["agrees"].items()]
    images = "one image" if found["images"] == 1 else f"{found['images']} images"
    return f"on {images}, of the pixels that both label it agrees on: {', '.join(shares)}"


def policy(chosen: Mapping[str, Any] | None, certainty: Mapping[str, Mapping[str, Any]]) -> None:
    """Print the policy, class by class, with the probe certainty of every teacher."""
    if chosen is None:
        return
    table = Table(title="policy, and certainty of each teacher's probe")
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
        echo("fallback: no probe is sure of the class on enough pixels (min_support)")


def reliability(found: Mapping[str, Mapping[str, float | None]], doubt: str | None) -> None:
    """Print the IoU per class that the label model expects of every teacher, in percent.

    `doubt` says why it expects nothing, where it cannot tell.
    """
    if doubt is not None:
        echo(f"label model: {doubt}")
    if not found:
        return
    table = Table(title="what the label model expects, IoU in percent")
    table.add_column("class")
    for teacher in found:
        table.add_column(Text(teacher), justify="right")
    for name in next(iter(found.values())):
        values = [found[t][name] for t in found]
        best = max((v for v in values if v is not None), default=None)
        cells = [_number(None if v is None else 100 * v) for v in values]
        styles = ["bold" if v == best else "" for v in values]
        table.add_row(name, *(Text(c, style=s) for c, s in zip(cells, styles, strict=True)))
    print_table(table)


def scores(results: Mapping[str, Any]) -> None:
    """Print IoU per class and mIoU of every method, in percent, 255 counted as wrong.

    Parameters
    ----------
    results : mapping
        The content of ``results.json``.
    """
    methods: Sequence[Mapping[str, Any]] = results["methods"]
    shown = [c for c in results["classes"] if any(m["iou"][c] is not None for m in methods)]
    table = Table(title=f"IoU on {results['split']}, percent")
    table.add_column("class")
    for m in methods:
        table.add_column(Text(method_label(m)), justify="right")
    for c in shown:
        table.add_row(c, *(_number(m["iou"][c]) for m in methods))
    table.add_section()
    for key, mean in (*means(results).items(), ("", covered(results))):
        table.add_row(mean.label, *map(_number, mean.values), style=_weight(key))
        if not mean.alike:
            table.add_row("  over classes", *(str(len(of)) for of in mean.classes))
    shares = [m["coverage"] for m in methods]
    table.add_row("coverage of labelled pixels", *map(_percent, shares))
    conflicts = [results["conflict"].get(m["name"]) for m in methods]
    table.add_row("conflict on all pixels", *map(_percent, conflicts))
    times = [results["seconds_per_image"].get(m["name"]) for m in methods]
    table.add_row("fusing, ms an image", *(_number(None if s is None else 1000 * s) for s in times))
    oracle = next((m["miou_present"] for m in methods if m["name"] == "channel-oracle"), None)
    if oracle is not None:
        regrets = (None if (v := m["miou_present"]) is None else oracle - v for m in methods)
        table.add_row("regret, mIoU present", *map(_number, regrets))
    print_table(table)
    if note := overlap_note(results):
        echo(f"{results['split']}: {note}")
    absent = [c for c in results["classes"] if c not in shown]
    if absent and shown:
        echo(f"not in the ground truth, nor predicted where it is labelled: {', '.join(absent)}")
    if results["student_selected_on"] is not None:
        echo(
            f"student: of its checkpoints the best on the ground truth of "
            f"{results['student_selected_on']} (`keep: best`), not the last one"
        )
    for note in notes(results):
        echo(note)


def estimates(found: Mapping[str, Mapping[str, Mapping[str, float | None]]]) -> None:
    """Print how well the estimates of each teacher's classes go with their IoU, if there are any.

    Parameters
    ----------
    found : mapping
        The `estimates` of ``results.json``.
    """
    kinds = [k for k in ("certainty", "reliability") if any(k in of for of in found.values())]
    if not kinds:
        return
    table = Table(title="estimates against IoU, over the classes")
    table.add_column("teacher")
    measures = {"cosine": "cosine similarity", "rank": "rank correlation", "classes": "classes"}
    for kind in kinds:
        for text in measures.values():
            table.add_column(f"{kind}: {text}", justify="right")
    for teacher, of in found.items():
        values = [(m, of.get(k, {}).get(m)) for k in kinds for m in measures]
        table.add_row(Text(teacher), *(_number(v, 0 if m == "classes" else 3) for m, v in values))
    print_table(table)


def ablation(found: Mapping[str, Any]) -> None:
    """Print what bad teachers cost, what real ones give, and which compositions beat their best.

    Parameters
    ----------
    found : mapping
        The content of ``ablation.json``.
    """
    split, present = found["split"], len(found["classes_present"])
    rows = [*found["robustness"], *found["leave_one_out"]["teachers"]]
    rows += found["flexibility"]["compositions"]
    counts = {n for row in rows for n in row["classes"].values() if n is not None}
    _ablated(found, split, "mIoU", present)
    if counts == {present}:
        echo(f"each mIoU is over the {present} classes in the ground truth of {split}")
        return
    echo(
        f"in brackets: over how many classes, where not over the {present} in the ground truth of "
        f"{split}; one that only a prediction has counts as 0, and losses and margins are not over "
        f"the same classes. Over those {present} alone:"
    )
    echo()
    _ablated(found["present"], split, "mIoU present", present)


def _ablated(found: Mapping[str, Any], split: str, score: str, present: int) -> None:
    """Print all tables by one score.

    Rows may say over how many ``classes`` their means are; else they are over those `present`.
    """
    _spoilt(found["robustness"], f"bad teachers, {score} on {split} in percent", score, present)
    echo(rivals_note(found["beside"]))
    echo()
    _left_out(found["leave_one_out"], score, present)
    echo()
    _composed(found["flexibility"], score, present)


def _spoilt(rows: Sequence[Mapping[str, Any]], title: str, score: str, present: int) -> None:
    """Print what each further bad teacher costs."""
    table = Table(title=title)
    table.add_column("bad", justify="right")
    for column in ("the last of them", "made from"):
        table.add_column(column)
    for column in (f"its {score}", *_ABLATED, *(f"{m} loses" for m in _ABLATED)):
        table.add_column(column, justify="right")
    for row in rows:
        texts = [Text(row[key] or "-") for key in ("added", "of")]
        losses = [_number(row["loss"][m]) for m in _ABLATED]
        table.add_row(str(row["bad"]), *texts, *_over(row, ("miou", *_ABLATED), present), *losses)
    print_table(table)


def _left_out(found: Mapping[str, Any], score: str, present: int) -> None:
    """Print what each real teacher gives, and which gives least."""
    rows = found["teachers"]
    if not rows:
        echo("none is left out: of fewer than four teachers fewer than three would be left")
        return
    table = Table(title=f"without one of the teachers, {score}, what gives most first")
    table.add_column("without")
    columns = [
        f"its {score}",
        *(f"{m} without" for m in _ABLATED),
        *(f"gives {m}" for m in _ABLATED),
    ]
    for column in columns:
        table.add_column(column, justify="right")
    for row in sorted(rows, key=lambda r: r["gives"][_ABLATED[0]] or 0, reverse=True):
        gives = [_signed(row["gives"][m]) for m in _ABLATED]
        table.add_row(Text(row["teacher"]), *_over(row, ("miou", *_ABLATED), present), *gives)
    print_table(table)
    for m in _ABLATED:
        teacher, gives = found["weakest"][m]["teacher"], found["weakest"][m]["gives"]
        verb = "costs" if gives < 0 else "gives"
        echo(f"the weakest real teacher of {m}, {teacher}, {verb} it {abs(gives):.2f} {score}")


def _composed(found: Mapping[str, Any], score: str, present: int) -> None:
    """Print every composition, and how often they are no worse than what is beside them."""
    rows = found["compositions"]
    if not rows:
        echo("compositions are of at least three teachers: there are none")
        return
    table = Table(title=f"compositions, {score}, label model's best first")
    table.add_column("teachers")
    for column in (*_ABLATED, "best member's"):
        table.add_column(column, justify="right")
    table.add_column("best member")
    for row in sorted(rows, key=lambda r: r["label-model"] or 0, reverse=True):
        numbers = _over(row, (*_ABLATED, "best_miou"), present)
        table.add_row(Text(", ".join(row["teachers"])), *numbers, Text(row["best"]))
    print_table(table)
    on_majority = found["on_majority"]
    told = [(m, "the best member", found[m], found["margin"][m]) for m in _ABLATED]
    told.append((_ABLATED[0], "majority", on_majority["share"], on_majority["margin"]))
    for m, other, share, margin in told:
        echo(
            f"{m} is at or above {other} in {100 * share:.0f} % of {len(rows)} compositions, by "
            f"{margin:+.2f} {score} on average"
        )


def _over(row: Mapping[str, Any], keys: Sequence[str], present: int) -> Iterator[str]:
    """Yield the means of a row, with the number of classes that one is over if it is another."""
    counts = row.get("classes", {})
    for key in keys:
        count = counts.get(key, present)
        yield _number(row[key]) + ("" if count in (None, present) else f" ({count})")


def comparison(found: Mapping[str, Any]) -> None:
    """Print experiments side by side.

    Parameters
    ----------
    found : mapping
        See `stages.comparison.compare`.
    """
    labels = [e["label"] for e in found["experiments"]]
    for method in found["methods"]:
        # the same teacher has the same label maps as a rule: then there is nothing to see
        if method["method"] not in ("fusion", "student") and not _differs(method["delta"]):
            continue
        table = Table(title=_compared(method))
        table.add_column("class")
        table.add_column(Text(labels[0]), justify="right")
        for label in labels[1:]:
            table.add_column(Text(label), justify="right")
            table.add_column("", justify="right")
        for name, values in method["iou"].items():
            if any(v is not None for v in values):
                table.add_row(name, *_with_deltas(values, method["delta"]["iou"][name]))
        table.add_section()
        for key in (k for k in method["delta"] if k != "iou"):
            cells = _with_deltas(method[key], method["delta"][key])
            table.add_row(score_label(key), *cells, style=_weight(key))
            if len(set(method["classes"][key])) > 1:
                first, *others = map(str, method["classes"][key])
                table.add_row("  over classes", first, *(c for o in others for c in (o, "")))
        print_table(table)
        echo()
    table = Table(title="teachers")
    for column in ("teacher", *labels):
        table.add_column(Text(column))
    for teacher, has in found["teachers"].items():
        table.add_row(Text(teacher), *("yes" if h else "-" for h in has))
    print_table(table)
    if found["policy"]:
        echo()
        table = Table(title="policy (* where it differs)")
        for column in ("class", *labels):
            table.add_column(Text(column))
        for name, chosen in found["policy"].items():
            mark = " *" if len(set(chosen)) > 1 else ""
            table.add_row(name + mark, *(Text(t or "-") for t in chosen))
        print_table(table)
    echo()
    table = Table(title="seconds (images computed, reused)")
    for column in ("stage", *labels):
        table.add_column(Text(column), justify="left" if column == "stage" else "right")
    costs = [e["cost"] for e in found["experiments"]]
    for stage in dict.fromkeys(stage for cost in costs for stage in cost):
        table.add_row(stage, *(_spent(cost.get(stage)) for cost in costs))
    table.add_section()
    table.add_row("all", *(f"{sum(c['seconds'] for c in cost.values()):.1f}" for cost in costs))
    print_table(table)
    for note in found["notes"]:
        echo(f"note: {note}")


def _weight(key: str) -> str:
    """Return the style of a mean over all classes, and that of one over fewer."""
    return "bold" if key in ("miou", "miou_present") else ""


def _differs(delta: Mapping[str, Any]) -> bool:
    values = [*delta["miou"], *(v for of in delta["iou"].values() for v in of)]
    return any(values)


def _compared(method: Mapping[str, Any]) -> str:
    names = list(dict.fromkeys(method["names"]))
    own = f" ({', '.join(names)})" if method["method"] == "fusion" else ""
    return f"{method['method']}{own}, IoU in percent"


def _with_deltas(values: Sequence[float | None], deltas: Sequence[float | None]) -> Iterator[str]:
    yield _number(values[0], 2)
    for value, delta in zip(values[1:], deltas[1:], strict=True):
        yield _number(value, 2)
        yield _signed(delta)


def _spent(cost: Mapping[str, Any] | None) -> str:
    if cost is None:
        return "-"
    images = f" ({cost['computed']}, {cost['reused']})" if cost["computed"] else ""
    return f"{cost['seconds']:.1f}{images}"


def _number(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.2f}"


def _percent(value: float | None) -> str:
    """Return a fraction in percent, as its neighbours are."""
    return _number(None if value is None else 100 * value)
