"""Options of recipes that have another name on the command line and in `dovetail.pretrain`.

The recipes' functions take `base_lr` and `image_size`, and files of options may hold them, as those of saved runs and
papers do. On the command line and in Python they are `lr` and `image_size`, options of the run.
"""

from __future__ import annotations

from collections.abc import Mapping

from dovetail.errors import OptionsError
from dovetail.options import Options

RUNS_SPELLING: Mapping[str, str] = {
    "base_lr": "give the peak learning rate of the whole batch with --lr, which is base_lr times the batch over 256",
    "image_size": "give the side of the views with --image-size",
}
"""Options of recipes, and what to give in their place."""


def refuse_other_spellings(options: Options, recipe: Mapping[str, object] | None) -> None:
    """Raise `OptionsError` where an option of `recipe` was typed that has another name; files may hold it.

    Args:
        options: They know what came from a file.
        recipe: Options of the method's recipe, by name.
    """
    for name, advice in RUNS_SPELLING.items():
        if name in (recipe or {}) and options.typed("recipe") and options.typed(f"recipe.{name}"):
            raise OptionsError(f"The recipe's {name} is not an option of its own; {advice}.")
