"""How good a network in training is on a labelled split that it watches."""

from __future__ import annotations

import math

import numpy as np
import torch

from ensdistill.data.decoded import Pixels
from ensdistill.data.decoding import Decoder, image_size
from ensdistill.pipeline.errors import DataError
from ensdistill.stages.functional.scores import confusion, iou, mean_iou
from ensdistill.stages.local import Learning
from ensdistill.stages.networks.frozen import FrozenNetwork
from ensdistill.stages.training.ranks import Ranks


def watched_miou(network: FrozenNetwork, local: Learning, pixels: Pixels, ranks: Ranks) -> float:
    """Return the mIoU in percent on the watched split, whose images the ranks share.

    Raises
    ------
    DataError
        If no pixel of it has a label.
    """
    decoder = Decoder(local.to_target, palette=local.palette)
    size = len(local.classes)
    confmat = np.zeros((size, size + 1), np.int64)
    for picture in local.watch[ranks.rank :: ranks.count]:
        assert picture.labels is not None
        shape = image_size(picture.image, local.max_pixels)
        target = decoder.read(picture.labels, local.digests[str(picture.labels)], shape)
        image = pixels.read(picture.image, local.digests[str(picture.image)])
        labels = network.look(image).labels
        confmat += confusion(target, labels.cpu().numpy()[None], size)[0]
    confmat = ranks.total(torch.from_numpy(confmat).to(network.device)).cpu().numpy()
    miou = 100 * mean_iou(iou(confmat))
    if math.isnan(miou):
        raise DataError("the watched split has no labelled pixel")
    return miou
