"""Views of one image as a transform, for datasets and loops of your own: the same draws and crops as in a run."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dovetail.errors import DataError
from dovetail.views.batch import Sample, render
from dovetail.views.plan import ViewPlan
from dovetail.views.random import Purpose, stream
from dovetail.views.sampling import draw_views


@dataclass(frozen=True)
class ViewTransform:
    """Draws and crops the views of an image on the CPU; `to_views` augments and normalises a batch of them.

    Attributes:
        plan: Views, such as `ViewPlan((ViewSpec(224), ViewSpec(224)))` or `recipe.views`.
        seed: Seed of the views.

    Example:
        >>> from dovetail.views import ViewSpec, collate, to_views
        >>> plan = ViewPlan((ViewSpec(32), ViewSpec(32)))
        >>> transform = ViewTransform(plan)
        >>> images = [torch.zeros(3, 60, 80, dtype=torch.uint8), torch.zeros(3, 50, 40, dtype=torch.uint8)]
        >>> batch = collate([transform(image) for image in images])  # or DataLoader(..., collate_fn=collate)
        >>> [tuple(view.pixels.shape) for view in to_views(batch, plan, "cpu")]
        [(2, 3, 32, 32), (2, 3, 32, 32)]
    """

    plan: ViewPlan
    seed: int = 0

    def __call__(
        self, image: Tensor | Image.Image, *, epoch: int = 0, index: int | None = None, labels: np.ndarray | None = None
    ) -> Sample:
        """Return the views of an image.

        Args:
            image: uint8 [C, H, W], or a Pillow image.
            epoch: Epoch. The views are a pure function of seed, epoch and index.
            index: Index of the image in its dataset. Default: a random one, of torch's generator.
            labels: [h, w] integers, the segment of each pixel, for a plan with segments.

        Raises:
            DataError: The image has another type or shape, or the plan needs segments or side data.
        """
        pixels = torch.from_numpy(np.atleast_3d(np.array(image))).movedim(2, 0) if not torch.is_tensor(image) else image
        if pixels.dtype != torch.uint8 or pixels.ndim != 3 or pixels.numel() == 0:
            raise DataError(
                f"The transform expects uint8 pixels [channels, height, width], got {str(pixels.dtype)[6:]} "
                f"{list(pixels.shape)}."
            )
        if self.plan.side or (self.plan.segments is not None and labels is None):
            raise DataError("The views need segments or side data of the image; pass labels=..., or omit `side`.")
        if index is None:
            index = int(torch.randint(1 << 62, ()))
        height, width = pixels.shape[1:]
        draws = stream(Purpose.VIEWS, seed=self.seed, epoch=epoch, index=index)
        draw = draw_views(draws, self.plan, height=height, width=width, epoch=epoch)
        size = (width, height)
        return render(pixels, draw, self.plan, source_px=size, epoch=epoch, index=index, used=index, labels=labels)
