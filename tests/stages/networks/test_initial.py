"""First weights: into a part of a network, from a part of a file, with or without the head."""

import re
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn
from worlds import TINY, segformer

from ensdistill.data.classes import TABLES
from ensdistill.pipeline.errors import DataError
from ensdistill.stages.experiment.schema import Init, Student
from ensdistill.stages.graph import load
from ensdistill.stages.local import Factory, Learning
from ensdistill.stages.networks.fitting import Way, advice, beginnings
from ensdistill.stages.networks.initial import describe_initial, initial_network
from ensdistill.stages.networks.state_dicts import below
from ensdistill.stages.networks.students import build_student, hf_segmentation
from ensdistill.stages.training.optimizers import build_optimizer

CLASSES = TABLES["camvid11"]
CODE = '''
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, i, o):
        super().__init__()
        self.conv1 = nn.Conv2d(i, o, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(o)

    def forward(self, x):
        return self.bn1(self.conv1(x)).relu()


class Encoder(nn.Module):
    """Named as the ResNets of torchvision are."""

    def __init__(self, depth=2, fc=None):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 7, 4, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.layer1 = nn.Sequential(*[Block(4, 4) for _ in range(depth)])
        self.layer2 = nn.Sequential(Block(4, 8), *[Block(8, 8) for _ in range(depth - 1)])
        if fc is not None:
            self.fc = nn.Linear(8, fc)

    def forward(self, x):
        return self.layer2(self.layer1(self.bn1(self.conv1(x)).relu()))


class Net(nn.Module):
    def __init__(self, encoder, decoder, head, classes, depth, aux):
        super().__init__()
        self.names = encoder, decoder, head
        self.add_module(encoder, Encoder(depth))
        self.add_module(decoder, nn.ModuleList([Block(8, 6), Block(6, 6)]))
        self.add_module(head, nn.Sequential(nn.Conv2d(6, classes, 1)))
        if aux is not None:
            self.add_module(aux, nn.Sequential(nn.Conv2d(8, classes, 1)))

    def forward(self, x):
        encoder, decoder, head = (getattr(self, name) for name in self.names)
        x = encoder(x)
        for block in decoder:
            x = block(x)
        return head(x)


class Wrapper(nn.Module):
    def __init__(self, net, name):
        super().__init__()
        self.name = name
        self.add_module(name, net)

    def forward(self, x):
        return getattr(self, self.name)(x)


def build(
    encoder="encoder", decoder="decoder", head="segmentation_head", classes=11, depth=2,
    wrapped=None, aux=None
):
    net = Net(encoder, decoder, head, classes, depth, aux)
    return net if wrapped is None else Wrapper(net, wrapped)
'''
code = {}
exec(CODE, code)  # the same classes here, to write checkpoints of them
Encoder, build = code["Encoder"], code["build"]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("code")
    (folder / "nets.py").write_text(CODE)
    return folder


def local_of(**more):
    runtime = {"device": "cpu", "workers": 0, "threads": 1, "checkpoint_every": 1}
    return Learning(pictures=(), classes=CLASSES, digests={}, keep_checkpoints=1, **runtime, **more)


def initial(root, tensors, init=None, patterns=None, **kwargs):
    """Return a network's tensors with first weights and without, and the report."""
    torch.save(tensors, root / "init.pth")
    recipe = {"network": {"factory": "nets:build"}, "seed": 3, "crop": [16, 16]}
    factory = Factory(root, "nets:build", kwargs)
    fresh, _ = initial_network(recipe, local_of(factory=factory))
    if init:  # as it enters a recipe
        given = Init(file="f", **init).model_dump(exclude={"file"}, exclude_defaults=True)
        recipe["init"] = {"file": "digest", **given}
    if patterns is not None:
        recipe["head"] = patterns
    network, report = initial_network(recipe, local_of(factory=factory, init=root / "init.pth"))
    return network.state_dict(), fresh.state_dict(), report


def refused(*arguments, **kwargs):
    with pytest.raises(DataError) as error:
        initial(*arguments, **kwargs)
    return str(error.value)


def advised(text):
    """Return the settings that a refusal names."""
    found = [yaml.safe_load(each) for each in re.findall(r"`((?:init|head): [{[].*?[}\]])`", text)]
    for each in found:
        each.get("init", {}).pop("file", None)
    return found


def under(prefix, module):
    return {prefix + name: tensor for name, tensor in module.state_dict().items()}


