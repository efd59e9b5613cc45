"""Colours, blur and mixing by class, against their definitions."""

import colorsys

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter1d

from ensdistill.stages.functional.augmentation import blurred, draw_look, mix_classes, recolour


def images(count=3):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(60, 190, (count, 3, 9, 13), generator=generator).float()


def looks(*rows):
    return torch.tensor(rows, dtype=torch.float32)


PLAIN = (1, 1, 1, 0, 0)


def test_a_plain_look_changes_nothing():
    found = recolour(images(), looks(PLAIN, PLAIN, PLAIN))
    torch.testing.assert_close(found, images(), rtol=0, atol=1e-3)
    assert torch.equal(blurred(images(), looks(PLAIN, PLAIN, PLAIN)), images())


@pytest.mark.parametrize("which", range(4))
def test_each_colour_is_its_definition(which):
    values = (1.2, 0.7, 0.4, 0.3)
    look = list(PLAIN)
    look[which] = values[which]
    x = images(1)
    found = recolour(x, looks(look))[0].permute(1, 2, 0).double().numpy()
    rgb = x[0].permute(1, 2, 0).double().numpy()
    grey = rgb @ (0.299, 0.587, 0.114)
    if which == 3:
        yiq = np.array([[colorsys.rgb_to_yiq(*p) for p in row] for row in rgb / 255])
        turn = np.exp(1j * values[3])
        chroma = (yiq[..., 1] + 1j * yiq[..., 2]) * turn
        yiq = np.stack([yiq[..., 0], chroma.real, chroma.imag], -1)
        expected = 255 * np.array([[colorsys.yiq_to_rgb(*p) for p in row] for row in yiq])
        np.testing.assert_allclose(found, expected, atol=2)  # the standard's digits differ
        return
    expected = (
        rgb * 1.2,
        (rgb - grey.mean()) * 0.7 + grey.mean(),
        (rgb - grey[..., None]) * 0.4 + grey[..., None],
    )[which]
    np.testing.assert_allclose(found, expected.clip(0, 255), atol=1e-2)


def test_every_image_has_its_own_look():
    rows = [(1.1, 0.8, 0.9, 0.2, 0), PLAIN, (0.7, 1.2, 1.4, -0.5, 0.9)]
    whole = blurred(recolour(images(), looks(*rows)), looks(*rows))
    for k, row in enumerate(rows):
        alone = blurred(recolour(images()[k : k + 1], looks(row)), looks(row))
        torch.testing.assert_close(whole[k : k + 1], alone, rtol=0, atol=1e-2)


@pytest.mark.parametrize("sigma", [0.15, 0.6, 1.15])
def test_blur_is_a_gaussian(sigma):
    x = images(1)
    found = blurred(x, looks((1, 1, 1, 0, sigma)))[0].double().numpy()
    expected = x[0].double().numpy()
    for axis in (1, 2):
        expected = gaussian_filter1d(expected, sigma, axis, mode="nearest", radius=4)
    np.testing.assert_allclose(found, expected, atol=1e-2)


def test_looks_are_drawn_within_their_ranges():
    drawn = np.array([draw_look(np.random.default_rng(k), 0.4, 0.3) for k in range(600)])
    for column in range(3):
        assert 0.6 <= drawn[:, column].min() < 0.62 and 1.38 < drawn[:, column].max() <= 1.4
    assert np.abs(drawn[:, 3]).max() <= 0.4 * np.pi / 2
    sharp = drawn[:, 4] == 0
    assert 0.6 < sharp.mean() < 0.8
    assert drawn[~sharp, 4].min() >= 0.15 and drawn[:, 4].max() <= 1.15
    assert draw_look(np.random.default_rng(0), 0, 0).tolist() == list(PLAIN)


def test_half_of_the_classes_are_pasted_and_never_what_is_ignored():
    random = np.random.default_rng(0)
    label = random.choice([0, 3, 4, 9, 18, 255], (20, 30)).astype(np.uint8)
    chosen = set()
    for _ in range(40):
        pasted = mix_classes(random, label, np.zeros_like(label), 255)
        given = set(np.unique(label[pasted]))
        assert len(given) == 3 and 255 not in given  # of five, rounded up
        assert not set(np.unique(label[~pasted])) & given
        chosen |= given
    assert chosen == {0, 3, 4, 9, 18}
    assert not mix_classes(random, np.full_like(label, 255), label, 255).any()
    with pytest.raises(ValueError, match="expected the same size"):
        mix_classes(random, label, label[1:], 255)
