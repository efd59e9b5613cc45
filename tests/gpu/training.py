"""Students: the loop on what its loaders bring, on batches that are ready, and a plain loop."""

import gc
import time
import traceback
import warnings
from collections import Counter
from itertools import islice
from pathlib import Path

import torch
from torch.nn import functional

from ensdistill.pipeline.plan import plan
from ensdistill.pipeline.runner import run
from ensdistill.stages.graph import build, load
from ensdistill.stages.networks.students import build_student
from ensdistill.stages.training.loop import Order, Training
from ensdistill.stages.work.items import Silence
from ensdistill.stages.work.pixels import prepare
from tests.benchmarks.measure import Turns, figure

from .clock import Peak, settle
from .networks import B2, SMALL, Logits, segformer, segformer_network, write
from .scenes import link

DEFAULT = "mobilenetv2-deeplabv3plus"


def experiment_of(folder, network, sizes, **student):
    """Write an experiment of one teacher's labels, whose student is what is measured."""
    scenes = folder.parents[1] / "scenes"
    link(folder.parents[1], "png", folder / "images", sizes.scenes)
    settings = {
        "target": {"train": {"images": "images/*.png"}},
        "teachers": [{"name": "one", "labels": {"train": str(scenes / "teacher0")}}],
        "fusion": {"method": "majority"},
        "student": {
            "network": network,
            "batch_size": sizes.batch,
            "crop": list(sizes.crop),
            "precision": "bfloat16",
            **student,
        },
        "runtime": {"device": sizes.device, "workers": sizes.workers},
    }
    return load(write(folder / "experiment.yaml", settings))


def prepared(experiment):
    """Return a training whose labels are made."""
    nodes = build(experiment)
    run(nodes, experiment.workspace, ["fusion"], lambda _: Silence(), upstream=True)
    decisions = plan(nodes, experiment.workspace.scan())
    work = decisions["student"].work
    inputs = {"labels": decisions["fusion"].artifact}
    pixels = prepare(work.local, "student", Silence())
    return Training(
        Order("student", work.recipe.to_json(), work.local, inputs, pixels), Silence(), None
    )


def plain_stepper(model, sizes):
    """Return a step of a plain loop on tensors that are on the device."""
    device = torch.device(sizes.device)
    model = model.to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    images = torch.randn(sizes.batch, 3, *sizes.crop, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 19, (sizes.batch, *sizes.crop), device=device)

    def step():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16):
            logits = model(images)
        resized = functional.interpolate(logits.float(), sizes.crop, mode="bilinear")
        functional.cross_entropy(resized, labels, ignore_index=255).backward()
        optimizer.step()

    return step


def waits(name, step, device):
    """Yield how often a step waits for the device, and the lines that do, most often first."""
    tell = torch.cuda.set_sync_debug_mode if device == "cuda" else lambda _: None
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        tell("warn")
        try:
            step()
        finally:
            tell("default")
    said = [w for w in found if "synchronizing CUDA operation" in str(w.message)]
    lines = Counter(f"{Path(w.filename).name}:{w.lineno}" for w in said)
    note = ", ".join(f"{count} x {line}" for line, count in lines.most_common())
    yield figure(f"{name}, waits for the device in a step", len(said), "", note=note)


def compared(name, training, model, sizes):
    """Yield images a second and memory of the three loops, measured in turns."""
    step_of, plain = training.stepper(), plain_stepper(model, sizes)
    loaded = iter(training.batches(training.samples(), 0))
    ready = next(loaded)
    number, device = 0, sizes.device

    def seconds(batches):
        nonlocal number
        settle(device)
        begin = time.perf_counter()
        for batch in batches:
            if batch is None:
                plain()
            else:
                step_of(number % 1000, batch)
            number += 1
        settle(device)
        return time.perf_counter() - begin

    turns = {
        "loaded": lambda: islice(loaded, sizes.steps),
        "ready": lambda: [ready] * sizes.steps,
        "plain": lambda: [None] * sizes.steps,
    }
    times, peaks = Turns((turn, []) for turn in turns), {}
    for turn, batches in turns.items():
        seconds(batches())  # searches for algorithms, asks for memory
        peak = Peak(device)
        seconds(batches())
        peaks[turn] = peak.megabytes()
    for _ in range(sizes.rounds):
        seconds(islice(loaded, 2 * sizes.workers))  # what the loaders had made meanwhile
        for turn, batches in turns.items():
            times[turn].append(seconds(batches()))
    yield from waits(name, lambda: step_of(number % 1000, ready), device)
    images = sizes.batch * sizes.steps
    for turn in turns:
        yield figure(f"{name}, {turn}", images / times.median(turn), "/s", better="more")
    text = f"{name}, what loaders bring / ready batches"
    yield figure(text, times.ratio("ready", "loaded"), at_least=0.95, better="more")
    text = f"{name}, what loaders bring / a plain loop"
    yield figure(text, times.ratio("plain", "loaded"), at_least=0.95, better="more")
    if peaks["ready"] is not None:
        note = f"{peaks['ready']:.0f} MB beside the weights, a plain loop {peaks['plain']:.0f} MB"
        yield figure(f"{name}, MB / a plain loop's", peaks["ready"] / peaks["plain"], note=note)


def whole(folder, name, network, sizes):
    """Yield what a training as a whole records of itself."""
    experiment = experiment_of(folder, network, sizes, steps=sizes.whole)
    nodes, begin = build(experiment), time.perf_counter()
    run(nodes, experiment.workspace, ["student"], lambda _: Silence(), upstream=True)
    seconds = time.perf_counter() - begin
    facts = plan(nodes, experiment.workspace.scan())["student"].artifact.manifest.runtime
    note = f"{100 * facts['data_time']:.1f} % waiting for data, {seconds:.1f} s in all"
    speed = facts["images_per_second"]
    yield figure(f"{name}, a whole training", speed, "/s", better="more", note=note)


def measure(folder, sizes):
    small = SMALL if sizes.smoke else B2
    settings = folder / "segformer"
    segformer(**small).save_pretrained(settings)
    students = {
        "default student": ({"arch": DEFAULT}, lambda: build_student(DEFAULT, 19, None, 0)),
        "SegFormer-B2": ({"hf": str(settings)}, lambda: Logits(segformer_network(**small))),
    }
    for k, (name, (network, make)) in enumerate(students.items()):
        try:
            training = prepared(experiment_of(folder / f"{k}", network, sizes, steps=10**6))
            yield from compared(name, training, make(), sizes)
            del training
            gc.collect()
            yield from whole(folder / f"{k}-whole", name, network, sizes)
        except Exception as error:  # of one network; the other is to be measured all the same
            traceback.print_exc()
            yield figure(name, None, note=f"fails: {error}")