def holds(own, begin, source):
    """Whether the tensors whose names begin so are those of a module."""
    tensors = source.state_dict()
    found = {n.removeprefix(begin): t for n, t in own.items() if n.startswith(begin)}
    return found.keys() == tensors.keys() and all(torch.equal(found[n], tensors[n]) for n in found)


# --- what is loaded --------------------------------------------------------------------------


@settings(max_examples=25, derandomize=True, deadline=None)
@given(
    encoder=st.sampled_from(["encoder", "backbone", "features.0"]),
    wrapped=st.sampled_from([None, "net", "model"]),
    saved=st.sampled_from(["", "module.", "model.", "module.model.", "_orig_mod."]),
    prefix=st.sampled_from(["", "encoder_q.", "net.backbone."]),
    as_saved=st.booleans(),
)
def test_an_encoder_goes_where_it_belongs(root, encoder, wrapped, saved, prefix, as_saved):
    """And all else stays, whether the settings name the prefixes of wrappers or not."""
    source, name = Encoder(fc=5), encoder.split(".")[0]
    tensors = under(saved + prefix, source) | {"more.weight": torch.ones(2)}
    strip = saved * as_saved + prefix
    into = name if wrapped is None or (wrapped == "model" and not as_saved) else f"{wrapped}.{name}"
    init = {"into": into} | ({"strip": strip} if strip else {})
    own, fresh, report = initial(root, tensors, init, encoder=name, wrapped=wrapped)
    begin = f"{name}." if wrapped is None else f"{wrapped}.{name}."
    del source.fc
    assert holds(own, begin, source)
    assert report["loaded"] == len(source.state_dict())
    others = [n for n in own if not n.startswith(begin)]
    assert others and all(torch.equal(own[n], fresh[n]) for n in others)
    assert {n.split(".")[-2] for n in report["unexpected"]} == {"fc", "more"}
    assert report["left"][0].endswith("decoder.0.conv1.weight")


def test_what_is_below_a_prefix():
    names = ["module.encoder_q.conv.weight", "module.encoder_k.conv.weight", "module.queue"]
    assert below(names, "module.encoder_q.") == {names[0]: "conv.weight"}
    assert below(names, "encoder_k.") == {names[1]: "conv.weight"}
    assert list(below(names, "module.").values()) == [n.removeprefix("module.") for n in names]
    assert below(names, "queu.") == below(names, "conv.") == {}
    # it was saved without a wrapper, or nothing but a wrapper is to go
    assert below(["encoder.weight"], "module.encoder.") == {"encoder.weight": "weight"}
    assert below(["conv.weight", "bias"], "module.") == {
        "conv.weight": "conv.weight",
        "bias": "bias",
    }
    # a module of that name, and no wrapper
    assert below(["model.a", "decoder.b"], "model.") == {"model.a": "a"}


