"""Networks over photographs: the pipeline against the bare loop on tensors that are ready."""

import gc
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch.nn import functional
from transformers.utils import logging

from ensdistill.data.decoding import read_image
from ensdistill.pipeline.runner import run
from ensdistill.stages.graph import build, load
from tests.benchmarks.measure import figure

from .clock import Peak, Watched, rate
from .networks import networks, write
from .scenes import link


class Way(NamedTuple):
    """How a network runs: images at once, what it computes in, and the photographs' format."""

    batch: int
    precision: str
    kind: str

    def __str__(self):
        short = {"float32": "fp32", "bfloat16": "bf16"}[self.precision]
        return f"batch {self.batch}, {short}"


# In order of worth: time may end.
FAST = Way(4, "bfloat16", "png")
WAYS = (
    FAST,
    Way(1, "float32", "png"),
    Way(4, "bfloat16", "jpg"),
    Way(1, "bfloat16", "png"),
    Way(4, "float32", "png"),
    Way(1, "float32", "jpg"),
)


def bare(network, way, sizes):
    """Return images a second and MB beside the network, of forward, resize and argmax alone."""
    device = torch.device(sizes.device)
    module = network.to(device, memory_format=torch.channels_last).eval()
    images = torch.randn(way.batch, 3, *sizes.image, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    half = way.precision != "float32"

    @torch.inference_mode()
    def once():
        with torch.autocast(device.type, torch.bfloat16) if half else nullcontext():
            logits = module(images)
        resized = functional.interpolate(logits.float(), sizes.image, mode="bilinear")
        return resized.argmax(dim=1).to(torch.uint8)

    peak = Peak(sizes.device)
    found = way.batch * rate(once, sizes.device, sizes.seconds)
    memory = peak.megabytes()
    module.to("cpu")
    return found, memory


def through(folder, teacher, way, count, sizes, workers):
    """Let `infer-teacher`'s stage label photographs; return what was seen of it, and MB."""
    link(folder.parents[1], way.kind, folder / "images", count)
    network = teacher["network"]
    if way.precision != "float32":
        network = network | {"precision": way.precision}
    settings = {
        "target": {"train": {"images": f"images/*.{way.kind}"}},
        "teachers": [{"name": "net", **teacher, "network": network}],
        "runtime": {"device": sizes.device, "workers": workers, "batch_size": way.batch},
    }
    experiment = load(write(folder / "experiment.yaml", settings))
    nodes, progress, peak = build(experiment), Watched(), Peak(sizes.device)
    run(nodes, experiment.workspace, ["infer[net]"], lambda _: progress)
    return progress, peak.megabytes()


def count_of(images_a_second, sizes):
    """Return how many images are worth a run."""
    some = 4 * round(images_a_second * sizes.seconds * 1.5 / 4)
    return min(max(some, sizes.few), sizes.many)


def compared(folder, name, network, teacher, way, sizes, speeds):
    """Yield the figures of a network in one way; its bare speed is kept in `speeds`."""
    about = (way.batch, way.precision)
    if about not in speeds:
        speeds[about] = bare(network, way, sizes)
        yield figure(f"{name}, {way}, bare loop", speeds[about][0], "/s", better="more")
    speed, whole = speeds[about]
    progress, memory = through(folder, teacher, way, count_of(speed, sizes), sizes, sizes.workers)
    ratio = progress.rate() / speed
    text = f"{name}, {way}, {way.kind} to stored labels / bare loop"
    yield figure(text, ratio, at_least=0.9, better="more", note=progress.shares())
    if memory is not None and "factory" not in teacher["network"]:  # that is another process
        memory -= sum(tensor.nbytes for tensor in network.state_dict().values()) / 1e6
        note = f"{memory:.0f} MB beside the weights, {whole:.0f} MB where logits are resized whole"
        yield figure(f"{name}, {way}, MB / bare loop's", memory / whole, note=note)


def decoding(folder, sizes):
    """Yield how many photographs threads decode in a second."""
    for kind in ("png", "jpg"):
        files = sorted((folder.parent / "scenes" / kind).iterdir())
        for threads in (1, sizes.workers):
            with ThreadPoolExecutor(threads) as pool:
                begin = time.perf_counter()
                for _ in pool.map(read_image, files * (1 if threads == 1 else 4)):
                    pass
                seconds = time.perf_counter() - begin
            count = len(files) * (1 if threads == 1 else 4)
            yield figure(f"decoding {kind}, {threads} threads", count / seconds, "/s")


def few_workers(folder, teacher, speed, sizes):
    """Yield what fewer decoding threads make of the fastest network."""
    way = FAST
    for workers in (2, 4, 8, 16):
        at = folder / f"workers{workers}"
        progress, _ = through(at, teacher, way, count_of(speed / 2, sizes), sizes, workers)
        text = f"SegFormer-B0, {way}, {way.kind}, {workers} workers / bare loop"
        yield figure(text, progress.rate() / speed, better="more", note=progress.shares())


def measure(folder, sizes):
    logging.disable_progress_bar()
    yield from decoding(folder, sizes)
    made = list(networks(folder / "networks", smoke=sizes.smoke))
    speeds = {name: {} for name, *_ in made}
    for k, way in enumerate(WAYS[:1] if sizes.smoke else WAYS):
        for name, network, teacher in made:
            at = folder / f"{name}-{k}"
            try:
                yield from compared(at, name, network, teacher, way, sizes, speeds[name])
            except Exception as error:  # of one network; the others are to be measured all the same
                traceback.print_exc()
                yield figure(f"{name}, {way}, {way.kind}", None, note=f"fails: {error}")
            gc.collect()
        if way == FAST and not sizes.smoke:
            speed, _ = speeds["SegFormer-B0"][way.batch, way.precision]
            yield from few_workers(folder, made[0][2], speed, sizes)
