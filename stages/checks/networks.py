"""What a teacher's network says of itself, and of a few images, before hours are spent on all."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from ensdistill.data.classes import IGNORE_INDEX
from ensdistill.data.decoding import UInt8, image_size
from ensdistill.data.splits import Picture
from ensdistill.pipeline.errors import DataError, EnsdistillError
from ensdistill.pipeline.fingerprint import Json, digest
from ensdistill.pipeline.node import AnyWork, Progress
from ensdistill.pipeline.plan import Decision
from ensdistill.stages.checks.labels import LITTLE
from ensdistill.stages.checks.teachers import packed, sampled, unpacked
from ensdistill.stages.experiment.experiment import Experiment
from ensdistill.stages.experiment.schema import TRAIN, Teacher
from ensdistill.stages.local import Running, local_of
from ensdistill.stages.networks.hub import hub_folder
from ensdistill.stages.networks.kinds import kind_of, open_network
from ensdistill.stages.networks.whole import require_whole
from ensdistill.stages.nodes.infer.plan import STAGE, infer_id
from ensdistill.stages.nodes.label_model.run import spread
from ensdistill.stages.work.pixels import reader

if TYPE_CHECKING:
    from ensdistill.stages.networks.stream import Request

LOOKED: Final = 4
"""The most training images of its own choice that a network is shown: see `suspicion.FEW`."""

_LONG: Final = 30.0  # seconds, after which it is shown nothing more
_OTHERWISE: Final = 0.01  # of the pixels, by which labels of one image may differ by rounding
_ALIKE: Final = 0.2  # by which the logarithms of two shapes, height by width, differ


def require_declared(experiment: Experiment, teacher: Teacher) -> None:
    """Refuse, with DataError, a network that shows not to be as declared without being loaded."""
    network = teacher.network
    assert network is not None
    if network.revision is not None:
        hub_folder(network.path, network.revision, download=True)
    source = experiment.teacher_source(teacher)
    if source.state_dict is not None:
        if not source.state_dict.is_file():
            raise DataError(f"{source.where}.state_dict: there is no such file")
        require_whole(source.state_dict)
    found = kind_of(source.kind).inspect(source)
    if found is None:
        return
    table = experiment.teacher_table(teacher)
    count = found if isinstance(found, int) else len(found)
    if count != len(table):
        void = " beside its void channels" if source.void_channels else ""
        raise DataError(
            f"{source.key}: {source.path} has {count} classes{void}, class table {table.name} has "
            f"{len(table)}; declare the teacher's own `classes:`"
        )
    if isinstance(found, list):
        pairs = zip(found, table.classes, strict=True)
        other = [(i, a, b) for i, (a, b) in enumerate(pairs) if _plain(a) != _plain(b)]
        if other:
            i, own, declared = other[0]
            raise DataError(
                f"{source.key}: class {i} is {own!r} in {source.path} and {declared!r} in class "
                f"table {table.name}; declare the teacher's own `classes:` (a YAML file, in its "
                "order)"
            )


def try_networks(
    experiment: Experiment,
    decisions: Mapping[str, Decision],
    teachers: Sequence[Teacher],
    progress: Progress,
) -> tuple[dict[str, Any], list[str]]:
    """Let the networks of teachers see a few images: see `_Show`.

    What they said is remembered by what a network is made from, by the images' content and by what
    else decides it (see `here`).

    Returns
    -------
    found : dict
        Teacher's name to ``image``, the first, ``labels`` (the share of it that it calls each of
        its own classes, the largest first), ``coverage`` (the share of all that it was shown which
        gets a label of the experiment), ``samples`` (image id to the experiment's labels, see
        `teachers.sampled`), ``taken`` (of its outputs, where the file says which), ``seconds``
        (that an image takes), ``starting`` (seconds until it had seen the first) and ``warnings``.
    problems : list of str
        Networks that cannot be loaded or run, or whose output is not as declared or not a number.
    """
    if not teachers:
        return {}, []
    progress.start(len(teachers), 0, "networks")
    found: dict[str, Any] = {}
    problems: dict[str, list[str]] = {}  # teachers of one code share its mistakes
    for teacher in teachers:
        work = decisions[infer_id(teacher.name)].work
        assert work is not None
        try:
            found[teacher.name] = _try(experiment, teacher, work)
        except EnsdistillError as error:
            problems.setdefault(str(error), []).append(f"teachers[{teacher.name}]")
        progress.advance()
    experiment.files.save()
    return found, [f"{', '.join(names)}: {text}" for text, names in problems.items()]


class _Show(NamedTuple):
    """Images for a network, in the order in which it sees them.

    Those of the batch, the first training image and others of its size, are seen at once; alone, of
    all images that were checked, the smallest, one of a middling and one of the largest size: what
    a network takes, and whether there is memory for it, depends on that. Then other training
    images, spread evenly.
    """

    batch: list[Picture]
    alone: list[Picture]


def _show(experiment: Experiment, teacher: Teacher, batch_size: int) -> _Show:
    """Return what a teacher's network is shown."""
    chosen = spread(experiment.pictures(TRAIN), LOOKED)
    first = chosen[0]
    sizes = {image_size(first.image): [first]}
    for split in (TRAIN, *experiment.labelled):
        for picture in experiment.pictures(split):
            fact = experiment.files.recall(picture.image, "photograph")
            if picture is not first and fact is not None:
                sizes.setdefault((fact["height"], fact["width"]), []).append(picture)
    alike, *others = sizes.values()
    batch = alike[:batch_size]
    batch += [first] * (batch_size - len(batch))  # where there are too few of its size
    if teacher.preprocess.size not in (None, "image"):
        others = []  # it sees all of them at one size
    order = sorted(sizes, key=lambda size: (math.prod(size), size))
    by_size = [sizes[size][0] for size in order if sizes[size] in others]
    some = [*by_size[:1], *by_size[len(by_size) // 2 :][:1], *by_size[-1:]]
    return _Show(batch, list({p.image: p for p in [*some, *chosen[1:]]}.values()))


def _try(experiment: Experiment, teacher: Teacher, work: AnyWork) -> dict[str, Any]:
    from ensdistill.stages.networks.frozen import here, pick_device, set_threads
    from ensdistill.stages.networks.stream import Request

    local = local_of(work, Running)
    set_threads(local.threads)  # before `here` asks how many: as the network that is looked at does
    show = _show(experiment, teacher, local.batch_size)
    first = show.batch[0]
    batch, alone = (
        [Request(str(p.image), experiment.files.digest(p.image)) for p in of] for of in show
    )
    shown: list[Json] = [[request.sha256 for request in of] for of in (batch, alone)]
    where = [*here(pick_device(local.device)), local.threads, local.channels_last]
    kind = f"seen-{digest([STAGE.version, work.recipe.to_json(), *shown, where])}"
    seen = experiment.files.recalled(batch[0].sha256, kind)
    if seen is None:
        seen = look(work, batch, alone)
        experiment.files.learn(batch[0].sha256, kind, seen)
    looked = [first, *show.alone]
    classes = experiment.teacher_table(teacher).classes
    for picture, counts in zip(looked, seen["labels"], strict=False):
        _require_ids(counts, len(classes), picture.image)
    counts = seen["labels"][0]
    pixels = sum(counts.values())
    names = {v: "ignored" if int(v) == IGNORE_INDEX else classes[int(v)] for v in counts}
    largest = sorted(counts, key=lambda v: (-counts[v], int(v)))
    to_target = np.full(256, IGNORE_INDEX, np.uint8)
    for own, goal in local.to_target.items():
        to_target[own] = goal
    every = sum((Counter(of) for of in seen["labels"]), Counter[str]())
    labelled = sum(n for v, n in every.items() if to_target[int(v)] != IGNORE_INDEX)
    doubts = (
        _of_classes(first.image, len(seen["labels"]), [names.get(v, "") for v in every]),
        _of_labelled(labelled / every.total()),
        _of_looks(first.image, seen["otherwise"], len(batch)),
        _of_size(teacher.preprocess.size, image_size(first.image)),
    )
    chosen = {p.id for p in spread(experiment.pictures(TRAIN), LOOKED)}
    samples = zip(looked, seen["samples"], strict=False)
    return {
        "image": str(first.image),
        "labels": {names[v]: counts[v] / pixels for v in largest},
        "coverage": labelled / every.total(),
        "samples": {p.id: to_target[unpacked(of)] for p, of in samples if p.id in chosen},
        "taken": seen["taken"],
        "seconds": seen["seconds"],
        "starting": seen["starting"],
        "warnings": [*seen["said"], *filter(None, doubts)],
    }


def _of_classes(image: Path, images: int, names: Sequence[str]) -> str | None:
    """Return what is said of a network that knows a single class, of all that it calls pixels."""
    if len(names) > 1:
        return None
    more = f", and of {images - 1} more," if images > 1 else ""
    return (
        f"it calls the whole of {image}{more} {names[0]}: are its weights, its `preprocess` and "
        "its classes what was declared?"
    )


def _of_labelled(share: float) -> str | None:
    """Return what is said of a network of whose labels little is left under its class map."""
    if share >= LITTLE:
        return None
    return (
        f"only {share:.1%} of the pixels that it was shown get a label: are `classes:` and `map:` "
        "what it says?"
    )


def _of_looks(image: Path, otherwise: float, batch_size: int) -> str | None:
    """Return what is said of a network that gives an image other labels the second time."""
    if otherwise <= _OTHERWISE:
        return None
    among = "among others" if batch_size > 1 else "again"
    return (
        f"it gives {100 * otherwise:.0f} % of the pixels of {image} another label when it sees it "
        f"{among}: is part of it as in training, such as dropout or BatchNorm?"
    )


def _of_size(size: tuple[int, int] | str | None, own: tuple[int, int]) -> str | None:
    """Return what is said of a size whose height and width look exchanged."""
    if size is None or isinstance(size, str) or size[0] == size[1]:
        return None
    shape, declared = own[0] / own[1], size[0] / size[1]
    if abs(math.log(shape * declared)) > _ALIKE or abs(math.log(shape / declared)) < 2 * _ALIKE:
        return None
    return (
        f"`preprocess: {{size: {list(size)}}}` is height and width, and turns images of "
        f"{own[0]}x{own[1]} by their shape: is [{size[1]}, {size[0]}] meant?"
    )


def _require_ids(counts: Mapping[str, int], n_classes: int, image: Path) -> None:
    """Refuse labels that are no class."""
    from ensdistill.stages.functional.unify import NO_ID

    wrong = [v for v in counts if int(v) not in {*range(n_classes), IGNORE_INDEX}]
    if wrong:
        what = f"the id {wrong[0]}" if int(wrong[0]) != NO_ID else f"ids outside 0..{NO_ID - 1}"
        raise DataError(
            f"its output holds {what} on {counts[wrong[0]]} pixels of {image}; expected "
            f"0..{n_classes - 1}, and {IGNORE_INDEX} where it labels nothing: let it answer with "
            "these, or declare the teacher's own `classes:`"
        )


def look(work: AnyWork, batch: Sequence[Request], alone: Sequence[Request]) -> dict[str, Any]:
    """Return what a network says of images.

    Of the first of the batch and of each of those that are seen alone, as far as there is time for
    them: ``labels``, how many pixels it gives to each of its own ids, and ``samples``, some of
    these pixels. ``otherwise``: the share of the first one's pixels to which it gives another label
    when it sees the whole batch; ``taken``: which of its outputs that is; ``seconds``: how long an
    image took; ``starting``: until the first was seen; ``said``: what it had to say.
    """
    from ensdistill.stages.networks.stream import Clock

    said: list[str] = []
    opened = time.perf_counter()
    local = local_of(work, Running)
    pixels = reader(local.pixels, [*batch, *alone], lambda _: None)  # so few are not told of
    with closing(open_network(local.network, work.recipe.to_json(), local)) as network:
        begin = time.perf_counter()

        def see(requests: Sequence[Request]) -> tuple[UInt8, float]:
            """Return the labels of the first of some images, and the seconds that one took."""
            begin = time.perf_counter()
            [found] = network.stream([requests], "labels", pixels, Clock(), said.append)
            return found[0][0], (time.perf_counter() - begin) / len(requests)

        labels, seconds = see(batch[:1])
        starting = time.perf_counter() - opened
        found, again = [labels], labels
        if seconds <= _LONG:  # the first time it also compiles, and asks for memory
            again, seconds = see(batch)
            for request in alone:
                if time.perf_counter() - begin > _LONG:
                    break
                found.append(see([request])[0])
    return {
        "labels": [
            {str(v): int(n) for v, n in zip(*np.unique(of, return_counts=True), strict=True)}
            for of in found
        ],
        "samples": [packed(sampled(of)) for of in found],
        "otherwise": float(np.mean(labels != again)),
        "taken": network.facts.get("taken"),
        "seconds": seconds,
        "starting": starting,
        "said": list(dict.fromkeys(said)),
    }


def _plain(name: str) -> str:
    """Return a class name without differences of spelling."""
    return name.lower().replace("_", " ").replace("-", " ").strip()
