"""`student`: the final student, trained on the fused labels (paper, section 3.3)."""

from __future__ import annotations

from typing import Final

from ensdistill.pipeline.node import Command, Node, Upstream, Work
from ensdistill.stages.contract import Settings
from ensdistill.stages.local import Learning
from ensdistill.stages.nodes.fusion.plan import fusion_id
from ensdistill.stages.nodes.given import Given
from ensdistill.stages.nodes.learning import Trained, training_local, training_recipe
from ensdistill.stages.nodes.pixel_weights.plan import pixel_weights_id
from ensdistill.stages.nodes.stage import Stage
from ensdistill.stages.nodes.truth.plan import truth_digest

STAGE: Final = Stage("student", 2, Trained)


def node(given: Given) -> Node:
    """The final student."""
    settings = given.experiment.config.student
    uses = {"labels": fusion_id()} | (
        {"pixel_weights": pixel_weights_id()} if given.weighted else {}
    )

    def plan(upstream: Upstream) -> Work[Settings, Learning]:
        recipe = training_recipe(given, settings)
        if settings.watch is not None:
            recipe["watch"] = {
                "images": given.items(settings.watch, upstream).sha256,
                "labels": truth_digest(given, settings.watch),
                "every": settings.watch_every,
                "checkpoint": settings.checkpoint,
            }
        return Work(
            Settings(recipe),
            uses=uses,
            local=training_local(given, settings, upstream),
            runtime=given.runtime(),
        )

    return STAGE.node(STAGE.id(), "student", list(uses.values()), plan, Command("train-student"))
