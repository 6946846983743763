"""Names of libraries and released checkpoints: each loads into the same network here, tensor by tensor."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from torch import nn

from dovetail.networks.parts import Parts
from dovetail.weights.matching import load_into
from dovetail.weights.spellings import SPELLINGS, plain_merging, spellings_of
from tests.weights.foreign import SOURCES, Weights, more, random, renamed, resnet, vit


@pytest.mark.parametrize("source", SOURCES)
def test_names_of_other_programs(source: str, tmp_path: Path) -> None:
    make, put = SOURCES[source]
    model = make()
    weights = {name: value for name, value in model.state_dict().items() if not name.startswith("head.")}
    theirs = put(weights)
    assert set(theirs) != set(weights), "the names must differ, or nothing is shown"
    torch.save({name: value.clone() for name, value in theirs.items()}, tmp_path / "theirs.pth")
    target = make()
    for value in target.state_dict().values():
        value.zero_()
    report = load_into(target, tmp_path / "theirs.pth")
    state = target.state_dict()
    assert not report.missing + report.unexpected + report.mismatched
    assert {name for name in weights if not name.endswith("tracked")} <= set(report.matched)
    for name, value in weights.items():
        if not name.endswith("tracked"):
            assert torch.equal(state[name], value), name
    assert not [name for name in report.left_over if re.match(r"(blocks|layer|stages).*weight$", name)]


def test_registers_without_a_place_for_the_class_tokens_position(tmp_path: Path) -> None:
    """DINOv2 with registers has a position for its class token; timm's model of it adds it to the token."""
    model = vit("vit_small_patch14_reg4_dinov2", embed_dim=64, num_heads=2, patch_size=16)
    weights = dict(model.state_dict())
    theirs = renamed(weights, (r"^reg_token", "register_tokens"))
    first = torch.rand(1, 1, 64)
    theirs["pos_embed"] = torch.cat([first, theirs["pos_embed"]], dim=1)
    torch.save(theirs, tmp_path / "theirs.pth")
    target = vit("vit_small_patch14_reg4_dinov2", embed_dim=64, num_heads=2, patch_size=16)
    load_into(target, tmp_path / "theirs.pth")
    torch.testing.assert_close(target.cls_token, model.cls_token + first)
    torch.testing.assert_close(target.pos_embed, model.pos_embed)
    torch.testing.assert_close(target.reg_token, model.reg_token)


@pytest.mark.parametrize("released", ["old", "new", "mm"])
def test_segformer(tmp_path: Path, released: str) -> None:
    model = random(smp.Unet("mit_b0", encoder_weights=None).encoder)
    weights = dict(model.state_dict())
    pieces: Weights = {}
    for name, value in weights.items():
        if ".attn.kv." in name:
            pieces[name.replace("attn.kv", "attn.k")], pieces[name.replace("attn.kv", "attn.v")] = value.chunk(2)
        else:
            pieces[name] = value
    rules = {
        "old": (
            (r"^patch_embed(\d)\.norm", more("segformer.encoder.patch_embeddings.{}.layer_norm", -1)),
            (r"^patch_embed(\d)", more("segformer.encoder.patch_embeddings.{}", -1)),
            (r"\.norm([12])\.", r".layer_norm_\1."),
            (r"^block(\d)", more("segformer.encoder.block.{}", -1)),
            (r"^norm(\d)", more("segformer.encoder.layer_norm.{}", -1)),
            (r"attn\.q\b", "attention.self.query"),
            (r"attn\.k\b", "attention.self.key"),
            (r"attn\.v\b", "attention.self.value"),
            (r"attn\.sr", "attention.self.sr"),
            (r"attn\.norm", "attention.self.layer_norm"),
            (r"attn\.proj", "attention.output.dense"),
            (r"mlp\.fc", "mlp.dense"),
        ),
        "new": (
            (r"^patch_embed(\d)\.norm", more("segformer.stages.{}.patch_embeddings.layer_norm", -1)),
            (r"^patch_embed(\d)", more("segformer.stages.{}.patch_embeddings", -1)),
            (r"\.norm1\.", ".layernorm_before."),
            (r"\.norm2\.", ".layernorm_after."),
            (r"^block(\d)", more("segformer.stages.{}.blocks", -1)),
            (r"^norm(\d)", more("segformer.stages.{}.layer_norm", -1)),
            (r"attn\.([qkv])\b", r"attention.\1_proj"),
            (r"attn\.sr", "attention.sequence_reduction.sequence_reduction"),
            (r"attn\.norm", "attention.sequence_reduction.layer_norm"),
            (r"attn\.proj", "attention.o_proj"),
        ),
        "mm": (
            (r"^patch_embed(\d)\.proj", more("backbone.layers.{}.0.projection", -1)),
            (r"^patch_embed(\d)\.norm", more("backbone.layers.{}.0.norm", -1)),
            (r"^block(\d)", more("backbone.layers.{}.1", -1)),
            (r"^norm(\d)", more("backbone.layers.{}.2", -1)),
            (r"attn\.in_proj\.", "attn.attn.in_proj_"),
            (r"attn\.proj", "attn.attn.out_proj"),
            (r"mlp\.fc1", "ffn.layers.0"),
            (r"mlp\.dwconv\.dwconv", "ffn.layers.1"),
            (r"mlp\.fc2", "ffn.layers.4"),
        ),
    }[released]
    if released == "mm":
        for name in [name for name in pieces if ".attn.q." in name]:
            rows = [pieces.pop(name.replace(".attn.q.", f".attn.{letter}.")) for letter in "qkv"]
            pieces[name.replace(".attn.q.", ".attn.in_proj.")] = torch.cat(rows)
    torch.save({name: value.clone() for name, value in renamed(pieces, *rules).items()}, tmp_path / "theirs.pth")
    target = smp.Unet("mit_b0", encoder_weights=None)
    report = load_into(target, tmp_path / "theirs.pth", part="encoder")
    assert not report.missing + report.unexpected + report.mismatched
    state = target.encoder.state_dict()
    assert all(torch.equal(state[name], value) for name, value in weights.items())


