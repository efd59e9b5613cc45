"""The demo: real teachers from four generated cities, then the real stages on a fifth.

Each source city is drawn by a simulator that is faithful for some classes and not for others (see
`styles.py`); its teacher is a small network trained on that city's ground truth, by an ordinary
experiment of its own. World, handicaps, training settings and seed 0 were fixed before any fusion
was run on them.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from ensdistill.pipeline import atomic
from ensdistill.pipeline.fingerprint import Json, digest
from ensdistill.pipeline.node import Command, Job, Node, NodeId, Progress, Upstream, Work
from ensdistill.pipeline.plan import Decision
from ensdistill.pipeline.runner import Report, run
from ensdistill.pipeline.workspace import Workspace
from ensdistill.stages.contract import Result, Settings
from ensdistill.stages.demo.city import write_city
from ensdistill.stages.demo.styles import SOURCES, TARGET, Style
from ensdistill.stages.experiment.writing import from_settings
from ensdistill.stages.fusions import LABEL_MODEL, MAJORITY
from ensdistill.stages.graph import build, load
from ensdistill.stages.reading.outputs import RESULTS, Output

SIZE: Final = (96, 192)
SOURCE_SCENES: Final = {"train": 48}
TARGET_SCENES: Final = {"train": 48, "val": 16}
CITY_VERSION: Final = 1

# The window is the paper's 35 pixels at 1024 rows, as a fraction of the height.
WINDOW: Final = 2 * round((35 / 1024 * SIZE[0] - 1) / 2) + 1

_COMMON: Final = {
    "network": {"arch": "tiny"},
    "batch_size": 4,
    "crop": [80, 160],
    "scale": [0.75, 1.25],
    "lr": 0.01,
    "class_balance": 3.0,
    "often_balance": 3.0,
}
TEACHER: Final = _COMMON | {"steps": 400}
PROBE: Final = _COMMON | {"steps": 200}
STUDENT: Final = _COMMON | {"steps": 600}
# A fixed number of threads: the same bits on a machine with another number of cores.
RUNTIME: Final = {"device": "cpu", "workers": 0, "threads": 2}

_TITLE: Final = "The demo. Labels of `val` are opened by `evaluate` alone."
_TEACHER: Final = "The teacher {}: trained on the ground truth of its own, generated city."

Bars = Callable[[Decision], Progress]


def draw(out: Path, seed: int, bars: Bars) -> tuple[Report, dict[str, Path]]:
    """Draw the target city and one source city for each teacher.

    Returns what ran, and the root of each city's tree by the style's name.
    """
    nodes = [_city(style, seed) for style in (TARGET, *SOURCES.values())]
    report, made = _make(nodes, Workspace(out / "cities"), [node.id for node in nodes], bars)
    return report, {node.name: made[node.id] for node in nodes}


def train_teacher(out: Path, name: str, city: Path, seed: int, bars: Bars) -> tuple[Report, Path]:
    """Train a teacher on its own city's ground truth, by an experiment of its own.

    Returns what ran, and the folder of the teacher's network.
    """
    folder = out / "teachers"
    settings = {
        "version": 1,
        "workspace": f"work-{name}",
        "classes": {"table": "cityscapes19"},
        "target": {"train": {"cityscapes": _relative(city, folder), "split": "train"}},
        "teachers": [
            {
                "name": "truth",
                "labels": {"train": _relative(city / "gtFine", folder)},
                "ids": "label_ids",
            }
        ],
        "fusion": {"method": MAJORITY.name},
        "student": TEACHER | {"seed": seed},
        "runtime": RUNTIME,
    }
    experiment = load(_write(folder / f"{name}.yaml", _TEACHER.format(name), settings))
    report, made = _make(build(experiment), experiment.workspace, ["student"], bars)
    experiment.files.save()
    return report, made["student"]


def target_experiment(out: Path, city: Path, teachers: Mapping[str, Path], seed: int) -> Path:
    """Write the experiment on the target city."""
    return _write(
        out / "experiment.yaml",
        _TITLE,
        {
            "version": 1,
            "workspace": "work",
            "classes": {"table": "cityscapes19"},
            "target": {s: {"cityscapes": _relative(city, out), "split": s} for s in TARGET_SCENES},
            "teachers": [
                {"name": name, "network": {"student": _relative(folder, out)}}
                for name, folder in teachers.items()
            ],
            "probe": PROBE | {"seed": seed},
            "policy": {"strategy": "certainty"},
            "fusion": {"method": LABEL_MODEL.name, "window": WINDOW},
            "student": STUDENT | {"seed": seed},
            "runtime": RUNTIME,
        },
    )


class Scenes(Result):
    """How many scenes a city has, by split."""

    scenes: dict[str, int]


def draw_city(job: Job[Settings, tuple[int, Style, Mapping[str, int]]]) -> Scenes:
    """Draw a city into the draft."""
    seed, style, scenes = job.work.local
    job.progress.start(sum(scenes.values()), 0, "scenes")
    for split, count in scenes.items():
        write_city(job.draft.path, seed, style, {split: count}, SIZE)
        job.progress.advance(count)
    return Scenes(scenes=dict(scenes))


def _city(style: Style, seed: int) -> Node:
    scenes = TARGET_SCENES if style == TARGET else SOURCE_SCENES

    def work(_: Upstream) -> Work[Settings, tuple[int, Style, Mapping[str, int]]]:
        recipe: dict[str, Json] = {
            "seed": seed,
            "style": digest(asdict(style)),
            "scenes": dict(scenes),
            "size": list(SIZE),
        }
        return Work(Settings(recipe), local=(seed, style, scenes))

    return Node(
        NodeId("city", style.name),
        style.name,
        CITY_VERSION,
        [],
        work,
        "ensdistill.stages.demo.experiments:draw_city",
        Command("demo"),
    )


def _make(
    nodes: Sequence[Node], workspace: Workspace, targets: Sequence[str], bars: Bars
) -> tuple[Report, dict[str, Path]]:
    """Make nodes with all they need, and return what ran and the folder of each target."""
    report = run(nodes, workspace, targets, bars, upstream=True)
    folders = {}
    for node_id in targets:
        artifact = report.decisions[node_id].artifact
        assert artifact is not None
        folders[node_id] = artifact.path
    return report, folders


def _relative(path: Path, start: Path) -> str:
    """Return a path as an experiment file in `start` writes it, so that the demo can be moved."""
    return os.path.relpath(path, start)


def require_free(out: Path, overwrite: bool) -> None:
    """Refuse a folder where a file would be replaced, as `Output.require_free` does."""
    titles = {f"teachers/{name}.yaml": _TEACHER.format(name) for name in SOURCES}
    titles["experiment.yaml"] = _TITLE
    marks = {k: re.compile(rb"\A# " + re.escape(v.encode())) for k, v in titles.items()}
    for name, mark in {**marks, "results.json": RESULTS}.items():
        if os.path.lexists(out / name):
            Output(out / name, "demo", mark, overwrite).require_free()


def _write(path: Path, title: str, settings: Mapping[str, Any]) -> Path:
    """Write an experiment file; another that is there already is kept as ``.old``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = f"# {title}\n{from_settings(settings)}".encode()
    if path.exists() and path.read_bytes() != content:
        names = (Path(f"{path}.old{k or ''}") for k in itertools.count())
        path.rename(next(name for name in names if not os.path.lexists(name)))
    atomic.write_bytes(path, content)
    return path
