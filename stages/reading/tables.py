"""Results as tables, in the layout of Chao, Cheng, Lee (CVPR Workshops 2021, Table 1).

One row a method: teachers, fusions, probes, student. One column a class, in the order of the class
table, then mIoU over all classes, over those that occur in the ground truth and over each declared
subset (``mIoU13`` is the mIoU* of papers about SYNTHIA), each with how many classes it is over;
pixel accuracy and coverage. All but these numbers in percent. Text in, text out.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ensdistill.pipeline.escaping import in_a_cell, in_a_line
from ensdistill.pipeline.figures import some
from ensdistill.stages.fusions import MAJORITY, is_yardstick

_NAMED: Final = 3  # methods, in a note

Values = list[float | None]


@dataclass(frozen=True)
class Mean:
    """A mean of the IoU over classes, of every method, in percent.

    `classes` are those that each method's is over, `present` those that occur in the ground truth.
    """

    label: str
    values: Sequence[float | None]
    classes: Sequence[frozenset[str]]
    present: frozenset[str]

    @property
    def alike(self) -> bool:
        """Whether all are over the classes that occur in the ground truth, no more and no less."""
        return all(of == self.present for of in self.classes if of)


def means(results: Mapping[str, Any]) -> dict[str, Mean]:
    """Return the means of ``results.json``'s content in which 255 is wrong, by their keys there."""
    methods, present = results["methods"], frozenset(results["classes_present"])
    found = {
        "miou": _mean(score_label("miou"), [m["miou"] for m in methods], results),
        "miou_present": Mean(
            score_label("miou_present"),
            [m["miou_present"] for m in methods],
            [present] * len(methods),
            present,
        ),
    }
    for subset, members in results["subsets"].items():
        of = [m["miou_subsets"][subset] for m in methods]
        found[subset] = _mean(score_label(subset), of, results, members=members)
    return found


def covered(results: Mapping[str, Any]) -> Mean:
    """Return the mean that leaves 255 out: a class may be at no pixel that is left."""
    found = [m["miou_covered"] for m in results["methods"]]
    return _mean("mIoU where covered", found, results, "iou_covered")


def _mean(
    label: str,
    values: Sequence[float | None],
    results: Mapping[str, Any],
    iou: str = "iou",
    members: Collection[str] | None = None,
) -> Mean:
    """Return the mean over those of `members`, or of all classes, that a method has an IoU of."""
    among = frozenset(results["classes"] if members is None else members)
    found = [frozenset(c for c in among if m[iou][c] is not None) for m in results["methods"]]
    return Mean(label, values, found, among & frozenset(results["classes_present"]))


def method_label(method: Mapping[str, Any]) -> str:
    """Return what a method of ``results.json`` is called where no column tells its kind."""
    name: str = method["name"]
    return f"probe of {name}" if method["kind"] == "probe" else name


def score_label(key: str) -> str:
    """Return what a mean is called: mIoU16 for the subset ``miou16``."""
    return "mIoU present" if key == "miou_present" else re.sub("^miou", "mIoU", key)


@dataclass(frozen=True)
class _Column:
    """A column of scores: a value a method, in percent; or of how many classes a mean is over.

    `alike` is whether its values can be compared: means over the same classes, and the IoU of a
    class that is in the ground truth.
    """

    label: str
    values: Sequence[float | None]
    alike: bool = True
    counts: bool = False


def _columns(results: Mapping[str, Any]) -> list[_Column]:
    methods = results["methods"]
    found = [
        _Column(c, [m["iou"][c] for m in methods], c in results["classes_present"])
        for c in results["classes"]
    ]
    for mean in means(results).values():
        counts = [len(of) for of in mean.classes]
        found.append(_Column(mean.label, mean.values, mean.alike))
        found.append(_Column(f"classes of {mean.label}", counts, mean.alike, counts=True))
    shares = [m["coverage"] for m in methods]
    found.append(_Column("pixel accuracy", [m["pixel_accuracy"] for m in methods]))
    found.append(_Column("coverage", [None if s is None else 100 * s for s in shares]))
    return found


def columns(results: Mapping[str, Any]) -> list[str]:
    """Return the columns of scores of ``results.json``'s content."""
    return [column.label for column in _columns(results)]


def values(results: Mapping[str, Any]) -> list[Values]:
    """Return each method's scores, one a column; None for what is absent everywhere."""
    return [list(row) for row in zip(*(c.values for c in _columns(results)), strict=True)]


