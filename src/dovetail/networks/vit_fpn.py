"""A timm ViT with a feature pyramid: token taps and decoder maps `p2`..`p5` from one forward pass.

The outputs of four evenly spaced blocks are resampled to strides 4, 8, 16 and 32 by transposed convolutions and
pooling, as in XCiT's and SelfPatch's detection code and ViTDet (Li et al., 2022, https://arxiv.org/abs/2203.16527),
then go through torchvision's feature pyramid. ViTDet uses the last block for all four; four blocks do not need longer
training.

Shapes: B images, h x w patches, N = h w, C channels of the ViT, D of the pyramid.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from timm.layers.norm import LayerNorm2d
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from dovetail.errors import ModelError, unknown_name
from dovetail.networks.decoders import PYRAMID_STRIDES, fpn_levels
from dovetail.networks.levels import Level
from dovetail.networks.network import Construction, split_points
from dovetail.networks.timm_names import TimmName, create_timm
from dovetail.networks.vit import ViTNetwork, check_model, named_vit, vit_options
from dovetail.networks.vit_embed import patch_px
from dovetail.recipe import Tap
from dovetail.sizes import Size
from dovetail.views.view import View

# Decoders of a ViT's name, and their options.
VIT_DECODERS: Mapping[str, Mapping[str, int | bool]] = {
    "fpn": {"channels": 256, "norm": True},
    "fpn-bias": {"channels": 256, "norm": False},
}


class ViTPyramid(nn.Module):
    """Maps of one stride -> maps of strides 4 to 32 -> a feature pyramid."""

    def __init__(self, patch: int, width: int, channels: int, *, norm: bool) -> None:
        super().__init__()
        self.scales = nn.ModuleList(rescale(width, patch, stride) for stride in PYRAMID_STRIDES)
        self.fpn = FeaturePyramidNetwork(
            [width] * len(PYRAMID_STRIDES),
            channels,
            extra_blocks=LastLevelMaxPool(),
            norm_layer=nn.BatchNorm2d if norm else None,
        )

    def forward(self, maps: Sequence[Tensor]) -> OrderedDict[str, Tensor]:
        """Return maps "0", "1", "2", "3" of strides 4 to 32 and "pool" of stride 64 for four maps [B, C, h, w]."""
        scaled = [scale(value) for scale, value in zip(self.scales, maps, strict=True)]
        pyramid: OrderedDict[str, Tensor] = self.fpn(OrderedDict((str(i), value) for i, value in enumerate(scaled)))
        return pyramid

    def levels(
        self, maps: Sequence[Tensor], levels: Collection[int], drop: Callable[[list[Tensor]], list[Tensor]]
    ) -> dict[int, Level]:
        """Return the pyramid's levels (0 to 3), with `drop` applied to the laterals."""
        finest = min(levels)
        needed = [self.scales[i](value) if i >= finest else value for i, value in enumerate(maps)]
        return fpn_levels(self.fpn, needed, levels=levels, drop=drop)


class ViTFPN(nn.Module):
    """A timm ViT with a feature pyramid, with the outputs and `out_channels` that torchvision's detectors expect.

    Args:
        encoder: timm's VisionTransformer or Eva.
        channels: Width of the pyramid.
        norm: Use BatchNorm on lateral and output convolutions.
    """

    def __init__(self, encoder: nn.Module, *, channels: int = 256, norm: bool = True) -> None:
        super().__init__()
        check_model(encoder)
        patch = patch_px(encoder)
        if not math.log2(patch).is_integer():
            raise ModelError(
                f"The feature pyramid does not support patches of {patch}; choose a ViT with patches of 8 or 16."
            )
        vit: Any = encoder
        self.encoder = encoder
        self.decoder = ViTPyramid(patch, int(vit.embed_dim), channels, norm=norm)
        self.blocks = evenly_spaced(len(vit.blocks))
        self.out_channels = channels

    def forward(self, pixels: Tensor) -> OrderedDict[str, Tensor]:
        """Return maps "0", "1", "2", "3" of strides 4 to 32 and "pool" of stride 64 for [B, C, H, W]."""
        indices = sorted(set(self.blocks))
        found = self.encoder.forward_intermediates(  # type: ignore[operator]
            pixels, indices=indices, intermediates_only=True, output_fmt="NCHW"
        )
        by_block = dict(zip(indices, found, strict=True))
        pyramid: OrderedDict[str, Tensor] = self.decoder([by_block[block] for block in self.blocks])
        return pyramid


