"""What a network answers, and which tensor of it is read."""

from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from ensdistill.data.decoded import Pixels
from ensdistill.pipeline.errors import DataError
from ensdistill.stages.networks.answers import Reading, joined, misshapen, tensors_in

C = 5
SCORES = torch.arange(C * 8.0).reshape(1, C, 2, 4)
AUX = SCORES.flip(1)
FEATURES = torch.zeros(1, 16, 2, 4)
FLAT = torch.zeros(1, C)
IDS = torch.ones(1, 2, 4, dtype=torch.int64)
Pair = namedtuple("Pair", ["aux", "main"])


@dataclass
class Output:
    aux: object
    main: object


@dataclass(slots=True)
class Slotted:
    aux: object
    main: object


def read(answer, count=1, **more):
    return Reading(**({"classes": C} | more)).read(answer, count)


# --- what there is ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "names"),
    [
        (SCORES, [""]),
        ((AUX, SCORES), ["0", "1"]),
        ([SCORES, [AUX, {"x": AUX}]], ["0", "1/0", "1/1/x"]),
        (OrderedDict(aux=[AUX], out=SCORES), ["aux/0", "out"]),
        (Pair(AUX, (SCORES, None)), ["aux", "main/0"]),
        (Output(AUX, {"out": SCORES}), ["aux", "main/out"]),
        (Slotted(AUX, SCORES), ["aux", "main"]),
        (SimpleNamespace(logits=SCORES, loss=None), ["logits"]),
        (({3: SCORES}, "text", 7, None), ["0/3"]),
        (torch.nn.Conv2d(3, C, 1), []),
        (None, []),
        ((), []),
    ],
)
def test_containers_are_looked_through(answer, names):
    assert [name for name, _ in tensors_in(answer)] == names


def test_what_holds_itself_ends():
    loop = [SCORES]
    loop.append(loop)
    assert [name for name, _ in tensors_in(loop)] == ["0"]
    assert read(loop) is SCORES


# --- the only one that can be meant -----------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        SCORES,
        [SCORES],
        {"loss": FLAT, "out": SCORES, "ids": IDS},
        (FEATURES, SCORES),  # another number of channels than was declared
        (SCORES, [FEATURES, FLAT]),
        Output(FLAT, (None, SCORES)),
        {"out": SCORES, "main": SCORES},  # one tensor by two names
    ],
)
def test_the_only_scores_are_read(answer):
    assert read(answer) is SCORES


def test_channels_that_are_no_classes_are_declared_too():
    assert read((SCORES, FEATURES), classes=C - 1, void=(0,)) is SCORES
    assert read((SCORES, FEATURES), classes=14, void=(0, 15)) is FEATURES


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32, torch.uint16, torch.bool])
def test_the_only_ids_are_read_whatever_whole_numbers_they_are(dtype):
    ids = IDS.to(dtype)
    for answer in (ids, {"scores": SCORES, "ids": ids}, [ids[:, None], FLAT]):
        found = read(answer, output="ids")
        assert found.dtype == torch.int64 and torch.equal(found, IDS)


# --- several ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "names"),
    [
        ((AUX, SCORES), ["0", "1"]),
        ({"aux": AUX, "out": SCORES}, ["aux", "out"]),  # no name is a contract
        ({"logits": SCORES, "aux_logits": AUX}, ["logits", "aux_logits"]),
        ((SCORES, [AUX, FEATURES]), ["0", "1/0"]),
        (Output(AUX, SCORES), ["aux", "main"]),
        ([AUX, torch.zeros(1, C, 7, 3)], ["0", "1"]),
    ],
)
def test_of_several_none_is_taken_in_silence(answer, names):
    with pytest.raises(DataError) as refused:
        read(answer)
    text = str(refused.value)
    assert "several outputs that could be its logits" in text
    tensors = dict(tensors_in(answer))
    for name in names:
        assert f"{name} {tuple(tensors[name].shape)}" in text and f"`take: {name}`" in text
    assert "16, 2, 4" not in text


