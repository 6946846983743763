"""Build a network from a model's name or a custom module."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import segmentation_models_pytorch as smp
import timm
from segmentation_models_pytorch.base import SegmentationModel
from segmentation_models_pytorch.encoders import TimmUniversalEncoder
from torch import nn

from dovetail.errors import ModelError, OptionsError, unknown_name
from dovetail.networks.construct import construct
from dovetail.networks.decoders import EncoderFCN, EncoderFPN, encoder_fcn, encoder_fpn, plain_options
from dovetail.networks.initialise import initialise
from dovetail.networks.known import closest, unknown_model, unknown_timm, without_library
from dovetail.networks.network import Construction, Network
from dovetail.networks.own import OwnNetwork, Paths
from dovetail.networks.smp import SmpNetwork, build_smp, wrap_smp
from dovetail.networks.timm_cnn import TimmNetwork
from dovetail.networks.timm_names import CREATE, TimmName, create_timm, is_timm_name, parse_model
from dovetail.networks.torchvision_models import build_torchvision, is_torchvision, wrap_torchvision
from dovetail.networks.vit import build_vit, is_vit
from dovetail.networks.vit_dpt import DPTNetwork, gives_tokens
from dovetail.networks.vit_fpn import ViTFPN, build_vit_fpn
from dovetail.sizes import Size

# Decoders of "timm/<name>+<decoder>", and their options with defaults.
DECODERS: Mapping[str, tuple[Callable[..., nn.Module], dict[str, int | bool]]] = {
    "fpn": (encoder_fpn, {"channels": 256, "norm": True, "tap_norm": False}),
    "fpn-bias": (encoder_fpn, {"channels": 256, "norm": False, "tap_norm": False}),
    "fcn": (encoder_fcn, {"channels": 256, "dilation": 6}),
    "fcn-d1": (encoder_fcn, {"channels": 512, "dilation": 1}),
}


def build_network(
    model: str | nn.Module,
    *,
    in_channels: int = 3,
    pretrained: bool = False,
    encoder: Paths = None,
    decoder: Paths = None,
    taps: Mapping[str, str] | None = None,
    image_size: Size = 224,
    drop_path: float = 0.0,
    checkpoint_blocks: bool = False,
) -> Network:
    """Build the network to pre-train.

    Args:
        model: "timm/<name>", "timm/<name>+<decoder>", "smp/<architecture>/<encoder>" or "torchvision/<name>"; a call of
            timm or segmentation_models_pytorch such as "timm.create_model('test_vit', patch_size=8)+fpn(channels=64)"
            or "smp.FPN(encoder_name='resnet18', decoder_pyramid_channels=64)"; or a module of these libraries, or any
            other module with `encoder` (and `decoder`).
        in_channels: Number of input channels.
        pretrained: Download and load the library's ImageNet weights.
        encoder: Dotted path of the encoder in a custom module, "" for the module itself. Several paths are allowed.
        decoder: Dotted path of the decoder in a custom module. Several paths are allowed.
        taps: Path of the module of each tap in a custom module, instead of all maps of its parts.
        image_size: Side of square images, or (height, width), in pixels, used for a trial run.
        drop_path: Stochastic depth of a timm ViT's last block, in [0, 1); off in the teacher.
        checkpoint_blocks: Recompute a timm ViT's blocks in the backward pass instead of storing activations.

    Raises:
        DovetailError: If the name is unknown, or the model does not support the size or an option.
    """
    if not 0 <= drop_path < 1:
        raise OptionsError(f"drop_path is {drop_path:g}; it must be at least 0 and below 1.")
    if isinstance(model, str) and is_timm_vit(model):
        options = {"image_size": image_size, "drop_path": drop_path, "checkpoint_blocks": checkpoint_blocks}
        return _named_vit(model.removeprefix("timm/"), in_channels=in_channels, pretrained=pretrained, **options)
    if drop_path or checkpoint_blocks:
        raise OptionsError("drop_path and checkpoint_blocks only apply to timm's ViTs by name; leave them out.")
    if isinstance(model, str):
        if encoder is not None or decoder is not None or taps:
            raise OptionsError(
                f"{model!r} already has an encoder and a decoder; leave out `encoder`, `decoder` and `taps`."
            )
        network = _by_name(model, in_channels=in_channels, image_size=image_size)
    else:
        size: dict[str, Any] = {"in_channels": in_channels, "image_size": image_size}
        network = _wrap(model, encoder=encoder, decoder=decoder, taps=taps, **size)
        network.frozen = tuple(name for name, value in network.model.named_parameters() if not value.requires_grad)
    if pretrained:
        initialise(network, "imagenet")
    return network


def is_timm_vit(model: str) -> bool:
    """Whether a name or call of timm is one of timm's plain ViTs, with or without a decoder."""
    return is_timm_name(model) and is_vit(parse_model(model).name)


def _named_vit(rest: str, **options: Any) -> Network:
    return build_vit_fpn(rest, **options) if TimmName.parse(rest).plus else build_vit(rest, **options)


