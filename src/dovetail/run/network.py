"""The network of a run: built from what was asked for, and given its starting weights."""

from __future__ import annotations

import copy
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from dovetail.errors import DovetailError, ModelError, OptionsError, WeightsError, printable
from dovetail.importing import import_path, is_path
from dovetail.networks.build import build_network
from dovetail.networks.initialise import is_downloaded, starting_statistics
from dovetail.networks.network import Network
from dovetail.networks.random_start import begin_as, check_positions, fix_positions
from dovetail.options import AUTO
from dovetail.provenance import refuse_network_in_file
from dovetail.recipe import Recipe
from dovetail.recipes.registry import METHODS
from dovetail.recipes.table import parse
from dovetail.run.folder import CONFIG
from dovetail.run.options import PretrainOptions
from dovetail.weights.exported import MODEL_FILE, MatchReport
from dovetail.weights.start import begin_from

EXPORTED = "exported"

log = logging.getLogger(__name__)


def network_for(options: PretrainOptions) -> Network:
    """Return the network of the model that was asked for; a module given in Python is copied, not changed."""
    model = own_model(options)
    if not isinstance(model, (str, nn.Module)):
        raise ModelError(f"model is a {type(model).__name__}; give a name or a torch.nn.Module.")
    network = build_network(
        copied(model) if isinstance(model, nn.Module) else model,
        in_channels=options.in_channels,
        encoder=options.encoder,
        decoder=options.decoder,
        taps=options.taps,
        image_size=options.image_size or own_size(options.method) or 224,
        drop_path=options.drop_path,
        checkpoint_blocks=options.checkpoint_blocks,
    )
    if network.in_channels != options.in_channels:  # a call may say its own
        raise ModelError(
            f"The model takes {network.in_channels} channels, and images are read with {options.in_channels}; give "
            f"--in-channels {network.in_channels}."
        )
    return network


def own_size(method: str) -> int | None:
    """Return the side of a finished recipe's views in pixels; None of a method with options, and of one not chosen."""
    return None if method == AUTO else METHODS[parse(method).base].image_size


def own_model(options: PretrainOptions) -> Any:
    """Return the model that was asked for, made where it is the path of a class, a function or a module.

    Raises:
        DovetailError: The path is that of something else, or a file names it, which may not choose code to run.
    """
    model = options.model
    if not isinstance(model, str) or not is_path(model):
        return model
    if not options.typed("model"):
        raise OptionsError(f"The model {model} is Python code, which a file may not choose; name it with --model.")
    found = import_path(model, "model")
    if isinstance(found, nn.Module):
        return found
    made = found() if callable(found) else found
    if not isinstance(made, nn.Module):
        raise ModelError(
            f"{model} gives a {type(made).__name__}; name a module, or what returns one without arguments."
        )
    return made


def copied(model: nn.Module) -> nn.Module:
    """Return a copy of a module, with weights, flags and hooks of its own; raise `ModelError` where none can be."""
    try:
        return copy.deepcopy(model)
    except (RuntimeError, TypeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise ModelError(
            f"The {type(model).__name__} cannot be copied, and training must not change yours ({reason}); give a "
            "module that copy.deepcopy takes."
        ) from error


def begin_with(network: Network, recipe: Recipe, options: PretrainOptions, *, needed: bool) -> MatchReport | None:
    """Give a network the weights that `init` names; a run that goes on has others, and is only told what is missing.

    Weights are downloaded only where the command line or Python named them.

    Returns:
        What was loaded from a file; None without one.
    """
    report = None
    init = options.init
    if is_downloaded(network, init) and not options.typed("init"):
        if needed:
            refuse_network_in_file("init", init, typed=False)
        return None
    try:
        report = begin_from(network, starting_weights(init))
    except DovetailError as error:
        if needed:
            raise
        log.warning("%s The run goes on with its own weights.", printable(str(error)))
    if needed and recipe.query_rule.positions == "sincos":
        check_positions(network)
    return report


def begin_random(network: Network, recipe: Recipe, options: PretrainOptions) -> None:
    """Give an encoder that starts from random weights those of the recipe; a module given in Python keeps its own."""
    if options.init is not None or not isinstance(options.model, str) or is_path(options.model):
        return
    if recipe.encoder_init is not None:
        begin_as(network, recipe.encoder_init, seed=options.seed)
    if recipe.query_rule.positions == "sincos":
        fix_positions(network)


def starting_weights(init: str | None) -> str | Path | None:
    """Return what `init` names: a run's folder stands for its exported model."""
    if init is None or init == "imagenet" or not Path(init).is_dir():
        return init
    from dovetail.downstream.start import TASK_FILE  # labelled sets take a while to import

    folder = Path(init)
    found = next((path for path in (folder / EXPORTED / MODEL_FILE, folder / MODEL_FILE) if path.is_file()), None)
    if (folder / TASK_FILE).is_file():
        raise WeightsError(f"{init} holds a fine-tuned model; name the pre-training run that it was made from.")
    if found is None and (folder / CONFIG).is_file():
        raise WeightsError(f"The run {init} has exported no weights yet; finish it with --resume first.")
    if found is None:
        raise WeightsError(f"{init} holds no pre-training run; name the folder of one, or a file of weights.")
    return found


def normalised_recipe(recipe: Recipe, network: Network, options: PretrainOptions) -> Recipe:
    """Return the recipe with the mean and deviation that were given, or else those of the weights to start from.

    A resumed run that names none is older than these options, and keeps the recipe's.
    """
    found: Any = (tuple(options.mean), tuple(options.std)) if options.mean else None
    if found is None and not options.resume:
        found = starting_statistics(network, starting_weights(options.init))
    return recipe if found is None else replace(recipe, views=replace(recipe.views, mean=found[0], std=found[1]))
