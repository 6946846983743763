"""`predict`: what a fine-tuned run says about new images."""

from __future__ import annotations

from pathlib import Path

from dovetail.downstream.options import PredictOptions
from dovetail.options import takes


@takes(PredictOptions)
def predict(options: PredictOptions) -> Path:
    """Write a fine-tuned run's predictions for a folder of images.

    Segmentation writes one palette PNG for each image, of its size and with its name, and classes.json;
    detection writes predictions.json, boxes (and masks) in COCO's result format with the files' names;
    classification writes predictions.csv with the three best classes. Images that cannot be read are left out and
    named in unread.jsonl.

    Returns:
        The folder of the predictions.

    Raises:
        DovetailError: For anything that was asked for and cannot be done, in one sentence.
    """
    from dovetail.downstream import predictions

    return predictions.predict(options)
