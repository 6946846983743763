"""DINO's head: unit lengths, prototypes of patches, and what is learned."""

from __future__ import annotations

import pytest
import torch

from dovetail.errors import DovetailError
from dovetail.heads.prototypes import PATCH_OUTPUT, PrototypeHeadSpec

SPEC = PrototypeHeadSpec(hidden=16, bottleneck=6, prototypes=10)


def test_logits_are_cosines_where_magnitudes_are_fixed() -> None:
    head = SPEC.build(8)
    features = torch.randn(5, 8)
    logits = head(features)
    assert logits.shape == (5, 10)
    expected = torch.nn.functional.cosine_similarity(
        head.mlp(features)[:, None], head.last_layer.direction[None], dim=2
    )
    torch.testing.assert_close(logits, expected)
    with torch.no_grad():
        head.last_layer.direction.mul_(3)
    torch.testing.assert_close(head(features), logits)
    assert head.last_layer.magnitude is None


def test_learned_magnitudes_begin_at_one_and_scale() -> None:
    torch.manual_seed(0)
    fixed = SPEC.build(8)
    torch.manual_seed(0)
    learned = PrototypeHeadSpec(hidden=16, bottleneck=6, prototypes=10, learned_magnitude=True).build(8)
    features = torch.randn(5, 8)
    assert torch.equal(learned(features), fixed(features))
    assert learned.last_layer.magnitude is not None
    with torch.no_grad():
        learned.last_layer.magnitude[3] = 2
    torch.testing.assert_close(learned(features)[:, 3], 2 * fixed(features)[:, 3])


def test_tokens_go_through_as_vectors_do() -> None:
    head = SPEC.build(8)
    tokens = torch.randn(2, 7, 8)
    torch.testing.assert_close(head(tokens), head(tokens.flatten(0, 1)).reshape(2, 7, 10))


def test_no_view_is_no_logits() -> None:
    assert SPEC.build(8)(torch.randn(0, 3, 8)).shape == (0, 3, 10)


def test_patches_may_have_prototypes_of_their_own() -> None:
    spec = PrototypeHeadSpec(hidden=16, bottleneck=6, prototypes=10, patch_prototypes=4)
    head = spec.build(8)
    tokens = torch.randn(2, 7, 8)
    assert head(tokens).shape == (2, 7, 10)
    assert head(tokens, PATCH_OUTPUT).shape == (2, 7, 4)
    assert spec.width() == 10
    assert spec.width(PATCH_OUTPUT) == 4
    with pytest.raises(DovetailError, match="no output 'patch'"):
        SPEC.width(PATCH_OUTPUT)


def test_batch_norm_counts_every_token() -> None:
    head = PrototypeHeadSpec(hidden=16, bottleneck=6, prototypes=10, norm=True).build(8).double()
    tokens = torch.randn(3, 5, 8, dtype=torch.float64)
    torch.testing.assert_close(head(tokens).flatten(0, 1), head(tokens.flatten(0, 1)))


def test_logits_stay_in_single_precision_under_autocast() -> None:
    head = SPEC.build(8)
    features = torch.randn(64, 8)
    with torch.autocast("cpu", torch.bfloat16):
        logits = head(features)
        embedding = torch.nn.functional.normalize(head.mlp(features).float(), dim=1)
    assert logits.dtype == torch.float32
    exact = embedding @ torch.nn.functional.normalize(head.last_layer.direction, dim=1).T
    torch.testing.assert_close(logits, exact)  # no rounding but that of the perceptron


def test_a_head_without_layers_is_refused() -> None:
    with pytest.raises(DovetailError, match="layers of the prototype head is 0"):
        PrototypeHeadSpec(layers=0)


@pytest.mark.parametrize("learned", [True, False])
def test_few_rows_and_many_have_the_same_logits_and_gradients(learned: bool) -> None:
    spec = PrototypeHeadSpec(hidden=16, bottleneck=6, prototypes=10, learned_magnitude=learned)
    head, features = spec.build(8).double(), torch.randn(12, 8, dtype=torch.float64)
    cotangent = torch.randn(12, 10, dtype=torch.float64)
    joint = head(features)
    (joint * cotangent).sum().backward()
    expected = [parameter.grad.clone() for parameter in head.parameters() if parameter.grad is not None]
    head.zero_grad()
    apart = torch.cat([head(rows) for rows in features.split(4)])
    (apart * cotangent).sum().backward()
    torch.testing.assert_close(apart, joint)
    torch.testing.assert_close([parameter.grad for parameter in head.parameters()], expected)
