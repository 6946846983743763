"""Maps of networks: which taps a name means, sizes, and that nothing of the network changes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dovetail.downstream.dense.maps import ArrayMaps, NetworkMaps, joined, pooled, resized_mask, resolve_taps
from dovetail.downstream.labels.readers import open_segmentation
from dovetail.downstream.machine import Machine, normalised
from dovetail.downstream.probe.features import whole_view
from dovetail.errors import DovetailError
from dovetail.networks.build import build_network
from tests.downstream.dense.scenes import mask_folder

CPU = Machine("cpu", "float32", 0)
HALF = ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def test_names_of_taps() -> None:
    taps = build_network("smp/fpn/resnet18", image_size=64).taps
    assert resolve_taps(taps, ["auto"]) == {"encoder": ("c5",), "decoder": ("p2",)}
    assert resolve_taps(taps, ["c4+c5", "encoder+decoder"]) == {"c4+c5": ("c4", "c5"), "encoder+decoder": ("c5", "p2")}
    alone = build_network("timm/test_vit", image_size=160).taps
    assert resolve_taps(alone, ["auto"]) == {"encoder": ("c4",)}
    for names, sentence in (
        (["decoder"], "no decoder"),
        (["c9"], "There is no tap 'c9'"),
        (["cls"], "is not a feature map"),
        ([], "--at is empty"),
    ):
        with pytest.raises(DovetailError, match=sentence):
            resolve_taps(alone, names)


def test_maps_are_those_of_the_resized_images_and_the_network_is_left_alone(tmp_path: Path) -> None:
    data = open_segmentation(mask_folder(tmp_path, train=3)).train
    network = build_network("timm/test_resnet+fpn(channels=16)", image_size=64)
    network.train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    maps = NetworkMaps(network, data, ("c3", "decoder", "c3+c5"), 96, *HALF, CPU, batch_size=2)
    batches = list(maps.batches(finest_stride=4))
    assert [len(batch.masks) for batch in batches] == [2, 1]
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert batches[0].maps["c3+c5"].shape[2:] == batches[0].maps["c3"].shape[2:] == (12, 12)
    network.eval()
    item = maps._item(2)
    assert item.mask.shape == (96, 96)
    assert set(item.mask.unique().tolist()) <= {0, 1, 2, 3, 255}
    with torch.no_grad():
        expected = network(whole_view(normalised(item.image[None], *HALF)), ("c3",))["c3"]
    assert torch.allclose(batches[1].maps["c3"], expected, atol=1e-5)
    assert maps.classes_in(0) == data.classes_in(0)


def test_sizes_that_the_model_does_not_take(tmp_path: Path) -> None:
    data = open_segmentation(mask_folder(tmp_path, train=3)).train
    with pytest.raises(DovetailError, match="use --image-size 96"):
        NetworkMaps(build_network("smp/fpn/resnet18", image_size=64), data, ("c5",), 100, *HALF, CPU)


def test_joined_maps_have_unit_parts_at_the_finest_size() -> None:
    fine, coarse = torch.randn(2, 3, 8, 8), 100 * torch.randn(2, 5, 4, 4)
    both = joined([coarse, fine])
    assert both.shape == (2, 8, 8, 8)
    assert both[:, 5:].norm(dim=1) == pytest.approx(torch.ones(2, 8, 8))
    assert float(both[:, :5].norm(dim=1).max()) <= 1 + 1e-5
    assert torch.equal(joined([fine]), fine)


def test_fine_maps_are_pooled_to_the_finest_stride() -> None:
    maps, masks = torch.randn(1, 2, 32, 32), torch.zeros(1, 32, 32)
    assert torch.allclose(pooled(maps, masks, 4), torch.nn.functional.avg_pool2d(maps, 4))
    assert torch.equal(pooled(maps, masks, 1), maps)
    assert pooled(maps[..., :4, :4], masks, 4).shape[2:] == (4, 4)


def test_masks_take_the_nearest_label() -> None:
    mask = torch.tensor([[0, 65535], [2, 255]])
    assert resized_mask(mask, 4, 4).tolist() == [[0, 0, 65535, 65535]] * 2 + [[2, 2, 255, 255]] * 2


def test_arrays_of_other_shapes_are_refused() -> None:
    with pytest.raises(DovetailError, match=r"Expected maps .N, C, h, w"):
        ArrayMaps({"x": torch.zeros(2, 3, 4)}, torch.zeros(2, 8, 8))
    with pytest.raises(DovetailError, match="maps is empty"):
        ArrayMaps({}, torch.zeros(2, 8, 8))
