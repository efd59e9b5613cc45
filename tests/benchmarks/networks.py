"""A network over photographs, from PNG to stored labels, against its bare loop on ready tensors."""

import re
import time

import torch
import yaml
from PIL import Image
from transformers.utils import logging

from ensdistill.pipeline.plan import plan
from ensdistill.pipeline.runner import run
from ensdistill.stages.graph import build, load

from .measure import figure
from .samples import photograph

GPU = torch.cuda.is_available()
SIZE = (1024, 2048) if GPU else (512, 1024)
PICTURES, DISTINCT = (256, 8) if GPU else (6, 3)
WORKERS = 12 if GPU else 2


def segformer_b0():
    """SegFormer-B0 with random weights."""
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    return SegformerForSemanticSegmentation(SegformerConfig(num_labels=19))  # its defaults are B0's


def upernet_resnet101():
    """UPerNet on a ResNet-101 with random weights."""
    from transformers import ResNetConfig, UperNetConfig, UperNetForSemanticSegmentation

    backbone = ResNetConfig(
        depths=[3, 4, 23, 3], out_features=["stage1", "stage2", "stage3", "stage4"]
    )
    config = UperNetConfig(backbone_config=backbone, use_auxiliary_head=False, num_labels=19)
    return UperNetForSemanticSegmentation(config)


NETWORKS = {"SegFormer-B0": segformer_b0} | (
    {"UPerNet on ResNet-101": upernet_resnet101} if GPU else {}
)


class Listening:
    """Progress that remembers what was said."""

    def __init__(self):
        self.said = []

    def start(self, total, done, unit):
        pass

    def advance(self, count=1, note=""):
        pass

    def message(self, text):
        self.said.append(text)


def bare(model, seconds):
    """Return images a second of forward, resize and argmax on a tensor that is ready."""
    device = torch.device("cuda" if GPU else "cpu")
    model = model.to(device, memory_format=torch.channels_last).eval()
    images = torch.randn(1, 3, *SIZE, device=device).contiguous(memory_format=torch.channels_last)

    def once():
        with torch.inference_mode():
            logits = model(pixel_values=images).logits
            resized = torch.nn.functional.interpolate(logits, SIZE, mode="bilinear")
            resized.argmax(dim=1).to(torch.uint8)

    for _ in range(3):
        once()
    if GPU:
        torch.cuda.synchronize()
    begin, count = time.perf_counter(), 0
    while time.perf_counter() - begin < seconds:
        for _ in range(8 if GPU else 1):
            once()
            count += 1
        if GPU:
            torch.cuda.synchronize()
    return count / (time.perf_counter() - begin)


def whole(root):
    logging.disable_progress_bar()
    images = root / "images"
    images.mkdir()
    for k in range(PICTURES):
        if k < DISTINCT:
            picture = Image.fromarray(photograph(k)).resize(SIZE[::-1])
            picture.save(images / f"{k:04}.png")
        else:
            (images / f"{k:04}.png").symlink_to(images / f"{k % DISTINCT:04}.png")
    for name, make in NETWORKS.items():
        torch.manual_seed(0)
        model = make()
        model.save_pretrained(root / name)
        settings = {
            "version": 1,
            "workspace": f"work {name}",
            "classes": {"table": "cityscapes19"},
            "target": {"train": {"images": "images/*.png"}},
            "teachers": [{"name": "net", "network": {"hf": name}}],
            "runtime": {"workers": WORKERS, "threads": None if GPU else 2},
        }
        file = root / f"{name}.yaml"
        file.write_text(yaml.safe_dump(settings))
        torch.set_num_threads(2)
        rate = bare(model, 10)
        experiment = load(file)
        nodes, progress = build(experiment), Listening()
        run(nodes, experiment.workspace, ["infer[net]"], lambda _, p=progress: p)
        assert plan(nodes, experiment.workspace.scan())["infer[net]"].artifact is not None
        [(said, speed)] = [
            (text, found)
            for text in progress.said
            if (found := re.search(r"([\d.]+) (images/s|s an image)", text))
        ]
        ours = float(speed[1]) if speed[2] == "images/s" else 1 / float(speed[1])
        at = f"{name}, {SIZE[0]} x {SIZE[1]}"
        yield figure(f"{at}, bare loop", rate, "/s", note="GPU" if GPU else "2 threads")
        goals = {"at_least": 0.9, "better": "more"} if GPU else {"better": "more"}
        torch.set_num_threads(1)  # as the other themes have it
        share = said[said.index("(") :]
        yield figure(f"{at}, PNG to stored labels / bare loop", ours / rate, **goals, note=share)


MEASURES = (whole,)
