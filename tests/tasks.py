"""Work for worker processes, which find it by importing this module."""

import logging
import os
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

from ensdistill.pipeline.errors import DataError


class UnsendableError(Exception):
    """Cannot be made again from what `Exception` keeps of it."""

    def __init__(self, one, other):
        super().__init__(f"{one} and {other}")

    def __reduce__(self):
        return type(self), self.args


class PictureWarning(RuntimeWarning):
    """Of a library that other processes need not know."""


@dataclass(frozen=True)
class Task:
    """Tells who works; leaves a file for each call, warns, fails or dies at certain ids."""

    folder: Path
    fails: str = ""
    dies: str = ""
    seconds: float = 0.0
    raises: tuple | None = None
    warns: str = ""

    def __call__(self, item_id):
        time.sleep(self.seconds)
        with (self.folder / item_id).open("a") as file:
            file.write(f"{os.getpid()}\n")
        if self.warns:
            warnings.warn(f"{item_id} {self.warns}", PictureWarning, stacklevel=1)
            logging.getLogger("pictures").warning(self.warns)
        if item_id == self.fails:
            raise DataError(f"{item_id}: cannot be read")
        if self.raises and item_id == self.raises[0]:
            kind, *arguments = self.raises[1:]
            raise kind(*arguments)
        if item_id == self.dies:
            os._exit(9)
        return os.getpid(), os.environ.get("OMP_NUM_THREADS")

    def __setstate__(self, state):
        self.__dict__.update(state)
        with (self.folder / "sent").open("a") as file:
            file.write("once\n")


def nothing(item_id):
    """Return nothing: only the way there and back takes time."""
