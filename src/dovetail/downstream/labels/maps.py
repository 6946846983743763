"""`--label-map`: maps values or colours in masks to classes.

    255:1  128:ignore  "#800000:2"  128,0,0:2      pairs of a value or colour and its class, or "ignore"
    labelmap.txt, class_dict.csv, label_colors.txt  a table with one class per line, numbered from 0

A line of a table has the name of a class and its colour (three numbers from 0 to 255) or label (one number), in the
format of CVAT ("road:128,64,128::"), CamVid ("128 64 128 Road"), class_dict.csv ("Road,128,64,128") or Roboflow
("1, road"). Headers and lines that start with "#" are skipped. The ignored label needs no line in a table of labels.

Shapes: H x W pixels.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dovetail.errors import DataError, OptionsError, counted

IGNORE = "ignore"
LARGEST = 2**16 - 1
_PAIR = re.compile(r"(?:#(?P<hex>[0-9a-fA-F]{6})|(?P<numbers>\d+(?:,\d+,\d+)?)):(?P<target>\d+|ignore)")


@dataclass(frozen=True)
class LabelMap:
    """Classes of the values or colours in mask files.

    Attributes:
        values: Values in ascending order: labels, or colours as red * 65536 + green * 256 + blue.
        targets: Class of each value.
        in_colour: Whether `values` are colours.
        whole: Whether all values must be in the map. Otherwise, other values are kept.
        names: Class names from a table, if there is one.
    """

    values: tuple[int, ...]
    targets: tuple[int, ...]
    in_colour: bool
    whole: bool
    names: tuple[str, ...] = ()

    def apply(self, found: np.ndarray, where: str) -> Tensor:
        """Convert the labels [H, W] or colours [H, W, 3] of a mask to classes [H, W] int64.

        Raises:
            DataError: A value is not in the map and cannot be kept.
        """
        codes = found.astype(np.int64)
        if self.in_colour:
            codes = codes[..., 0] << 16 | codes[..., 1] << 8 | codes[..., 2]
        values, targets = np.array(self.values), np.array(self.targets)
        places = np.searchsorted(values, codes).clip(max=len(values) - 1)
        named = values[places] == codes
        wrong = ~named if self.whole else ~named & np.isin(codes, targets)
        if wrong.any():
            value, pixels = int(codes[wrong][0]), counted(int(wrong.sum()), "pixel")
            raise DataError(
                f"{where} contains {self._called(value)} on {pixels}, which is not in the label map"
                f"{'' if self.whole else ', but the map gives its number to another label'}; add it to the map."
            )
        return torch.from_numpy(np.where(named, targets[places], codes))

    def _called(self, value: int) -> str:
        return f"colour {value >> 16},{value >> 8 & 255},{value & 255}" if self.in_colour else f"label {value}"


def read_label_map(given: Sequence[str], ignore_index: int) -> LabelMap | None:
    """Parse the value of `--label-map`. Return None if it is empty.

    Args:
        given: Pairs, or the path of a table (see the module's docstring).
        ignore_index: Label of ignored pixels, or -1 for none.

    Raises:
        OptionsError: The value is neither, mixes colours and labels, or has two classes for a value.
    """
    if not given:
        return None
    pairs = [_PAIR.fullmatch(item.strip()) for item in given]
    if len(given) == 1 and pairs[0] is None:
        return with_ignored(read_table(Path(given[0])), ignore_index)
    entries: dict[int, int] = {}
    kinds: set[bool] = set()
    for item, pair in zip(given, pairs, strict=True):
        if pair is None:
            raise OptionsError(f"--label-map expects LABEL:CLASS such as 255:1, R,G,B:CLASS, or one table; got {item}.")
        if pair["target"] == IGNORE and ignore_index < 0:
            raise OptionsError(f"--label-map {item} needs an ignored label; specify it with --ignore-index.")
        numbers = pair["numbers"].split(",") if pair["numbers"] else [pair["hex"]]
        in_colour = pair["hex"] is not None or len(numbers) == 3
        value = int(pair["hex"], 16) if pair["hex"] else code_of([int(number) for number in numbers], item)
        kinds.add(in_colour)
        entries[value] = ignore_index if pair["target"] == IGNORE else int(pair["target"])
    if len(entries) < len(given) or len(kinds) > 1:
        fault = "has a value twice" if len(kinds) == 1 else "has both colours and labels"
        raise OptionsError(f"--label-map {' '.join(given)} {fault}; use unique values of one kind.")
    values = sorted(entries)
    return LabelMap(tuple(values), tuple(entries[value] for value in values), kinds == {True}, kinds == {True})


def with_ignored(table: LabelMap, ignore_index: int) -> LabelMap:
    """Return a table of labels that keeps the ignored label, unless the table names it or there is none."""
    if table.in_colour or ignore_index < 0 or ignore_index in table.values:
        return table
    pairs = sorted([*zip(table.values, table.targets, strict=True), (ignore_index, ignore_index)])
    values, targets = zip(*pairs, strict=True)
    return replace(table, values=values, targets=targets)


def code_of(numbers: Sequence[int], where: str) -> int:
    """Return a label, or a colour as one number. Raise `DataError` if it is out of range."""
    most = LARGEST if len(numbers) == 1 else 255
    if max(numbers) > most:
        raise DataError(f"{where} contains {max(numbers)}, but values are at most {most}; correct it.")
    return numbers[0] if len(numbers) == 1 else numbers[0] << 16 | numbers[1] << 8 | numbers[2]


def read_table(path: Path) -> LabelMap:
    """Read a map from a file with one class per line.

    Raises:
        DataError: The file cannot be read, a line has no name or no valid colour or label, or two lines have the same
            colour or label.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise DataError(
            f"The label map {path} cannot be read ({reason}); specify a table of classes, or pairs such as 255:1."
        ) from error
    rows: list[tuple[list[int], str]] = []
    for line in lines:
        tokens = [token for token in re.split(r"[\s,;:]+", line.strip()) if token]
        numbers = [int(token) for token in tokens if token.isdecimal()]
        if not numbers or line.lstrip().startswith("#"):
            continue
        name = " ".join(token for token in tokens if not token.isdecimal())
        if len(numbers) not in (1, 3) or not name:
            raise DataError(f"{path} has the line {line.strip()!r}; write a name and a colour R,G,B or a label.")
        rows.append((numbers, name))
    lengths = {len(numbers) for numbers, _ in rows}
    codes = [code_of(numbers, str(path)) for numbers, _ in rows]
    if len(lengths) != 1 or len(set(codes)) < len(codes) or len(rows) < 2:
        raise DataError(f"{path} is not a table of two or more classes with unique colours or labels; correct it.")
    order = sorted(range(len(codes)), key=codes.__getitem__)
    names = tuple(name for _, name in rows)
    return LabelMap(tuple(codes[index] for index in order), tuple(order), lengths == {3}, True, names)
