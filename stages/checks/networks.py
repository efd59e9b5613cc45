"""What a teacher's network says of itself, and of one image, before hours are spent on all."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import numpy as np

from ensdistill.data.classes import IGNORE_INDEX
from ensdistill.pipeline.errors import DataError, EnsdistillError
from ensdistill.pipeline.fingerprint import Json, digest
from ensdistill.pipeline.node import Progress, Work
from ensdistill.pipeline.plan import Decision
from ensdistill.stages.checks.teachers import packed, sampled, unpacked
from ensdistill.stages.experiment import Experiment, Teacher
from ensdistill.stages.graph import VERSIONS, Local, infer_id
from ensdistill.stages.networks.folders import (
    hf_preprocessing,
    network_classes,
    require_trusted_code,
)
from ensdistill.stages.networks.hub import hub_folder

_LONG: Final = 30.0  # seconds of an image, of which none are spent twice


def require_declared(experiment: Experiment, teacher: Teacher) -> None:
    """Refuse a network whose files are not as declared, without loading it.

    Raises
    ------
    DataError
        If a file is missing, or says something else than the experiment file.
    """
    network = teacher.network
    assert network is not None
    where = f"teachers[{teacher.name}].network.{network.kind}"
    if network.revision is not None:
        hub_folder(network.path, network.revision, download=True)
    path = experiment.network_path(network)
    if network.state_dict is not None and not experiment.folder(network.state_dict).is_file():
        raise DataError(f"teachers[{teacher.name}].network.state_dict: there is no such file")
    if network.kind == "factory":
        require_module(path, network.factory or "", where)
        return
    if network.kind not in ("hf", "student"):
        if not path.is_file():
            raise DataError(f"{where}: {path} is no file")
        return
    found = network_classes(path, network.kind, where, weights=network.state_dict is None)
    table = experiment.teacher_table(teacher)
    if isinstance(found, list):
        found = [name for k, name in enumerate(found) if k not in network.void_channels]
    count = found - len(network.void_channels) if isinstance(found, int) else len(found)
    if count != len(table):
        void = " beside its void channels" if network.void_channels else ""
        raise DataError(
            f"{where}: {path} has {count} classes{void}, class table {table.name} has "
            f"{len(table)}; declare the teacher's own `classes:`"
        )
    if network.kind == "hf":
        if isinstance(found, list) and len({*found}) != len(found):
            twice = next(name for name in found if found.count(name) > 1)
            raise DataError(
                f"{where}: {path}/config.json has {twice!r} twice in `id2label`; expected each "
                "class once, and `void_channels` for the channels that are none"
            )
        require_trusted_code(path, trusted=teacher.trust == "code")
        hf_preprocessing(path, teacher.preprocess.model_dump(exclude_none=True))
    if isinstance(found, list):
        pairs = zip(found, table.classes, strict=True)
        other = [(i, a, b) for i, (a, b) in enumerate(pairs) if _plain(a) != _plain(b)]
        if other:
            i, own, declared = other[0]
            raise DataError(
                f"{where}: class {i} is {own!r} in {path} and {declared!r} in class table "
                f"{table.name}; declare the teacher's own `classes:` (a YAML file, in its order)"
            )


def require_module(root: Path, function: str, where: str) -> None:
    """Refuse a function whose module is not there; whether it works shows when it runs.

    Raises
    ------
    DataError
        If there is no such module below `root`.
    """
    module = root / function.split(":")[0].replace(".", "/")
    if not module.with_suffix(".py").is_file() and not (module / "__init__.py").is_file():
        raise DataError(f"{where}: {function} is in no module below {root}")


def try_networks(
    experiment: Experiment,
    decisions: Mapping[str, Decision],
    teachers: Sequence[Teacher],
    progress: Progress,
) -> tuple[dict[str, Any], list[str]]:
    """Let the networks of teachers see the first training image.

    What it said is remembered by what the network is made from, by the image's content and by what
    it ran on.

    Returns
    -------
    found : dict
        Teacher's name to ``image``, ``labels`` (the share of the image that it calls each of its
        own classes, the largest first), ``sample`` (the experiment's, see `teachers.packed`),
        ``taken`` (of its outputs, where the file says which), ``seconds`` (that an image takes) and
        ``warnings``.
    problems : list of str
        Networks that cannot be loaded or run, or whose output is not as declared or not a number.
    """
    if not teachers:
        return {}, []
    progress.start(len(teachers), 0, "networks")
    found: dict[str, Any] = {}
    problems: list[str] = []
    for teacher in teachers:
        work = decisions[infer_id(teacher.name)].work
        assert work is not None
        try:
            found[teacher.name] = _try(experiment, teacher, work)
        except EnsdistillError as error:
            problems.append(f"teachers[{teacher.name}]: {error}")
        progress.advance()
    experiment.files.save()
    return found, problems


def _try(experiment: Experiment, teacher: Teacher, work: Work) -> dict[str, Any]:
    import torch

    from ensdistill.stages.networks.frozen import pick_device

    local: Local = work.local
    image = local.pictures[0].image
    where: list[Json] = [str(pick_device(local.device)), local.threads, torch.__version__]
    kind = f"look-{digest([VERSIONS['infer'], work.recipe, where])}"
    seen = experiment.files.recalled(local.digests[str(image)], kind)
    if seen is None:
        seen = _look(work, image)
        experiment.files.learn(local.digests[str(image)], kind, seen)
    counts = seen["labels"]
    classes = experiment.teacher_table(teacher).classes
    wrong = [v for v in counts if int(v) not in {*range(len(classes)), IGNORE_INDEX}]
    if wrong:
        raise DataError(
            f"its output holds the id {wrong[0]} on {counts[wrong[0]]} pixels of {image}; expected "
            f"0..{len(classes) - 1}, and {IGNORE_INDEX}"
        )
    pixels = sum(counts.values())
    names = {v: "ignored" if int(v) == IGNORE_INDEX else classes[int(v)] for v in counts}
    largest = sorted(counts, key=lambda v: (-counts[v], int(v)))
    warnings = list(seen["said"])
    if len(counts) == 1:
        warnings.append(
            f"it calls the whole of {image} {names[largest[0]]}: are its weights, its `preprocess` "
            "and its classes what was declared?"
        )
    to_target = np.full(256, IGNORE_INDEX, np.uint8)
    for own, goal in local.to_target.items():
        to_target[own] = goal
    return {
        "image": str(image),
        "labels": {names[v]: counts[v] / pixels for v in largest},
        "sample": packed(to_target[unpacked(seen["sample"])]),
        "taken": seen["taken"],
        "seconds": seen["seconds"],
        "warnings": warnings,
    }


def _look(work: Work, image: Path) -> dict[str, Any]:
    """Return what a network says of an image.

    ``labels``: how many pixels it gives to each of its own ids; ``sample``: some of these pixels;
    ``taken``: which of its outputs that is; ``seconds``: how long it took; ``said``: what it had
    to say.
    """
    from ensdistill.stages.infer import open_network
    from ensdistill.stages.networks.stream import Clock, Request

    local: Local = work.local
    request = Request(str(image), local.digests[str(image)])
    said: list[str] = []
    with closing(open_network(work, local.network)) as network:
        for _ in range(2):  # the first time it also compiles, and asks for memory
            begin = time.perf_counter()
            [[(labels,)]] = network.stream([[request]], "labels", Clock(), said.append)
            seconds = time.perf_counter() - begin
            if seconds > _LONG:
                break
    values, pixels = np.unique(labels, return_counts=True)
    return {
        "labels": {str(v): int(n) for v, n in zip(values, pixels, strict=True)},
        "sample": packed(sampled(labels)),
        "taken": network.facts.get("taken"),
        "seconds": seconds,
        "said": list(dict.fromkeys(said)),
    }


def _plain(name: str) -> str:
    """Return a class name without differences of spelling."""
    return name.lower().replace("_", " ").replace("-", " ").strip()
