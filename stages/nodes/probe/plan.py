"""`probe[t]`: the small student trained on teacher t's labels alone (paper, section 3.2)."""

from __future__ import annotations

from typing import Final

from ensdistill.pipeline.node import Node, Upstream, Work
from ensdistill.stages.contract import Settings
from ensdistill.stages.local import Learning
from ensdistill.stages.nodes.given import Given
from ensdistill.stages.nodes.infer.plan import infer_id
from ensdistill.stages.nodes.learning import Trained, training_local, training_recipe
from ensdistill.stages.nodes.stage import Stage

STAGE: Final = Stage("probe", 2, Trained)


def node(given: Given, teacher: str) -> Node:
    """The small student that measures a teacher."""
    settings = given.experiment.config.probe

    def plan(upstream: Upstream) -> Work[Settings, Learning]:
        return Work(
            Settings(training_recipe(given, settings)),
            uses={"labels": infer_id(teacher)},
            local=training_local(given, settings, upstream),
            runtime=given.runtime(),
        )

    command = given.before_policy
    return STAGE.node(STAGE.id(teacher), teacher, [infer_id(teacher)], plan, command)
