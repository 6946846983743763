"""Fine-tuning with --model: from a file of another program, and with another model than the run's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchvision

from dovetail.downstream.start import chosen_starts, source_of
from dovetail.errors import WeightsError
from tests.downstream.pictures import exported_run


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


@pytest.mark.parametrize("starts", [["auto"], ["encoder"]])
def test_another_model_than_the_runs_is_refused_with_the_options_of_the_command(
    starts: list[str], tmp_path: Path
) -> None:
    run = exported_run(tmp_path, "timm/test_resnet+fpn(channels=16)")
    source = source_of(run, "smp/unet/resnet18")
    target = source.network("random").model
    before = {name: value.clone() for name, value in target.state_dict().items()}
    for refused in (
        lambda: chosen_starts(starts, source, target=target),
        lambda: source.load(target, "encoder"),
    ):
        with pytest.raises(WeightsError, match="are those of another model") as error:
            refused()
        sentence = str(error.value)
        assert sentence.endswith("omit --model to use the run's model, or specify the model that was pre-trained.")
        assert "strict" not in sentence
        assert len(sentence.replace(str(run), "")) < 400
    assert all(torch.equal(value, before[name]) for name, value in target.state_dict().items())


def test_a_file_of_another_model_is_not_told_to_leave_the_model_out(tmp_path: Path) -> None:
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "resnet18.pth")
    source = source_of(tmp_path / "resnet18.pth", "smp/unet/resnet50")
    with pytest.raises(WeightsError, match="specify the model that was pre-trained with --model"):
        chosen_starts(["encoder"], source, target=source.network("random").model)
