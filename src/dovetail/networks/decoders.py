"""Dense decoders for encoders without one, and the forward pass of feature pyramids.

* FPN: Lin et al., "Feature Pyramid Networks for Object Detection", 2017, https://arxiv.org/abs/1612.03144. DeCon
  uses 256 channels, no bias and BatchNorm on lateral and output convolutions; torchvision uses a bias.
* FCN: Long et al., "Fully Convolutional Networks for Semantic Segmentation", 2015, https://arxiv.org/abs/1411.4038, as
  two 3x3 convolutions on the deepest map. DeCon uses 256 channels with dilation 6 for Cityscapes and VOC, and 512
  channels with dilation 1 for ADE20K.

These models are exported. `EncoderFPN` has the interface of torchvision's detection backbones, so you can pass it to
`FasterRCNN` or `MaskRCNN`.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import timm
from timm.layers.norm import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from dovetail.errors import ModelError
from dovetail.networks.levels import Level
from dovetail.networks.timm_names import create_timm

PYRAMID_STRIDES = (4, 8, 16, 32)


class NormedPyramid(FeaturePyramidNetwork):  # type: ignore[misc]
    """A feature pyramid with a LayerNorm over the channels of every input map.

    The authors of ConvNeXt use it before dense heads, and those of DeCon before their decoders.
    """

    def __init__(self, widths: list[int], channels: int, **options: Any) -> None:
        super().__init__(widths, channels, **options)
        self.tap_norms = nn.ModuleList(LayerNorm2d(width) for width in widths)

    def forward(self, x: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return torchvision's pyramid of the normalised maps."""
        normed = {name: norm(value) for (name, value), norm in zip(x.items(), self.tap_norms, strict=True)}
        pyramid: dict[str, Tensor] = super().forward(normed)
        return pyramid


def fpn_forward(
    fpn: FeaturePyramidNetwork,
    features: Sequence[Tensor],
    *,
    levels: Collection[int],
    drop: Callable[[list[Tensor]], list[Tensor]],
) -> dict[int, Tensor]:
    """Return the maps [B, D, H_i, W_i] of `fpn_levels` by level."""
    return {level: one.whole() for level, one in fpn_levels(fpn, features, levels=levels, drop=drop).items()}


def fpn_levels(
    fpn: FeaturePyramidNetwork,
    features: Sequence[Tensor],
    *,
    levels: Collection[int],
    drop: Callable[[list[Tensor]], list[Tensor]],
) -> dict[int, Level]:
    """Run torchvision's feature pyramid up to the output convolutions, only for the requested levels.

    Args:
        fpn: The pyramid; its extra blocks (p6, pool) are not run.
        features: Encoder maps [B, C_i, H_i, W_i], finest first.
        levels: Indices into `features`.
        drop: Function that drops from the lateral maps, finest first; it must not change the last, deepest one.

    Returns:
        The levels, which compute their maps [B, D, H_i, W_i] on demand. Laterals finer than the finest requested level
        are not computed.
    """
    finest = min(levels)
    if isinstance(fpn, NormedPyramid):
        features = [fpn.tap_norms[i](value) if i >= finest else value for i, value in enumerate(features)]
    laterals = drop([fpn.inner_blocks[i](features[i]) for i in range(finest, len(features))])
    merged = laterals[-1]
    outputs: dict[int, Level] = {}
    for level in range(len(features) - 1, finest - 1, -1):
        lateral = laterals[level - finest]
        if level < len(features) - 1:
            merged = F.interpolate(merged, size=lateral.shape[-2:], mode="nearest").add_(lateral)  # in place
        if level in levels:
            outputs[level] = Level(fpn.layer_blocks[level], merged)
    return outputs


class ConvModule(nn.Sequential):
    """3x3 convolution without bias, BatchNorm and ReLU, with the names of mmsegmentation: `conv`, `bn`."""

    def __init__(self, channels_in: int, channels_out: int, *, dilation: int) -> None:
        super().__init__()
        conv = nn.Conv2d(channels_in, channels_out, 3, padding=dilation, dilation=dilation, bias=False)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        self.add_module("conv", conv)
        self.add_module("bn", nn.BatchNorm2d(channels_out))
        self.add_module("act", nn.ReLU())


class FCNDecoder(nn.Module):
    """Two `ConvModule`s on the encoder's deepest map [B, C, H, W] -> [B, channels, H, W]."""

    def __init__(self, channels_in: int, channels: int = 256, *, dilation: int = 6) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            ConvModule(channels_in, channels, dilation=dilation), ConvModule(channels, channels, dilation=dilation)
        )

    def forward(self, deepest: Tensor) -> Tensor:
        """Return the decoder's map, of the size of `deepest`."""
        decoded: Tensor = self.convs(deepest)
        return decoded


class EncoderFPN(nn.Module):
    """A timm encoder with a feature pyramid, with the outputs and `out_channels` of torchvision's backbones."""

    def __init__(self, encoder: nn.Module, *, channels: int = 256, norm: bool = True, tap_norm: bool = False) -> None:
        super().__init__()
        self.encoder = encoder
        self.indices = [index for index, _ in pyramid_stages(encoder)]
        widths = [channels_in for _, channels_in in pyramid_stages(encoder)]
        pyramid = NormedPyramid if tap_norm else FeaturePyramidNetwork
        self.decoder = pyramid(
            widths, channels, extra_blocks=LastLevelMaxPool(), norm_layer=nn.BatchNorm2d if norm else None
        )
        self.out_channels = channels

    def forward(self, pixels: Tensor) -> OrderedDict[str, Tensor]:
        """Return maps "0", "1", "2", "3" of strides 4 to 32 and "pool" of stride 64 for [B, C, H, W]."""
        features = intermediates(self.encoder, pixels, self.indices)
        pyramid: OrderedDict[str, Tensor] = self.decoder(OrderedDict((str(i), f) for i, f in enumerate(features)))
        return pyramid