def test_every_spelling_is_in_a_test() -> None:
    """A row of the table whose sign no source here shows would never be tried."""
    seen = {one.name for make, put in SOURCES.values() for one in spellings_of(put(dict(make().state_dict())))}
    tested_above = {"Hugging Face SegFormer", "mmsegmentation's MiT"}
    assert {one.name for one in SPELLINGS} == (seen | tested_above) - {"as in timm and torchvision"}


@pytest.mark.parametrize("name", ["convnext_atto", "swin_tiny_patch4_window7_224", "test_vit", "test_resnet"])
def test_timms_feature_extractors(tmp_path: Path, name: str) -> None:
    """Of timm's models and its feature extractors the names differ: stages.0 and stages_0, model.blocks and blocks."""
    whole = random(timm.create_model(name, num_classes=0))
    torch.save(whole.state_dict(), tmp_path / "whole.pth")
    features = timm.create_model(name, features_only=True)
    report = load_into(features, tmp_path / "whole.pth", strict=False)
    assert not report.missing + report.mismatched
    found = [one for one in features.state_dict() if not one.endswith(("tracked", "relative_position_index"))]
    assert set(found) <= set(report.matched)


def test_a_prefix_says_where_the_encoder_is(tmp_path: Path) -> None:
    """Of two encoders of one architecture, such as those of two cameras."""
    model = nn.ModuleDict({"left": resnet(), "right": resnet()})
    torch.save({name: torch.ones_like(value) for name, value in resnet().state_dict().items()}, tmp_path / "a.pth")
    before = model["left"].state_dict()["conv1.weight"].clone()
    report = load_into(model, tmp_path / "a.pth", part="encoder", prefix="right")
    assert all(name.startswith("right.") for name in report.matched)
    assert bool((model["right"].conv1.weight == 1).all())
    assert torch.equal(model["left"].conv1.weight, before)


def test_merging_goes_back() -> None:
    value = torch.arange(2 * 8.0).reshape(2, 8)
    name = "layers.1.downsample.reduction.weight"
    assert torch.equal(plain_merging(name, plain_merging(name, value), back=True), value)
    assert not torch.equal(plain_merging(name, value), value)
    # One channel of four places: Unfold goes row by row, Swin's own code column by column.
    assert plain_merging(name, torch.tensor([[0.0, 1, 2, 3]])).tolist() == [[0, 2, 1, 3]]


def test_parts_below_a_prefix() -> None:
    moved = Parts("encoder.", ("decoder.",), ("encoder.fc.",)).below("model.")
    assert moved.split("model.encoder.conv1.weight") == ("encoder", "conv1.weight")
    assert moved.split("model.decoder.x") == ("decoder", "x")
    assert moved.split("model.encoder.fc.weight")[0] == "head"
