"""`show`: a method's recipe as published, or as a run takes it with the options of `pretrain`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dovetail.options import AUTO, option, takes
from dovetail.recipes.registry import name_of
from dovetail.recipes.show import recipe_tables, show_published, standing_model, wide_console
from dovetail.recipes.spelling import refuse_other_spellings
from dovetail.run.options import PretrainOptions

ASSUMED_IMAGES = 1000
OF_THE_METHOD = frozenset({"method", "model", "recipe", "image_size"})  # which the published recipe takes too


@dataclass(frozen=True, kw_only=True)
class ShowOptions(PretrainOptions):
    """Options of `dovetail show`: those of `dovetail pretrain`, of which none is required."""

    method: Any = option(
        AUTO,
        "Name of the method, such as decon-sl, decon-ml-densecl, slotcon, or package.module:function; auto chooses as "
        "a run does.",
        positional=True,
    )


@dataclass(frozen=True)
class Images:
    """A number of images, in the place of the images."""

    num_images: int


@takes(ShowOptions)
def show(options: ShowOptions) -> None:
    """Print a method's recipe: terms, taps, heads, weights, views, schedules, optimiser.

    With a method and no option of a run, it is the published recipe. Else it is what `dovetail pretrain` takes with the
    same options, with all its numbers: method, preset, size, length and batch are chosen as it chooses them, from the
    images of `data` where they are given.

    Raises:
        DovetailError: For anything that `pretrain` refuses before its first step.
    """
    refuse_other_spellings(options, options.recipe)
    options = options.changed(method=name_of(options.method))
    if options.method != AUTO and options.named <= OF_THE_METHOD:
        show_published(options)
    else:
        show_run(options)


def show_run(options: PretrainOptions) -> None:
    """Print what a run takes."""
    from dovetail.data.open import open_source
    from dovetail.run.choose import chosen
    from dovetail.run.network import network_for
    from dovetail.run.resolve import resolved_run
    from dovetail.run.summary import as_it_runs

    if options.model is None:
        options = options.changed(model=standing_model(options.method))
    images = Images(ASSUMED_IMAGES) if options.data is None else open_source(options.data, fetch=True)
    network = network_for(options)
    options, why = chosen(options.changed(resume=False), network)
    recipe, settings, _ = resolved_run(options, images, network)
    if why:
        print(why)
    if options.data is None:
        print(f"Without --data, {ASSUMED_IMAGES:,} images are assumed.")
    console = wide_console()
    console.print(f"{options.method} on {options.model}", style="bold")
    console.print(settings.table())
    for table in recipe_tables(as_it_runs(recipe, settings), network):
        console.print(table)
