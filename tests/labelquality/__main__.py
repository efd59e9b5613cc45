"""How good the label model is: `python -m tests.labelquality [--world NAME] [--json FILE]`.

Not part of the tests: it takes minutes, and two of its three kinds of worlds are real data that is
not everywhere. All is measured of the commit that it runs in. mIoU in percent, on `val`.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from . import judging, measures, sweep, timing, worlds
from .families import FLEETS

SPLITS = {"train": ("train",), "fused": ("val",), "both": ("val", "train")}
TITLES = {"val": "fitted to the images that it fuses", "train": "fitted to the images of train"}


def main():
    arguments = _parsed()
    splits = SPLITS[arguments.fit] if not arguments.sweep else ("val",)
    kinds = arguments.world or ([] if arguments.cities else worlds.KINDS)
    found = {"commit": _commit()}
    print(f"commit {found['commit']}")
    _load(kinds, splits, arguments)
    if arguments.sweep:
        found |= _swept(arguments.processes)
    else:
        names = list(judging.WORLDS)
        found["fits"] = {s: _measured(names, s, arguments.processes) for s in splits if names}
        found["seconds"] = dict(timing.times(kinds)) if arguments.times else {}
        for name, seconds in found["seconds"].items():
            print(f"seconds of CPU to fit {name}: {seconds:.2f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0 if judging.WORLDS else 1


def _parsed():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--world",
        action="append",
        choices=worlds.KINDS,
        help="a kind of world; may be repeated",
    )
    parser.add_argument(
        "--cities",
        nargs="+",
        type=Path,
        default=[],
        metavar="FOLDER",
        help="the cities that `ensdistill demo` made there, in a table of their own; other worlds "
        "beside them only if named",
    )
    parser.add_argument("--fit", choices=SPLITS, default="fused", help="what to fit to")
    parser.add_argument("--stride", type=int, default=2, help="of the pixels of real images")
    parser.add_argument("--every", type=int, default=1, help="of the compositions of real sets")
    parser.add_argument("--sweep", action="store_true", help="the constants instead of the table")
    parser.add_argument("--no-times", dest="times", action="store_false", help="measure no times")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--json", type=Path, help="also write all figures to this file")
    return parser.parse_args()


def _commit():
    """Return the commit, with a plus if anything was changed since."""
    command = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def _load(kinds, splits, arguments):
    wanted = {"val", *splits}
    for kind in kinds:
        if kind == "fleets":
            found = [worlds.fleet(name) for name in FLEETS]
        elif (folder := worlds.on_disk(kind)) is None:
            print(f"{kind} is skipped: the variable {worlds.VARIABLES[kind]} is not set")
            found = []
        else:
            found = [folder.world(wanted, arguments.stride, arguments.every)]
        judging.WORLDS.update({world.name: world for world in found})
    found = [worlds.city(folder) for folder in arguments.cities]
    judging.WORLDS.update({world.name: world for world in found})


def _measured(names, split, processes):
    """Print the tables of all worlds, and return what is in them."""
    every = [judging.WORLDS[name] for name in names]
    results = judging.perform(
        [task for world in every for task in measures.tasks(world, split)], processes
    )
    found = {world.name: measures.Found(world, split, results) for world in every}
    cities = [name for name in names if name.startswith("city")]
    figures = {}
    for columns in ([name for name in names if name not in cities], cities):
        if columns:
            print(f"\n{TITLES[split]}")
            figures |= table({name: list(found[name].figures()) for name in columns})
    teachers = {name: list(found[name].teachers()) for name in names}
    for name, rows in teachers.items():
        _print_teachers(name, rows)
    return {name: {"figures": figures[name], "teachers": teachers[name]} for name in names}


def table(columns):
    """Print the figures of some worlds, one column each, and return their values by name."""
    longest_first = sorted(columns.values(), key=len, reverse=True)
    rows = dict.fromkeys(f.name for figures in longest_first for f in figures)
    values = {world: {f.name: f for f in figures} for world, figures in columns.items()}
    _print("", columns)
    for name in rows:
        _print(name, [_written(values[world].get(name)) for world in columns])
    return {world: {f.name: float(f.value) for f in of} for world, of in columns.items()}


def _written(figure):
    return "-" if figure is None else format(figure.value, figure.form)


def _print(name, cells):
    print(f"{name:44}" + "".join(f"{cell:>14}" for cell in cells), flush=True)


def _print_teachers(name, rows):
    print()
    _print(f"teachers of {name}", [key for key in rows[0] if key != "teacher"])
    for row in rows:
        of = {key: value for key, value in row.items() if key != "teacher"}
        signed = {key for key in of if key == "adds" or key.startswith("copies")}
        _print(row["teacher"], [f"{v:{'+' * (k in signed)}.2f}" for k, v in of.items()])


def _swept(processes):
    """Print the constants' grid, and what worlds choose for the one that is left out."""
    if not judging.WORLDS:
        return {}
    print("mean over compositions against majority, share at or above it, least; all teachers")
    rows = sweep.sweep(processes, lambda line: print(line, flush=True))
    chosen = list(sweep.left_out(rows))
    for of in chosen:
        constants = " ".join(f"{name} {value:g}" for name, value in of["chosen"].items())
        print(
            f"left out: {of['left out']:14} chosen: {constants:40} gains {of['gain']:+.2f}"
            f" (by default {of['by default']:+.2f}, at best {of['at best']:+.2f})"
        )
    return {"sweep": rows, "left out": chosen}


if __name__ == "__main__":
    sys.exit(main())
