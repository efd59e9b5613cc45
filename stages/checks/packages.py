"""What is found out about packages that can break, each imported in a process of its own."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import warnings
from dataclasses import dataclass
from importlib import import_module, metadata
from importlib.util import find_spec
from typing import Any, Final

_PATIENCE: Final = 300  # seconds until an import is given up; a cold network disk takes a minute


@dataclass(frozen=True)
class Package:
    """A package, and why it does not import; `version` is None where none is recorded."""

    name: str
    installed: bool
    version: str | None = None
    error: str | None = None

    def __str__(self) -> str:
        return f"{self.name} {self.version}" if self.version else self.name


def version_of(distribution: str) -> str | None:
    """Return the version that is recorded of a package, None where none is."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def ask(name: str) -> tuple[Package, dict[str, Any]]:
    """Import a package in a process of its own, and return what was found out there."""
    version = version_of(name)
    if find_spec(name) is None:
        return Package(name, installed=False), {}
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", __spec__.name, name],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_PATIENCE,
            check=False,
        )
    except subprocess.TimeoutExpired:
        error = f"its import did not end in {_PATIENCE} seconds"
        return Package(name, installed=True, version=version, error=error), {}
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()
        error = said[-1].strip() if said else f"its import ended with {done.returncode}"
        return Package(name, installed=True, version=version, error=error), {}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    version = found.pop("version")
    if found.get("cuda_error") == "":
        found["cuda_error"] = _reason(done.stderr)
    return Package(name, installed=True, version=version), found


def _reason(messages: str) -> str:
    """Return why a provider did not start, out of what onnxruntime logged."""
    found = re.search(r"with error: (.*)", messages)
    lines = messages.strip().splitlines()
    return found[1].strip() if found else lines[-1] if lines else "without a message"


def _look_at_torch() -> dict[str, Any]:
    with warnings.catch_warnings(record=True) as raised:
        warnings.simplefilter("always")
        import torch

        gpus = []
        for k in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
            properties = torch.cuda.get_device_properties(k)
            bfloat16 = properties.major >= 8  # from Ampere on; older ones emulate it
            gpus.append(
                {"name": properties.name, "memory": properties.total_memory, "bfloat16": bfloat16}
            )
    said = [" ".join(str(w.message).split()) for w in raised if "torch" in w.filename]
    return {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "gpus": gpus,
        "warning": said[0] if said else None,
    }


def _look_at_torchvision() -> dict[str, Any]:
    module = import_module("torchvision")
    from packaging.requirements import Requirement  # transformers needs it, so it is there

    try:
        lines = metadata.requires("torchvision") or []
    except metadata.PackageNotFoundError:
        lines = []
    torch = [r for r in map(Requirement, lines) if r.name == "torch"]
    unmet = [r for r in torch if not r.specifier.contains(metadata.version("torch"), True)]
    return {
        "version": getattr(module, "__version__", None),
        "wants": str(unmet[0]) if unmet else None,
    }


def _look_at_onnxruntime() -> dict[str, Any]:
    module = import_module("onnxruntime")
    providers, cuda_error = list(module.get_available_providers()), None
    if "CUDAExecutionProvider" in providers:
        # listed even where its libraries are missing; a session then falls back, or raises
        import_module("torch")  # its CUDA libraries serve both, as when networks are run
        try:
            session = module.InferenceSession(_DOUBLING, providers=["CUDAExecutionProvider"])
            if "CUDAExecutionProvider" not in session.get_providers():
                cuda_error = ""  # the reason is in what C++ code logs
        except Exception as error:
            cuda_error = f"{type(error).__name__}: {error}"
    return {"version": module.__version__, "providers": providers, "cuda_error": cuda_error}


def _look_at_numba() -> dict[str, Any]:
    from ensdistill.data.compiling import cache_folder

    return {"version": version_of("numba"), "cache": cache_folder()}


# y = x + x as ONNX (ir 8, opset 13): the smallest network that starts a provider
_DOUBLING: Final = (
    b'\x08\x08\x12\x00:5\n\x0e\n\x01x\n\x01x\x12\x01y"\x03Add\x12\x01gZ\x0f\n\x01x\x12\n\n\x08\x08'
    b"\x01\x12\x04\n\x02\x08\x01b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00"
    b"\x10\r"
)
LOOKS: Final = {
    "torch": _look_at_torch,
    "torchvision": _look_at_torchvision,
    "onnxruntime": _look_at_onnxruntime,
    "numba": _look_at_numba,
}

if __name__ == "__main__":
    print(json.dumps(LOOKS[sys.argv[1]]()))