def to_csv(results: Mapping[str, Any]) -> str:
    """Return a table with all digits; a score that does not exist is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["kind", "method", *columns(results)])
    for m, row in zip(results["methods"], values(results), strict=True):
        writer.writerow([m["kind"], m["name"], *row])
    return text.getvalue()


def to_markdown(results: Mapping[str, Any]) -> str:
    """Return a table with two decimals, the best of each column bold.

    The policy that is chosen by the ground truth itself is never the best. Where the means of a
    column are over different classes none is, and the next column says over how many each is. A
    score that does not exist is ``-``.
    """
    methods = results["methods"]
    shown = [c for c in _columns(results) if not (c.counts and c.alike)]
    head = ["method", *(c.label for c in shown)]
    cells = zip(*(_cells(c, methods) for c in shown), strict=True)
    lines = [head, ["---", *["---:"] * len(shown)]]
    lines += [[method_label(m), *row] for m, row in zip(methods, cells, strict=True)]
    told = "; ".join(filter(None, (f"IoU on {results['split']}, percent", overlap_note(results))))
    table = "\n".join(f"| {' | '.join(map(in_a_cell, line))} |" for line in lines)
    return "\n\n".join([told, table, *map(in_a_line, notes(results))]) + "\n"


def to_json(results: Mapping[str, Any]) -> str:
    """Return a table with all digits and, where the methods carry them, confusion matrices.

    ``confmat[target][prediction]`` counts pixels; classes in the order of ``classes``, and a last
    column for predictions of 255.
    """
    rows = [
        {"kind": m["kind"], "method": m["name"], "values": row}
        | ({"confmat": m["confmat"]} if "confmat" in m else {})
        for m, row in zip(results["methods"], values(results), strict=True)
    ]
    kept = ("split", "overlap", "classes", "classes_present", "not_scored")
    told = {key: results[key] for key in kept}
    table = {**told, "unit": "percent", "columns": columns(results), "rows": rows}
    text = json.dumps(table, ensure_ascii=False, allow_nan=False) + "\n"
    return text.encode(errors="backslashreplace").decode()  # halves of surrogates alone


WRITERS: Final[Mapping[str, Callable[[Mapping[str, Any]], str]]] = {
    ".csv": to_csv,
    ".md": to_markdown,
    ".json": to_json,
}


def overlap_note(results: Mapping[str, Any]) -> str:
    """Return a clause about images that were also trained on; empty where there are none."""
    shared: Mapping[str, int] = results["overlap"]
    return " and ".join(f"{n} of its images are also in {split}" for split, n in shared.items())


def rivals_note(beside: Mapping[str, Any]) -> str:
    """Return a fusion's score, and how far it is above its rivals (see `rivals.rivals`)."""
    method, value, score = beside["method"], beside["value"], score_label(beside["score"])
    told = []
    for key, name in ((MAJORITY.name, MAJORITY.name), ("teacher", "the best teacher")):
        if (of := beside[key]) is not None:
            called = f"{of['name']}, " if "name" in of else ""
            told.append(f"{of['difference']:+.1f} on {name} ({called}{of['value']:.1f})")
    return f"{method} {value:.1f} {score}: {', '.join(told)}"


def between_notes(between: Mapping[str, Mapping[str, float | None]]) -> list[str]:
    """Return a line for each kind of estimate in `between_teachers` of ``results.json``."""
    return [f"{kind}, between teachers: {_between(of)}" for kind, of in between.items()]


def _between(of: Mapping[str, float | None]) -> str:
    if of["rank"] is None:
        ordered = "no class has three teachers that can be ranked"
    else:
        ordered = (
            f"mean rank correlation {of['rank']:.3f} over {_classes(of['ranked'])}, at "
            f"{of['best']} of which the surest teacher is the best"
        )
    if of["lost"] is None:
        return ordered
    return (
        f"{ordered}; a policy by it loses {of['lost']:.1f} points of IoU to the best teachers, "
        f"on average over {_classes(of['judged'])}"
    )


def _classes(count: float | None) -> str:
    return "one class" if count == 1 else f"{count} classes"


def notes(results: Mapping[str, Any]) -> list[str]:
    """Return what a reader must know.

    What majority and the best teacher would have given, over which classes the means are, whether
    the majority counts instead of the label model, and what is missing.
    """
    split, methods, present = (results[key] for key in ("split", "methods", "classes_present"))
    if not present:
        found = [f"no pixel of the ground truth of {split} is labelled: nothing is scored"]
    elif means(results)["miou"].alike:
        found = [f"mIoU is over the {len(present)} classes in the ground truth of {split}"]
    else:
        by_class = {
            c: [method_label(m) for m in methods if m["iou"][c] is not None]
            for c in results["classes"]
            if c not in present
        }
        told = [f"{c} ({some(names, _NAMED)})" for c, names in by_class.items() if names]
        found = [
            f"mIoU present is over the {len(present)} classes in the ground truth of {split}; mIoU "
            f"counts as 0 what a method predicts beside them: {', '.join(told)}"
        ]
    if results["beside"] is not None:
        found.insert(0, rivals_note(results["beside"]))
    model = results["label_model"]
    if model is not None and model["because"] is not None:
        found.append(f"label model: {model['because']}: the majority of the votes counts instead")
    found += [f"warning: {text}" for text in results["suspicions"]]
    found += missing(results["not_scored"])
    fused = [m["name"] for m in methods if m["kind"] == "fusion"]
    if fused and any(m["kind"] == "teacher" for m in results["not_scored"]):
        rest = [m["name"] for m in methods if m["kind"] == "teacher"]
        found.append(f"{' and '.join(fused)}: fused from {', '.join(rest)} alone")
    return found


def missing(not_scored: Sequence[Mapping[str, str]]) -> list[str]:
    """Return a line for each method that is not scored."""
    return [f"{method_label(m)}: {m['why']}" for m in not_scored]


def _cells(column: _Column, methods: Sequence[Mapping[str, Any]]) -> list[str]:
    if column.counts:
        return [str(v) for v in column.values]
    pairs = list(zip(methods, column.values, strict=True))
    ranked = [v for m, v in pairs if column.alike and not is_yardstick(m["name"]) and v is not None]
    best = max(ranked, default=None)
    return [_cell(v, None if is_yardstick(m["name"]) else best) for m, v in pairs]


def _cell(value: float | None, best: float | None) -> str:
    if value is None:
        return "-"
    return f"**{value:.2f}**" if value == best else f"{value:.2f}"
