"""How far a policy by probes can be trusted: `python -m tests.labelquality.probes`.

It takes an hour of one core, and reads real data sets that are not everywhere. The product's own
commands make the probes of several seeds, and the policy of each fuses `val`. Told are, for the
commit that it runs in,

- how many classes two seeds give to the same teacher (median over pairs of seeds),
- the rank correlation of certainty with IoU between the teachers of a class, mean over classes,
  beside that of the label model's reliability,
- the mIoU on `val` of `channel` by each policy, and how far it is below the oracle policy's,
- the steps, and seconds of one core, that the probes of a teacher and asking them take.
"""

import argparse
import json
import statistics
import time
from itertools import combinations
from pathlib import Path

import numpy as np
import yaml
from click.testing import CliRunner
from scipy.stats import spearmanr

from ensdistill.cli.__main__ import cli
from ensdistill.data.classes import IGNORE_INDEX, TABLES
from ensdistill.pipeline.plan import plan
from ensdistill.stages.graph import build, load

from . import worlds


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--world", action="append", choices=worlds.VARIABLES)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--probe", default="{}", help="the experiment's `probe`, as YAML")
    parser.add_argument("-o", "--output", type=Path, default=Path("ensdistill-probes"))
    parser.add_argument("--json", type=Path, help="write the figures there")
    arguments = parser.parse_args()
    found = {}
    for kind in arguments.world or worlds.VARIABLES:
        if (data := worlds.on_disk(kind)) is None:
            print(f"{kind}: {worlds.VARIABLES[kind]} is not set")
            continue
        probe = yaml.safe_load(arguments.probe)
        seeds = [Seed(data, arguments.output, probe | {"seed": k}) for k in range(arguments.seeds)]
        found[kind] = summary(seeds)
        for name, value in found[kind].items():
            print(f"{kind}: {name}: {value}", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


class Seed:
    """The probes of one seed, made and judged.

    Attributes
    ----------
    policy : list
        Of each class, the teacher.
    ranks, ranks_of_reliability : float
        Mean over classes of the rank correlation with IoU between teachers.
    miou, oracle : float
        Of `channel` by this policy and by the oracle's, in percent.
    steps : list of int
        Of each probe, sorted.
    seconds : float
        Of CPU, for the probes of a teacher and their certainty.
    """

    def __init__(self, data, output, probe):
        self._file = output / data.name / "experiment.yaml"
        self._write(data, probe, "channel")
        self._call("infer-teacher")
        teachers = list(data.teachers)
        self._call("select-policy", teachers[0])  # and with it the features, if there are any
        begin = time.process_time()
        told = self._call("select-policy")
        self.seconds = (time.process_time() - begin) / (len(teachers) - 1)
        self.policy = list(told["policy"]["teacher"].values())
        self.steps = self._steps()
        judged = self._call("evaluate")  # there is no student, and none is needed
        of = {(m["kind"], m["name"]): m for m in judged["methods"]}
        self.miou, self.oracle = (of["fusion", m]["miou"] for m in ("channel", "channel-oracle"))
        ious = [of["teacher", t]["iou"] for t in teachers]
        self.ranks = between([told["certainty"][t]["certainty"] for t in teachers], ious)
        self._write(data, probe, "label-model")
        by_model = self._call("select-policy")["reliability"]
        self.ranks_of_reliability = between([by_model[t] for t in teachers], ious)
        print(f"{data.name}: {self.miou:.2f} of {self.oracle:.2f}: {self.policy}", flush=True)

    def _write(self, data, probe, method):
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._file.write_text(yaml.safe_dump(experiment(data, probe, method), sort_keys=False))

    def _call(self, *arguments):
        result = CliRunner().invoke(cli, [*arguments, "-c", str(self._file), "--json"])
        if result.exception is not None:
            raise result.exception
        return json.loads(result.stdout)

    def _steps(self):
        experiment = load(self._file)
        decisions = plan(build(experiment), experiment.workspace.scan())
        probes = [d.artifact for node, d in decisions.items() if node.startswith("probe")]
        return sorted(probe.manifest.result["steps"] for probe in probes)


def experiment(data, probe, method):
    """Return the settings of an experiment on a data set."""
    cityscapes = TABLES["cityscapes19"].classes
    goals = [None if k == IGNORE_INDEX else data.classes[k] for k in data.ids[: len(cityscapes)]]
    root, table = str(data.root), data.root / "classes.yaml"
    teachers = [
        {
            "name": name,
            "labels": {s: f"{root}/teachers/{name}/{s}" for s in ("train", "val")},
            "classes": "cityscapes19",
            "map": dict(zip(cityscapes, goals, strict=True)),
        }
        for name in data.teachers
    ]
    return {
        "version": 1,
        "workspace": "work",
        "classes": {"table": str(table) if table.exists() else f"{data.name}11"},
        "target": {
            "train": {"images": f"{root}/images/train/*.jpg"},
            "val": {"images": f"{root}/images/val/*.jpg", "labels": f"{root}/labels/val/*.png"},
        },
        "teachers": teachers,
        "probe": probe,
        "policy": {"strategy": "certainty"},
        "fusion": {"method": method},
        "runtime": {"device": "cpu", "workers": 0, "threads": 1},
    }


def between(scores, ious):
    """Return the rank correlation between teachers, the mean over classes."""
    found = []
    for c in ious[0]:
        pairs = [(s[c], i[c]) for s, i in zip(scores, ious, strict=True)]
        known = np.array([p for p in pairs if None not in p], float)
        if len(known) > 2 and (known != known[0]).any(axis=0).all():
            found.append(spearmanr(*known.T).statistic)
    return float(np.mean(found))


def summary(seeds):
    """Return the figures of all seeds together."""
    pairs = list(combinations([seed.policy for seed in seeds], 2))
    same = [sum(a == b for a, b in zip(*pair, strict=True)) for pair in pairs]
    regret = [seed.oracle - seed.miou for seed in seeds]
    return {
        "classes": len(seeds[0].policy),
        "classes equal between two seeds": same,
        "median of these": statistics.median(same) if same else None,
        "rank correlation of certainty with IoU": [round(s.ranks, 3) for s in seeds],
        "that of reliability": round(seeds[0].ranks_of_reliability, 3),
        "mIoU of channel": [round(s.miou, 2) for s in seeds],
        "mIoU by the oracle policy": round(seeds[0].oracle, 2),
        "regret": [round(r, 2) for r in regret],
        "steps of a probe": [seeds[0].steps[0], seeds[0].steps[-1]],
        "seconds of CPU a teacher": [round(s.seconds, 1) for s in seeds],
    }


if __name__ == "__main__":
    main()
