"""`probe[t]`: the small student trained on teacher t's labels alone (paper, section 3.2)."""

from __future__ import annotations

from typing import Any

from ensdistill.pipeline.node import Job
from ensdistill.stages.training.loop import train


def run(job: Job) -> dict[str, Any]:
    """Train the probe; its settings, seed included, are the same for every teacher."""
    return train(job)
