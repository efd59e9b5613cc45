"""ONNX models, run by onnxruntime."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.dlpack import from_dlpack

from ensdistill.pipeline.errors import DataError
from ensdistill.pipeline.opening import read_regular
from ensdistill.stages.networks.folders import onnx_data_files
from ensdistill.stages.networks.foreign import Fixed, reason, refusing, run_as_fixed
from ensdistill.stages.networks.whole import require_whole

_IMAGES: Final = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
_NUMBERS: Final = re.compile(r"tensor\((?!string)\w+\)")


class OnnxNetwork(nn.Module):
    """A session of onnxruntime, from images to its outputs by name, on the device of the images.

    Attributes
    ----------
    facts : dict
        What decides the last bits of its results.
    """

    def __init__(self, session: Any, device: torch.device, file: Path):
        super().__init__()
        self._session = session
        self._device = device
        self._file = file
        taken = session.get_inputs()[0]
        self._input = taken.name
        self._dtype = _IMAGES[taken.type]
        # texts, sequences and maps are never the answer
        self._outputs = [o.name for o in session.get_outputs() if _NUMBERS.fullmatch(o.type)]
        batch, _, height, width = _sizes(taken.shape)
        self._fixed = Fixed(batch, height, width)
        import onnxruntime

        self.facts = {"onnxruntime": onnxruntime.__version__}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return the outputs for (N, 3, H, W) float32 images, in the model's order."""
        found: dict[str, Tensor] = run_as_fixed(self._run, images, self._fixed, self._file)
        return found

    def _run(self, images: Tensor) -> dict[str, Tensor]:
        half = self._dtype == np.float16
        images = images.to(self._device, torch.float16 if half else torch.float32).contiguous()
        place = (self._device.type, self._device.index or 0)
        binding = self._session.io_binding()
        binding.bind_input(self._input, *place, self._dtype, images.shape, images.data_ptr())
        for name in self._outputs:
            binding.bind_output(name, *place)
        if self._device.type == "cuda":
            # onnxruntime has a stream of its own
            torch.cuda.current_stream(self._device).synchronize()
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:  # onnxruntime's own have no common kind
            if "Failed to allocate memory" in str(error):
                raise torch.OutOfMemoryError(reason(error)) from error
            raise
        binding.synchronize_outputs()
        # views of the session's memory, which it may use again
        found = (from_dlpack(output).clone() for output in binding.get_outputs())
        return dict(zip(self._outputs, found, strict=True))


def onnx_network(file: Path, device: torch.device, threads: int | None) -> OnnxNetwork:
    """Load an ONNX model. It can neither run code nor read other files than `onnx_data_files`.

    Parameters
    ----------
    file : Path
        The model: one input of (N, 3, H, W) images, float32 or float16.
    device : torch.device
        Where it runs: the CPU, or CUDA with onnxruntime-gpu.
    threads : int or None
        Threads of its operators; None leaves onnxruntime's own choice.

    Raises
    ------
    DataError
        If a package is missing, the model is damaged, takes something else than images, names
        another file, or cannot run on that device.
    """
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise DataError(
            f"{file}: ONNX models need packages that are not there ({error}); "
            "pip install 'ensdistill[onnx]'"
        ) from error
    provider: Any = "CPUExecutionProvider"
    if device.type == "cuda":
        provider = ("CUDAExecutionProvider", {"device_id": str(device.index or 0)})
        _require_cuda(file, device, onnxruntime.get_available_providers())
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.load_model_format", "ONNX")  # whatever it looks like
    if threads is not None:
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
    require_whole(file)
    data = {p.name: p for p in onnx_data_files(file)}
    with refusing(f"{file} is no model that onnxruntime can run"):
        content = read_regular(file)
        model = onnx.load_model_from_string(content)
        used = _data_of(file, model, data)
        for name in used:
            require_whole(data[name])
        buffers = [read_regular(data[name]) for name in used]
        for name, buffer in zip(used, buffers, strict=True):
            _require_all(data[name], len(buffer), model, name)
        # from bytes, so that there is no folder in which other files would be looked for
        options.add_external_initializers_from_files_in_memory(
            used, buffers, [len(buffer) for buffer in buffers]
        )
        session = onnxruntime.InferenceSession(
            content, options, providers=[provider], enable_fallback=0
        )
        _require_images(file, session.get_inputs())
        network = OnnxNetwork(session, device, file)
    session.disable_fallback()
    if device.type == "cuda":
        _require_cuda(file, device, session.get_providers())
    return network


def _require_cuda(file: Path, device: torch.device, providers: Sequence[str]) -> None:
    if "CUDAExecutionProvider" not in providers:
        raise DataError(
            f"{file}: onnxruntime cannot run on {device} here, only with {', '.join(providers)}; "
            "install onnxruntime-gpu for this CUDA in place of onnxruntime, or say "
            "`runtime: {device: cpu}`"
        )


def _data_of(file: Path, model: Any, data: Mapping[str, Path]) -> list[str]:
    """Return the names of the files that a model's weights are in, all of them given."""
    used = sorted({place for tensor in _tensors(model) for place in _places(tensor)})
    for name in used:
        if name not in data:
            raise DataError(
                f"{file}: its weights are in {name!r}, which is not read; expected files beside it "
                f"whose names begin with {file.name!r} ({', '.join(sorted(data)) or 'none found'})"
                f". Save it with `onnx.save_model(..., location='{file.name}.data')`"
            )
    return used


def _require_all(file: Path, size: int, model: Any, name: str) -> None:
    """Refuse a file of weights, which a model calls by that name, that ends before they do."""
    for tensor in _tensors(model):
        of = {entry.key: entry.value for entry in tensor.external_data}
        end = int(of.get("offset", 0)) + int(of.get("length", 0))
        if of.get("location") == name and end > size:
            raise DataError(
                f"{file}: its model reads {end:,} bytes of it, and {size:,} are there: it was "
                "copied in part; copy it again"
            )


def _places(tensor: Any) -> list[str]:
    named = [entry.value for entry in tensor.external_data if entry.key == "location"]
    return named or ([""] if tensor.data_location == tensor.EXTERNAL else [])


def _tensors(message: Any) -> Iterator[Any]:
    """Yield every tensor of a model: also of its functions, inner graphs and attributes."""
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        for part in [value] if hasattr(value, "ListFields") else value:
            if field.message_type.name == "TensorProto":
                yield part
            else:
                yield from _tensors(part)


def _require_images(file: Path, inputs: Sequence[Any]) -> None:
    found = ", ".join(f"{i.name} {i.type} {i.shape}" for i in inputs)
    expected = "expected one of (N, 3, H, W) images, tensor(float) or tensor(float16)"
    if len(inputs) != 1:
        raise DataError(f"{file} has {len(inputs)} inputs ({found}); {expected}")
    shape = _sizes(inputs[0].shape)
    if len(shape) != 4 or shape[1] not in (None, 3) or inputs[0].type not in _IMAGES:
        raise DataError(f"{file} takes {found}; {expected}")


def _sizes(shape: Sequence[Any]) -> list[int | None]:
    return [side if isinstance(side, int) else None for side in shape]
