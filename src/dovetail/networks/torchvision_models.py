"""torchvision's segmentation and detection models.

Pixels bypass the transform of detectors, because views are already normalised. Models are built without weights, so
that BatchNorm is trained and no layer is frozen.
"""

from __future__ import annotations

from collections.abc import Collection

import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.ssd import SSD, SSDFeatureExtractorVGG
from torchvision.models.segmentation import FCN, LRASPP, DeepLabV3

from dovetail.errors import ModelError
from dovetail.networks.decoders import fpn_levels
from dovetail.networks.known import TORCHVISION, unknown_torchvision
from dovetail.networks.network import Construction
from dovetail.networks.staged import Stages, TwoPartNetwork, run_children
from dovetail.sizes import Size

LRASPP_DECODER = ("classifier.cbr.", "classifier.scale.")


class TorchvisionSegmentation(TwoPartNetwork):
    """FCN or DeepLabV3. Encoder stages are the backbone's children; the decoder is the head before its classifier."""

    def __init__(
        self, model: FCN | DeepLabV3, *, construction: Construction | None, in_channels: int, image_size: Size
    ) -> None:
        super().__init__(
            model,
            construction=construction,
            encoder_prefix="backbone.",
            decoder_prefixes=tuple(f"classifier.{name}." for name, _ in head_layers(model)),
            in_channels=in_channels,
            image_size=image_size,
        )

    def encode(self, pixels: Tensor, wanted: Collection[str] | None) -> Stages:
        """Return the outputs of the backbone's children by name."""
        return run_children(self.model.get_submodule("backbone").named_children(), pixels, wanted)

    def decode(self, stages: Stages, wanted: Collection[str] | None) -> Stages:
        """Return the head's map before its dropout and classifier."""
        decoded = list(stages.values())[-1]
        for _, layer in head_layers(self.model):
            decoded = layer(decoded)
        return {"head": decoded}


def head_layers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the children of a segmentation model's `classifier` up to its last ReLU."""
    children = list(model.get_submodule("classifier").named_children())
    last = max(index for index, (_, child) in enumerate(children) if isinstance(child, nn.ReLU))
    return children[: last + 1]


class TorchvisionDetector(TwoPartNetwork):
    """Faster, Mask or Keypoint R-CNN, RetinaNet or FCOS on a backbone with a feature pyramid.

    Encoder stages are the body's children, decoder stages the names of the body's layers that feed the pyramid.
    """

    def __init__(
        self,
        model: FasterRCNN | RetinaNet | FCOS,
        *,
        construction: Construction | None,
        in_channels: int,
        image_size: Size,
    ) -> None:
        backbone = model.get_submodule("backbone")
        if not isinstance(backbone, BackboneWithFPN):
            raise ModelError(
                f"{type(model).__name__} has a {type(backbone).__name__} as backbone, but only torchvision's "
                "BackboneWithFPN is supported; pass the paths of its parts as `encoder` and `decoder`."
            )
        super().__init__(
            model,
            construction=construction,
            encoder_prefix="backbone.body.",
            decoder_prefixes=("backbone.fpn.",),
            in_channels=in_channels,
            image_size=image_size,
        )

    def encode(self, pixels: Tensor, wanted: Collection[str] | None) -> Stages:
        """Return the outputs of the body's children by name."""
        return run_children(self.model.get_submodule("backbone.body").named_children(), pixels, wanted)

    def decode(self, stages: Stages, wanted: Collection[str] | None) -> Stages:
        """Return levels of the pyramid, named by the body's layers."""
        backbone = self.model.get_submodule("backbone")
        assert isinstance(backbone, BackboneWithFPN)
        layers = list(backbone.body.return_layers)
        levels = [layers.index(layer) for layer in (layers if wanted is None else wanted)]
        features = [stages[layer] for layer in layers]
        outputs = fpn_levels(backbone.fpn, features, levels=levels, drop=self.drop_laterals)
        return {layers[level]: value for level, value in outputs.items()}