def test_how_far_their_labels_are_apart_is_said():
    other = SCORES.clone()
    other[..., :1] = 0  # one column of four
    other[:, 0, :, 0] = 1
    with pytest.raises(
        DataError, match=r"1 \(1, 5, 2, 4\) \(other labels than 0 on 25\.0 % of the"
    ):
        read((SCORES, other))
    large = functional.interpolate(SCORES, scale_factor=3.0)
    with pytest.raises(DataError, match=r"other labels than 0 on 0\.0 % of the pixels"):
        read((SCORES, large))
    with pytest.raises(DataError, match=r"its ids: 0 int64 .*than 0 on 100\.0 %.*`take: 1`$"):
        read((IDS, IDS + 1), output="ids")


def test_of_several_that_do_not_fit_either_both_is_said():
    with pytest.raises(DataError, match=r"none of the declared 5 channels: 0 \(1, 16, .* 1 \(1, 7"):
        read((FEATURES, torch.zeros(1, 7, 2, 4)))


@pytest.mark.parametrize("shape", [(3, C, 2, 4), (1, C, 0, 4), (0, C, 2, 4)])
def test_what_has_no_pixels_in_common_is_listed_all_the_same(shape):
    with pytest.raises(DataError) as refused:
        read((SCORES, torch.zeros(shape)))
    assert f"1 {shape}. Say" in str(refused.value)


def test_names_are_shown_as_the_file_has_them():
    with pytest.raises(
        DataError, match=r'`take: "a b"` or `take: out/0`; .* \{"a b": 0\.5, out/0: 1}'
    ):
        read({"a b": AUX, "out": [SCORES]})


def test_many_are_listed_in_part():
    with pytest.raises(DataError, match=r"7 \(1, 5, 2, 4\) .*, and 93 more"):
        read([SCORES + k for k in range(101)])


# --- take ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "take"),
    [
        ((AUX, SCORES), "1"),
        ({"aux": AUX, "out": SCORES}, "out"),
        ({"aux": AUX, "out": SCORES}, "1"),  # by position
        ({"1": SCORES, "0": AUX}, "1"),  # a name goes before
        ((AUX, [AUX, SCORES]), "1/1"),
        ({"aux": AUX, "main": [SCORES, FLAT]}, "main"),  # the only one that can be meant in it
        ({"aux": AUX, "main": [SCORES, FLAT]}, "1/0"),
        ({"a/b": SCORES, "a": {"c": AUX}}, "a/b"),
        ({"a": {"c": AUX}, "a/b": {"d": SCORES}}, "a/b/d"),
        (Output(AUX, SCORES), "main"),
        ({"/head/Conv_output_0": SCORES, "x": AUX}, "/head/Conv_output_0"),
    ],
)
def test_what_is_named_is_taken(answer, take):
    assert read(answer, take=take) is SCORES


@pytest.mark.parametrize(
    ("answer", "take", "words"),
    [
        ((AUX, SCORES), "2", r"`take` names 2, and the network returned 0 \(1, 5, 2, 4\), 1 "),
        ({"aux": AUX}, "out", r"names out, and the network returned aux \(1"),
        (SCORES, "0", r"one tensor alone, \(1, 5, 2, 4\): leave `take` out"),
        (None, "out", "names out, and the network returned NoneType"),
        ((AUX, [AUX, SCORES]), "1", r"several outputs .*: 1/0 .*, 1/1 .*`take: 1/0` or `take: 1/1"),
        ((SCORES, FLAT), "1", r"returned 1 \(1, 5\); expected .* a classifier"),
        ((SCORES, IDS), "1", r"returned 1 int64 \(1, 2, 4\); .*`output: ids`"),
        ((SCORES, FEATURES), "1", "16 channels, the declared table 5 classes"),
        ((AUX, SCORES), {"0": 1.0, "2": 1.0}, "`take` names 2"),
        ((AUX, FLAT), {"0": 1.0, "1": 1.0}, r"returned 1 \(1, 5\)"),
    ],
)
def test_what_cannot_be_taken_is_refused_with_what_there_is(answer, take, words):
    with pytest.raises(DataError, match=words):
        read(answer, take=take)


