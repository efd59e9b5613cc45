"""Teachers beside each other, on images that all of them labelled.

One whose ids, channels, preprocessing, output or class order is another than was declared labels
images like any other. That it agrees with nobody gives it away.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import combinations
from typing import Any, Final

import numpy as np

from ensdistill.data.classes import IGNORE_INDEX
from ensdistill.data.pictures import Decoder, UInt8
from ensdistill.pipeline.errors import EnsdistillError
from ensdistill.pipeline.fingerprint import Json, digest
from ensdistill.pipeline.plan import Decision
from ensdistill.stages.experiment import Experiment
from ensdistill.stages.functional.agreement import joint, kappa, turned
from ensdistill.stages.graph import Local, infer_id
from ensdistill.stages.labelmaps import LabelMaps
from ensdistill.stages.labelmodel import spread
from ensdistill.stages.suspicion import of_turned, suspicions

IMAGES: Final = 8
"""The most images of which published label maps are compared, spread evenly over the ids."""

_SIDE: Final = 256  # pixels of the longer side that are remembered of a label map


def compared(
    maps: Mapping[str, Sequence[UInt8]], classes: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Return what each teacher says beside the others, on the same images.

    Parameters
    ----------
    maps : mapping
        Teacher to its (H, W) uint8 label maps of train ids or 255, one an image.
    classes : sequence of str
        Their names.

    Returns
    -------
    dict
        Teacher to ``coverage``, the share of the pixels that it labels; ``agrees``, each other
        teacher to the share of the pixels labelled by both to which they give the same class, None
        where there are none; and ``warnings``.
    """
    coverage = {t: float(np.mean(_flat(of) != IGNORE_INDEX)) for t, of in maps.items()}
    agrees: dict[str, dict[str, float | None]] = {t: {} for t in maps}
    kappas = {}
    calls = {t: np.zeros((len(classes), len(classes)), np.int64) for t in maps}
    for one, other in combinations(maps, 2):
        counts = joint(_flat(maps[one]), _flat(maps[other]), len(classes))
        calls[one] += counts
        calls[other] += counts.T
        both = int(counts.sum())
        agrees[one][other] = agrees[other][one] = float(np.trace(counts) / both) if both else None
        kappas[one, other] = kappa(counts) if both else None
    said = suspicions(coverage, kappas)
    for t in maps.keys() - said.keys():
        said[t] = of_turned({classes[c]: classes[d] for c, d in turned(calls[t]).items()})
    return {t: {"coverage": coverage[t], "agrees": agrees[t], "warnings": said[t]} for t in maps}


def on_one_image(
    experiment: Experiment, decisions: Mapping[str, Decision], seen: Mapping[str, UInt8]
) -> dict[str, dict[str, Any]]:
    """Compare the teachers on the first training image, as far as their labels of it are known.

    Parameters
    ----------
    experiment : Experiment
        Its label files were checked.
    decisions : mapping
        A plan.
    seen : mapping
        Teacher to what its network said of that image, `sampled`.

    Returns
    -------
    dict
        See `compared`; only teachers whose labels are known.
    """
    maps = {}
    for teacher in experiment.teachers:
        decision = decisions[infer_id(teacher.name)]
        if teacher.name in seen:
            maps[teacher.name] = [seen[teacher.name]]
        elif teacher.labels is not None and decision.work is not None:
            maps[teacher.name] = [_sampled_file(experiment, decision.work.local)]
        elif decision.artifact is not None:
            with suppress(EnsdistillError):  # damage is for who reads it for more than a look
                stored = LabelMaps(decision.artifact)
                maps[teacher.name] = [sampled(stored.read(min(stored)))]
    return compared(maps, experiment.classes.classes)


def published(
    experiment: Experiment, decisions: Mapping[str, Decision]
) -> dict[str, dict[str, Any]]:
    """Return what the published label maps of each teacher hold, and compare some of them.

    Returns
    -------
    dict
        Teacher to what `compared` says of it, but ``coverage`` of all images, with ``shares`` of
        the classes (fractions of all pixels, largest first) and the classes ``absent``.

    Raises
    ------
    CorruptError
        If a label map is damaged.
    """
    artifacts = {t.name: decisions[infer_id(t.name)].artifact for t in experiment.teachers}
    made = {name: LabelMaps(a) for name, a in artifacts.items() if a is not None}
    ids = spread(sorted(set.intersection(*(set(m) for m in made.values()))), IMAGES) if made else []
    maps = {name: [m.read(image_id) for image_id in ids] for name, m in made.items()}
    found = compared(maps, experiment.classes.classes) if ids else {}
    for name, of in found.items():
        counts = dict(zip(experiment.classes.classes, made[name].shares().tolist(), strict=True))
        pixels = sum(h * w for h, w in map(made[name].size, made[name]))
        largest = sorted((c for c, n in counts.items() if n), key=lambda c: -counts[c])
        of |= {
            "coverage": sum(counts.values()) / pixels,
            "shares": {c: counts[c] / pixels for c in largest},
            "absent": [c for c, n in counts.items() if not n],
        }
    return found


def sampled(label_map: UInt8) -> UInt8:
    """Return every k-th pixel of every k-th row, so that neither side is longer than `_SIDE`."""
    step = -(-max(label_map.shape) // _SIDE)
    return np.ascontiguousarray(label_map[::step, ::step])


def packed(label_map: UInt8) -> dict[str, Any]:
    """Return a small label map as JSON-able data."""
    content = base64.b64encode(zlib.compress(label_map.tobytes())).decode()
    return {"size": list(label_map.shape), "content": content}


def unpacked(found: Mapping[str, Any]) -> UInt8:
    """Return the label map of what `packed` returned."""
    content = zlib.decompress(base64.b64decode(found["content"]))
    return np.frombuffer(content, np.uint8).reshape(found["size"])


def _sampled_file(experiment: Experiment, local: Local) -> UInt8:
    """Return what a label file says of the first image, `sampled`; remembered by content."""
    file = local.predictions[local.pictures[0].id]
    goals: Json = {str(value): goal for value, goal in local.to_target.items()}
    meaning = digest([goals, local.palette])
    fact = experiment.files.recalled(local.digests[file], f"sample-{meaning}")
    if fact is None:
        decoder = Decoder(local.to_target, palette=local.palette)
        fact = packed(sampled(decoder.read(file, local.digests[file])))
        experiment.files.learn(local.digests[file], f"sample-{meaning}", fact)
    return unpacked(fact)


def _flat(maps: Sequence[UInt8]) -> UInt8:
    """Return label maps of any sizes as one of a single row."""
    return np.concatenate([m.ravel() for m in maps])[None]
