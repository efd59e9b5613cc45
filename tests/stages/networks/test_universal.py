"""Teachers in folders of transformers: universal models as semantic ones, and foreign code."""

import json
import sys

import pytest
import torch

from ensdistill.pipeline.errors import DataError
from ensdistill.stages.networks.students import HfSegmentation
from ensdistill.stages.networks.universal import UniversalSegmentation, hf_teacher

hf = pytest.importorskip("transformers")

STAGES = ["stage1", "stage2", "stage3", "stage4"]
DETR = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "num_queries": 7,
    "use_timm_backbone": False,
}


def swin():
    return hf.SwinConfig(
        embed_dim=8, depths=[1] * 4, num_heads=[1] * 4, window_size=4, out_features=STAGES
    )


def resnet():
    return hf.ResNetConfig(
        embedding_size=8,
        layer_type="basic",
        hidden_sizes=[8, 16, 24, 32],
        depths=[1] * 4,
        out_features=STAGES,
    )


def config_of(name):
    small = {"num_labels": 5, "num_queries": 7, "num_attention_heads": 2}
    decoders = {
        "hidden_dim": 32,
        "encoder_feedforward_dim": 16,
        "dim_feedforward": 16,
        "encoder_layers": 1,
        "decoder_layers": 2,
    }
    if name == "mask2former":
        return hf.Mask2FormerConfig(
            backbone_config=swin(), feature_size=32, mask_feature_size=32, **decoders, **small
        )
    if name == "maskformer":
        return hf.MaskFormerConfig(
            backbone_config=swin(),
            decoder_config=hf.DetrConfig(**DETR, backbone_config=resnet()),
            num_labels=5,
            fpn_feature_size=32,
            mask_feature_size=32,
        )
    if name == "oneformer":
        return hf.OneFormerConfig(
            backbone_config=swin(),
            mask_dim=32,
            conv_dim=32,
            query_dec_layers=1,
            text_encoder_width=64,
            text_encoder_num_layers=1,
            text_encoder_vocab_size=64,
            text_encoder_n_ctx=4,
            is_training=True,
            task_seq_len=20,
            **decoders,
            **small,
        )
    if name == "eomt":
        return hf.EomtConfig(
            hidden_size=16,
            num_hidden_layers=3,
            num_blocks=1,
            image_size=32,
            patch_size=4,
            num_upscale_blocks=1,
            **small,
        )
    wide = DETR | {"d_model": 128, "encoder_attention_heads": 8, "decoder_attention_heads": 8}
    return hf.DetrConfig(**wide, num_labels=5, backbone_config=resnet())


def tokenizer(folder):
    """Write a CLIP tokenizer that knows letters alone."""
    letters = list("theaskismnc")
    words = [*dict.fromkeys(letters), *(c + "</w>" for c in dict.fromkeys(letters))]
    words += ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    found = hf.CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    found.save_pretrained(folder)
    return found


def saved(name, folder):
    torch.manual_seed(0)
    hf.AutoModelForUniversalSegmentation.from_config(config_of(name)).save_pretrained(folder)
    return tokenizer(folder) if name == "oneformer" else None


@pytest.mark.parametrize("name", ["mask2former", "maskformer", "oneformer", "eomt", "detr"])
def test_scores_are_those_of_the_library(tmp_path, name):
    words = saved(name, tmp_path)
    teacher = hf_teacher(tmp_path, trusted=False).eval()
    assert isinstance(teacher, UniversalSegmentation) and teacher.output == "probabilities"
    images = torch.randn(2, 3, *((32, 32) if name == "eomt" else (64, 96)))
    more = {}
    if words is not None:
        task = words(["the task is semantic"], padding="max_length", max_length=20)
        assert len(set(task["input_ids"][0])) > 5
        more["task_inputs"] = torch.tensor(task["input_ids"] * 2)
    kwargs = {"is_training": False} if name == "oneformer" else {}
    plain = hf.AutoModelForUniversalSegmentation.from_pretrained(tmp_path, **kwargs).eval()
    with torch.inference_mode():
        scores = teacher(images)
        found = plain(pixel_values=images, **more)
    classes = found.logits if name == "detr" else found.class_queries_logits
    masks = found.pred_masks if name == "detr" else found.masks_queries_logits
    height, width = masks.shape[-2:]
    assert scores.shape == (2, 5, height, width) and scores.min() >= 0
    slow = torch.zeros_like(scores)  # the definition, one query and class at a time
    for query in range(classes.shape[1]):
        for label in range(5):
            p = classes[:, query].softmax(-1)[:, label, None, None]
            slow[:, label] += p * masks[:, query].sigmoid()
    torch.testing.assert_close(scores, slow, atol=1e-5, rtol=0)
    # the library's own, where it leaves the masks' resolution as it is
    if name in ("maskformer", "detr", "oneformer"):
        module = __import__(f"transformers.models.{name}.image_processing_pil_{name}", fromlist="*")
        kind = next(v for k, v in vars(module).items() if k.lower() == f"{name}imageprocessorpil")
        post = kind.post_process_semantic_segmentation
        labels = torch.stack(post(None, found))
        best = scores.topk(2, 1).values
        close = best[:, 0] - best[:, 1] < 1e-5
        assert ((labels == scores.argmax(1)) | close).all()


