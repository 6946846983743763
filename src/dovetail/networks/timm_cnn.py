"""timm's convolutional networks and hierarchical transformers, alone or with an FPN or FCN decoder."""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor, nn

from dovetail.networks.decoders import EncoderFCN, EncoderFPN, fpn_levels, intermediates, stages_by_stride
from dovetail.networks.network import Construction
from dovetail.networks.staged import Stages, TwoPartNetwork
from dovetail.sizes import Size


class TimmNetwork(TwoPartNetwork):
    """A timm model, `EncoderFPN` or `EncoderFCN`. Encoder stages are strides, decoder stages are levels."""

    def __init__(
        self, model: nn.Module, *, construction: Construction | None, in_channels: int, image_size: Size
    ) -> None:
        composed = isinstance(model, (EncoderFPN, EncoderFCN))
        encoder = model.encoder if isinstance(model, (EncoderFPN, EncoderFCN)) else model
        indices = {stride: index for stride, (index, _) in stages_by_stride(encoder).items() if stride > 1}
        self.indices = dict(sorted(indices.items()))
        super().__init__(
            model,
            construction=construction,
            encoder_prefix="encoder." if composed else "",
            decoder_prefixes=("decoder.",) if composed else (),
            in_channels=in_channels,
            image_size=image_size,
        )

    @property
    def encoder(self) -> nn.Module:
        """The timm model."""
        if isinstance(self.model, (EncoderFPN, EncoderFCN)):
            return self.model.encoder
        return self.model

    def encode(self, pixels: Tensor, wanted: Collection[str] | None) -> Stages:
        """Return the encoder's maps by stride."""
        strides = [stride for stride in self.indices if wanted is None or str(stride) in wanted]
        maps = intermediates(self.encoder, pixels, [self.indices[stride] for stride in strides])
        return {str(stride): value for stride, value in zip(strides, maps, strict=True)}

    def decode(self, stages: Stages, wanted: Collection[str] | None) -> Stages:
        """Return pyramid levels "4".."32", or the FCN's map "32"."""
        if isinstance(self.model, EncoderFPN):
            features = {stride: stages[stride] for stride in ("4", "8", "16", "32")}
            strides = list(features)
            levels = [strides.index(stride) for stride in (strides if wanted is None else wanted)]
            outputs = fpn_levels(self.model.decoder, list(features.values()), levels=levels, drop=self.drop_laterals)
            return {strides[level]: value for level, value in outputs.items()}
        if isinstance(self.model, EncoderFCN):
            return {"32": self.model.decoder(stages["32"])}
        return {}
