"""`export`: writes the weights of a run for another library, or its model as a program."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from dovetail.errors import tell
from dovetail.options import MOST_SIDE_PX, Options, Range, option, takes
from dovetail.provenance import refuse_code_in_file
from dovetail.sizes import Size, as_size

Format = Literal[
    "model", "encoder", "decoder", "timm", "torchvision", "smp",
    "detectron2", "mmseg", "ultralytics", "nnunet", "hugging-face", "onnx", "torch-export",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ExportOptions(Options):
    """Options of `dovetail export`."""

    run: str | Path = option(
        "", "Folder of the run, pre-trained or fine-tuned, or an exported folder.", required=True, existing=True
    )
    checkpoint: str | Path | None = option(
        None,
        'For a pre-training run that was stopped or still runs: "last" exports its newest checkpoint, and a path such '
        "as RUN/checkpoints/epoch-0010.ckpt exports that one. Default: the weights that a finished run exported.",
    )
    model: Any = option(
        None,
        "For a run of your own module: package.module:Class or (in Python) the module. Only needed with a checkpoint "
        "and for onnx and torch-export.",
    )
    to: str | Path = option(
        "",
        "Output file: .safetensors, .pt or .pth for weights, .onnx or .pt2 for programs. For hugging-face, a folder.",
        required=True,
    )
    format: Format = option(
        "model",
        '"model" for the whole model with unchanged names ("smp" and "torchvision" do the same for models of these '
        'libraries, but drop an untrained head), "encoder" or "decoder" for one part, "timm" or "torchvision" for the '
        'encoder, "detectron2" or "mmseg" for a ResNet, ConvNeXt, Swin or ViT and its FPN or FCN decoder, '
        '"ultralytics" for a ResNet backbone, "nnunet" for an nnU-Net network, "hugging-face" for a folder in the '
        'layout of the hub with a timm encoder, "onnx" or "torch-export" for a program that runs without Dovetail.',
    )
    part: Literal["all", "encoder"] = option(
        "all", "For onnx and torch-export: export the whole model or only its encoder."
    )
    image_size: Size | None = option(
        None,
        "For onnx and torch-export: side of the input image in pixels, or height x width, such as 64x128. Default: the "
        "run's.",
        Range(8, most=MOST_SIDE_PX),
        reads=as_size,
    )
    dynamic: bool = option(True, "For onnx and torch-export: support images of other sizes, too.")


@takes(ExportOptions)
def export(options: ExportOptions) -> Path:
    """Export the weights of a run for another library, or its model as a program.

    Returns:
        Path of the file or folder.

    Raises:
        DovetailError: The run has no weights, or the format does not support the model.
    """
    refuse_code_in_file(options)
    with tempfile.TemporaryDirectory() as folder:
        run = options.run
        if options.checkpoint is not None:
            run = save_checkpoint(options.run, options.checkpoint, Path(folder), model=options.model)
        return export_run(options.changed(run=run))


def save_checkpoint(run: str | Path, checkpoint: str | Path, folder: Path, *, model: Any = None) -> Path:
    """Write the weights in a checkpoint of a run to an exported folder, as at the end of the run, and return it."""
    from dovetail.run.restored import restore
    from dovetail.run.saving import save_run

    restored = restore(run, checkpoint=checkpoint, model=model)
    save_run(restored.learner, restored.options, folder, steps=restored.step)
    tell(f"The weights are those of the {restored.recipe.export} after {restored.steps}.")
    return folder


def export_run(options: ExportOptions) -> Path:
    """Export the weights in an exported folder or the folder of a finished run."""
    from dovetail.run.load import exported, load
    from dovetail.weights.exported import some
    from dovetail.weights.formats import export_weights
    from dovetail.weights.graphs import GRAPHS, export_graph

    source = exported(options.run)
    graph = next((one for one in GRAPHS if one == options.format), None)
    if graph is None:
        written = export_weights(source, format=options.format, to=options.to)
    else:
        written = export_graph(
            load(options.run, model=options.model),
            format=graph,
            to=options.to,
            part=options.part,
            channels=int(source.info.get("in_channels", 3)),
            image_size=options.image_size or as_size(source.info.get("image_size", 224)),
            dynamic=options.dynamic,
        )
        fresh = source.info.get("untrained", ())
        if fresh and graph != "hugging-face" and options.part == "all":  # the program computes with them, too
            written = replace(written, what=f"{written.what}; not trained: {some(fresh)}")
    print(written)
    return written.path
