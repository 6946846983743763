"""Models for semantic segmentation with a pre-trained body: [B, C, H, W] -> logits [B, K, h, w].

* Models of segmentation_models_pytorch, and torchvision's FCN and DeepLabV3, with K classes.
* FCN on a CNN: two convolutions on the deepest map and a classifier (Long et al., 2015,
  https://arxiv.org/abs/1411.4038). Options are the output stride of ResNets (by dilation), mmsegmentation's convolution
  over decoder and encoder, and its auxiliary head on the previous map.
* Semantic FPN on the feature pyramid of a CNN or a ViT: every level is convolved and upsampled to stride 4, and all
  levels are summed (Kirillov et al., 2019, https://arxiv.org/abs/1901.02446).
* UPerNet on a ViT: pooled context and fused levels (Xiao et al., 2018, https://arxiv.org/abs/1807.10221). It uses the
  decoder of segmentation_models_pytorch with the width of the ViT, on four blocks that are resampled to strides 4 to 32
  as in iBOT.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from segmentation_models_pytorch.decoders.upernet.decoder import UPerNetDecoder
from torch import Tensor, nn

from dovetail.downstream.own import LastMap
from dovetail.downstream.segment.loop import WithAuxiliary
from dovetail.downstream.start import Source
from dovetail.errors import ModelError, OptionsError
from dovetail.networks.construct import construct
from dovetail.networks.decoders import (
    PYRAMID_STRIDES,
    ConvModule,
    EncoderFCN,
    EncoderFPN,
    encoder_fcn,
    encoder_fpn,
    intermediates,
    pyramid_stages,
    size_options,
)
from dovetail.networks.network import Construction, Network
from dovetail.networks.timm_names import create_timm, encoder_of
from dovetail.networks.vit import is_vit, vit_options
from dovetail.networks.vit_embed import patch_px
from dovetail.networks.vit_fpn import ViTFPN, rescale, vit_fpn

DecoderName = Literal["auto", "fcn", "fpn", "upernet"]
HeadName = Literal["fcn", "vit-fpn", "upernet", "other"]
DROPOUT = 0.1  # channel dropout before every classifier, as in mmsegmentation
PARTS = {
    "encoder": ("body.encoder.", "model.backbone."),
    "decoder": ("body.decoder.",),
    "head": ("head.", "auxiliary.", "body.segmentation_head.", "body.scales.", "model.classifier."),
}


@dataclass(frozen=True)
class FCNSpec:
    """Specification of an FCN.

    Attributes:
        channels: Channels of the decoder's convolutions if the run has no decoder.
        dilation: Dilation of these convolutions.
        concat: Whether to add a convolution over the concatenated maps of decoder and encoder.
        dropout: Channel dropout before the classifier.
        auxiliary: Whether to add an auxiliary head with one convolution on the encoder's second deepest map.
    """

    channels: int = 256
    dilation: int = 6
    concat: bool = False
    dropout: float = DROPOUT
    auxiliary: bool = False


class SemanticFPNHead(nn.Module):
    """Semantic FPN head: levels "0" .. "3" of a pyramid with strides 4 to 32 -> logits at stride 4."""

    def __init__(self, channels: int, classes: int, *, width: int = 128) -> None:
        super().__init__()
        self.levels = nn.ModuleList(upsampling(channels, width, level) for level in range(4))
        self.classifier = classifier(width, classes, DROPOUT)

    def forward(self, pyramid: OrderedDict[str, Tensor]) -> Tensor:
        """Return [B, K, H/4, W/4]."""
        size = pyramid["0"].shape[-2:]
        total: Tensor | None = None
        for index, level in enumerate(self.levels):
            value = level(pyramid[str(index)])
            if value.shape[-2:] != size:
                value = F.interpolate(value, size, mode="bilinear", align_corners=False)
            total = value if total is None else total + value
        logits: Tensor = self.classifier(total)
        return logits


def upsampling(channels: int, width: int, steps: int) -> nn.Sequential:
    """Return `steps` blocks of convolution, GroupNorm, ReLU and upsampling, or one without upsampling for 0 steps."""
    layers = nn.Sequential()
    for step in range(max(steps, 1)):
        convolution = nn.Conv2d(channels if step == 0 else width, width, 3, padding=1, bias=False)
        layers.extend([convolution, nn.GroupNorm(math.gcd(32, width), width), nn.ReLU()])
        if steps:
            layers.append(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False))
    return layers


class ViTMaps(nn.Module):
    """Converts the blocks `upernet_blocks` of a timm ViT to four maps of its width at strides 4, 8, 16 and 32."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        vit: Any = encoder
        self.encoder = encoder
        self.width = int(vit.embed_dim)
        self.blocks = upernet_blocks(len(vit.blocks))
        self.scales = nn.ModuleList(rescale(self.width, patch_px(encoder), stride) for stride in PYRAMID_STRIDES)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Return [B, C, H/s, W/s] for each stride s."""
        indices = sorted(set(self.blocks))
        found = self.encoder.forward_intermediates(  # type: ignore[operator]
            pixels, indices=indices, intermediates_only=True, output_fmt="NCHW"
        )
        by_block = dict(zip(indices, found, strict=True))
        return [scale(by_block[block]) for scale, block in zip(self.scales, self.blocks, strict=True)]


def upernet_blocks(depth: int) -> list[int]:
    """Return the indices of the blocks at a third, a half, two thirds, and the last one: 3, 5, 7, 11 of 12."""
    return [max(round(depth * share) - 1, 0) for share in (1 / 3, 1 / 2, 2 / 3, 1)]


class UPerNetHead(nn.Module):
    """UPerNet head: four maps [B, C, H/s, W/s] with strides s of 4 to 32 -> logits at stride 4."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.decoder = UPerNetDecoder([3, 0, *([channels] * 4)], encoder_depth=5, decoder_channels=channels)
        self.classifier = classifier(channels, classes, DROPOUT)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return [B, K, H/4, W/4]."""
        finest = maps[0]
        logits: Tensor = self.classifier(self.decoder([finest, finest, *maps]))  # the first two are not used
        return logits


class Segmenter(nn.Module):
    """A pre-trained body with a new head.

    Attributes:
        body: Pre-trained module, which weights are loaded into.
        head: Converts the output of the body to logits.
        multiple: Height and width of the input are padded to a multiple of this, and logits are cropped.
    """

    def __init__(self, body: nn.Module, head: nn.Module, *, multiple: int = 1) -> None:
        super().__init__()
        self.body = body
        self.head = head
        self.multiple = multiple

    def forward(self, pixels: Tensor) -> Tensor | WithAuxiliary:
        """Return logits [B, K, h, w] of normalised pixels. In training, includes those of an auxiliary head."""
        height, width = pixels.shape[-2:]
        down, right = -height % self.multiple, -width % self.multiple
        if not (down or right):
            return self.answer(pixels)

        def cut(logits: Tensor) -> Tensor:
            whole = F.interpolate(logits, (height + down, width + right), mode="bilinear", align_corners=False)
            return whole[..., :height, :width]

        found = self.answer(F.pad(pixels, (0, right, 0, down)))
        return WithAuxiliary(*map(cut, found)) if isinstance(found, WithAuxiliary) else cut(found)

    def answer(self, pixels: Tensor) -> Tensor | WithAuxiliary:
        """Return the logits of padded pixels."""
        logits: Tensor = self.head(self.body(pixels))
        return logits


class FCNSegmenter(Segmenter):
    """A pre-trained encoder and FCN decoder with a classifier.

    Attributes:
        joined: Convolution over the maps of encoder and decoder, or None.
        auxiliary: Auxiliary head, or None.
    """

    body: EncoderFCN

    def __init__(self, body: EncoderFCN, classes: int, spec: FCNSpec, *, multiple: int = 1) -> None:
        channels, widths = body.out_channels, [width for _, width in pyramid_stages(body.encoder)]
        super().__init__(body, classifier(channels, classes, spec.dropout), multiple=multiple)
        self.joined = ConvModule(widths[-1] + channels, channels, dilation=1) if spec.concat else None
        self.auxiliary: nn.Module | None = None
        if spec.auxiliary:
            before = ConvModule(widths[-2], AUXILIARY_CHANNELS, dilation=1)
            self.auxiliary = nn.Sequential(before, *classifier(AUXILIARY_CHANNELS, classes, spec.dropout))

    def answer(self, pixels: Tensor) -> Tensor | WithAuxiliary:
        """Return the logits of padded pixels, in training of both heads."""
        learns = self.training and self.auxiliary is not None
        maps = intermediates(self.body.encoder, pixels, self.body.indices[-2:] if learns else self.body.indices[-1:])
        decoded = self.body.decoder(maps[-1])
        if self.joined is not None:
            decoded = self.joined(torch.cat([maps[-1], decoded], dim=1))
        logits: Tensor = self.head(decoded)
        return WithAuxiliary(logits, self.auxiliary(maps[0])) if learns and self.auxiliary is not None else logits


AUXILIARY_CHANNELS = 256


def classifier(channels: int, classes: int, dropout: float) -> nn.Sequential:
    """Return a classifier of channel dropout and a 1x1 convolution."""
    return nn.Sequential(nn.Dropout2d(dropout), nn.Conv2d(channels, classes, 1))


class Unpacked(nn.Module):
    """Wraps a torchvision segmentation model, whose output is a dictionary."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.model(pixels)["out"]
        return logits


