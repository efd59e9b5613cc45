import dataclasses

import numpy as np
import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from ensdistill.stages.functional.fusion import FusionCounts, channel_wise, majority

COMBINATIONS = [(c, h) for c in ("window", "certainty", "ignore") for h in ("window", "ignore")]
RULES = {"window": 5, "conflict": "window", "holes": "window"}

quick = settings(max_examples=60, deadline=None, derandomize=True)


@st.composite
def problems(draw, max_classes=6):
    """Label maps, owners, certainties and a window, with many conflicts, holes and ties."""
    teachers = draw(st.integers(1, 4))
    classes = draw(st.integers(1, max_classes))
    shape = (teachers, draw(st.integers(1, 9)), draw(st.integers(1, 11)))
    values = st.sampled_from([*range(classes), 255])
    label_maps = draw(hnp.arrays(np.uint8, shape, elements=values))
    owner = draw(hnp.arrays(np.intp, classes, elements=st.integers(-1, teachers - 1)))
    certainty = draw(
        hnp.arrays(np.float64, classes, elements=st.sampled_from([0.0, 0.25, 0.5, 1.0, np.nan]))
    )
    window = draw(st.sampled_from([1, 3, 5, 7, 35, 301]))
    return label_maps, owner, certainty, window


def assert_same_counts(counts, expected):
    got = {name: np.asarray(value).tolist() for name, value in dataclasses.asdict(counts).items()}
    assert got == expected


@pytest.mark.parametrize(("conflict", "holes"), COMBINATIONS)
@quick
@given(problem=problems())
def test_agrees_with_the_loops(conflict, holes, problem):
    label_maps, owner, certainty, window = problem
    rules = {"window": window, "conflict": conflict, "holes": holes, "certainty": certainty}
    fused, counts = channel_wise(label_maps, owner, **rules)
    expected, expected_counts = oracles.channel_wise(label_maps, owner, **rules)
    np.testing.assert_array_equal(fused, expected)
    assert fused.dtype == np.uint8
    assert_same_counts(counts, expected_counts)


@pytest.mark.parametrize(("conflict", "holes"), COMBINATIONS)
@pytest.mark.parametrize(
    ("shape", "classes", "window"),
    [
        ((4, 37, 53), 19, 7),
        ((32, 17, 40), 64, 5),
        ((2, 1, 70), 3, 9),
        ((3, 70, 1), 2, 9),
        ((5, 12, 13), 40, 51),
        ((1, 1, 1), 1, 1),
    ],
)
def test_agrees_with_the_loops_on_noise(shape, classes, window, conflict, holes):
    rng = np.random.default_rng(sum(shape))
    # Skewed towards the low classes, so that even 64 classes meet in conflicts.
    label_maps = (classes * rng.random(shape) ** 2).astype(np.uint8)
    label_maps[rng.random(shape) < 0.2] = 255
    owner = rng.integers(-1, shape[0], classes)
    certainty = rng.choice([0.2, 0.7, np.nan], classes)
    rules = {"window": window, "conflict": conflict, "holes": holes, "certainty": certainty}
    fused, counts = channel_wise(label_maps, owner, **rules)
    expected, expected_counts = oracles.channel_wise(label_maps, owner, **rules)
    np.testing.assert_array_equal(fused, expected)
    assert_same_counts(counts, expected_counts)


