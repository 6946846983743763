"""ImageNet weights that a library publishes for a model: name, license, and download URL."""

from __future__ import annotations

from dataclasses import dataclass

import timm
import torchvision
from segmentation_models_pytorch.encoders import encoders

HUB = "https://huggingface.co/{}/resolve/{}/model.safetensors"


@dataclass(frozen=True)
class Published:
    """Weights that a library publishes.

    Attributes:
        name: Name in the library, such as "timm/resnet50.a1_in1k".
        license: License as stated by the library; "" if it states none.
        url: URL of the file.
    """

    name: str
    license: str
    url: str

    def __str__(self) -> str:
        """Return the name and the license."""
        return f"{self.name}, {f'license {self.license}' if self.license else 'license not stated by the library'}"


def published(library: str, encoder: str) -> Published | None:
    """Return the ImageNet weights of an encoder; None if the library has none or no URL for them.

    Args:
        library: "timm", "smp" or "torchvision".
        encoder: Name in the library; the prefix "tu-" means a timm model.
    """
    if library == "torchvision":
        weights = torchvision.models.get_model_weights(encoder)["IMAGENET1K_V1"]
        return Published(f"torchvision's {encoder} IMAGENET1K_V1", "", weights.url)
    if library == "smp" and not encoder.startswith("tu-"):
        settings = encoders.get(encoder, {}).get("pretrained_settings", {}).get("imagenet", {})
        if "repo_id" not in settings:
            return None
        return Published(settings["repo_id"], "", HUB.format(settings["repo_id"], settings.get("revision", "main")))
    config = timm.get_pretrained_cfg(encoder.removeprefix("tu-"))
    if config is None or not (config.hf_hub_id or config.url):
        return None
    url = HUB.format(config.hf_hub_id, "main") if config.hf_hub_id else str(config.url)
    return Published(config.hf_hub_id or f"timm's {encoder}", config.license or "", url)
