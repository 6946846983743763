"""Recipe options that have another name on the command line and in `dovetail.pretrain`.

Recipe functions take `base_lr` and `image_size`, and config files of saved runs and papers may contain them. On the
command line and in Python, use the options `lr` and `image_size` of the run instead.
"""

from __future__ import annotations

from collections.abc import Mapping

from dovetail.errors import OptionsError
from dovetail.options import Options

RUNS_SPELLING: Mapping[str, str] = {
    "base_lr": "use --lr, the peak learning rate of the whole batch (base_lr times the batch size over 256)",
    "image_size": "use --image-size, the size of the views",
}
"""Recipe options and their replacements."""


def refuse_other_spellings(options: Options, recipe: Mapping[str, object] | None) -> None:
    """Raise `OptionsError` if the user set a recipe option that has another name; files may contain it.

    Args:
        options: Options that record which values came from a file.
        recipe: Recipe options by name.
    """
    for name, advice in RUNS_SPELLING.items():
        if name in (recipe or {}) and options.typed("recipe") and options.typed(f"recipe.{name}"):
            raise OptionsError(f"{name} cannot be set as a recipe option; {advice}.")