def test_networks_beside_each_other_in_a_checkpoint_are_told_apart(root):
    one, two = Encoder(), Encoder()
    content = {"student": under("module.backbone.", one), "teacher": under("backbone.", two)}
    content |= {"epoch": 3, "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "lr": 0.1}}
    for strip, source in (("student.module.backbone", one), ("teacher.backbone.", two)):
        own, _, report = initial(root, content, {"into": "encoder", "strip": strip})
        assert holds(own, "encoder.", source)
        assert report["unexpected"][-1] == f"and {len(source.state_dict()) - 4} more"


def test_a_head_is_loaded_where_it_is_kept(root):
    source = build()
    own, _, report = initial(root, source.state_dict(), {"head": "keep"})
    assert holds(own, "", source)
    assert (report["loaded"], report["head"]) == (len(own), [])
    own, fresh, report = initial(root, source.state_dict())
    heads = ["segmentation_head.0.weight", "segmentation_head.0.bias"]
    assert (report["loaded"], report["head"]) == (len(own) - 2, heads)
    assert all(torch.equal(own[name], fresh[name]) for name in heads)


def test_the_head_is_what_its_patterns_say(root):
    source, names = build(decoder="up", head="out", classes=7), {"decoder": "up", "head": "out"}
    own, fresh, report = initial(root, source.state_dict(), None, ["out.*", "up.1.*"], **names)
    for name, tensor in own.items():
        anew = name.startswith(("out.", "up.1."))
        assert torch.equal(tensor, fresh[name] if anew else source.state_dict()[name])
    assert report["head"][0] == "up.1.conv1.weight"
    # the usual names are none any more
    text = refused(root, build(classes=7).state_dict(), None, ["decoder.*"])
    assert "segmentation_head.0.weight is [7, 6, 1, 1] there and [11, 6, 1, 1] here" in text


def test_a_network_without_a_head_is_loaded_whole_and_says_so(root):
    source = build(head="out")
    own, _, report = initial(root, source.state_dict(), head="out")
    assert holds(own, "", source)
    text = describe_initial(report, local_of(init=root / "init.pth"))
    assert text == (
        f"{len(own)} tensors of {root}/init.pth; none was made anew, as none of its names is in "
        "the head (`head:` says which)"
    )


def test_what_was_left_is_said(root):
    _, _, report = initial(root, Encoder(fc=5).state_dict(), {"into": "encoder"})
    text = describe_initial(report, local_of(init=root / "init.pth"))
    assert "made anew in the head: segmentation_head.0.weight, segmentation_head.0.bias" in text
    assert "left as they were made: decoder.0.conv1.weight" in text
    assert text.endswith("not used of that file: fc.weight, fc.bias")


def test_the_body_of_a_folder_comes_from_a_checkpoint_under_any_prefix(tmp_path):
    from transformers import SegformerForSemanticSegmentation as Segformer

    folder = segformer(tmp_path / "network", classes=7)
    source = Segformer.from_pretrained(folder).segformer
    torch.save(under("backbone.", source) | {"head.weight": torch.ones(2)}, tmp_path / "init.pth")
    recipe = {"network": {"config.json": "digest"}, "seed": 3, "crop": [64, 96]}
    local = local_of(network=folder, init=tmp_path / "init.pth")
    with pytest.raises(DataError) as error:
        initial_network(recipe, local)
    [way] = advised(str(error.value))
    assert way == {"init": {"into": "segformer", "strip": "backbone"}}
    recipe["init"] = {"into": "segformer.", "strip": "backbone."}
    network, report = initial_network(recipe, local)
    assert holds(network.state_dict(), "model.segformer.", source)
    assert report["unexpected"] == ["head.weight"]


def test_a_head_of_a_folder_is_kept_with_a_checkpoint_of_as_many_classes(tmp_path):
    folder = segformer(tmp_path / "network", classes=len(CLASSES))
    weights = load_file(folder / "model.safetensors")
    torch.save(weights, tmp_path / "init.pth")
    recipe = {"network": {"config.json": "digest"}, "seed": 3, "crop": [64, 96]}
    local = local_of(network=folder, init=tmp_path / "init.pth")
    network, report = initial_network(recipe | {"init": {"head": "keep"}}, local)
    whole = hf_segmentation(folder, len(CLASSES))
    assert report["head"] == [] and report["loaded"] == len(whole.state_dict())
    assert holds(network.state_dict(), "", whole)


def test_a_folder_whose_head_has_other_names_is_loaded_by_its_patterns(tmp_path):
    """Its weights of the head need not fit; of the body they do."""
    folder = segformer(tmp_path / "network", classes=7)
    recipe = {"network": {"config.json": "digest"}, "seed": 3, "crop": [64, 96]}
    recipe["head"] = ["decode_head.classifier.*"]
    _, report = initial_network(recipe, local_of(network=folder))
    assert len(report["head"]) == 2
    recipe["head"] = ["segformer.*"]
    with pytest.raises(DataError, match=r"network: .*decode_head\.classifier.* there and"):
        initial_network(recipe, local_of(network=folder))


# --- what cannot be meant --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("init", "patterns", "words"),
    [
        ({"into": "encodr"}, None, ["init.into: no tensor of the network begins with encodr."]),
        ({"into": "encodr"}, None, ["they begin with encoder.*, decoder.*, segmentation_head.*"]),
        ({"strip": "modul."}, None, ["init.strip: no tensor of", "begins with modul.; they begin"]),
        (
            {"into": "encoder", "head": "keep"},
            None,
            ["init.head: there is none to keep", "encoder."],
        ),
        ({"into": "segmentation_head"}, None, ["init: all that it could load is in the head"]),
        (None, ["*"], ["init: all that it could load is in the head", "head: keep"]),
        (
            None,
            ["segmentation_head.*", "decodr.*"],
            ["head: 'decodr.*' fits no name of the network; they begin with encoder.*, decoder.*"],
        ),
        (None, ["Decoder.*"], ["head: 'Decoder.*' fits no name"]),
        ({"strip": "more"}, None, ["init: ", "holds x.weight twice, under different prefixes"]),
    ],
)
def test_what_reaches_nothing_is_refused(root, init, patterns, words):
    more = {"more.x.weight": torch.zeros(1), "more.model.x.weight": torch.zeros(1)}
    text = refused(root, build().state_dict() | more, init, patterns)
    assert all(word in text for word in words)
    assert text.startswith(("init", "head"))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            {"init": 3},
            "student.init: expected a file, or {file: FILE, into: NAME, ...}, imagenet or none",
        ),
        ({"init": {"into": "encoder"}}, "the key 'student.init.file' is missing"),
        ({"init": {"file": "f", "inot": "e"}}, "'student.init.inot'; did you mean 'into'?"),
        ({"init": {"file": "f", "into": "."}}, "student.init.into: expected what names begin with"),
        ({"init": {"file": "f", "head": "old"}}, "student.init.head: expected 'new' or 'keep'"),
        ({"init": {"file": "nowhere.pth"}}, "student.init: "),
        ({"head": []}, "student.head"),
        ({"head": "decoder.*"}, "student.head"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(world, given, words):
    world.settings["student"] |= given
    world.write()
    assert words in world.refuse("status")


# --- the way that a refusal names ------------------------------------------------------------


@settings(max_examples=25, derandomize=True, deadline=None)
@given(
    encoder=st.sampled_from(["encoder", "backbone"]),
    wrapped=st.sampled_from([None, "net", "model"]),
    saved=st.sampled_from(["", "module.", "_orig_mod.model."]),
    prefix=st.sampled_from(["", "encoder_q.", "net.backbone.", "teacher.0.", "encoder."]),
    more=st.booleans(),
)
def test_the_way_that_is_named_loads_the_encoder(root, encoder, wrapped, saved, prefix, more):
    source = Encoder()
    tensors = under(saved + prefix, source)
    if more:  # the rest of a whole checkpoint
        tensors |= under(f"{saved}classifier.", nn.Conv2d(8, 7, 1)) | {"queue": torch.ones(9, 9)}
    names = {"encoder": encoder, "wrapped": wrapped}
    text = refused(root, tensors, **names)
    assert f"{len(source.state_dict())} tensors, of the file's {len(tensors)}, fit by" in text
    way = advised(text)[-1]  # with fewer tensors to find it might be the head that is in the way
    own, _, _ = initial(root, tensors, way["init"], **names)
    begin = f"{encoder}." if wrapped is None else f"{wrapped}.{encoder}."
    assert holds(own, begin, source)


@pytest.mark.parametrize(
    ("file", "network", "ways"),
    [
        # ResNet of torchvision into networks named as those of segmentation_models_pytorch,
        # mmsegmentation and, with its encoders, of timm
        (lambda: under("", Encoder(fc=5)), {}, [{"init": {"into": "encoder"}}]),
        (
            lambda: under("", Encoder(fc=5)),
            {"encoder": "backbone", "decoder": "neck", "head": "decode_head"},
            [{"init": {"into": "backbone"}}],
        ),
        # MoCo: either of two
        (
            lambda: {
                "state_dict": under("module.encoder_q.", Encoder(fc=5))
                | under("module.encoder_k.", Encoder(fc=5))
                | {"module.queue": torch.zeros(8, 9)}
            },
            {"encoder": "backbone"},
            [
                {"init": {"into": "backbone", "strip": "encoder_q"}},
                {"init": {"into": "backbone", "strip": "encoder_k"}},
            ],
        ),
        # DINO
        (
            lambda: {
                "student": under("module.backbone.", Encoder()),
                "teacher": under("backbone.", Encoder()),
            },
            {},
            [
                {"init": {"into": "encoder", "strip": "student.module.backbone"}},
                {"init": {"into": "encoder", "strip": "teacher.backbone"}},
            ],
        ),
        # a DeepLab's backbone, beside its classifier
        (
            lambda: under("backbone.", Encoder()) | under("classifier.", nn.Conv2d(8, 7, 1)),
            {},
            [{"init": {"into": "encoder", "strip": "backbone"}}],
        ),
        (
            lambda: under("backbone.", Encoder()) | under("classifier.", nn.Conv2d(8, 7, 1)),
            {"encoder": "backbone", "head": "classifier"},
            [{"init": {"into": "backbone", "strip": "backbone"}}],
        ),
        # a network of ours with other classes, whose head is not called so
        (lambda: under("", build(head="out", classes=7)), {"head": "out"}, [{"head": ["out.*"]}]),
        (
            lambda: under("net.", build(head="out", classes=7)),
            {"head": "out"},
            [{"init": {"strip": "net"}}, {"head": ["out.*"]}],
        ),
        (
            lambda: under("", build(aux="aux_classifier", classes=7)),
            {"aux": "aux_classifier"},
            [{"head": ["segmentation_head.*", "aux_classifier.*"]}],
        ),
        (
            lambda: under("", build(decoder="up", head="out", classes=7)),
            {"decoder": "fpn", "head": "final"},
            [
                {"head": ["fpn.*", "final.*"]},
                {"init": {"into": "encoder", "strip": "encoder"}},
            ],
        ),
        # a whole checkpoint of other classes is to keep its head
        # nothing that would help
        (lambda: {"a": torch.zeros(1)}, {}, []),
        (lambda: under("", Encoder(depth=1)), {"depth": 3}, [{"init": {"into": "encoder"}}]),
        (
            lambda: under("", build()) | {"encoder.conv1.weight": torch.zeros(4, 1, 7, 7)},
            {},
            [],
        ),
        (lambda: under("", nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 8, 3))), {}, []),
    ],
)
def test_a_refusal_names_the_ways_there_are(root, file, network, ways):
    text = refused(root, file(), **network)
    assert advised(text) == ways
    assert ("Give the weights" in text or "give the weights" in text) is (
        ways == [] or network == {"depth": 3}
    )


