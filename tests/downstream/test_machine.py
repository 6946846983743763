"""Fine-tuning computes as pre-training does: number format, memory format, reading ahead."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from torch import nn

from dovetail.downstream.machine import Machine, ahead, checked_loss, machine, normalised
from dovetail.downstream.segment.loop import machine_of
from dovetail.downstream.segment.options import SegmentOptions
from dovetail.errors import DovetailError
from dovetail.networks.build import build_network
from dovetail.train.defaults import best_precision


@pytest.mark.parametrize(("name", "expected"), [("timm/test_resnet", True), ("timm/test_vit", False)])
def test_convolutional_models_have_channels_last(name: str, expected: bool) -> None:
    model = Machine("cpu", "float32", 0).place(build_network(name, image_size=32).model)
    weights = [value for value in model.parameters() if value.dim() == 4 and value.shape[1] > 1 < value.shape[2]]
    assert all(value.is_contiguous(memory_format=torch.channels_last) == expected for value in weights)


def test_number_formats() -> None:
    layer, pixels = nn.Conv2d(3, 4, 1), torch.randn(1, 3, 4, 4)
    with Machine("cpu", "bf16", 0).autocast():
        assert layer(pixels).dtype == torch.bfloat16
    with Machine("cpu", "float32", 0).autocast():
        assert layer(pixels).dtype == torch.float32
    native = "bf16" if best_precision("cpu") == "bf16-mixed" else "float32"
    assert machine("cpu", "auto", 0) == Machine("cpu", native, 0)
    assert machine("cpu", "bf16", 2).mark() == "cpu bf16"
    assert machine_of(SegmentOptions(classes=2), "cpu", 3) == Machine("cpu", native, 3)
    assert machine_of(SegmentOptions(classes=2, precision="float32"), "cpu").precision == "float32"


def test_losses_that_are_no_numbers_are_refused() -> None:
    assert checked_loss(torch.tensor(0.5), 0) == 0.5
    for value in (float("nan"), float("inf")):
        with pytest.raises(DovetailError, match=r"The loss is (nan|inf) at step 3; use a lower --lr"):
            checked_loss(torch.tensor(value), 2)


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_results_come_in_order_and_few_ahead(threads: int) -> None:
    began: list[int] = []
    lock = threading.Lock()

    def square(number: int) -> int:
        with lock:
            began.append(number)
        return number**2

    results = ahead(square, range(40), threads=threads)
    assert next(results) == 0
    assert len(began) <= 2 * threads + 1
    assert list(results) == [number**2 for number in range(1, 40)]


def test_errors_of_threads_arrive(tmp_path: Path) -> None:
    def broken(number: int) -> int:
        raise DovetailError(f"file {number} is broken")

    with pytest.raises(DovetailError, match="file 0 is broken"):
        list(ahead(broken, range(9), threads=2))


def test_pixels_are_normalised() -> None:
    images = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 2, 2)
    found = normalised(images, (0.5, 0.5, 0.5), (0.25, 0.5, 1.0))
    assert found[0, :, 0, 0].tolist() == [-2.0, -1.0, -0.5]
    assert found[1, :, 0, 0].tolist() == [2.0, 1.0, 0.5]


def test_numbers_of_workers_below_zero_are_refused() -> None:
    with pytest.raises(DovetailError, match="workers is -1"):
        machine("cpu", "auto", -1)
