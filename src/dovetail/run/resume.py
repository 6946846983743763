"""Resumes a run: combines its saved options with those for the machine and the log that are specified now."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dovetail.data.reading.values import is_percentile
from dovetail.errors import DataError, OptionsError, counted
from dovetail.recipes import presets
from dovetail.recipes.table import LATER, options_of
from dovetail.run.elastic import shared_anew
from dovetail.run.folder import COMMANDED, PATTERN, anchored, normal, saved_options
from dovetail.run.options import PretrainOptions
from dovetail.train.checkpoints import Checkpoints
from dovetail.train.defaults import Settings

# Defaults before these options existed or could be "auto".
FORMER = {"method": "decon-sl", "freeze_encoder_epochs": 0.0, "encoder_batch_norm": "train"}
SEQUENCES = ("mean", "std", "value_range", "image_size")
LENGTH = ("epochs", "max_steps")


def resumed(asked: PretrainOptions, folder: Path) -> PretrainOptions:
    """Return the options of the saved run, overridden by specified options that may change on resume.

    `PretrainOptions.movable` lists the options that may change. With another number of devices, the global batch of a
    step stays the same and is split differently. A finished run may be lengthened with `epochs` or `max_steps`.

    Raises:
        OptionsError: A specified option differs from the saved run and may not change.
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
            later = " to finish the run first, then lengthen it" if name in LENGTH else ""
            raise OptionsError(
                f"The run in {folder} has {name} {had!r}, which cannot be changed to {value!r} on resume; omit "
                f"{name}{later}."
            )
    given = {name: getattr(asked, name) for name in movable & asked.named if getattr(asked, name) != "auto"}
    if "devices" in given:  # specified devices imply the number of nodes, also if it is the default
        given["num_nodes"] = asked.num_nodes
    options = {**defaults(), **saved, **given, **lengths, "out": str(folder)}
    options |= shared_anew(saved, given, options)
    # The config of a resumed run is a file, which may not set options that are reserved for the command line.
    from_file = options.keys() - (asked.named - asked.from_file)
    return PretrainOptions.given(options, from_file=from_file).changed(resume=True)


def lengthened(asked: PretrainOptions, saved: Mapping[str, Any], folder: Path) -> dict[str, int | None]:
    """Return the `epochs` and `max_steps` that lengthen a finished run, or an empty dict.

    Raises:
        OptionsError: The finished run has more steps than requested.
    """
    wished = {name: getattr(asked, name) for name in LENGTH if name in asked.named}
    wished = {name: value for name, value in wished.items() if value not in (None, "auto")}
    if all(value == saved.get(name) for name, value in wished.items()):
        return {}
    state = Checkpoints(folder / "checkpoints").load(whole=False)
    then = None if state is None else Settings.from_dict(state["settings"])
    if state is None or then is None or state["step"] < then.total_steps:
        return {}  # an unfinished run keeps its length
    most = wished.get("max_steps")
    epochs = wished.get("epochs", math.ceil((most or 0) / then.steps_per_epoch))
    steps = min(epochs * then.steps_per_epoch, most or math.inf)
    if steps < state["step"]:
        raise OptionsError(
            f"The run in {folder} has finished {counted(state['step'], 'step')}, more than the {steps:,} requested; "
            "use more --epochs or --max-steps to lengthen it."
        )
    return {"epochs": epochs, "max_steps": most} if steps > state["step"] else {}


def is_given_again(name: str, value: Any) -> bool:
    """Return whether an option has to be specified again: images, which may have moved, and Python objects.

    The images are compared with those of the run when they are read. A module or a dataset cannot be saved.
    """
    plain = isinstance(value, (str, int, float, bool, dict, Path)) or name in SEQUENCES
    return name == "data" or not plain


def stands_for(
    name: str, value: Any, asked: PretrainOptions, saved: Mapping[str, Any], known: Mapping[str, Any]
) -> bool:
    """Return whether a specified option agrees with the saved run, directly or by what it expands to."""
    if name == "value_range" and is_percentile(value) and saved.get(name):
        return True  # the run saved the range that was measured
    if name == "epochs" and saved.get("max_steps") is not None and value >= known.get(name, math.inf):
        return True  # the run saved the epochs that fit into its steps
    if name == "preset" and agrees(preset_options(value, saved, asked), saved.get("recipe")):
        return True  # the run saved the options of the preset
    return agrees(anchored(name, normal(value)), anchored(name, known.get(name)))


def defaults() -> dict[str, Any]:
    """Return the defaults of all options that are saved with a run, for options that are missing in its file."""
    left_out = {*COMMANDED, *PretrainOptions.given_in_python()}
    found = {name: value for name, value in PretrainOptions().as_dict().items() if name not in left_out}
    return found | FORMER


def check_still_there(folder: Path, data: Any) -> None:
    """Raise `DataError` if the images of a resumed run are no longer at their path."""
    for one in data if isinstance(data, list | tuple) else [data]:
        here = isinstance(one, str) and "://" not in one and not one.startswith("hf:") and not PATTERN.search(one)
        if here and not Path(one).exists():
            raise DataError(
                f"The images of the run in {folder} are no longer at {one}; specify their path with --data."
            )


def published(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the recipe options that a run has if its file does not contain them."""
    known = options_of(str(options["method"]))
    return {name: normal(LATER.get(name, one.default)) for name, one in known.items()}


def preset_options(preset: Any, saved: Mapping[str, Any], asked: PretrainOptions) -> dict[str, Any]:
    """Return the options of a preset, without those that are specified individually."""
    method, given = str(saved.get("method")), {*(asked.recipe or {})}
    if "decoder_grid" in (saved.get("recipe") or {}):  # specified individually, or by a preset of an older version
        given |= {"decoder_cells", "decoder_hidden"}
    return presets.beside(presets.agreed_options(preset, method), given, method)


def agrees(given: Any, saved: Any) -> bool:
    """Return whether a value equals the saved one. Of a dict, only the specified keys are compared."""
    if isinstance(given, dict) and (saved is None or isinstance(saved, dict)):  # a file may omit the dict
        known = saved or {}
        return all(name in known and agrees(value, known[name]) for name, value in given.items())
    return bool(normal(given) == saved)
