"""Networks that come with their architecture: ONNX, `torch.export` and TorchScript."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Mapping
from contextlib import chdir
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ensdistill.pipeline.errors import DataError

_ONNX_FLOATS = {"tensor(float)": torch.float32, "tensor(float16)": torch.float16}
_KEYS = ("logits", "out")  # of transformers, of torchvision


def scores_of(found: object) -> Tensor:
    """Return the scores among what a network returned.

    A tensor; or what is called `logits` or `out`, or else the first tensor of three or four
    dimensions, in a mapping, a sequence or an object of attributes.

    Raises
    ------
    DataError
        If there is none.
    """
    if isinstance(found, Tensor):
        return found
    named = _named(found)
    for key in _KEYS:
        if isinstance(named.get(key), Tensor):
            return named[key]  # type: ignore[no-any-return]
    for value in named.values():
        if isinstance(value, Tensor) and value.ndim in (3, 4):
            return value
    held = ", ".join(f"{k}: {_shape(v)}" for k, v in named.items()) or type(found).__name__
    raise DataError(f"the network returned {held}; expected (N, C, h, w) scores")


def _named(found: object) -> Mapping[str, Any]:
    if isinstance(found, Mapping):
        return found
    if isinstance(found, list | tuple) and not hasattr(found, "_fields"):
        return {str(k): value for k, value in enumerate(found)}
    if hasattr(found, "_asdict"):
        return found._asdict()  # type: ignore[no-any-return]
    return vars(found) if is_dataclass(found) else {}


def _shape(value: object) -> str:
    return f"{tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def exported_network(file: Path) -> nn.Module:
    """Return the network of a `.pt2` file that `torch.export.save` wrote; reading it may run code.

    Raises
    ------
    DataError
        If it is none.
    """
    try:
        module = torch.export.load(str(file)).module()
    except Exception as error:  # of many kinds: it is an archive of archives
        raise DataError(
            f"{file}: torch.export cannot load it ({type(error).__name__}: {error}); expected what "
            "`torch.export.save` wrote"
        ) from error
    return _Recorded(module)


def torchscript_network(file: Path) -> nn.Module:
    """Return the network of a TorchScript file; running it runs code.

    Raises
    ------
    DataError
        If it is none.
    """
    try:
        with warnings.catch_warnings():
            # of torch's own reader: such files outlive its deprecation
            warnings.filterwarnings("ignore", r"`torch\.jit\.load` is", DeprecationWarning)
            load: Any = torch.jit.load
            module = load(str(file), map_location="cpu")
    except RuntimeError as error:
        raise DataError(
            f"{file}: torch.jit cannot load it ({_first_line(error)}); expected what "
            "`torch.jit.save` wrote"
        ) from error
    return _Recorded(module)


class _Recorded(nn.Module):
    """A network that was recorded in evaluation mode, which it cannot leave."""

    def __init__(self, module: Any):
        super().__init__()
        self.module = module

    def train(self, mode: bool = True) -> _Recorded:
        """Stay as it was recorded."""
        return self

    def forward(self, images: Tensor) -> Any:
        """Return what it returns."""
        return self.module(images)


class OnnxNetwork(nn.Module):
    """An ONNX model, run by onnxruntime.

    Parameters
    ----------
    file : Path
        The model.
    data : mapping
        Name to path of the files beside it that may hold its weights; it can read no others.
    device : torch.device
        Where it runs.
    threads : int or None
        On a CPU.

    Raises
    ------
    DataError
        If onnxruntime is missing, cannot run it there or reads no model; if that takes no images.
    """

    def __init__(
        self, file: Path, data: Mapping[str, Path], device: torch.device, threads: int | None
    ):
        super().__init__()
        try:
            import onnxruntime
        except ImportError as error:
            raise DataError(
                f"{file}: onnxruntime is missing ({error}); pip install 'ensdistill[onnx]'"
            ) from error
        provider = f"{device.type.upper()}ExecutionProvider"
        settings = {"device_id": device.index or 0} if device.type == "cuda" else {}
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # what is wrong is in the exception too
        options.intra_op_num_threads = threads or 0
        contents = [p.read_bytes() for p in data.values()]
        if data:
            options.add_external_initializers_from_files_in_memory(
                list(data), contents, [len(content) for content in contents]
            )
        model = file.read_bytes()
        try:
            # from its bytes and in an empty folder: no other file can be read for its weights
            with tempfile.TemporaryDirectory() as empty, chdir(empty):
                self._session = onnxruntime.InferenceSession(
                    model, options, providers=[(provider, settings)]
                )
        except Exception as error:  # onnxruntime's own have no common kind
            raise DataError(
                f"{file}: onnxruntime cannot load it ({_first_line(error)}); weights outside of "
                f"the model are looked for beside it, in files whose names begin with {file.name}"
            ) from error
        if provider not in self._session.get_providers():
            raise DataError(
                f"{file}: onnxruntime has no {provider} here; pip install onnxruntime-gpu in place "
                "of onnxruntime, or say `runtime: {device: cpu}`"
            )
        self._file, self._device = file, device
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        images = [i for i in inputs if len(i.shape) == 4 and i.type in _ONNX_FLOATS]
        found = [o for o in outputs if len(o.shape) in (3, 4)]
        if len(inputs) != 1 or not images or not found:
            held = "; ".join(
                f"{name} {' and '.join(f'{v.name} {v.type}{v.shape}' for v in values)}"
                for name, values in (("takes", inputs), ("returns", outputs))
            )
            raise DataError(
                f"{file}: the model {held}; expected one input of (N, 3, H, W) floating images and "
                "an output of (N, C, h, w) scores or (N, h, w) ids"
            )
        self._image, self._found = images[0], found[0].name

    def forward(self, images: Tensor) -> Tensor:
        """Return scores or ids."""
        expected = self._image.shape
        if expected[0] == 1 and len(images) > 1:
            return torch.cat([self(images[k : k + 1]) for k in range(len(images))])
        wrong = [k for k, n in enumerate(expected) if isinstance(n, int) and n != images.shape[k]]
        if wrong:
            raise DataError(
                f"{self._file}: the model takes images of {'x'.join(map(str, expected))}, not of "
                f"{'x'.join(map(str, images.shape))}; say so: "
                "`preprocess: {size: [HEIGHT, WIDTH]}` and `runtime: {batch_size: ...}`"
            )
        x = images.to(_ONNX_FLOATS[self._image.type]).contiguous()
        try:
            return self._run(x)
        except Exception as error:  # see above
            if "failed to allocate" in str(error).lower():
                raise torch.OutOfMemoryError(str(error)) from error
            raise

    def _run(self, images: Tensor) -> Tensor:
        if self._device.type == "cpu":
            [found] = self._session.run([self._found], {self._image.name: images.numpy()})
            return torch.from_numpy(np.asarray(found))
        # nothing passes through the CPU's memory
        binding, place = self._session.io_binding(), self._device.index or 0
        of_images = np.float16 if images.dtype == torch.float16 else np.float32
        binding.bind_input(
            self._image.name, "cuda", place, of_images, tuple(images.shape), images.data_ptr()
        )
        binding.bind_output(self._found, "cuda", place)
        torch.cuda.current_stream(self._device).synchronize()  # it runs on a stream of its own
        self._session.run_with_iobinding(binding)
        [found] = binding.get_outputs()
        return torch.utils.dlpack.from_dlpack(found)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
