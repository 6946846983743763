from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from dovetail.heads.dense import DenseHead, DenseHeadSpec, PixelHeadSpec


@pytest.fixture
def dense_head() -> DenseHead:
    torch.manual_seed(0)
    return DenseHeadSpec(hidden=6, dim=5).build(channels=4)


def test_dense_head_gives_unit_vectors_on_a_map_that_is_not_square(dense_head: DenseHead) -> None:
    output = dense_head(torch.randn(3, 4, 2, 7))
    assert output.cells.shape == (3, 5, 2, 7)
    for vectors in (output.embedding, output.pooled, output.cells):
        assert_close(vectors.norm(dim=1), torch.ones_like(vectors[:, 0]))


def test_pooled_is_the_average_before_cells_are_normalised(dense_head: DenseHead) -> None:
    features = torch.randn(3, 4, 3, 3)
    raw = dense_head.dense_head(features).mean(dim=(2, 3))
    output = dense_head(features)
    assert_close(output.pooled, raw / raw.norm(dim=1, keepdim=True))
    assert not torch.allclose(output.pooled, torch.nn.functional.normalize(output.cells.mean(dim=(2, 3)), dim=1))


def test_dense_features_are_the_tap_without_gradient(dense_head: DenseHead) -> None:
    features = torch.randn(2, 4, 3, 3, requires_grad=True)
    output = dense_head(features)
    assert torch.equal(output.features, features)
    assert not output.features.requires_grad
    assert output.cells.requires_grad


def test_dense_head_of_an_image_does_not_depend_on_the_batch(dense_head: DenseHead) -> None:
    features = torch.randn(3, 4, 3, 3)
    assert_close(dense_head(features[:1]).cells, dense_head(features).cells[:1])


def test_dense_head_starts_with_zero_biases(dense_head: DenseHead) -> None:
    biases = [value for name, value in dense_head.named_parameters() if name.endswith("bias")]
    assert len(biases) == 4
    assert all(bool((bias == 0).all()) for bias in biases)


def test_outputs_are_float32_under_autocast(dense_head: DenseHead) -> None:
    pixel_head = PixelHeadSpec(hidden=6, dim=5, instance=True).build(channels=4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        dense, pixel = dense_head(torch.randn(2, 4, 3, 3)), pixel_head(torch.randn(2, 4, 3, 3))
    compared = (dense.embedding, dense.cells, dense.pooled, *pixel)
    assert {value.dtype for value in compared} == {torch.float32}


def test_instance_projector_exists_only_when_asked_for() -> None:
    features = torch.randn(2, 4, 3, 5)
    without = PixelHeadSpec(hidden=6, dim=5).build(channels=4)
    assert not any("instance" in name for name in without.state_dict())
    assert without(features).instance.shape == (2, 0, 3, 5)
    both = PixelHeadSpec(hidden=6, dim=5, instance=True).build(channels=4)(features)
    assert both.embedding.shape == both.instance.shape == (2, 5, 3, 5)
    assert not torch.allclose(both.embedding, both.instance)
