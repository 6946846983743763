"""Tensors of timm's models under the names that other libraries and released checkpoints have."""

from __future__ import annotations

import re
from collections.abc import Callable

import timm
import torch
from torch import Tensor, nn

from dovetail.weights.spellings import plain_merging

Weights = dict[str, Tensor]


def random(model: nn.Module) -> nn.Module:
    """Draw every tensor of a model anew, norms and counters included."""
    drawn = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in model.state_dict().values():
            value.copy_(torch.rand(value.shape, generator=drawn) if value.is_floating_point() else value)
    return model


def vit(name: str = "test_vit", **options: object) -> nn.Module:
    return random(timm.create_model(name, num_classes=0, img_size=32, depth=2, **options))


def resnet() -> nn.Module:
    return random(timm.create_model("resnet18", num_classes=0))


def convnext() -> nn.Module:
    return random(timm.create_model("convnext_atto", num_classes=0, depths=(1, 1, 1, 1), dims=(8, 8, 16, 16)))


def swin() -> nn.Module:
    sizes = {"depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2), "embed_dim": 8, "img_size": 64, "window_size": 2}
    return random(timm.create_model("swin_tiny_patch4_window7_224", num_classes=0, **sizes))


def renamed(weights: Weights, *rules: tuple[str, str | Callable[[re.Match[str]], str]]) -> Weights:
    """Return tensors under other names: rules for whole patterns, in order."""
    found = {}
    for name, value in weights.items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        found[name] = value
    return found


def apart(weights: Weights, names: str) -> Weights:
    """Return tensors with queries, keys and values apart, "{}" in `names` for each letter's place of three."""
    words = [word.split("|") for word in names.split(" ")]
    found: Weights = {}
    for name, value in weights.items():
        if "attn.qkv." in name:
            for (word,), piece in zip(words, value.chunk(3), strict=True):
                found[name.replace("attn.qkv", word)] = piece
        else:
            found[name] = value
    return found


def more(text: str, by: int = 1) -> Callable[[re.Match[str]], str]:
    return lambda found: text.format(int(found[1]) + by)


# Each takes the tensors of a model of timm, and gives them as the source has them. They are written from the names that
# the sources have, the other way round than the table of spellings.


def hf_vit(weights: Weights) -> Weights:
    query = "attention.attention.query attention.attention.key attention.attention.value"
    return renamed(
        apart(weights, query),
        (r"^blocks\.(\d)\.mlp\.fc1", r"vit.encoder.layer.\1.intermediate.dense"),
        (r"^blocks\.(\d)\.mlp\.fc2", r"vit.encoder.layer.\1.output.dense"),
        (r"^blocks\.(\d)\.attn\.proj", r"vit.encoder.layer.\1.attention.output.dense"),
        (r"^blocks\.(\d)\.norm1", r"vit.encoder.layer.\1.layernorm_before"),
        (r"^blocks\.(\d)\.norm2", r"vit.encoder.layer.\1.layernorm_after"),
        (r"^blocks\.", "vit.encoder.layer."),
        (r"^cls_token", "vit.embeddings.cls_token"),
        (r"^pos_embed", "vit.embeddings.position_embeddings"),
        (r"^patch_embed\.proj", "vit.embeddings.patch_embeddings.projection"),
        (r"^norm\.", "vit.layernorm."),
    )


def hf_dinov2(weights: Weights) -> Weights:
    query = "attention.attention.query attention.attention.key attention.attention.value"
    return renamed(
        apart(weights, query),
        (r"attn\.proj", "attention.output.dense"),
        (r"ls([12])\.gamma", r"layer_scale\1.lambda1"),
        (r"^blocks\.", "encoder.layer."),
        (r"^(cls_token)", r"embeddings.\1"),
        (r"^pos_embed", "embeddings.position_embeddings"),
        (r"^reg_token", "embeddings.register_tokens"),
        (r"^patch_embed\.proj", "embeddings.patch_embeddings.projection"),
        (r"^norm\.", "layernorm."),
    ) | {"embeddings.mask_token": torch.zeros(1, 1)}


def hf_dinov3(weights: Weights) -> Weights:
    return renamed(
        apart(weights, "attention.q_proj attention.k_proj attention.v_proj"),
        (r"attn\.proj", "attention.o_proj"),
        (r"gamma_([12])$", r"layer_scale\1.lambda1"),
        (r"mlp\.fc1", "mlp.up_proj"),
        (r"mlp\.fc2", "mlp.down_proj"),
        (r"^blocks\.", "layer."),
        (r"^(cls_token)", r"embeddings.\1"),
        (r"^reg_token", "embeddings.register_tokens"),
        (r"^patch_embed\.proj", "embeddings.patch_embeddings"),
    )


def dinov3(weights: Weights) -> Weights:
    zeros = {f"blocks.{index}.attn.qkv.bias": torch.zeros(192) for index in range(2)}
    masks = {f"blocks.{index}.attn.qkv.bias_mask": torch.full((192,), torch.nan) for index in range(2)}
    found = renamed(weights, (r"gamma_([12])$", r"ls\1.gamma"), (r"^reg_token", "storage_tokens"))
    return found | zeros | masks | {"rope_embed.periods": torch.ones(8), "mask_token": torch.zeros(1, 64)}


def dinov2(weights: Weights) -> Weights:
    return renamed(weights, (r"^blocks\.", "teacher.backbone.blocks.0."), (r"^(?!teacher)", "teacher.backbone.")) | {
        "teacher.dino_head.mlp.0.weight": torch.zeros(2, 2),
        "teacher.backbone.mask_token": torch.zeros(1, 64),
    }


def tv_vit(weights: Weights) -> Weights:
    return renamed(
        weights,
        (r"attn\.qkv\.", "self_attention.in_proj_"),
        (r"attn\.proj", "self_attention.out_proj"),
        (r"norm([12])", r"ln_\1"),
        (r"mlp\.fc1", "mlp.0"),
        (r"mlp\.fc2", "mlp.3"),
        (r"^blocks\.", "encoder.layers.encoder_layer_"),
        (r"^cls_token", "class_token"),
        (r"^pos_embed", "encoder.pos_embedding"),
        (r"^patch_embed\.proj", "conv_proj"),
        (r"^norm\.", "encoder.ln."),
    )


def mm_vit(weights: Weights) -> Weights:
    return renamed(
        weights,
        (r"attn\.qkv\.", "attn.attn.in_proj_"),
        (r"attn\.proj", "attn.attn.out_proj"),
        (r"mlp\.fc1", "ffn.layers.0.0"),
        (r"mlp\.fc2", "ffn.layers.1"),
        (r"^blocks\.(\d)\.norm", r"layers.\1.ln"),
        (r"^blocks\.", "layers."),
        (r"patch_embed\.proj", "patch_embed.projection"),
        (r"^norm\.", "ln1."),
        (r"^", "backbone."),
    )


def hf_resnet(weights: Weights) -> Weights:
    return renamed(
        weights,
        (r"^conv1", "resnet.embedder.embedder.convolution"),
        (r"^bn1", "resnet.embedder.embedder.normalization"),
        (r"^layer(\d)", more("resnet.encoder.stages.{}.layers", -1)),
        (r"downsample\.0", "shortcut.convolution"),
        (r"downsample\.1", "shortcut.normalization"),
        (r"\bconv(\d)", more("layer.{}.convolution", -1)),
        (r"\bbn(\d)", more("layer.{}.normalization", -1)),
    )


def detectron2_resnet(weights: Weights) -> Weights:
    return renamed(
        {name: value for name, value in weights.items() if not name.endswith("tracked")},
        (r"\bbn(\d)", r"conv\1.norm"),
        (r"^conv1", "stem.conv1"),
        (r"^layer(\d)", more("res{}")),
        (r"downsample\.0", "shortcut"),
        (r"downsample\.1", "shortcut.norm"),
        (r"^", "model.backbone.bottom_up."),
    )


def children_of_resnet(weights: Weights) -> Weights:
    return renamed(
        weights,
        (r"^conv1", "backbone.0"),
        (r"^bn1", "backbone.1"),
        (r"^layer(\d)", more("backbone.{}", 3)),
    )


def own_convnext(weights: Weights) -> Weights:
    return renamed(
        weights,
        (r"^stem", "downsample_layers.0"),
        (r"^stages\.(\d)\.downsample", r"downsample_layers.\1"),
        (r"\.blocks\.", "."),
        (r"conv_dw", "dwconv"),
        (r"mlp\.fc", "pwconv"),
    )


def mm_convnext(weights: Weights) -> Weights:
    return renamed(
        own_convnext(weights),
        (r"dwconv", "depthwise_conv"),
        (r"pwconv", "pointwise_conv"),
        (r"^", "backbone."),
    )


def tv_convnext(weights: Weights) -> Weights:
    return renamed(
        weights,
        (r"^stem", "features.0"),
        (r"^stages\.(\d)\.downsample", lambda found: f"features.{2 * int(found[1])}"),
        (r"^stages\.(\d)\.blocks", lambda found: f"features.{2 * int(found[1]) + 1}"),
        (r"conv_dw", "block.0"),
        (r"(features\.\d\.\d)\.norm", r"\1.block.2"),
        (r"mlp\.fc1", "block.3"),
        (r"mlp\.fc2", "block.5"),
        (r"gamma", "layer_scale"),
    )


def hf_convnext(weights: Weights) -> Weights:
    return renamed(
        weights,
        (r"^stem\.0", "convnext.embeddings.patch_embeddings"),
        (r"^stem\.1", "convnext.embeddings.layernorm"),
        (r"^stages\.(\d)\.downsample", r"convnext.encoder.stages.\1.downsampling_layer"),
        (r"^stages\.(\d)\.blocks", r"convnext.encoder.stages.\1.layers"),
        (r"(layers\.\d)\.norm", r"\1.layernorm"),
        (r"conv_dw", "dwconv"),
        (r"mlp\.fc", "pwconv"),
        (r"gamma$", "layer_scale_parameter"),
    )


def own_swin(weights: Weights) -> Weights:
    return renamed(weights, (r"^layers\.(\d)\.downsample", more("layers.{}.downsample", -1)))


def mm_swin(weights: Weights) -> Weights:
    moved = {name: plain_merging(name, value, back=True) for name, value in weights.items()}
    return renamed(
        own_swin(moved),
        (r"^layers", "backbone.stages"),
        (r"attn\.", "attn.w_msa."),
        (r"mlp\.fc1", "ffn.layers.0.0"),
        (r"mlp\.fc2", "ffn.layers.1"),
        (r"^patch_embed\.proj", "backbone.patch_embed.projection"),
        (r"^patch_embed\.norm", "backbone.patch_embed.norm"),
        (r"^norm\.", "backbone.norm3."),
    )


def tv_swin(weights: Weights) -> Weights:
    return renamed(
        weights,
        (r"^patch_embed\.proj", "features.0.0"),
        (r"^patch_embed\.norm", "features.0.2"),
        (r"^layers\.(\d)\.downsample", lambda found: f"features.{2 * int(found[1])}"),
        (r"^layers\.(\d)\.blocks", lambda found: f"features.{2 * int(found[1]) + 1}"),
        (r"mlp\.fc1", "mlp.0"),
        (r"mlp\.fc2", "mlp.3"),
    )


def hf_swin(weights: Weights) -> Weights:
    query = "attention.self.query attention.self.key attention.self.value"
    return renamed(
        apart(own_swin(weights), query),
        (r"^layers\.", "encoder.layers."),
        (r"attn\.relative", "attention.self.relative"),
        (r"attn\.proj", "attention.output.dense"),
        (r"mlp\.fc1", "intermediate.dense"),
        (r"mlp\.fc2", "output.dense"),
        (r"\.norm1", ".layernorm_before"),
        (r"\.norm2", ".layernorm_after"),
        (r"^patch_embed\.proj", "embeddings.patch_embeddings.projection"),
        (r"^patch_embed\.norm", "embeddings.norm"),
        (r"^norm\.", "layernorm."),
    )


def lightly_train(weights: Weights) -> Weights:
    return renamed(weights, (r"^", "state_dict.teacher_embedding_model.wrapped_model._model."))


SOURCES: dict[str, tuple[Callable[[], nn.Module], Callable[[Weights], Weights]]] = {
    "Hugging Face ViT": (vit, hf_vit),
    "Hugging Face DINOv2": (lambda: vit(init_values=1.0), hf_dinov2),
    "Hugging Face DINOv3": (lambda: vit("vit_small_patch16_dinov3", embed_dim=64, num_heads=2), hf_dinov3),
    "DINOv2": (lambda: vit(init_values=1.0), dinov2),
    "DINOv3": (lambda: vit("vit_small_patch16_dinov3", embed_dim=64, num_heads=2), dinov3),
    "torchvision ViT": (vit, tv_vit),
    "mmsegmentation ViT": (vit, mm_vit),
    "lightly-train": (vit, lightly_train),
    "Hugging Face ResNet": (resnet, hf_resnet),
    "detectron2 ResNet": (resnet, detectron2_resnet),
    "lightly ResNet": (resnet, children_of_resnet),
    "ConvNeXt": (convnext, own_convnext),
    "mmsegmentation ConvNeXt": (convnext, mm_convnext),
    "torchvision ConvNeXt": (convnext, tv_convnext),
    "Hugging Face ConvNeXt": (convnext, hf_convnext),
    "Swin": (swin, own_swin),
    "mmsegmentation Swin": (swin, mm_swin),
    "torchvision Swin": (swin, tv_swin),
    "Hugging Face Swin": (swin, hf_swin),
}
