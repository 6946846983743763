"""segmentation_models_pytorch: all architectures, with the decoder's stages as taps.

The library's decoder runs, its stages are recorded, and it is stopped after the last required stage. The encoder always
runs completely, because the library cannot stop it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any

import segmentation_models_pytorch as smp
import timm
from segmentation_models_pytorch.base import SegmentationModel
from segmentation_models_pytorch.encoders import TimmUniversalEncoder
from torch import Tensor, nn

from dovetail.errors import ModelError
from dovetail.networks.decoders import size_options
from dovetail.networks.known import ARCHITECTURES, unknown_architecture, unknown_encoder
from dovetail.networks.network import Construction
from dovetail.networks.staged import INPUT, Stages, TwoPartNetwork, is_map, record
from dovetail.sizes import Size

# Modules of each decoder whose outputs are taps, in the order they run; the output of the decoder comes last.
_STAGES: Mapping[str, Callable[[Any], list[nn.Module]]] = {
    "UnetDecoder": lambda decoder: list(decoder.blocks),
    "MAnetDecoder": lambda decoder: list(decoder.blocks),
    "LinknetDecoder": lambda decoder: list(decoder.blocks),
    "UnetPlusPlusDecoder": lambda decoder: [decoder.blocks[f"x_0_{i}"] for i in range(decoder.depth + 1)],
    "FPNDecoder": lambda decoder: [decoder.p5, decoder.p4, decoder.p3],
    "UPerNetDecoder": lambda decoder: [decoder.psp, *decoder.fpn_conv_blocks[:-1]],
    "PANDecoder": lambda decoder: [decoder.get_submodule(name) for name in _pan_stages(decoder)],
    "DeepLabV3PlusDecoder": lambda decoder: [decoder.aspp],
    "DPTDecoder": lambda decoder: list(decoder.fusion_blocks[:-1]),
}


def _pan_stages(decoder: nn.Module) -> list[str]:
    present = dict(decoder.named_children())
    return [name for name in ("fpa", "gau3", "gau2") if name in present]


class SmpNetwork(TwoPartNetwork):
    """A segmentation model of segmentation_models_pytorch.

    Encoder stages are "1".."5" as the library numbers them; decoder stages are "0", "1", … in the order they run.
    """

    def __init__(
        self, model: nn.Module, *, construction: Construction | None, in_channels: int, image_size: Size
    ) -> None:
        encoder = model.get_submodule("encoder")
        super().__init__(
            model,
            construction=construction,
            encoder_prefix="encoder.model." if isinstance(encoder, TimmUniversalEncoder) else "encoder.",
            decoder_prefixes=("decoder.",),
            in_channels=in_channels,
            image_size=image_size,
        )
        self.size_multiple = max(self.size_multiple, int(encoder.output_stride))  # type: ignore[arg-type]
        if isinstance(model, smp.DPT):  # its coarsest map is coarser than the ViT's, at stride 32 for four blocks
            self.size_multiple = max(self.size_multiple, 2 ** (len(model.decoder.fusion_blocks) + 1))

    def encode(self, pixels: Tensor, wanted: Collection[str] | None) -> Stages:
        """Return the encoder's maps by the library's number, and the pixels as "input"."""
        encoder = self.model.get_submodule("encoder")
        if isinstance(self.model, smp.DPT):
            maps, prefixes = encoder(pixels)
            stages = {str(index): value for index, value in enumerate(maps, start=1)}
            tokens = {f"prefix{index}": value for index, value in enumerate(prefixes, start=1) if value is not None}
            return {INPUT: pixels, **stages, **tokens}
        first, *rest = encoder(pixels)
        return {INPUT: first, **{str(index): value for index, value in enumerate(rest, start=1)}}

    def decode(self, stages: Stages, wanted: Collection[str] | None) -> Stages:
        """Return the requested stages of the decoder, or all of them."""
        decoder = self.model.get_submodule("decoder")
        inner = _STAGES.get(type(decoder).__name__, lambda _: [])(decoder)
        modules = {str(index): module for index, module in enumerate([*inner, decoder])}
        if wanted is not None:
            modules = {key: module for key, module in modules.items() if key in wanted}
        outputs, _ = record(modules, lambda: decoder(*self._decoder_inputs(stages)))
        return outputs

    def _decoder_inputs(self, stages: Stages) -> tuple[list[Tensor | None], ...]:
        """Return the decoder's inputs: features by stride after lateral dropout, and a ViT's prefix tokens."""
        keys = [key for key in stages if key.isdecimal()]
        used = [key for key in keys if is_map(stages[key])]  # transformers have an empty map at stride 2
        dropped = dict(zip(used, self.drop_laterals([stages[key] for key in used]), strict=True))
        features: list[Tensor | None] = [dropped.get(key, stages[key]) for key in keys]
        if isinstance(self.model, smp.DPT):
            return features, [stages.get(f"prefix{key}") for key in keys]
        return ([stages[INPUT], *features],)


def build_smp(architecture: str, encoder: str, *, in_channels: int, image_size: Size) -> SmpNetwork:
    """Build `smp.<architecture>(encoder_name=encoder)` with random weights and one class.

    Args:
        architecture: Name in any case, such as "unet" or "DeepLabV3Plus".
        encoder: Name in the library, or a timm model as "tu-<name>".
        in_channels: Number of input channels.
        image_size: Side of the images, or (height, width), for a trial run.
    """
    if architecture.lower() not in ARCHITECTURES:
        raise unknown_architecture(architecture, encoder)
    class_name = ARCHITECTURES[architecture.lower()]
    if class_name == "DPT" and not encoder.startswith("tu-"):
        encoder = f"tu-{encoder}"
    _check_encoder(architecture, encoder)
    kwargs: dict[str, Any] = {"encoder_name": encoder, "encoder_weights": None, "in_channels": in_channels}
    kwargs |= size_options(encoder.removeprefix("tu-")) if encoder.startswith("tu-") else {}
    if class_name == "DPT":
        kwargs["dynamic_img_size"] = True  # supports other crop sizes; does not affect parameters
    construction = Construction(f"smp.{class_name}", kwargs)
    try:
        model = getattr(smp, class_name)(**kwargs)
    except (ValueError, RuntimeError, TypeError, KeyError) as error:
        raise ModelError(f"{construction} cannot be built ({error}); choose another encoder.") from error
    return SmpNetwork(model, construction=construction, in_channels=in_channels, image_size=image_size)


def _check_encoder(architecture: str, encoder: str) -> None:
    timms = timm.is_model(encoder.removeprefix("tu-"))
    if not timms if encoder.startswith("tu-") else encoder not in smp.encoders.get_encoder_names():
        raise unknown_encoder(architecture, encoder)


def wrap_smp(model: SegmentationModel, *, in_channels: int, image_size: Size) -> SmpNetwork:
    """Wrap a model that the user built; its constructor call is known if the library kept its arguments."""
    kept: dict[str, Any] | None = vars(model).get("_hub_mixin_config")
    construction = None
    if kept is not None and type(model).__name__ in ARCHITECTURES.values():
        defaults = {name: value.default for name, value in inspect.signature(type(model).__init__).parameters.items()}
        kwargs = {name: value for name, value in kept.items() if name not in defaults or value != defaults[name]}
        kwargs["encoder_weights"] = None
        construction = Construction(f"smp.{type(model).__name__}", kwargs)
    return SmpNetwork(model, construction=construction, in_channels=in_channels, image_size=image_size)
