"""Networks that a user's own code builds, each in a process of its own.

Research repositories call their modules `model`, `utils` and `data`; two of them cannot live in
one process, nor beside other code that calls itself so. The process starts with nothing but its own
root (and the installed packages) on the path, in that folder.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections import Counter, deque
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from ensdistill.data.decoded import Pixels
from ensdistill.pipeline.errors import DataError, EnsdistillError
from ensdistill.pipeline.escaping import plain
from ensdistill.pipeline.opening import real_path
from ensdistill.stages.local import Factory, Running
from ensdistill.stages.networks.foreign import reason
from ensdistill.stages.networks.stream import Clock, Request, Want
from ensdistill.stages.work.warned import Warned, heard_by, issue, taken

if TYPE_CHECKING:
    from ensdistill.stages.networks.frozen import FrozenNetwork

_WORDS: Final = 3  # last lines of a process that are told when it dies
_LATE: Final = 1.0  # seconds that these are waited for: what it started may not have ended

_warned: Counter[Warned] = Counter()  # of a network's process, since its last answer


class FactoryNetwork:
    """A frozen network in another process (see `frozen.FrozenNetwork`).

    It is made by `factory`, and run as `recipe` and `local` say.

    Attributes
    ----------
    facts : dict
        What decides the last bits of its results.

    Raises
    ------
    DataError
        If the function cannot be imported or called, or returns something else.
    """

    def __init__(self, factory: Factory, recipe: Mapping[str, Any], local: Running):
        self._factory = factory
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        self._compiled = tempfile.TemporaryDirectory()
        process = self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", __spec__.name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=factory.root,
            env=environment,
            start_new_session=True,  # an interrupt is for us; it ends when we do
        )
        assert process.stdin is not None and process.stdout is not None
        self._requests, self._answers = process.stdin, process.stdout
        self._words: deque[str] = deque(maxlen=_WORDS)
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        order = asdict(factory) | {"root": str(factory.root), "recipe": dict(recipe)}
        order |= {"hashed": list(local.weights), "compiled": self._compiled.name}
        if local.state_dict is not None:
            order["state_dict"] = str(real_path(local.state_dict))
        runtime = ("trusted", "device", "threads", "channels_last", "workers")
        order |= {key: getattr(local, key) for key in runtime}
        try:
            self._tell(order)
            self.facts = self._answer()["facts"]
        except BaseException:
            self.close()
            raise

    def stream(
        self,
        batches: Sequence[Sequence[Request]],
        want: Want,
        pixels: Pixels,
        clock: Clock,
        say: Callable[[str], object],
    ) -> Generator[list[tuple[NDArray[Any], ...]]]:
        """Yield what is wanted of each photograph (see `stream.stream`)."""
        folder = None if pixels.folder is None else str(pixels.folder)
        self._tell({"batches": batches, "want": want, "folder": folder, "keeps": pixels.keeps})
        found: list[tuple[NDArray[Any], ...]] = []
        while "facts" not in (answer := self._answer()):
            if "said" in answer:
                say(answer["said"])
                continue
            found.append(tuple(self._array(*described) for described in answer["arrays"]))
            if answer["last"]:
                yield found
                found = []
        self.facts = answer["facts"]
        clock.network += answer["network"]
        clock.decode += answer["decode"]
        pixels.remarks += answer["remarks"]

    def close(self) -> None:
        """End the process."""
        self._process.terminate()
        for pipe in (self._requests, self._answers):
            with suppress(BrokenPipeError):
                pipe.close()
        self._process.wait()
        self._listener.join(_LATE)
        self._compiled.cleanup()

    def _listen(self) -> None:
        """Pass on what the process says on stderr, in whole lines."""
        assert self._process.stderr is not None
        with self._process.stderr as said:
            for line in said:
                text = line.decode(errors="backslashreplace").rstrip("\r\n").rpartition("\r")[2]
                text = plain(text)
                if text.strip():
                    self._words.append(text.strip())
                with suppress(AttributeError, OSError, ValueError):  # ours is closed
                    sys.stderr.write(f"{text}\n")

    def _array(self, dtype: str, shape: Sequence[int]) -> NDArray[Any]:
        size = math.prod(shape) * np.dtype(dtype).itemsize
        content = self._answers.read(size)
        if len(content) != size:
            raise self._ended()
        return np.frombuffer(content, dtype).reshape(shape)

    def _tell(self, request: Mapping[str, Any]) -> None:
        try:
            self._requests.write(json.dumps(request).encode() + b"\n")
            self._requests.flush()
        except BrokenPipeError:
            raise self._ended() from None

    def _answer(self) -> dict[str, Any]:
        line = self._answers.readline()
        if not line:
            raise self._ended()
        answer: dict[str, Any] = json.loads(line)
        issue(answer.pop("warned"))
        if "error" in answer:
            error = DataError(f"{self._factory.root}: {answer['error']}")
            if "traceback" in answer:
                error.add_note(f"in the process of {self._factory.function}:")
                error.add_note(answer["traceback"])
            raise error
        return answer

    def _ended(self) -> DataError:
        code = self._process.wait()
        self._listener.join(_LATE)
        how = f"ended with {code}" if code >= 0 else f"was ended by {signal.Signals(-code).name}"
        words = f"its last words: {' / '.join(self._words)}" if self._words else "without a word"
        return DataError(
            f"{self._factory.root}: the process of {self._factory.function} {how}; {words}"
        )


def main() -> None:
    """Serve one network: an order, then requests, until the other end is closed."""
    # what the user's code prints must not get between the answers
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    sys.stdout = sys.stderr  # which keeps no line back
    with heard_by(lambda warned: _warned.update([warned])):
        _answer_all(answers)


def _answer_all(answers: BinaryIO) -> None:
    """Give an answer to each request."""
    network: Any = None
    for line in sys.stdin.buffer:
        order = json.loads(line)
        try:
            if network is None:
                network = _load(order)
                _answer(answers, {"facts": network.facts})
            else:
                _serve(network, order, answers)
        except BrokenPipeError:
            return  # nobody waits for it any more
        except EnsdistillError as error:
            _answer(answers, {"error": str(error)})
        except Exception as error:
            told = "".join(traceback.format_exception(error))
            _answer(answers, {"error": f"{reason(error)}{_place(error)}", "traceback": told})


def _place(error: Exception) -> str:
    """Say where in the user's code, which lies below the present folder, an error was raised."""
    root = Path.cwd()
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if Path(frame.filename).is_relative_to(root):
            file = Path(frame.filename).relative_to(root)
            return f" ({file}, line {frame.lineno}; `ensdistill -v` shows all of it)"
    return ""


