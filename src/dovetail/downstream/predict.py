"""`predict`: writes the predictions of a fine-tuned model for new images."""

from __future__ import annotations

from pathlib import Path

from dovetail.downstream.options import PredictOptions
from dovetail.errors import OptionsError
from dovetail.files.writable import check_writable
from dovetail.options import takes


def check_early(options: PredictOptions) -> None:
    """Raise `DovetailError` for missing options and a folder that is not writable.

    The command line calls it before PyTorch is imported.
    """
    for name, words in (("run", "a fine-tuned run"), ("data", "a folder of images"), ("out", "an output folder")):
        if not str(getattr(options, name)):
            raise OptionsError(f"--{name} is missing; specify {words}.")
    check_writable(Path(options.out))


@takes(PredictOptions)
def predict(options: PredictOptions) -> Path:
    """Write the predictions of a fine-tuned model for a folder of images.

    Segmentation writes a palette PNG of the same size and name for each image, and classes.json. Detection writes
    predictions.json with boxes (and masks) in COCO's result format and the names of the files. Classification writes
    predictions.csv with the three best classes. Unreadable images are skipped and listed in unread.jsonl.

    Returns:
        Path of the output folder.

    Raises:
        DovetailError: An option is invalid, or the predictions cannot be computed or written.
    """
    from dovetail.downstream import predictions

    check_early(options)
    return predictions.predict(options)