class ViTFPNNetwork(ViTNetwork):
    """`ViTFPN` as a network: the taps of its ViT, and `p2` to `p5`."""

    model: ViTFPN

    def __init__(self, model: ViTFPN, *, construction: Construction | None) -> None:
        super().__init__(model, construction=construction)
        self.encoder_prefix, self.decoder_prefixes = "encoder.", ("decoder.",)
        self.size_multiple = max(*PYRAMID_STRIDES, self.size_multiple)
        self.level_of = {f"p{int(math.log2(stride))}": level for level, stride in enumerate(PYRAMID_STRIDES)}
        for name, level in self.level_of.items():
            self.taps[name] = Tap(model.out_channels, PYRAMID_STRIDES[level], "map", "decoder")

    @property
    def vit(self) -> Any:
        """The timm model; untyped, as timm is."""
        return self.model.encoder

    @property
    def point_taps(self) -> Collection[str]:
        """The pyramid's levels."""
        return self.level_of

    def answer(self, view: View, taps: Collection[str]) -> dict[str, Tensor]:
        """Return the named taps, from one pass through the ViT."""
        taps, points = split_points(taps)
        levels = {self.level_of[tap]: tap for tap in taps if tap in self.level_of}
        keep = self.model.blocks[min(levels) :] if levels else []
        encoded = self.encode(view, with_queries="queries" in taps, keep=keep)
        outputs = self.token_taps(encoded, view, taps)
        if levels:
            # Maps finer than the finest requested level are not computed; the deepest map replaces them.
            maps = [self.as_map(encoded.kept.get(block, encoded.raw), view) for block in self.model.blocks]
            pyramid = self.model.decoder.levels(maps, levels, self.drop_laterals)
            outputs |= self.finished({levels[level]: value for level, value in pyramid.items()}, view, points)
        return outputs


def rescale(width: int, patch: int, stride: int) -> nn.Sequential:
    """Return layers from stride `patch` to `stride`: transposed convolutions, nothing, or max-pooling."""
    layers = nn.Sequential()
    for step in range(round(math.log2(patch / stride))):
        if step:
            layers.extend([LayerNorm2d(width), nn.GELU()])
        layers.append(nn.ConvTranspose2d(width, width, kernel_size=2, stride=2))
    if stride > patch:
        layers.append(nn.MaxPool2d(stride // patch))
    return layers


def evenly_spaced(depth: int) -> list[int]:
    """Return the indices of the last block of each quarter: 2, 5, 8, 11 of 12."""
    count = len(PYRAMID_STRIDES)
    return [max(depth * (quarter + 1) // count - 1, 0) for quarter in range(count)]


def vit_fpn(
    name: str,
    *,
    in_channels: int = 3,
    image_size: Size = 224,
    channels: int = 256,
    norm: bool = True,
    encoder_options: Mapping[str, Any] | None = None,
) -> ViTFPN:
    """Return timm's ViT `name` with random weights and a feature pyramid, for views of any size.

    Args:
        name: Name of the timm model.
        in_channels: Number of input channels.
        image_size: Side of square images, or (height, width), in pixels, for the grid of position embeddings.
        channels: Width of the pyramid.
        norm: BatchNorm on lateral and output convolutions.
        encoder_options: Further options of `timm.create_model`.

    Raises:
        DovetailError: If timm cannot build the model, or its patch size does not support a pyramid.
    """
    options = vit_options(in_channels=in_channels, image_size=image_size, encoder_options=encoder_options)
    return ViTFPN(create_timm(name, options), channels=channels, norm=norm)


def build_vit_fpn(
    name_or_module: str | ViTFPN,
    *,
    in_channels: int = 3,
    pretrained: bool = False,
    image_size: Size = 224,
    drop_path: float = 0.0,
    checkpoint_blocks: bool = False,
) -> ViTFPNNetwork:
    """Return a timm ViT with a feature pyramid as a network.

    Args:
        name_or_module: "<timm name>+fpn", "<timm name>+fpn-bias" (no BatchNorm), both with options as in
            "+fpn(channels=64)", a call of timm instead of the name, or a `ViTFPN`, which is used unchanged.
        in_channels: Number of input channels.
        pretrained: Load timm's weights into the ViT.
        image_size: Side of the global views, or (height, width), in pixels.
        drop_path: Stochastic depth of the last block, rising linearly from 0 in the first; off in the teacher.
        checkpoint_blocks: Recompute every block in the backward pass instead of storing its activations.

    Raises:
        DovetailError: If the name is unknown, or the patch size does not support a pyramid.
    """
    construction: Construction | None = None
    if isinstance(name_or_module, str):
        named = TimmName.parse(name_or_module)
        if named.decoder not in VIT_DECODERS:
            raise unknown_name("decoder of a ViT", named.decoder, VIT_DECODERS, error=ModelError)
        pyramid: dict[str, Any] = named.decoder_kwargs(VIT_DECODERS[named.decoder])
        options = vit_options(in_channels=in_channels, image_size=image_size, encoder_options=named.options)
        model = ViTFPN(named_vit(named, options, pretrained=pretrained, drop_path=drop_path), **pyramid)
        kwargs = {"in_channels": in_channels, "image_size": image_size, **pyramid}
        kwargs |= {"encoder_options": named.options} if named.options else {}
        construction = Construction("dovetail.networks.vit_fpn.vit_fpn", kwargs, args=(named.name,))
    else:
        model = name_or_module
    if checkpoint_blocks:
        model.encoder.set_grad_checkpointing(True)  # type: ignore[operator]
    return ViTFPNNetwork(model, construction=construction)
