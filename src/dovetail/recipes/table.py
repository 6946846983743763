"""The rules for composing method names.

    BASE                         slotcon, densecl, simclr, dino ...
    adclr-BASE                   query patches over dino or ibot
    decon-sl[-BASE]              one level of the decoder, over slotcon by default
    decon-ml[-BASE]              all levels, with dropout on the laterals
    METHOD+decon-sl[-BASE]       METHOD on the encoder, BASE (default slotcon) on the decoder; `+decon` is `+decon-sl`

The bases are in `dovetail.recipes.registry`. The options of a method are the keyword arguments of its functions, in one
namespace.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from dovetail.errors import OptionsError, unknown_name
from dovetail.recipes.listed import docstring_helps, function_at, listed, parameters_of, texts
from dovetail.recipes.registry import ALONE, BUILT_IN, METHODS, find, refuse_unnamed
from dovetail.recipes.values import read_value

if TYPE_CHECKING:
    from dovetail.recipe import Recipe, Tap

CHOSEN = ("decon-sl", "encoder-targets", "densecl", "dino")
"""Default methods; `dovetail.run.choose` selects one of them."""

ADCLR_BASES = ("dino", "ibot")

DECON_DEFAULTS: dict[str, dict[str, Any]] = {
    "sl": {"levels": "finest"},
    "ml": {"levels": "all", "lateral_dropout": 0.5},
}

ADCLR, DECON = "dovetail.recipes.query_terms:adclr", "dovetail.recipes.decoder_terms:decon"
TRAINING, EXPORTING = "dovetail.recipes.training:training", "dovetail.recipes.training:exporting"

# Options of a base that apply to the whole run.
RUN_WIDE = {
    *("base_lr", "bias_lr", "weight_decay", "warmup_epochs", "momentum"),
    *("image_size", "min_scale", "blur_px", "jitter"),
}


LATER: Mapping[str, Any] = {"reference_timm_positions": True}
"""Options that were added later and change runs, with the values for older runs. New runs save them."""


@dataclass(frozen=True)
class Composition:
    """A parsed method name.

    Attributes:
        base: Name of the base method on the encoder.
        adclr: Whether the method adds query patches.
        decon: None, "sl" or "ml".
        decoder: Name of the base method on the decoder, if it differs.
    """

    base: str
    adclr: bool = False
    decon: str | None = None
    decoder: str | None = None


def parse(name: str) -> Composition:
    """Parse a method name; raise `OptionsError` with the closest name for an unknown one."""
    if name in METHODS:
        return Composition(name)
    encoder, plus, decoder = name.partition("+")
    if plus:
        for one in ALONE:
            if name.startswith(f"{one}+"):
                raise OptionsError(f"{one!r} cannot be combined with another method; use --method {one}.")
        left, right = parse(encoder), parse(decoder + "-sl" if decoder == "decon" else decoder)
        if left.decon or right.decon is None or right.decoder:
            raise OptionsError(f"{name!r} is not a method; expected METHOD+decon-sl[-BASE] or METHOD+decon-ml[-BASE].")
        return Composition(left.base, left.adclr, right.decon, right.base)
    for level in DECON_DEFAULTS:
        if name == f"decon-{level}" or name.startswith(f"decon-{level}-"):
            return Composition(known_base(name, name.removeprefix(f"decon-{level}")[1:] or "slotcon"), decon=level)
    if name == "adclr" or name.startswith("adclr-"):
        return Composition(known_base(name, name.removeprefix("adclr")[1:] or "dino"), adclr=True)
    return Composition(known_base(name, name))


def known_base(name: str, base: str) -> str:
    """Return `base` if the table contains it; raise `OptionsError` otherwise."""
    refuse_unnamed(base)
    if find(base) is None:
        raise unknown_name("method", name, examples())
    if base in ALONE and name != base:
        raise OptionsError(f"{base!r} cannot be combined with another method; use --method {base}.")
    return base


def examples() -> list[str]:
    """Return the names of all base methods and of common compositions."""
    bases = [name for name in METHODS if name not in ("slotcon", *ALONE) and METHODS[name].family != "tokens"]
    composed = [f"decon-{level}" for level in DECON_DEFAULTS]
    composed += [f"decon-{level}-{name}" for level in DECON_DEFAULTS for name in bases]
    composed += [f"adclr-{name}" for name in ADCLR_BASES]
    return [*METHODS, *composed, "dino+decon-sl", "adclr+decon"]


@dataclass(frozen=True)
class Part:
    """A function that a composition calls (or its import path), and its options by their names in the composition."""

    source: str | Callable[..., Recipe]
    options: Mapping[str, inspect.Parameter]
    prefix: str = ""

    @property
    def function(self) -> Callable[..., Recipe]:
        """The function; imported if it belongs to this package."""
        return function_at(self.source) if isinstance(self.source, str) else self.source

    @property
    def texts(self) -> Mapping[str, str]:
        """The help text of each option, by its name in the function."""
        return texts(self.source) if isinstance(self.source, str) else docstring_helps(self.source)

    def __call__(self, *arguments: Any, given: Mapping[str, Any], **extra: Any) -> Recipe:
        """Call the function with its own options among `given`."""
        own = {name.removeprefix(self.prefix): value for name, value in given.items() if name in self.options}
        return self.function(*arguments, **extra, **own)


def part(source: str | Callable[..., Recipe], *, prefix: str = "", without: Collection[str] = ()) -> Part:
    """Return a function as a part, with `prefix` before its option names; does not import functions of this package."""
    own = listed(source) if isinstance(source, str) else parameters_of(source)
    return Part(source, {prefix + name: one for name, one in own.items() if name not in without}, prefix)


def places() -> list[str]:
    """Return the import paths of all functions of this package that compositions call."""
    bases = [METHODS[name].source(name) for name in BUILT_IN]
    return [*(one for one in bases if isinstance(one, str)), ADCLR, DECON, TRAINING, EXPORTING]


def parts_of(composition: Composition) -> dict[str, Part]:
    """Return the parts of a composition: "base", "training" and, if used, "export", "adclr", "decon" and "decoder"."""
    method, other = METHODS[composition.base], METHODS.get(composition.decoder or "")
    parts = {"export": part(EXPORTING)} if method.teacher or (other and other.teacher) else {}
    parts["base"] = part(method.source(composition.base))
    parts["training"] = part(TRAINING)
    if composition.adclr:
        parts["adclr"] = part(ADCLR)
    separate = composition.decoder is not None and composition.decoder != composition.base
    if composition.decon:
        # If the decoder has its own method, that method sets the width of its heads.
        parts["decon"] = part(DECON, without={"decoder_hidden"} if separate else ())
    if composition.decoder and other and separate:
        # Both bases may have an option with the same name; the decoder's gets a prefix.
        taken = {name.removeprefix("decoder_") for name in parts["decon"].options}
        common = RUN_WIDE if method.teacher else RUN_WIDE - {"momentum"}
        parts["decoder"] = part(other.source(composition.decoder), prefix="decoder_", without=common | taken)
    return parts


def options_of(name: str) -> dict[str, inspect.Parameter]:
    """Return the options of a method with their types and defaults."""
    composition = parse(name)
    options: dict[str, inspect.Parameter] = {}
    for one in parts_of(composition).values():
        options = {**one.options, **options}
    for option, default in defaults_of(composition).items():
        options[option] = options[option].replace(default=default)
    return options


def defaults_of(composition: Composition) -> dict[str, Any]:
    """Return the defaults of a composition that differ from those of its functions."""
    kept = {"encoder_init": "published"} if METHODS[composition.base].finished else {}
    return kept | DECON_DEFAULTS.get(composition.decon or "", {})


def methods_with(option: str) -> str:
    """Return the first methods that have an option, as "slotcon, dino, ibot, …"; an empty string if none has it."""
    taking = [name for name in examples() if option in options_of(name)]
    return ", ".join(taking[:3]) + (", …" if len(taking) > 3 else "")


def build(name: str, taps: Mapping[str, Tap], options: Mapping[str, object] | None = None) -> Recipe:
    """Return the recipe of a method for a model with `taps`.

    Raises:
        DovetailError: If the method or an option is unknown or does not fit the model.
    """
    composition, known = parse(name), options_of(name)
    parts = parts_of(composition)
    for option in options or {}:
        if option not in known and (others := methods_with(option)):
            raise OptionsError(f"{name} has no option {option!r}; it is an option of {others}.")
        if option not in known:
            raise unknown_name(f"option of {name}", option, known)
    read = {option: read_value(option, known[option], value) for option, value in (options or {}).items()}
    given = defaults_of(composition) | read
    recipe = parts["base"](taps, given=given)
    if "export" in parts:
        recipe = parts["export"](recipe, given=given)
    if "adclr" in parts:
        recipe = parts["adclr"](recipe, taps, given=given)
    if "decon" in parts:
        decoder = parts["decoder"](taps, given=given) if "decoder" in parts else None
        recipe = parts["decon"](recipe, taps, given=given, name=name, decoder=decoder)
    if given.get("export") == "teacher" and recipe.teacher_momentum is None:  # an external method
        raise OptionsError(f"{name} has no teacher, so leave out its option 'export'.")
    # Recipe files at paper scale also list the published values, which only suit the published optimiser.
    named = {option for option, value in given.items() if value != known[option].default}
    recipe = parts["training"](recipe, given=given, named=named)
    return replace(recipe, name=name)


def with_later_options(name: str, options: Mapping[str, Any], *, resume: bool) -> dict[str, Any]:
    """Return options completed with those that were added later.

    Args:
        name: Name of the method.
        options: Options of the user, or of a saved run.
        resume: Whether the options belong to a saved run. Added options then keep the behaviour of older runs;
            otherwise they get their defaults.
    """
    known = options_of(name)
    later = {option: old if resume else known[option].default for option, old in LATER.items() if option in known}
    return {**later, **options}


def suited_optimiser(
    name: str, taps: Mapping[str, Tap], options: Mapping[str, Any] | None, *, layer_normed: bool
) -> Literal["published", "adamw"]:
    """Return the default optimiser of a run.

    LARS is meant for large batches and networks with BatchNorm. Papers that use it, such as MoCo v3 and DeCon, train
    ViTs and ConvNeXts with AdamW.

    Args:
        name: Name of the method.
        taps: Taps of the model.
        options: Options of the recipe, as in `build`.
        layer_normed: Whether the encoder has LayerNorm and no BatchNorm.
    """
    lars = layer_normed and build(name, taps, options).optimiser.name == "lars"
    return "adamw" if lars else "published"
