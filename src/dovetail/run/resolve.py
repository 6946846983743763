"""Resolves the recipe and the settings of a run: replaces every "auto" by a value."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from dovetail.errors import OptionsError, counted
from dovetail.networks.network import Network
from dovetail.networks.parts import is_layer_normed
from dovetail.networks.probe import check_image_size
from dovetail.recipe import Recipe
from dovetail.recipes import presets
from dovetail.recipes.table import build, options_of, suited_optimiser, with_later_options
from dovetail.run.folder import COMMANDED
from dovetail.run.options import PretrainOptions
from dovetail.train.defaults import Settings, best_accelerator, resolve
from dovetail.views.batch import statistics

log = logging.getLogger(__name__)


class HasImages(Protocol):
    """An image source, as far as the settings depend on it."""

    @property
    def num_images(self) -> int: ...


@dataclass(frozen=True)
class Images:
    """A number of images, which stands in for an image source."""

    num_images: int


def resolved_run(
    options: PretrainOptions, source: HasImages, network: Network
) -> tuple[Recipe, Settings, dict[str, Any]]:
    """Return the recipe, the settings and the recipe options of a run."""
    chosen = recipe_options(options, source, network)
    recipe = build(options.method, network.taps, chosen)
    settings = resolve(recipe, options, num_images=source.num_images)
    if options.preset == "continue" and options.freeze_encoder_epochs == "auto" and network.decoder_prefixes:
        settings = replace(settings, freeze_encoder_epochs=epochs_of_preset(settings))
    if options.preset == "continue" and options.encoder_batch_norm == "auto":
        settings = replace(settings, encoder_batch_norm="frozen")
    if not options.resume:  # a saved run has its shortened values
        free = options_of(options.method).keys() - dict(options.recipe or {}).keys()
        chosen |= shortened(recipe, settings, free) | typed_rate(options, settings, chosen)
        recipe = build(options.method, network.taps, chosen)
    return recipe, settings, chosen


def recipe_options(options: PretrainOptions, source: HasImages, network: Network) -> dict[str, Any]:
    """Return the options of the recipe: those of the preset, overridden by those that are specified."""
    given, method, resume = dict(options.recipe or {}), options.method, options.resume
    # A run saves the options of its preset among the recipe's options, so a resumed run needs no preset.
    preset = "paper" if resume else preset_of(options, source.num_images)

    def gathered(optimiser: str) -> dict[str, Any]:
        found = presets.options(preset, method, network.taps, optimiser=optimiser)
        size = {} if options.image_size is None else {"image_size": options.image_size}
        return with_later_options(method, presets.beside(found, given, method) | size | given, resume=resume)

    if resume or "optimiser" in given:  # older runs had no choice, and keep their optimiser
        return gathered(str(given.get("optimiser", "published")))
    found, layer_normed = gathered("published"), is_layer_normed(network)
    suited = suited_optimiser(method, network.taps, found, layer_normed=layer_normed)
    return found if suited == "published" else gathered(suited) | {"optimiser": suited}


def typed_rate(options: PretrainOptions, settings: Settings, chosen: Mapping[str, Any]) -> dict[str, float]:
    """Convert a specified `lr` to the recipe's `base_lr` (batch size 256) if the biases have their own learning rate.

    Args:
        options: Options of the run.
        settings: Settings of the run, with its batch size.
        chosen: Options of the recipe.
    """
    if options.lr == "auto" or not options.typed("lr") or chosen.get("bias_lr") is None:
        return {}
    return {"base_lr": settings.lr * 256 / settings.global_batch}


def preset_of(options: PretrainOptions, num_images: int) -> presets.Preset:
    """Return the preset of a run."""
    accelerator = best_accelerator() if options.accelerator == "auto" else options.accelerator
    return presets.choose(options.preset, num_images=num_images, accelerator=accelerator)


def epochs_of_preset(settings: Settings) -> float:
    """Return the epochs for which the preset "continue" freezes the encoder, with the digits that a config has."""
    return float(f"{presets.FROZEN_SHARE * settings.total_steps / settings.steps_per_epoch:.4g}")


def check_views(recipe: Recipe, network: Network, settings: Settings) -> None:
    """Raise `DovetailError` if the network does not support the sizes of the views."""
    checked = set()
    for view in recipe.views.views:
        # Queries need a view with query patches. A size that suits the other taps suits them, too.
        taps = {term.tap for term in recipe.terms if view.role in term.roles and term.tap != "queries"}
        taps |= {term.target.tap for term in recipe.terms if term.target and view.role in term.target.roles}
        trial = view.size_px, frozenset(taps)
        if trial not in checked:  # the second of two views is mostly like the first
            check_image_size(network, view.size_px, taps=taps, batch_size=settings.batch_size)
        checked.add(trial)


def check_freeze(settings: Settings, network: Network, preset: str = "auto") -> None:
    """Raise `OptionsError` if no weights would be trained. Warn if the encoder is frozen for the whole run."""
    epochs = settings.freeze_encoder_epochs
    if epochs == math.inf and not network.decoder_prefixes:
        raise OptionsError(
            "freeze_encoder_epochs is 'all', but the model has no decoder, so no weights would be trained; use a model "
            "with a decoder, or a number of epochs."
        )
    if 0 < epochs < math.inf and frozen_throughout(settings):
        steps, single = settings.total_steps, settings.total_steps == 1
        which = "the only step" if single else f"all {steps:,} steps"
        why = f"freeze_encoder_epochs is {epochs:g} and the run has {counted(settings.epochs, 'epoch')}"
        if preset == "continue" and epochs == epochs_of_preset(settings):
            why = "the preset continue freezes it for half of the steps; a longer run trains it, too"
        log.warning("The encoder is frozen for %s of the run, because %s.", which, why)


def frozen_throughout(settings: Settings) -> bool:
    """Return whether the encoder is frozen for the whole run."""
    epochs = settings.freeze_encoder_epochs
    return epochs == math.inf or round(epochs * settings.steps_per_epoch) >= settings.total_steps


def check_targets(recipe: Recipe, settings: Settings, options: PretrainOptions) -> None:
    """Warn if a recipe predicts features of an encoder that is random or is trained itself."""
    if all(term.target is None for term in recipe.terms):
        return
    if options.init is None and isinstance(options.model, str):
        log.warning(
            "%s predicts the features of the encoder, but this encoder has random weights; start from trained weights "
            "with --init, such as --init imagenet.",
            recipe.name,
        )
    if not frozen_throughout(settings):
        log.warning(
            "%s predicts the features of the encoder, but this encoder is trained, so the targets change; freeze it "
            "with --freeze-encoder-epochs all.",
            recipe.name,
        )


def shortened(recipe: Recipe, settings: Settings, free: Collection[str]) -> dict[str, float]:
    """Limit warm-up and frozen prototypes to a quarter of the run, and return the epochs that changed.

    Otherwise a run of a few hundred steps would end during warm-up.

    Args:
        recipe: Recipe as published, or with the values of a preset.
        settings: Settings of the run.
        free: Names of options that the user did not specify.
    """
    most = settings.total_steps / settings.steps_per_epoch / 4
    frozen = max((rule.frozen_epochs for rule in recipe.optimiser.rules), default=0.0)
    epochs = {"warmup_epochs": recipe.optimiser.warmup_epochs, "frozen_epochs": frozen}
    return {name: float(f"{most:.3g}") for name, value in epochs.items() if value > most and name in free}


def config_of(options: PretrainOptions, settings: Settings, chosen: dict[str, Any], recipe: Recipe) -> PretrainOptions:
    """Return the options to save: "auto" is replaced by values, and the preset's options are among the recipe's."""
    mean, std = statistics(recipe.views, options.in_channels)
    resolved = settings.engine_options()
    if options.freeze_encoder_epochs == "all":  # infinite there
        resolved["freeze_encoder_epochs"] = "all"
    return options.changed(
        **resolved, mean=list(mean), std=list(std), preset=preset_of(options, settings.num_images), recipe=dict(chosen)
    )


def kept_options(config: PretrainOptions) -> dict[str, Any]:
    """Return the options that are saved with a run, by name."""
    left_out = {*COMMANDED, *config.given_in_python()}
    kept = {name: value for name, value in config.as_dict().items() if name not in left_out}
    kept["loggers"] = [one for one in config.loggers if isinstance(one, str)]
    return kept