@pytest.mark.parametrize("size", [(32, 64), (16, 64), (64, 16)])
def test_the_one_size_of_eomt_is_said(tmp_path, size):
    """Also where as many patches would pass for those of another shape."""
    saved("eomt", tmp_path)
    teacher = hf_teacher(tmp_path, trusted=False)
    with pytest.raises(DataError, match=r"32x32 .*size: \[32, 32\]"):
        teacher(torch.zeros(1, 3, *size))


def test_oneformer_without_its_tokenizer_is_refused(tmp_path):
    saved("oneformer", tmp_path)
    for path in tmp_path.iterdir():
        if path.name not in ("config.json", "model.safetensors"):
            path.unlink()
    with pytest.raises(DataError, match=r"tokenizer makes ''.*processor\.save_pretrained"):
        hf_teacher(tmp_path, trusted=False)


def test_a_semantic_folder_is_one(tmp_path):
    config = hf.SegformerConfig(num_labels=4, depths=[1] * 4, hidden_sizes=[8, 16, 24, 32])
    plain = hf.SegformerForSemanticSegmentation(config).eval()
    plain.save_pretrained(tmp_path)
    teacher = hf_teacher(tmp_path, trusted=False).eval()
    assert type(teacher) is HfSegmentation
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(teacher(images), plain(images).logits)


def test_what_was_never_trained_for_segmentation_is_refused(tmp_path):
    hf.Mask2FormerModel(config_of("mask2former")).save_pretrained(tmp_path / "body")
    with pytest.raises(DataError, match=r"weights are missing.*never trained for segmentation"):
        hf_teacher(tmp_path / "body", trusted=False)
    saved("mask2former", tmp_path / "bin")
    weights = tmp_path / "bin" / "model.safetensors"
    weights.rename(weights.with_name("pytorch_model.bin"))
    with pytest.raises(DataError, match="safetensors"):
        hf_teacher(tmp_path / "bin", trusted=False)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(DataError, match=r"config\.json: cannot be read"):
        hf_teacher(tmp_path / "nothing", trusted=False)


# --- code that comes with a folder -----------------------------------------------------------

CODE = """
from pathlib import Path
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

Path(__file__).resolve()
Path("TOUCHED").mkdir(exist_ok=True)

class OwnConfig(PretrainedConfig):
    model_type = "MODEL_TYPE"

class OwnModel(PreTrainedModel):
    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        self.conv = nn.Conv2d(3, 4, 1)
        self.post_init()

    def forward(self, pixel_values):
        return {"out": self.conv(pixel_values)}
"""


def own_code(folder, touched, model_type="own", module="modeling_own"):
    from safetensors.torch import save_file

    folder.mkdir()
    text = CODE.replace("TOUCHED", str(touched)).replace("MODEL_TYPE", model_type)
    (folder / "modeling_own.py").write_text(text)
    named = {
        "AutoConfig": f"{module}.OwnConfig",
        "AutoModelForSemanticSegmentation": f"{module}.OwnModel",
    }
    config = {"model_type": model_type, "auto_map": named, "num_labels": 4}
    (folder / "config.json").write_text(json.dumps(config))
    weights = {"conv.weight": torch.ones(4, 3, 1, 1), "conv.bias": torch.zeros(4)}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("model_type", ["own", "segformer", "mask2former"])
def test_code_of_a_folder_is_not_imported_without_trust(tmp_path, monkeypatch, model_type):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asks"))
    folder = own_code(tmp_path / "own", tmp_path / "touched", model_type)
    with pytest.raises(DataError) as refused:
        hf_teacher(folder, trusted=False)
    for word in ("config.json", "modeling_own.OwnConfig", "trust: code", "your rights"):
        assert word in str(refused.value)
    from ensdistill.stages.networks.students import hf_segmentation

    with pytest.raises(DataError):  # nor as a student
        hf_segmentation(folder, 4 if model_type == "own" else None)
    assert not (tmp_path / "touched").exists()


def test_code_of_a_folder_runs_with_trust(tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "m"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    folder = own_code(tmp_path / "own", tmp_path / "touched")
    teacher = hf_teacher(folder, trusted=True)
    assert (tmp_path / "touched").exists()
    assert (teacher(torch.ones(1, 3, 4, 4))["out"] == 3).all()  # as it is: no name is a contract


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code_named_anywhere_is_found(tmp_path, file):
    saved("oneformer", tmp_path)
    settings = json.loads((tmp_path / file).read_text())
    settings["nested"] = [{"auto_map": {"AutoTokenizer": ["own.Slow", None]}}]
    (tmp_path / file).write_text(json.dumps(settings))
    with pytest.raises(DataError, match=rf"{file}.*own\.Slow"):
        hf_teacher(tmp_path, trusted=False)


def test_code_of_another_repository_is_refused_even_with_trust(tmp_path):
    folder = own_code(tmp_path / "own", tmp_path / "touched", module="them/theirs--modeling_own")
    with pytest.raises(DataError, match=r"of another repository .*them/theirs--modeling_own"):
        hf_teacher(folder, trusted=True)
    assert not (tmp_path / "touched").exists()