@pytest.mark.parametrize("align_corners", [False, True])
def test_a_weighted_sum_is_of_scores_resized_to_the_largest(align_corners):
    torch.manual_seed(0)
    one, two, three = torch.randn(2, C, 4, 6), torch.randn(2, C, 9, 6), torch.randn(2, C, 9, 13)
    reading = Reading(classes=C, take={"0": 0.5, "aux/0": -1.0, "aux/1": 2.0})
    found = reading.read({"x": one, "aux": [two, three]}, 2, align_corners=align_corners)
    for image in range(2):
        expected = torch.zeros(C, 9, 13)
        for weight, scores in ((0.5, one), (-1.0, two), (2.0, three)):
            expected += weight * functional.interpolate(
                scores[image][None], (9, 13), mode="bilinear", align_corners=align_corners
            ).squeeze(0)
        torch.testing.assert_close(found[image], expected)


def test_a_sum_does_not_depend_on_the_order_of_its_weights():
    torch.manual_seed(0)
    answer = list(torch.randn(3, 1, C, 4, 4).half())
    takes = {"0": 0.1, "1": 0.7, "2": 1.3}
    found = [read(answer, take=dict(order)) for order in (takes.items(), [*takes.items()][::-1])]
    assert found[0].dtype == torch.float32
    assert torch.equal(*found)


def test_a_sum_of_other_channels_is_refused():
    with pytest.raises(DataError, match="sums outputs of 5 and 16 channels"):
        read((SCORES, FEATURES), classes=None, take={"0": 1.0, "1": 1.0})


@st.composite
def answers(draw):
    """Nested containers of tensors of which each is of its own value, and how to find them."""
    leaves = st.sampled_from(["scores", "features", "flat", "none"])
    tree = draw(
        st.recursive(
            leaves,
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.lists(inner, max_size=3).map(tuple)
                | st.dictionaries(st.sampled_from("abc01"), inner, max_size=3)
            ),
            max_leaves=8,
        )
    )
    made = []

    def build(node):
        if isinstance(node, dict):
            return {k: build(v) for k, v in node.items()}
        if isinstance(node, (list, tuple)):
            return type(node)(build(v) for v in node)
        if node == "none":
            return None
        shape = {"scores": (1, C, 2, 2), "features": (1, C + 1, 2, 2), "flat": (1, C)}[node]
        made.append((node, torch.full(shape, float(len(made)))))
        return made[-1][1]

    return build(tree), made


@given(answers())
def test_one_that_can_be_meant_is_read_and_each_by_its_name(found):
    answer, made = found
    named = tensors_in(answer)
    assert [tensor is mine for (_, tensor), (_, mine) in zip(named, made, strict=True)] == [
        True
    ] * len(made)
    able = [tensor for kind, tensor in made if kind == "scores"]
    if len(able) == 1:
        assert read(answer) is able[0]
    else:
        with pytest.raises(DataError):
            read(answer)
    for name, tensor in named:
        if name and tensor.shape[1] == C and tensor.ndim == 4:
            assert read(answer, take=name) is tensor


@given(answers(), st.integers(2, 3))
def test_answers_to_single_images_are_joined_part_by_part(found, count):
    answer, _ = found
    parts = [map_tensors(answer, lambda tensor, k=k: tensor + 100 * k) for k in range(count)]
    whole = dict(tensors_in(joined(parts))) if not isinstance(answer, torch.Tensor) else None
    for name, tensor in tensors_in(answer):
        expected = torch.cat([tensor + 100 * k for k in range(count)])
        assert torch.equal(joined(parts) if whole is None else whole[name], expected)


