"""SlotCon's slots as overlays: the prototype with the highest score in each cell.

Shapes: C channels, K prototypes, h x w cells, or pixels of an image.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.patches import Patch
from numpy.typing import NDArray
from torch import Tensor

from dovetail.errors import OptionsError
from dovetail.heads.slots import SlotOutput
from dovetail.networks.undisturbed import undisturbed
from dovetail.objectives.slots import SlotSpec
from dovetail.recipe import SameHead, Term
from dovetail.report.features import maps_of
from dovetail.report.pixels import as_view, shown
from dovetail.report.sheets import Sheet, blended, put_label, short
from dovetail.run.restored import Restored

# Colours of Okabe and Ito. Further slots are grey, because more colours would be indistinguishable.
COLOURS = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7")
REST = (128, 128, 128)
LEAST_LABELLED = 0.05  # fraction of an image's cells


def slot_sheet(run: Restored, names: Sequence[str], crops: Sequence[Tensor]) -> dict[str, Sheet]:
    """Return a sheet with the slots of each term, by term name.

    Raises:
        OptionsError: The recipe has no slots.
    """
    terms = [term for term in run.recipe.terms if isinstance(term.objective, SlotSpec)]
    if not terms:
        raise OptionsError(
            f"The method {run.options.method} has no slots; use a run of slotcon or decon-sl, or `visualize pca`."
        )
    return {term.name: _sheet(run, term, names, crops) for term in terms}


def _sheet(run: Restored, term: Term, names: Sequence[str], crops: Sequence[Tensor]) -> Sheet:
    winners = np.stack([winning_slots(run, term, pixels) for pixels in crops])  # [N, h, w]
    slots, counts = np.unique(winners, return_counts=True)
    largest = slots[np.argsort(-counts, kind="stable")][: len(COLOURS)].tolist()
    share = {int(slot): count / winners.size for slot, count in zip(slots, counts, strict=True)}
    columns = min(len(names), 4)
    sheet = Sheet(
        2 * -(-len(names) // columns),
        columns,
        title=f"Slots of term {term.name} (tap {term.tap}) after {run.steps}: {counted(len(slots))}",
    )
    for number, (name, pixels, winner) in enumerate(zip(names, crops, winners, strict=True)):
        row, column = 2 * (number // columns), number % columns
        image = shown(pixels)
        sheet.show(row, column, image, title=short(name), smooth=True)
        axes = sheet.show(row + 1, column, blended(image, coloured_slots(winner, largest)))
        scale = len(image) / len(winner)
        for slot, (x, y) in label_places(winner, largest).items():
            put_label(axes, x * scale, y * scale, str(slot))
    handles = [
        Patch(color=colour, label=f"slot {slot}, {share[slot]:.0%}")
        for slot, colour in zip(largest, COLOURS, strict=False)
    ]
    rest = 1 - sum(share[slot] for slot in largest)
    handles += [Patch(color="#808080", label=f"others, {rest:.0%}")] if rest > 0 else []
    sheet.legend(handles, "fraction of cells")
    return sheet


def counted(slots: int) -> str:
    """Return a phrase with the number of slots in use."""
    return "all cells belong to 1 slot" if slots == 1 else f"{slots} slots in use"


def winning_slots(run: Restored, term: Term, pixels: Tensor) -> NDArray[np.int64]:
    """Return the prototype with the highest score in each cell [h, w] of an image [C, h, w]."""
    owner = term.head.term if isinstance(term.head, SameHead) else term.name
    maps = maps_of(run.after, as_view([pixels], run.recipe.views, run.after), [term.tap])[term.tap]
    head = run.branch.heads[owner]
    with undisturbed(head), torch.no_grad():
        output: SlotOutput = head.eval()(maps.to(next(head.parameters()).device))
    winner: NDArray[np.int64] = output.scores[0].argmax(dim=0).cpu().numpy()
    return winner


def coloured_slots(winner: NDArray[np.int64], largest: Sequence[int]) -> NDArray[np.uint8]:
    """Return the colour of each cell's slot, [h, w, 3]."""
    colours = np.empty((*winner.shape, 3), dtype=np.uint8)
    colours[:] = REST
    for slot, colour in zip(largest, COLOURS, strict=False):
        colours[winner == slot] = [int(colour[place : place + 2], 16) for place in (1, 3, 5)]
    return colours


def label_places(winner: NDArray[np.int64], slots: Sequence[int]) -> dict[int, tuple[float, float]]:
    """Return where to write the number of each slot, as (x, y) in cells of [h, w]: where its cells are densest.

    Slots with few cells are skipped, and so are those whose number would overlap that of a larger slot.
    """
    side = min(winner.shape)
    around = 2 * max(1, side // 12) + 1
    places: dict[int, tuple[float, float]] = {}
    for slot in slots:
        cells = torch.from_numpy(winner == slot).float()
        if float(cells.mean()) < LEAST_LABELLED:
            continue
        density = torch.nn.functional.avg_pool2d(cells[None, None], around, stride=1, padding=around // 2)[0, 0]
        row, column = divmod(int((density + 1e-3 * cells).argmax()), winner.shape[1])
        x, y = column + 0.5, row + 0.5
        if all((x - other_x) ** 2 + (y - other_y) ** 2 > (side / 8) ** 2 for other_x, other_y in places.values()):
            places[slot] = (x, y)
    return places