def build_segmenter(
    source: Source,
    *,
    classes: int,
    decoder: DecoderName = "auto",
    output_stride: int = 32,
    fcn: FCNSpec | None = None,
) -> tuple[nn.Module, nn.Module]:
    """Return a segmentation model with random weights, and its submodule for pre-trained weights.

    Args:
        source: Source of the pre-trained model.
        classes: Number of classes K.
        decoder: Decoder for an encoder without one: "fcn" (CNN), "fpn" (Semantic FPN) or "upernet" (ViT). "auto" is
            FCN for a CNN and Semantic FPN for a ViT.
        output_stride: Output stride of a ResNet with an FCN: 32, 16 or 8.
        fcn: Specification of an FCN. Other models do not use it.

    Raises:
        DovetailError: The model does not support segmentation, or the decoder does not fit.
    """
    if source.own is not None:
        return on_last_map(source.network("random"), classes, decoder)
    call = Construction.parse(source.constructor)
    if call is None:
        raise ModelError(f"{source.constructor} cannot be built by name; load its weights with load_into.")
    library = call.path.partition(".")[0]
    if library != "timm" and decoder != "auto" and not call.path.startswith("dovetail."):
        raise OptionsError(f"{source.constructor} has its own decoder; omit --decoder, or specify another --model.")
    if library == "smp":
        model = construct(str(Construction(call.path, {**call.kwargs, "classes": classes}, call.args)))
        return padded(model), model
    if call.path.startswith("torchvision.models.segmentation."):
        inner = construct(str(Construction(call.path, {**call.kwargs, "num_classes": classes}, call.args)))
        return Unpacked(inner), inner
    if library == "torchvision":
        raise ModelError(
            f"{source.constructor} is a detector; specify a segmentation model with --model, such as timm/resnet50+fpn."
        )
    spec = fcn or FCNSpec()
    body = body_of(call, source, decoder, spec)
    if output_stride != 32:
        dilate(body, output_stride)
    return on_body(body, classes, spec, name=encoder_of(call)[0])