def test_the_way_that_is_named_loads_what_it_says(root):
    tensors, names = under("net.", build(head="out", classes=7)), {"head": "out"}
    init, head = advised(refused(root, tensors, **names))
    own, _, report = initial(root, tensors, init["init"], head["head"], **names)
    assert report["head"] == ["out.0.weight", "out.0.bias"]
    assert report["loaded"] == len(own) - 2


def test_of_one_tensor_of_another_shape_no_smaller_part_is_advised():
    """It is the cause, and the most that can be loaded goes where it was to go."""
    stages = OrderedDict(
        (f"l{k}", nn.Sequential(nn.Conv2d(i, 4, 3), nn.Conv2d(4, 4, 3)))
        for k, i in ((1, 3), (2, 4), (3, 4))
    )
    network = nn.ModuleDict({"encoder": nn.Sequential(stages), "head": nn.Conv2d(4, 11, 1)})
    tensors = under("", network["encoder"]) | {"l3.0.weight": torch.zeros(4, 2, 3, 3)}
    text = advice(network, tensors, Path("weights.pth"), Way(into="encoder."), 11)
    assert text == "11 of 12 fit; give the weights of this network, or no `init`"


def test_a_head_of_other_classes_cannot_be_kept(root):
    text = refused(root, build(classes=7).state_dict(), {"head": "keep"})
    assert "segmentation_head.0.weight is [7, 6, 1, 1] there and [11, 6, 1, 1] here" in text
    assert advised(text) == [{"init": {}}]


