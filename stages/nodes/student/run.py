"""`student`: the final student, trained on the fused labels (paper, section 3.3)."""

from __future__ import annotations

from ensdistill.pipeline.node import Job
from ensdistill.stages.contract import Settings
from ensdistill.stages.local import Learning
from ensdistill.stages.nodes.learning import Trained
from ensdistill.stages.training.loop import train


def run(job: Job[Settings, Learning]) -> Trained:
    """Train the student."""
    return Trained.model_validate(train(job))
