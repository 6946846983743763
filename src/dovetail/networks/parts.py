"""Where encoder, decoder and task heads live in the modules of known libraries, by the names of their tensors.

The encoders of one architecture have the same local names in timm, torchvision and segmentation_models_pytorch, so
weights move between libraries once every name is split into its part and its local name.
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
    """Prefixes of names in a module's `state_dict`; what is under none of them is a task head.

    Attributes:
        encoder_prefix: Of the encoder, such as "backbone.body."; "" when the module is the encoder.
        decoder_prefixes: Of the decoder; empty without one.
        head_prefixes: Of heads inside the encoder's prefix, such as a classifier's.
    """

    encoder_prefix: str
    decoder_prefixes: tuple[str, ...] = ()
    head_prefixes: tuple[str, ...] = ()

    @property
    def decoder_root(self) -> str:
        """The longest dotted path that all decoder prefixes share: what local names of the decoder begin after."""
        if len(self.decoder_prefixes) == 1:
            return self.decoder_prefixes[0]
        columns = zip(*(prefix.split(".")[:-1] for prefix in self.decoder_prefixes), strict=False)
        shared = itertools.takewhile(lambda column: len(set(column)) == 1, columns)
        return "".join(f"{column[0]}." for column in shared)

    def below(self, prefix: str) -> Parts:
        """Return the same parts in a module that holds this one under a prefix, such as "model."."""
        moved = (tuple(prefix + one for one in several) for several in (self.decoder_prefixes, self.head_prefixes))
        return Parts(prefix + self.encoder_prefix, *moved)

    def split(self, name: str) -> tuple[Part, str]:
        """Return the part that a tensor belongs to, and its name within the part."""
        if name.startswith(self.decoder_prefixes) and self.decoder_prefixes:
            return "decoder", name.removeprefix(self.decoder_root)
        if not name.startswith(self.encoder_prefix) or name.startswith(self.head_prefixes):
            return "head", name
        return "encoder", name.removeprefix(self.encoder_prefix)


def locate_parts(model: nn.Module) -> Parts | None:
    """Return where the parts of a module of timm, torchvision or segmentation_models_pytorch are; None for others."""
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
    """Whether the encoder has LayerNorm and no BatchNorm, as ViTs and ConvNeXts have."""
    modules = [
        module
        for name, module in network.model.named_modules()
        if not network.decoder_prefixes or not f"{name}.".startswith(network.decoder_prefixes)
    ]
    batch = any(isinstance(module, _BatchNorm) for module in modules)
    return not batch and any(isinstance(module, nn.LayerNorm) for module in modules)


def local_name(name: str) -> str:
    """Return a local name as timm's plain models spell it: "stages_0" of a feature extractor becomes "stages.0"."""
    return re.sub(r"\b(stem|stages|layers|blocks|features)_(\d+)", r"\1.\2", name)


def untrained_names(
    names: Iterable[str], parts: Parts, *, parameters: Iterable[str], unreached: Iterable[str]
) -> list[str]:
    """Return which tensors pre-training never trained: unreached parameters, and buffers beside only those.

    Args:
        names: All names of the `state_dict`.
        parts: Where the parts are. A buffer outside them counts with the parameters of the nearest module around it.
        parameters: Those of the names that are parameters.
        unreached: Parameters that no tap reached.
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
    """Return the parameters of the nearest module around the module `owner` that has any."""
    while owner:
        owner = owner.rpartition(".")[0]
        found = {name for name in parameters if name.startswith(f"{owner}." if owner else "")}
        if found:
            return found
    return set()
