"""On what it was that something was tried."""

from __future__ import annotations

import sys
from functools import cache
from importlib.metadata import distributions

import torch

from ensdistill.pipeline.fingerprint import Json
from ensdistill.stages.networks.frozen import platform_facts


def here(device: torch.device) -> list[Json]:
    """Return what decides whether a network runs, and how fast, beside what it is made from.

    The device, the threads, Python and all installed packages: what was found of a network is
    remembered by them too.
    """
    return [*platform_facts(device).values(), sys.version, *_installed()]


@cache
def _installed() -> list[str]:
    return sorted(f"{d.name} {d.version}" for d in distributions())