class EncoderFCN(nn.Module):
    """A timm encoder with an FCN decoder."""

    def __init__(self, encoder: nn.Module, *, channels: int = 256, dilation: int = 6) -> None:
        super().__init__()
        self.encoder = encoder
        self.indices = [index for index, _ in pyramid_stages(encoder)]
        self.decoder = FCNDecoder(pyramid_stages(encoder)[-1][1], channels, dilation=dilation)
        self.out_channels = channels

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the decoder's map [B, channels, H/32, W/32] for [B, C, H, W]."""
        decoded: Tensor = self.decoder(intermediates(self.encoder, pixels, self.indices[-1:])[0])
        return decoded


def encoder_fpn(
    name: str,
    *,
    in_channels: int = 3,
    channels: int = 256,
    norm: bool = True,
    tap_norm: bool = False,
    encoder_options: Mapping[str, Any] | None = None,
) -> EncoderFPN:
    """Return timm's model `name` with random weights and a feature pyramid.

    Args:
        name: Name of the timm model.
        in_channels: Number of input channels.
        channels: Width of the pyramid.
        norm: Use BatchNorm on lateral and output convolutions.
        tap_norm: Use LayerNorm on each input map; see `NormedPyramid`.
        encoder_options: Further options of `timm.create_model`.

    Raises:
        DovetailError: If timm cannot build the model, or it lacks the maps of a pyramid.
    """
    encoder = plain_encoder(name, in_channels=in_channels, encoder_options=encoder_options)
    return EncoderFPN(encoder, channels=channels, norm=norm, tap_norm=tap_norm)


def encoder_fcn(
    name: str,
    *,
    in_channels: int = 3,
    channels: int = 256,
    dilation: int = 6,
    encoder_options: Mapping[str, Any] | None = None,
) -> EncoderFCN:
    """Return timm's model `name` with random weights and an FCN decoder.

    Args:
        name: Name of the timm model.
        in_channels: Number of input channels.
        channels: Width of the two convolutions.
        dilation: Dilation of both convolutions.
        encoder_options: Further options of `timm.create_model`.

    Raises:
        DovetailError: If timm cannot build the model, or it lacks the maps.
    """
    encoder = plain_encoder(name, in_channels=in_channels, encoder_options=encoder_options)
    return EncoderFCN(encoder, channels=channels, dilation=dilation)


def plain_encoder(name: str, *, in_channels: int, encoder_options: Mapping[str, Any] | None = None) -> nn.Module:
    """Return timm's model `name` with random weights and without classifier; see `plain_options`."""
    return create_timm(name, plain_options(name, in_channels=in_channels, encoder_options=encoder_options))


def plain_options(name: str, *, in_channels: int, encoder_options: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return options of `timm.create_model` without classifier and for any image size, overridden by `options`."""
    return {"num_classes": 0, "in_chans": in_channels, **size_options(name), **(encoder_options or {})}


def size_options(name: str) -> dict[str, Any]:
    """Return the options for images of any size of timm's model `name`; they do not affect its parameters."""
    swin = timm.models.is_model_in_modules(name, ("swin_transformer", "swin_transformer_v2"))
    return {"strict_img_size": False} if swin else {}


def stages_by_stride(encoder: nn.Module) -> dict[int, tuple[int, int]]:
    """Return {stride: (index into timm's feature_info, channels)} of a timm model; the deepest stage of each stride."""
    if not callable(getattr(type(encoder), "forward_intermediates", None)):
        raise ModelError(f"timm's {type(encoder).__name__} does not return intermediate maps; choose another encoder.")
    info: Sequence[dict[str, int]] = encoder.feature_info  # type: ignore[assignment]
    return {stage["reduction"]: (index, stage["num_chs"]) for index, stage in enumerate(info)}


def pyramid_stages(encoder: nn.Module) -> list[tuple[int, int]]:
    """Return (index, channels) of a timm model's stages of strides 4, 8, 16 and 32."""
    stages = stages_by_stride(encoder)
    if any(stride not in stages for stride in PYRAMID_STRIDES):
        raise ModelError(
            f"This decoder needs maps of strides 4, 8, 16 and 32; {type(encoder).__name__} has {sorted(stages)}."
        )
    return [stages[stride] for stride in PYRAMID_STRIDES]


def beyond_maps(encoder: nn.Module) -> set[str]:
    """Return the names of a timm model's tensors after its last stage, such as `conv_head`; its maps need none."""
    pruned: Any = copy.deepcopy(encoder)
    pruned.prune_intermediate_layers(len(pruned.feature_info), prune_norm=True, prune_head=True)
    return {name for name in encoder.state_dict() if name not in pruned.state_dict()}


def intermediates(encoder: nn.Module, pixels: Tensor, indices: Sequence[int]) -> list[Tensor]:
    """Return a timm model's maps [B, C, H, W] at `indices`; runs it only as far as needed."""
    maps: list[Tensor] = encoder.forward_intermediates(  # type: ignore[operator]
        pixels, indices=list(indices), stop_early=True, intermediates_only=True, output_fmt="NCHW"
    )
    return maps
