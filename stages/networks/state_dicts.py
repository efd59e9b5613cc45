"""Weights in files of others: safetensors, and what `torch.save` wrote."""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.serialization import get_unsafe_globals_in_checkpoint

from ensdistill.pipeline.errors import DataError
from ensdistill.stages.networks.foreign import reason, refusing
from ensdistill.stages.networks.students import HfSegmentation, named_as_in, plain_name
from ensdistill.stages.networks.whole import require_whole

_WITHIN: Final = ("state_dict", "model_state_dict", "model_state", "model", "network", "net")
_SHOWN: Final = 4  # names
_DEEPEST: Final = 8  # mappings in each other that are looked through
_ADVICE: Final = (
    "save a state_dict alone, or if you trust where the file is from say `trust: code` on that "
    "entry: its code then runs here with your rights"
)


def read_tensors(file: Path, *, trusted: bool, advice: str = _ADVICE) -> dict[str, Tensor]:
    """Return the tensors of a file by their names.

    Parameters
    ----------
    file : Path
        ``.safetensors``, or what `torch.save` wrote: a state_dict, a mapping that has one as
        ``state_dict``, ``model`` or the like, a mapping of several, whose names then begin with
        its keys, or a whole network.
    trusted : bool
        Whether code that the file names may run; else it is refused.
    advice : str
        What to do about a file that names code.

    Raises
    ------
    DataError
        If the file is damaged or holds no weights, or names code and is not trusted; the error says
        what it names.
    """
    require_whole(file)
    try:
        if file.suffix == ".safetensors":
            content: Any = load_file(file)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of kinds of files that raise below
                content = torch.load(file, map_location="cpu", weights_only=not trusted)
    except pickle.UnpicklingError as error:
        if trusted:
            raise DataError(f"{file} is no checkpoint ({reason(error)})") from error
        named = _code_in(file, error)
        what = f"names code: {', '.join(some_of(named))}" if named else "is no pickle of tensors"
        raise DataError(f"{file} {what}. Nothing of it was run; {advice}") from error
    except Exception as error:  # a damaged pickle raises anything
        raise DataError(f"{file} holds no weights ({reason(error)})") from error
    for _ in range(_DEEPEST):  # a mapping may hold itself
        held = _items(content)
        inner = [k for k in _WITHIN if isinstance(held.get(k), Mapping | nn.Module)]
        content = held[inner[0]] if inner else content
    tensors = {
        k: v for k, v in _items(content).items() if isinstance(k, str) and isinstance(v, Tensor)
    }
    tensors = tensors or dict(_nested(content))
    if not tensors:
        kind = ", ".join(some_of(map(str, _items(content)))) or type(content).__name__
        raise DataError(f"{file} holds no weights, but {kind}; save a state_dict")
    return tensors


def plain_tensors(tensors: Mapping[str, Tensor], file: Path, strip: str = "") -> dict[str, Tensor]:
    """Return the tensors that `read_tensors` found in a file, by their plain names.

    These are without the prefixes of wrappers (``module.``, ``model.``, ``_orig_mod.``). Only names
    that begin with `strip` count, and lose it (see `below`).

    Raises
    ------
    DataError
        If there are two tensors by one name.
    """
    found: dict[str, Tensor] = {}
    for name, plain in below(tensors, strip).items():
        if found.setdefault(plain, tensors[name]) is not tensors[name]:
            raise DataError(
                f"{file} holds {plain} twice, under different prefixes; save the state_dict of one "
                "network"
            )
    return found


def below(names: Collection[str], prefix: str) -> dict[str, str]:
    """Return the names that begin with a prefix, each with the plain name that is left of it.

    Where none does as it is, all of them and the prefix are compared by their plain names: whether
    a file was written by a wrapped network is nothing that its user need know.
    """
    found = {n: plain_name(n.removeprefix(prefix)) for n in names if n.startswith(prefix)}
    if found:
        return found
    plain = {name: plain_name(name) for name in names}
    prefix = plain_name(prefix)
    return {n: rest.removeprefix(prefix) for n, rest in plain.items() if rest.startswith(prefix)}


