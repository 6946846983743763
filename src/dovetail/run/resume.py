"""Resuming: a saved run's options, with those of the machine and the log as they are asked for now."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dovetail.errors import DataError, OptionsError, counted
from dovetail.recipes import presets
from dovetail.recipes.table import LATER, options_of
from dovetail.run.elastic import shared_anew
from dovetail.run.folder import COMMANDED, PATTERN, anchored, normal, saved_options
from dovetail.run.options import PretrainOptions
from dovetail.train.checkpoints import Checkpoints
from dovetail.train.defaults import Settings

FORMER = {"method": "decon-sl", "freeze_encoder_epochs": 0.0}  # defaults of runs from before these were chosen
SEQUENCES = ("mean", "std", "value_range")
LENGTH = ("epochs", "max_steps")


def resumed(asked: PretrainOptions, folder: Path) -> PretrainOptions:
    """Return the saved run's options; those of `PretrainOptions.movable` may differ from those of the first time.

    With other devices a step keeps its images: each device takes more or fewer of them, in more or fewer passes.
    A finished run may be given more `epochs` or `max_steps`.

    Raises:
        OptionsError: For an option that was named and that the run has otherwise.
    """
    saved = saved_options(folder)
    movable = PretrainOptions.movable()
    lengths = lengthened(asked, saved, folder)
    known = {**defaults(), **saved}
    known["recipe"] = published(known) | (saved.get("recipe") or {})
    for name in sorted(asked.named - movable - {"out", *COMMANDED, *lengths}):
        value = getattr(asked, name)
        if value is None or value == "auto":
            continue
        if is_given_again(name, value):
            saved[name] = normal(value)
        elif not stands_for(name, value, asked, saved, known):
            had = {option: known[name].get(option) for option in value} if isinstance(value, dict) else known.get(name)
            later = " first, and lengthen it when it is finished" if name in LENGTH else ""
            raise OptionsError(
                f"The run in {folder} has {name} {had!r}, not {value!r}; leave {name} out to resume it{later}."
            )
    given = {name: getattr(asked, name) for name in movable & asked.named if getattr(asked, name) != "auto"}
    if "devices" in given:  # who names the devices of a node means this number of nodes, one as well
        given["num_nodes"] = asked.num_nodes
    options = {**defaults(), **saved, **given, **lengths, "out": str(folder)}
    options |= shared_anew(saved, given, options)
    # A resumed run's config is a file, and may not decide what only the command line may.
    from_file = options.keys() - (asked.named - asked.from_file)
    return PretrainOptions.given(options, from_file=from_file).changed(resume=True)


def lengthened(asked: PretrainOptions, saved: Mapping[str, Any], folder: Path) -> dict[str, int | None]:
    """Return the `epochs` and `max_steps` with which a finished run goes on; nothing where it keeps its length.

    Raises:
        OptionsError: Where a finished run has done more steps than are asked for.
    """
    wished = {name: getattr(asked, name) for name in LENGTH if name in asked.named}
    wished = {name: value for name, value in wished.items() if value not in (None, "auto")}
    if all(value == saved.get(name) for name, value in wished.items()):
        return {}
    state = Checkpoints(folder / "checkpoints").load(whole=False)
    then = None if state is None else Settings.from_dict(state["settings"])
    if state is None or then is None or state["step"] < then.total_steps:
        return {}  # what is not finished keeps its length
    most = wished.get("max_steps")
    epochs = wished.get("epochs", math.ceil((most or 0) / then.steps_per_epoch))
    steps = min(epochs * then.steps_per_epoch, most or math.inf)
    if steps < state["step"]:
        raise OptionsError(
            f"The run in {folder} has finished its {counted(state['step'], 'step')}, more than the {steps:,} asked "
            "for; give more --epochs or --max-steps to lengthen it."
        )
    return {"epochs": epochs, "max_steps": most} if steps > state["step"] else {}


def is_given_again(name: str, value: Any) -> bool:
    """Whether an option is taken from the command line: the images, which may have moved, and what Python objects are.

    Whether the images are the same is looked at when they are read. A module or a dataset cannot be written down.
    """
    plain = isinstance(value, (str, int, float, bool, dict, Path)) or name in SEQUENCES
    return name == "data" or not plain


def stands_for(
    name: str, value: Any, asked: PretrainOptions, saved: Mapping[str, Any], known: Mapping[str, Any]
) -> bool:
    """Whether an option that is named is what the run has, or what the run has stands for it."""
    if name == "epochs" and saved.get("max_steps") is not None and value >= known.get(name, math.inf):
        return True  # the run saved those that fit into its steps
    if name == "preset" and agrees(preset_options(value, saved, asked), saved.get("recipe")):
        return True  # the run saved what the preset stood for
    return agrees(anchored(name, normal(value)), anchored(name, known.get(name)))


def defaults() -> dict[str, Any]:
    """Return the defaults of all options that a run keeps, as runs have them whose file does not name one."""
    left_out = {*COMMANDED, *PretrainOptions.given_in_python()}
    found = {name: value for name, value in PretrainOptions().as_dict().items() if name not in left_out}
    return found | FORMER


def check_still_there(folder: Path, data: Any) -> None:
    """Raise `DataError` where the images of a run that goes on are not where they were."""
    here = isinstance(data, str) and "://" not in data and not data.startswith("hf:") and not PATTERN.search(data)
    if here and not Path(data).exists():
        raise DataError(f"The images of the run in {folder} are not at {data} any more; say where with --data.")


def published(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the recipe's options that a run has whose file does not name them."""
    known = options_of(str(options["method"]))
    return {name: normal(LATER.get(name, one.default)) for name, one in known.items()}


def preset_options(preset: Any, saved: Mapping[str, Any], asked: PretrainOptions) -> dict[str, Any]:
    """Return the options that a preset stands for in any run, less those that were given by themselves."""
    method, given = str(saved.get("method")), {*(asked.recipe or {})}
    if "decoder_grid" in (saved.get("recipe") or {}):  # given by itself, or in a preset of an older version
        given |= {"decoder_cells", "decoder_hidden"}
    return presets.beside(presets.agreed_options(preset, method), given, method)


def agrees(given: Any, saved: Any) -> bool:
    """Whether a value is the saved one; options are asked for one by one, as a run saves those of its preset too."""
    if isinstance(given, dict) and (saved is None or isinstance(saved, dict)):  # a file need not name any
        known = saved or {}
        return all(name in known and agrees(value, known[name]) for name, value in given.items())
    return bool(normal(given) == saved)
