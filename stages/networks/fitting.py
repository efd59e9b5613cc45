"""Which tensors of a file are which of a network's, and what would make them fit."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Final

from torch import Tensor, nn

from ensdistill.pipeline.errors import DataError
from ensdistill.stages.networks.state_dicts import below, plain_tensors
from ensdistill.stages.networks.students import HfSegmentation, in_head, named_as_in, plain_name

_TRIED: Final = 5  # pairs of prefixes
_PART: Final = 8  # one in so many tensors has to fit, or it is chance
_GROUPS: Final = 4  # that a head may consist of


@dataclass(frozen=True)
class Way:
    """How a file's tensors are to become a network's (see `experiment.Init`).

    Attributes
    ----------
    into, strip : str
        Prefixes, empty or ending in a dot.
    keep : bool
        Whether the head is loaded too.
    head : tuple of str or None
        See `students.in_head`.
    """

    into: str = ""
    strip: str = ""
    keep: bool = False
    head: tuple[str, ...] | None = None

    def __str__(self) -> str:
        given = {"into": self.into[:-1], "strip": self.strip[:-1], "head": "keep" * self.keep}
        parts = ["file: ...", *(f"{key}: {text}" for key, text in given.items() if text)]
        return f"`init: {{{', '.join(parts)}}}`"


@dataclass(frozen=True)
class Fit:
    """What a file has of a network.

    Attributes
    ----------
    wanted : list of str
        The network's tensors that have to be there, by its own names.
    loaded : dict
        Those that are there in their shapes.
    problems : dict
        What is wrong with each of the others that is needed.
    unused : list of str
        Plain names of the file that the network has no place for.
    """

    wanted: list[str]
    loaded: dict[str, Tensor]
    problems: dict[str, str]
    unused: list[str]


def fit(network: nn.Module, tensors: Mapping[str, Tensor], file: Path, way: Way) -> Fit:
    """Return which tensors of a file (see `state_dicts.read_tensors`) are which of the network's.

    Raises
    ------
    DataError
        If two tensors have one name.
    """
    own = network.state_dict()
    named = plain_tensors(tensors, file, way.strip)
    found = {plain_name(way.into + name): tensor for name, tensor in named.items()}
    if isinstance(network, HfSegmentation):
        found = named_as_in(network, found)
    wanted = [n for n in below(own, way.into) if way.keep or not in_head(n, way.head)]
    loaded, problems = {}, {}
    for name in wanted:
        here, there = own[name], found.get(plain_name(name))
        if there is not None and there.shape == here.shape:
            loaded[name] = there
        elif there is not None:
            problems[name] = f"{name} is {list(there.shape)} there and {list(here.shape)} here"
        # a counter that only cumulative BatchNorm reads, absent from old checkpoints
        elif not name.endswith("num_batches_tracked"):
            problems[name] = f"{name} {list(here.shape)} is not there"
    known = {plain_name(name) for name in own}
    stripped = below(tensors, way.strip)
    unused = [plain_name(name) for name in tensors if name not in stripped]
    unused += [name.removeprefix(way.into) for name in found if name not in known]
    return Fit(wanted, loaded, problems, unused)


def advice(
    network: nn.Module, tensors: Mapping[str, Tensor], file: Path, way: Way, classes: int
) -> str:
    """Return what to do about a file that does not fit, found by names and shapes alone."""
    own = network.state_dict()
    others = [replace(way, into=into, strip=strip) for into, strip in _prefixes(tensors, own)]
    fits = {}
    for tried in dict.fromkeys([way, replace(way, keep=False), *others]):
        with suppress(DataError):
            fits[tried] = fit(network, tensors, file, tried)
    enough = max(1, min(len(tensors), len(own)) // _PART)
    fits = {w: f for w, f in fits.items() if len(f.loaded) >= enough and _read_images(f, own)}
    if not fits:
        return "No prefix of names makes it fit; give the weights of this network, or no `init`"
    best, found = max(fits.items(), key=lambda pair: len(pair[1].loaded))
    by = "" if best == way else f" by {best}"
    whole = {w: f for w, f in fits.items() if not f.problems}
    most = max((len(f.loaded) for f in whole.values()), default=0)
    said = []
    if not way.keep and (more := _heads(found, own, classes)):
        heads = way.head or [f"{plain_name(n).split('.')[0]}.*" for n in own if in_head(n)]
        patterns = ", ".join(f'"{pattern}"' for pattern in dict.fromkeys([*heads, *more]))
        said.append(f"{len(found.loaded)} tensors fit{by} with `head: [{patterns}]`")
    if whole and not (most < len(found.loaded) and (said or best == way)):
        ways = [str(w) for w, f in whole.items() if len(f.loaded) == most]
        said.append(f"{most} tensors, of the file's {len(tensors)}, fit by {' or '.join(ways)}")
    return " and ".join(said) or (
        f"{len(found.loaded)} of {len(found.wanted)} fit{by}; give the weights of this network, or "
        "no `init`"
    )


def beginnings(names: Iterable[str]) -> list[str]:
    """Return patterns of the modules that plain names begin with, where they first differ."""
    parts = [plain_name(name).split(".") for name in names]
    levels = zip(*(each[:-1] for each in parts), strict=False)
    depth = 1 + len(list(takewhile(lambda level: len(set(level)) == 1, levels)))
    patterns = (".".join([*p[:depth], "*"] if len(p) > depth else p) for p in parts)
    return list(dict.fromkeys(patterns))


def _prefixes(
    tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]
) -> Iterator[tuple[str, str]]:
    """Yield the likeliest pairs of a network's prefix and a file's, by how many matrices agree."""
    by_end = defaultdict(list)
    for name, tensor in own.items():
        parts = plain_name(name).split(".")
        by_end[parts[-1], tensor.shape].append(parts)
    votes: Counter[tuple[str, str]] = Counter()
    for name, tensor in tensors.items():
        there = plain_name(name).split(".")
        if tensor.ndim < 2:
            continue
        for here in by_end[there[-1], tensor.shape]:
            pairs = zip(reversed(here), reversed(there), strict=False)
            same = len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))
            votes[_joined(here[:-same]), _joined(there[:-same])] += 1
    likeliest = [pair for pair, _ in votes.most_common(_TRIED)]
    yield from likeliest
    for into, strip in likeliest[:1]:  # a part that both have below that
        for module in beginnings(below(own, into).values()):
            yield into + module.rstrip("*"), strip + module.rstrip("*")


def _joined(parts: Sequence[str]) -> str:
    return "".join(f"{part}." for part in parts)


def _read_images(found: Fit, own: Mapping[str, Tensor]) -> bool:
    """Whether what was loaded begins where images come in, if that can be seen."""
    readers = {name for name, tensor in own.items() if _reads_images(tensor)}
    return not readers or not readers.isdisjoint(found.loaded)


def _reads_images(tensor: Tensor) -> bool:
    return tensor.ndim == 4 and tensor.shape[1] == 3


def _heads(found: Fit, own: Mapping[str, Tensor], classes: int) -> list[str]:
    """Return patterns of what may be the head, as nothing of it fits; empty if nothing may."""
    taken = {prefix for name in found.loaded for prefix in _above(plain_name(name))}
    heads = []
    for name in found.problems:
        free = [prefix for prefix in _above(plain_name(name)) if prefix not in taken]
        if not free or _reads_images(own[name]):
            return []
        heads.append(f"{free[0]}*")
    heads = list(dict.fromkeys(heads))
    ends = any(classes in own[name].shape[:2] for name in found.problems)
    return heads if ends and len(heads) <= _GROUPS else []


def _above(name: str) -> list[str]:
    """Return the modules that a tensor is in, the outermost first, each with a dot behind it."""
    parts = name.split(".")[:-1]
    return [_joined(parts[: k + 1]) for k in range(len(parts))]
