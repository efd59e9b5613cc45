"""Optimizers, the course of the learning rate, and the average of the weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ensdistill.pipeline.errors import DataError
from ensdistill.stages.networks.fitting import beginnings
from ensdistill.stages.networks.state_dicts import some_of
from ensdistill.stages.networks.students import in_head

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def trained(
    network: nn.Module, head: Sequence[str] | None
) -> tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]]:
    """Return what is trained of a network's body and of its head, by name (see `in_head`)."""
    named = {name: p for name, p in network.named_parameters() if p.requires_grad}
    of_head = {name: p for name, p in named.items() if in_head(name, head)}
    return {name: p for name, p in named.items() if name not in of_head}, of_head


def build_optimizer(network: nn.Module, recipe: Mapping[str, Any]) -> torch.optim.Optimizer:
    """Return SGD or AdamW over the weights that are trained, the head at its own rate.

    Raises
    ------
    DataError
        If the head has a rate of its own, and none of its weights is trained.
    """
    body, head = trained(network, recipe.get("head"))
    factor = recipe["head_lr_factor"]
    if factor != 1 and not head:
        names = beginnings(body)
        raise DataError(
            f"head_lr_factor: {factor:g} reaches no tensor, as no weight that is trained is in the "
            f"head. Their names begin with {', '.join(some_of(names))}; say which are the head, "
            f'such as `head: ["{names[-1]}"]`'
        )
    groups = [
        {"params": list(body.values()), "lr_factor": 1.0},
        {"params": list(head.values()), "lr_factor": factor},
    ]
    if recipe["optimizer"] == "sgd":
        return torch.optim.SGD(
            groups,
            lr=recipe["lr"],
            momentum=recipe["momentum"],
            nesterov=recipe["nesterov"],
            weight_decay=recipe["weight_decay"],
        )
    return torch.optim.AdamW(groups, lr=recipe["lr"], weight_decay=recipe["weight_decay"])


def learning_rate(recipe: Mapping[str, Any], step: int) -> float:
    """Return the rate of a step, counted from 0: lr (1 - step / steps) ^ power.

    It rises linearly to that over the first `warmup` steps.
    """
    rate: float = recipe["lr"] * (1 - step / recipe["steps"]) ** recipe["power"]
    rate *= min(1.0, (step + 1) / (recipe["warmup"] + 1))
    return rate


class Average:
    """The exponential moving average of a network's weights and buffers, kept in `network`.

    Over the first steps it is the plain mean, so that the first weights are forgotten; then `decay`
    is what is kept of it at each step.
    """

    def __init__(self, network: nn.Module, decay: float):
        self.network = copy.deepcopy(network).requires_grad_(False)
        self._decay = decay

    @torch.no_grad()
    def update(self, network: nn.Module, steps: int) -> None:
        """Take in the network after `steps` steps."""
        pairs = zip(self.network.state_dict().values(), network.state_dict().values(), strict=True)
        for average, now in pairs:
            if average.is_floating_point():
                average.lerp_(now, 1 - min(self._decay, 1 - 1 / steps))
            else:
                average.copy_(now)


def freeze_norms(network: nn.Module) -> None:
    """Leave every BatchNorm as it was loaded: neither statistics nor weights change."""
    for module in network.modules():
        if isinstance(module, NORMS):
            module.eval()
            module.requires_grad_(False)
