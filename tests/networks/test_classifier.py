"""A decoder that ends in the classifier is told from one whose last layer is part of the features."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dovetail.networks.build import build_network
from dovetail.networks.classifier import classifier_in


class Segmenter(nn.Module):
    """A decoder that returns logits, with an auxiliary head that runs after it, as in UPerNet."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Conv2d(3, 8, 4, 4)
        self.decoder = nn.Sequential(nn.Conv2d(8, 6, 3, 1, 1), nn.ReLU(inplace=True), nn.Conv2d(6, 2, 1))
        self.auxiliary = nn.Conv2d(8, 2, 1)

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        features = self.encoder(pixels)
        logits = self.decoder(features)
        return {"logits": nn.functional.interpolate(logits, scale_factor=4), "auxiliary": self.auxiliary(features)}


class Refined(Segmenter):
    """A layer with weights refines the decoder's map in place."""

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        maps = self.decoder(self.encoder(pixels)).relu_()
        return {"logits": self.auxiliary.weight.new_zeros(1) + nn.functional.pad(maps, [0] * 4), "out": self.last(maps)}

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Conv2d(2, 2, 3)


class Queries(Segmenter):
    """Masks are products of the decoder's map and of embeddings that are computed after it, as in Mask2Former."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = nn.Linear(6, 2)

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        maps = self.decoder(self.encoder(pixels))
        queries = self.embeddings(torch.ones(len(pixels), 5, 6))
        return {"maps": maps, "masks": torch.einsum("bqc,bchw->bqhw", queries, maps)}


class Ranked(Segmenter):
    """The decoder's map only selects what a later layer reads."""

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        features = self.encoder(pixels)
        chosen = self.decoder(features).argmax(1, keepdim=True)
        return {"logits": self.auxiliary(features * chosen)}


class Unfinished(Segmenter):
    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        super().forward(pixels)
        raise ValueError("the targets are missing")


@pytest.mark.parametrize(
    ("kind", "expected"),
    [(Segmenter, "decoder.2"), (Refined, ""), (Queries, ""), (Ranked, ""), (Unfinished, "")],
)
def test_the_classifier_of_a_decoder(kind: type[nn.Module], expected: str) -> None:
    model = kind()
    model.get_parameter("encoder.weight").requires_grad_(False)
    assert classifier_in(model, ["decoder"], torch.rand(1, 3, 32, 32)) == expected
    assert [name for name, value in model.named_parameters() if not value.requires_grad] == ["encoder.weight"]
    assert classifier_in(model, ["encoder"], torch.rand(1, 3, 32, 32)) == ""


def test_an_auxiliary_head_does_not_hide_the_classifier() -> None:
    network = build_network(Segmenter(), encoder="encoder", decoder="decoder", image_size=32)
    assert network.taps["p2"].channels == 6
    network.prune(["c2", "p2"])
    assert network.unreached == ("decoder.2.weight", "decoder.2.bias", "auxiliary.weight", "auxiliary.bias")
    assert build_network(Queries(), encoder="encoder", decoder="decoder", image_size=32).taps["p2"].channels == 2
