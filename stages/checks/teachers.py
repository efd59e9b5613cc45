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
from numpy.typing import NDArray

from ensdistill.data.decoding import Decoder, UInt8
from ensdistill.pipeline.errors import EnsdistillError
from ensdistill.pipeline.fingerprint import Json, digest
from ensdistill.pipeline.plan import Decision
from ensdistill.stages.checks.suspicion import (
    COPIES,
    FEW,
    of_copies,
    of_one_class,
    of_turned,
    suspicions,
)
from ensdistill.stages.experiment.experiment import Experiment
from ensdistill.stages.experiment.schema import TRAIN
from ensdistill.stages.functional.agreement import joint, kappa, turned
from ensdistill.stages.functional.numbers import or_none, share
from ensdistill.stages.functional.scores import class_counts
from ensdistill.stages.labelmaps import LabelMaps
from ensdistill.stages.local import LabelFiles, local_of
from ensdistill.stages.nodes.infer.plan import infer_id
from ensdistill.stages.nodes.label_model.run import spread

IMAGES: Final = 8
"""The most images of which label maps are compared, spread evenly over the ids."""

_SIDE: Final = 256  # pixels of the longer side that are remembered of a label map


def compared(
    maps: Mapping[str, Mapping[str, UInt8]], classes: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Return what each teacher says beside the others, of the images that all of them labelled.

    Parameters
    ----------
    maps : mapping
        Teacher to its (H, W) uint8 label maps of train ids or 255, by image id.

    Returns
    -------
    dict
        Teacher to ``images``, how many these are; ``coverage``, the share of their pixels that it
        labels; ``agrees``, each other teacher to the share of the pixels labelled by both to which
        they give the same class, None where there are none; and ``warnings``. Empty without a
        common image.
    """
    ids = sorted(set.intersection(*map(set, maps.values()))) if maps else []
    if not ids:
        return {}
    flat = {t: np.concatenate([of[i].ravel() for i in ids])[None] for t, of in maps.items()}
    shares = {t: class_counts(of, len(classes)) / of.size for t, of in flat.items()}
    coverage = {t: float(of.sum()) for t, of in shares.items()}
    pairs = list(combinations(maps, 2))
    joints = {(j, k): joint(flat[j], flat[k], len(classes)) for j, k in pairs}
    agrees: dict[str, dict[str, float | None]] = {t: {} for t in maps}
    for (j, k), counts in joints.items():
        agrees[j][k] = agrees[k][j] = or_none(share(np.trace(counts), counts.sum()))
    kappas = {pair: kappa(of) if of.any() else None for pair, of in joints.items()}
    said = suspicions(coverage, kappas, len(ids))
    if len(ids) >= FEW:
        found = [_of_names(shares, joints, said, classes), _of_copies(shares, joints, flat)]
        said = {t: [text for of in (said, *found) for text in of.get(t, [])] for t in maps}
    return {
        t: {
            "images": len(ids),
            "coverage": coverage[t],
            "agrees": agrees[t],
            "warnings": said.get(t, []),
        }
        for t in maps
    }


def _of_names(
    shares: Mapping[str, NDArray[np.float64]],
    joints: Mapping[tuple[str, str], NDArray[np.int64]],
    said: Mapping[str, Sequence[str]],
    classes: Sequence[str],
) -> dict[str, list[str]]:
    """Return what is said of teachers whose classes go by other names to the others.

    Of one that is suspected already, or of two of which one is, nothing more is said.
    """
    found = {}
    known = {t: [classes[c] for c in np.flatnonzero(of).tolist()] for t, of in shares.items()}
    several = [t for t, of in known.items() if len(of) > 1]
    asked = [t for t in shares if t not in said] if len(shares) > 2 or not said else []
    for t in asked:
        calls = np.zeros((len(classes), len(classes)), np.int64)
        for (j, k), counts in joints.items():
            if t in (j, k):
                calls += counts if t == j else counts.T
        names = {classes[c]: classes[d] for c, d in turned(calls).items()}
        if shares[t].max() == 1 and several:
            found[t] = [of_one_class(known[t][0])]
        elif names and len(shares) > 2:
            found[t] = [of_turned(names)]
        elif names and t == min(shares):
            found[t] = [of_turned(names, max(shares), "both teachers'")]
    return found


def _of_copies(
    shares: Mapping[str, NDArray[np.float64]],
    joints: Mapping[tuple[str, str], NDArray[np.int64]],
    flat: Mapping[str, UInt8],
) -> dict[str, list[str]]:
    """Return what is said of two teachers that are one."""
    found: dict[str, list[str]] = {}
    for (one, other), counts in joints.items():
        pixels = flat[one].size
        either = pixels * (shares[one].sum() + shares[other].sum()) - counts.sum()
        if either and (share := float(np.trace(counts) / either)) >= COPIES:
            found.setdefault(one, []).append(of_copies(other, share))
    return found


def on_some_images(
    experiment: Experiment,
    decisions: Mapping[str, Decision],
    seen: Mapping[str, Mapping[str, UInt8]],
) -> dict[str, dict[str, Any]]:
    """Compare the teachers on a few training images, as far as their labels of them are known.

    The label files were checked; `seen` is what networks said of images, by their ids, `sampled`.
    Returns what `compared` does, of the teachers whose labels are known.
    """
    maps: dict[str, Mapping[str, UInt8]] = {}
    ids = [p.id for p in spread(experiment.pictures(TRAIN), IMAGES)]
    for teacher in experiment.teachers:
        decision = decisions[infer_id(teacher.name)]
        if teacher.name in seen:
            maps[teacher.name] = seen[teacher.name]
        elif teacher.labels is not None and decision.work is not None:
            local = local_of(decision.work, LabelFiles)
            maps[teacher.name] = {i: _sampled_file(experiment, local, i) for i in ids}
        elif decision.artifact is not None:
            with suppress(EnsdistillError):  # damage is for who reads it for more than a look
                stored = LabelMaps(decision.artifact)
                maps[teacher.name] = {i: sampled(stored.read(i)) for i in ids if i in stored}
    return compared(maps, experiment.classes.classes)


def published(
    experiment: Experiment, decisions: Mapping[str, Decision]
) -> dict[str, dict[str, Any]]:
    """Return what the published label maps of each teacher hold, and compare some of them.

    Returns
    -------
    dict
        Teacher to what `compared` says of it, but ``coverage`` of all images, with ``shares`` of
        the classes (fractions of all pixels, largest first) and the classes ``absent``. Empty
        where nothing is published.

    Raises
    ------
    CorruptError
        If a label map is damaged.
    """
    artifacts = {t.name: decisions[infer_id(t.name)].artifact for t in experiment.teachers}
    made = {name: LabelMaps(a) for name, a in artifacts.items() if a is not None}
    ids = spread(sorted(set.intersection(*map(set, made.values()))), IMAGES) if made else []
    maps = {name: {i: m.read(i) for i in ids} for name, m in made.items()}
    found = compared(maps, experiment.classes.classes)
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


def _sampled_file(experiment: Experiment, local: LabelFiles, image_id: str) -> UInt8:
    """Return what a label file says of an image, `sampled`; remembered by content."""
    file = local.predictions[image_id]
    goals: Json = {str(value): goal for value, goal in local.to_target.items()}
    meaning = digest([goals, local.palette])
    fact = experiment.files.recalled(local.digests[file], f"sample-{meaning}")
    if fact is None:
        decoder = Decoder(local.to_target, palette=local.palette)
        fact = packed(sampled(decoder.read(file, local.digests[file])))
        experiment.files.learn(local.digests[file], f"sample-{meaning}", fact)
    return unpacked(fact)
