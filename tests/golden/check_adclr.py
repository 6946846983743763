"""ADCLR: two streams through timm's own blocks, ablations of attention, losses and centres.

No official code exists; the numbers come from the slow formula with a dense mask.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from dovetail.heads.prototypes import PrototypeHeadSpec
from dovetail.networks.vit_attention import QueryAttention, Rotations, Streams, two_streams
from dovetail.objectives.distill import DistillSpec
from tests.golden.check_dino import at_epoch, empty_view, views_of
from tests.golden.vectors import Comparison, Golden, gradients

TIMM_NAMES = {
    "qkv.": "attn.qkv.",
    "proj.": "attn.proj.",
    "query_norm.": "attn.q_norm.",
    "key_norm.": "attn.k_norm.",
    "fc1.": "mlp.fc1.",
    "fc2.": "mlp.fc2.",
    "layer_scale1": "ls1.gamma",
    "layer_scale2": "ls2.gamma",
}


def timm_name(name: str) -> str:
    """Return timm's name of a stored parameter."""
    for stored, ours in TIMM_NAMES.items():
        name = name.replace(f".{stored}", f".{ours}")
    return name.replace("final_norm.", "norm.")


def stack_of_blocks(golden: Golden, weights: dict[str, Tensor]) -> nn.ModuleDict:
    """Return timm's blocks and a final norm with the stored weights."""
    config = golden.config
    layer_norm: Any = lambda dim, **options: nn.LayerNorm(dim, eps=config["layer_norm_eps"], **options)  # noqa: E731
    blocks = nn.ModuleList(
        Block(
            config["D"],
            config["heads"],
            mlp_ratio=config["mlp_ratio"],
            qkv_bias=True,
            qk_norm=any("query_norm" in name for name in weights),
            init_values=1.0 if any("layer_scale" in name for name in weights) else None,
            norm_layer=layer_norm,
        )
        for _ in range(config["depth"])
    )
    modules = nn.ModuleDict({"blocks": blocks, "norm": layer_norm(config["D"])}).double()
    modules.load_state_dict({timm_name(name): tensor for name, tensor in weights.items()})
    return modules


def outputs_of(modules: nn.ModuleDict, streams: Streams, attention: QueryAttention = "unidirectional") -> Streams:
    """Return both streams after all blocks and the final norm."""
    for block in modules["blocks"]:  # type: ignore[attr-defined]
        streams = two_streams(block, streams, Rotations(), attention=attention)
    return Streams(modules["norm"](streams.raw), modules["norm"](streams.queries))


def check(golden: Golden) -> Iterator[Comparison]:
    cases = sorted({name.split(".")[1] for name in golden.tensors if name.startswith("attention.")})
    for name in cases:
        for one in check_attention(golden, Golden(name, {}, golden.under(f"attention.{name}"))):
            yield replace(one, what=f"{name}.{one.what}")
    for name, config in golden.config["loss"]["cases"].items():
        for one in check_loss(golden, Golden(name, {"config": config}, golden.under(f"loss.{name}"))):
            yield replace(one, what=f"{name}.{one.what}")


def check_attention(golden: Golden, case: Golden) -> Iterator[Comparison]:
    modules = stack_of_blocks(golden, case.under("weights"))
    streams = Streams(case["raw_tokens"].requires_grad_(), case["query_tokens"].requires_grad_())
    made = outputs_of(modules, streams)
    ((made.raw * case["cotangent_raw"]).sum() + (made.queries * case["cotangent_query"]).sum()).backward()
    expected = case.under("expected")
    yield Comparison("raw_output", made.raw, expected["raw_output"])
    yield Comparison("query_output", made.queries, expected["query_output"])
    assert streams.raw.grad is not None
    assert streams.queries.grad is not None
    yield Comparison("grad.raw_tokens", streams.raw.grad, expected["grad.raw_tokens"])
    yield Comparison("grad.query_tokens", streams.queries.grad, expected["grad.query_tokens"])
    yield from gradients(modules, "weights", {timm_name(k): v for k, v in case.under("expected.grad.weights").items()})
    with torch.no_grad():
        seeing_queries = outputs_of(modules, streams, "query_to_query")
        everything = outputs_of(modules, streams, "bidirectional")
        alone = streams.raw
        for block in modules["blocks"]:  # type: ignore[attr-defined]
            alone = block(alone)
    yield Comparison("raw_alone", modules["norm"](alone), expected["raw_output"])
    ablation = expected["ablation_query_query_allowed.query_output"]
    yield Comparison("query_to_query.query_output", seeing_queries.queries, ablation)
    yield Comparison("query_to_query.raw_output", seeing_queries.raw, expected["raw_output"])
    for stream in ("raw", "query"):
        ours = everything.raw if stream == "raw" else everything.queries
        yield Comparison(f"bidirectional.{stream}_output", ours, expected[f"ablation_bidirectional.{stream}_output"])


def check_loss(golden: Golden, case: Golden) -> Iterator[Comparison]:
    config, batch = case.config, golden.config["loss"]["B"]
    head = PrototypeHeadSpec(prototypes=golden.config["loss"]["K"])
    cls = DistillSpec(config["student_temp"], config["teacher_temp"], config["center_momentum"]).build(head)
    query_spec = DistillSpec(config["student_temp"], config["teacher_temp_query"], config["center_momentum_query"])
    queries, same = query_spec.build(head), replace(query_spec, pairing="same").build(head)
    cls.double().centre.copy_(case["center_cls"])
    for objective in (queries, same):
        objective.double().centre.copy_(case["center_query"])
    globals_only = [empty_view(batch, "global")] * 2
    student_cls, student_query = (case[f"student_{part}_logits"].requires_grad_() for part in ("cls", "query"))
    teacher_cls, teacher_query = list(case["teacher_cls_logits"]), list(case["teacher_query_logits"])
    moment = at_epoch(0)
    loss_cls = cls(list(student_cls), teacher_cls, views_of(batch, config["local_crops"]), moment).total
    loss_query = queries(list(student_query), teacher_query, globals_only, moment).total
    loss = loss_cls + config["query_weight"] * loss_query
    loss.backward()
    same_view = same(list(student_query), teacher_query, globals_only, moment).total
    cls.update(list(student_cls), teacher_cls)
    queries.update(list(student_query), teacher_query)
    expected = case.under("expected")
    yield Comparison("loss", loss, expected["loss"])
    yield Comparison("loss_cls", loss_cls, expected["loss_cls"])
    yield Comparison("loss_query", loss_query, expected["loss_query"])
    yield Comparison("same_view.loss_query", same_view, expected["ablation_same_view.loss_query"])
    yield Comparison("new_center_cls", cls.centre, expected["new_center_cls"])
    yield Comparison("new_center_query", queries.centre, expected["new_center_query"])
    for part, logits in (("cls", student_cls), ("query", student_query)):
        assert logits.grad is not None
        yield Comparison(f"grad.student_{part}_logits", logits.grad, expected[f"grad.student_{part}_logits"])
