"""The constants of the label model: what others would give, and what two worlds choose for a third.

A constant is tried around its default alone, the size of cells and how they hold to their band's
prior together.
"""

import itertools

import numpy as np

from ensdistill.stages.functional import labelmodel

from .judging import WORLDS, Task, perform
from .measures import gains, sweep_tasks

GRID = {
    "BANDS": (4, 6, 8),
    "HELD": (1, 3, 10, 20),
    "COPY": (4, 8, 16),
    "FIRST": (2, 5, 10),
}
TOGETHER = ("BANDS", "HELD")


def settings():
    """Return all that is tried, the defaults first: tuples of pairs of name and value."""
    defaults = {name: getattr(labelmodel, name) for name in GRID}
    found = [{}]
    found += [{name: value} for name in defaults for value in GRID[name]]
    found += [
        dict(zip(TOGETHER, values, strict=True))
        for values in itertools.product(*(GRID[name] for name in TOGETHER))
    ]
    full = [tuple((defaults | changed).items()) for changed in found]
    return list(dict.fromkeys(full))


def sweep(processes, say):
    """Return a row for each setting: what it gives in each kind of world."""
    names = list(WORLDS)
    results = perform(
        [Task("majority", n, "val", t) for n in names for t in WORLDS[n].compositions], processes
    )
    rows = []
    for constants in settings():
        results |= perform([t for n in names for t in sweep_tasks(WORLDS[n], constants)], processes)
        rows.append({"constants": dict(constants)} | _by_kind(constants, results))
        say(row(rows[-1]))
    return rows


def _by_kind(constants, results):
    """Return kind of world to its figures: fleets count as one, and so do cities."""
    kinds = {}
    for name in WORLDS:
        kind = {"fleet": "fleets", "city": "cities"}.get(name.rstrip("0123456789"), name)
        kinds.setdefault(kind, []).append(name)
    return {kind: _figures(names, constants, results) for kind, names in kinds.items()}


def _figures(names, constants, results):
    every = [gains(name, results, constants) for name in names]
    return {
        "gain": float(np.mean([g.mean() for g, _ in every])),
        "share": float(np.mean([100 * np.mean(g >= 0) for g, _ in every])),
        "least": float(min(g.min() for g, _ in every)),
        "all": float(np.mean([miou for _, miou in every])),
    }


def row(found):
    """Return a row as a line."""
    text = " ".join(f"{name} {value:<4g}" for name, value in found["constants"].items())
    for kind, of in found.items():
        if kind != "constants":
            text += f" | {kind} {of['gain']:+.2f} {of['share']:3.0f} % {of['least']:+.2f}"
            text += f" all {of['all']:.2f}"
    return text


def left_out(rows):
    """Yield for each kind of world what the others choose, and what that gives there.

    They choose what gains most on majority: the mean of the kinds' means over compositions.
    """
    kinds = [kind for kind in rows[0] if kind != "constants"]
    for kind in [*kinds, None]:
        others = [k for k in kinds if k != kind]
        if not others:
            continue
        chosen = max(rows, key=lambda r: np.mean([r[k]["gain"] for k in others]))
        seen = [kind] if kind else kinds
        yield {
            "left out": kind or "nothing",
            "chosen": chosen["constants"],
            "gain": _mean(chosen, seen),
            "by default": _mean(rows[0], seen),
            "at best": max(_mean(r, seen) for r in rows),
        }


def _mean(found, kinds):
    return float(np.mean([found[kind]["gain"] for kind in kinds]))
