"""What a folder of transformers says of itself: its classes, and that it is all there is."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from worlds import network_world, segformer

from ensdistill.pipeline.errors import DataError
from ensdistill.stages.networks.folders import (
    BACKBONES,
    network_classes,
    require_own_files,
    require_own_parts,
    require_trusted_code,
    shards,
)
from ensdistill.stages.networks.students import hf_segmentation, hf_universal
from ensdistill.stages.networks.universal import hf_teacher

hf = pytest.importorskip("transformers")

INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """A SegFormer of three classes."""
    return segformer(tmp_path_factory.mktemp("three"), classes=3)


@pytest.fixture
def folder(three, tmp_path):
    return shutil.copytree(three, tmp_path / "net")


def edit(folder, **changes):
    """Change keys of its `config.json`; None takes one away."""
    config = json.loads((folder / "config.json").read_text()) | changes
    config = {k: v for k, v in config.items() if v is not None}
    (folder / "config.json").write_text(json.dumps(config))


def index(folder, *names):
    """Write an index that spreads the weights over files of those names."""
    tensors = load_file(folder / "model.safetensors")
    chosen = {key: names[k % len(names)] for k, key in enumerate(tensors)}
    text = json.dumps({"metadata": {}, "weight_map": chosen})
    (folder / INDEX).write_text(text)
    return tensors, chosen


def table(world, name, classes):
    entries = [f"{{name: {c}, colour: [{k}, 0, 0]}}" for k, c in enumerate(classes)]
    (world.root / name).write_text(f"classes: [{', '.join(entries)}]\n")


# --- weights elsewhere ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "../other.safetensors",
        "sub/other.safetensors",
        "./other.safetensors",
        "/other.safetensors",
        "ABSOLUTE",
        "..",
        "",
        ".safetensors",
        "other.bin",
        "a\\other.safetensors",
        "other.safetensors/",
        "other.safetensors\0",
        7,
        None,
    ],
)
@pytest.mark.parametrize("of", [INDEX, "own.safetensors.index.json"])
def test_shards_are_plain_names_in_the_folder(world, folder, name, of):
    other = folder.parent / "other.safetensors"
    shutil.copy(folder / "model.safetensors", other)
    index(folder, str(other) if name == "ABSOLUTE" else name)
    (folder / INDEX).rename(folder / of)
    for load in (require_own_files, hf_segmentation, hf_universal):
        with pytest.raises(DataError, match="expected safetensors files in the same folder"):
            load(folder)
    network_world(world, network={"hf": str(folder)})
    for command in ("check", "status"):
        assert f"{of}: weight_map names" in world.refuse(command)
    world.settings["teachers"] = [world.entry("a"), world.entry("b")]
    world.settings["student"]["network"] = {"hf": str(folder)}
    world.write()
    assert f"{of}: weight_map names" in world.refuse("status")


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"weight_map": 7}', '{"weight_map": {"a": ["b"]}}', "\0", "[" * 9999],
)
def test_a_damaged_index_is_refused(folder, content):
    (folder / INDEX).write_text(content)
    with pytest.raises(DataError, match=rf"{INDEX}: .*(is empty|zeros|expected|too deep|missing)"):
        shards(folder / INDEX)


def test_every_shard_is_there_and_part_of_the_key(world, folder):
    tensors, chosen = index(folder, "one.safetensors", "two.safetensors")
    (folder / "model.safetensors").unlink()
    network_world(world, network={"hf": str(folder)}, classes="three.yaml", map={"a": "road"})
    table(world, "three.yaml", "abc")
    assert "names 'one.safetensors', which is not there" in world.refuse("check")
    assert "which is not there" in world.refuse("status")
    for name in ("one.safetensors", "two.safetensors"):
        part = {k: v for k, v in tensors.items() if chosen[k] == name}
        save_file(part, folder / name, {"format": "pt"})
    world.call("check")
    world.call("infer-teacher")
    for name in ("one.safetensors", "two.safetensors"):
        before = load_file(folder / name)
        save_file({k: v + 1 for k, v in before.items()}, folder / name, {"format": "pt"})
        node = next(d for d in world.json("status", "--rehash") if d["node"] == "infer[seg]")
        assert [c["field"] for c in node["changes"]] == [f"recipe.network.{name}"]
        save_file(before, folder / name, {"format": "pt"})
    assert world.states()["infer[seg]"] == "fresh"


def test_an_index_that_is_not_used_may_list_what_is_gone(folder):
    index(folder, "gone.safetensors")  # all is in model.safetensors, which goes before
    require_own_files(folder)
    assert hf_teacher(folder, trusted=False)


# --- other things elsewhere -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"transformers_weights": "sub/w.safetensors"}, "transformers_weights names 'sub/w"),
        ({"transformers_weights": "other.safetensors"}, "rename them"),
        ({"transformers_weights": ["a"]}, "transformers_weights names"),
        ({"configuration_files": ["config.4.0.0.json"]}, "configuration_files names"),
        (
            {"model_type": "upernet", "backbone": "microsoft/resnet-50"},
            "backbone is 'microsoft/resnet-50' and there is no backbone_config",
        ),
        (
            {"model_type": "mask2former", "backbone": "../swin", "use_pretrained_backbone": True},
            "take backbone and use_pretrained_backbone away",
        ),
        ({"model_type": "detr", "backbone": "a/b", "use_timm_backbone": False}, "backbone is"),
        (
            {"model_type": "detr", "backbone": "b", "backbone_kwargs": {"out_indices": [1]}},
            "is 'b'",
        ),
        (
            {"model_type": "x", "decoder_config": [{"model_type": "dpt", "backbone": "a/b"}]},
            "backbone is 'a/b'",
        ),
    ],
)
def test_what_would_be_read_elsewhere_is_refused_by_its_key(world, folder, changes, words):
    edit(folder, **changes)
    for load in (require_own_files, hf_segmentation, hf_universal):
        with pytest.raises(DataError) as refused:
            load(folder)
        assert words in str(refused.value) and "config.json" in str(refused.value)
    network_world(world, network={"hf": str(folder)})
    assert words in world.refuse("status")


@pytest.mark.parametrize(
    "changes",
    [
        {"backbone": "mit_b0"},  # SegFormer has none: a key that nobody reads
        {"model_type": "upernet", "backbone": "a/b", "backbone_config": {"model_type": "resnet"}},
        {"model_type": "upernet", "backbone": None},
        {"model_type": "detr", "backbone": "resnet50"},  # timm's, whose weights are in the folder
        {"backbone_config": {"model_type": "timm_backbone", "backbone": "resnet50"}},
        {"transformers_weights": "model.safetensors"},
        {"configuration_files": []},
        {"model_type": ["upernet"], "backbone": "a/b"},
    ],
)
def test_what_reads_nothing_elsewhere_is_taken(folder, changes):
    edit(folder, **changes)
    require_own_files(folder)


def test_types_whose_backbone_is_looked_up_are_known():
    """All that teach and make a config of `backbone` alone, as the installed library has them."""
    from transformers.models.auto import modeling_auto
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kinds = {
        *modeling_auto.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES,
        *modeling_auto.MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING_NAMES,
    }
    parts = {kind: getattr(CONFIG_MAPPING[kind], "sub_configs_defaults", {}) for kind in kinds}
    looking = {kind for kind in kinds if "backbone_config" in parts[kind]}
    if not any(parts.values()):
        pytest.skip("this version of transformers does not say which")
    assert looking and looking <= {*BACKBONES}


def test_an_adapter_is_refused(world, folder):
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "them/theirs"}')
    for load in (require_own_files, hf_segmentation, hf_universal):
        with pytest.raises(DataError, match=r"adapter_config\.json: .*merge_and_unload"):
            load(folder)
    network_world(world, network={"hf": str(folder)})
    assert "adapter_config.json" in world.refuse("status")


@pytest.mark.parametrize("reference", ["sub/own.Config", "../own.Config", "sub\\own.Config"])
def test_modules_are_beside_the_config(folder, reference):
    edit(folder, auto_map={"AutoConfig": reference})
    with pytest.raises(DataError, match="names code in another folder"):
        require_trusted_code(folder, trusted=True)


def test_values_that_lie_too_deep_in_each_other_are_refused(folder):
    (folder / "config.json").write_text('{"a": ' * 5000 + "7" + "}" * 5000)
    with pytest.raises(DataError, match=r"config\.json: cannot be read"):
        require_own_files(folder)


# --- classes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ({"1": "a", "2": "b", "3": "c"}, "`id2label` begins at 1; expected each of 0 to 2 once"),
        ({"0": "a", "2": "b", "3": "c"}, "`id2label` lacks 1; expected each of 0 to 2 once"),
        ({"0": "a", "00": "b", "1": "c"}, "`id2label` lacks 2"),
        ({"-1": "a", "0": "b", "1": "c"}, "`id2label` lacks 2"),
        ({"a": "0", "b": "1", "c": "2"}, "`id2label` has keys that are no numbers"),
        (["a", "b", "c"], "config.json: id2label: expected a valid dictionary"),
        ({"0": "a", "1": "b"}, "has 2 classes by its `id2label`, and the weights are of a head"),
        ({str(k): "abcde"[k] for k in range(5)}, "has 5 classes by its `id2label`, and the"),
    ],
)
def test_names_that_do_not_fit_the_head_are_refused(folder, labels, words):
    edit(folder, id2label=labels)
    with pytest.raises(DataError) as refused:
        network_classes(folder, "hf", "here")
    assert words in str(refused.value) and str(refused.value).startswith("here: ")


def test_a_key_that_appears_twice_is_refused(folder):
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"id2label": {', '"id2label": {"0": "z",'))
    with pytest.raises(DataError, match="the key '0' appears twice"):
        network_classes(folder, "hf", "here")


@pytest.mark.parametrize("changes", [{"id2label": None, "num_labels": 4}, {"num_labels": 4}])
def test_another_number_of_classes_is_refused(folder, changes):
    edit(folder, **changes)
    with pytest.raises(DataError, match=r"head of 3 classes|`num_labels` is 4, and `id2label`"):
        network_classes(folder, "hf", "here")


def test_a_name_twice_is_refused_unless_it_is_no_class(world, folder):
    network_world(world, network={"hf": str(folder)}, classes="two.yaml", map={"a": "road"})
    table(world, "two.yaml", "ab")
    edit(folder, id2label={"0": "none", "1": "a", "2": "a"})
    world.settings["teachers"][0]["network"]["void_channels"] = [0]
    world.write()
    assert "has 'a' twice in `id2label`" in world.refuse("check")
    edit(folder, id2label={"0": "a", "1": "a", "2": "b"})
    world.call("check")


STAGES = [f"stage{k}" for k in (1, 2, 3, 4)]


def config_of(name):
    """Return the config of a model of seven classes."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    more = {}
    if name == "beit":
        more = {"out_indices": [1, 2, 3, 4]}
    if name in ("detr", "maskformer"):
        detr = {"use_timm_backbone": False, "backbone_config": hf.ResNetConfig(out_features=STAGES)}
        more = detr if name == "detr" else {"decoder_config": hf.DetrConfig(**detr)}
    return CONFIG_MAPPING[name](num_labels=7, **more)


