"""Taps, export, pruning and options of timm ViTs as networks."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer

from dovetail.errors import DovetailError
from dovetail.networks.vit import ViTNetwork, build_vit, is_vit
from dovetail.recipe import NetworkRules, QueryRule
from tests.networks.vits import MODELS, SIDE, UNKNOWN_BLOCKS, network, tiny_vit, view

NAMED = {
    "vit_tiny_patch16_224": 16,
    "deit_tiny_distilled_patch16_224": 16,
    "eva02_tiny_patch14_224": 14,
    "vit_small_patch14_reg4_dinov2": 14,
    "vit_small_patch16_dinov3": 16,
    "vit_small_patch8_224": 8,
}


@pytest.mark.parametrize("name", MODELS)
def test_taps_are_as_declared(name: str) -> None:
    net, seen = network(name), view()
    outputs = net(seen, list(net.taps))
    assert set(outputs) == set(net.taps)
    for tap, value in outputs.items():
        kind = {2: "vector", 3: "tokens", 4: "map"}[value.dim()]
        assert net.taps[tap].kind == kind
        assert value.shape[1 if kind == "map" else -1] == net.taps[tap].channels
    vit, encoded = net.vit, net.encode(seen, with_queries=False)
    norm = vit.fc_norm if isinstance(vit.norm, torch.nn.Identity) else vit.norm
    tokens = norm(encoded.raw)
    assert torch.equal(outputs["patches"], tokens[:, vit.num_prefix_tokens :])
    assert torch.equal(outputs["c3"].flatten(2).transpose(1, 2), outputs["patches"])
    if vit.cls_token is None:
        assert torch.equal(outputs["pooled"], vit(seen.pixels))
    else:
        assert torch.equal(outputs["cls"], tokens[:, 0])


@pytest.mark.parametrize(("name", "patch"), NAMED.items())
def test_named_models_build_load_back_and_match_timm(name: str, patch: int) -> None:
    net = build_vit(name, image_size=3 * patch).eval()
    seen = view(batch=1, side=2 * patch)  # interpolated positions
    seen = replace(seen, queries=torch.randn(1, 2, 3, patch, patch), query_box=None)
    with torch.no_grad():
        raw = net.encode(seen, with_queries=True).raw
        assert torch.equal(net.vit.norm(raw), net.vit.forward_features(seen.pixels))
    fresh = eval(net.constructor, {"timm": timm})
    fresh.load_state_dict(net.model.state_dict(), strict=True)
    assert net.taps["patches"].stride == patch


def test_asking_whether_a_name_is_a_vit_draws_no_numbers_and_follows_the_registry(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = torch.get_rng_state()
    assert is_vit("test_vit")
    assert not is_vit("test_resnet")
    assert not is_vit("no_such_model")
    assert torch.equal(torch.get_rng_state(), before)
    monkeypatch.setitem(timm.models._registry._model_entrypoints, "test_vit", timm.model_entrypoint("test_resnet"))
    assert not is_vit("test_vit")


def test_the_export_is_timms_own_state() -> None:
    plain = tiny_vit()
    net = build_vit(copy.deepcopy(plain))
    assert list(net.model.state_dict()) == list(plain.state_dict())
    assert {name for name, _ in net.named_parameters()} - {f"model.{name}" for name, _ in plain.named_parameters()} == {
        "mask_token"
    }


@pytest.mark.parametrize("taps", [("cls",), ("cls", "queries"), ("patches",), ("patches_prenorm",), ("queries",)])
@pytest.mark.parametrize("masks", [True, False])
def test_pruned_networks_train_all_that_is_left(taps: tuple[str, ...], masks: bool) -> None:
    net = network()
    net = net.following(NetworkRules(masks=masks))
    net.prune(taps)
    assert net.mask_token.requires_grad is masks
    assert ("norm.weight" in net.unreached) is (taps == ("patches_prenorm",))
    seen = view()
    mask = torch.ones(2, 4, 4, dtype=torch.bool).triu() if masks else None
    for value in net(replace(seen, mask=mask), taps).values():
        (value * torch.randn_like(value)).sum().backward(retain_graph=True)
    for name, parameter in net.named_parameters():
        assert (parameter.grad is not None) is parameter.requires_grad, name


def test_queries_add_no_parameter() -> None:
    counts = []
    for taps in (("cls",), ("cls", "queries")):
        net = network()
        net.prune(taps)
        counts.append(sum(parameter.numel() for parameter in net.parameters() if parameter.requires_grad))
    assert counts[0] == counts[1]


@pytest.mark.parametrize("name", ["plain", "eva_rope"])
def test_checkpointed_blocks_give_the_same_gradients(name: str) -> None:
    gradients = []
    for checkpointed in (False, True):
        net = network(name, drop_path_rate=0.3).train()
        net.vit.set_grad_checkpointing(checkpointed)
        torch.manual_seed(1)
        outputs = net(view(), ["patches", "queries"])
        sum((value * value.detach().roll(1, 0)).sum() for value in outputs.values()).backward()  # type: ignore[union-attr]
        gradients.append([parameter.grad for name, parameter in net.model.named_parameters()])
    for without, with_checkpoints in zip(*gradients, strict=True):
        torch.testing.assert_close(with_checkpoints, without)


def test_building_passes_the_options_on() -> None:
    net = build_vit("vit_tiny_patch16_224", in_channels=1, image_size=32, drop_path=0.2, checkpoint_blocks=True)
    assert net.in_channels == 1
    assert net.vit.blocks[-1].drop_path1.drop_prob == pytest.approx(0.2)
    assert net.vit.grad_checkpointing


def test_the_teacher_drops_no_path() -> None:
    student = network(drop_path_rate=0.9).train()
    teacher = copy.deepcopy(student)
    teacher.become_teacher()
    seen = view()
    assert torch.equal(teacher(seen, ["cls"])["cls"], student.eval()(seen, ["cls"])["cls"])


def test_bidirectional_attention_is_reached_through_the_rule() -> None:
    net, seen = network(), view()
    plain = net(seen, ["cls", "queries"])
    net = net.following(NetworkRules(query_rule=QueryRule(attention="query_to_query")))
    mixed = net(seen, ["cls", "queries"])
    assert torch.equal(mixed["cls"], plain["cls"])
    assert not torch.allclose(mixed["queries"], plain["queries"], atol=1e-4)
    net = net.following(NetworkRules(query_rule=QueryRule(attention="bidirectional")))
    assert not torch.allclose(net(seen, ["cls", "queries"])["cls"], plain["cls"], atol=1e-4)


def test_vits_are_recognised() -> None:
    assert is_vit("vit_tiny_patch16_224")
    assert is_vit("eva02_tiny_patch14_224")
    assert not is_vit("resnet18")
    assert not is_vit("no_such_model")
    assert is_vit(tiny_vit())


def test_a_model_of_unknown_blocks_still_gives_its_own_tokens() -> None:
    net = build_vit(UNKNOWN_BLOCKS()).eval()
    assert "queries" not in net.taps
    seen = view()
    assert torch.equal(net(seen, ["cls"])["cls"], net.vit(seen.pixels))


def test_mistakes_are_told() -> None:
    with pytest.raises(
        DovetailError, match="no model 'timm/vit_tiny_patch61_224'; did you mean 'timm/vit_tiny_patch16_224'"
    ):
        build_vit("vit_tiny_patch61_224")
    with pytest.raises(DovetailError, match="resnet18 is a ResNet, which supports neither masks nor query tokens"):
        build_vit("resnet18")
    with pytest.raises(DovetailError, match="Linear is not one of timm's VisionTransformer or Eva models"):
        build_vit(torch.nn.Linear(2, 2))
    with pytest.raises(DovetailError, match="patch_drop_rate"):
        build_vit(tiny_vit(patch_drop_rate=0.5))
    with pytest.raises(DovetailError, match="8 x 4 pixels"):
        build_vit(VisionTransformer(img_size=SIDE, patch_size=(8, 4), embed_dim=48, depth=1, num_heads=3))
    with pytest.raises(DovetailError, match="no tap 'c4'; did you mean 'c3'"):
        network()(view(), ["c4"])


def test_the_probe_has_what_the_recipe_has() -> None:
    net = network()
    assert isinstance(net, ViTNetwork)
    assert net.probe_view().mask is None
    net = net.following(NetworkRules(masks=True))
    mask = net.probe_view().mask
    assert mask is not None
    assert 0 < int(mask.sum()) < mask.numel()
