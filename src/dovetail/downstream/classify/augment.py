"""Augmentations for training a classifier, beyond crop and flip: timm's functions, made reproducible.

* RandAugment (Cubuk et al., 2020, https://arxiv.org/abs/1909.13719): two operations per image, each with probability
  1/2, at a magnitude from 0 to 10 with a standard deviation of 0.5.
* Random erasing (Zhong et al., 2017, https://arxiv.org/abs/1708.04896): a rectangle of normal noise.
* mixup (Zhang et al., 2018, https://arxiv.org/abs/1710.09412): x = m x_i + (1 - m) x_j, y likewise, m ~ Beta(a, a).
* CutMix (Yun et al., 2019, https://arxiv.org/abs/1905.04899): a rectangle of x_j in x_i, y by area. With both, each
  batch has either, with probability 1/2. Images are paired with those of the batch in reverse; one m for the batch.

timm draws from global random states. They are seeded for each use and restored afterwards, so the result is a pure
function of a key.

Shapes: B images, C channels, S pixels a side, K classes.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from timm.data.auto_augment import rand_augment_transform
from timm.data.mixup import Mixup, mixup_target
from timm.data.random_erasing import RandomErasing
from torch import Tensor

HARDEST = 9.99  # at 10, posterise would keep no bit, which Pillow rejects
_GLOBAL_STATES = threading.Lock()  # all threads that read images share these states


@contextmanager
def borrowed_random(*key: int, with_torch: bool = False) -> Iterator[None]:
    """Seed the global states of `random` and NumPy with `key` in the block, and restore them afterwards.

    Args:
        key: Seeds.
        with_torch: Seed torch's global state, too. Only safe if no other thread uses it.
    """
    seed = int(np.random.SeedSequence(key).generate_state(1)[0])
    with _GLOBAL_STATES:
        plain, numbers, tensors = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - timm draws from it
        if with_torch:
            torch.default_generator.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(plain)
            np.random.set_state(numbers)  # noqa: NPY002
            if with_torch:
                torch.set_rng_state(tensors)


@lru_cache(maxsize=8)
def transform_of(magnitude: int, size: int, mean: tuple[float, ...]) -> Callable[[Image.Image], Image.Image]:
    """Return timm's RandAugment for images of this size. Empty areas are filled with the mean."""
    fill = tuple(round(255 * value) for value in mean)
    hparams = {"translate_const": int(size * 0.45), "img_mean": fill, "magnitude_max": HARDEST}
    transform: Callable[[Image.Image], Image.Image] = rand_augment_transform(f"rand-m{magnitude}-mstd0.5-inc1", hparams)
    return transform


def randaugmented(image: Tensor, *, magnitude: int, mean: tuple[float, ...], key: tuple[int, ...]) -> Tensor:
    """Apply RandAugment to an image [3, S, S] in 0 to 255, with 8 bits."""
    pixels = image.round().byte() if image.is_floating_point() else image
    picture = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    with borrowed_random(*key):
        changed = transform_of(magnitude, image.shape[1], mean)(picture)
    return torch.from_numpy(np.array(changed)).permute(2, 0, 1)


def erased(pixels: Tensor, *, probability: float, key: tuple[int, ...]) -> Tensor:
    """Apply random erasing to normalised pixels [B, C, S, S] in place."""
    with borrowed_random(*key, with_torch=True):
        changed: Tensor = RandomErasing(probability, mode="pixel", device="cpu")(pixels)  # type: ignore[no-untyped-call]
    return changed


def mixed(
    pixels: Tensor,
    labels: Tensor,
    *,
    classes: int,
    mixup: float,
    cutmix: float,
    smoothing: float,
    key: tuple[int, ...],
) -> tuple[Tensor, Tensor]:
    """Apply mixup or CutMix to pixels [B, C, S, S] in place, and return them with smoothed and mixed targets [B, K].

    Args:
        pixels: Normalised pixels. Mixing needs an even number of images.
        labels: Classes [B].
        classes: Number of classes K.
        mixup: Parameter of mixup's Beta distribution; 0 disables mixup.
        cutmix: Parameter of CutMix's Beta distribution; 0 disables CutMix.
        smoothing: Label smoothing e: the target is 1 - e + e / K for the true class and e / K for the others.
        key: Seeds of the random numbers.
    """
    if mixup <= 0 and cutmix <= 0:
        plain: Tensor = mixup_target(labels, classes, 1.0, smoothing)  # type: ignore[no-untyped-call]
        return pixels, plain
    mix = Mixup(mixup, cutmix, label_smoothing=smoothing, num_classes=classes)  # type: ignore[no-untyped-call]
    with borrowed_random(*key):
        images, targets = mix(pixels, labels)
    return images, targets
