"""Training options that every recipe has: another optimiser, and learning rates for parts of the model."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from dovetail.errors import OptionsError
from dovetail.recipe import OptimiserSpec, ParameterRule, Recipe

OptimiserName = Literal["lars", "lamb", "sgd", "adamw"]


@dataclass(frozen=True)
class Rates:
    """Defaults of an optimiser for a recipe that was published with another one.

    Attributes:
        base_lr: Peak learning rate for a global batch of 256 images.
        weight_decay: Constant weight decay.
        decay_one_dimensional: Whether weight decay applies to biases and norms.
    """

    base_lr: float
    weight_decay: float
    decay_one_dimensional: bool = False


DEFAULT_RATES: Mapping[str, Rates] = {
    "adamw": Rates(2e-4, 0.05),  # DeCon's ConvNeXt runs
    "lars": Rates(1.0, 1e-5),  # SlotCon, PixPro
    "sgd": Rates(0.03, 1e-4, decay_one_dimensional=True),  # MoCo v2, DenseCL
    "lamb": Rates(6.25e-4, 0.02),  # arXiv 2110.00476, procedure A2: 5e-3 at a batch of 2048
}


def training(
    recipe: Recipe,
    *,
    named: Collection[str] = (),
    optimiser: Literal["published", "lars", "lamb", "sgd", "adamw"] = "published",
    encoder_lr_scale: float = 1.0,
    decoder_lr_scale: float = 1.0,
    layer_decay: float = 1.0,
    encoder_init: Literal["library", "published"] = "library",
) -> Recipe:
    """Return the recipe with the selected optimiser and learning rates.

    Args:
        recipe: Recipe as published.
        named: Options with other than the published values; they override the optimiser's defaults.
        optimiser: Optimiser; "published" is the method's own. The default base learning rate (for a batch of 256) and
            weight decay are 2e-4 and 0.05 for adamw, 1.0 and 1e-5 for lars, 0.03 and 1e-4 for sgd, 6.25e-4 and 0.02 for
            lamb. With "published", methods published with LARS use adamw if the encoder has LayerNorm and no BatchNorm
            (ViT, ConvNeXt).
        encoder_lr_scale: Factor for the learning rate of the encoder; heads are not affected.
        decoder_lr_scale: Factor for the learning rate of the decoder; heads are not affected.
        layer_decay: Layer-wise learning rate decay, in (0, 1]: the learning rate of each encoder layer (a block of a
            ViT, a stage of a CNN) is this factor times that of the next layer. The decoder and the heads keep the full
            learning rate.
        encoder_init: Initialisation of an encoder that starts from random weights: as in its library, or as in the
            method's published code. The two can differ in the convolutions and in the last normalisation layer of each
            residual block of a ResNet, and in the class token of a ViT.
    """
    if encoder_init == "library":
        recipe = replace(recipe, encoder_init=None)
    spec = recipe.optimiser
    if optimiser != "published" and optimiser != spec.name:
        spec = exchanged(spec, optimiser, named)
    if not 0 < layer_decay <= 1:
        raise OptionsError(f"layer_decay is {layer_decay:g}; it must be above 0 and at most 1.")
    spec = replace(spec, encoder_lr_scale=encoder_lr_scale, decoder_lr_scale=decoder_lr_scale, layer_decay=layer_decay)
    return replace(recipe, optimiser=spec)


def exchanged(spec: OptimiserSpec, name: OptimiserName, named: Collection[str]) -> OptimiserSpec:
    """Return `spec` for another optimiser, with the same warm-up, schedule, clipping and rules."""
    rates = DEFAULT_RATES[name]
    keeps_decay = not {"weight_decay", "final_weight_decay"}.isdisjoint(named)
    base_lr = spec.base_lr if "base_lr" in named else rates.base_lr
    return replace(
        spec,
        name=name,
        base_lr=base_lr,
        weight_decay=spec.weight_decay if keeps_decay else rates.weight_decay,
        decay_one_dimensional=rates.decay_one_dimensional,
        rules=tuple(kept(rule, spec.base_lr, base_lr) for rule in spec.rules if not own_rate(rule, named)),
    )


def own_rate(rule: ParameterRule, named: Collection[str]) -> bool:
    """Whether a rule is the published learning rate of biases and the user did not set `bias_lr`."""
    return rule.one_dimensional and "bias_lr" not in named


def kept(rule: ParameterRule, before: float, base_lr: float) -> ParameterRule:
    """Return a rule for another base learning rate that keeps the learning rate of biases."""
    return replace(rule, lr_scale=rule.lr_scale * before / base_lr) if rule.one_dimensional and base_lr else rule


def exporting(recipe: Recipe, *, export: Literal["published", "student", "teacher"] = "published") -> Recipe:
    """Return the recipe with the selected branch to export.

    Args:
        recipe: Recipe of a method with a teacher.
        export: Branch whose weights are exported: the student, the teacher (the student's moving average), or the
            branch that the method's published code exports.
    """
    return recipe if export == "published" else replace(recipe, export=export)