@pytest.mark.parametrize(
    "name",
    [
        *("beit", "data2vec-vision", "dpt", "mobilenet_v2", "mobilevit", "mobilevitv2"),
        *("segformer", "upernet", "tipsv2_dpt"),
        *("detr", "eomt", "mask2former", "maskformer", "oneformer"),
    ],
)
def test_the_head_of_every_model_is_found_by_its_name(tmp_path, name):
    """Its shape is read from the header alone, which is all of the file that is written here."""
    semantic, universal = hf.AutoModelForSemanticSegmentation, hf.AutoModelForUniversalSegmentation
    config = config_of(name)
    auto = semantic if type(config) in semantic._model_mapping else universal
    with torch.device("meta"):
        state = auto.from_config(config).state_dict()
    config.save_pretrained(tmp_path)
    header, end = {}, 0
    for name, tensor in state.items():
        begin, end = end, end + 4 * tensor.numel()
        shape = list(tensor.shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)  # no byte of it is written
    assert network_classes(tmp_path, "hf", "here") == 7
    edit(tmp_path, id2label={str(k): f"name {k}" for k in range(6)})
    with pytest.raises(DataError, match=r"has 6 classes by its `id2label`, .* a head of 7 classes"):
        network_classes(tmp_path, "hf", "here")


