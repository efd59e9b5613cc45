"""Files that a user names to be written: nothing is replaced but what the same command wrote."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ensdistill.data.classes import table_file
from ensdistill.pipeline import atomic
from ensdistill.pipeline.errors import ConfigError, DataError
from ensdistill.pipeline.opening import NotRegularError, open_regular

if TYPE_CHECKING:
    from ensdistill.stages.experiment.experiment import Experiment

_BEGINNING: Final = 1 << 16  # bytes that tell what wrote a file

# how what commands write begins, and what a page holds in its head
PAGE: Final = re.compile(rb'<meta name="generator" content="ensdistill ')
TABLES: Final = {
    ".csv": re.compile(rb"\Akind,method,.*,pixel accuracy,coverage\n"),
    ".md": re.compile(rb"\AIoU on .*, percent.*\n\n\| method \| .*\n\| --- \| ---: "),
    ".json": re.compile(rb'\A\{"split": ".*"unit": "percent", "columns": '),
}
# the first two lines are new
RESULTS: Final = re.compile(rb'\A\{\n( "format": \d+,\n)?( "experiment": ".*",\n)? "split": ')
NOISE: Final = re.compile(rb'\A\{\n "format": \d+,\n "teacher": ')


@dataclass(frozen=True)
class Output:
    """A file to be written by a command, such as ``report``, where the user named it.

    `mark` is found in the beginning of what this command wrote earlier; None where nothing tells.
    With `overwrite` any file may be replaced, but inputs and artifacts of the `experiment`.
    """

    path: Path
    command: str
    mark: re.Pattern[bytes] | None = None
    overwrite: bool = False
    experiment: Experiment | None = field(default=None, repr=False)

    def require_free(self) -> None:
        """Refuse a place where nothing may be written.

        Raises
        ------
        ConfigError
            If it lies in no folder or among artifacts, if something is there that this command did
            not write, or, whatever the user said, an input, or what is no file.
        """
        path = self.path
        if not path.absolute().parent.is_dir():
            raise ConfigError(f"{path}: {path.parent} is no folder; make it first")
        if self.experiment is not None:
            require_outside_artifacts(path, self.experiment)
        if not os.path.lexists(path):
            return
        own = self._is_own()
        if self.experiment is not None and not own and path.exists():
            _require_no_input(path, self.experiment, self.command)
        if self.overwrite:
            return
        instead = "repeat with --overwrite, or name another file"
        if path.is_symlink():
            raise ConfigError(f"{path} is a link, and is not written through; {instead}")
        if self.mark is None:
            raise ConfigError(f"{path} exists and is not overwritten; {instead}")
        if not own:
            raise ConfigError(
                f"{path} exists and was not written by `ensdistill {self.command}`; {instead}"
            )

    def write(self, content: bytes) -> None:
        """Write it in one step, unless it holds that already.

        Raises
        ------
        ConfigError
            As `require_free`: the work may have taken long.
        """
        self.require_free()
        # a link that the user wants written through stays one
        place = Path(os.path.realpath(self.path)) if self.path.is_symlink() else self.path
        atomic.update_bytes(place, content)

    def _is_own(self) -> bool:
        try:
            with open_regular(self.path) as file:
                beginning = file.read(_BEGINNING)
        except NotRegularError as error:
            raise ConfigError(f"{self.path} is {error.strerror}; name another file") from error
        except IsADirectoryError as error:
            raise ConfigError(f"{self.path} is a folder; name a file") from error
        except OSError:  # unreadable, or a link to nothing
            return False
        return self.mark is not None and self.mark.search(beginning) is not None


def write_fixed(path: Path, content: bytes, mark: re.Pattern[bytes]) -> None:
    """Write a file that has its name in the workspace; a link there is replaced, not followed.

    Raises
    ------
    DataError
        If `mark` is not in the beginning of what is there: somebody else wrote it.
    """
    if path.is_file() and not path.is_symlink():
        with open_regular(path) as file:
            beginning = file.read(_BEGINNING)
        if mark.search(beginning) is None:
            raise DataError(
                f"{path}: was not written by ensdistill, and is not overwritten; move it away, or "
                "name a `workspace` of its own, then run again (all artifacts are kept)"
            )
    atomic.update_bytes(path, content)


def require_outside_artifacts(path: Path, experiment: Experiment) -> None:
    """Refuse a place in a stage's folder of the workspace, or in an artifact of a stage not known.

    Raises
    ------
    ConfigError
        If it is one, behind a link too.
    """
    workspace, place = experiment.workspace, Path(os.path.realpath(path))
    theirs = [*(workspace.root / stage for stage in workspace.forms), *workspace.folders()]
    if any(place.is_relative_to(os.path.realpath(folder)) for folder in theirs):
        root = os.path.realpath(workspace.root)
        raise ConfigError(f"{path} lies among the artifacts of {root}; name a place elsewhere")


def _require_no_input(path: Path, experiment: Experiment, command: str) -> None:
    """Refuse a file that the experiment reads; its own file is what `import` writes."""
    found = path.stat()
    inputs = list(_inputs(experiment))
    for file in inputs[1:] if command == "import" else inputs:
        try:
            other = file.stat()
        except OSError:
            continue
        if (other.st_dev, other.st_ino) == (found.st_dev, found.st_ino):
            own = file == experiment.path
            what = "the experiment file" if own else "an input of the experiment"
            raise ConfigError(f"{path} is {what}, and is never overwritten; name another file")
    place = Path(os.path.realpath(path))
    for folder in _input_folders(experiment):
        if place.is_relative_to(os.path.realpath(folder)):
            raise ConfigError(
                f"{path} lies in {folder}, which the experiment reads, and is never overwritten; "
                "name another file"
            )


def _inputs(experiment: Experiment) -> Iterator[Path]:
    config = experiment.config
    yield experiment.path
    names = [config.classes.table, *(t.classes for t in config.teachers)]
    for table in (table_file(name, experiment.base) for name in names if name is not None):
        if table is not None:
            yield table
    for split, target in config.target.items():
        if target.list is not None:
            yield experiment.folder(target.list)
        for picture in experiment.pictures(split):
            yield picture.image
            if picture.labels is not None:
                yield picture.labels
    yield from experiment.named_paths()


def _input_folders(experiment: Experiment) -> Iterator[Path]:
    for teacher in experiment.teachers:
        for folders in (teacher.labels, teacher.confidence):
            yield from map(experiment.folder, (folders or {}).values())
    yield from (path for path in experiment.named_paths() if path.is_dir())
