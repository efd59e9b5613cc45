"""Channel-wise fusion: each class is taken from one teacher (paper, section 3.3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, Literal

from ensdistill.pipeline.fingerprint import Json
from ensdistill.stages.fusions.method import Fused, Fuser, FusionMethod

if TYPE_CHECKING:
    from ensdistill.stages.functional.labelmodel import LabelModel


@dataclass(frozen=True)
class ByOwner(Fused):
    """What decides how label maps are fused by a policy.

    Attributes
    ----------
    owner : mapping
        Class to the place of its teacher among those that are read; None for one without.
    window : int
        Side of the window in which conflicts and holes are resolved, in pixels.
    conflict, holes
        What becomes of pixels with several claims and with none.
    certainty : mapping or None
        Class to that of its teacher, by which conflicts are resolved; None where they are not.
    """

    owner: Mapping[str, int | None]
    window: int
    conflict: Literal["window", "certainty", "ignore"]
    holes: Literal["window", "ignore"]
    certainty: Mapping[str, float | None] | None

    def to_json(self) -> dict[str, Json]:
        """Return it as it is hashed: however its policy was chosen."""
        recipe = super().to_json() | {"method": CHANNEL.name}
        if self.certainty is None:
            del recipe["certainty"]
        return recipe


def _fuser(recipe: Fused, model: LabelModel | None) -> Fuser:
    import numpy as np

    from ensdistill.stages.functional.fusion import channel_wise

    assert isinstance(recipe, ByOwner)
    owner = [-1 if (o := recipe.owner[c]) is None else o for c in recipe.classes]
    sure = None
    if recipe.certainty is not None:
        sure = np.array([recipe.certainty[c] for c in recipe.classes], float)  # None is NaN
    return partial(
        channel_wise,
        owner=np.array(owner, np.intp),
        window=recipe.window,
        conflict=recipe.conflict,
        holes=recipe.holes,
        certainty=sure,
    )


CHANNEL: Final = FusionMethod("channel", "by class", _fuser, policy="own")
CHANNEL_RELIABILITY: Final = FusionMethod(
    "channel-reliability", CHANNEL.told, _fuser, policy="reliability"
)
CHANNEL_ORACLE: Final = FusionMethod("channel-oracle", CHANNEL.told, _fuser, policy="oracle")
