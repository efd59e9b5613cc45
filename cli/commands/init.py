"""`ensdistill init`."""

from __future__ import annotations

import glob
import os
from pathlib import Path
from shlex import quote

import click

from ensdistill.cli import options
from ensdistill.cli.screen import echo
from ensdistill.pipeline.errors import ConfigError
from ensdistill.pipeline.opening import real_path
from ensdistill.stages.experiment.writing import from_template, quoted
from ensdistill.stages.reading.outputs import Output

TEMPLATES = ("folders", "cityscapes", "camvid")
CAMVID = "ENSDISTILL_CAMVID"

# Where each Cityscapes class goes in CamVid's 11 classes; names that are the same need no entry.
_CAMVID_MAP = {
    "sidewalk": "pavement",
    "wall": "building",
    "traffic light": "signsymbol",
    "traffic sign": "signsymbol",
    "vegetation": "tree",
    "terrain": "tree",
    "person": "pedestrian",
    "rider": "bicyclist",
    "truck": "car",
    "bus": "car",
    "train": "car",
    "motorcycle": "bicyclist",
    "bicycle": "bicyclist",
}


@click.command()
@click.option(
    "--template",
    type=click.Choice(TEMPLATES),
    default="folders",
    show_default=True,
    help="`folders`: any images. `cityscapes`: GTA5 to Cityscapes, the paper's preset. "
    f"`camvid`: the folder that the variable {CAMVID} names.",
)
@options.output("The experiment file to write.", default=options.EXPERIMENT)
@options.overwrite
def command(template: str, output: Path, overwrite: bool) -> None:
    """Write a commented experiment file to start from.

    \b
    Example:
      ensdistill init --template cityscapes -o gta5.yaml
    """
    file = Output(output, "init", overwrite=overwrite)
    file.require_free()
    text = from_template(template, **(_camvid() if template == "camvid" else {}))
    file.write(text.encode(errors="backslashreplace"))
    echo(f"wrote {output}; edit it, then run `ensdistill check -c {quote(str(output))}`")


def _camvid() -> dict[str, str]:
    """Return the folder of the data and the teachers that lie in it, as the template has them."""
    folder = os.environ.get(CAMVID)
    if not folder or not (Path(folder) / "teachers").is_dir():
        raise ConfigError(
            f"the variable {CAMVID} is {repr(folder) if folder else 'not set'}; expected the "
            "folder with images/, labels/ and teachers/"
        )
    root = real_path(folder)
    mapping = ", ".join(f"{own}: {goal}" for own, goal in _CAMVID_MAP.items())
    mapping = f"&cityscapes {{{mapping}}}"  # written once, then referred to
    lines = []
    for teacher in sorted(p.name for p in (root / "teachers").iterdir() if p.is_dir()):
        folders = {s: str(root / "teachers" / teacher / s) for s in ("train", "val")}
        lines += [
            f"  - name: {teacher}",
            f"    labels: {quoted(folders)}",
            "    ids: train_ids",
            "    classes: cityscapes19      # the teacher's own; `map` says where each goes",
            f"    map: {mapping}",
        ]
        mapping = "*cityscapes"
    return {"root": quoted(glob.escape(str(root)))[1:-1], "teachers": "\n".join(lines)}
