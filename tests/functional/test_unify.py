import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st

from ensdistill.stages.functional.unify import (
    Piece,
    View,
    mean_softmax,
    resize_ids,
    tile_boxes,
    whole,
)
from ensdistill.stages.functional.unify import unify as unify_views

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


def unify(logits, size, **more):
    """Return labels and confidence of one whole view."""
    found = unify_views([whole(logits)], size, **more)
    assert bool(found.sound) == (not logits.isnan().any())
    return found.labels, found.confidence


def over_the_whole_map(logits, size, align_corners):
    resized = F.interpolate(logits[None], size, mode="bilinear", align_corners=align_corners)[0]
    confidence, _ = resized.softmax(dim=0).max(dim=0)
    return resized.argmax(dim=0), confidence


def random_logits(classes, size, seed=0):
    return 4 * torch.randn(classes, *size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(("source", "target"), SIZES)
def test_equals_the_whole_map(source, target, align_corners):
    logits = random_logits(19, source)
    before = logits.clone()
    labels, confidence = unify(logits, target, align_corners=align_corners)
    expected_labels, expected = over_the_whole_map(logits, target, align_corners)
    assert (labels.dtype, confidence.dtype) == (torch.uint8, torch.float32)
    assert labels.shape == confidence.shape == target
    assert torch.equal(labels.long(), expected_labels)
    assert (confidence - expected).abs().max() <= 1e-6
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


def test_confidence_of_extreme_logits():
    logits = torch.tensor([1000.0, -1000.0, 0.0])[:, None, None].expand(3, 4, 4)
    labels, confidence = unify(logits, (9, 9), align_corners=False)
    assert (labels == 0).all()
    assert (confidence == 1).all()
    uniform = unify(torch.zeros(254, 3, 3), (5, 5), align_corners=True)
    assert (uniform[0] == 0).all()
    assert torch.allclose(uniform[1], torch.full((5, 5), 1 / 254))


def test_a_masked_class_is_no_trouble_at_its_own_size():
    logits = random_logits(3, (4, 4))
    logits[1] = -torch.inf
    labels, confidence = unify(logits, (4, 4), align_corners=False)
    assert not (labels == 1).any()
    assert torch.isfinite(confidence).all()


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
    labels, confidence = unify(logits, (9, 9), align_corners=False)
    assert not confidence.requires_grad
    with torch.inference_mode():
        inferred = logits * 1
    assert torch.equal(unify(inferred, (9, 9), align_corners=False)[0], labels)


def test_nan_shows_in_the_confidence():
    logits = random_logits(3, (4, 4))
    logits[1, 2, 3] = torch.nan
    _, confidence = unify(logits, (4, 4), align_corners=False)
    assert torch.isnan(confidence).nonzero().tolist() == [[2, 3]]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(("source", "target"), SIZES)
def test_equals_the_whole_map_on_a_gpu(source, target, align_corners):
    logits = random_logits(19, source).cuda()
    labels, confidence = unify(logits, target, align_corners=align_corners)
    expected_labels, expected = over_the_whole_map(logits, target, align_corners)
    assert labels.is_cuda
    assert (labels != expected_labels).float().mean() <= 1e-5  # its last bits may order otherwise
    assert (confidence - expected).abs().max() <= 1e-6


def test_refusals():
    with pytest.raises(TypeError, match="floating"):
        unify(torch.zeros(2, 3, 3, dtype=torch.int64), (3, 3), align_corners=False)
    for shape in ((3, 3), (1, 2, 3, 3), (0, 3, 3), (255, 3, 3), (2, 0, 3)):
        with pytest.raises(ValueError, match=r"\(C, h, w\)"):
            unify(torch.zeros(shape), (3, 3), align_corners=False)
    for size, rows in (((0, 3), 1), ((3, -1), 1), ((3, 3), 0)):
        with pytest.raises(ValueError, match="positive"):
            unify(torch.zeros(2, 3, 3), size, align_corners=False, rows=rows)


# --- several views and pieces ----------------------------------------------------------------


def sampled(scores, row, column, box, align_corners):
    """Bilinear by hand, at a point of the input in pixels."""
    top, left, height, width = box
    at = []
    for point, start, length, count in (
        (row, top, height, scores.shape[1]),
        (column, left, width, scores.shape[2]),
    ):
        inside = point - start
        if align_corners:
            position = (inside - 0.5) * (count - 1) / max(length - 1, 1)
        else:
            position = inside * count / length - 0.5
        at.append(min(max(position, 0), count - 1))
    y, x = (int(np.floor(v)) for v in at)
    dy, dx = at[0] - y, at[1] - x
    y2, x2 = min(y + 1, scores.shape[1] - 1), min(x + 1, scores.shape[2] - 1)
    above = (1 - dx) * scores[:, y, x] + dx * scores[:, y, x2]
    below = (1 - dx) * scores[:, y2, x] + dx * scores[:, y2, x2]
    return (1 - dy) * above + dy * below


def by_hand(views, size, align_corners, output):
    """Every pixel by itself, in float64: (C, H, W) probabilities."""
    classes = len(views[0].pieces[0].scores)
    mean = np.zeros((classes, *size))
    for view, y, x in itertools.product(views, range(size[0]), range(size[1])):
        row, column = (
            k * (whole - 1) / max(n - 1, 1) + 0.5 if align_corners else (k + 0.5) * whole / n
            for k, whole, n in zip((y, x), view.size, size, strict=True)
        )
        if view.flipped:
            column = view.size[1] - column
        found = [
            sampled(scores.double().numpy(), row, column, box, align_corners)
            for scores, box in view.pieces
            if box[0] <= row < box[0] + box[2]
            and (
                box[1] <= column < box[1] + box[3]
                if not view.flipped
                else box[1] < column <= box[1] + box[3]
            )
        ]
        scores = np.mean(found, axis=0)
        if output == "logits":
            scores = np.exp(scores - scores.max())
        mean[:, y, x] += scores / scores.sum() / len(views)
    return mean


@st.composite
def seen(draw):
    """Views of one image: of any size, in tiles or not, mirrored or not, at any stride."""
    side = st.integers(3, 12)
    classes, seed = draw(st.integers(1, 4)), draw(st.integers(0, 1000))
    generator = torch.Generator().manual_seed(seed)
    views = []
    for _ in range(draw(st.integers(1, 3))):
        size = draw(side), draw(side)
        tile = draw(st.tuples(st.integers(2, 12), st.integers(2, 12)))
        overlap = tuple(draw(st.integers(0, t - 1)) for t in tile)
        boxes = tile_boxes(size, tile, overlap)
        stride = draw(st.integers(1, 3))
        pieces = [
            Piece(
                torch.rand(classes, -(-h // stride), -(-w // stride), generator=generator) + 0.1,
                (y, x, h, w),
            )
            for y, x, h, w in boxes
        ]
        views.append(View(pieces, size, draw(st.booleans())))
    return views


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seen(),
    st.tuples(st.integers(1, 12), st.integers(1, 12)),
    st.booleans(),
    st.sampled_from(["logits", "probabilities"]),
    st.integers(1, 5),
)
def test_views_and_pieces_equal_every_pixel_by_itself(views, size, align_corners, output, rows):
    expected = by_hand(views, size, align_corners, output)
    found = unify_views(views, size, align_corners=align_corners, output=output, rows=rows)
    assert bool(found.sound)
    got = np.take_along_axis(expected, found.labels.numpy()[None].astype(int), 0)[0]
    np.testing.assert_allclose(got, expected.max(axis=0), atol=1e-5)
    np.testing.assert_allclose(found.confidence.numpy(), expected.max(axis=0), atol=1e-5)
    alone = unify_views(
        views, size, align_corners=align_corners, output=output, rows=rows, confidence=False
    )
    assert alone.confidence is None
    assert torch.equal(alone.labels, found.labels)


@given(
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.tuples(st.integers(1, 20), st.integers(1, 20)),
    st.tuples(st.integers(0, 19), st.integers(0, 19)),
)
def test_tiles_cover_the_image_and_overlap_as_asked(size, tile, overlap):
    overlap = tuple(min(o, t - 1) for o, t in zip(overlap, tile, strict=True))
    boxes = tile_boxes(size, tile, overlap)
    assert len(set(boxes)) == len(boxes)
    assert {box[2:] for box in boxes} == {(min(size[0], tile[0]), min(size[1], tile[1]))}
    count = np.zeros(size, int)
    for top, left, height, width in boxes:
        assert top >= 0 and left >= 0 and top + height <= size[0] and left + width <= size[1]
        count[top : top + height, left : left + width] += 1
    assert count.min() >= 1
    for axis in (0, 1):
        starts = sorted({box[axis] for box in boxes})
        assert all(b - a <= tile[axis] - overlap[axis] for a, b in itertools.pairwise(starts))


def test_tiles_of_a_ramp_are_the_ramp():
    ramp = torch.arange(24.0)[None, :, None] + torch.arange(40.0)[None, None]
    pieces = [
        Piece(ramp[:, y : y + h, x : x + w], (y, x, h, w))
        for y, x, h, w in tile_boxes((24, 40), (10, 16), (3, 5))
    ]
    both = View([Piece(torch.cat([s, 30 - s]), box) for s, box in pieces], (24, 40))
    found = unify_views([both], (24, 40), align_corners=False)
    expected = unify_views([whole(torch.cat([ramp, 30 - ramp]))], (24, 40), align_corners=False)
    assert torch.equal(found.labels, expected.labels)
    torch.testing.assert_close(found.confidence, expected.confidence)


@pytest.mark.parametrize("align_corners", [False, True])
def test_a_mirrored_view_of_a_mirrored_image_is_the_view(align_corners):
    scores = random_logits(5, (9, 14))
    one = unify_views([whole(scores)], (36, 50), align_corners=align_corners)
    mirrored = View([Piece(scores.flip(2), (0, 0, 9, 14))], (9, 14), flipped=True)
    two = unify_views([mirrored], (36, 50), align_corners=align_corners)
    assert torch.equal(one.labels, two.labels)
    both = unify_views([whole(scores), mirrored], (36, 50), align_corners=align_corners)
    assert torch.equal(both.labels, one.labels)
    torch.testing.assert_close(both.confidence, one.confidence)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_no_number_is_told(bad):
    scores = random_logits(3, (4, 4))
    scores[1, 2, 3] = bad
    tiled = View([Piece(scores, (0, 0, 4, 4)), Piece(scores, (0, 0, 4, 4))], (4, 4))
    for views, size in (
        ([whole(scores)], (8, 8)),
        ([tiled], (4, 4)),
        ([whole(scores)] * 2, (3, 3)),
    ):
        for output in ("logits", "probabilities"):
            found = unify_views(views, size, align_corners=False, confidence=False, output=output)
            assert not bool(found.sound)


@pytest.mark.parametrize("pieces", [1, 2])
@pytest.mark.parametrize("size", [(4, 4), (9, 7), (3, 2)])
def test_a_class_that_is_ruled_out_never_wins_and_all_of_them_are_unsound(size, pieces):
    scores = random_logits(3, (4, 4))
    scores[1] = -torch.inf
    view = View([Piece(scores, (0, 0, 4, 4))] * pieces, (4, 4))
    found = unify_views([view], size, align_corners=False)
    rest = unify_views([whole(scores[[0, 2]])], size, align_corners=False)
    assert bool(found.sound)
    assert torch.equal(found.labels, 2 * rest.labels)
    torch.testing.assert_close(found.confidence, rest.confidence)
    scores[:, 1, 1] = -torch.inf
    assert not bool(unify_views([view], size, align_corners=False).sound)


def test_what_are_no_probabilities_is_told():
    scores = torch.rand(3, 4, 4)
    for change in (lambda s: s[:, 2, 2].zero_(), lambda s: s[1, 2, 2].fill_(-0.1)):
        bad = scores.clone()
        change(bad)
        for one, expected in ((scores, True), (bad, False)):
            found = unify_views([whole(one)], (4, 4), align_corners=False, output="probabilities")
            assert bool(found.sound) is expected


def test_soft_maps_are_the_mean_softmax_at_the_stride():
    scores = random_logits(4, (5, 6))
    mirrored = View([Piece(scores.flip(2), (0, 0, 5, 6))], (5, 6), flipped=True)
    expected = scores.softmax(dim=0)
    torch.testing.assert_close(mean_softmax([whole(scores), mirrored]), expected)
    found = mean_softmax([whole(expected * 3)], output="probabilities")
    torch.testing.assert_close(found, expected)
    with pytest.raises(ValueError, match="one piece"):
        mean_softmax([View([Piece(scores, (0, 0, 5, 6))] * 2, (5, 6))])
    with pytest.raises(ValueError, match="one stride"):
        mean_softmax([whole(scores), whole(random_logits(4, (3, 3)))])


def test_ids_are_those_of_the_nearest():
    ids = torch.tensor([[0, 255], [7, 18]])
    big = resize_ids(ids, (4, 6))
    assert big.dtype == torch.uint8
    assert torch.equal(big, ids.to(torch.uint8).repeat_interleave(2, 0).repeat_interleave(3, 1))
    assert resize_ids(torch.tensor([[-1, 256], [300, 3]]), (2, 2)).tolist() == [
        [254, 254],
        [254, 3],
    ]
