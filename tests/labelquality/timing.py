"""Seconds of CPU that a fit takes."""

import time

from ensdistill.stages.functional.labelmodel import fit

from .families import FLEETS, LARGE, C, Painter
from .worlds import count_all, on_disk

SCENES = 360


def times(kinds):
    """Yield what was fitted and how many seconds it took, by the kinds of worlds that are wanted.

    Label maps are counted image by image: they are not held.
    """
    if "labelmefacade" in kinds and (folder := on_disk("labelmefacade")) is not None:
        votes = count_all(folder.maps("train"), len(folder.classes))
        images = len(folder.image_ids("train"))
        yield (
            f"{len(folder.teachers)} teachers, {images} images",
            _seconds(votes, len(folder.classes)),
        )
    if "fleets" in kinds:
        for fleet in (FLEETS["fleet9"], LARGE):
            painter = Painter(fleet)
            votes = count_all((painter.draw()[1] for _ in range(SCENES)), C)
            yield f"{len(fleet.skill)} teachers, {SCENES} generated scenes", _seconds(votes, C)


def _seconds(votes, n_classes):
    fit(votes.of([0, 1, 2]), n_classes)  # compiles
    begin = time.process_time()
    fit(votes, n_classes)
    return time.process_time() - begin
