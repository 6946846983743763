"""Models of other libraries, by the paths of their parts: pre-trained for two steps and loaded. Tiny sizes, no weights.

Tests of a library that is not installed are skipped.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import dovetail
from dovetail.networks.build import build_network

PAGE = Path(__file__).parents[2] / "docs" / "libraries.md"
STAGES = ["stage1", "stage2", "stage3", "stage4"]


@dataclass(frozen=True)
class Model:
    """A model of another library.

    Attributes:
        package: Package to import.
        build: Returns a tiny model from the package.
        encoder: Path of the encoder.
        decoder: Path of the decoder, or "" without one.
        taps: Channels of the taps.
        fresh: Prefixes of the tensors that pre-training does not train.
        method: Method to pre-train with.
    """

    package: str
    build: Callable[[Any], nn.Module]
    encoder: str
    decoder: str
    taps: dict[str, int]
    fresh: tuple[str, ...]
    method: str = "decon-ml-byol"


def swin(lib: Any) -> nn.Module:
    return lib.SwinTransformer([4, 4], 8, depths=[1] * 4, num_heads=[1, 1, 2, 2], window_size=[4, 4])


def segformer(lib: Any) -> nn.Module:
    small = {"depths": [1] * 4, "hidden_sizes": [8, 16, 24, 32], "num_attention_heads": [1, 1, 2, 2]}
    return lib.SegformerForSemanticSegmentation(lib.SegformerConfig(**small, decoder_hidden_size=16, num_labels=4))


def upernet(lib: Any) -> nn.Module:
    backbone = lib.ConvNextConfig(depths=[1] * 4, hidden_sizes=[8, 16, 24, 32], out_features=STAGES)
    small = {"hidden_size": 16, "auxiliary_in_channels": 24, "auxiliary_channels": 8, "pool_scales": [1, 2]}
    return lib.UperNetForSemanticSegmentation(lib.UperNetConfig(backbone_config=backbone, num_labels=5, **small))


def mask2former(lib: Any) -> nn.Module:
    swin = {"embed_dim": 8, "depths": [1] * 4, "num_heads": [1, 1, 2, 2], "window_size": 4, "image_size": 64}
    small = {"feature_size": 32, "mask_feature_size": 16, "hidden_dim": 32, "encoder_feedforward_dim": 32}
    small |= {"encoder_layers": 1, "decoder_layers": 2, "num_attention_heads": 2, "dim_feedforward": 32}
    config = lib.Mask2FormerConfig(backbone_config=lib.SwinConfig(**swin, out_features=STAGES), num_queries=5, **small)
    return lib.Mask2FormerForUniversalSegmentation(config)


def rt_detr(lib: Any) -> nn.Module:
    resnet = {"embedding_size": 8, "hidden_sizes": [8, 16, 24, 32], "depths": [1] * 4, "layer_type": "basic"}
    backbone = lib.RTDetrResNetConfig(**resnet, out_features=STAGES[1:])
    small = {"encoder_hidden_dim": 16, "encoder_in_channels": [16, 24, 32], "encoder_ffn_dim": 32, "d_model": 16}
    small |= {"decoder_in_channels": [16] * 3, "decoder_ffn_dim": 32, "decoder_layers": 1, "num_queries": 5}
    small |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "hidden_expansion": 0.5}
    return lib.RTDetrForObjectDetection(lib.RTDetrConfig(backbone_config=backbone, num_labels=3, **small))


def basic_unet(lib: Any) -> nn.Module:
    return lib.BasicUNet(spatial_dims=2, in_channels=3, out_channels=4, features=(8, 8, 16, 24, 32, 8))


def dyn_unet(lib: Any) -> nn.Module:
    return lib.DynUNet(2, 3, 4, kernel_size=[3] * 4, strides=[1, 2, 2, 2], upsample_kernel_size=[2] * 3, filters=WIDTHS)


def plain_conv_unet(lib: Any) -> nn.Module:
    sizes: dict[str, Any] = {"n_stages": 4, "features_per_stage": WIDTHS, "kernel_sizes": 3, "strides": [1, 2, 2, 2]}
    sizes |= {"n_conv_per_stage": 1, "n_conv_per_stage_decoder": 1, "conv_bias": True, "nonlin": nn.LeakyReLU}
    norm = {"norm_op": nn.InstanceNorm2d, "norm_op_kwargs": {"affine": True}}
    return lib.PlainConvUNet(3, conv_op=nn.Conv2d, num_classes=4, deep_supervision=True, **sizes, **norm)


def yolo(lib: Any) -> nn.Module:
    return lib.DetectionModel("yolov8n.yaml", nc=3, verbose=False)


WIDTHS = [8, 16, 24, 32]
ENCODER = dict(zip(("c2", "c3", "c4", "c5"), WIDTHS, strict=True))
PIXELS = "model.pixel_level_module"
LEVELS = {"c2": 8, "c3": 16, "c4": 32, "c5": 64, "p2": 16, "p3": 32, "p4": 32, "p5": 32}
YOLO = {"c5": 256, "p3": 64, "p4": 128, "p5": 256}
MODELS = {
    "swin_t": Model(
        *("torchvision.models.swin_transformer", swin, "features", "", {"c5": 64}, ("norm.", "head.")), method="byol"
    ),
    "SegformerForSemanticSegmentation": Model(
        *("transformers", segformer, "segformer", "decode_head", ENCODER | {"p2": 16}, ("decode_head.classifier.",))
    ),
    "UperNetForSemanticSegmentation": Model(
        *("transformers", upernet, "backbone", "decode_head", ENCODER | {"p2": 16}),
        ("decode_head.classifier.", "auxiliary_head."),
    ),
    "Mask2FormerForUniversalSegmentation": Model(
        *("transformers", mask2former, f"{PIXELS}.encoder", f"{PIXELS}.decoder", LEVELS),
        (f"{PIXELS}.encoder.swin.layernorm.", "model.transformer_module.", "class_predictor."),
    ),
    "RTDetrForObjectDetection": Model(
        *("transformers", rt_detr, "model.backbone", "model.encoder"),
        {"c3": 16, "c4": 24, "c5": 32, "p3": 16, "p4": 16, "p5": 16},
        ("model.decoder", "model.enc_", "model.denoising_class_embed."),
    ),
    "BasicUNet": Model(
        *("monai.networks.nets", basic_unet, "down_4", "upcat_1", {"c4": 32, "p0": 8}, ("final_conv.",)),
        method="decon-sl-byol",
    ),
    "DynUNet": Model(
        *("monai.networks.nets", dyn_unet, "bottleneck", "upsamples.2", {"c3": 32, "p0": 8}, ("output_block.",)),
        method="decon-sl-byol",
    ),
    "PlainConvUNet": Model(
        *("dynamic_network_architectures.architectures.unet", plain_conv_unet, "encoder", "decoder"),
        {"c0": 8, "c1": 16, "c2": 24, "c3": 32, "p0": 8},
        ("decoder.seg_layers.",),
    ),
    "YOLOv8": Model(
        *("ultralytics.nn.tasks", yolo, "model.9", "model.15,model.18,model.21", YOLO),
        tuple(f"model.{index}." for index in (16, 18, 19, 21, 22)),  # decon-sl trains the finest level of the neck
        method="decon-sl-byol",
    ),
}


def imported(model: Model) -> Any:
    pytest.importorskip(model.package.split(".")[0], reason=f"{model.package} is not installed")
    return importlib.import_module(model.package)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.filterwarnings("default")  # of the libraries, whose newest versions may be installed
def test_a_model_of_another_library(name: str, pretrain: Callable[..., dovetail.Run], tmp_path: Path) -> None:
    chosen = MODELS[name]
    model = chosen.build(imported(chosen))
    parts = {"encoder": chosen.encoder, "decoder": chosen.decoder or None}
    network = build_network(model, image_size=64, **parts)
    assert {tap: value.channels for tap, value in network.taps.items()} == chosen.taps
    pretrain(model=model, method=chosen.method, out=tmp_path, **parts)
    before = {key: value.clone() for key, value in model.named_parameters()}
    report = dovetail.load_into(model, tmp_path)
    assert (report.missing, report.unexpected, report.mismatched) == ((), (), ())
    assert all(any(key.startswith(prefix) for key in before if key in report.fresh) for prefix in chosen.fresh)
    moved = {key for key, value in model.named_parameters() if not value.equal(before[key])}
    still = {key for key in before if key.startswith(chosen.fresh)}
    assert not moved & still
    assert {key for key in report.fresh if key in before} == still


def test_the_page_has_these_paths() -> None:
    rows = re.findall(r"^\| [^|]+ \| `(\w+)`[^|]* \| `([^|]*)` \| `?([^|`]*)`? *\|", PAGE.read_text(), re.MULTILINE)
    found = {name: (encoder, decoder.strip()) for name, encoder, decoder in rows}
    assert {name: (one.encoder, one.decoder) for name, one in MODELS.items()} == {
        name: found.get(name) for name in MODELS
    }
