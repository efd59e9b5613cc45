"""One part, in a process of its own: each figure is a line of JSON on stdout."""

import argparse
import importlib
import json
import os
import sys
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as the command line does, before torch

from .sizes import Sizes

MODULES = {
    "tests": "marked",
    "demo": "demo",
    "demo-cpu": "demo",
    "scenes": "scenes",
    "teachers": "teachers",
    "training": "training",
    "probes": "probes",
}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=MODULES)
    parser.add_argument("scratch", type=Path)
    parser.add_argument("--smoke", action="store_true")
    arguments = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not get between the figures
    sizes = Sizes.of(smoke=arguments.smoke, cpu=arguments.name.endswith("-cpu"))
    own = arguments.scratch / arguments.name
    own.mkdir()
    module = importlib.import_module(f"tests.gpu.{MODULES[arguments.name]}")
    for figure in module.measure(own, sizes):
        answers.write(json.dumps(figure) + "\n")
        answers.flush()
    answers.close()
    sys.exit(0)


if __name__ == "__main__":
    main()
