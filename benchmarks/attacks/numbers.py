"""Numbers out of range for every option of every command that takes one."""

from __future__ import annotations

import inspect
import itertools
import re
import types
from collections.abc import Iterator
from functools import partial
from typing import Any, Union, get_args, get_origin

from benchmarks.attacks import claims
from benchmarks.attacks.arena import MODEL, RUN, Arena, Attack
from dovetail.cli import VERBS
from dovetail.recipes.table import options_of, parse

WRONG = ("nan", "-7", "1" + "0" * 30, "inf")
METHODS = ("decon-sl", "densecl", "adclr", "vicreg", "pixpro", "selfpatch", "ibot")
NEEDS = {
    "prepare": ("--data", "PHOTOS", "--shards", "OUT"),
    "evaluate knn": ("--run", "RUN", "--data", "CLASSES", "--out", "OUT"),
    "evaluate linear": ("--run", "RUN", "--data", "CLASSES", "--out", "OUT"),
    "evaluate dense": ("--run", "RUN", "--data", "MASKS", "--out", "OUT"),
    "embed": ("--run", "RUN", "--data", "PHOTOS", "--out", "OUT.npy"),
    "visualize pca": ("--run", "RUN", "--images", "PHOTOS", "--out", "OUT"),
    "visualize slots": ("--run", "RUN", "--images", "PHOTOS", "--out", "OUT"),
    "visualize attention": ("--run", "RUN", "--images", "PHOTOS", "--out", "OUT"),
    "visualize correspondence": ("--run", "RUN", "--images", "PHOTOS", "--out", "OUT"),
    "visualize neighbours": ("--run", "RUN", "--images", "PHOTOS", "--out", "OUT"),
    "finetune classify": ("--run", "RUN", "--data", "CLASSES", "--out", "OUT"),
    "finetune detect": ("--run", "RUN", "--data", "COCO", "--out", "OUT"),
    "finetune segment": ("--run", "RUN", "--data", "MASKS", "--out", "OUT"),
    "predict": ("--run", "RUN", "--data", "PHOTOS", "--out", "OUT"),
}
TOKENS = ("adclr", "dino", "ibot", "selfpatch")
MEANT = {("value_range", "-7")}  # black may lie below 0


def attacks() -> Iterator[Attack]:
    """Yield one attack for each number option of a command and each wrong number."""
    for verb, words in NEEDS.items():
        for option, value in itertools.product(number_options(verb), WRONG):
            if (option, value) not in MEANT:
                act = partial(typed, (*verb.split(), *words), f"--{option.replace('_', '-')}", value)
                yield Attack(claims.NUMBERS, f"{verb} --{option} {value}", act)
    for option in number_options("pretrain"):
        for value in WRONG:
            if (option, value) not in MEANT:
                yield Attack(
                    claims.NUMBERS, f"pretrain --{option} {value}", partial(pretrained, "decon-sl", option, value)
                )
    seen: set[str] = set()
    for method in METHODS:
        for option, parameter in options_of(method).items():
            if option in seen or not is_number(parameter.annotation):
                continue
            seen.add(option)
            for value in WRONG:
                act = partial(pretrained, method, f"recipe.{option}", value)
                yield Attack(claims.NUMBERS, f"pretrain --method {method} --recipe.{option} {value}", act)


def number_options(verb: str) -> list[str]:
    """Return the names of a command's options that take numbers."""
    signature = inspect.signature(VERBS[verb].load()).parameters
    return [name for name, one in signature.items() if re.search(r"\b(int|float)\b", str(one.annotation))]


def is_number(annotation: Any) -> bool:
    """Whether a type takes whole numbers or others."""
    if get_origin(annotation) in (Union, types.UnionType):
        return any(is_number(one) for one in get_args(annotation))
    return annotation in (int, float)


def typed(words: tuple[str, ...], option: str, value: str, arena: Arena) -> None:
    """Type a number after an option."""
    places = {
        "RUN": lambda: arena.run, "PHOTOS": lambda: arena.photos, "CLASSES": lambda: arena.classes,
        "MASKS": lambda: arena.masks, "COCO": lambda: arena.coco, "OUT": lambda: arena.here / "out",
        "OUT.npy": lambda: arena.here / "out.npy",
    }  # fmt: skip
    known = [places[word]() if word in places else word for word in words]
    arena.command(*known, f"{option}={value}")


def pretrained(method: str, option: str, value: str, arena: Arena) -> None:
    """Type a number after an option of `pretrain`."""
    name = option.replace("_", "-")
    plain = {key: one for key, one in RUN.items() if key not in ("recipe", option, "model")}
    words = [f"--{key.replace('_', '-')}={one}" for key, one in plain.items()]
    model = "timm/test_vit+fpn" if parse(method).base in TOKENS else MODEL
    given = (f"--{name}={value}",) if option != "value_range" else (f"--{name}", value, "1")
    arena.command(
        *("pretrain", "--data", arena.photos, "--out", arena.here / "new", "--method", method, "--model", model),
        *words,
        *given,
    )
