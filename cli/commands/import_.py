"""`ensdistill import`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import click

from ensdistill.cli import options
from ensdistill.cli.progress import display
from ensdistill.cli.screen import echo, echo_json
from ensdistill.pipeline.errors import ConfigError, DataError
from ensdistill.pipeline.figures import some
from ensdistill.pipeline.opening import real_path
from ensdistill.stages.experiment.writing import from_template, quoted

if TYPE_CHECKING:
    from ensdistill.stages.checks.importing import Found
    from ensdistill.stages.experiment.experiment import Experiment

_SHOWN = 3  # files that are not needed


@click.command()
@click.argument("folders", metavar="[NAME=]FOLDER...", nargs=-1, required=True)
@click.option("--images", required=True, metavar="GLOB", help="The training images.")
@click.option(
    "--classes",
    default="cityscapes19",
    show_default=True,
    metavar="TABLE",
    help="What the train ids mean: a built-in class table or a YAML file.",
)
@click.option("--val-images", metavar="GLOB", help="Images of a labelled split.")
@click.option("--val-labels", metavar="GLOB", help="Their ground truth.")
@click.option(
    "--confidences",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where PNGs of the .npy and .npz files go; needed where there are any.",
)
@options.output("The experiment file to write.", default=options.EXPERIMENT)
@options.overwrite
@options.dry_run
@options.as_json
def command(
    folders: tuple[str, ...],
    images: str,
    classes: str,
    val_images: str | None,
    val_labels: str | None,
    confidences: Path | None,
    output: Path,
    overwrite: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Write an experiment file about label maps that were made elsewhere.

    Each FOLDER is a teacher, called NAME or else as the folder: PNGs of train ids, 255 where there
    is no label, named as the images (`_leftImg8bit` may follow), as the method's published code
    writes them; below it there may be a .npy or .npz of confidences 0..100 of each image, (H, W) or
    (H, W, C). All label maps are read and checked. Nothing is written into the folders.

    \b
    Example:
      ensdistill import --images "leftImg8bit/train/**/*.png" \\
        DACS=gtFine/DACS_PL_GTA CBST=gtFine/CBST_PL_GTA --confidences confidences
    """
    from ensdistill.stages.checks import importing
    from ensdistill.stages.checks.files import check
    from ensdistill.stages.experiment.schema import TRAIN
    from ensdistill.stages.graph import load
    from ensdistill.stages.reading.outputs import Output

    file = Output(output, "import", overwrite=overwrite)
    file.require_free()
    config = real_path(output)
    if (val_images is None) != (val_labels is None):
        raise ConfigError("--val-images and --val-labels go together")
    named = _named(folders)
    target = [f"  {TRAIN}: {_flow(images=_seen_from(config, images))}"]
    if val_images is not None and val_labels is not None:
        target += [
            "  # Ground truth: opened by `ensdistill evaluate` alone.",
            "  val: "
            + _flow(
                images=_seen_from(config, val_images),
                labels=_seen_from(config, val_labels),
                ids="label_ids" if val_labels.endswith("labelIds.png") else "train_ids",
            ),
        ]
    if classes.endswith((".yaml", ".yml")):
        classes = _seen_from(config, classes)
    entries = {name: {TRAIN: _seen_from(config, folder)} for name, folder in named.items()}
    draft = _experiment(config, _text(classes, target, entries, {}))
    replace(file, experiment=draft).require_free()  # whatever the user said, it is no input
    found = importing.find(draft)
    sure = _confidence_folders(found, confidences, config)
    entries = {f.name: dict.fromkeys(f.splits, entries[f.name][TRAIN]) for f in found}
    text = _text(classes, target, entries, sure)
    made: Mapping[str, Mapping[str, int]] = {}
    if not dry_run:
        # without confidences: their PNGs are made only of label maps that are as they should be
        draft = _experiment(config, _text(classes, target, entries, {}))
        with display() as shown:
            try:
                check(draft, list(draft.config.target), shown.bar("check"))
            except DataError as error:
                raise DataError(
                    *error.args,
                    "nothing was written; an experiment with other `ids:` or `classes:` is begun "
                    "by hand, with `ensdistill init`",
                ) from error
            if confidences is not None:
                made = importing.convert(draft, found, confidences, shown.bar("confidences"))
        file.write(text.encode())
        load(config)
    rows = {
        f.name: {
            "folder": str(f.folder),
            "splits": list(f.splits),
            "images": len(f.labels),
            "confidences": len(f.confidences),
            "extra": list(f.extra),
            "converted": made.get(f.name),
        }
        for f in found
    }
    if as_json:
        echo_json({"file": str(config), "text": text, "teachers": rows})
        return
    for name, row in rows.items():
        _say(name, row)
    if dry_run:
        echo(f"would read all of them and write {config}:")
        echo()
        for line in text.splitlines():
            echo(line)
    else:
        seen = min(str(config), os.path.relpath(config), key=len)
        echo(f"wrote {config}; next: `ensdistill check -c {quote(seen)}`")