def test_a_refusal_without_a_head_says_so(root):
    text = refused(root, build(head="out", classes=7).state_dict(), head="out")
    assert "none of its names is in the head, so that all have to be" in text
    assert "is in the head" not in refused(root, {"a": torch.zeros(1)})


def test_patterns_of_modules_begin_where_names_differ():
    assert beginnings(["encoder.a.weight", "encoder.b", "decoder.a"]) == ["encoder.*", "decoder.*"]
    assert beginnings(["net.encoder.a", "model.net.decoder.b"]) == [
        "net.encoder.*",
        "net.decoder.*",
    ]
    assert beginnings(["scale", "conv.weight"]) == ["scale", "conv.*"]
    assert beginnings(["conv.weight", "conv.bias"]) == ["conv.weight", "conv.bias"]
    assert beginnings(["conv.weight"]) == ["conv.weight"]


# --- the head's own rate ---------------------------------------------------------------------

SGD = {"optimizer": "sgd", "lr": 1.0, "momentum": 0, "nesterov": False, "weight_decay": 0}


def test_the_head_has_its_rate_by_its_patterns():
    network = build(head="out")
    recipe = SGD | {"head_lr_factor": 10.0, "head": ["out.*", "decoder.1.bn1.*"]}
    groups = build_optimizer(network, recipe).param_groups
    of_head = {id(p) for p in groups[1]["params"]}
    for name, parameter in network.named_parameters():
        assert (id(parameter) in of_head) is name.startswith(("out.", "decoder.1.bn1."))
    assert [g["lr_factor"] for g in groups] == [1.0, 10.0]
    assert len(groups[0]["params"]) + len(of_head) == len(list(network.parameters()))


