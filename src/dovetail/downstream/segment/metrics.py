"""Scores of semantic segmentation, computed from a confusion matrix over all pixels of all images.

    IoU_c = TP_c / (TP_c + FP_c + FN_c)    mIoU = mean over the classes in the ground truth or the prediction
    aAcc  = sum_c TP_c / pixels            mAcc = mean over the classes in the ground truth of TP_c / (TP_c + FN_c)

Shapes: K classes, H x W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dovetail.errors import DataError

IGNORE_INDEX = 255


@dataclass(frozen=True)
class SegmentationScores:
    """Scores in [0, 1].

    Attributes:
        miou: Mean intersection over union of the classes in the ground truth or the prediction.
        accuracy: Fraction of correct labelled pixels (aAcc).
        mean_accuracy: Fraction of correct pixels per class, averaged over the classes in the ground truth (mAcc).
        iou: Intersection over union of each class, NaN for classes that do not occur.
        pixels: Number of labelled pixels.
    """

    miou: float
    accuracy: float
    mean_accuracy: float
    iou: tuple[float, ...]
    pixels: int


class ConfusionMatrix:
    """Pixel counts [K, K] int64, with ground truth in rows and predictions in columns."""

    def __init__(self, classes: int, *, ignore_index: int = IGNORE_INDEX) -> None:
        self.classes = classes
        self.ignore_index = ignore_index
        self.counts = torch.zeros(classes, classes, dtype=torch.int64)
        self.added: list[Tensor] = []  # [3, K]: correct, true and predicted pixels

    def add(self, prediction: Tensor, truth: Tensor) -> None:
        """Add the labels of `prediction` and `truth`, integer tensors of the same shape.

        Add one image at a time, so that `intervals` can resample images.

        Raises:
            DataError: A label is outside 0 .. K - 1 and is not the ignored label.
        """
        if prediction.shape != truth.shape:
            raise DataError(
                f"Predictions of shape {tuple(prediction.shape)} do not match masks of shape {tuple(truth.shape)}; "
                "resize the logits to the size of the mask."
            )
        kept = truth != self.ignore_index
        rows, columns = truth[kept].long(), prediction[kept].long()
        for name, labels in (("truth", rows), ("prediction", columns)):
            if labels.numel() and (int(labels.min()) < 0 or int(labels.max()) >= self.classes):
                wrong = int(labels.max()) if int(labels.max()) >= self.classes else int(labels.min())
                raise DataError(
                    f"The {name} contains label {wrong}, but there are {self.classes} classes (0 to "
                    f"{self.classes - 1}); correct the number of classes or the ignore index."
                )
        pairs = torch.bincount(rows * self.classes + columns, minlength=self.classes**2)
        found = pairs.view(self.classes, self.classes).cpu()
        self.counts += found
        self.added.append(torch.stack([found.diagonal(), found.sum(1), found.sum(0)]))

    def scores(self) -> SegmentationScores:
        """Return the scores of all pixels added so far.

        Raises:
            DataError: There are no labelled pixels.
        """
        pixels = int(self.counts.sum())
        if pixels == 0:
            raise DataError("There are no labelled pixels; check the masks and the ignore index.")
        sums = torch.stack([self.counts.diagonal(), self.counts.sum(1), self.counts.sum(0)]).double()
        miou, accuracy, mean_accuracy = scores_of(sums).tolist()
        iou = sums[0] / (sums[1] + sums[2] - sums[0])  # 0 / 0 is NaN: the class does not occur
        return SegmentationScores(miou, accuracy, mean_accuracy, tuple(iou.tolist()), pixels)

    def moves(self) -> tuple[float, ...]:
        """Return the influence of each added image on mIoU (see `moves_of`)."""
        return tuple(moves_of(torch.stack(self.added)).tolist())

    def intervals(self, *, seed: int = 0, draws: int = 1000) -> list[tuple[float, float] | None]:
        """Return the 95 % bootstrap intervals of mIoU, aAcc and mAcc over images, None for fewer than three images."""
        if len(self.added) < 3:
            return [None] * 3
        counts = torch.stack(self.added).double()  # [N, 3, K]
        total = len(counts)
        times = np.random.default_rng((seed, 3)).multinomial(total, np.full(total, 1 / total), size=draws)
        sums = (torch.from_numpy(times).double() @ counts.flatten(1)).view(draws, 3, self.classes)
        found = scores_of(sums[sums[:, 1].sum(1) > 0])
        low, high = np.percentile(found.numpy(), [2.5, 97.5], axis=0)
        return list(zip(low.tolist(), high.tolist(), strict=True))


def moves_of(counts: Tensor) -> Tensor:
    """Return the influence of each image on mIoU to first order, [N], from counts [N, 3, K] (correct, true, predicted).

    With the union U and the IoU of a class c over all images,

        move_i = mean over c of (right_ic - IoU_c union_ic) / U_c

    They sum to 0, and sqrt(N / (N - 1) sum_i move_i^2) is the standard error of mIoU over test images (by the delta
    method for a mean of ratios).
    """
    right, truth, predicted = counts.double().unbind(1)  # [N, K] each
    union = truth + predicted - right
    occurs = union.sum(0) > 0
    total = union.sum(0)[occurs]
    iou = right.sum(0)[occurs] / total
    return ((right[:, occurs] - iou * union[:, occurs]) / total).mean(1)


def scores_of(sums: Tensor) -> Tensor:
    """Return mIoU, aAcc and mAcc [..., 3] from counts [..., 3, K] of correct, true and predicted pixels."""
    right, truth, predicted = sums.unbind(-2)
    iou, recall = right / (truth + predicted - right), right / truth  # 0 / 0 is NaN: the class does not occur
    return torch.stack([iou.nanmean(-1), right.sum(-1) / truth.sum(-1), recall.nanmean(-1)], dim=-1)
