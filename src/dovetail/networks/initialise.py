"""Where the weights of a network start: at random, at the library's ImageNet weights, or at a file's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from urllib.error import URLError

import timm
import torchvision
from safetensors.torch import load_file
from segmentation_models_pytorch.encoders import get_encoder
from torch import Tensor

from dovetail.errors import DovetailError
from dovetail.networks.network import Construction, Network

# The classifier that torchvision trained on ImageNet behind each backbone.
_BACKBONES = ("resnet50", "resnet101", "mobilenet_v3_large")


def initialise(network: Network, init: str | Path | None) -> int:
    """Give a network its starting weights.

    Args:
        network: The network; its parameters are written in place.
        init: None leaves it as it is; "imagenet" fetches the library's supervised weights for the encoder; a path of
            a .safetensors file is loaded by the names of the whole model, which must all be there.

    Returns:
        How many tensors were written.

    Raises:
        DovetailError: When weights cannot be fetched, or do not fit.
    """
    if init is None:
        return 0
    if init == "imagenet":
        return _write(network, network.encoder_prefix, imagenet_weights(network), "its ImageNet weights")
    path = Path(init)
    if path.suffix != ".safetensors" or not path.is_file():
        raise DovetailError(f"There are no weights at {path}; give 'imagenet' or a .safetensors file.")
    return _write(network, "", load_file(path), str(path))


def _write(network: Network, prefix: str, weights: Mapping[str, Tensor], where: str) -> int:
    """Copy weights into the part of the model under `prefix`, all of which they must cover."""
    target = network.model.state_dict()
    part = {name.removeprefix(prefix): value for name, value in target.items() if name.startswith(prefix)}
    missing = [name for name in part if name not in weights]
    unfit = [name for name, value in part.items() if name in weights and weights[name].shape != value.shape]
    for names, fault in ((missing, "lack"), (unfit, "have another shape of")):
        if names:
            raise DovetailError(
                f"The weights of {where} {fault} {len(names)} tensors of the model, such as {names[0]}."
            )
    for name, value in part.items():
        value.copy_(weights[name])
    return len(part)


def imagenet_weights(network: Network) -> dict[str, Tensor]:
    """Return the library's ImageNet weights for the encoder, named from the encoder's root; they are downloaded."""
    construction = Construction.parse(network.constructor)
    if construction is None:
        raise DovetailError("ImageNet weights are known for named models only; load them into your module beforehand.")
    try:
        return _fetch(construction)
    except (OSError, RuntimeError, KeyError, ValueError, URLError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise DovetailError(
            f"ImageNet weights for {network.constructor} are not available ({reason}); start from random weights or "
            "from a file."
        ) from error


def _fetch(construction: Construction) -> dict[str, Tensor]:
    path, kwargs = construction.path, construction.kwargs
    library = path.partition(".")[0]
    weights: dict[str, Tensor]
    if library == "smp":
        return _fetch_smp(kwargs)
    if library == "torchvision":
        name = path.rsplit(".", 1)[1]
        backbone = next(known for known in _BACKBONES if known in name)
        model = torchvision.models.get_model(backbone, weights="IMAGENET1K_V1")
        weights = (model.features if backbone.startswith("mobilenet") else model).state_dict()
        return weights
    if library == "timm":
        return dict(timm.create_model(*construction.args, **{**kwargs, "pretrained": True}).state_dict())
    # A composed model: `name`, `in_channels` and options of its timm encoder, and `image_size` where positions depend
    # on it.
    name = str(construction.args[0] if construction.args else kwargs["name"])
    size = {"img_size": kwargs["image_size"], "dynamic_img_size": True} if "image_size" in kwargs else {}
    options = {"num_classes": 0, "in_chans": kwargs["in_channels"], **size, **kwargs.get("encoder_options", {})}
    return dict(timm.create_model(name, pretrained=True, **options).state_dict())


def _fetch_smp(kwargs: Mapping[str, object]) -> dict[str, Tensor]:
    name, channels = str(kwargs["encoder_name"]), int(str(kwargs.get("in_channels", 3)))
    weights: dict[str, Tensor] = get_encoder(
        name, in_channels=channels, weights=True if name.startswith("tu-") else "imagenet"
    ).state_dict()
    if name.startswith("tu-"):
        return {key.removeprefix("model."): value for key, value in weights.items()}
    return weights
