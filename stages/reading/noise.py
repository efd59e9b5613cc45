"""``noise.json``: how certain probes are of a teacher's labels, the more noise is in them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ensdistill.pipeline import atomic
from ensdistill.pipeline.errors import NotReadyError
from ensdistill.pipeline.plan import Decision
from ensdistill.stages.experiment.experiment import Experiment
from ensdistill.stages.nodes.certainty.plan import Certainty, certainty_id
from ensdistill.stages.nodes.noisy.plan import LEVELS, NoisyMaps, called, labels_id
from ensdistill.stages.reading.outputs import NOISE, write_fixed
from ensdistill.stages.reading.results import DIGITS, FORMAT, told


def noise(
    experiment: Experiment, teacher: str, decisions: Mapping[str, Decision]
) -> dict[str, Any]:
    """Return the content of ``noise.json``, by a plan made after all levels were.

    Returns
    -------
    dict
        ``levels``, a row each: ``noise``, the share of the segments that got another class;
        ``changed``, that of the labelled pixels, None without any; ``certainty`` of the probe by
        class, None of one that it predicts nowhere; and ``mean``, that over ``classes``: those that
        it supports (see `certainty_policy`) at all levels, None without any. ``rank``: Spearman's
        correlation of `noise` and `mean`, None if all means are one or there is none. All are
        fractions.

    Raises
    ------
    NotReadyError
        If a level is not there any more.
    """
    import numpy as np

    from ensdistill.stages.functional.numbers import or_none, share
    from ensdistill.stages.functional.policy import supported
    from ensdistill.stages.functional.scores import rank_correlation
    from ensdistill.stages.nodes.policy.run import evidence_of

    classes = experiment.classes.classes
    least = experiment.config.policy.min_support
    rows, known = [], []
    for level in LEVELS:
        probed = told(Certainty, certainty_id(called(teacher, level)), decisions)
        maps = told(NoisyMaps, labels_id(teacher, level), decisions) if level else None
        if probed is None or (level and maps is None):
            raise NotReadyError(f"noise of {level} % is not there any more; run again")
        known.append(evidence_of(probed, classes))
        labelled = int(known[-1].labelled.sum())
        changed = or_none(share(0 if maps is None else maps.changed, labelled))
        rows.append({"noise": level / 100, "changed": changed, "certainty": probed.certainty})
    compared = np.all([supported(of, least) for of in known], axis=0)
    means = [float(of.certainty[compared].mean()) if compared.any() else np.nan for of in known]
    rank = rank_correlation(np.array(LEVELS, float), np.array(means))
    return {
        "format": FORMAT,
        "teacher": teacher,
        "classes": [c for c, there in zip(classes, compared, strict=True) if there],
        "rank": or_none(round(rank, DIGITS)),  # the last digits depend on the processor
        "levels": [row | {"mean": or_none(mean)} for row, mean in zip(rows, means, strict=True)],
    }


def write_noise(
    experiment: Experiment, teacher: str, decisions: Mapping[str, Decision]
) -> dict[str, Any]:
    """Write ``noise.json`` into the workspace, and return its content."""
    found = noise(experiment, teacher, decisions)
    file = experiment.workspace.root / "noise.json"
    write_fixed(file, atomic.json_bytes(found, indent=1), NOISE)
    return found
