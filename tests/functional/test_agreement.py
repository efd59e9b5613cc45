import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ensdistill.stages.functional.agreement import agreement, claims
from ensdistill.stages.functional.fusion import channel_wise

LABELS = st.sampled_from([0, 1, 2, 255])
MAPS = hnp.arrays(np.uint8, st.tuples(st.integers(1, 4), st.just(3), st.just(4)), elements=LABELS)
FUSED = hnp.arrays(np.uint8, (3, 4), elements=LABELS)


@settings(deadline=None)  # the first call compiles
@given(MAPS, FUSED)
def test_agreement_is_counted_pixel_by_pixel(label_maps, fused):
    found = agreement(label_maps, fused, 3)
    pixels = [(label_maps[:, y, x].tolist(), fused[y, x]) for y in range(3) for x in range(4)]
    assert found.pixels == 12
    assert found.unanimous == sum(len(set(labels)) == 1 for labels, _ in pixels)
    for c in range(3):
        mine = [labels for labels, label in pixels if label == c]
        assert found.fused[c] == len(mine)
        assert found.settled[c] == sum(len(set(labels)) == 1 for labels in mine)
    for j in range(len(label_maps)):
        for k in range(len(label_maps)):
            assert found.pairs[j, k] == sum(labels[j] == labels[k] for labels, _ in pixels)


@settings(deadline=None)  # the first call compiles
@given(MAPS, FUSED)
def test_agreements_of_two_images_add_up(label_maps, fused):
    both = agreement(
        np.concatenate([label_maps, label_maps[:, ::-1]], axis=1), np.vstack([fused, fused]), 3
    )
    added = agreement(label_maps, fused, 3) + agreement(label_maps[:, ::-1], fused, 3)
    for name in ("pixels", "unanimous", "pairs", "fused", "settled"):
        np.testing.assert_array_equal(getattr(both, name), getattr(added, name))


@given(MAPS)
def test_without_owners_every_label_but_255_is_a_claim(label_maps):
    found = claims(label_maps)
    for y in range(3):
        for x in range(4):
            assert found[y, x] == len(set(label_maps[:, y, x].tolist()) - {255})


@settings(deadline=None)
@given(MAPS, st.data())
def test_conflicts_and_holes_are_those_of_the_fusion(label_maps, data):
    owner = np.array(
        data.draw(st.lists(st.integers(-1, len(label_maps) - 1), min_size=3, max_size=3))
    )
    found = claims(label_maps, owner)
    _, counts = channel_wise(label_maps, owner, window=3, conflict="window", holes="window")
    assert np.count_nonzero(found > 1) == counts.conflicts
    assert np.count_nonzero(found == 0) == counts.holes


def test_what_does_not_fit_is_refused():
    maps, fused = np.zeros((2, 3, 4), np.uint8), np.zeros((3, 5), np.uint8)
    with pytest.raises(ValueError, match="one size"):
        agreement(maps, fused, 3)
    with pytest.raises(ValueError, match="not empty"):
        claims(maps[:0])
    with pytest.raises(TypeError):
        claims(maps.astype(int))
