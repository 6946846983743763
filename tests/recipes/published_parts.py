"""Settings that several published runs share, and the sources that they are from."""

from __future__ import annotations

LARS = {"optimiser": "lars", "resampling": "bicubic"}
SGD = {"optimiser": "sgd", "resampling": "bilinear"}
SLOTCON = LARS | {
    "hidden": 4096,
    "dim": 256,
    "prototypes": 256,
    "group_weight": 0.5,
    "student_temperature": 0.1,
    "teacher_temperature": 0.07,
    "contrast_temperature": 0.2,
    "momentum": 0.99,
    "base_lr": 1.0,
    "weight_decay": 1e-5,
    "warmup_epochs": 5,
    "min_scale": 0.08,
    "batch": 512,
}
DENSECL = SGD | {
    "hidden": 2048,
    "dim": 128,
    "temperature": 0.2,
    "queue": 65536,
    "dense_weight": 0.5,
    "momentum": 0.999,
    "weight_decay": 1e-4,
    "min_scale": 0.2,
    "batch": 256,
    "encoder_init": "published",
}
PIXPRO = LARS | {
    "hidden": 4096,
    "dim": 256,
    "distance": 0.7,
    "gamma": 2,
    "transform_layers": 1,
    "instance_weight": 0,
    "momentum": 0.99,
    "base_lr": 1.0,
    "weight_decay": 1e-5,
    "warmup_epochs": 5,
    "min_scale": 0.08,
    "batch": 1024,
    "resampling": "bilinear",
}
MOCO = SGD | {
    "hidden": 2048,
    "dim": 128,
    "temperature": 0.2,
    "queue": 65536,
    "symmetric": False,
    "momentum": 0.999,
    "weight_decay": 1e-4,
    "min_scale": 0.2,
    "batch": 256,
    "encoder_init": "published",
}
MOCO_V3 = {"hidden": 4096, "dim": 256, "momentum": 0.99, "batch": 4096, "epochs": 300, "resampling": "bilinear"}
MOCO_V3_VIT = MOCO_V3 | {
    "optimiser": "adamw",
    "temperature": 0.2,
    "base_lr": 1.5e-4,
    "weight_decay": 0.1,
    "warmup_epochs": 40,
    "frozen_patches": True,
    "min_scale": 0.08,
}
WIDE = LARS | {"hidden": 8192, "dim": 8192, "warmup_epochs": 10, "min_scale": 0.08}
BYOL = LARS | {"hidden": 4096, "dim": 256, "warmup_epochs": 10, "min_scale": 0.08, "batch": 4096}

# facebookresearch/dino main_dino.py; its README for what a run changes.
TOKENS = {
    "optimiser": "adamw",
    "resampling": "bicubic",
    "drop_path": 0.1,
    "hidden": 2048,
    "bottleneck": 256,
    "momentum": 0.996,
    "base_lr": 5e-4,
    "weight_decay": 0.04,
    "final_weight_decay": 0.4,
    "warmup_epochs": 10,
    "clip_norm": 3.0,
    "frozen_epochs": 1,
    "local_size": 96,
    "batch": 1024,
    "encoder_init": "published",
}
WARMED = {"teacher_temperature": 0.07, "warmup_temperature": 0.04, "warmup_temperature_epochs": 30}
TEN_CROPS = {"global_scale": (0.25, 1.0), "local_scale": (0.05, 0.25), "local_crops": 10}
EIGHT_CROPS = {"global_scale": (0.4, 1.0), "local_scale": (0.05, 0.4), "local_crops": 8}
DINO = TOKENS | {"prototypes": 65536, "learned_magnitude": True}
# The arguments of the official ViT-B runs.
VIT_B = {
    "base_lr": 7.5e-4,
    "final_lr": 2e-6,
    "frozen_epochs": 3,
    "clip_norm": 0.3,
    "warmup_temperature_epochs": 50,
    "learned_magnitude": False,
    "epochs": 400,
}
DINO_B = DINO | WARMED | TEN_CROPS | VIT_B | {"batch": 512}
IBOT = (
    TOKENS
    | WARMED
    | TEN_CROPS
    | {
        "prototypes": 8192,
        "shared_head": True,
        "learned_magnitude": True,
        "teacher_patch_temperature": 0.07,
        "mask_share": (0.1, 0.5),
        "mask_p": 0.5,
        "mask_shape": "block",
    }
)
IBOT_B = IBOT | VIT_B | {"global_scale": (0.32, 1.0), "local_scale": (0.05, 0.32)}
PQCL = (
    TOKENS
    | WARMED
    | {
        "prototypes": 8192,
        "shared_head": True,
        "learned_magnitude": True,
        "teacher_patch_temperature": 0.07,
        "teacher_query_temperature": 0.07,
        "mask_share": (0.1, 0.5),
        "mask_p": 0.5,
        "mask_shape": "block",
        "final_lr": 1e-6,
        "global_scale": (0.25, 1.0),
        "local_crops": 0,
        "query_crops": 1,
        "query_size": 96,
        "query_scale": (0.05, 0.25),
        "query_weight": 1.0,
        "query_positions": "sincos",
        "query_centre_momentum": 0.9,
        "reference_query_positions": False,
        "batch": 512,
    }
)
del PQCL["local_size"]  # there are no local views
SELFPATCH = TOKENS | {
    "prototypes": 65536,
    "patch_prototypes": 4096,
    "neighbours": 4,
    "aggregation_blocks": 2,
    "patch_weight": 0.1,
    "teacher_temperature": 0.04,
    "global_scale": (0.25, 1.0),
    "local_scale": (0.05, 0.25),
    "local_crops": 8,
}
ADCLR = {
    "queries": 10,
    "query_weight": 1.0,
    "query_scale": (0.05, 0.25),
    "query_attention": "unidirectional",
    "query_pairing": "cross",
    "query_positions": "none",
    "query_centre_momentum": 0.9,
    "independent_queries": False,
}
QUERIES = "queries query_weight query_scale query_positions query_centre_momentum independent_queries epochs batch"

SL = {"levels": "finest", "alpha": 0.5}
ML = {"levels": "all", "alpha": 0.5, "lateral_dropout": 0.5, "lateral_dropout_kind": "channel"}
ALPHA0 = ML | {"alpha": 0.0}
COCO = {"epochs": 800}
DENSECL_COCO = DENSECL | {"base_lr": 0.3}
PIXPRO_COCO = PIXPRO | {"batch": 512}

FOLLOW_UP = "launch scripts of DeCon's authors' follow-up (continual DeCon pre-training, ICCV workshops 2025)"
SLOTCON_CODE = "CVMI-Lab/SlotCon scripts/slotcon_{}.sh"
DENSECL_CODE = "WXinlong/DenseCL configs/selfsup/densecl/densecl_{}.py"
PIXPRO_CODE = "zdaxie/PixPro tools/pixpro_base_r50_{}.sh"
MOCO_V3_CODE = "facebookresearch/moco-v3 CONFIG.md, main_moco.py"
BYOL_CODE = "google-deepmind/deepmind-research byol/configs/byol.py"
DETCON_CODE = "google-deepmind/detcon configs"
DINO_CODE = "facebookresearch/dino README.md, main_dino.py"
DINO_ARGS = "dl.fbaipublicfiles.com/dino/dino_{}_pretrain/args.txt"
IBOT_CODE = "bytedance/ibot README.md, main_ibot.py"
IBOT_ARGS = "args.txt of bytedance/ibot's ViT-B/16, as SERE's and MaSSL's codes repeat it"
ADCLR_PAPER = "arXiv 2306.13337 over {}"
