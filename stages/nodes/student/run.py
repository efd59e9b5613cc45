"""`student`: the final student, trained on the fused labels (paper, section 3.3)."""

from __future__ import annotations

from typing import Any

from ensdistill.pipeline.node import Job
from ensdistill.stages.training.loop import train


def run(job: Job) -> dict[str, Any]:
    """Train the student."""
    return train(job)
