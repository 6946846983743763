"""Segmenters answer for images of every size."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dovetail.downstream.segment.loop import WithAuxiliary
from dovetail.downstream.segment.model import FCNSegmenter, FCNSpec, build_segmenter
from dovetail.downstream.start import source_of

SIZES = "embed_dim=8, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1), window_size=4"


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256"])
def test_an_fcn_on_a_swin_takes_images_of_any_size(name: str) -> None:
    source = source_of(None, f"timm.create_model('{name}', {SIZES})", image_size=64)
    torch.manual_seed(0)
    model, _ = build_segmenter(source, classes=3, fcn=FCNSpec(channels=8, dilation=1, auxiliary=True))
    assert isinstance(model, FCNSegmenter)
    pixels = torch.randn(2, 3, 75, 50)
    answer: Any = model(pixels)
    assert isinstance(answer, WithAuxiliary)
    assert {tuple(logits.shape) for logits in answer} == {(2, 3, 75, 50)}
    with torch.no_grad():
        found: Any = model.eval()(pixels)
        whole: Any = model(torch.nn.functional.pad(pixels, (0, 14, 0, 21)))
    assert whole.shape == (2, 3, 3, 2)
    enlarged = torch.nn.functional.interpolate(whole, (96, 64), mode="bilinear", align_corners=False)
    torch.testing.assert_close(found, enlarged[..., :75, :50])


def test_an_fcn_on_a_cnn_is_not_padded() -> None:
    model, _ = build_segmenter(source_of(None, "timm/test_resnet"), classes=3, fcn=FCNSpec(channels=8))
    with torch.no_grad():
        assert model.eval()(torch.randn(1, 3, 75, 50)).shape == (1, 3, 3, 2)
