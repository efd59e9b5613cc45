"""The README of exported label maps: what they are, and the few lines to train on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ensdistill.data.classes import TABLES, ClassTable
from ensdistill.pipeline.escaping import in_a_cell
from ensdistill.pipeline.manifest import Manifest
from ensdistill.stages.export.layout import Layout


def guide(
    experiment: str,
    manifest: Manifest,
    table: ClassTable,
    layout: Layout,
    ids: str,
    about: Mapping[str, Any],
    name: str,
) -> str:
    """Return the text, in which all paths start from the exported folder, called `name`.

    `experiment` is the name of its file; `about` has the label maps' ``split``, ``images``,
    ``pixels``, ``ignored`` and ``converted``.
    """
    method = manifest.recipe.get("method") or manifest.recipe["source"]
    rows = [
        f"| experiment | `{in_a_cell(experiment)}` |",
        f"| labels | `{manifest.node}` ({method}) |",
        f"| fingerprint | `{manifest.fingerprint}` |",
        f"| digest of the label maps | `{manifest.content}` |",
        f"| images | {about['images']} of the split {about['split']} |",
        f"| pixels without a label | {100 * about['ignored'] / about['pixels']:.2f} % |",
    ]
    parts = [
        "# Label maps\n\nMade by `ensdistill export labels`: what networks say, no ground truth.\n",
        "| | |\n| --- | --- |\n" + "\n".join(rows) + "\n",
        f"Images: `{layout.images}`, label maps: `{layout.labels}`, one 8-bit PNG an image, of its "
        f"size. {_PIXELS[ids]}\n",
        *_converted(about["converted"]),
        classes_table(table, ids == "label-ids"),
    ]
    if ids == "label-ids":
        parts.append("To train on them, export `--ids train-ids`.\n")
    else:
        parts += ["## mmsegmentation (1.x)\n", _mmsegmentation(table, layout)]
        parts += ["## detectron2\n", _detectron2(table, layout, f"{name}_{about['split']}", ids)]
    return "\n".join(parts)


_ROOT = "root = '.'  # this folder, seen from where the training is started"
_PIXELS = {
    "train-ids": "A pixel is the train id of its class, or 255: ignore.",
    "label-ids": "A pixel is the label id of its class; without a label it is 0, or 255 where the "
    "class table has no ignored 0.",
    "palette": "A pixel is the train id of its class, or 255: ignore; the palette are the classes' "
    "colours.",
}


def classes_table(table: ClassTable, label_ids: bool = False) -> str:
    """Return the classes with ids and colours as Markdown."""
    by_train_id = {train_id: label_id for label_id, train_id in table.label_ids.items()}
    head = "| train id | " + "label id | " * label_ids + "class | colour |"
    lines = [head, "| --- " * (3 + label_ids) + "|"]
    for k, (name, colour) in enumerate(zip(table.classes, table.colours, strict=True)):
        own = f"{by_train_id[k]} | " if label_ids else ""
        lines.append(f"| {k} | {own}{in_a_cell(name)} | `#{bytes(colour).hex()}` |")
    return "\n".join(lines) + "\n"


def _converted(images: Sequence[str]) -> list[str]:
    if not images:
        return []
    return [
        f"{len(images)} of the images were written as PNG, which changes no pixel: the photographs "
        "end differently, and the loaders below want all images of a folder to end alike.\n"
    ]


def _mmsegmentation(table: ClassTable, layout: Layout) -> str:
    known = layout.by_city and table.classes == TABLES["cityscapes19"].classes
    own = [f"type={'CityscapesDataset' if known else 'BaseSegDataset'!r},"]
    if not known:
        # not even CityscapesDataset with fewer classes: it would take the ids for its own
        own += [
            f"metainfo=dict(classes={list(table.classes)!r},",
            f"              palette={[list(c) for c in table.colours]!r}),",
        ]
    if not known or layout.label_suffix != "_gtFine_labelTrainIds.png":
        own += [f"img_suffix={layout.image_suffix!r}, seg_map_suffix={layout.label_suffix!r},"]
    own += [
        "data_root=root, ann_file='',",
        f"data_prefix=dict(img_path={layout.images!r}, seg_map_path={layout.labels!r}),",
        "pipeline=[",
        "    dict(type='LoadImageFromFile'),",
        "    dict(type='LoadAnnotations'),",
        "    dict(type='RandomCrop', crop_size=(256, 512), cat_max_ratio=0.75),",
        "    dict(type='RandomFlip', prob=0.5),",
        "    dict(type='PackSegInputs'),",
        "],",
    ]
    body = "\n".join(f"        {line}" for line in own)
    return (
        "In a config, after the `_base_` of your network (its heads need "
        f"`num_classes={len(table)}`):\n\n"
        f"```python\n{_ROOT}\ntrain_dataloader = dict(\n    batch_size=4,\n    num_workers=4,\n"
        "    sampler=dict(type='InfiniteSampler', shuffle=True),\n"
        f"    dataset=dict(\n{body}\n    ),\n)\n```\n"
    )


def _detectron2(table: ClassTable, layout: Layout, name: str, ids: str) -> str:
    if ids == "palette":
        return (
            "It reads labels as grey pictures and would take a palette's colours for ids; export "
            "`--ids train-ids`.\n"
        )
    if layout.nested:
        return "It looks into no folders below one; export images that are not called alike.\n"
    labels, images = f"f'{{root}}/{layout.labels}'", f"f'{{root}}/{layout.images}'"
    if layout.by_city and table.label_ids:
        module, call = "cityscapes", f"load_cityscapes_semantic({images}, {labels})"
    elif layout.by_city:
        return (
            "Its loader of Cityscapes wants label ids, which this class table has not; give the "
            "images other names.\n"
        )
    else:
        ends = f"gt_ext='png', image_ext={layout.image_suffix[1:]!r}"
        module, call = "coco", f"load_sem_seg({labels}, {images}, {ends})"
    loader = call.partition("(")[0]
    return (
        "```python\nfrom detectron2.data import DatasetCatalog, MetadataCatalog\n"
        f"from detectron2.data.datasets.{module} import {loader}\n\n{_ROOT}\n"
        f"DatasetCatalog.register(\n    {name!r},\n    lambda: {call},\n)\n"
        f"MetadataCatalog.get({name!r}).set(\n    stuff_classes={list(table.classes)!r},\n"
        f"    stuff_colors={[list(c) for c in table.colours]!r},\n"
        "    ignore_label=255,\n    evaluator_type='sem_seg',\n)\n```\n\n"
        f"with `cfg.DATASETS.TRAIN = ({name!r},)` and `cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = "
        f"{len(table)}`.\n"
    )
