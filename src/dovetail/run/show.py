"""`show`: prints the recipe of a method as published, or as a run with the options of `pretrain` uses it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dovetail.errors import OptionsError, RunError, tell
from dovetail.files.missing import about_missing
from dovetail.options import AUTO, option, takes
from dovetail.parsing import is_run
from dovetail.recipes.registry import name_of
from dovetail.recipes.show import recipe_tables, show_published, standing_model, tell_of_model, wide_console
from dovetail.recipes.spelling import refuse_other_spellings
from dovetail.run.folder import CONFIG, RECIPE, read_config
from dovetail.run.options import PretrainOptions

ASSUMED_IMAGES = 1000
OF_THE_METHOD = frozenset({"method", "model", "recipe", "image_size"})  # options that also apply to published recipes


@dataclass(frozen=True, kw_only=True)
class ShowOptions(PretrainOptions):
    """Options of `dovetail show`: the options of `dovetail pretrain`, all optional."""

    method: Any = option(
        AUTO,
        "Name of the method, such as decon-sl, decon-ml-densecl, slotcon, or package.module:function. auto chooses "
        "the method as `dovetail pretrain` does. Or the folder of a run, to print what it used.",
        positional=True,
    )


@takes(ShowOptions)
def show(options: ShowOptions) -> None:
    """Print the recipe of a method: terms, taps, heads, weights, views, schedules, optimiser.

    With the folder of a run, its recipe and options are printed. With a method and no options of a run, the published
    recipe is printed. Otherwise the recipe is resolved as by `dovetail pretrain` with the same options, including
    method, preset, view size, length and batch size. If `data` is specified, the choices depend on its number of
    images.

    Raises:
        DovetailError: The folder contains no run, or `pretrain` would reject the options before its first step.
    """
    if is_run(options.method):
        if options.named != {"method"}:
            raise OptionsError(f"{options.method} is a folder, whose run is printed as it was; omit the other options.")
        show_folder(Path(options.method))
        return
    refuse_other_spellings(options, options.recipe)
    options = options.changed(method=name_of(options.method))
    if options.method != AUTO and options.named <= OF_THE_METHOD:
        show_published(options)
    else:
        show_run(options)


def show_folder(folder: Path) -> None:
    """Print the recipe and the options that a run used."""
    import yaml

    if not folder.is_dir():
        raise RunError(f"There is no folder {str(folder)!r}; {about_missing(folder)}")
    config = read_config(folder) if (folder / CONFIG).is_file() else None
    if config is None:
        raise RunError(f"{folder} contains no run ({CONFIG} is missing); specify a run folder or a method.")
    tell(f"{config.get('method')} on {config.get('model') or 'a module'} in {folder}\n")
    if (folder / RECIPE).is_file():
        tell((folder / RECIPE).read_text(encoding="utf-8", errors="replace").rstrip())
    tell(f"\nOptions, from {folder / CONFIG}:\n")
    tell(yaml.safe_dump(config, sort_keys=False).rstrip())


def show_run(options: PretrainOptions) -> None:
    """Print the recipe and the settings of a run."""
    from dovetail.data.open import open_source
    from dovetail.run.choose import chosen
    from dovetail.run.network import network_for
    from dovetail.run.resolve import Images, resolved_run
    from dovetail.run.stream import is_stream
    from dovetail.run.summary import as_it_runs

    if options.model is None:
        options = options.changed(model=standing_model(options.method))
        tell_of_model(options.model)
    unknown = options.data is None or is_stream(options.data)
    images = Images(ASSUMED_IMAGES) if unknown else open_source(options.data, fetch=True)
    network = network_for(options)
    options, why = chosen(options.changed(resume=False), network, images)
    recipe, settings, _ = resolved_run(options, images, network)
    if why:
        print(why)
    if unknown:
        reason = "--data is not specified" if options.data is None else "a streaming dataset does not say how many"
        print(f"Assuming {ASSUMED_IMAGES:,} images, because {reason}.")
    console = wide_console()
    console.print(f"{options.method} on {options.model}", style="bold")
    console.print(settings.table())
    for table in recipe_tables(as_it_runs(recipe, settings), network):
        console.print(table)
