"""Models of the user in fine-tuning: the last map of their decoder with a new head.

Shapes: B images, C channels, H x W pixels.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from dovetail.errors import ModelError, OptionsError
from dovetail.importing import is_path
from dovetail.networks.build import build_network
from dovetail.networks.modules import copied, module_of
from dovetail.networks.network import Network, decoder_taps, deepest_encoder_tap
from dovetail.networks.own import Paths, paths_in
from dovetail.sizes import Size
from dovetail.views.view import View

PYRAMID_CHANNELS = 256
PYRAMID_STRIDES = (4, 8, 16, 32)


@dataclass(frozen=True)
class OwnModel:
    """A module of the user.

    Attributes:
        module: The module, which is copied before it is changed.
        encoder: Path or paths of the encoder.
        decoder: Path or paths of the decoder, or None.
        taps: Path of the module of each tap, or None.
    """

    module: nn.Module
    encoder: Paths = None
    decoder: Paths = None
    taps: Mapping[str, str] | None = None

    def paths(self) -> dict[str, Any]:
        """Return the paths as plain values."""
        found = {"encoder": paths_in(self.encoder), "decoder": paths_in(self.decoder), "taps": dict(self.taps or {})}
        return {name: value for name, value in found.items() if value}

    def network(self, *, in_channels: int, image_size: Size) -> Network:
        """Return a copy of the module as a network."""
        with torch.device("cpu"):  # a trial run needs values, also where other models are built on "meta"
            return build_network(
                copied(self.module),
                encoder=self.encoder,
                decoder=self.decoder,
                taps=self.taps,
                in_channels=in_channels,
                image_size=image_size,
            )


def own_model(model: Any, paths: Mapping[str, Any], *, encoder: Paths) -> OwnModel | None:
    """Return the module of the user that `model` is or names, or None for the name of another model.

    Args:
        model: Module, its import path "package.module:Class", the name of another model, or None.
        paths: Paths that the run has saved.
        encoder: Path of the encoder; by default, that of the run.

    Raises:
        OptionsError: A path is specified without a module, or there is no path.
    """
    if not isinstance(model, nn.Module) and not (isinstance(model, str) and is_path(model)):
        if encoder is not None:
            raise OptionsError("encoder is the path of a part of your own module; pass the module as model, too.")
        return None
    module = module_of(model)
    assert module is not None
    if encoder is None and not paths:
        raise OptionsError(
            f"The parts of the {type(module).__name__} are not known; specify the path of its encoder as encoder."
        )
    return OwnModel(module, encoder or paths.get("encoder"), paths.get("decoder"), paths.get("taps"))


def view_of(pixels: Tensor) -> View:
    """Return pixels [B, C, H, W] as a view of whole images."""
    count, (height, width) = len(pixels), pixels.shape[-2:]
    return View(
        pixels=pixels,
        box=pixels.new_tensor([[0.0, 0.0, 1.0, 1.0]]).repeat(count, 1),
        flipped=torch.zeros(count, dtype=torch.bool, device=pixels.device),
        source_px=pixels.new_tensor([[float(height), float(width)]]).repeat(count, 1),
    )


class LastMap(nn.Module):
    """The finest map of the decoder, or the deepest map of an encoder without a decoder.

    Attributes:
        network: Network around the module of the user.
        tap: Name of the map.
        channels: Number of channels of the map.
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network
        self.tap = next(iter(decoder_taps(network.taps)), None) or deepest_encoder_tap(network.taps)
        self.channels = network.taps[self.tap].channels
        with torch.device("cpu"):
            network.prune([self.tap])

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the map [B, C, h, w] of normalised pixels."""
        found: Tensor = self.network(view_of(pixels), (self.tap,))[self.tap]
        return found


class OwnPyramid(nn.Module):
    """A new feature pyramid on the maps of the decoder with strides 4 to 32, or on those of the encoder.

    Attributes:
        network: Network around the module of the user.
        taps: Names of the maps, finest first.
        pyramid: Feature pyramid of 256 channels.
    """

    out_channels = PYRAMID_CHANNELS

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network
        self.taps = pyramid_taps(network)
        widths = [network.taps[tap].channels for tap in self.taps]
        self.pyramid = FeaturePyramidNetwork(widths, self.out_channels, LastLevelMaxPool())
        with torch.device("cpu"):
            network.prune(self.taps)

    def forward(self, pixels: Tensor) -> OrderedDict[str, Tensor]:
        """Return the levels of the pyramid, and one coarser level."""
        found = self.network(view_of(pixels), tuple(self.taps))
        maps = OrderedDict((str(index), found[tap]) for index, tap in enumerate(self.taps))
        levels: OrderedDict[str, Tensor] = self.pyramid(maps)
        return levels


def pyramid_taps(network: Network) -> Sequence[str]:
    """Return the maps at strides 4, 8, 16 and 32: those of the decoder if it has them all, or else of the encoder.

    Raises:
        ModelError: Neither part returns these maps.
    """
    for part in ("decoder", "encoder"):
        found = {tap.stride: name for name, tap in network.taps.items() if tap.part == part and tap.kind == "map"}
        if set(PYRAMID_STRIDES) <= found.keys():
            return [found[stride] for stride in PYRAMID_STRIDES]
    raise ModelError(
        f"A detector needs maps at strides 4, 8, 16 and 32, but the model has the maps {', '.join(network.taps)}; "
        "specify the modules that return them as encoder."
    )


def prefixes_of(network: Network) -> dict[str, tuple[str, ...]]:
    """Return the prefixes of encoder, decoder and head in a segmentation model on `LastMap`."""
    inside = "body.network.model."
    return {
        "decoder": tuple(inside + prefix for prefix in network.decoder_prefixes),
        "encoder": (inside + network.encoder_prefix,),
        "head": ("head.",),
    }
