"""All figures: `python -m tests.benchmarks [--json FILE] [--only NAME ...]`.

Not part of the tests: times depend on the machine, so what can be is given as a ratio of two
measurements taken in turns (the median of at least 7), of CPU time unless the name says otherwise.
"""

import argparse
import importlib
import json
import os
import platform
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import tests.benchmarks.measure

THEMES = (
    *("kernels", "certainty", "scores", "decoding", "stores", "samples", "networks", "fusing"),
    *("startup", "engine", "commands"),
)


def machine():
    """Return a line about what the figures were measured on."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    packages = ", ".join(f"{p} {version(p)}" for p in ("numpy", "torch", "numba"))
    return f"{model}, {os.cpu_count()} cores, Python {platform.python_version()}, {packages}"


def row(figure):
    sign = "<=" if figure["better"] == "less" else ">="
    goals = ["" if figure[k] is None else f"{sign} {figure[k]:g}" for k in ("at_least", "stretch")]
    value = "-" if figure["value"] is None else f"{figure['value']:.4g} {figure['unit']}"
    holds = {True: "yes", False: "NO", None: ""}[figure["holds"]]
    print(f"{figure['name']:72} {value:>14} {goals[0]:>9} {goals[1]:>9}  {holds:5}", end="")
    print(figure.get("note", ""), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="NAME",
        default=THEMES,
        help=f"themes ({', '.join(THEMES)}) or parts of them, as kernels.window",
    )
    arguments = parser.parse_args()
    tests.benchmarks.measure.one_thread()  # before a theme loads numpy
    begin = time.perf_counter()
    print(machine())
    print(f"{'name':72} {'measured':>14} {'at least':>9} {'stretch':>9}  holds")
    figures = []
    for name in arguments.only:
        theme, _, part = name.partition(".")
        module = importlib.import_module(f"tests.benchmarks.{theme}")
        for measure in [getattr(module, part)] if part else module.MEASURES:
            with tempfile.TemporaryDirectory() as folder:
                for figure in measure(Path(folder)):
                    row(figure)
                    figures.append(figure)
    print(f"{time.perf_counter() - begin:.0f} s in all")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
