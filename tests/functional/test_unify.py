import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from ensdistill.stages.functional.unify import unify

SIZES = [
    ((16, 32), (128, 256)),  # up, by a power of two
    ((17, 33), (129, 257)),  # up, with align_corners by exactly eight
    ((13, 29), (100, 231)),  # up, by nothing in particular
    ((67, 41), (512, 100)),
    ((129, 40), (100, 90)),  # down and up
    ((100, 150), (33, 47)),  # down
    ((60, 50), (60, 80)),  # one side stays
    ((60, 50), (75, 50)),
    ((40, 50), (40, 50)),  # both stay
    ((1, 1), (9, 7)),
    ((9, 7), (1, 1)),
    ((1, 5), (33, 2)),
]


def over_the_whole_map(logits, size, align_corners):
    resized = F.interpolate(logits[None], size, mode="bilinear", align_corners=align_corners)[0]
    certainty, _ = resized.softmax(dim=0).max(dim=0)
    return resized.argmax(dim=0), certainty


def random_logits(classes, size, seed=0):
    return 4 * torch.randn(classes, *size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(("source", "target"), SIZES)
def test_equals_the_whole_map(source, target, align_corners):
    logits = random_logits(19, source)
    before = logits.clone()
    labels, certainty = unify(logits, target, align_corners=align_corners)
    expected_labels, expected = over_the_whole_map(logits, target, align_corners)
    assert (labels.dtype, certainty.dtype) == (torch.uint8, torch.float32)
    assert labels.shape == certainty.shape == target
    assert torch.equal(labels.long(), expected_labels)
    assert (certainty - expected).abs().max() <= 1e-6
    assert torch.equal(logits, before)


@pytest.mark.parametrize("align_corners", [False, True])
def test_the_bands_do_not_show(align_corners):
    logits = random_logits(7, (23, 31))
    whole = unify(logits, (101, 90), align_corners=align_corners, rows=1000)
    for rows in (1, 7, 32, 101):
        banded = unify(logits, (101, 90), align_corners=align_corners, rows=rows)
        assert torch.equal(banded[0], whole[0])
        assert (banded[1] - whole[1]).abs().max() <= 1e-6


def test_align_corners_matters():
    logits = random_logits(5, (8, 8))
    one, two = (unify(logits, (64, 64), align_corners=a)[0] for a in (False, True))
    assert not torch.equal(one, two)


@pytest.mark.parametrize("size", [(6, 5), (48, 40), (3, 4)])
def test_ties_go_to_the_lowest_class(size):
    logits = random_logits(4, (6, 5))
    doubled = torch.cat([logits, logits])[[7, 6, 5, 4, 3, 2, 1, 0]]
    labels, _ = unify(doubled, size, align_corners=False)
    alone, _ = unify(logits.flip(0), size, align_corners=False)
    assert torch.equal(labels, alone)


def test_certainty_of_extreme_logits():
    logits = torch.tensor([1000.0, -1000.0, 0.0])[:, None, None].expand(3, 4, 4)
    labels, certainty = unify(logits, (9, 9), align_corners=False)
    assert (labels == 0).all()
    assert (certainty == 1).all()
    uniform = unify(torch.zeros(254, 3, 3), (5, 5), align_corners=True)
    assert (uniform[0] == 0).all()
    assert torch.allclose(uniform[1], torch.full((5, 5), 1 / 254))


def test_a_masked_class_is_no_trouble_at_its_own_size():
    logits = random_logits(3, (4, 4))
    logits[1] = -torch.inf
    labels, certainty = unify(logits, (4, 4), align_corners=False)
    assert not (labels == 1).any()
    assert torch.isfinite(certainty).all()


def test_half_precision_and_strides():
    logits = random_logits(6, (12, 10))
    half = logits.bfloat16()
    expected = unify(half.float(), (30, 50), align_corners=False)
    got = unify(half, (30, 50), align_corners=False)
    assert torch.equal(got[0], expected[0])
    assert torch.equal(got[1], expected[1])
    strided = logits.permute(1, 2, 0).contiguous().permute(2, 0, 1)  # channels last
    expected = unify(logits, (30, 50), align_corners=False)
    got = unify(strided, (30, 50), align_corners=False)
    assert torch.equal(got[0], expected[0])
    assert (got[1] - expected[1]).abs().max() <= 1e-6


def test_needs_no_gradient():
    logits = random_logits(3, (4, 5)).requires_grad_()
    labels, certainty = unify(logits, (9, 9), align_corners=False)
    assert not certainty.requires_grad
    with torch.inference_mode():
        inferred = logits * 1
    assert torch.equal(unify(inferred, (9, 9), align_corners=False)[0], labels)


def test_nan_shows_in_the_certainty():
    logits = random_logits(3, (4, 4))
    logits[1, 2, 3] = torch.nan
    _, certainty = unify(logits, (4, 4), align_corners=False)
    assert torch.isnan(certainty).nonzero().tolist() == [[2, 3]]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(("source", "target"), SIZES)
def test_equals_the_whole_map_on_a_gpu(source, target, align_corners):
    logits = random_logits(19, source).cuda()
    labels, certainty = unify(logits, target, align_corners=align_corners)
    expected_labels, expected = over_the_whole_map(logits, target, align_corners)
    assert labels.is_cuda
    assert (labels != expected_labels).float().mean() <= 1e-5  # its last bits may order otherwise
    assert (certainty - expected).abs().max() <= 1e-6


def test_refusals():
    with pytest.raises(TypeError, match="floating"):
        unify(torch.zeros(2, 3, 3, dtype=torch.int64), (3, 3), align_corners=False)
    for shape in ((3, 3), (1, 2, 3, 3), (0, 3, 3), (255, 3, 3), (2, 0, 3)):
        with pytest.raises(ValueError, match=r"\(C, h, w\)"):
            unify(torch.zeros(shape), (3, 3), align_corners=False)
    for size, rows in (((0, 3), 1), ((3, -1), 1), ((3, 3), 0)):
        with pytest.raises(ValueError, match="positive"):
            unify(torch.zeros(2, 3, 3), size, align_corners=False, rows=rows)
