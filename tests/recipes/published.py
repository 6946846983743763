"""What the sources say about each file of `recipes/paper`, written down apart from the files.

A row has the source, and every setting of the run: the recipe's options as the file names them, `epochs`, the global
`batch`, `drop_path`, the epochs of a frozen encoder (`freeze`), the `optimiser` and the views' `resampling`. What no
source says is named in `chosen`, so that a chosen value is not taken for a published one.

Sources are official code, by repository and path. DINO's and iBOT's arguments of single runs are the `args.txt` beside
their weights, which other codes repeat (DyT's guide to DINO, SERE, MaSSL).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tests.recipes.published_parts import (
    ADCLR,
    ADCLR_PAPER,
    ALPHA0,
    BYOL,
    BYOL_CODE,
    COCO,
    DENSECL,
    DENSECL_COCO,
    DENSECL_CODE,
    DETCON_CODE,
    DINO,
    DINO_ARGS,
    DINO_B,
    DINO_CODE,
    EIGHT_CROPS,
    FOLLOW_UP,
    IBOT,
    IBOT_ARGS,
    IBOT_B,
    IBOT_CODE,
    LARS,
    ML,
    MOCO,
    MOCO_V3,
    MOCO_V3_CODE,
    MOCO_V3_VIT,
    PIXPRO,
    PIXPRO_COCO,
    PIXPRO_CODE,
    PQCL,
    QUERIES,
    SELFPATCH,
    SGD,
    SL,
    SLOTCON,
    SLOTCON_CODE,
    TEN_CROPS,
    WARMED,
    WIDE,
)


@dataclass(frozen=True)
class Published:
    """One run.

    Attributes:
        source: Where the values are from.
        values: All settings.
        chosen: Names of those that no source says.
    """

    source: str
    values: dict[str, Any]
    chosen: frozenset[str] = frozenset()


def row(source: str, *parts: dict[str, Any], chosen: str = "", **own: Any) -> Published:
    """Return a row whose later parts override earlier ones."""
    values: dict[str, Any] = {"drop_path": 0.0, "freeze": 0}
    for part in (*parts, own):
        values |= part
    return Published(source, values, frozenset(chosen.split()))


PUBLISHED: dict[str, Published] = {
    "slotcon-r50-coco-800ep": row(SLOTCON_CODE.format("coco_r50_800ep"), SLOTCON, COCO),
    "slotcon-r50-cocoplus-800ep": row(SLOTCON_CODE.format("cocoplus_r50_800ep"), SLOTCON, COCO),
    "slotcon-r50-imagenet-100ep": row(SLOTCON_CODE.format("imagenet_r50_100ep"), SLOTCON, epochs=100, prototypes=2048),
    "slotcon-r50-imagenet-200ep": row(SLOTCON_CODE.format("imagenet_r50_200ep"), SLOTCON, epochs=200, prototypes=2048),
    "densecl-r50-coco-800ep": row(DENSECL_CODE.format("coco_800ep"), DENSECL_COCO, COCO),
    "densecl-r50-imagenet-200ep": row(DENSECL_CODE.format("imagenet_200ep"), DENSECL, epochs=200, base_lr=0.03),
    "pixpro-r50-imagenet-100ep": row(PIXPRO_CODE.format("100ep"), PIXPRO, epochs=100),
    "pixpro-r50-imagenet-400ep": row(PIXPRO_CODE.format("400ep"), PIXPRO, epochs=400),
    "pixpro-instance-r50-imagenet-100ep": row(
        "arXiv 2011.10043, zdaxie/PixPro README.md", PIXPRO, epochs=100, instance_weight=1, chosen="instance_weight"
    ),
    "pixpro-instance-r50-imagenet-400ep": row(
        "arXiv 2011.10043, zdaxie/PixPro README.md", PIXPRO, epochs=400, instance_weight=1, chosen="instance_weight"
    ),
    "decon-sl-slotcon-r50-coco-800ep": row(FOLLOW_UP, SLOTCON, COCO, SL, decoder_grid=56),
    "decon-sl-slotcon-fcn-r50-coco-800ep": row(FOLLOW_UP, SLOTCON, COCO, SL, decoder_grid=56),
    "decon-sl-slotcon-r50-cocoplus-800ep": row(FOLLOW_UP, SLOTCON, COCO, SL, decoder_grid=56),
    "decon-sl-slotcon-r50-imagenet-100ep": row(FOLLOW_UP, SLOTCON, SL, epochs=100, prototypes=2048, decoder_grid=56),
    "decon-ml-slotcon-r50-coco-800ep": row(FOLLOW_UP, SLOTCON, COCO, ML, decoder_grid=56, chosen="alpha"),
    "decon-ml-slotcon-alpha0-r50-coco-800ep": row(FOLLOW_UP, SLOTCON, COCO, ALPHA0, decoder_grid=56),
    "decon-ml-slotcon-r50-cocoplus-800ep": row(FOLLOW_UP, SLOTCON, COCO, ML, decoder_grid=56, chosen="alpha"),
    "decon-ml-slotcon-r50-imagenet-100ep": row(
        FOLLOW_UP, SLOTCON, ML, epochs=100, prototypes=2048, decoder_grid=56, chosen="alpha"
    ),
    "decon-ml-slotcon-convnextl-wheat-300ep": row(
        FOLLOW_UP,
        SLOTCON,
        ALPHA0,
        epochs=300,
        batch=224,
        freeze=50,
        optimiser="adamw",
        base_lr=2e-4,
        weight_decay=0.05,
        decoder_grid=56,
        chosen="prototypes",
    ),
    "decon-sl-densecl-r50-coco-800ep": row(
        "DenseCL's for COCO; DeCon's levels", DENSECL_COCO, COCO, SL, decoder_grid=14, chosen="alpha decoder_grid"
    ),
    "decon-sl-densecl-28x28-r50-coco-800ep": row(
        "DenseCL's for COCO; DeCon's levels", DENSECL_COCO, COCO, SL, decoder_grid=28, chosen="alpha decoder_grid"
    ),
    "decon-ml-densecl-r50-coco-800ep": row(
        "DenseCL's for COCO; DeCon's levels", DENSECL_COCO, COCO, ML, decoder_grid=14, chosen="alpha decoder_grid"
    ),
    "decon-ml-densecl-28x28-r50-coco-800ep": row(
        "DenseCL's for COCO; DeCon's levels", DENSECL_COCO, COCO, ML, decoder_grid=28, chosen="alpha decoder_grid"
    ),
    "decon-ml-densecl-alpha0-r50-coco-800ep": row(
        "DenseCL's for COCO; DeCon's levels", DENSECL_COCO, COCO, ALPHA0, decoder_grid=14, chosen="decoder_grid"
    ),
    "decon-sl-pixpro-r50-coco-800ep": row(
        "PixPro's for ImageNet; DeCon's levels",
        PIXPRO_COCO,
        COCO,
        SL,
        decoder_grid=14,
        chosen="alpha decoder_grid batch",
    ),
    "decon-sl-pixpro-28x28-r50-coco-800ep": row(
        "PixPro's for ImageNet; DeCon's levels",
        PIXPRO_COCO,
        COCO,
        SL,
        decoder_grid=28,
        chosen="alpha decoder_grid batch",
    ),
    "decon-ml-pixpro-r50-coco-800ep": row(
        "PixPro's for ImageNet; DeCon's levels",
        PIXPRO_COCO,
        COCO,
        ML,
        decoder_grid=14,
        chosen="alpha decoder_grid batch",
    ),
    "decon-ml-pixpro-28x28-r50-coco-800ep": row(
        "PixPro's for ImageNet; DeCon's levels",
        PIXPRO_COCO,
        COCO,
        ML,
        decoder_grid=28,
        chosen="alpha decoder_grid batch",
    ),
    "decon-ml-pixpro-alpha0-r50-coco-800ep": row(
        "PixPro's for ImageNet; DeCon's levels", PIXPRO_COCO, COCO, ALPHA0, decoder_grid=14, chosen="decoder_grid batch"
    ),
    "simclr-r50-imagenet-1000ep": row(
        "arXiv 2002.05709, google-research/simclr",
        LARS,
        hidden=2048,
        dim=128,
        temperature=0.1,
        base_lr=0.3,
        weight_decay=1e-6,
        warmup_epochs=10,
        jitter=1.0,
        min_scale=0.08,
        epochs=1000,
        batch=4096,
    ),
    "moco-v2-r50-imagenet-200ep": row("arXiv 2003.04297", MOCO, epochs=200, base_lr=0.03),
    "moco-v2-r50-imagenet-800ep": row("arXiv 2003.04297", MOCO, epochs=800, base_lr=0.03),
    "moco-v2-r50-coco-800ep": row("the baseline of DenseCL's README", MOCO, epochs=800, base_lr=0.3),
    "moco-v3-r50-imagenet-300ep": row(
        MOCO_V3_CODE,
        MOCO_V3,
        optimiser="lars",
        temperature=1.0,
        base_lr=0.3,
        weight_decay=1e-6,
        warmup_epochs=10,
        min_scale=0.2,
    ),
    "moco-v3-vits16-imagenet-300ep": row(MOCO_V3_CODE, MOCO_V3_VIT),
    "moco-v3-vitb16-imagenet-300ep": row(MOCO_V3_CODE, MOCO_V3_VIT),
    "byol-r50-imagenet-1000ep": row(BYOL_CODE, BYOL, epochs=1000, momentum=0.996, base_lr=0.2, weight_decay=1.5e-6),
    "byol-r50-imagenet-100ep": row(BYOL_CODE, BYOL, epochs=100, momentum=0.99, base_lr=0.45, weight_decay=1e-6),
    "detcon-r50-imagenet-300ep": row(
        DETCON_CODE,
        LARS,
        hidden=4096,
        dim=256,
        segments=16,
        temperature=0.1,
        momentum=0.996,
        base_lr=0.2,
        weight_decay=1.5e-6,
        warmup_epochs=3,
        min_scale=0.08,
        epochs=300,
        batch=4096,
        chosen="warmup_epochs",
    ),
    "simsiam-r50-imagenet-100ep": row(
        "arXiv 2011.10566, facebookresearch/simsiam",
        SGD,
        hidden=2048,
        dim=2048,
        predictor_hidden=512,
        base_lr=0.05,
        weight_decay=1e-4,
        min_scale=0.2,
        epochs=100,
        batch=512,
    ),
    "barlow-r50-imagenet-1000ep": row(
        "arXiv 2103.03230, facebookresearch/barlowtwins",
        WIDE,
        off_diagonal_weight=0.0051,
        base_lr=0.2,
        bias_lr=0.0048,
        weight_decay=1.5e-6,
        epochs=1000,
        batch=2048,
    ),
    "zerocl-r50-imagenet-400ep": row(
        "ICLR 2022, Sherrylone/Zero-CL",
        WIDE,
        mode="both",
        base_lr=0.3,
        bias_lr=0.0048,
        weight_decay=1e-6,
        epochs=400,
        batch=256,
    ),
    "vicreg-r50-imagenet-1000ep": row(
        "arXiv 2105.04906, facebookresearch/vicreg",
        WIDE,
        invariance_weight=25,
        variance_weight=25,
        covariance_weight=1,
        variance_scale=1,
        base_lr=0.2,
        weight_decay=1e-6,
        epochs=1000,
        batch=2048,
    ),
    "dino-vits16-imagenet-100ep": row(
        DINO_CODE, DINO, EIGHT_CROPS, epochs=100, learned_magnitude=False, teacher_temperature=0.04
    ),
    "dino-vits16-imagenet-300ep": row(DINO_CODE, DINO, WARMED, EIGHT_CROPS, epochs=300),
    "dino-vits16-imagenet-800ep": row(DINO_ARGS.format("deitsmall16"), DINO, WARMED, TEN_CROPS, epochs=800),
    "dino-vitb16-imagenet-400ep": row(DINO_ARGS.format("vitbase16"), DINO_B),
    "ibot-vits16-imagenet-100ep": row(IBOT_CODE, IBOT, epochs=100),
    "ibot-vits16-imagenet-300ep": row(IBOT_CODE, IBOT, epochs=300),
    "ibot-vits16-imagenet-800ep": row(IBOT_CODE, IBOT, epochs=800),
    "ibot-vitb16-imagenet-400ep": row(IBOT_ARGS, IBOT_B, chosen="batch"),
    "selfpatch-vits16-imagenet-200ep": row("alinlab/SelfPatch README.md, main_selfpatch.py", SELFPATCH, epochs=200),
    "selfpatch-vits16-imagenet-300ep": row("alinlab/SelfPatch main_selfpatch.py", SELFPATCH, epochs=300),
    "selfpatch-vitb16-imagenet-300ep": row(
        "alinlab/SelfPatch main_selfpatch.py, for ViT-S", SELFPATCH, epochs=300, chosen="epochs batch"
    ),
    "pqcl-vits16-imagenet-100ep": row(
        "Sherrylone/PQCL run.sh, main_pos_bot.py, augmentation.py",
        PQCL,
        epochs=100,
        chosen="reference_query_positions",
    ),
    **{
        f"adclr-dino-vits16-imagenet-{epochs}ep": row(
            ADCLR_PAPER.format("DINO"), DINO, WARMED, TEN_CROPS, ADCLR, epochs=epochs, chosen=QUERIES
        )
        for epochs in (100, 300, 800)
    },
    **{
        f"adclr-ibot-vits16-imagenet-{epochs}ep": row(
            ADCLR_PAPER.format("iBOT"), IBOT, ADCLR, epochs=epochs, chosen=QUERIES
        )
        for epochs in (100, 300, 800)
    },
    "adclr-dino-vitb16-imagenet-400ep": row(ADCLR_PAPER.format("DINO"), DINO_B, ADCLR, chosen=QUERIES),
    "adclr-ibot-vitb16-imagenet-400ep": row(ADCLR_PAPER.format("iBOT"), IBOT_B, ADCLR, chosen=QUERIES),
}
