"""Freeze the encoder for the first epochs while the decoder and the heads train.

DeCon's published ConvNeXt run does this (50 epochs with a frozen encoder, then the whole network). It is useful for a
trained encoder with a random decoder, because the decoder's first gradients do not reach the encoder.

A frozen encoder gets no gradient, no weight decay and no momentum. Its BatchNorm layers normalise with their running
statistics and do not update them, in the student and in the teacher. They can do so for the whole run, while weights
are trained: the running statistics of a trained encoder are those of whole images, and a run would replace them by
those of its crops, which are blurred and recoloured. The teacher is updated as usual. The average of constant weights
is their value, so the teacher's encoder equals the student's, bit for bit, while it is frozen.

Whether the encoder is frozen only depends on the step, so a resumed run switches at the same step.

In distributed training each process expects a gradient for every weight that was trainable at the start. Frozen weights
therefore get zero gradients, which are dropped before the optimiser step. A single process computes no gradients for
them. Sharded weights (FSDP) get their usual gradients, which are dropped too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dovetail.networks.network import Network
from dovetail.schedules import Moment


class EncoderFreeze:
    """Freezes a learner's encoder for the first epochs.

    Attributes:
        epochs: Number of epochs; infinite for the whole run.
        distributed: Whether processes exchange gradients of unsharded weights.
        sharded: Whether weights are sharded.
        statistics: Whether the BatchNorm statistics of the encoder are frozen for the whole run.
    """

    def __init__(self, epochs: float, *, distributed: bool, sharded: bool, statistics: bool = False) -> None:
        self.epochs = epochs
        self.distributed = distributed and not sharded
        self.sharded = sharded
        self.statistics = statistics
        self._was_frozen = False

    def holds(self, moment: Moment) -> bool:
        """Whether the encoder is frozen in the step that starts at `moment`."""
        return self.epochs == math.inf or moment.step < round(self.epochs * moment.steps_per_epoch)

    @contextmanager
    def applied(self, student: Network, teacher: Network | None, moment: Moment) -> Iterator[list[Tensor]]:
        """Set the mode of the encoders at `moment` for a forward pass.

        Args:
            student: Network of the student.
            teacher: Network of the teacher, if there is one.
            moment: Moment of the run.

        Yields:
            A term to add to the loss: a zero that depends on the frozen weights if processes exchange gradients.
        """
        frozen = self.holds(moment)
        if frozen or self._was_frozen or self.statistics:
            for network in (student, teacher):
                for module in [] if network is None else encoder_modules(network):
                    module.training = not (frozen or (self.statistics and isinstance(module, _BatchNorm)))
            self._was_frozen = frozen
        weights = encoder_weights(student) if frozen and not self.sharded else []
        zeros = [(0 * weight).sum() for weight in weights] if self.distributed else []
        for weight in weights:
            weight.requires_grad_(False)
        try:
            yield zeros
        finally:
            for weight in weights:
                weight.requires_grad_(True)

    def drop_gradients(self, student: Network, moment: Moment) -> None:
        """Drop the gradients of frozen weights, so that the optimiser ignores them."""
        if self.holds(moment):
            for weight in encoder_weights(student):
                weight.grad = None


def encoder_weights(network: Network) -> list[nn.Parameter]:
    """Return the trainable weights of a network outside its decoder."""
    decoder = tuple(f"model.{prefix}" for prefix in network.decoder_names)
    return [
        weight
        for name, weight in network.named_parameters()
        if weight.requires_grad and not (decoder and name.startswith(decoder))
    ]


def encoder_modules(network: Network) -> list[nn.Module]:
    """Return the modules of a network that do not belong to its decoder."""
    decoder = network.decoder_names
    return [
        module
        for name, module in network.model.named_modules()
        if not any(f"{name}.".startswith(prefix) or prefix.startswith(f"{name}." if name else "") for prefix in decoder)
    ]
