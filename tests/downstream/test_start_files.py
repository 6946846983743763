"""Fine-tuning from a file of another program, beside the name of its model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchvision

from dovetail.downstream.start import chosen_starts, source_of
from dovetail.errors import WeightsError


def test_a_file_of_another_program_in_the_place_of_a_run(tmp_path: Path) -> None:
    resnet = torchvision.models.resnet18()
    names = {f"module.encoder_q.{name}": value for name, value in resnet.state_dict().items()}
    torch.save({"state_dict": names}, tmp_path / "moco.pth.tar")
    source = source_of(tmp_path / "moco.pth.tar", "smp/unet/resnet18", image_size=64)
    network = source.network("encoder")
    assert chosen_starts(["auto"], source, target=network.model) == ("encoder",)
    found = network.model.get_parameter("encoder.conv1.weight").detach()
    assert torch.equal(found, resnet.conv1.weight.detach())
    with pytest.raises(WeightsError, match="specify the model with --model"):
        source_of(tmp_path / "moco.pth.tar", None)
