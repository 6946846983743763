"""Chooses the method, preset, view sizes and length of a run that does not specify them.

The method depends on the model and on its starting weights:

    decoder, trained encoder     encoder-targets, with the encoder frozen for the whole run
    decoder, random encoder      decon-sl
    a CNN without a decoder      densecl
    a ViT without a decoder      dino

With a trained encoder, encoder-targets improves the frozen decoder most of all methods that were measured, at the
lowest cost (`benchmarks/results/demo.md`). The methods for an encoder alone were chosen for their cost.

On a CPU, a run without a specified preset uses views of 128 px, the preset "short" for up to 1,000 steps and "small"
for more. Without a specified length it takes 480 steps, which is the length that "short" was evaluated with. Views
whose size must be a multiple of a ViT's patch size, such as DINO's local views, get the closest one. Batch size,
learning rate and other defaults are in `dovetail.train.defaults`. Options that are specified always override these
choices.
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
from dovetail.recipes import presets
from dovetail.recipes.table import options_of
from dovetail.run.options import PretrainOptions
from dovetail.run.resolve import HasImages, resolved_run
from dovetail.train.defaults import best_accelerator

QUICK_STEPS = 480
QUICK_SIDE_PX = 128
SHORT_STEPS = 1000  # longest run of the preset "short", which is made for a few hundred steps
TARGETS = "encoder-targets"
PATCHED = ("local_size", "query_size")  # sizes of views that are multiples of a ViT's patch size


def chosen(options: PretrainOptions, network: Network, images: HasImages) -> tuple[PretrainOptions, str]:
    """Fill in method, preset, view sizes and length of a new run.

    Args:
        options: Options as specified by the user.
        network: Network with its initial weights.
        images: Images of the run, for the number of steps in its epochs.

    Returns:
        The options, and a sentence that explains each choice (an empty string if nothing was chosen).
    """
    options, about_method = with_method(options, network)
    options, about_length = with_length(options, network, images)
    options, about_views = with_patches(options, network)
    return options, " ".join(filter(None, (about_method, about_length, about_views)))


def with_method(options: PretrainOptions, network: Network) -> tuple[PretrainOptions, str]:
    """Choose the method, and freeze the encoder if the method is meant for that."""
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
        network: Network of the run.
        trained: Whether its encoder starts from trained weights.
        may_freeze: Whether the encoder may be frozen for the whole run, and no option of another recipe is specified.
    """
    if network.decoder_prefixes and trained and may_freeze:
        return TARGETS, "the encoder is trained already, and predicting its features trains the decoder best"
    if network.decoder_prefixes:
        start = "the encoder is to be trained, too" if trained else "encoder and decoder start from random weights"
        return "decon-sl", f"{start}, and it trains both together"
    if is_vit(network):
        return "dino", "the model is a ViT without a decoder, and this is the cheapest method for it"
    return "densecl", "the model is an encoder without a decoder, and this is the cheapest method for it"


def is_vit(network: Network) -> bool:
    """Return whether the encoder outputs tokens."""
    return any(tap.kind == "tokens" for tap in network.taps.values() if tap.part == "encoder")


def with_length(options: PretrainOptions, network: Network, images: HasImages) -> tuple[PretrainOptions, str]:
    """Choose preset and view size of a run on a CPU without a preset, and its length if that is unspecified, too."""
    if options.preset != AUTO or options.budget is not None or not on_processor(options):
        return options, ""
    free = options.epochs == AUTO and options.max_steps is None
    options = options.changed(preset="short", max_steps=QUICK_STEPS if free else options.max_steps)
    size = ""
    if takes_size(options, network, QUICK_SIDE_PX):
        options, size = options.changed(image_size=QUICK_SIDE_PX), f" on views of {QUICK_SIDE_PX} px"
    if free:
        said = f"Preset short and {QUICK_STEPS} steps{size}, because there is no GPU"
        return options, f"{said}; override with --epochs, --max-steps or --budget."
    steps = options.max_steps
    if options.epochs != AUTO or steps is None:
        steps = resolved_run(with_patches(options, network)[0], images, network)[1].total_steps
    said = f"Preset short{size}, because there is no GPU"
    if steps > SHORT_STEPS:
        options = options.changed(preset="small")
        said = f"Preset small{size}, because there is no GPU and the preset short is for up to {SHORT_STEPS:,} steps"
    return options, f"{said}; override with --preset{' and --image-size' if size else ''}."


def with_patches(options: PretrainOptions, network: Network) -> tuple[PretrainOptions, str]:
    """Change default sizes of views that are not multiples of a ViT's patch size to the closest multiple."""
    given = dict(options.recipe or {})
    if "patches" not in network.taps:
        return options, ""
    patch, known = network.taps["patches"].stride, options_of(options.method)
    preset: presets.Preset = "short" if options.preset in ("short", "continue") else "paper"  # "small" keeps them
    defaults = presets.options(preset, options.method, network.taps)
    sizes = {name: defaults.get(name, known[name].default) for name in PATCHED if name in known and name not in given}
    changed = {name: max(round(size / patch), 1) * patch for name, size in sizes.items() if size % patch}
    if not changed:
        return options, ""
    listed = " and ".join(f"{name} {size}" for name, size in changed.items())
    were = " and ".join(str(sizes[name]) for name in changed)
    why = f"{listed}, because the model's patches have {patch} px and {were} is not a multiple."
    return options.changed(recipe=given | changed), why[0].upper() + why[1:]


def on_processor(options: PretrainOptions) -> bool:
    """Return whether a run uses the CPU."""
    return (best_accelerator() if options.accelerator == AUTO else options.accelerator) == "cpu"


def takes_size(options: PretrainOptions, network: Network, side_px: int) -> bool:
    """Return whether the view size is unspecified and the model is not a ViT and supports views of `side_px`."""
    given = options.image_size is not None or "image_size" in (options.recipe or {})
    if given or is_vit(network) or "image_size" not in options_of(options.method):
        return False
    try:
        check_image_size(network, side_px)
    except DovetailError:
        return False
    return True


def is_trained(options: PretrainOptions, network: Network) -> bool:
    """Return whether the encoder starts from trained weights, from `init` or from the user's module."""
    return options.init is not None or (isinstance(options.model, nn.Module) and looks_trained(network))


def looks_trained(network: Network) -> bool:
    """Return whether the normalisation layers of the encoder are trained: untrained layers have constant weights."""
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
    """Return whether all values are equal. None (a layer without weights) counts as constant."""
    return values is None or bool(torch.all(values == values.reshape(-1)[0]))
