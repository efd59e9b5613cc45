"""What was found of teachers, fusions and students, on stdout."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from rich.text import Text

from ensdistill.cli.grid import Table, print_table
from ensdistill.cli.render.texts import number, signed
from ensdistill.cli.screen import echo
from ensdistill.pipeline.figures import some
from ensdistill.pipeline.plan import Decision
from ensdistill.stages.fusions import LABEL_MODEL, MAJORITY, is_yardstick
from ensdistill.stages.nodes.fusion.plan import FusedMaps, fusion_id
from ensdistill.stages.nodes.pixel_weights.plan import Weighed, pixel_weights_id
from ensdistill.stages.reading.tables import (
    between_notes,
    covered,
    means,
    method_label,
    notes,
    overlap_note,
    rivals_note,
    score_label,
)

if TYPE_CHECKING:
    from ensdistill.stages.contract import Named
    from ensdistill.stages.nodes.certainty.plan import Certainty
    from ensdistill.stages.nodes.policy.plan import Policy
    from ensdistill.stages.reading.results import Standing

_ABLATED: Final = (LABEL_MODEL.name, MAJORITY.name)


def teachers(found: Mapping[str, Mapping[str, Any]]) -> None:
    """Print what is `checks.teachers.published`: what label maps hold, and how far they agree."""
    for name, of in found.items():
        echo(f"{name}: {shares(of['shares'])}; {100 * of['coverage']:.1f} % of the pixels labelled")
        if of["absent"]:
            echo(f"  nowhere: {some(of['absent'])}")
        if of["agrees"]:
            echo(f"  {agrees(of)}")
        for text in of["warnings"]:
            echo(f"warning: teachers[{name}]: {text}")


def shares(found: Mapping[str, float]) -> str:
    """Return the classes that have the largest shares of pixels, in percent."""
    return some([f"{name} {100 * share:.0f} %" for name, share in found.items()])


def fused(decisions: Mapping[str, Decision]) -> None:
    """Print how much of the pixels the published fusion labels."""
    artifact = decisions[fusion_id()].artifact
    assert artifact is not None
    found = FusedMaps.told_by(artifact)
    text = f"{found.coverage:.1%} of the pixels are labelled"
    if found.conflict is not None:
        text += f"; {found.conflict:.1%} were in conflict, {found.hole:.1%} in a hole"
    weighed = decisions.get(pixel_weights_id())
    weights = None if weighed is None else weighed.artifact
    if weights is not None and (mean := Weighed.told_by(weights).mean) is not None:
        text += f"; the mean weight of a label is {mean:.3f}"
    echo(text)


def agrees(found: Mapping[str, Any]) -> str:
    """Return in words how far a teacher agrees with each other (see `checks.teachers.compared`)."""
    shares = [f"{t} {'-' if s is None else f'{100 * s:.0f} %'}" for t, s in found["agrees"].items()]
    images = "one image" if found["images"] == 1 else f"{found['images']} images"
    return f"on {images}, of the pixels that both label it agrees on: {', '.join(shares)}"


def standing(found: Standing) -> None:
    """Print the policy, with the certainty of every probe, and what the label model expects."""
    if found.policy is not None:
        _policy(found.policy, found.certainty)
    if found.doubt is not None:
        echo(f"label model: {found.doubt}")
    if found.reliability:
        _reliability(found.reliability)


def _policy(chosen: Policy, certainty: Mapping[str, Certainty]) -> None:
    table = Table("class", "teacher", title="policy, and certainty of each teacher's probe")
    table.add_numbers(*certainty)
    for name, teacher in chosen.teacher.items():
        cells = [
            Text(number(of.certainty[name], 3), style="bold" if t == teacher else "")
            for t, of in certainty.items()
        ]
        mark = " (fallback)" if name in chosen.fallback else ""
        table.add_row(name, Text((teacher or "-") + mark), *cells)
    print_table(table)
    if chosen.fallback:
        echo("fallback: no probe is sure of the class on enough pixels (min_support)")


def _reliability(found: Mapping[str, Named]) -> None:
    """Print the IoU per class that the label model expects of every teacher, in percent."""
    table = Table("class", title="what the label model expects, IoU in percent")
    table.add_numbers(*found)
    for name in next(iter(found.values())):
        values = [found[t][name] for t in found]
        best = max((v for v in values if v is not None), default=None)
        cells = [Text(_percent(v), style="bold" if v == best else "") for v in values]
        table.add_row(name, *cells)
    print_table(table)


def scores(results: Mapping[str, Any]) -> None:
    """Print what ``results.json`` has of every method: IoU and mIoU in percent, 255 a mistake."""
    methods: Sequence[Mapping[str, Any]] = results["methods"]
    shown = [c for c in results["classes"] if any(m["iou"][c] is not None for m in methods)]
    table = Table("class", title=f"IoU on {results['split']}, percent")
    table.add_numbers(*map(method_label, methods))
    for c in shown:
        table.add_row(c, *(number(m["iou"][c]) for m in methods))
    table.add_section()
    for key, mean in (*means(results).items(), ("", covered(results))):
        table.add_row(mean.label, *map(number, mean.values), style=_weight(key))
        if not mean.alike:
            table.add_row("  over classes", *(str(len(of)) for of in mean.classes))
    shares = [m["coverage"] for m in methods]
    table.add_row("coverage of labelled pixels", *map(_percent, shares))
    conflicts = [results["conflict"].get(m["name"]) for m in methods]
    table.add_row("conflict on all pixels", *map(_percent, conflicts))
    times = [results["seconds_per_image"].get(m["name"]) for m in methods]
    table.add_row("fusing, ms an image", *(number(None if s is None else 1000 * s) for s in times))
    oracle = next((m["miou_present"] for m in methods if is_yardstick(m["name"])), None)
    if oracle is not None:
        regrets = (None if (v := m["miou_present"]) is None else oracle - v for m in methods)
        table.add_row("regret, mIoU present", *map(number, regrets))
    print_table(table)
    if note := overlap_note(results):
        echo(f"{results['split']}: {note}")
    absent = [c for c in results["classes"] if c not in shown]
    if absent and shown:
        echo(f"not in the ground truth, nor predicted where it is labelled: {', '.join(absent)}")
    if results["student_selected_on"] is not None:
        echo(
            f"student: of its checkpoints the best on the ground truth of "
            f"{results['student_selected_on']} (`checkpoint: best`), not the last one"
        )
    for note in notes(results):
        echo(note)


def estimates(results: Mapping[str, Any]) -> None:
    """Print how well the estimates in ``results.json`` go with IoU: of a teacher, and between."""
    found: Mapping[str, Mapping[str, Mapping[str, float | None]]] = results["estimates"]
    kinds = [k for k in ("certainty", "reliability") if any(k in of for of in found.values())]
    if not kinds:
        return
    asked = f"{'do' if len(kinds) > 1 else 'does'} {' and '.join(kinds)} tell quality?"
    table = Table("teacher", title=f"{asked} Against IoU, over the classes")
    measures = {"cosine": "cosine similarity", "rank": "rank correlation", "classes": "classes"}
    table.add_numbers(*(f"{kind}: {text}" for kind in kinds for text in measures.values()))
    for teacher, of in found.items():
        values = [(m, of.get(k, {}).get(m)) for k in kinds for m in measures]
        table.add_row(Text(teacher), *(number(v, 0 if m == "classes" else 3) for m, v in values))
    print_table(table)
    for note in between_notes(results["between_teachers"]):
        echo(note)


def ablation(found: Mapping[str, Any]) -> None:
    """Print ``ablation.json``: what bad teachers cost, real ones give, and compositions reach."""
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
    table.add_numbers("bad")
    table.add_column("the last of them")
    table.add_column("made from")
    table.add_numbers(f"its {score}", *_ABLATED, *(f"{m} loses" for m in _ABLATED))
    for row in rows:
        texts = [Text(row[key] or "-") for key in ("added", "of")]
        losses = [number(row["loss"][m]) for m in _ABLATED]
        table.add_row(str(row["bad"]), *texts, *_over(row, ("miou", *_ABLATED), present), *losses)
    print_table(table)


def _left_out(found: Mapping[str, Any], score: str, present: int) -> None:
    """Print what each real teacher gives, and which gives least."""
    rows = found["teachers"]
    if not rows:
        echo("none is left out: of fewer than four teachers fewer than three would be left")
        return
    table = Table("without", title=f"without one of the teachers, {score}, what gives most first")
    table.add_numbers(f"its {score}", *(f"{m} without" for m in _ABLATED))
    table.add_numbers(*(f"gives {m}" for m in _ABLATED))
    for row in sorted(rows, key=lambda r: r["gives"][_ABLATED[0]] or 0, reverse=True):
        gives = [signed(row["gives"][m]) for m in _ABLATED]
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
    table = Table("teachers", title=f"compositions, {score}, label model's best first")
    table.add_numbers(*_ABLATED, "best member's")
    table.add_column("best member")
    for row in sorted(rows, key=lambda r: r[_ABLATED[0]] or 0, reverse=True):
        numbers = _over(row, (*_ABLATED, "best_miou"), present)
        table.add_row(Text(", ".join(row["teachers"])), *numbers, Text(row["best"]))
    print_table(table)
    on_majority = found["on_majority"]
    told = [(m, "the best member", found[m], found["margin"][m]) for m in _ABLATED]
    told.append((*_ABLATED, on_majority["share"], on_majority["margin"]))
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
        yield number(row[key]) + ("" if count in (None, present) else f" ({count})")


def noise(found: Mapping[str, Any]) -> None:
    """Print ``noise.json``: by level the certainty of the probe, its mean and of each class."""
    rows, compared = found["levels"], found["classes"]
    table = Table(title=f"noise in the labels of {found['teacher']}")
    levels = [_percent(row["noise"]) for row in rows]
    table.add_numbers("segments, percent", "pixels, percent", "mean certainty")
    for level, row in zip(levels, rows, strict=True):
        table.add_row(level, _percent(row["changed"]), number(row["mean"], 3))
    print_table(table)
    echo()
    table = Table("class", title="certainty of each class, by percent of the segments")
    table.add_numbers(*levels)
    for name in rows[0]["certainty"]:
        values = [row["certainty"][name] for row in rows]
        if any(value is not None for value in values):
            mark = "" if name in compared else " (not in the mean)"
            table.add_row(name + mark, *(number(value, 3) for value in values))
    print_table(table)
    if not compared:
        echo("no class is supported on enough pixels (min_support) at all levels: there is no mean")
        return
    echo(
        f"the mean is over the {len(compared)} classes that the probes support on enough pixels "
        f"(min_support) at all levels; rank correlation of noise and mean certainty: "
        f"{number(found['rank'], 2)}"
    )


def comparison(found: Mapping[str, Any]) -> None:
    """Print experiments side by side (see `reading.comparison.compare`)."""
    labels = [e["label"] for e in found["experiments"]]
    for method in found["methods"]:
        # the same teacher has the same label maps as a rule: then there is nothing to see
        if method["method"] not in ("fusion", "student") and not _differs(method["delta"]):
            continue
        table = Table("class", title=_compared(method))
        table.add_numbers(labels[0])
        for label in labels[1:]:
            table.add_numbers(label, "")
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
    table = Table("teacher", *labels, title="teachers")
    for teacher, has in found["teachers"].items():
        table.add_row(Text(teacher), *("yes" if h else "-" for h in has))
    print_table(table)
    if found["policy"]:
        echo()
        table = Table("class", *labels, title="policy (* where it differs)")
        for name, chosen in found["policy"].items():
            mark = " *" if len(set(chosen)) > 1 else ""
            table.add_row(name + mark, *(Text(t or "-") for t in chosen))
        print_table(table)
    echo()
    table = Table("stage", title="seconds (images computed, reused)")
    table.add_numbers(*labels)
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
    yield number(values[0], 2)
    for value, delta in zip(values[1:], deltas[1:], strict=True):
        yield number(value, 2)
        yield signed(delta)


def _spent(cost: Mapping[str, Any] | None) -> str:
    if cost is None:
        return "-"
    images = f" ({cost['computed']}, {cost['reused']})" if cost["computed"] else ""
    return f"{cost['seconds']:.1f}{images}"


def _percent(value: float | None) -> str:
    """Return a fraction in percent, as its neighbours are."""
    return number(None if value is None else 100 * value)
