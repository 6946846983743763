"""`export`: a run's weights in the names of a library."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dovetail.options import Options, option, takes

Format = Literal["model", "encoder", "decoder", "timm", "torchvision", "smp", "detectron2", "mmseg"]


@dataclass(frozen=True, kw_only=True)
class ExportOptions(Options):
    """Options of `dovetail export`."""

    run: str | Path = option("", "Folder of the run, pre-trained or fine-tuned, or an exported folder.", required=True)
    to: str | Path = option("", "File to write: .safetensors, or .pt or .pth for `torch.load`.", required=True)
    format: Format = option(
        "model",
        '"model" for the whole model, names unchanged ("smp" and "torchvision" likewise, for models of these '
        'libraries, without a head that was not trained), "encoder" or "decoder" for one part, "timm" or '
        '"torchvision" for a ResNet encoder alone, "detectron2" or "mmseg" for a ResNet and its FPN or FCN '
        "decoder under their names.",
    )


@takes(ExportOptions)
def export(options: ExportOptions) -> Path:
    """Write a run's weights in the names of a library.

    Returns:
        The file.

    Raises:
        DovetailError: For a run without weights, or a format that does not fit the model.
    """
    from dovetail.run.load import exported
    from dovetail.weights.exported import export_weights

    written = export_weights(exported(options.run), format=options.format, to=options.to)
    print(written)
    return written.path
