"""Methods as plain data: each recipe is a function that returns terms, views, schedules and optimiser rules.

Names in `__all__` are public. They are imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dovetail.public import on_first_use

if TYPE_CHECKING:
    from dovetail.recipes.decoder_terms import decon
    from dovetail.recipes.decorrelate import barlow, vicreg, zerocl
    from dovetail.recipes.dense import densecl, pixpro
    from dovetail.recipes.feature_targets import encoder_targets
    from dovetail.recipes.image import byol, moco_v2, moco_v3, simclr, simsiam
    from dovetail.recipes.image_parts import BYOL_PAIR, MOCO_VIEW, image_tap, lars, pair_views
    from dovetail.recipes.query_context import pqcl
    from dovetail.recipes.query_terms import adclr
    from dovetail.recipes.registry import METHODS, register_method
    from dovetail.recipes.segments import detcon
    from dovetail.recipes.slots import slotcon
    from dovetail.recipes.table import build, options_of
    from dovetail.recipes.tokens import dino, ibot, selfpatch

_PUBLIC = {
    "BYOL_PAIR": "dovetail.recipes.image_parts",
    "METHODS": "dovetail.recipes.registry",
    "MOCO_VIEW": "dovetail.recipes.image_parts",
    "adclr": "dovetail.recipes.query_terms",
    "barlow": "dovetail.recipes.decorrelate",
    "build": "dovetail.recipes.table",
    "byol": "dovetail.recipes.image",
    "decon": "dovetail.recipes.decoder_terms",
    "densecl": "dovetail.recipes.dense",
    "detcon": "dovetail.recipes.segments",
    "dino": "dovetail.recipes.tokens",
    "encoder_targets": "dovetail.recipes.feature_targets",
    "ibot": "dovetail.recipes.tokens",
    "image_tap": "dovetail.recipes.image_parts",
    "lars": "dovetail.recipes.image_parts",
    "moco_v2": "dovetail.recipes.image",
    "moco_v3": "dovetail.recipes.image",
    "options_of": "dovetail.recipes.table",
    "pair_views": "dovetail.recipes.image_parts",
    "pixpro": "dovetail.recipes.dense",
    "pqcl": "dovetail.recipes.query_context",
    "register_method": "dovetail.recipes.registry",
    "selfpatch": "dovetail.recipes.tokens",
    "simclr": "dovetail.recipes.image",
    "simsiam": "dovetail.recipes.image",
    "slotcon": "dovetail.recipes.slots",
    "vicreg": "dovetail.recipes.decorrelate",
    "zerocl": "dovetail.recipes.decorrelate",
}

__all__ = [
    "BYOL_PAIR",
    "METHODS",
    "MOCO_VIEW",
    "adclr",
    "barlow",
    "build",
    "byol",
    "decon",
    "densecl",
    "detcon",
    "dino",
    "encoder_targets",
    "ibot",
    "image_tap",
    "lars",
    "moco_v2",
    "moco_v3",
    "options_of",
    "pair_views",
    "pixpro",
    "pqcl",
    "register_method",
    "selfpatch",
    "simclr",
    "simsiam",
    "slotcon",
    "vicreg",
    "zerocl",
]

__getattr__, __dir__ = on_first_use(__name__, _PUBLIC)