def _say(name: str, row: Mapping[str, Any]) -> None:
    splits = f", labels {' and '.join(row['splits'])}" if len(row["splits"]) > 1 else ""
    sure = ", with confidences" if row["confidences"] else ""
    echo(f"{name}: label maps of {row['images']} training images{splits}{sure}")
    if row["extra"]:
        names = [Path(path).name for path in row["extra"]]
        echo(f"  not needed: {some(names, _SHOWN)}")
    if (made := row["converted"]) and row["confidences"]:
        echo(f"  confidences: {made['written']} PNGs written, {made['reused']} there already")
        if made["other"]:
            share = 100 * made["other"] / made["labelled"]
            echo(
                f"  warning: {share:.2g} % of the labels are not the class that its confidences "
                "are largest for; do they belong together?"
            )


def _named(folders: Sequence[str]) -> dict[str, str]:
    """Return name to folder, in the order given."""
    from pydantic import ValidationError

    from ensdistill.stages.experiment.schema import TRAIN, Teacher

    named: dict[str, str] = {}
    for text in folders:
        name, equals, folder = text.partition("=")
        if not equals or Path(text).is_dir():  # a folder's own name may hold `=`
            name, folder = real_path(text).name, text
        try:
            Teacher(name=name, labels={TRAIN: folder})
        except ValidationError as error:
            reason = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise ConfigError(f"{text}: {reason}; say NAME={folder}") from None
        if name in named:
            raise ConfigError(
                f"{named[name]} and {folder} are both called {name!r}; names are unique, say "
                f"NAME={folder}"
            )
        if (same := real_path(folder)) in [real_path(f) for f in named.values()]:
            raise ConfigError(f"{same} is given twice")
        named[name] = folder
    return named


def _confidence_folders(
    found: Sequence[Found], confidences: Path | None, config: Path
) -> dict[str, str]:
    """Return where the PNGs of each teacher's confidences go, for those that have any."""
    from ensdistill.stages.checks import importing

    having = [f for f in found if f.confidences]
    if having and confidences is None:
        raise ConfigError(
            f"{', '.join(f.name for f in having)}: there are confidences beside the label maps "
            f"({next(iter(having[0].confidences.values()))}); say in which folder PNGs of them may "
            "be written: --confidences DIR"
        )
    if confidences is None:
        return {}
    if not having:
        raise ConfigError("--confidences: there are no .npy or .npz of the images in any folder")
    importing.require_outside(found, confidences)
    return {f.name: _seen_from(config, str(confidences / f.name)) for f in having}


def _text(
    classes: str,
    target: Sequence[str],
    entries: Mapping[str, Mapping[str, str]],
    sure: Mapping[str, str],
) -> str:
    """Return the experiment file."""
    teachers = []
    for name, labels in entries.items():
        teachers += [f"  - name: {quoted(name)}", f"    labels: {_flow(**labels)}"]
        if name in sure:
            teachers.append(f"    confidence: {_flow(train=sure[name])}   # of each label")
    return from_template(
        "imported",
        classes=quoted(classes),
        target="\n".join(target),
        teachers="\n".join(teachers),
    )


def _experiment(config: Path, text: str) -> Experiment:
    """Return the experiment that a file of this text would be, with the workspace's memory."""
    import yaml

    from ensdistill.pipeline.files import FileCache
    from ensdistill.stages.experiment.experiment import Experiment
    from ensdistill.stages.experiment.schema import Config
    from ensdistill.stages.graph import FORMS

    content = Config.model_validate(yaml.safe_load(text))
    files = FileCache(config.parent / content.workspace / "files.json")
    return Experiment(config, content, files, FORMS)


def _seen_from(config: Path, path: str) -> str:
    """Return a path, or a pattern, as it is written in the file: relative if it was given so."""
    path = os.path.expanduser(path)  # noqa: PTH111  (a pattern is no path)
    return path if os.path.isabs(path) else os.path.relpath(path, config.parent)  # noqa: PTH117


def _flow(**values: str) -> str:
    return "{" + ", ".join(f"{key}: {quoted(value)}" for key, value in values.items()) + "}"
