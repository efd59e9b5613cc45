"""Optimizers, the course of the learning rate, and the average of the weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ensdistill.stages.networks.students import in_head

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def build_optimizer(network: nn.Module, recipe: Mapping[str, Any]) -> torch.optim.Optimizer:
    """Return SGD or AdamW over the weights that are trained, the head at its own rate."""
    named = [(n, p) for n, p in network.named_parameters() if p.requires_grad]
    body, head = ([p for n, p in named if in_head(n) is is_head] for is_head in (False, True))
    groups = [
        {"params": body, "lr_factor": 1.0},
        {"params": head, "lr_factor": recipe["head_lr_factor"]},
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
    """The exponential moving average of a network's weights and buffers.

    Over the first steps it is the plain mean, so that the first weights are forgotten.

    Parameters
    ----------
    network : nn.Module
        Where it begins.
    decay : float
        What is kept of the average at each step.

    Attributes
    ----------
    network : nn.Module
        The average.
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
