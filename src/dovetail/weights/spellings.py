"""Tensor names of libraries and released checkpoints ("spellings"), and their conversion to a common spelling.

The common spelling is that of timm and torchvision, with separate queries, keys and values: "attn.qkv.weight" [3C, C]
becomes "attn.q.weight", "attn.k.weight" and "attn.v.weight", [C, C] each. The names in a file and those in a model are
both converted to it, so each library needs only one table for both directions.

Sources of the names, as released in 2022 to 2026: torchvision's `models`, Hugging Face transformers 4 and 5 (whose
names differ between files and modules), detectron2's `modeling/backbone`, mmpretrain's and mmsegmentation's
`models/backbones`, and the official code of DINOv2, DINOv3, ConvNeXt, Swin and SegFormer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from dovetail.networks.parts import local_name

Replacement = str | Callable[[re.Match[str]], str]


@dataclass(frozen=True)
class Spelling:
    """The tensor names of one library.

    Attributes:
        name: Readable name of the spelling.
        sign: Regular expression that matches a name only this spelling has.
        rules: Regular expressions and their replacements, applied in order anywhere in a name (prefixes are kept).
        unfold: Whether patches are merged in the order of `torch.nn.Unfold` (see `plain_merging`).
    """

    name: str
    sign: str
    rules: Sequence[tuple[str, Replacement]]
    unfold: bool = False

    def common(self, name: str) -> str:
        """Return a name in the common spelling, without splitting queries, keys and values."""
        for pattern, replacement in self.rules:
            name = re.sub(pattern, replacement, name)
        return name

    def pieces(self, name: str) -> tuple[str, ...]:
        """Return the common names of the pieces of a tensor, in the order of its rows."""
        plain = local_name(self.common(name))
        plain = re.sub(r"\battn\.([qkv])_(?:proj\.)?(weight|bias)$", r"attn.\1.\2", plain)
        plain = re.sub(r"\bgamma_([12])$", r"ls\1.gamma", plain)
        fused = re.search(r"\battn\.(qkv|kv|in_proj)[._](weight|bias)$", plain)
        if fused is None:
            return (plain,)
        letters = "qkv" if fused[1] == "in_proj" else fused[1]
        return tuple(f"{plain[: fused.start()]}attn.{letter}.{fused[2]}" for letter in letters)


def _more(text: str, by: int = 1) -> Callable[[re.Match[str]], str]:
    """Return a replacement function that formats `text` with the first group's number plus `by`."""
    return lambda found: text.format(int(found[1]) + by, *found.groups()[1:])


