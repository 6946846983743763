"""One rule for what a run was not told: method, preset, size of the views and length.

The method follows from the model and from the weights that it starts with:

    decoder, trained encoder     encoder-targets, with the encoder frozen for the whole run
    decoder, random encoder      decon-sl
    a CNN without a decoder      densecl
    a ViT without a decoder      dino

Encoder targets improve the frozen decoder most of the methods that were measured on a trained encoder, and cost least
(`benchmarks/results/demo.md`). The methods for an encoder alone were chosen for their cost.

On a processor, where neither preset nor length was given, a run takes the preset "short", views of 128 px and 480
steps: the length for which that preset was measured. Batch size, learning rate and the rest are the rules of
`dovetail.train.defaults`. What was given always counts more.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from dovetail.errors import DovetailError, OptionsError
from dovetail.networks.network import Network
from dovetail.networks.probe import check_image_size
from dovetail.options import AUTO
from dovetail.recipes.table import options_of
from dovetail.run.options import PretrainOptions
from dovetail.train.defaults import best_accelerator

QUICK_STEPS = 480
QUICK_SIDE_PX = 128
TARGETS = "encoder-targets"


def chosen(options: PretrainOptions, network: Network) -> tuple[PretrainOptions, str]:
    """Return the options of a new run with method, preset, size and length filled in, and why in one line.

    Args:
        options: As they were given.
        network: The model, with the weights that it was built with.

    Returns:
        The options, and a sentence for each choice; no text where nothing was chosen.
    """
    options, about_method = with_method(options, network)
    options, about_length = with_length(options, network)
    return options, " ".join(filter(None, (about_method, about_length)))


def with_method(options: PretrainOptions, network: Network) -> tuple[PretrainOptions, str]:
    """Return the options with a method, and with the encoder frozen where the method is made for that."""
    trained, freeze = is_trained(options, network), options.freeze_encoder_epochs
    why = ""
    if options.preset == "continue" and not trained:
        raise OptionsError(
            "preset is continue, which is for trained weights, and the encoder starts from random ones; "
            "add --init, or take the preset short."
        )
    if options.method == AUTO:
        fits = freeze in (AUTO, "all") and options_of(TARGETS).keys() >= (options.recipe or {}).keys()
        method, reason = method_for(network, trained=trained, may_freeze=fits)
        options, why = options.changed(method=method), f"Method {method}, because {reason}."
    if freeze == AUTO:
        frozen = options.method == TARGETS and trained and bool(network.decoder_prefixes)
        if frozen or options.preset != "continue":  # which freezes for a part of a run's length, not known yet
            options = options.changed(freeze_encoder_epochs="all" if frozen else 0.0)
        why += " The encoder is frozen for the whole run." if frozen else ""
    return options, why.strip()


def method_for(network: Network, *, trained: bool, may_freeze: bool = True) -> tuple[str, str]:
    """Return the method for a model, and the reason.

    Args:
        network: The model.
        trained: Whether its encoder starts from trained weights.
        may_freeze: Whether the encoder may be frozen for the whole run, and no option of another recipe was given.
    """
    if network.decoder_prefixes and trained and may_freeze:
        return TARGETS, "a decoder with random weights learns most, and most cheaply, from an encoder that is trained"
    if network.decoder_prefixes:
        start = "the encoder is trained too" if trained else "encoder and decoder start from random weights"
        return "decon-sl", f"{start}, and it trains both together"
    if is_vit(network):
        return "dino", "the model is a ViT without a decoder, for which it is the cheapest"
    return "densecl", "the model is an encoder without a decoder, for which it is the cheapest"


def is_vit(network: Network) -> bool:
    """Whether the encoder gives tokens."""
    return any(tap.kind == "tokens" for tap in network.taps.values() if tap.part == "encoder")


def with_length(options: PretrainOptions, network: Network) -> tuple[PretrainOptions, str]:
    """Return the options with what a run on a processor takes where neither preset nor length was given."""
    free = options.preset == AUTO and options.epochs == AUTO and options.max_steps is None and options.budget is None
    if not free or not on_processor(options):
        return options, ""
    options = options.changed(preset="short", max_steps=QUICK_STEPS)
    said = f"Preset short and {QUICK_STEPS} steps"
    if takes_size(options, network, QUICK_SIDE_PX):
        options, said = options.changed(image_size=QUICK_SIDE_PX), said + f" on views of {QUICK_SIDE_PX} px"
    return options, f"{said}, because there is no GPU; --epochs, --max-steps or --budget set another length."


def on_processor(options: PretrainOptions) -> bool:
    """Whether a run has no GPU."""
    return (best_accelerator() if options.accelerator == AUTO else options.accelerator) == "cpu"


def takes_size(options: PretrainOptions, network: Network, side_px: int) -> bool:
    """Whether the size of the views is free and the model, which is no ViT, takes one of `side_px`."""
    given = options.image_size is not None or "image_size" in (options.recipe or {})
    if given or is_vit(network) or "image_size" not in options_of(options.method):
        return False
    try:
        check_image_size(network, side_px)
    except DovetailError:
        return False
    return True


def is_trained(options: PretrainOptions, network: Network) -> bool:
    """Whether the encoder starts from trained weights: those of `init`, or a module's own."""
    return options.init is not None or (isinstance(options.model, nn.Module) and looks_trained(network))


def looks_trained(network: Network) -> bool:
    """Whether an encoder's norms have left what every library begins them with: one factor and one shift a layer."""
    prefix = network.encoder_prefix
    norms: Iterable[tuple[str, Any]] = (
        (name, module)
        for name, module in network.model.named_modules()
        if isinstance(module, (_NormBase, nn.LayerNorm, nn.GroupNorm))
    )
    return any(
        not is_constant(values)
        for name, module in norms
        if f"{name}.".startswith(prefix)
        for values in (module.weight, module.bias)
    )


def is_constant(values: Tensor | None) -> bool:
    """Whether all values are the same; None, of a layer that has none, counts as such."""
    return values is None or bool(torch.all(values == values.reshape(-1)[0]))
