"""Rebuilds a fine-tuned model from its folder, or reads its weights for another model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dovetail.downstream.classify.job import build_classifier
from dovetail.downstream.detect.model import DetectorSpec, build_detector
from dovetail.downstream.finished import WEIGHTS, Task, load_weights, read_task
from dovetail.downstream.own import OwnModel
from dovetail.downstream.segment.model import FCNSpec, build_segmenter
from dovetail.downstream.start import TASK_FILE
from dovetail.errors import DovetailError, ModelError, OptionsError
from dovetail.networks.construct import at_size
from dovetail.networks.own import shared_root
from dovetail.networks.parts import Parts, locate_parts
from dovetail.sizes import Size, as_size
from dovetail.weights.exported import Exported, load_whole, read_exported


def finished_folder(source: str | Path) -> Path | None:
    """Return the fine-tuned run that a folder or a weight file belongs to, or None."""
    path = Path(source)
    folder = path if path.is_dir() else path.parent
    fits = path.is_dir() or path.name == WEIGHTS
    return folder if fits and (folder / TASK_FILE).is_file() and (folder / WEIGHTS).is_file() else None


def build_finished(task: Task, *, model: nn.Module | None = None) -> tuple[nn.Module, nn.Module]:
    """Return a fine-tuned model with random weights, and its pre-trained submodule.

    Args:
        task: Task of the model.
        model: The module of the user, if it was fine-tuned.

    Raises:
        DovetailError: The saved options are invalid, or `model` is missing or superfluous.
    """
    paths = task.options.get("paths")
    if paths and model is None:
        raise ModelError(f"The fine-tuned model is your own module, {task.constructor}; pass the module as model.")
    if model is not None and not paths:
        raise OptionsError("The fine-tuned model is not a module of your own; omit model.")
    try:
        return built(task, own=OwnModel(model, **paths) if model is not None and paths else None)
    except DovetailError:
        raise
    except Exception as error:  # invalid options make constructors raise almost anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ModelError(f"The options of the fine-tuned run are invalid ({reason}); fine-tune again.") from error


def built(task: Task, *, own: OwnModel | None = None) -> tuple[nn.Module, nn.Module]:
    """Build the model as `build_finished`, without handling errors."""
    source, options = replace(task.source(), own=own), task.options
    if task.task == "segment":
        return build_segmenter(
            source,
            classes=len(task.names),
            decoder=options["decoder"],
            output_stride=options["output_stride"],
            fcn=FCNSpec(**options["fcn"]),
        )
    if task.task == "detect":
        return build_detector(source, DetectorSpec(**{**options["spec"], "sides": tuple(options["spec"]["sides"])}))
    classifier = build_classifier(source, len(task.names))
    return classifier, classifier.features.network.model


def load_finished(folder: Path, *, image_size: Size | None = None, model: nn.Module | None = None) -> nn.Module:
    """Return the model of a fine-tuned run with its weights. A plain model of a library is returned unwrapped.

    With `image_size`, the position embeddings of a ViT are resampled to this size in pixels. `model` is the module of
    the user, if it was fine-tuned. The returned model has the attributes `class_names` and `normalisation` ({"mean",
    "std"} of each channel in [0, 1]).

    Raises:
        DovetailError: The weights do not fit.
    """
    task = read_task(folder)
    trained_at = as_size(task.image_size)
    if image_size is not None:
        task = replace(task, constructor=at_size(task.constructor, image_size))
    made, target = build_finished(task, model=model)
    if image_size is None:
        load_weights(made, folder)
    else:
        load_whole(made, read_exported(folder / WEIGHTS).weights, folder / WEIGHTS, image_size=trained_at)
    whole: Any = target if len(target.state_dict()) == len(made.state_dict()) else made
    whole.class_names = task.names
    whole.normalisation = {"mean": list(task.mean), "std": list(task.std)}
    loaded: nn.Module = whole.eval()
    return loaded


OWN = {"segment": "body.network.model.", "detect": "network.model.", "classify": "features.network.model."}
"""End of the prefix of the user's own module in a fine-tuned model."""


def place_of(task: Task, names: Iterable[str]) -> tuple[str, Parts]:
    """Return the prefix of the pre-trained submodule in a fine-tuned model with tensors `names`, and its parts."""
    paths = task.options.get("paths")
    if paths:
        first = next((name for name in names if OWN[task.task] in name), None)
        if first is None:
            raise ModelError(f"The weights of the fine-tuned {task.constructor} have other names; fine-tune again.")
        root = shared_root(
            paths.get("encoder") or [path for name, path in paths.get("taps", {}).items() if name[0] == "c"]
        )
        decoders = tuple(f"{path}." for path in paths.get("decoder", ()))
        return first[: first.index(OWN[task.task])] + OWN[task.task], Parts(f"{root}." if root else "", decoders)
    with torch.device("meta"):
        model, target = build_finished(task)
    name = next(name for name, module in model.named_modules() if module is target)
    return f"{name}." if name else "", locate_parts(target) or Parts("")


def exported_of(folder: Path) -> Exported:
    """Return the weights of the pre-trained submodule of a fine-tuned model, with the names of that submodule."""
    task, found = read_task(folder), read_exported(folder / WEIGHTS)
    prefix, parts = place_of(task, found.weights)
    weights = {key.removeprefix(prefix): value for key, value in found.weights.items() if key.startswith(prefix)}
    info = {
        "constructor": task.constructor,
        "encoder_prefix": parts.encoder_prefix,
        "decoder_prefixes": list(parts.decoder_prefixes),
        "untrained": [],
        "in_channels": task.in_channels,
        "image_size": task.image_size,
        "normalisation": {"mean": list(task.mean), "std": list(task.std)},
        "task": task.task,
        "class_names": list(task.names),
    }
    return Exported(weights, info, found.path)