def _half(found: re.Match[str]) -> str:
    """Return the stage number for torchvision's `features`, in which every second entry is a stage."""
    return str((int(found[1]) - 1) // 2)


PLAIN = Spelling("as in timm and torchvision", r".", ())
_HF_ATTENTION: tuple[tuple[str, Replacement], ...] = (
    (r"\battention\.(?:attention|self)\.(q)uery\b", r"attn.\1"),
    (r"\battention\.(?:attention|self)\.(k)ey\b", r"attn.\1"),
    (r"\battention\.(?:attention|self)\.(v)alue\b", r"attn.\1"),
    (r"\battention\.([qkv])_proj\b", r"attn.\1"),
    (r"\battention\.(?:output\.dense|o_proj)\b", "attn.proj"),
    (r"\bintermediate\.dense\b", "mlp.fc1"),
    (r"(\d)\.output\.dense\b", r"\1.mlp.fc2"),
    (r"\blayernorm_before\b", "norm1"),
    (r"\blayernorm_after\b", "norm2"),
)
_MM_FFN: tuple[tuple[str, Replacement], ...] = (
    (r"\bffn\.layers\.0\.0\b", "mlp.fc1"),
    (r"\bffn\.layers\.1\b", "mlp.fc2"),
    (r"\bpatch_embed\.projection\b", "patch_embed.proj"),
)
_LAST_NORM: tuple[str, Replacement] = (r"\bnorm3\.(weight|bias)$", r"norm.\1")  # of the deepest of four stages
_CONVNEXT: tuple[tuple[str, Replacement], ...] = (
    (r"\bdownsample_layers\.0\.(\d)", r"stem.\1"),
    (r"\bdownsample_layers\.(\d)\.(\d)", r"stages.\1.downsample.\2"),
    (r"\bstages\.(\d+)\.(\d+)\.", r"stages.\1.blocks.\2."),
    (r"\b(?:dwconv|depthwise_conv)\b", "conv_dw"),
    (r"\b(?:pwconv|pointwise_conv)([12])\b", r"mlp.fc\1"),
    (r"\bgrn\.gamma\b", "mlp.grn.weight"),
    (r"\bgrn\.beta\b", "mlp.grn.bias"),
)

SPELLINGS: tuple[Spelling, ...] = (
    Spelling(
        "DINOv2 and DINOv3",
        r"(register_tokens|storage_tokens|blocks\.\d+\.\d+\.norm1|mlp\.w12)\b",
        (
            (r"\b(?:register|storage)_tokens\b", "reg_token"),
            (r"\bblocks\.\d+\.(\d+)\.(norm|attn|mlp|ls)", r"blocks.\1.\2"),  # in chunks, for sharding
            (r"\bmlp\.w12\b", "mlp.fc1"),
            (r"\bmlp\.w3\b", "mlp.fc2"),
        ),
    ),
    Spelling(
        "Hugging Face ViT, DINOv2 and DINOv3",
        r"\bembeddings\.cls_token$",
        (
            (r"\bembeddings\.(cls_token|mask_token)$", r"\1"),
            (r"\bembeddings\.position_embeddings$", "pos_embed"),
            (r"\bembeddings\.register_tokens$", "reg_token"),
            (r"\bembeddings\.patch_embeddings\.(?:projection\.)?", "patch_embed.proj."),
            (r"\b(?:encoder\.layer|model\.layer|layers|layer)\.(\d+)\.", r"blocks.\1."),
            *_HF_ATTENTION,
            (r"\blayer_scale([12])\.lambda1$", r"ls\1.gamma"),
            (r"\bmlp\.(?:up_proj|weights_in)\b", "mlp.fc1"),
            (r"\bmlp\.(?:down_proj|weights_out)\b", "mlp.fc2"),
            (r"\blayernorm\.(weight|bias)$", r"norm.\1"),
        ),
    ),
    Spelling(
        "Hugging Face ResNet",
        r"\bembedder\.embedder\.convolution\.weight$",
        (
            (r"\bembedder\.embedder\.convolution\b", "conv1"),
            (r"\bembedder\.embedder\.normalization\b", "bn1"),
            (r"\bencoder\.stages\.(\d+)\.layers\.", _more("layer{}.")),
            (r"\bshortcut\.convolution\b", "downsample.0"),
            (r"\bshortcut\.normalization\b", "downsample.1"),
            (r"\blayer\.(\d)\.convolution\b", _more("conv{}")),
            (r"\blayer\.(\d)\.normalization\b", _more("bn{}")),
        ),
    ),
    Spelling(
        "Hugging Face ConvNeXt",
        r"\b(encoder\.stages\.\d+\.layers\.\d+\.dwconv|stages\.\d+\.layers\.\d+\.depthwise_conv)\.weight$",
        (
            (r"\bembeddings\.patch_embeddings\b", "stem.0"),
            (r"\bembeddings\.layernorm\b", "stem.1"),
            (r"\b(?:encoder\.)?stages\.(\d+)\.layers\.(\d+)\.", r"stages.\1.blocks.\2."),
            (r"\bencoder\.stages\.(\d+)\.downsampling_layer\b", r"stages.\1.downsample"),
            (r"\bstages\.0\.downsample_layers\b", "stem"),
            (r"\bstages\.(\d+)\.downsample_layers\b", r"stages.\1.downsample"),
            (r"(blocks\.\d+)\.(?:layernorm|layer_norm)\b", r"\1.norm"),
            (r"\blayer_scale_parameter$", "gamma"),
            (r"\bgrn\.(weight|bias)\b", r"mlp.grn.\1"),
            (r"\b(?:layernorm|layer_norm)\.(weight|bias)$", r"norm.\1"),
            *_CONVNEXT[3:5],
        ),
    ),
    Spelling(
        "Hugging Face Swin",
        r"\bencoder\.layers\.\d+\.blocks\.\d+\.layernorm_before\.weight$",
        (
            (r"\bembeddings\.patch_embeddings\.projection\b", "patch_embed.proj"),
            (r"\bembeddings\.norm\b", "patch_embed.norm"),
            (r"\bencoder\.layers\.(\d+)\.downsample\b", _more("layers.{}.downsample")),
            (r"\bencoder\.layers\.", "layers."),
            (r"\battention\.(?:self\.|relative_position_bias\.)relative", "attn.relative"),
            *_HF_ATTENTION,
            (r"\blayernorm\.(weight|bias)$", r"norm.\1"),
        ),
    ),
    Spelling(
        "Hugging Face SegFormer",
        r"\b(encoder\.patch_embeddings\.\d|stages\.\d+\.patch_embeddings)\.proj\.weight$",
        (
            (r"\bencoder\.patch_embeddings\.(\d)\.", _more("patch_embed{}.")),
            (r"\bstages\.(\d)\.patch_embeddings\.", _more("patch_embed{}.")),
            (r"\bencoder\.block\.(\d)\.", _more("block{}.")),
            (r"\bstages\.(\d)\.blocks\.", _more("block{}.")),
            (r"\bencoder\.layer_norm\.(\d)\.", _more("norm{}.")),
            (r"\bstages\.(\d)\.layer_norm\.", _more("norm{}.")),
            (r"\battention\.(?:self\.sr|sequence_reduction\.sequence_reduction)\b", "attn.sr"),
            (r"\battention\.(?:self|sequence_reduction)\.layer_norm\b", "attn.norm"),
            *_HF_ATTENTION,
            (r"(block\d\.\d+)\.layer_norm_([12])\b", r"\1.norm\2"),
            (r"(patch_embed\d)\.layer_norm\b", r"\1.norm"),
            (r"\bmlp\.dense([12])\b", r"mlp.fc\1"),
        ),
    ),
    Spelling(
        "mmsegmentation's MiT",
        r"\blayers\.\d\.1\.\d+\.attn\.attn\.in_proj_weight$",
        (
            (r"\blayers\.(\d)\.0\.projection\b", _more("patch_embed{}.proj")),
            (r"\blayers\.(\d)\.0\.norm\b", _more("patch_embed{}.norm")),
            (r"\blayers\.(\d)\.2\.(weight|bias)$", _more("norm{}.{}")),
            (r"\blayers\.(\d)\.1\.(\d+)\.", _more("block{}.{}.")),
            (r"\bffn\.layers\.0\b", "mlp.fc1"),
            (r"\bffn\.layers\.1\b", "mlp.dwconv.dwconv"),
            (r"\bffn\.layers\.4\b", "mlp.fc2"),
            (r"\battn\.attn\.in_proj_(weight|bias)$", r"attn.in_proj.\1"),
            (r"\battn\.attn\.out_proj\b", "attn.proj"),
        ),
    ),
    Spelling(
        "torchvision's ViT",
        r"\bencoder_layer_0\.",
        (
            (r"\bclass_token$", "cls_token"),
            (r"\bconv_proj\b", "patch_embed.proj"),
            (r"\bencoder\.pos_embedding$", "pos_embed"),
            (r"\bencoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
            (r"\bself_attention\.in_proj_", "attn.in_proj."),
            (r"\bself_attention\.out_proj\b", "attn.proj"),
            (r"\bln_([12])\b", r"norm\1"),
            (r"\bmlp\.(?:0|linear_1)\.", "mlp.fc1."),
            (r"\bmlp\.(?:3|linear_2)\.", "mlp.fc2."),
            (r"\bencoder\.ln\.", "norm."),
        ),
    ),
    Spelling(
        "torchvision's ConvNeXt",
        r"\bfeatures\.\d+\.\d+\.block\.0\.weight$",
        (
            (r"\bfeatures\.0\.", "stem."),
            (r"\bfeatures\.(\d)\.(\d+)\.(block|layer_scale)", lambda m: f"stages.{_half(m)}.blocks.{m[2]}.{m[3]}"),
            (r"\bfeatures\.(\d)\.([01])\.", lambda m: f"stages.{int(m[1]) // 2}.downsample.{m[2]}."),
            (r"\bblock\.0\.", "conv_dw."),
            (r"\bblock\.2\.", "norm."),
            (r"\bblock\.3\.", "mlp.fc1."),
            (r"\bblock\.5\.", "mlp.fc2."),
            (r"\blayer_scale$", "gamma"),
        ),
    ),
    Spelling(
        "torchvision's Swin",
        r"\bfeatures\.\d+\.\d+\.attn\.qkv\.weight$",
        (
            (r"\bfeatures\.0\.0\.", "patch_embed.proj."),
            (r"\bfeatures\.0\.2\.", "patch_embed.norm."),
            (r"\bfeatures\.(\d)\.(\d+)\.", lambda m: f"layers.{_half(m)}.blocks.{m[2]}."),
            (r"\bfeatures\.(\d)\.(reduction|norm)\.", lambda m: f"layers.{int(m[1]) // 2}.downsample.{m[2]}."),
            (r"\bmlp\.0\.", "mlp.fc1."),
            (r"\bmlp\.3\.", "mlp.fc2."),
        ),
    ),
    Spelling("ConvNeXt's own code and mmpretrain", r"\bdownsample_layers\.0\.0\.weight$", _CONVNEXT),
    Spelling(
        "mmsegmentation's and mmpretrain's Swin",
        r"\battn\.w_msa\.qkv\.weight$",
        (
            (r"\bstages\.(\d)\.downsample\b", _more("layers.{}.downsample")),
            (r"\bstages\.(\d)\.blocks\.", r"layers.\1.blocks."),
            (r"\battn\.w_msa\.", "attn."),
            _LAST_NORM,
            *_MM_FFN,
        ),
        unfold=True,
    ),
    Spelling(
        "Swin's own code and detectron2",
        r"\blayers\.0\.downsample\.reduction\.weight$",
        ((r"\blayers\.(\d)\.downsample\b", _more("layers.{}.downsample")), _LAST_NORM),
    ),
    Spelling(
        "mmsegmentation's and mmpretrain's ViT",
        r"\blayers\.\d+\.ln1\.weight$",
        (
            *_MM_FFN,
            (r"\battn\.attn\.in_proj_(weight|bias)$", r"attn.in_proj.\1"),
            (r"\battn\.attn\.out_proj\b", "attn.proj"),
            (r"\battn\.gamma1\.weight$", "ls1.gamma"),
            (r"\bffn\.gamma2\.weight$", "ls2.gamma"),
            (r"\blayers\.(\d+)\.ln([12])\.", r"blocks.\1.norm\2."),
            (r"\blayers\.(\d+)\.(attn|mlp|ls)", r"blocks.\1.\2"),
            (r"\bln1\.(weight|bias)$", r"norm.\1"),
        ),
    ),
    Spelling(
        "detectron2's ResNet",
        r"\bstem\.conv1\.norm\.weight$",
        (
            (r"\bshortcut\.norm\.", "downsample.1."),
            (r"\bshortcut\.weight$", "downsample.0.weight"),
            (r"\bconv(\d)\.norm\.", r"bn\1."),
            (r"\bstem\.(conv1|bn1)\.", r"\1."),
            (r"\bres(\d)\.", _more("layer{}.", -1)),
        ),
    ),
    Spelling(
        "a sequence of a ResNet's children, as in lightly",
        r"(^|\.)4\.0\.conv1\.weight$",
        (
            (r"(^|(?<!downsample)\.)0\.(weight)$", r"\1conv1.\2"),
            (r"(^|(?<!downsample)\.)1\.(weight|bias|running_mean|running_var|num_batches_tracked)$", r"\1bn1.\2"),
            (r"(^|\.)([4-7])\.(\d+)\.(conv|bn|downsample)", lambda m: f"{m[1]}layer{int(m[2]) - 3}.{m[3]}.{m[4]}"),
        ),
    ),
)


def spellings_of(names: Iterable[str]) -> list[Spelling]:
    """Return the spellings that match some of the names. The common spelling comes first."""
    every = list(names)
    return [PLAIN, *(one for one in SPELLINGS if any(re.search(one.sign, name) for name in every))]


def plain_merging(name: str, value: Tensor, *, back: bool = False) -> Tensor:
    """Reorder the 4C inputs of Swin's patch merging to the order of the official code.

    `torch.nn.Unfold` orders channels first, then the 2 x 2 positions row by row. The official code orders the positions
    first, column by column.

    Args:
        name: Name in the common spelling. Tensors of other layers are returned unchanged.
        value: Tensor [4C] or [2C, 4C].
        back: Convert from the official order to that of Unfold instead.
    """
    if not re.search(r"\bdownsample\.(reduction\.weight|norm\.(weight|bias))$", name):
        return value
    rows = value.reshape(-1, value.shape[-1])
    order = [0, 2, 1, 3]
    if back:
        moved = rows.reshape(len(rows), 4, -1)[:, order].transpose(1, 2)
    else:
        moved = rows.reshape(len(rows), -1, 4).transpose(1, 2)[:, order]
    return moved.reshape(value.shape)
