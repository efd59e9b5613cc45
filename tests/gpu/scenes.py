"""Photographs and label maps that are made up, once for all parts, and what they were made on."""

import os
import platform
import shutil
import subprocess
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib.metadata import distributions

from PIL import Image

from tests.benchmarks.maps import street
from tests.benchmarks.measure import figure

from .sizes import Sizes

TEACHERS = 4


def draw(folder, size, k):
    """Write a photograph as PNG and as JPEG, and what four teachers call it."""
    from tests.benchmarks.samples import photograph

    across = size[::-1]
    image = Image.fromarray(photograph(k)).resize(across)
    image.save(folder / "png" / f"{k:03}.png")
    image.save(folder / "jpg" / f"{k:03}.jpg", quality=95)
    for t, labels in enumerate(street(k, teachers=TEACHERS, shape=size)[1]):
        Image.fromarray(labels).save(folder / f"teacher{t}" / f"{k:03}.png")


def link(scratch, kind, folder, count):
    """Make a folder of `count` images, of those that were drawn."""
    folder.mkdir(parents=True)
    drawn = sorted((scratch / "scenes" / kind).iterdir())
    for k in range(count):
        file = drawn[k % len(drawn)]
        (folder / f"{k:03}{file.suffix}").symlink_to(file)
    return folder


def machine():
    """Return what there is to know of this machine."""
    import torch

    found = {
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "device": "cpu",
    }
    if torch.cuda.is_available():
        of_gpu = torch.cuda.get_device_properties(0)
        found |= {"device": of_gpu.name, "memory": of_gpu.total_memory, "driver": driver()}
    found["packages"] = {d.metadata["Name"]: d.version for d in distributions()}
    return found


def driver():
    """Return the version of the driver, None where nobody tells."""
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    if shutil.which(asked[0]) is None:
        return None
    return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()


def measure(folder, sizes: Sizes):
    for kind in ("png", "jpg", *(f"teacher{t}" for t in range(TEACHERS))):
        (folder / kind).mkdir()
    workers = min(sizes.scenes, os.cpu_count() or 1)
    with ProcessPoolExecutor(workers) as pool:
        list(pool.map(partial(draw, folder, sizes.image), range(sizes.scenes)))
    yield {"machine": machine()}
    for kind in ("png", "jpg"):
        files = list((folder / kind).iterdir())
        mean = sum(f.stat().st_size for f in files) / len(files)
        yield figure(f"a photograph as {kind}", mean / 1e6, "MB")
