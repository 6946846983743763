"""The summary that a run prints before its first step, and the instructions that it prints at the end."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from lightning.pytorch.utilities import rank_zero_only

from dovetail.data.identity import Identity, difference, read_identity
from dovetail.data.reading.peaks import told_of_values
from dovetail.data.reading.skipped import unreadable_in
from dovetail.data.reading.values import value_range
from dovetail.data.sources import ImageSource, PathSource
from dovetail.distributed import rank
from dovetail.errors import DataError, DovetailError, counted, tell
from dovetail.files.sidecar import SIDECAR, read_sidecar
from dovetail.networks.initialise import describe_init
from dovetail.networks.network import Construction, Network
from dovetail.recipe import Recipe
from dovetail.recipes import presets
from dovetail.recipes.show import recipe_lines, words
from dovetail.run.folder import CONFIG, RECIPE, read_config, write_config
from dovetail.run.network import EXPORTED
from dovetail.run.options import PretrainOptions
from dovetail.run.resolve import kept_options
from dovetail.train.defaults import Settings
from dovetail.train.logs import note
from dovetail.weights.exported import MatchReport

log = logging.getLogger(__name__)


@rank_zero_only
def announce(
    config: PretrainOptions,
    recipe: Recipe,
    network: Network,
    settings: Settings,
    out: Path,
    loaded: MatchReport | None = None,
    why: str = "",
    finished: bool = False,
    begun: bool = False,
    shown: bool = True,
    given: Collection[str] = (),
) -> None:
    """Save and print the resolved options before the first step.

    `loaded` is the report of the weight file, and `why` has the reasons for the choices, which were printed before. If
    the run is `finished`, a sentence says so instead. If the settings are not to be `shown`, a line has the length. If
    the run has `begun` before, a line names the settings that changed. `given` are the names of the recipe options that
    the user specified.
    """
    before = read_config(out) if begun else {}
    write_config(out, kept_options(config))
    text = ran_in_words(config, settings) + recipe_lines(as_it_runs(recipe, settings), network)
    (out / RECIPE).write_text(text + "\n", encoding="utf-8")
    if finished:
        tell(nothing_left(out, settings))
        note(out, nothing_left(out, settings))
        return
    model = config.model if isinstance(config.model, str) else type(config.model).__name__
    title = f"{config.method} on {model}, {counted(settings.num_images, 'image')}, into {out}"
    tell(title)
    for line in filter(None, (title, why, ran_in_words(config, settings).strip())):
        note(out, line)
    if begun:
        tell(told_of_changes(before, read_config(out), out))
        return
    if not shown:
        tell(ran_in_words(config, settings).strip())
        return
    tell(settings.table())
    if config.init is not None:
        tell(f"init              {describe_init(network, config.init)}")
        for line in str(loaded).splitlines() if loaded else ():
            tell(f"                  {line}")
    if network.frozen:
        tell(f"frozen            {frozen_line(network)}")
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (config.mean, config.std))
    if config.value_range:
        tell("value range       {} is black, {} is white".format(*(f"{value:g}" for value in config.value_range)))
    tell(f"normalisation     mean {mean}; std {std}")
    for index, line in enumerate(told_of_recipe(config, settings, given)):
        tell(f"{'' if index else 'recipe options':<18}{line}")
    for term in recipe.terms:
        tell(f"term {term.name:<12} {term_line(recipe, network, term.name)}")


def told_of_recipe(config: PretrainOptions, settings: Settings, given: Collection[str]) -> list[str]:
    """Return the recipe's options that differ from the published ones: a line for each origin.

    The origins are the user, the preset, the length of the run (see `dovetail.run.resolve.shortened`), and others.
    """
    quarter = float(f"{settings.total_steps / settings.steps_per_epoch / 4:.3g}")
    preset = presets.options(cast(presets.Preset, config.preset), config.method)
    lines: dict[str, list[str]] = {}
    for name, value in (config.recipe or {}).items():
        if name in given:
            origin = "as specified"
        elif name in ("warmup_epochs", "frozen_epochs") and value == quarter:
            origin = "a quarter of the run"
        else:
            origin = f"preset {config.preset}" if name in preset else "chosen for this run"
        lines.setdefault(origin, []).append(f"{name}={value}")
    return [f"{', '.join(found)} ({origin})" for origin, found in lines.items()] or ["as published"]


def told_of_changes(before: Mapping[str, Any], now: Mapping[str, Any], out: Path) -> str:
    """Return where the settings of a resumed run are, and those that differ from `before`."""
    changed = [
        f"{name} {now[name]} (before: {value})" for name, value in before.items() if name in now and now[name] != value
    ]
    return f"Settings: as before, in {out / CONFIG}{', except ' if changed else ''}{', '.join(changed)}"


def frozen_line(network: Network) -> str:
    """Describe the parameters that are not trained because they have `requires_grad=False`."""
    sizes = {name: value.numel() for name, value in network.model.named_parameters()}
    numbers = sum(sizes[name] for name in network.frozen)
    return (
        f"{len(network.frozen):,} of {counted(len(sizes), 'parameter')} have requires_grad=False and are not trained "
        f"({numbers:,} of {sum(sizes.values()):,} values)"
    )


def as_it_runs(recipe: Recipe, settings: Settings) -> Recipe:
    """Return a recipe with the length and batch size of a run instead of the published ones, for display."""
    return replace(recipe, epochs=settings.epochs, batch_size=settings.global_batch)


def ran_in_words(config: PretrainOptions, settings: Settings) -> str:
    """Return a line with the length, batch size, learning rate and preset of a run."""
    return (
        f"This run: {counted(settings.total_steps, 'step')} of {counted(settings.global_batch, 'image')} "
        f"({counted(settings.epochs, 'epoch')} of {counted(settings.num_images, 'image')}), peak learning rate "
        f"{settings.lr:.4g}, preset {config.preset}\n\n"
    )


def term_line(recipe: Recipe, network: Network, name: str) -> str:
    """Return one line that describes a term: weight, tap and cells."""
    term = next(one for one in recipe.terms if one.name == name)
    tap = network.taps[term.tap]
    height, width = (side // tap.stride for side in recipe.views.views[0].sides)
    line = f"weight {words(term.weight)}, tap {term.tap} ({tap.channels} channels, stride {tap.stride} px)"
    if tap.kind == "map":
        line += f", {height}x{width} cells"
        grid = term.cells.grid
        if grid is not None and max(height, width) > grid:
            line += f" pooled to {min(height, grid)}x{min(width, grid)}"
        if term.cells.points is not None:
            line += f" sampled at {term.cells.points} points"
        if term.cells.border:
            line += f", without {term.cells.border} at each edge"
    if term.checkpoint_head:
        line += ", head recomputed in the backward pass"
    return line


@rank_zero_only
def tell_of_source(source: ImageSource, *, check_range: bool = True) -> None:
    """Print which files of a source are skipped, and warn if its images use little of their value range."""
    if source.left_out:
        tell(source.left_out)
    if check_range and isinstance(source, PathSource):
        names = [source.name(index) for index in range(0, source.num_images, max(source.num_images // 64, 1))]
        if told := told_of_values(names, value_range()):
            log.warning("%s", told)


def check_same_images(identity: Identity, out: Path, *, moved: bool, begun: bool) -> None:
    """Check that a resumed run has the same images as before.

    Args:
        identity: Identity of the current images.
        out: Run folder.
        moved: Whether `data` is specified again.
        begun: Whether there is a checkpoint.

    Raises:
        DataError: `data` is specified again and has other images, or there is a checkpoint and the number of images
            has changed.
    """
    before = read_identity(out)
    if before is None:
        if moved and rank() == 0:
            log.warning(
                "The run in %s has no record of its images, so the images in --data were not compared with them.", out
            )
        return
    told = difference(before, identity)
    if told and moved:
        raise DataError(f"The images in --data are not those of the run in {out} ({told}); specify the same images.")
    if begun and before["images"] != identity["images"]:
        raise DataError(
            f"The images of the run in {out} have changed ({told}); restore the images, or specify their new path with "
            "--data."
        )
    if told and rank() == 0:
        log.warning(
            "The images of the run in %s have changed (%s). The run continues with the current images.", out, told
        )


def example(network: Network, out: Path) -> str:
    """Return Python code that builds the model and loads the run into it."""
    call, construction = network.constructor, Construction.parse(network.constructor)
    lines = ["    import dovetail"]
    if construction is None:
        lines.append("    model = ...  # your own module")
    else:
        module = construction.path.rpartition(".")[0]
        head = "" if module.startswith("dovetail.") else "  # with your number of classes"
        lines += [f"    import {IMPORTED_AS.get(module, module)}", "", f"    model = {call}{head}"]
    lines.append(f"    print(dovetail.load_into(model, {str(out)!r}))")
    return "\n".join(lines)


def length_option(settings: Settings) -> str:
    """Return the option that sets the length of a run."""
    return "--epochs" if settings.max_steps is None else "--max-steps"


def is_finished(out: Path, settings: Settings) -> bool:
    """Return whether the run in a folder has taken all its steps and exported its weights."""
    try:
        return bool(read_sidecar(out / EXPORTED / SIDECAR)["extra"]["steps"] == settings.total_steps)
    except (DovetailError, KeyError):
        return False


def nothing_left(out: Path, settings: Settings) -> str:
    """Return a sentence on a finished run that is resumed with its own length."""
    length = settings.epochs if settings.max_steps is None else settings.total_steps
    return (
        f"The run in {out} has finished its {counted(settings.total_steps, 'step')}, so nothing is left to do; to "
        f"lengthen it, add {length_option(settings)} with more than {length:,}."
    )


def told_of_checkpoint(last: Path, settings: Settings) -> str:
    """Return what is kept of a finished run's checkpoints, and why it is larger than the model."""
    files = [last] if last.is_file() else [path for path in last.rglob("*") if path.is_file()]
    megabytes = sum(path.stat().st_size for path in files) / 1e6
    return (
        f"\n{last} ({megabytes:,.0f} MB) is kept to lengthen the run with --resume {length_option(settings)}. In "
        "addition to the model, it contains the heads, the teacher and the optimiser state."
    )


def told_of_skipped(file: Path) -> str:
    """Return how many images could not be read, by the `skipped.jsonl` of a run; empty if all could."""
    count = len(unreadable_in(file))
    if not count:
        return ""
    return f"\n{counted(count, 'image')} could not be read and {'was' if count == 1 else 'were'} skipped; see {file}."


def measuring(out: Path, init: str | None) -> str:
    """Return the command that measures the gain of a run from `init` on labelled images."""
    alone = "imagenet" if init == "imagenet" else "random"
    return f"dovetail finetune segment --run {shlex.quote(str(out))} --data LABELLED --start {alone} all"


def next_steps(out: Path, init: str | None) -> str:
    """Return the command that evaluates a finished run from `init`, and the path of its report page."""
    command = f"    {measuring(out, init)}"
    page = out / "report.html"
    shown = [f"\nThe report of the run is {page}."] if page.is_file() else []
    return "\n".join(["\nTo measure the gain from pre-training on labelled images:\n", command, *shown])


IMPORTED_AS = {"smp": "segmentation_models_pytorch as smp"}