def on_last_map(network: Network, classes: int, decoder: str) -> tuple[nn.Module, nn.Module]:
    """Return a classifier on the last map of the user's own model, and the model."""
    if decoder != "auto":
        raise OptionsError("Your own module has its own decoder; omit --decoder.")
    body = LastMap(network)
    return Segmenter(body, classifier(body.channels, classes, DROPOUT), multiple=network.size_multiple), network.model


def padded(model: nn.Module) -> nn.Module:
    """Wrap a model of segmentation_models_pytorch to support images of any size."""
    inner: Any = model
    return Segmenter(model, nn.Identity(), multiple=max(int(inner.encoder.output_stride), 32))


def body_of(call: Construction, source: Source, decoder: DecoderName, fcn: FCNSpec) -> nn.Module:
    """Return encoder and decoder without a head, with random weights."""
    name, own = encoder_of(call)
    tokens, channels = is_vit(name), source.in_channels
    if call.path.startswith("dovetail.networks.") and decoder == "auto":
        return construct(str(call))
    chosen = ("fpn" if tokens else "fcn") if decoder == "auto" else decoder
    if chosen == "upernet" and tokens:
        options = vit_options(in_channels=channels, image_size=source.image_size, encoder_options=own)
        return ViTMaps(create_timm(name, options))
    if chosen == "fpn":
        if tokens:
            return vit_fpn(name, in_channels=channels, image_size=source.image_size, encoder_options=own)
        return encoder_fpn(name, in_channels=channels, encoder_options=own)
    if chosen == "fcn" and not tokens:
        sizes = {"channels": fcn.channels, "dilation": fcn.dilation}
        return encoder_fcn(name, in_channels=channels, encoder_options=own, **sizes)
    fits = "fpn or upernet" if tokens else "fcn or fpn"
    raise ModelError(f"The decoder {chosen} does not support {name}; use {fits}.")


