"""`probe[t]`: the small student trained on teacher t's labels alone (paper, section 3.2)."""

from __future__ import annotations

from ensdistill.pipeline.node import Job
from ensdistill.stages.contract import Settings
from ensdistill.stages.local import Learning
from ensdistill.stages.nodes.learning import Trained
from ensdistill.stages.training.loop import train


def run(job: Job[Settings, Learning]) -> Trained:
    """Train the probe; its settings, seed included, are the same for every teacher."""
    return Trained.model_validate(train(job))
