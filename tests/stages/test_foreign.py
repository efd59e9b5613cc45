"""The scores among what a foreign network returns."""

from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch

from ensdistill.pipeline.errors import DataError
from ensdistill.stages.networks.foreign import Fixed, run_as_fixed, scores_of

SCORES, OTHER = torch.zeros(1, 2, 4, 4), torch.ones(1, 2, 4, 4)
FLAT = torch.zeros(1, 2)


@dataclass
class Output:
    loss: torch.Tensor
    logits: torch.Tensor


@pytest.mark.parametrize(
    "found",
    [
        SCORES,
        OrderedDict(aux=OTHER, out=SCORES),
        {"aux": OTHER, "logits": SCORES},
        {"loss": FLAT, "masks": SCORES, "more": OTHER},
        (FLAT, SCORES, OTHER),
        [SCORES],
        namedtuple("Pair", ["aux", "out"])(OTHER, SCORES),
        Output(OTHER, SCORES),
        SimpleNamespace(logits=SCORES),
    ],
)
def test_scores_are_found(found):
    assert scores_of(found) is SCORES


def test_that_of_transformers_is_found():
    from transformers.modeling_outputs import SemanticSegmenterOutput

    assert scores_of(SemanticSegmenterOutput(loss=FLAT, logits=SCORES)) is SCORES


def test_ids_by_themselves_are_left_as_they_are():
    ids = torch.zeros(1, 4, 4, dtype=torch.int64)
    assert scores_of(ids) is ids


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (None, ["returned NoneType;"]),
        (7, ["returned int;"]),
        ((FLAT, "x"), ["tuple of 0: [1, 2], 1: str"]),
        ({"loss": FLAT}, ["dict of loss: [1, 2]", "(N, C, h, w)"]),
    ],
)
def test_without_scores_what_there_is_is_listed(found, words):
    with pytest.raises(DataError) as refused:
        scores_of(found)
    for word in words:
        assert word in str(refused.value)


def test_a_lack_of_memory_stays_what_it_is():
    def call(images):
        raise torch.OutOfMemoryError("no memory")

    with pytest.raises(torch.OutOfMemoryError):
        run_as_fixed(call, torch.zeros(2, 3, 4, 4), Fixed(), "net.pt")