def map_tensors(answer, change):
    if isinstance(answer, dict):
        return {k: map_tensors(v, change) for k, v in answer.items()}
    if isinstance(answer, (list, tuple)):
        return type(answer)(map_tensors(v, change) for v in answer)
    return answer if answer is None else change(answer)


# --- what it looks like ----------------------------------------------------------------------


GREY = torch.rand(1, 1, 2, 4) - 0.5
CASES = {
    "ids": (IDS, {}, "`output: ids`"),
    "ids with an axis": (IDS[:, None], {}, "`output: ids`"),
    "ids, channels last": (IDS[..., None], {}, "(N, h, w, 1)"),
    "ids alone": (IDS[0], {}, "keep the axis of the images"),
    "floating ids": (IDS.float(), {}, "turned into floating numbers"),
    "floating ids with an axis": (IDS[:, None].half(), {}, "turned into floating numbers"),
    "whole scores": (SCORES.int(), {}, "leave them floating"),
    "channels last": (SCORES.permute(0, 2, 3, 1), {}, "looks like (N, h, w, C): put the"),
    "channels last, void": (SCORES.permute(0, 2, 3, 1), {"classes": 4, "void": (0,)}, "permute"),
    "one image": (SCORES[0], {}, "looks like (C, h, w)"),
    "one image, channels last": (SCORES[0].permute(1, 2, 0), {}, "looks like (h, w, C)"),
    "classifier": (FLAT, {}, "a classifier of whole images"),
    "binary": (GREY, {"classes": 2}, "torch.cat([torch.zeros_like(x), x], 1)"),
    "binary without an axis": (GREY[:, 0], {"classes": 2}, "binary network"),
    "probabilities as ids": (SCORES, {"output": "ids"}, "leave `output: ids` out"),
    "floating ids as ids": (IDS.float(), {"output": "ids"}, "leave them whole"),
    "ids as ids, channels last": (IDS[..., None], {"output": "ids"}, "take the last axis"),
    "among others": ({"a": FLAT, "b": IDS}, {}, "returned a (1, 5), b int64 (1, 2, 4); expected"),
    "ids among others": ({"a": FLAT, "b": IDS}, {}, "`output: ids`"),
    "ids without one": ({"out": FLAT}, {"output": "ids"}, "whole numbers, as `output: ids` says"),
    "nothing": (None, {}, "returned NoneType; expected (N, C, h, w) logits of 5 channels"),
    "complex": (SCORES.to(torch.complex64), {}, "complex64"),
    "other classes": (FEATURES, {}, "16 channels, the declared table 5 classes"),
    "one channel": (GREY, {}, "1 channels, the declared table 5 classes"),
    "other images": (SCORES.expand(3, -1, -1, -1), {}, "(3, 5, 2, 4) for 1 images"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_has_another_form_is_named_with_the_remedy(case):
    answer, more, words = CASES[case]
    with pytest.raises(DataError) as refused:
        read(answer, **more)
    assert words in str(refused.value)


def test_the_remedy_for_a_binary_network_is_right():
    x = torch.randn(2, 1, 3, 3)
    two = torch.cat([torch.zeros_like(x), x], 1).softmax(1)
    torch.testing.assert_close(two[:, 1:], x.sigmoid())


def test_scores_of_an_unknown_number_of_classes_are_read():
    assert read(FEATURES, classes=None) is FEATURES
    assert read(GREY, classes=None) is GREY


# --- probabilities and logits ----------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_probabilities_that_are_called_logits_are_doubted(dtype):
    torch.manual_seed(0)
    logits = torch.randn(1, 19, 8, 8)
    text = Reading().doubt(logits.softmax(1).to(dtype))
    assert "sum to 1 over the classes" in text and "`output: probabilities`" in text
    text = Reading().doubt(logits.sigmoid().to(dtype))
    assert "between 0 and 1: they look like" in text
    for fine in (logits, logits.log_softmax(1), 9 * logits.softmax(1), torch.zeros(1, 2, 2, 2)):
        assert Reading().doubt(fine.to(dtype)) is None
    assert Reading("probabilities").doubt(logits.softmax(1).to(dtype)) is None


def test_a_sum_of_probabilities_that_are_called_logits_is_doubted():
    logits = torch.randn(1, 19, 8, 8, generator=torch.Generator().manual_seed(0))
    reading = Reading(take={"0": 0.5, "1": 1.0})
    text = reading.doubt(0.5 * logits.softmax(1) + logits.flip(1).softmax(1))
    assert "between 0 and 1.5 and sum to 1.5 over the classes" in text
    assert reading.doubt(0.5 * logits + logits.flip(1)) is None


def test_what_is_below_0_is_no_probability():
    with pytest.raises(DataError, match=r"goes down to -1, .*leave `output` out"):
        Reading("probabilities").doubt(torch.tensor([[-1.0, 2.0]])[..., None, None])


def test_of_what_is_not_a_number_nothing_is_said_here():
    bad = torch.full((1, 2, 2, 2), float("nan"))
    assert Reading().doubt(bad) is None and Reading("probabilities").doubt(bad) is None


def test_of_later_images_too_it_is_said_that_a_probability_is_below_0(tmp_path):
    import numpy as np
    from PIL import Image

    from ensdistill.pipeline.fingerprint import file_digest
    from ensdistill.stages.networks.frozen import FrozenNetwork
    from ensdistill.stages.networks.preprocessing import Preprocessing
    from ensdistill.stages.networks.stream import Clock, Request

    class Brightness(torch.nn.Module):
        def forward(self, images):
            return images.mean(1, keepdim=True).expand(-1, 2, -1, -1)

    batches = []
    for name, value in (("bright", 255), ("dark", 0)):
        path = tmp_path / f"{name}.png"
        Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(path)
        batches.append([Request(str(path), file_digest(path))])
    reading = Reading("probabilities")
    network = FrozenNetwork(Brightness(), Preprocessing(), torch.device("cpu"), reading)
    with pytest.raises(DataError, match=r"dark\.png is not a number, or below 0"):
        list(network.stream(batches, "labels", Pixels(), Clock(), print))


# --- shapes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("stride", [1, 2, 4, 8, 16, 32])
@given(st.integers(32, 2048), st.integers(32, 2048), st.integers(-1, 1), st.integers(-1, 1))
def test_scores_at_any_stride_lie_over_their_image(stride, height, width, down, right):
    found = (max(1, -(-height // stride) + down), max(1, width // stride + right))
    assert misshapen(found, (height, width)) is None


def test_scores_of_another_shape_are_told():
    text = misshapen((512, 512), (512, 1024))
    assert text is not None and "512x512 for an image of 512x1024" in text and "turned" not in text
    turned = misshapen((128, 64), (512, 1024))
    assert turned is not None and "It looks turned" in turned


def test_who_answers_one_image_at_a_time_is_told_how():
    for answer in (SCORES, (SCORES, AUX)):
        with pytest.raises(DataError, match=r"say `runtime: \{batch_size: 1\}`"):
            read(answer, count=2)
    with pytest.raises(DataError) as refused:
        read((SCORES, AUX))
    assert "batch_size" not in str(refused.value)


def test_an_answer_of_no_pixel_is_refused():
    with pytest.raises(DataError, match="of no pixel at all"):
        read(SCORES[..., :0])


def test_names_that_yaml_would_take_for_something_else_are_quoted():
    with pytest.raises(DataError) as refused:
        read({"on": SCORES, "a: b": AUX})
    assert '`take: "on"`' in str(refused.value) and '`take: "a: b"`' in str(refused.value)
