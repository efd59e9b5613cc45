"""`probe[t]`: the small student trained on teacher t's labels alone (paper, section 3.2).

Of several folds of the training images there is a probe for each, `probe[t.1]` and so on, that
learns from all others and so can be asked about images whose labels it has not learnt by heart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Final, TypeVar

from ensdistill.pipeline.fingerprint import Json
from ensdistill.pipeline.node import Command, Node, NodeId, Upstream, WaitingError, Work
from ensdistill.stages.contract import Settings
from ensdistill.stages.local import Learning
from ensdistill.stages.networks.backbones import NotInstalledError
from ensdistill.stages.nodes.given import Given
from ensdistill.stages.nodes.learning import Trained, training_local, training_recipe
from ensdistill.stages.nodes.stage import Stage

STAGE: Final = Stage("probe", 2, Trained)

T = TypeVar("T")


def probe_ids(given: Given, name: str) -> list[NodeId]:
    """Return the node ids of the probes of labels, such as a teacher's, one for each fold."""
    folds = given.experiment.config.probe.folds
    if folds == 1:
        return [STAGE.id(name)]
    return [STAGE.id(f"{name}.{k + 1}") for k in range(folds)]


def folds_of(images: Sequence[T], folds: int) -> list[Sequence[T]]:
    """Cut sorted images into folds of one size, but for one image.

    Each is a run of neighbours, since neighbours in a video are nearly the same image.
    """
    cuts = [k * len(images) // folds for k in range(folds + 1)]
    return [images[begin:end] for begin, end in pairwise(cuts)]


def nodes(given: Given, labels: NodeId, name: str, command: Command) -> list[Node]:
    """The small students that measure labels, which are called as their teacher is."""
    settings, ids = given.experiment.config.probe, probe_ids(given, name)

    def node(k: int, node_id: NodeId) -> Node:
        def plan(upstream: Upstream) -> Work[Settings, Learning]:
            try:
                recipe = training_recipe(given, settings)
            except NotInstalledError as error:
                # who only looks, or makes what needs no probe, must not be stopped by that
                raise WaitingError(f"weights: {error}") from error
            local = training_local(given, settings, upstream)
            if len(ids) > 1:
                recipe["fold"], local = _without(local, k, len(ids))
            return Work(
                Settings(recipe),
                uses={"labels": labels},
                local=local,
                runtime=given.runtime(),
            )

        return STAGE.node(node_id, node_id.of or name, [labels], plan, command)

    return [node(k, node_id) for k, node_id in enumerate(ids)]


def _without(local: Learning, k: int, folds: int) -> tuple[Json, Learning]:
    """Return which fold is left out, as a recipe says it, and what is needed to train on the rest.

    Raises
    ------
    WaitingError
        If there are too few images.
    """
    count = len(local.pictures)
    if count < folds:
        raise WaitingError(
            f"more training images: there are fewer ({count}) than folds ({folds}); with `probe: "
            "{folds: 1}` a probe is asked about the images that it was trained on"
        )
    out = {picture.id for picture in folds_of(local.pictures, folds)[k]}
    kept = tuple(picture for picture in local.pictures if picture.id not in out)
    return [k, folds], replace(local, pictures=kept)
