"""Results as tables, in the layout of Chao, Cheng, Lee (CVPR Workshops 2021, Table 1).

One row a method: teachers, fusions, probes, student. One column a class, in the order of the class
table, then mIoU over all classes and over each declared subset (``mIoU13`` is the mIoU* of papers
about SYNTHIA), pixel accuracy and coverage; all in percent. Text in, text out.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

__all__ = [
    "WRITERS",
    "columns",
    "method_label",
    "overlap_note",
    "score_label",
    "to_csv",
    "to_json",
    "to_markdown",
    "values",
]

_YARDSTICK: Final = "channel-oracle"  # chosen by the ground truth, so never the best

Values = list[float | None]


def method_label(method: Mapping[str, Any]) -> str:
    """Return what a method of ``results.json`` is called where no column tells its kind."""
    name: str = method["name"]
    return f"probe of {name}" if method["kind"] == "probe" else name


def score_label(subset: str) -> str:
    """Return what the mean over a declared subset of classes is called: mIoU16 for ``miou16``."""
    return re.sub("^miou", "mIoU", subset)


def columns(results: Mapping[str, Any]) -> list[str]:
    """Return the columns of scores of ``results.json``'s content."""
    subsets = results["methods"][0]["miou_subsets"]
    means = ["mIoU", *map(score_label, subsets)]
    return [*results["classes"], *means, "pixel accuracy", "coverage"]


def values(results: Mapping[str, Any], method: Mapping[str, Any]) -> Values:
    """Return a method's scores in percent, one a column; None for what is absent everywhere."""
    covered = method["coverage"]
    return [
        *(method["iou"][c] for c in results["classes"]),
        method["miou"],
        *method["miou_subsets"].values(),
        method["pixel_accuracy"],
        None if covered is None else 100 * covered,
    ]


def to_csv(results: Mapping[str, Any]) -> str:
    """Return a table with all digits; a score that does not exist is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["kind", "method", *columns(results)])
    for m in results["methods"]:
        writer.writerow([m["kind"], m["name"], *values(results, m)])
    return text.getvalue()


def to_markdown(results: Mapping[str, Any]) -> str:
    """Return a table with two decimals, the best of each column bold.

    The policy that is chosen by the ground truth itself is never the best. A score that does not
    exist is ``-``.
    """
    methods = results["methods"]
    scores = [values(results, m) for m in methods]
    ranked = [v for m, v in zip(methods, scores, strict=True) if m["name"] != _YARDSTICK]
    by_column = zip(*ranked, strict=True)
    best = [max((v for v in column if v is not None), default=None) for column in by_column]
    head = ["method", *columns(results)]
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    for m, row in zip(methods, scores, strict=True):
        marks = best if m["name"] != _YARDSTICK else [None] * len(row)
        lines.append([method_label(m), *map(_cell, row, marks)])
    told = "; ".join(filter(None, (f"IoU on {results['split']}, percent", overlap_note(results))))
    table = "\n".join(f"| {' | '.join(map(_escaped, line))} |" for line in lines)
    return f"{told}\n\n{table}\n"


def to_json(results: Mapping[str, Any]) -> str:
    """Return a table with all digits and, where the methods carry them, confusion matrices.

    ``confmat[target][prediction]`` counts pixels; classes in the order of ``classes``, and a last
    column for predictions of 255.
    """
    rows = [
        {"kind": m["kind"], "method": m["name"], "values": values(results, m)}
        | ({"confmat": m["confmat"]} if "confmat" in m else {})
        for m in results["methods"]
    ]
    told = {key: results[key] for key in ("split", "overlap", "classes")}
    table = {**told, "unit": "percent", "columns": columns(results), "rows": rows}
    return json.dumps(table, ensure_ascii=False, allow_nan=False) + "\n"


WRITERS: Final[Mapping[str, Callable[[Mapping[str, Any]], str]]] = {
    ".csv": to_csv,
    ".md": to_markdown,
    ".json": to_json,
}


def overlap_note(results: Mapping[str, Any]) -> str:
    """Return a clause about images that were also trained on; empty where there are none."""
    shared: Mapping[str, int] = results["overlap"]
    return " and ".join(f"{n} of its images are also in {split}" for split, n in shared.items())


def _cell(value: float | None, best: float | None) -> str:
    if value is None:
        return "-"
    return f"**{value:.2f}**" if value == best else f"{value:.2f}"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")
