"""The weights that a training starts from."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from ensdistill.pipeline.errors import DataError
from ensdistill.stages.graph import Local
from ensdistill.stages.networks.students import build_student, in_head


def initial_network(
    recipe: Mapping[str, Any], local: Local
) -> tuple[nn.Module, dict[str, Any] | None]:
    """Build the network; with `init`, load the weights of its body from there."""
    network = build_student(recipe["network"], len(local.classes), local.network, recipe["seed"])
    if local.init is None:
        return network, None
    try:
        if local.init.suffix == ".safetensors":
            found = load_file(local.init)
        else:
            found = torch.load(local.init, map_location="cpu", weights_only=True)
            for key in ("state_dict", "model"):
                found = found.get(key, found)
        found = {k.removeprefix("module."): v for k, v in found.items()}
    except (OSError, RuntimeError, ValueError, AttributeError, EOFError, SafetensorError) as error:
        raise DataError(f"student.init: {local.init} holds no weights ({error})") from error
    except pickle.UnpicklingError as error:
        raise DataError(
            f"student.init: {local.init} holds more than weights; save its state_dict alone"
        ) from error
    body = {k: v for k, v in network.state_dict().items() if not in_head(k)}
    loaded = {}
    for name, own in body.items():
        # transformers saves its models without the prefix of our wrapper
        other = found.get(name, found.get(name.removeprefix("model.")))
        if other is not None and other.shape == own.shape:
            loaded[name] = other
    # a counter that only cumulative BatchNorm reads, absent from old checkpoints
    missing = [k for k in body if k not in loaded and not k.endswith("num_batches_tracked")]
    if missing:
        raise DataError(
            f"student.init: {local.init} lacks {len(missing)} of the {len(body)} tensors of the "
            f"network's body in their shapes, such as {missing[0]}; it holds "
            f"{', '.join(list(found)[:3])}, ..."
        )
    network.load_state_dict(loaded, strict=False)
    return network, {"loaded": len(loaded), "head": "made anew"}