def test_a_rate_that_reaches_no_tensor_is_refused():
    network = build(head="out", wrapped="net")
    words = (
        "head_lr_factor: 0.1 reaches no tensor, as no weight that is trained is in the head. Their "
        "names begin with net.encoder.*, net.decoder.*, net.out.*; say which are the head, such as "
        '`head: ["net.out.*"]`'
    )
    with pytest.raises(DataError) as error:
        build_optimizer(network, SGD | {"head_lr_factor": 0.1})
    assert str(error.value) == words
    build_optimizer(network, SGD | {"head_lr_factor": 1.0})
    build_optimizer(network, SGD | {"head_lr_factor": 0.1, "head": ["net.out.*"]})
    network.net.out.requires_grad_(False)
    with pytest.raises(DataError, match="head_lr_factor:"):
        build_optimizer(network, SGD | {"head_lr_factor": 0.1, "head": ["net.out.*"]})


@pytest.mark.parametrize("name", ["tiny", "mobilenetv2-deeplabv3plus"])
def test_a_rate_reaches_the_head_of_networks_of_ours(name):
    build_optimizer(build_student(name, 5, None, 0), SGD | {"head_lr_factor": 10.0})


# --- by the command line ---------------------------------------------------------------------


def student_world(world, **settings):
    (world.root / "repo").mkdir()
    (world.root / "repo" / "nets.py").write_text(CODE)
    network = {"factory": "nets:build", "root": "repo", "kwargs": {"classes": 19, "head": "out"}}
    world.settings["student"] = TINY | {"trust": "code", "network": network} | settings
    world.settings["fusion"] = {"method": "majority"}
    world.write()


@pytest.mark.slow
def test_a_student_begins_with_an_encoder_and_its_head_has_its_rate(world):
    """Its body is left where it began, and its head moves."""
    torch.save(under("module.", Encoder(fc=3)), world.root / "resnet.pth")
    student_world(
        world,
        init={"file": "resnet.pth", "into": "encoder", "strip": "module."},
        head=["out.*"],
        steps=1,
        lr=1e-9,
        head_lr_factor=1e12,
        weight_decay=0,
    )
    source = Encoder().state_dict()
    loaded = torch.load(world.root / "resnet.pth", weights_only=True)
    world.call("train-student", "--upstream")
    student = world.artifact("student")
    assert student.manifest.result["init"]["loaded"] == len(source)
    found = load_file(student.path / "model.safetensors")
    weights = [n for n in source if "running" not in n and "num_batches" not in n]
    for name in weights:
        torch.testing.assert_close(found[f"encoder.{name}"], loaded[f"module.{name}"])
    assert found["out.0.weight"].abs().min() > 100  # a step of 1000, from below 1
    assert found["decoder.0.conv1.weight"].abs().max() < 1
    world.settings["student"]["init"]["into"] = "encoder."
    world.write()
    assert world.states()["student"] == "fresh"
    del world.settings["student"]["head"], world.settings["student"]["head_lr_factor"]
    world.write()
    assert world.states()["student"] == "stale"


def test_a_training_refuses_a_rate_that_reaches_nothing(world):
    student_world(world, head_lr_factor=10.0)
    text = world.refuse("train-student", "--upstream")
    assert "student.head_lr_factor: 10 reaches no tensor" in text and '`head: ["out.*"]`' in text


def test_what_is_written_about_first_weights_is_what_settings_take(repository):
    text = (repository / "stages/networks/FACTORIES.md").read_text().partition("## To be")[2]
    entry = yaml.safe_load(text.partition("```yaml\n")[2].partition("```")[0])
    student = Student.model_validate(entry["student"])
    assert student.init.into == "encoder." and student.head_lr_factor == 10
    header, *written = [yaml.safe_load(t) for t in re.findall(r"\| `([^`]*)` \|\n", text)]
    assert header == "init" and len(written) == 7
    for init in written:
        Student(init=init)


def test_the_file_of_first_weights_is_kept_by_gc(world):
    """It may lie in a workspace, whichever way it is written."""
    student_world(world, init={"file": "work/student/x/model.safetensors", "into": "encoder"})
    named = load(world.file).named_paths()
    assert world.root / "work/student/x/model.safetensors" in [Path(p) for p in named]
