"""`truth`: the ground truth of a split as label maps."""

from __future__ import annotations

from ensdistill.pipeline.node import Job
from ensdistill.stages.contract import Labelled
from ensdistill.stages.local import LabelFiles
from ensdistill.stages.nodes.infer.run import from_files
from ensdistill.stages.nodes.truth.plan import Recipe


def run(job: Job[Recipe, LabelFiles]) -> Labelled:
    """Read the files of a split's ground truth into a label store."""
    return from_files(job)