class TorchvisionLRASPP(TwoPartNetwork):
    """LR-ASPP. Encoder stages are the backbone's children; the decoder's map is the one before the classifiers."""

    def __init__(self, model: LRASPP, *, construction: Construction | None, in_channels: int, image_size: Size) -> None:
        super().__init__(
            model,
            construction=construction,
            encoder_prefix="backbone.",
            decoder_prefixes=LRASPP_DECODER,
            in_channels=in_channels,
            image_size=image_size,
        )

    def encode(self, pixels: Tensor, wanted: Collection[str] | None) -> Stages:
        """Return the outputs of the backbone's children by name."""
        return run_children(self.model.get_submodule("backbone").named_children(), pixels, wanted)

    def decode(self, stages: Stages, wanted: Collection[str] | None) -> Stages:
        """Return the head's map, at the size of the backbone's finer output."""
        assert isinstance(self.model, LRASPP)
        names = {name: layer for layer, name in self.model.backbone.return_layers.items()}
        low, high = stages[names["low"]], stages[names["high"]]
        head = self.model.classifier
        weighted = head.cbr(high) * head.scale(high)
        return {"head": F.interpolate(weighted, size=low.shape[-2:], mode="bilinear", align_corners=False)}


class TorchvisionSSD(TwoPartNetwork):
    """SSD or SSDlite, which has no decoder. Stages are the extractor's first two maps; smaller ones do not train."""

    def __init__(self, model: SSD, *, construction: Construction | None, in_channels: int, image_size: Size) -> None:
        super().__init__(
            model,
            construction=construction,
            encoder_prefix="backbone.",
            decoder_prefixes=(),
            in_channels=in_channels,
            image_size=image_size,
        )

    def encode(self, pixels: Tensor, wanted: Collection[str] | None) -> Stages:
        """Return the maps that the detector's first two heads read, as "0" and "1"."""
        extractor = self.model.get_submodule("backbone")
        if isinstance(extractor, SSDFeatureExtractorVGG):
            fine = extractor.features(pixels)
            scaled = extractor.scale_weight.view(1, -1, 1, 1) * F.normalize(fine)
            return {"0": scaled, "1": extractor.extra[0](fine)}
        first, second = extractor.get_submodule("features").children()
        fine = first(pixels)
        return {"0": fine, "1": second(fine)}

    def decode(self, stages: Stages, wanted: Collection[str] | None) -> Stages:
        """Return no maps, because there is no decoder."""
        return {}


def build_torchvision(name: str, *, in_channels: int, image_size: Size) -> TwoPartNetwork:
    """Build torchvision's model `name` with random weights; all parameters are trainable.

    Raises:
        ModelError: If the name is unknown or the images do not have 3 channels.
    """
    if name not in TORCHVISION:
        raise unknown_torchvision(name)
    if in_channels != 3:
        raise ModelError(
            f"torchvision's models need 3 channels, got {in_channels}; replace the first convolution and pass the "
            "module."
        )
    kwargs = {"weights": None, "weights_backbone": None}
    construction = Construction(f"torchvision.models.{TORCHVISION[name]}.{name}", dict(kwargs))
    model = torchvision.models.get_model(name, **kwargs)
    return wrap_torchvision(model, construction=construction, in_channels=in_channels, image_size=image_size)


def wrap_torchvision(
    model: nn.Module, *, construction: Construction | None, in_channels: int, image_size: Size
) -> TwoPartNetwork:
    """Wrap a segmentation or detection model of torchvision."""
    if isinstance(model, (FCN, DeepLabV3)):
        return TorchvisionSegmentation(model, construction=construction, in_channels=in_channels, image_size=image_size)
    if isinstance(model, LRASPP):
        return TorchvisionLRASPP(model, construction=construction, in_channels=in_channels, image_size=image_size)
    if isinstance(model, SSD):
        return TorchvisionSSD(model, construction=construction, in_channels=in_channels, image_size=image_size)
    return TorchvisionDetector(model, construction=construction, in_channels=in_channels, image_size=image_size)


def is_segmentation(model: nn.Module) -> bool:
    """Whether the model is torchvision's FCN or DeepLabV3."""
    return isinstance(model, (FCN, DeepLabV3))


def is_torchvision(model: nn.Module) -> bool:
    """Whether `wrap_torchvision` supports the model."""
    return isinstance(model, (FCN, DeepLabV3, FasterRCNN, RetinaNet, FCOS, LRASPP, SSD))