def _serve(network: FrozenNetwork, order: Mapping[str, Any], answers: BinaryIO) -> None:
    batches = [[Request(*request) for request in batch] for batch in order["batches"]]
    folder = None if order["folder"] is None else Path(order["folder"])
    pixels, clock = Pixels(folder, keeps=order["keeps"]), Clock()

    def say(text: str) -> None:
        _answer(answers, {"said": text})

    for found in network.stream(batches, order["want"], pixels, clock, say):
        for k, arrays in enumerate(found):
            described = [(a.dtype.str, a.shape) for a in arrays]
            header = {"arrays": described, "last": k == len(found) - 1}
            _answer(answers, header, *(np.ascontiguousarray(a).data for a in arrays))
    spent = {"network": clock.network, "decode": clock.decode}
    _answer(answers, {"facts": network.facts, "remarks": pixels.remarks, **spent})


def _answer(answers: BinaryIO, header: Mapping[str, Any], *content: memoryview) -> None:
    answers.write(json.dumps({**header, "warned": taken(_warned)}).encode() + b"\n")
    for part in content:
        answers.write(part)
    answers.flush()


def _load(order: Mapping[str, Any]) -> FrozenNetwork:
    from ensdistill.stages.networks.code import require_network
    from ensdistill.stages.networks.frozen import freeze, pick_device, set_threads
    from ensdistill.stages.networks.reads import Reads
    from ensdistill.stages.networks.state_dicts import load_weights

    set_threads(order["threads"])
    # compiled files go by date and size: those of other code may pass for this code's. From here on
    # only, as to compile torch anew takes 3 s
    sys.pycache_prefix = order["compiled"]
    sys.path.insert(0, order["root"])
    name, function = order["function"].split(":")
    with Reads(order["hashed"], Path(order["root"])) as reads:
        found = getattr(importlib.import_module(name), function)(**order["kwargs"])
    module = require_network(found, order["function"])
    recipe = order["recipe"]
    if "state_dict" in order:
        ignore = recipe.get("ignore_keys", ())
        load_weights(module, Path(order["state_dict"]), trusted=order["trusted"], ignore=ignore)
    runtime = {key: order[key] for key in ("channels_last", "workers")}
    return freeze(module, {}, recipe, pick_device(order["device"]), reads=reads, **runtime)


if __name__ == "__main__":
    main()
