"""Location of encoder, decoder and task heads in the modules of supported libraries, by tensor names.

Encoders of the same architecture have the same local names in timm, torchvision and segmentation_models_pytorch, so
weights can be transferred once every name is split into a part and a local name.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from segmentation_models_pytorch.base import SegmentationModel
from segmentation_models_pytorch.encoders import TimmUniversalEncoder
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.ssd import SSD
from torchvision.models.segmentation import LRASPP

from dovetail.networks.decoders import EncoderFCN, EncoderFPN
from dovetail.networks.network import Network
from dovetail.networks.torchvision_models import LRASPP_DECODER, head_layers, is_segmentation
from dovetail.networks.vit_fpn import ViTFPN

Part = Literal["encoder", "decoder", "head"]

# Classifiers of timm's and torchvision's image classifiers.
_CLASSIFIERS = ("fc.", "classifier.", "head.fc.", "heads.", "head.")


@dataclass(frozen=True)
class Parts:
    """Prefixes of names in a module's `state_dict`. Tensors without one of these prefixes are task heads.

    Attributes:
        encoder_prefix: Prefix of the encoder, such as "backbone.body."; "" if the module is the encoder.
        decoder_prefixes: Prefixes of the decoder; empty without one.
        head_prefixes: Prefixes of heads inside the encoder's prefix, such as a classifier.
    """

    encoder_prefix: str
    decoder_prefixes: tuple[str, ...] = ()
    head_prefixes: tuple[str, ...] = ()

    @property
    def decoder_root(self) -> str:
        """The longest common dotted prefix of the decoder; local names of the decoder come after it."""
        if len(self.decoder_prefixes) == 1:
            return self.decoder_prefixes[0]
        columns = zip(*(prefix.split(".")[:-1] for prefix in self.decoder_prefixes), strict=False)
        shared = itertools.takewhile(lambda column: len(set(column)) == 1, columns)
        return "".join(f"{column[0]}." for column in shared)

    def below(self, prefix: str) -> Parts:
        """Return the same parts for a module that contains this one under a prefix, such as "model."."""
        moved = (tuple(prefix + one for one in several) for several in (self.decoder_prefixes, self.head_prefixes))
        return Parts(prefix + self.encoder_prefix, *moved)

    def split(self, name: str) -> tuple[Part, str]:
        """Return the part of a tensor, and its name within the part."""
        if name.startswith(self.decoder_prefixes) and self.decoder_prefixes:
            return "decoder", name.removeprefix(self.decoder_root)
        if not name.startswith(self.encoder_prefix) or name.startswith(self.head_prefixes):
            return "head", name
        return "encoder", name.removeprefix(self.encoder_prefix)


def locate_parts(model: nn.Module) -> Parts | None:
    """Return the parts of a module of timm, torchvision or segmentation_models_pytorch; None for others."""
    if isinstance(model, SegmentationModel):
        timm_inside = isinstance(model.get_submodule("encoder"), TimmUniversalEncoder)
        return Parts("encoder.model." if timm_inside else "encoder.", ("decoder.",))
    if isinstance(model, (EncoderFPN, EncoderFCN, ViTFPN)):
        return Parts("encoder.", ("decoder.",))
    if is_segmentation(model):
        return Parts("backbone.", tuple(f"classifier.{name}." for name, _ in head_layers(model)))
    if isinstance(model, LRASPP):
        return Parts("backbone.", LRASPP_DECODER)
    if isinstance(model, SSD):
        return Parts("backbone.")
    if isinstance(model, BackboneWithFPN):
        return Parts("body.", ("fpn.",))
    children = dict(model.named_children())
    if isinstance(children.get("backbone"), BackboneWithFPN):
        return Parts("backbone.body.", ("backbone.fpn.",))
    if type(model).__module__.startswith(("timm.", "torchvision.models.")):
        return Parts("", (), tuple(prefix for prefix in _CLASSIFIERS if prefix.partition(".")[0] in children))
    return None


def is_layer_normed(network: Network) -> bool:
    """Whether the encoder has LayerNorm and no BatchNorm, like ViTs and ConvNeXts."""
    modules = [
        module
        for name, module in network.model.named_modules()
        if not network.decoder_prefixes or not f"{name}.".startswith(network.decoder_prefixes)
    ]
    batch = any(isinstance(module, _BatchNorm) for module in modules)
    return not batch and any(isinstance(module, nn.LayerNorm) for module in modules)


def local_name(name: str) -> str:
    """Return a local name as in timm's plain models: "stages_0" of a feature extractor becomes "stages.0"."""
    return re.sub(r"\b(stem|stages|layers|blocks|features)_(\d+)", r"\1.\2", name)


def untrained_names(
    names: Iterable[str], parts: Parts, *, parameters: Iterable[str], unreached: Iterable[str]
) -> list[str]:
    """Return the tensors that were not pre-trained: unreached parameters, and buffers of modules with only those.

    Args:
        names: All names of the `state_dict`.
        parts: Parts of the module. A buffer outside them belongs to the parameters of the nearest enclosing module.
        parameters: Names of parameters.
        unreached: Parameters that do not contribute to a tap.
    """
    every, learns, dead = list(names), set(parameters), set(unreached)
    owners: dict[str, list[str]] = {}
    for name in every:
        owners.setdefault(name.rpartition(".")[0], []).append(name)
    untrained = set()
    for owner, group in owners.items():
        own = learns.intersection(group)
        outside = parts.split(group[0])[0] == "head"
        near = own or (_around(owner, learns) if outside else set())
        if near and near <= dead:
            untrained.update(set(group) - own)
    return [name for name in every if name in dead or name in untrained]


def _around(owner: str, parameters: set[str]) -> set[str]:
    """Return the parameters of the nearest module that encloses `owner` and has any."""
    while owner:
        owner = owner.rpartition(".")[0]
        found = {name for name in parameters if name.startswith(f"{owner}." if owner else "")}
        if found:
            return found
    return set()