def test_the_head_is_found_in_whichever_shard_it_is(folder):
    tensors, chosen = index(folder, "one.safetensors", "two.safetensors")
    (folder / "model.safetensors").unlink()
    for name in ("one.safetensors", "two.safetensors"):
        save_file({k: v for k, v in tensors.items() if chosen[k] == name}, folder / name)
    edit(folder, id2label={"0": "a", "1": "b"})
    with pytest.raises(DataError, match="a head of 3 classes"):
        network_classes(folder, "hf", "here")


def test_code_of_a_folder_names_its_layers_as_it_likes(folder):
    edit(folder, id2label={"0": "a", "1": "b"}, auto_map={"AutoConfig": "own.Config"})
    assert network_classes(folder, "hf", "here") == ["a", "b"]


def test_a_head_of_another_shape_is_refused_in_our_words(folder):
    """The library's point to its log, which is silent."""
    edit(folder, id2label={str(k): "abcde"[k] for k in range(5)})
    with pytest.raises(DataError) as refused:
        hf_teacher(folder, trusted=False)
    text = str(refused.value)
    assert "decode_head.classifier" in text and "[3" in text and "[5" in text
    assert "id2label" in text and "report" not in text and "\n" not in text


@pytest.mark.parametrize(
    "config",
    [
        {"attn_implementation": "kernels-community/flash-attn2"},
        {"_attn_implementation": "flash_attention_2"},
        {"backbone_config": {"attn_implementation": "somebody/attn@main:f"}},
        {"attn_implementation": {"text_config": "sdpa", "vision_config": "somebody/attn"}},
        {"attn_implementation": ["sdpa"]},
    ],
)
def test_attention_of_somebody_elses_code_is_refused(tmp_path, config):
    path = tmp_path / "config.json"
    with pytest.raises(DataError, match=r"attn_implementation is .* asked of a hub"):
        require_own_parts(path, config)
    for name in (None, "sdpa", "eager"):
        require_own_parts(path, {"attn_implementation": name, "_attn_implementation": name})
