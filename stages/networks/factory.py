"""Networks that a user's own code builds, each in a process of its own.

Research repositories call their modules `model`, `utils` and `data`; two of them cannot live in
one process, nor beside other code that calls itself so. The process starts with nothing but its own
root (and the installed packages) on the path, in that folder.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ensdistill.data.pictures import UInt8
from ensdistill.pipeline.errors import DataError, EnsdistillError
from ensdistill.stages.graph import Factory


class FactoryNetwork:
    """A frozen network in another process (see `frozen.FrozenNetwork`).

    Parameters
    ----------
    factory : Factory
        What makes it.
    preprocess : mapping
        The declared preprocessing.
    classes : sequence of str
        The teacher's classes, as many as the network has channels.
    divisor : int
        Its input sizes are padded to a multiple of it.
    device : str
        Where it runs.
    threads : int or None
        Threads of torch.

    Attributes
    ----------
    facts : dict
        What decides the last bits of its results.

    Raises
    ------
    DataError
        If the function cannot be imported or called, or returns something else.
    """

    def __init__(
        self,
        factory: Factory,
        preprocess: Mapping[str, Any],
        classes: Sequence[str],
        divisor: int,
        device: str,
        threads: int | None,
    ):
        self._factory = factory
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        # compiled files go by date and size: those of other code may pass for this code's
        self._compiled = tempfile.TemporaryDirectory()
        compiled = f"pycache_prefix={self._compiled.name}"
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-X", compiled, "-m", __spec__.name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=factory.root,
            env=environment,
            start_new_session=True,  # an interrupt is for us; it ends when we do
        )
        order = asdict(factory) | {"root": str(factory.root)}
        order |= {"preprocess": dict(preprocess), "classes": len(classes), "divisor": divisor}
        try:
            self.facts = self._ask(order | {"device": device, "threads": threads})
        except BaseException:
            self.close()
            raise

    def label(self, image: Path, sha256: str) -> UInt8:
        """Return the (H, W) uint8 argmax labels of one photograph, in the teacher's own ids."""
        size = self._ask({"image": str(image), "sha256": sha256})
        height, width = size["height"], size["width"]
        assert self._process.stdout is not None
        content = self._process.stdout.read(height * width)
        if len(content) != height * width:
            raise self._ended()
        return np.frombuffer(content, np.uint8).reshape(height, width)

    def close(self) -> None:
        """End the process."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()
        self._process.wait()
        self._compiled.cleanup()

    def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = b""
        if not line:
            raise self._ended()
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise DataError(f"{self._factory.root}: {answer['error']}")
        return answer

    def _ended(self) -> DataError:
        return DataError(
            f"{self._factory.root}: the process of {self._factory.function} ended "
            f"with {self._process.wait()}; see its messages above"
        )


def main() -> None:
    """Serve one network: an order, then an image a line, until the other end is closed."""
    # what the user's code prints must not get between the answers
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    network = None
    for line in sys.stdin.buffer:
        request = json.loads(line)
        try:
            if network is None:
                network = _load(request)
                _answer(answers, network.facts)
            else:
                labels = network.label(Path(request["image"]), request["sha256"])
                height, width = labels.shape
                _answer(answers, {"height": height, "width": width}, labels.tobytes())
        except EnsdistillError as error:
            _answer(answers, {"error": str(error)})
        except Exception as error:
            traceback.print_exc()
            _answer(answers, {"error": f"{type(error).__name__}: {error}"})


def _answer(answers: BinaryIO, header: Mapping[str, Any], content: bytes = b"") -> None:
    answers.write(json.dumps(header).encode() + b"\n" + content)
    answers.flush()


def _load(order: Mapping[str, Any]) -> Any:
    from ensdistill.stages.networks.code import require_module
    from ensdistill.stages.networks.frozen import FrozenNetwork, pick_device, set_threads
    from ensdistill.stages.networks.preprocessing import Preprocessing
    from ensdistill.stages.networks.students import pad_to_multiple

    set_threads(order["threads"])
    sys.path.insert(0, order["root"])
    name, function = order["function"].split(":")
    found = getattr(importlib.import_module(name), function)(**order["kwargs"])
    module = require_module(found, order["function"])
    preprocessing = Preprocessing.from_settings(order["preprocess"])
    module = pad_to_multiple(module, order["divisor"], align_corners=preprocessing.align_corners)
    return FrozenNetwork(module, preprocessing, pick_device(order["device"]), order["classes"])


if __name__ == "__main__":
    main()
