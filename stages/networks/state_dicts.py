"""Weights in files: read without running code, and fitted to a network key by key."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ensdistill.pipeline.errors import DataError

_WITHIN: Final = ("state_dict", "model_state_dict", "model_state", "model", "network", "net")
_SHOWN: Final = 4  # names
OPT_IN: Final = "; or, if you trust where the file comes from, say `trust: code` on this teacher"


def read_tensors(file: Path, *, trusted: bool = False, or_else: str = "") -> dict[str, Tensor]:
    """Return the tensors of a checkpoint by their plain names (see `plain_name`).

    Parameters
    ----------
    file : Path
        Safetensors, or what `torch.save` wrote: a state dict, alone or under one of the usual keys.
    trusted : bool
        Whether a pickle may run code.
    or_else : str
        What else can be done with one that would.

    Raises
    ------
    DataError
        If the file is no checkpoint, would run code without being trusted, or holds a name twice.
    """
    try:
        if file.suffix == ".safetensors":
            content: Any = load_file(file)
        else:
            content = torch.load(file, map_location="cpu", weights_only=not trusted)
    except pickle.UnpicklingError as error:
        raise DataError(f"{file}: {_blocked(file)}{or_else}") from error
    except (OSError, RuntimeError, ValueError, EOFError, SafetensorError) as error:
        raise DataError(f"{file}: holds no weights ({error})") from error
    except Exception as error:
        if not trusted:
            raise
        raise DataError(f"{file}: its code failed ({type(error).__name__}: {error})") from error
    while inner := [k for k in _WITHIN if isinstance(_items(content).get(k), Mapping)]:
        content = content[inner[0]]
    tensors = {k: v for k, v in _items(content).items() if isinstance(v, Tensor)}
    if not tensors:
        kind = ", ".join(some(map(str, _items(content)))) or type(content).__name__
        raise DataError(f"{file}: holds no weights, but {kind}; save a state_dict")
    plain: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if plain.setdefault(plain_name(name), tensor) is not tensor:
            raise DataError(
                f"{file}: holds {plain_name(name)} twice, under different prefixes; save the "
                "state_dict of one network"
            )
    return plain


def fit_weights(
    module: nn.Module, found: Mapping[str, Tensor], file: Path, ignore: Sequence[str] = ()
) -> None:
    """Load a checkpoint into a network, all of it and nothing else.

    Parameters
    ----------
    module : nn.Module
        Changed in place.
    found : mapping
        What `read_tensors` returned.
    file : Path
        Where that was read, for errors.
    ignore : sequence of str
        Patterns (`*` and `?`) of names that may be on one side only.

    Raises
    ------
    DataError
        With all keys that are missing, unexpected or of another shape; if a pattern fits none.
    """
    own = {plain_name(name): name for name in module.state_dict()}
    if len(own) != len(module.state_dict()):
        raise DataError(f"{file}: two keys of the network differ by `model.` or `module.` alone")
    shapes = {plain_name(name): t.shape for name, t in module.state_dict().items()}
    # a counter that only cumulative BatchNorm reads, absent from old checkpoints
    missing = [n for n in own if n not in found and not n.endswith("num_batches_tracked")]
    unexpected = [n for n in found if n not in own]
    for pattern in ignore:
        if not any(fnmatchcase(n, pattern) for n in (*missing, *unexpected)):
            raise DataError(
                f"{file}: `ignore_keys` has {pattern!r}, which fits no key that is on one side "
                f"only ({_listed('missing', missing)}; {_listed('unexpected', unexpected)})"
            )
    other = [
        f"{n} {list(found[n].shape)} there and {list(shapes[n])} here"
        for n in own
        if n in found and found[n].shape != shapes[n]
    ]
    problems = [
        _listed(what, names)
        for what, names in (
            ("missing", _but(missing, ignore)),
            ("unexpected", _but(unexpected, ignore)),
            ("of another shape", other),
        )
        if names
    ]
    if problems:
        raise DataError(
            f"{file}: is no checkpoint of this network: {'; '.join(problems)}. What may be on one "
            'side only is named by `ignore_keys`, such as ["auxiliary_head.*"]'
        )
    module.load_state_dict({own[n]: t for n, t in found.items() if n in own}, strict=False)


def plain_name(name: str) -> str:
    """Return the name of a parameter or buffer without the prefixes of wrappers, ours included."""
    while name.startswith(("module.", "model.")):
        name = name.split(".", 1)[1]
    return name


def some(names: Iterable[str]) -> list[str]:
    """Return the first names, and how many more there are."""
    listed = list(names)
    more = [f"and {len(listed) - _SHOWN} more"] if len(listed) > _SHOWN else []
    return listed[:_SHOWN] + more


def _but(names: Sequence[str], patterns: Sequence[str]) -> list[str]:
    return [n for n in names if not any(fnmatchcase(n, p) for p in patterns)]


def _listed(what: str, names: Sequence[str]) -> str:
    return f"{len(names)} {what}" + (f" ({', '.join(some(names))})" if names else "")


def _blocked(file: Path) -> str:
    """Say what a pickle would import."""
    if zipfile.is_zipfile(file):
        try:
            names = torch.serialization.get_unsafe_globals_in_checkpoint(str(file))
        except Exception:  # spoilt in another way too
            names = []
        if names:
            return (
                f"holds more than weights: reading it would run {', '.join(some(sorted(names)))}. "
                "Save a state_dict alone"
            )
    return "is no checkpoint, or holds more than weights; save a state_dict alone"


def _items(content: Any) -> Mapping[str, Any]:
    return content if isinstance(content, Mapping) else {}
