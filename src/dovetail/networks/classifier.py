"""Finds the classifier of a segmentation model whose decoder returns logits.

Shapes: B images, C channels, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from dovetail.networks.nested import tensors_in
from dovetail.networks.undisturbed import undisturbed


def classifier_in(model: nn.Module, decoders: Sequence[str], pixels: Tensor) -> str:
    """Return the path of the last layer of a decoder if it is a classifier, otherwise "".

    It is a classifier if it is a 1x1 convolution with a bias, and no later layer with weights uses its output. An
    auxiliary head that runs after the decoder, such as that of UPerNet, does not use it. The masks of Mask2Former are
    products of it and of later layers.

    Args:
        model: Module that runs encoder and decoder.
        decoders: Paths of the modules that return the decoder's maps.
        pixels: Image [B, C, H, W] for a trial run.
    """
    try:
        with undisturbed(model):
            model.eval()
            ran = layers_run(model, pixels)
            inside = [path for path in ran if any(path.startswith(f"{decoder}.") for decoder in decoders)]
            layer = model.get_submodule(inside[-1]) if inside else None
            if not isinstance(layer, nn.Conv2d) or layer.kernel_size != (1, 1) or layer.bias is None:
                return ""
            later = ran[ran.index(inside[-1]) + 1 :]
            return "" if later and is_used_by(model, layer, later, pixels) else inside[-1]
    except Exception:  # the model may need more inputs after the decoder; then no classifier is found
        return ""


def layers_run(model: nn.Module, pixels: Tensor) -> list[str]:
    """Return the paths of all modules with weights of their own in the order of their last run."""
    ran: list[str] = []
    handles = [
        module.register_forward_hook(lambda _module, _inputs, _output, path=path: ran.append(path))
        for path, module in model.named_modules()
        if next(module.parameters(recurse=False), None) is not None
    ]
    try:
        with torch.no_grad():
            model(pixels)
    finally:
        for handle in handles:
            handle.remove()
    return list(dict.fromkeys(reversed(ran)))[::-1]


def is_used_by(model: nn.Module, layer: nn.Module, later: Collection[str], pixels: Tensor) -> bool:
    """Return whether an output of the model depends on both the output of `layer` and the weights of `later` modules.

    If no output of the model depends on the output of `layer`, the model uses it in another way, which counts as used.
    """
    weights = [value for path in later for value in model.get_submodule(path).parameters(recurse=False)]
    leaves: list[Tensor] = []

    def cut(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        leaves.append(output.detach().requires_grad_(True))
        return leaves[-1].clone()

    handle = layer.register_forward_hook(cut)
    try:
        with only_trainable(model, weights), torch.enable_grad():
            outputs = [value for value in tensors_in(model(pixels)) if value.requires_grad]
            found = [
                torch.autograd.grad(value.sum(), [leaves[-1], *weights], allow_unused=True, retain_graph=True)
                for value in outputs
            ]
    finally:
        handle.remove()
    depend = [any(one is not None for one in others) for own, *others in found if own is not None]
    return not depend or any(depend)


@contextmanager
def only_trainable(model: nn.Module, weights: Collection[Tensor]) -> Iterator[None]:
    """Set `requires_grad` of these weights alone, and restore all flags afterwards."""
    chosen = {id(value) for value in weights}
    flags = [(value, value.requires_grad) for value in model.parameters()]
    try:
        for value, _ in flags:
            value.requires_grad_(id(value) in chosen)
        yield
    finally:
        for value, flag in flags:
            value.requires_grad_(flag)