def on_body(body: nn.Module, classes: int, fcn: FCNSpec, *, name: str) -> tuple[nn.Module, nn.Module]:
    """Return a segmenter on a body with the timm encoder `name`, and its submodule for pre-trained weights."""
    if isinstance(body, ViTMaps):
        return Segmenter(body, UPerNetHead(body.width, classes), multiple=32), body.encoder
    if isinstance(body, EncoderFCN):
        multiple = 32 if size_options(name) else 1  # the patches of a Swin must tile the image; CNNs need no padding
        return FCNSegmenter(body, classes, fcn, multiple=multiple), body
    if isinstance(body, (EncoderFPN, ViTFPN)):
        head_on_pyramid = SemanticFPNHead(body.out_channels, classes)
        return Segmenter(body, head_on_pyramid, multiple=32), body
    raise ModelError(f"{type(body).__name__} has an unknown decoder; specify another model with --model.")


def dilate(body: nn.Module, output_stride: int) -> None:
    """Replace the strides of a ResNet's last stages by dilation, so that its deepest map has `output_stride`.

    Raises:
        OptionsError: The stride is unsupported, or the encoder is not a ResNet.
    """
    encoder = body.encoder if isinstance(body, EncoderFCN) else None
    stages = [getattr(encoder, name, None) for name in ("layer3", "layer4")]
    if output_stride not in (8, 16) or not all(isinstance(stage, nn.Sequential) for stage in stages):
        raise OptionsError(
            f"--output-stride supports 32, 16 or 8 for FCNs with a ResNet, got {output_stride}; omit it for this model."
        )
    chosen = stages[1:] if output_stride == 16 else stages
    for index, stage in enumerate(chosen):
        assert isinstance(stage, nn.Sequential)
        for place, block in enumerate(stage):
            # The first 3x3 convolution of a stage keeps the dilation of the previous stage, as it was trained with it.
            before = 2**index if place == 0 else 2 ** (index + 1)
            dilate_block(block, before, 2 ** (index + 1))


def dilate_block(block: nn.Module, first: int, others: int) -> None:
    """Set the stride of a block to 1, the dilation of its first 3x3 convolution to `first`, of others to `others`."""
    dilation = first
    for module in block.modules():
        if isinstance(module, nn.Conv2d):
            module.stride = (1, 1)
            if module.kernel_size == (3, 3):
                module.dilation = module.padding = (dilation, dilation)
                dilation = others
        elif isinstance(module, nn.AvgPool2d):
            module.stride = module.kernel_size = 1
