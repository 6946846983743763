"""Sharded training (FSDP2): weights, gradients, optimiser state and teacher are sharded over the processes.

A weight [N, ...] is sharded along its first dimension. A block of a ViT is gathered when it is called and freed
afterwards, in the forward and backward pass, so a process holds its parts and one block. The rest of a branch
(embedding, final norm, decoder, heads) is gathered once for the whole pass of the branch. The teacher is sharded like
the student, so its update needs no communication.

Buffers (BatchNorm statistics, queues, centres) are replicated, because every step reads and updates all of them on
every process. Scalar weights are replicated too.

FSDP2: PyTorch's `torch.distributed.fsdp.fully_shard`, after Zhao et al. 2023, https://arxiv.org/abs/2304.11277.

Cost: a weight is sent three times per step (student forward, student backward, its gradient) and the teacher's once.
DDP sends a gradient twice. Every further pass through a block in a step sends the block's weights again.
"""

from __future__ import annotations

import copy
from types import MethodType
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from dovetail.networks.vit import ViTNetwork
from dovetail.networks.vit_attention import Streams, two_streams
from dovetail.train.learner import Branch, Learner


def cut_over(learner: Learner, mesh: DeviceMesh) -> Learner:
    """Return a twin of `learner` with weights sharded over `mesh`, on the devices of the mesh.

    The weights of `learner` itself are freed and empty until `put_together`. The parts come from the weights of the
    first process.
    """
    take_the_first_ones(learner, mesh)
    twin = copy.deepcopy(learner, {id(parameter): parameter for parameter in learner.parameters()})
    branches = [twin.student, *([] if twin.teacher is None else [twin.teacher])]
    for branch in branches:
        for block in branch.network.blocks():
            cut(block, mesh, give_back=True)
        take_queries_as_blocks_do(branch)
    if twin.teacher is not None:
        cut(twin.teacher, mesh, give_back=True)
    cut(twin, mesh, give_back=False)
    return twin


@torch.no_grad()
def take_the_first_ones(learner: Learner, mesh: DeviceMesh) -> None:
    """Broadcast the weights and buffers of the first process, as DDP does at the start."""
    group = mesh.get_group()
    for tensor in (*learner.parameters(), *learner.buffers()):
        sent = tensor.detach().to(mesh.device_type).contiguous()
        dist.broadcast(sent, src=dist.get_global_rank(group, 0), group=group)
        tensor.copy_(sent)


def cut(module: nn.Module, mesh: DeviceMesh, *, give_back: bool) -> None:
    """Shard the unsharded weights of `module`; with `give_back` they are freed after each pass."""
    whole = [parameter for parameter in module.parameters() if not isinstance(parameter, DTensor)]
    scalars = {parameter for parameter in whole if parameter.dim() == 0}
    for parameter in whole:
        parameter.data = parameter.data.contiguous()  # convolutions may be channels-last
    fully_shard(module, mesh=mesh, reshard_after_forward=give_back, ignored_params=scalars)
    for parameter in whole:
        if parameter not in scalars:
            parameter.data = parameter.data.new_empty(0)


def take_queries_as_blocks_do(branch: Branch) -> None:
    """Make blocks gather their weights for query tokens too."""
    network = branch.network
    if not isinstance(network, ViTNetwork):
        return
    for block in network.blocks():
        block.take_queries = MethodType(two_streams, block)  # type: ignore[assignment]
        register_fsdp_forward_method(block, "take_queries")
    network.query_pass = query_pass


def query_pass(block: Any, streams: Streams, *arguments: Any, **options: Any) -> Streams:
    """Run `two_streams` as a method of the block, so that FSDP handles it."""
    answer: Streams = block.take_queries(streams, *arguments, **options)
    return answer


@torch.no_grad()
def put_together(learner: Learner, twin: Learner) -> None:
    """Gather the weights of `twin` into `learner` on the CPU; all processes must call it."""
    for name, parameter in learner.named_parameters():
        other = twin.get_parameter(name)
        value = other.full_tensor() if isinstance(other, DTensor) else other
        parameter.data = value.detach().cpu()
    for name, buffer in learner.named_buffers():
        buffer.copy_(twin.get_buffer(name))
