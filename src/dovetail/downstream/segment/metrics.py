"""Scores of semantic segmentation, counted exactly from one confusion matrix over all pixels of all images.

    IoU_c = TP_c / (TP_c + FP_c + FN_c)    mIoU = mean over the classes that occur in truth or prediction
    aAcc  = sum_c TP_c / pixels            mAcc = mean over the classes that occur in truth of TP_c / (TP_c + FN_c)

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
    """Shares in [0, 1].

    Attributes:
        miou: Mean intersection over union of the classes that occur in truth or prediction.
        accuracy: Share of all labelled pixels that are right (aAcc).
        mean_accuracy: Mean over the classes that occur in truth of the share of their pixels that are right (mAcc).
        iou: Intersection over union of each class; NaN for one that occurs in neither.
        pixels: Labelled pixels counted.
    """

    miou: float
    accuracy: float
    mean_accuracy: float
    iou: tuple[float, ...]
    pixels: int


class ConfusionMatrix:
    """Counts of pixels [K, K], rows truth, columns prediction; int64, so that no count is rounded."""

    def __init__(self, classes: int, *, ignore_index: int = IGNORE_INDEX) -> None:
        self.classes = classes
        self.ignore_index = ignore_index
        self.counts = torch.zeros(classes, classes, dtype=torch.int64)
        self.added: list[Tensor] = []  # [3, K]: right, in truth, predicted

    def add(self, prediction: Tensor, truth: Tensor) -> None:
        """Count labels of `prediction` against `truth`, both integer tensors of one shape; an image at a time, so that
        `intervals` can draw images.

        Raises:
            DataError: For a label outside 0 .. K - 1 that is not the ignored one.
        """
        if prediction.shape != truth.shape:
            raise DataError(
                f"Predictions of shape {tuple(prediction.shape)} do not fit truth of shape {tuple(truth.shape)}; "
                "resize the logits to the mask's size."
            )
        kept = truth != self.ignore_index
        rows, columns = truth[kept].long(), prediction[kept].long()
        for name, labels in (("truth", rows), ("prediction", columns)):
            if labels.numel() and (int(labels.min()) < 0 or int(labels.max()) >= self.classes):
                wrong = int(labels.max()) if int(labels.max()) >= self.classes else int(labels.min())
                raise DataError(
                    f"The {name} holds label {wrong}, but there are {self.classes} classes (0 to {self.classes - 1}); "
                    "give the right number of classes or ignore index."
                )
        pairs = torch.bincount(rows * self.classes + columns, minlength=self.classes**2)
        found = pairs.view(self.classes, self.classes).cpu()
        self.counts += found
        self.added.append(torch.stack([found.diagonal(), found.sum(1), found.sum(0)]))

    def scores(self) -> SegmentationScores:
        """Return the scores of everything counted so far.

        Raises:
            DataError: When nothing was counted.
        """
        pixels = int(self.counts.sum())
        if pixels == 0:
            raise DataError("No labelled pixel was counted; check the masks and the ignore index.")
        sums = torch.stack([self.counts.diagonal(), self.counts.sum(1), self.counts.sum(0)]).double()
        miou, accuracy, mean_accuracy = scores_of(sums).tolist()
        iou = sums[0] / (sums[1] + sums[2] - sums[0])  # 0 / 0 is NaN: the class occurs nowhere
        return SegmentationScores(miou, accuracy, mean_accuracy, tuple(iou.tolist()), pixels)

    def moves(self) -> tuple[float, ...]:
        """Return how far each image that was added moves mIoU; see `moves_of`."""
        return tuple(moves_of(torch.stack(self.added)).tolist())

    def intervals(self, *, seed: int = 0, draws: int = 1000) -> list[tuple[float, float] | None]:
        """Return the 95 % percentile intervals of mIoU, aAcc and mAcc under another draw of what was added; None for
        fewer than three."""
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
    """Return how far each image moves mIoU, to first order, [N] of [N, 3, K]: right, in truth, predicted.

    With the union U and the IoU of a class c over all images,

        move_i = mean over c of (right_ic - IoU_c union_ic) / U_c

    They sum to 0, and sqrt(N / (N - 1) sum_i move_i^2) is the standard error of mIoU over other draws of images
    (the delta method for a mean of ratios).
    """
    right, truth, predicted = counts.double().unbind(1)  # [N, K] each
    union = truth + predicted - right
    occurs = union.sum(0) > 0
    total = union.sum(0)[occurs]
    iou = right.sum(0)[occurs] / total
    return ((right[:, occurs] - iou * union[:, occurs]) / total).mean(1)


def scores_of(sums: Tensor) -> Tensor:
    """Return mIoU, aAcc and mAcc [..., 3] of [..., 3, K]: pixels that are right, in truth, and predicted."""
    right, truth, predicted = sums.unbind(-2)
    iou, recall = right / (truth + predicted - right), right / truth  # 0 / 0 is NaN: the class does not occur
    return torch.stack([iou.nanmean(-1), right.sum(-1) / truth.sum(-1), recall.nanmean(-1)], dim=-1)
