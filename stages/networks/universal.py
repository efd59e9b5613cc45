"""Teachers in folders of transformers: semantic models, and universal ones as semantic."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from ensdistill.pipeline.config import read_object
from ensdistill.pipeline.errors import DataError
from ensdistill.stages.networks.folders import require_trusted_code
from ensdistill.stages.networks.foreign import Fixed, reason, run_as_fixed
from ensdistill.stages.networks.students import HfSegmentation, hf_segmentation, hf_universal

_TASK: Final = "the task is semantic"


class UniversalSegmentation(HfSegmentation):
    """A model of masks and their classes, as one of per-class scores.

    The score of class c at a pixel is the sum over queries of p(c) times the mask's probability
    there, without the class of no object (Cheng, Schwing, Kirillov, "Per-Pixel Classification is
    Not All You Need for Semantic Segmentation", NeurIPS 2021, section 3.4: semantic inference).

    It is Mask2Former, MaskFormer, OneFormer, EoMT or DETR of transformers, which takes images of
    `fixed` sizes; OneFormer takes the (1, L) int64 tokens of its task, too.
    """

    #: sums of probabilities, not logits: no softmax belongs on them
    output: Final = "probabilities"
    _task: Tensor | None

    def __init__(self, model: nn.Module, fixed: Fixed, folder: Path, task: Tensor | None = None):
        super().__init__(model)
        self._fixed = fixed
        self._folder = folder
        self.register_buffer("_task", task, persistent=False)

    def answer(self, images: Tensor) -> Tensor:
        """Return (N, C, h, w) scores, at least 0, at the masks' own stride."""
        found: Tensor = run_as_fixed(self._scores, images, self._fixed, self._folder)
        return found

    def _scores(self, images: Tensor) -> Tensor:
        more = {}
        if self._task is not None:
            more["task_inputs"] = self._task.expand(len(images), -1)
        found: Any = self.model(pixel_values=images, **more)
        if "class_queries_logits" in found:
            classes, masks = found.class_queries_logits, found.masks_queries_logits
        else:  # DETR's names
            classes, masks = found.logits, found.pred_masks
        probable = classes.softmax(dim=-1)[..., :-1]
        return torch.einsum("nqc,nqhw->nchw", probable, masks.sigmoid())


def hf_teacher(folder: Path, *, trusted: bool, weights: bool = True) -> HfSegmentation:
    """Load a transformers folder, of a model for semantic or universal segmentation, as a teacher.

    It is one from (N, 3, H, W) float32 to (N, C, h, w) logits, or to scores as
    `UniversalSegmentation`. Its weights are safetensors, random without `weights`.

    Raises
    ------
    DataError
        If the folder brings code and is not `trusted`, or transformers cannot make a trained model
        of it.
    """
    require_trusted_code(folder, trusted=trusted)
    if not _is_universal(folder):
        return hf_segmentation(folder, weights=weights, trusted=trusted)
    model = hf_universal(folder, weights=weights, trusted=trusted)
    config: Any = model.config
    fixed = Fixed()
    if config.model_type == "eomt":
        # it numbers its patches, so that another shape of as many would be wrong in silence
        size = config.image_size
        fixed = Fixed(None, *((size, size) if isinstance(size, int) else size))
    task = _task_of(folder, config, trusted) if config.model_type == "oneformer" else None
    return UniversalSegmentation(model, fixed, folder, task)


def _is_universal(folder: Path) -> bool:
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING_NAMES,
    )

    config = read_object(folder / "config.json")
    code = config.get("auto_map") or {}
    return (
        config.get("model_type") in [*MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING_NAMES]  # or a list
        or "AutoModelForUniversalSegmentation" in code
    )


def _task_of(folder: Path, config: Any, trusted: bool) -> Tensor:
    """Return the tokens that ask OneFormer for semantic segmentation."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=trusted
        )
        tokens = tokenizer(
            _TASK, padding="max_length", max_length=config.task_seq_len, truncation=True
        )["input_ids"]
        understood = tokenizer.decode(tokens, skip_special_tokens=True)
    except Exception as error:
        understood = reason(error)
    if _TASK not in " ".join(understood.split()):  # without its files it is made all the same
        raise DataError(
            f"{folder}: OneFormer is told {_TASK!r}, of which the folder's tokenizer makes "
            f"{understood!r}; save it there too, with `processor.save_pretrained(folder)`"
        )
    return torch.tensor([tokens])
