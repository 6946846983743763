"""torchvision detectors with a pre-trained backbone: Faster and Mask R-CNN, RetinaNet.

If the run has a feature pyramid (a torchvision detector, or `timm/NAME+fpn` with a CNN or a ViT), it is the backbone,
so that encoder and decoder can be loaded. Otherwise a new pyramid is added to the run's encoder. The pyramid of a ViT
uses four evenly spaced blocks, resampled to strides 4 to 32, as in the protocols of XCiT and SelfPatch.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torchvision
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from dovetail.downstream.own import OwnPyramid
from dovetail.downstream.start import Source
from dovetail.errors import ModelError, OptionsError
from dovetail.networks.construct import construct
from dovetail.networks.decoders import EncoderFPN, encoder_fpn
from dovetail.networks.network import Construction
from dovetail.networks.timm_names import encoder_of
from dovetail.networks.vit import is_vit
from dovetail.networks.vit_fpn import ViTFPN, vit_fpn
from dovetail.train.batch_norm import JointBatchNorm

DetectTask = Literal["boxes", "masks"]
DetectHead = Literal["rcnn", "retinanet"]
BoxHead = Literal["auto", "2fc", "4conv1fc"]
HeadNorm = Literal["none", "sync"]
HEAD_WIDTHS = (1 / 16, 4.0)
PYRAMIDS = ("dovetail.networks.decoders.encoder_fpn", "dovetail.networks.vit_fpn.vit_fpn")


@dataclass(frozen=True)
class DetectorSpec:
    """Specification of a detector.

    Attributes:
        task: "boxes", or "masks" for boxes and masks.
        head: "rcnn" (two stages) or "retinanet" (boxes only).
        classes: Number of categories. Label 0 of the detector is the background.
        sides: Shorter sides in pixels that images are resized to: a random one in training, otherwise the last one.
        longest: Largest longer side in pixels.
        box_head: Box head of R-CNN: two layers, or four convolutions and a layer. "auto" keeps the model's head.
        head_norm: "sync" adds synchronised BatchNorm after the convolutions of the box and mask heads.
        head_width: Width factor of the box and mask heads.
        proposals: Number of proposals per image that the second stage is trained on.
    """

    task: DetectTask
    head: DetectHead
    classes: int
    sides: tuple[int, ...]
    longest: int
    box_head: BoxHead = "auto"
    head_norm: HeadNorm = "none"
    head_width: float = 1.0
    proposals: int = 512


class RetinaLevels(nn.Module):
    """Converts a pyramid of strides 4 to 32 for RetinaNet: strides 8 to 32, plus 64 and 128 by convolutions.

    The convolutions start from stride 32, as in torchvision (Lin et al., 2017, https://arxiv.org/abs/1708.02002).
    """

    def __init__(self, body: EncoderFPN | ViTFPN | OwnPyramid) -> None:
        super().__init__()
        self.body = body
        self.out_channels = body.out_channels
        self.coarser = LastLevelP6P7(self.out_channels, self.out_channels)

    def forward(self, pixels: Tensor) -> OrderedDict[str, Tensor]:
        """Return five feature maps for pixels [B, C, H, W]."""
        pyramid: OrderedDict[str, Tensor] = self.body(pixels)
        finer = [pyramid[name] for name in ("1", "2", "3")]
        levels, _ = self.coarser(finer, finer, ["1", "2", "3"])
        return OrderedDict((str(index), level) for index, level in enumerate(levels))


def build_detector(source: Source, spec: DetectorSpec) -> tuple[nn.Module, nn.Module]:
    """Return a detector with random weights, and its submodule for pre-trained weights.

    Raises:
        DovetailError: RetinaNet is requested with masks, or the encoder does not support a pyramid.
    """
    if spec.head == "retinanet" and spec.task == "masks":
        raise OptionsError("RetinaNet does not support masks; use --task boxes or --head rcnn.")
    check_heads(spec)
    if source.in_channels != 3:
        raise ModelError(f"Detectors expect 3 channels (RGB), but the model has {source.in_channels}; use another run.")
    sizes: dict[str, Any] = {
        "min_size": spec.sides,
        "max_size": spec.longest,
        "image_mean": list(source.mean),
        "image_std": list(source.std),
    }
    if spec.head == "rcnn":
        sizes["box_batch_size_per_image"] = spec.proposals
    if source.own is not None:
        own = OwnPyramid(source.network("random"))
        return with_heads(on_pyramid(own, spec, sizes), spec), own.network.model
    call = Construction.parse(source.constructor)
    if call is None:
        raise ModelError(f"{source.constructor} cannot be built by name; load its weights with load_into.")
    if call.path.startswith("torchvision.models.detection."):
        name = torchvision_name(call.path.rpartition(".")[2], spec)
        builder = torchvision.models.get_model_builder(name)
        model: nn.Module = builder(weights=None, weights_backbone=None, num_classes=spec.classes + 1, **sizes)
        return with_heads(model, spec), model
    body = pyramid_of(call, source)
    return with_heads(on_pyramid(body, spec, sizes), spec), body


def check_heads(spec: DetectorSpec) -> None:
    """Raise `OptionsError` if the head options conflict."""
    second = (spec.box_head, spec.head_norm, spec.head_width, spec.proposals)
    if spec.head == "retinanet" and second != ("auto", "none", 1.0, 512):
        raise OptionsError(
            "RetinaNet does not support --box-head, --head-norm, --head-width and --proposals; omit them, or use "
            "--head rcnn."
        )
    if not HEAD_WIDTHS[0] <= spec.head_width <= HEAD_WIDTHS[1]:
        raise OptionsError(f"head_width expects a factor from 1/16 to 4, got {spec.head_width:g}.")
    if spec.proposals < 1:
        raise OptionsError(f"proposals expects at least 1, got {spec.proposals}.")
    if spec.head_norm == "sync" and spec.task == "boxes" and spec.box_head != "4conv1fc":
        raise OptionsError("--head-norm sync needs convolutions in the box head; add --box-head 4conv1fc.")


def with_heads(model: nn.Module, spec: DetectorSpec) -> nn.Module:
    """Replace the box and mask heads of an R-CNN detector by the specified ones.

    The dense-SSL protocol uses four convolutions and a layer, with synchronised BatchNorm there and in the mask head
    (detectron2's 4conv1fc and SyncBN). By default, heads of another width have two layers.
    """
    norm = JointBatchNorm if spec.head_norm == "sync" else None
    if (spec.box_head, norm, spec.head_width) == ("auto", None, 1.0):
        return model
    detector: Any = model
    channels, outputs = detector.backbone.out_channels, spec.classes + 1
    hidden, features = round(256 * spec.head_width), round(1024 * spec.head_width)
    if spec.box_head == "4conv1fc":
        detector.roi_heads.box_head = FastRCNNConvFCHead((channels, 7, 7), [hidden] * 4, [features], norm_layer=norm)
    elif spec.box_head == "2fc" or spec.head_width != 1:
        detector.roi_heads.box_head = TwoMLPHead(channels * 7 * 7, features)
    if spec.head_width != 1:
        detector.roi_heads.box_predictor = FastRCNNPredictor(features, outputs)
    if spec.task == "masks" and (norm is not None or spec.head_width != 1):
        detector.roi_heads.mask_head = MaskRCNNHeads(channels, [hidden] * 4, 1, norm_layer=norm)
        detector.roi_heads.mask_predictor = MaskRCNNPredictor(hidden, hidden, outputs)
    return model


def torchvision_name(name: str, spec: DetectorSpec) -> str:
    """Return the name of the torchvision detector with the same backbone, for the task."""
    wanted = "retinanet" if spec.head == "retinanet" else "maskrcnn" if spec.task == "masks" else "fasterrcnn"
    return re.sub("^(fasterrcnn|maskrcnn|retinanet)", wanted, name)


def pyramid_of(call: Construction, source: Source) -> EncoderFPN | ViTFPN:
    """Return the run's encoder and pyramid, or its encoder with a new pyramid, with random weights."""
    if call.path in PYRAMIDS:
        model = construct(str(call))
        assert isinstance(model, (EncoderFPN, ViTFPN))
        return model
    name = encoder_name(call)
    if name is None:
        raise ModelError(
            f"{source.constructor} has no timm encoder; specify a detector with --model, such as timm/resnet50+fpn."
        )
    own = encoder_of(call)[1] if call.path.startswith(("timm.", "dovetail.")) else {}
    if is_vit(name):
        return vit_fpn(name, in_channels=source.in_channels, image_size=source.image_size, encoder_options=own)
    return encoder_fpn(name, in_channels=source.in_channels, encoder_options=own)


def encoder_name(call: Construction) -> str | None:
    """Return the timm name of a model's encoder, or None."""
    import timm

    if call.path.startswith("smp."):
        given = call.args[0] if call.args else call.kwargs.get("encoder_name", "resnet34")
        name = str(given).removeprefix("tu-")
    elif call.path.startswith("torchvision."):
        found = re.search(r"resnet\d+", call.path)
        name = found[0] if found else ""
    else:
        name, _ = encoder_of(call)
    return name if timm.is_model(name) else None


def on_pyramid(body: EncoderFPN | ViTFPN | OwnPyramid, spec: DetectorSpec, sizes: Mapping[str, Any]) -> nn.Module:
    """Return a detector on a pyramid."""
    classes = spec.classes + 1
    detector: nn.Module
    if spec.head == "retinanet":
        octaves = tuple((side, int(side * 2 ** (1 / 3)), int(side * 2 ** (2 / 3))) for side in (32, 64, 128, 256, 512))
        anchors = AnchorGenerator(octaves, ((0.5, 1.0, 2.0),) * len(octaves))
        detector = RetinaNet(RetinaLevels(body), classes, anchor_generator=anchors, **sizes)
        return detector
    family = MaskRCNN if spec.task == "masks" else FasterRCNN
    detector = family(body, num_classes=classes, **sizes)
    return detector
