"""`ensdistill export`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any, Final

import click

from ensdistill.cli import options
from ensdistill.cli.progress import display
from ensdistill.cli.screen import echo, echo_json
from ensdistill.pipeline.figures import some
from ensdistill.pipeline.node import Progress
from ensdistill.pipeline.plan import Decision, plan
from ensdistill.stages.experiment.experiment import Experiment
from ensdistill.stages.experiment.schema import TRAIN
from ensdistill.stages.graph import build, load

_Order = Callable[[Experiment, Mapping[str, Decision]], Any]
_Export = Callable[[Any, Progress], dict[str, Any]]


_PATH: Final = click.Path(path_type=Path)


def _to_output(function: Callable[..., None]) -> Callable[..., None]:
    """Add the option that names what is made, and the bare argument that scripts say instead."""

    @click.argument("bare", metavar="[OUTPUT]", type=_PATH, required=False)
    @options.output("The folder or file to make.", _PATH)
    @wraps(function)
    def command(*, bare: Path | None, output: Path | None, **given: Any) -> None:
        if (bare is None) == (output is None):
            raise click.UsageError("Name one new folder or file to make, such as -o exported.")
        function(output=output or bare, **given)

    return command


@click.group(cls=options.Group)
def command() -> None:
    """Hand labels and student over to other programs.

    Nothing is computed: what is exported must be published and fresh. What exists is never
    overwritten.

    \b
    Example:
      ensdistill export labels -o pseudo-labels
      ensdistill export student -o student --as hf
    """


@command.command()
@_to_output
@click.option("--of", default="fusion", show_default=True, help="fusion, student or a teacher.")
@click.option("--split", default=TRAIN, show_default=True, help="Whose images.")
@click.option(
    "--ids",
    type=click.Choice(["train-ids", "label-ids", "palette"]),
    default="train-ids",
    show_default=True,
    help="What a pixel is; palette: train ids that show the classes' colours.",
)
@click.option("--copy-images", is_flag=True, help="Copy images instead of linking them.")
@options.config
@options.dry_run
@options.as_json
def labels(
    output: Path,
    of: str,
    split: str,
    ids: Any,
    copy_images: bool,
    config: Path,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Label maps as PNGs, in a folder that mmsegmentation and detectron2 train on.

    Images of Cityscapes come into its tree (leftImg8bit, gtFine), others into images/SPLIT and
    labels/SPLIT; README.md there has the lines to train on them. A file that ends in .zip is what
    the server of Cityscapes takes (with --ids label-ids).

    \b
    Example:
      ensdistill export labels -o pseudo-labels --ids palette
      ensdistill export labels -o results.zip --of student --split val --ids label-ids
    """
    from ensdistill.stages.export.labels import export, order

    def prepare(experiment: Experiment, decisions: Mapping[str, Decision]) -> Any:
        return order(
            experiment, decisions, output, of=of, split=split, ids=ids, copy_images=copy_images
        )

    found = _export(config, prepare, export, dry_run=dry_run)
    if as_json:
        echo_json(found)
        return
    verb = "would be" if dry_run else "are"
    if changed := found["converted"]:
        echo(
            f"{len(changed)} of the images {verb} written as PNG, which changes no pixel: names "
            f"that end differently are read by no loader ({some(changed)})"
        )
    echo(f"{output}: {found['images']} label maps of {found['node']} {verb} there as {ids}")
    if not dry_run:
        share = 100 * found["ignored"] / found["pixels"]
        echo(
            f"{len(found['files'])} files, {found['bytes']:,} bytes; "
            f"{found['ignored']:,} pixels ({share:.2f} %) have no label"
        )


@command.command()
@_to_output
@click.option(
    "--as",
    "form",
    type=click.Choice(["hf", "onnx", "state-dict"]),
    required=True,
    help="A folder of transformers, a file of ONNX, or plain tensors.",
)
@options.config
@options.dry_run
@options.as_json
def student(output: Path, form: Any, config: Path, dry_run: bool, as_json: bool) -> None:
    """The student, with a card that says how it was made.

    `hf` is a folder that `from_pretrained` of transformers loads; `onnx` takes batches and images
    of any size, and is kept only if onnxruntime returns the student's own logits; `state-dict` is a
    file of safetensors with a .json about it.

    \b
    Example:
      ensdistill export student -o student.onnx --as onnx
    """
    from ensdistill.stages.export.student import export, order

    def prepare(experiment: Experiment, decisions: Mapping[str, Decision]) -> Any:
        return order(experiment, decisions, output, form)

    found = _export(config, prepare, export, dry_run=dry_run)
    if as_json:
        echo_json(found)
    elif dry_run:
        echo(f"{found['target']}: the student would be there as {form}")
    else:
        echo(f"{found['target']}: the student is there as {form}")
        echo(f"{', '.join(found['files'])}: {found['bytes']:,} bytes")


def _export(config: Path, prepare: _Order, export: _Export, *, dry_run: bool) -> dict[str, Any]:
    """Plan, prepare and, unless it is a dry run, export."""
    experiment = load(config)
    with display() as shown:
        decisions = plan(build(experiment), experiment.workspace.scan())
        experiment.files.save()
        order = prepare(experiment, decisions)
        if dry_run:
            made = order.artifact.manifest
            return {"node": made.node, "fingerprint": made.fingerprint, **order.summary}
        with experiment.workspace.kept():
            return export(order, shown.bar("export"))
