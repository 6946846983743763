"""Freeze-then-joint: the encoder stands still for the first epochs while the decoder and the heads learn.

DeCon's published ConvNeXt run trains so (50 epochs with a frozen encoder, then all of the network), and it is of use
wherever a trained encoder meets a decoder with random weights: the decoder's first gradients do not reach the encoder.

While the encoder is frozen, its weights get no gradient, no weight decay and no momentum, and its BatchNorm layers
normalise with their running statistics and leave them as they are, in the student and in the teacher. The teacher's
average goes on for every weight. Of weights that do not move the average is their own value, so the teacher's encoder
equals the student's, bit for bit, until the encoder thaws.

Whether the encoder is frozen is a function of the step alone, so a resumed run switches at the same step.

In distributed training each process expects a gradient for every weight that was trainable at the start, so the frozen
weights get zeros, which are dropped before the optimiser's step. A single process computes no gradient for them at all.
Weights that are cut over processes (FSDP) get their gradients as always, which are dropped too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from dovetail.networks.network import Network
from dovetail.schedules import Moment


class EncoderFreeze:
    """Freezes a learner's encoder for the first epochs.

    Attributes:
        epochs: How many epochs, infinite for all of them.
        distributed: Whether processes exchange gradients of weights that are whole.
        sharded: Whether weights are cut over processes.
    """

    def __init__(self, epochs: float, *, distributed: bool, sharded: bool) -> None:
        self.epochs = epochs
        self.distributed = distributed and not sharded
        self.sharded = sharded
        self._was_frozen = False

    def holds(self, moment: Moment) -> bool:
        """Whether the encoder is frozen in the step that begins at `moment`."""
        return self.epochs == math.inf or moment.step < round(self.epochs * moment.steps_per_epoch)

    @contextmanager
    def applied(self, student: Network, teacher: Network | None, moment: Moment) -> Iterator[list[Tensor]]:
        """Put the encoders in the mode of `moment` for a forward pass.

        Args:
            student: The network that is trained.
            teacher: Its moving average, if there is one.
            moment: Where the run stands.

        Yields:
            What to add to the loss: a zero that depends on the frozen weights where processes exchange gradients.
        """
        frozen = self.holds(moment)
        if frozen or self._was_frozen:
            for network in (student, teacher):
                for module in [] if network is None else encoder_modules(network):
                    module.training = not frozen
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
        """Drop what gradients the frozen weights have, so that the optimiser leaves them alone."""
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
    """Return the modules of a network that have nothing to do with its decoder."""
    decoder = network.decoder_names
    return [
        module
        for name, module in network.model.named_modules()
        if not any(f"{name}.".startswith(prefix) or prefix.startswith(f"{name}." if name else "") for prefix in decoder)
    ]