def streets(rng, teachers, height, width, classes):
    """Maps of patches with noise at some places: tiles of one value and tiles of many."""
    coarse = rng.integers(0, classes, (teachers, -(-height // 9), -(-width // 23)))
    maps = np.kron(coarse, np.ones((1, 9, 23), np.int64))[:, :height, :width]
    noisy = np.kron(rng.random((-(-height // 20), -(-width // 50))) < 0.4, np.ones((20, 50), bool))
    noise = rng.integers(0, classes + 1, maps.shape)
    maps = np.where(noisy[:height, :width], np.where(noise == classes, 255, noise), maps)
    maps[rng.random(teachers) < 0.3, : height // 2] = 255
    return maps.astype(np.uint8)


@pytest.mark.parametrize(
    ("teachers", "shape", "classes", "window"),
    [
        (4, (40, 64), 19, 35),
        (4, (33, 65), 19, 35),
        (3, (47, 63), 5, 3),
        (7, (70, 600), 19, 35),
        (7, (70, 257), 19, 129),
        (4, (300, 130), 19, 257),
        (5, (90, 400), 64, 255),
        (5, (300, 260), 64, 301),
        (32, (20, 320), 64, 7),
        (2, (1, 1000), 2, 999),
        (3, (1000, 30), 4, 1999),
        (6, (48, 128), 63, 1),
    ],
)
@pytest.mark.parametrize(("conflict", "holes"), COMBINATIONS)
def test_agrees_with_summed_areas_beyond_tiles(teachers, shape, classes, window, conflict, holes):
    rng = np.random.default_rng(window + shape[1])
    label_maps = streets(rng, teachers, *shape, classes)
    owner = rng.integers(-1, teachers, classes)
    certainty = rng.random(classes)
    claims = np.stack([(label_maps[t] == c) & (t >= 0) for c, t in enumerate(owner)])
    several, none = claims.sum(axis=0) > 1, ~claims.any(axis=0)
    assert several.any()
    assert none.any()
    most = oracles.windows(label_maps, owner, window)
    best = np.argmax(np.where(claims, certainty[:, None, None], -1), axis=0)
    ruled = {"window": most, "certainty": best, "ignore": np.full(shape, 255)}
    expected = np.where(several, ruled[conflict], claims.argmax(axis=0))
    expected = np.where(none, ruled[holes], expected)
    fused, counts = channel_wise(
        label_maps, owner, window=window, conflict=conflict, holes=holes, certainty=certainty
    )
    np.testing.assert_array_equal(fused, expected)

    def by_class(where):
        return [int((where & (expected == c)).sum()) for c in range(classes)]

    assert_same_counts(
        counts,
        {
            "claimed": claims.sum(axis=(1, 2)).tolist(),
            "conflict": (claims & several).sum(axis=(1, 2)).tolist(),
            "won": by_class(several),
            "filled": by_class(none),
            "label": by_class(np.full(shape, True)),
            "pixels": expected.size,
            "conflicts": int(several.sum()),
            "holes": int(none.sum()),
            "ignored": int((expected == 255).sum()),
        },
    )


def one_hot_pooled(label_maps, owner, window):
    """The form of the paper's release: pool one-hot claims, take the largest where unresolved."""
    claims = np.zeros((len(owner), *label_maps.shape[1:]), np.float32)
    for c, teacher in enumerate(owner):
        if teacher >= 0:
            claims[c] = label_maps[teacher] == c
    pool = torch.nn.AvgPool2d(window, stride=1, padding=window // 2)  # zeros count at the border
    pooled = pool(torch.from_numpy(claims)[None])[0].numpy()
    resolved = claims.sum(axis=0) == 1
    label = np.where(resolved, claims.argmax(axis=0), pooled.argmax(axis=0))
    return label, resolved, pooled.max(axis=0) == 0


@pytest.mark.parametrize("window", [3, 5, 35])
@pytest.mark.parametrize("seed", range(4))
def test_equals_pooled_one_hot_maps(seed, window):
    rng = np.random.default_rng(seed)
    label_maps = np.kron(rng.integers(0, 8, (3, 12, 17)), np.ones((1, 5, 5))).astype(np.uint8)
    label_maps[rng.random(label_maps.shape) < 0.05] = 255
    label_maps[:, :25, :30] = 255  # in its corner even a window of 35 is empty
    owner = rng.integers(-1, 3, 8)
    fused, _ = channel_wise(label_maps, owner, window=window, conflict="window", holes="window")
    expected, resolved, empty = one_hot_pooled(label_maps, owner, window)
    assert 0.1 < resolved.mean() < 0.9
    assert (empty & ~resolved).any()
    # That form turns empty windows into class 0; here they stay without a label.
    np.testing.assert_array_equal(fused, np.where(~resolved & empty, 255, expected))


@pytest.mark.parametrize("teachers", [2, pytest.param(6, marks=pytest.mark.slow)])
def test_equals_pooled_one_hot_maps_of_real_networks(camvid, teachers):
    names = sorted(p.name for p in (camvid / "teachers").iterdir())[:teachers]
    files = sorted(p.name for p in (camvid / "teachers" / names[0] / "train").iterdir())
    folders = [camvid / "teachers" / name / "train" for name in names]
    file = files[len(files) // teachers]
    label_maps = np.stack([np.asarray(Image.open(folder / file)) for folder in folders])
    owner = np.random.default_rng(teachers).integers(-1, teachers, 19)
    fused, _ = channel_wise(label_maps, owner, window=35, conflict="window", holes="window")
    expected, resolved, empty = one_hot_pooled(label_maps, owner, 35)
    np.testing.assert_array_equal(fused, np.where(~resolved & empty, 255, expected))
    assert 0.02 < (~resolved).mean() < 0.9


def test_a_window_of_more_than_65535_claims():
    label_maps = np.zeros((2, 256, 258), np.uint8)
    label_maps[1] = 1
    label_maps[0, :140] = 255  # class 1 leads by far, but its 66048 claims are 512 in 16 bits
    fused, counts = channel_wise(
        label_maps, np.array([0, 1]), window=703, conflict="window", holes="window"
    )
    assert (fused == 1).all()
    assert counts.won.tolist() == [0, 116 * 258]


def test_a_window_of_65536_claims():
    label_maps = np.zeros((2, 256, 256), np.uint8)
    label_maps[1] = 1
    label_maps[1, 0, 0] = 255
    fused, _ = channel_wise(
        label_maps, np.array([0, 1]), window=511, conflict="window", holes="window"
    )
    assert (fused == 0).all()  # by one claim, which 16 bits do not hold


def test_claims_reach_over_the_edge_of_a_tile():
    label_maps = np.full((1, 1, 128), 255, np.uint8)
    label_maps[0, 0, :64] = 0
    fused, _ = channel_wise(label_maps, np.array([0]), window=3, conflict="window", holes="window")
    assert (fused[0] == 0).sum() == 65
    fused, _ = channel_wise(
        label_maps[..., ::-1], np.array([0]), window=3, conflict="window", holes="window"
    )
    assert (fused[0] == 0).sum() == 65


@quick
@given(problem=problems(), rules=st.sampled_from(COMBINATIONS))
def test_invents_no_class(problem, rules):
    label_maps, owner, certainty, window = problem
    conflict, holes = rules
    fused, counts = channel_wise(
        label_maps, owner, window=window, conflict=conflict, holes=holes, certainty=certainty
    )
    claimed = {c for c, t in enumerate(owner) if t >= 0 and (label_maps[t] == c).any()}
    assert set(np.unique(fused).tolist()) <= claimed | {255}
    assert set(np.flatnonzero(counts.claimed).tolist()) == claimed


@quick
@given(problem=problems(), rules=st.sampled_from(COMBINATIONS))
def test_counts_describe_the_map(problem, rules):
    label_maps, owner, certainty, window = problem
    conflict, holes = rules
    fused, counts = channel_wise(
        label_maps, owner, window=window, conflict=conflict, holes=holes, certainty=certainty
    )
    assert counts.label.tolist() == [(fused == c).sum() for c in range(len(owner))]
    assert counts.ignored == (fused == 255).sum()
    assert counts.pixels == fused.size == counts.label.sum() + counts.ignored
    assert (counts.label == counts.claimed - counts.conflict + counts.won + counts.filled).all()
    assert counts.won.sum() == (0 if conflict == "ignore" else counts.conflicts)
    assert counts.filled.sum() <= counts.holes


def test_a_class_can_win_a_conflict_where_it_claims_nothing():
    label_maps = np.full((2, 3, 3), 2, np.uint8)
    label_maps[:, 1, 1] = [0, 1]
    fused, counts = channel_wise(label_maps, np.array([0, 1, 0]), **RULES)
    assert (fused == 2).all()
    assert counts.won.tolist() == [0, 0, 1]
    assert counts.conflict.tolist() == [1, 1, 0]


def test_claims_at_contested_pixels_count_in_windows():
    label_maps = np.array([[[1, 255]], [[0, 255]]], np.uint8)  # a conflict beside a hole
    owner = np.array([1, 0])
    fused, _ = channel_wise(label_maps, owner, window=3, conflict="ignore", holes="window")
    assert fused.tolist() == [[255, 0]]


def test_nan_certainty_loses_even_to_the_least():
    label_maps = np.array([[[0]], [[1]]], np.uint8)
    for certainty, winner in (
        ([np.nan, -np.inf], 1),
        ([np.nan, np.nan], 0),
        ([0.5, 0.5], 0),
        ([0.4, 0.5], 1),
    ):
        fused, _ = channel_wise(
            label_maps,
            np.array([0, 1]),
            window=1,
            conflict="certainty",
            holes="ignore",
            certainty=np.array(certainty),
        )
        assert fused.tolist() == [[winner]]


def test_maps_without_labels_stay_without():
    label_maps = np.full((3, 5, 4), 255, np.uint8)
    fused, counts = channel_wise(label_maps, np.array([0, 1, 2]), **RULES)
    assert (fused == 255).all()
    assert (counts.holes, counts.ignored, counts.conflicts) == (20, 20, 0)


@quick
@given(problem=problems(), order=st.randoms(use_true_random=False))
def test_the_order_of_the_teachers_means_nothing(problem, order):
    label_maps, owner, _, window = problem
    rules = {"window": window, "conflict": "window", "holes": "window"}
    moved = list(range(len(label_maps)))
    order.shuffle(moved)  # position i now holds teacher moved[i]
    renumbered = np.array([-1 if t < 0 else moved.index(t) for t in owner])
    fused, _ = channel_wise(label_maps, owner, **rules)
    again, _ = channel_wise(label_maps[moved], renumbered, **rules)
    np.testing.assert_array_equal(fused, again)


def test_reads_strided_and_read_only_maps():
    rng = np.random.default_rng(0)
    whole = rng.integers(0, 4, (3, 20, 30)).astype(np.uint8)
    view = whole[:, ::2, ::-3]
    owner = np.array([0, 1, 2, 0])
    expected, _ = channel_wise(view.copy(), owner, **RULES)
    np.testing.assert_array_equal(channel_wise(view, owner, **RULES)[0], expected)
    np.testing.assert_array_equal(majority(view, 4), majority(view.copy(), 4))
    frozen = view.copy()
    frozen.flags.writeable = False
    np.testing.assert_array_equal(channel_wise(frozen, owner, **RULES)[0], expected)
    np.testing.assert_array_equal(majority(frozen, 4), majority(view, 4))


def test_counts_add_up():
    rng = np.random.default_rng(1)
    owner = np.array([0, 1, 1])
    maps = rng.integers(0, 3, (2, 2, 6, 7)).astype(np.uint8)
    one, two = (channel_wise(m, owner, **RULES)[1] for m in maps)
    total = one + two
    for field in dataclasses.fields(FusionCounts):
        expected = getattr(one, field.name) + getattr(two, field.name)
        np.testing.assert_array_equal(getattr(total, field.name), expected)
    assert total.pixels == 84
    other = channel_wise(maps[0], np.array([0, 1, 1, 0]), **RULES)[1]
    with pytest.raises(ValueError, match="3 and 4 classes"):
        one + other


MAPS = np.zeros((2, 3, 4), np.uint8)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"window": 4}, ValueError, "odd positive"),
        ({"window": 0}, ValueError, "odd positive"),
        ({"window": -3}, ValueError, "odd positive"),
        ({"conflict": "priority"}, ValueError, "conflict must be"),
        ({"holes": "certainty"}, ValueError, "holes must be"),
        ({"conflict": "certainty"}, ValueError, "certainty, got none"),
        ({"conflict": "certainty", "certainty": np.zeros(3)}, ValueError, r"got shape \(3,\)"),
        ({"owner": np.array([0, 2])}, ValueError, "indices of the 2 teachers"),
        ({"owner": np.array([0, -2])}, ValueError, "indices of the 2 teachers"),
        ({"owner": np.array([[0, 1]])}, ValueError, r"owner must be \(C,\)"),
        ({"owner": np.array([0.0, 1.0])}, TypeError, "owner must hold integers"),
        ({"owner": np.zeros(65, np.intp)}, ValueError, "1 to 64"),
        ({"label_maps": MAPS.astype(np.int64)}, TypeError, "uint8, got int64"),
        ({"label_maps": MAPS[0]}, ValueError, r"\(N, H, W\)"),
        ({"label_maps": MAPS[:0]}, ValueError, "not empty"),
        ({"label_maps": MAPS + np.uint8(2)}, ValueError, r"holds the value 2; .* 0\.\.1 or 255"),
        ({"label_maps": MAPS + np.uint8(254)}, ValueError, "holds the value 254"),
    ],
)
def test_channel_wise_refuses(change, error, message):
    arguments = {"label_maps": MAPS, "owner": np.array([0, 1]), **RULES, **change}
    label_maps, owner = arguments.pop("label_maps"), arguments.pop("owner")
    with pytest.raises(error, match=message):
        channel_wise(label_maps, owner, **arguments)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    label_maps=hnp.arrays(
        np.uint8,
        hnp.array_shapes(min_dims=3, max_dims=3, max_side=7),
        elements=st.sampled_from([0, 1, 2, 253, 255]),
    )
)
def test_majority_agrees_with_the_loops(label_maps):
    fused = majority(label_maps, 254)
    assert fused.dtype == np.uint8
    np.testing.assert_array_equal(fused, oracles.majority(label_maps))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("teachers", [1, 2, 3, 4, 5, 7, 32])
def test_majority_agrees_with_the_loops_beyond_one_block(teachers, weighted):
    rng = np.random.default_rng(teachers)
    label_maps = rng.integers(0, 5, (teachers, 67, 131))
    label_maps = np.where(label_maps == 4, 255, label_maps).astype(np.uint8)
    weights = rng.integers(1, 4, teachers) if weighted else None
    expected = oracles.majority(label_maps, weights)
    np.testing.assert_array_equal(majority(label_maps, 4, weights=weights), expected)


@pytest.mark.parametrize(
    "weights",
    [
        [127, 128],
        [128, 128],
        [255, 1],
        [100, 100, 55],
        [85, 85, 85, 1],
        [64, 64, 64, 64],
        [51, 51, 51, 51, 51],
        [52, 51, 51, 51, 51],
    ],
)
def test_weights_are_counted_beyond_8_bits(weights):
    rng = np.random.default_rng(sum(weights))
    label_maps = rng.choice([0, 1, 2, 255], (len(weights), 7, 90)).astype(np.uint8)
    expected = oracles.majority(label_maps, weights)
    np.testing.assert_array_equal(majority(label_maps, 3, weights=np.array(weights)), expected)


def test_weights_are_counted_beyond_16_bits():
    label_maps = np.array([0, 1, 1, 0, 2], np.uint8).reshape(-1, 1, 1)
    weights = np.array([65_536, 65_535, 2, 2**31, 2**31 - 200_000])
    assert majority(label_maps, 3, weights=weights).tolist() == [[0]]
    weights = np.array([1, 65_535, 2, 1, 65_537])
    assert majority(label_maps, 3, weights=weights).tolist() == [[1]]  # a tie goes to the first


@pytest.mark.parametrize(
    ("votes", "winner"),
    [
        ([3, 1], 3),
        ([1, 3], 1),
        ([2, 1, 1], 1),
        ([2, 3, 1, 1, 3], 3),
        ([255, 2, 1], 2),
        ([255, 255, 255, 0], 0),
        ([255, 255], 255),
    ],
)
def test_majority_ties_and_abstentions(votes, winner):
    label_maps = np.array(votes, np.uint8).reshape(-1, 1, 1)
    assert majority(label_maps, 4).tolist() == [[winner]]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    votes=st.lists(st.sampled_from([0, 1, 2, 255]), min_size=1, max_size=7),
    order=st.randoms(use_true_random=False),
)
def test_majority_depends_on_the_order_only_in_ties(votes, order):
    shuffled = order.sample(votes, len(votes))
    counts = sorted(votes.count(c) for c in (0, 1, 2))
    one, two = (majority(np.array(v, np.uint8).reshape(-1, 1, 1), 3) for v in (votes, shuffled))
    if counts[-1] != counts[-2] or counts[-1] == 0:
        np.testing.assert_array_equal(one, two)
    else:
        assert votes.count(one[0, 0]) == shuffled.count(two[0, 0])


def test_an_abstaining_teacher_changes_nothing():
    rng = np.random.default_rng(4)
    label_maps = rng.integers(0, 5, (5, 9, 9)).astype(np.uint8)
    silent = np.full((1, 9, 9), 255, np.uint8)
    expected = majority(label_maps, 5)
    for position in range(6):
        more = np.insert(label_maps, position, silent, axis=0)
        np.testing.assert_array_equal(majority(more, 5), expected)


def test_majority_refuses():
    with pytest.raises(ValueError, match="at most 255 teachers"):
        majority(np.zeros((256, 1, 1), np.uint8), 1)
    with pytest.raises(ValueError, match="holds the value 7"):
        majority(np.full((2, 1, 1), 7, np.uint8), 7)
    with pytest.raises(ValueError, match="1 to 254"):
        majority(np.zeros((1, 1, 1), np.uint8), 255)
    maps = np.zeros((2, 1, 1), np.uint8)
    with pytest.raises(TypeError, match="weights must hold integers, got float64"):
        majority(maps, 1, weights=np.array([0.5, 0.5]))
    for weights in ([1], [0, 1], [-1, 3], [2**31, 2**31]):
        with pytest.raises(ValueError, match=r"weights must be \(2,\) positive integers"):
            majority(maps, 1, weights=np.array(weights))


@pytest.mark.parametrize("teachers", [1, 3, 4, 5])
@pytest.mark.parametrize("position", [0, -1])
def test_an_illegal_label_is_found_wherever_it_is(teachers, position):
    for value in (5, 200, 253, 254):
        label_maps = np.zeros((teachers, 9, 71), np.uint8)
        label_maps[position, position, position] = value
        with pytest.raises(ValueError, match=f"holds the value {value}"):
            majority(label_maps, 5)
        with pytest.raises(ValueError, match=f"holds the value {value}"):
            channel_wise(label_maps, np.zeros(5, np.intp), **RULES)
