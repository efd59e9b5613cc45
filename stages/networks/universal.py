"""Models of transformers that answer with masks and their classes, as scores of classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn

from ensdistill.pipeline.errors import DataError

UNIVERSAL: Final = ("eomt", "eomt_dinov3", "mask2former", "maskformer", "oneformer")


class HfUniversal(nn.Module):
    """A universal-segmentation model of transformers, from images to scores of classes.

    The score of a class at a pixel is the sum over the queries of the softmax of the query's class
    (without "no object") times the sigmoid of its mask (semantic inference of MaskFormer; Cheng,
    Schwing, Kirillov 2021, section 3.4). It is taken at the masks' own stride.

    Parameters
    ----------
    model : PreTrainedModel
        Any `...ForUniversalSegmentation`.
    folder : Path
        Its folder, for the tokenizer of a model that is told its task.
    loaded : dict or None
        See `students.HfSegmentation`.

    Attributes
    ----------
    output : str
        What `forward` returns: no logits.
    """

    output: Literal["probabilities"] = "probabilities"

    def __init__(self, model: Any, folder: Path, loaded: dict[str, Any] | None = None):
        super().__init__()
        self.model: Any = model
        self.config: Any = model.config
        self.loaded = loaded
        self._told: bool = self.config.model_type == "oneformer"
        if self._told:
            self.register_buffer("_task", _task_tokens(self.config, folder), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return (N, C, h, w) scores."""
        more = {}
        if self._told:
            tokens: Any = self._task
            more["task_inputs"] = tokens.expand(len(images), -1)
        found = self.model(pixel_values=images, **more)
        classes = found.class_queries_logits.softmax(dim=-1)[..., :-1]
        masks = found.masks_queries_logits.sigmoid()
        return torch.einsum("nqc,nqhw->nchw", classes, masks)


def _task_tokens(config: Any, folder: Path) -> Tensor:
    """Return what tells a OneFormer that its task is semantic, (1, L) int64."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        tokens = tokenizer(
            "the task is semantic",
            padding="max_length",
            truncation=True,
            max_length=config.task_seq_len,
            return_tensors="pt",
        )
    except Exception as error:  # of many kinds
        raise DataError(
            f"{folder}: holds no tokenizer, which a OneFormer is told its task with ({error}); "
            "save its processor into the folder: `processor.save_pretrained(folder)`"
        ) from error
    return tokens["input_ids"]  # type: ignore[no-any-return]