def _by_name(model: str, *, in_channels: int, image_size: Size) -> Network:
    if model.startswith("smp."):
        return _by_call(model, in_channels=in_channels, image_size=image_size)
    if is_timm_name(model) and model != "timm/":
        return _build_timm(parse_model(model), in_channels=in_channels, image_size=image_size)
    library, _, rest = model.partition("/")
    match library:
        case "smp":
            architecture, slash, encoder = rest.partition("/")
            if not slash:
                raise ModelError(f"{model!r} has no encoder; write it as 'smp/{rest or 'unet'}/resnet50'.")
            return _with_tokens(build_smp(architecture, encoder, in_channels=in_channels, image_size=image_size))
        case "torchvision":
            return build_torchvision(rest, in_channels=in_channels, image_size=image_size)
        case _:
            raise without_library(model)


def _by_call(call: str, *, in_channels: int, image_size: Size) -> Network:
    """Build a model with random weights from a call of segmentation_models_pytorch.

    The call is text such as "smp.FPN(encoder_name='resnet18', decoder_pyramid_channels=64)". `in_channels` applies
    unless the call sets it.
    """
    construction = Construction.parse(call)
    if construction is None:
        raise ModelError(
            f"{call} is not a call with plain values; write it as \"smp.FPN(encoder_name='resnet18', "
            'decoder_pyramid_channels=64)".'
        )
    kwargs = {"encoder_weights": None, "in_channels": in_channels} | construction.kwargs
    construction = replace(construction, kwargs=kwargs)
    built = construct(str(construction))
    known = inspect.signature(type(built)).parameters
    if not isinstance(built.encoder, TimmUniversalEncoder):  # the library ignores unknown options
        unknown = next((name for name in kwargs if name not in known), None)
        if unknown is not None:
            raise ModelError(
                f"smp.{type(built).__name__} has no option {unknown!r}; its options are {', '.join(known)}."
            )
    channels = kwargs["in_channels"]
    return _with_tokens(SmpNetwork(built, construction=construction, in_channels=channels, image_size=image_size))


def _build_timm(named: TimmName, *, in_channels: int, image_size: Size) -> Network:
    if not timm.is_model(named.name):
        if named.options or named.decoder_options:  # a complete suggestion would lose them
            raise unknown_name("timm model", named.name, timm.list_models(), error=ModelError)
        raise unknown_timm(named.name, f"+{named.decoder}" if named.plus else "")
    if named.plus and named.decoder not in DECODERS:
        similar = closest(named.decoder, DECODERS)
        if similar is not None and not named.options and not named.decoder_options:
            raise unknown_model(f"timm/{named.name}+{named.decoder}", f"timm/{named.name}+{similar}")
        raise unknown_name("decoder", named.decoder, DECODERS, error=ModelError)
    model: nn.Module
    if named.plus:
        compose, defaults = DECODERS[named.decoder]
        kwargs = {"name": named.name, "in_channels": in_channels, **named.decoder_kwargs(defaults)}
        kwargs = {name: value for name, value in kwargs.items() if (name, value) != ("tap_norm", False)}
        kwargs |= {"encoder_options": named.options} if named.options else {}
        model = compose(**kwargs)
        construction = Construction(f"dovetail.networks.decoders.{compose.__name__}", kwargs)
    else:
        options = plain_options(named.name, in_channels=in_channels, encoder_options=named.options)
        model = create_timm(named.name, options)
        construction = Construction(CREATE, options, args=(named.name,))
    channels = named.options.get("in_chans", in_channels)
    return TimmNetwork(model, construction=construction, in_channels=channels, image_size=image_size)


def _wrap(
    model: nn.Module,
    *,
    encoder: Paths,
    decoder: Paths,
    taps: Mapping[str, str] | None,
    in_channels: int,
    image_size: Size,
) -> Network:
    if encoder is not None or taps:
        size: dict[str, Any] = {"in_channels": in_channels, "image_size": image_size}
        return OwnNetwork(model, encoder=encoder, decoder=decoder, taps=taps, **size)
    if decoder is not None:
        raise OptionsError("A custom module with `decoder` also needs `encoder`; pass its path.")
    if isinstance(model, SegmentationModel):
        return _with_tokens(wrap_smp(model, in_channels=in_channels, image_size=image_size))
    if is_torchvision(model):
        return wrap_torchvision(model, construction=None, in_channels=in_channels, image_size=image_size)
    if isinstance(model, ViTFPN):
        return build_vit_fpn(model)
    if is_vit(model):
        return build_vit(model)
    if isinstance(model, (EncoderFPN, EncoderFCN)) or type(model).__module__.startswith("timm."):
        return TimmNetwork(model, construction=None, in_channels=in_channels, image_size=image_size)
    raise ModelError(
        f"{type(model).__name__} is a custom module; pass the dotted paths of its parts as `encoder` and `decoder`."
    )


def _with_tokens(network: SmpNetwork) -> Network:
    """Return a DPT as a network with its ViT's token taps; other models are wrapped as usual."""
    model = network.model
    if isinstance(model, smp.DPT) and gives_tokens(model):
        tapped = DPTNetwork(model, construction=Construction.parse(network.constructor))
        tapped.image_size = network.image_size
        return tapped
    return network