def load_weights(
    module: nn.Module, file: Path, *, trusted: bool, ignore: Sequence[str] = ()
) -> None:
    """Load the weights of a frozen network, all of them.

    Names are compared without the prefixes of wrappers. Counters of BatchNorm, which evaluation
    does not read, may be absent; names that fit patterns (``auxiliary_head.*``) of `ignore` may be
    in one of the two alone.

    Raises
    ------
    DataError
        If a tensor is missing, unexpected or of another shape, or a pattern fits no name.
    """
    found = plain_tensors(read_tensors(file, trusted=trusted), file)
    if isinstance(module, HfSegmentation):
        found = named_as_in(module, found)
        found = {plain_name(name): tensor for name, tensor in found.items()}
    own = {plain_name(name): (name, tensor) for name, tensor in module.state_dict().items()}
    if len(own) != len(module.state_dict()):
        raise DataError(
            f"{file}: the network has tensors whose names differ by `module.` or `model.` alone; "
            "load them in a function of your own (`factory:`)"
        )
    for pattern in ignore:
        if not any(fnmatchcase(name, pattern) for name in {*own, *found}):
            raise DataError(
                f"{file}: {pattern!r} of `ignore_keys` fits no name, neither of the network "
                f"({', '.join(some_of(own))}) nor of the file ({', '.join(some_of(found))})"
            )

    def counts(name: str) -> bool:
        return not any(fnmatchcase(name, pattern) for pattern in ignore)

    problems = {
        "missing in the file": [
            name
            for name in own
            if name not in found and counts(name) and not name.endswith("num_batches_tracked")
        ],
        "unknown to the network": [name for name in found if name not in own and counts(name)],
        "of another shape": [
            f"{name} ({list(found[name].shape)} there and {list(tensor.shape)} here)"
            for name, (_, tensor) in own.items()
            if name in found and found[name].shape != tensor.shape
        ],
    }
    if any(problems.values()):
        text = "; ".join(
            f"{len(names)} {what}: {', '.join(some_of(names))}"
            for what, names in problems.items()
            if names
        )
        raise DataError(
            f"{file} holds other weights than the network's {len(own)}: {text}. Give the file of "
            "this network; names that only one of the two has may be listed in `ignore_keys`"
        )
    loaded = {name: found[plain] for plain, (name, _) in own.items() if plain in found}
    load_into(module, loaded, file)


def load_into(module: nn.Module, tensors: Mapping[str, Tensor], file: Path) -> None:
    """Load tensors of a file, by a network's own names and in its shapes.

    DataError if they are of a kind that cannot be copied, such as sparse ones.
    """
    with refusing(f"{file} holds tensors that cannot be loaded"):
        module.load_state_dict(tensors, strict=False)


def _code_in(file: Path, error: pickle.UnpicklingError) -> list[str]:
    """Return the globals of a checkpoint that loading it would run, without running them."""
    try:
        return sorted(get_unsafe_globals_in_checkpoint(file))
    except Exception:  # it reads what may be damaged
        return re.findall(r"GLOBAL (\S+)", str(error))  # an old format: the first alone is known


def _nested(
    content: Any, prefix: str = "", deepest: int = _DEEPEST
) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of mappings in mappings by their dotted names; an optimizer's have none."""
    for key, value in _items(content).items():
        if isinstance(key, str) and isinstance(value, Tensor):
            yield prefix + key, value
        elif isinstance(key, str) and deepest:
            yield from _nested(value, f"{prefix}{key}.", deepest - 1)


def _items(content: Any) -> Mapping[str, Any]:
    if isinstance(content, nn.Module):
        return content.state_dict()
    return content if isinstance(content, Mapping) else {}


def some_of(names: Iterable[str]) -> list[str]:
    """Return the first names, and how many more there are."""
    listed = list(names)
    more = [f"and {len(listed) - _SHOWN} more"] if len(listed) > _SHOWN else []
    return listed[:_SHOWN] + more
