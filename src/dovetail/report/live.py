"""Updates the report page every few minutes during a run, in the first process. Failures never stop the run."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger

from dovetail.report.features import ColouredMaps
from dovetail.report.page import Page, State
from dovetail.report.pictures_views import views_sheet
from dovetail.train.loggers import log_picture
from dovetail.train.step import LearnerModule

if TYPE_CHECKING:
    from dovetail.report.extras import Extra

MAP_PX = 224

log = logging.getLogger(__name__)


class ReportWriter(Callback):
    """Callback that writes the report page after the first reading, then every `every_minutes`, and at the end.

    Use it in the first process only. It does not communicate with other processes.
    """

    def __init__(self, page: Page, *, every_minutes: float) -> None:
        self.page = page
        self.every_minutes = every_minutes
        self._written_at: float | None = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write the page if it is due."""
        module = self._module(pl_module)
        first = self._written_at is None and module.settings.logs_after(module.steps_done)
        late = self._written_at is not None and time.perf_counter() - self._written_at >= 60 * self.every_minutes
        if (first or late) and module.steps_done < module.settings.total_steps:
            self._write(module, "running")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the final page, and pass its images to the loggers."""
        module = self._module(pl_module)
        done = module.steps_done >= module.settings.total_steps
        extras = self._extras(module)
        after = self._write(module, "finished" if done else "stopped", extras)
        try:
            self._show(trainer.loggers, after, extras, step=module.steps_done)
        except Exception as error:
            log.warning("The images of the page cannot be logged (%s: %s).", type(error).__name__, error)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Write a page that says that the run has stopped."""
        module = self._module(pl_module)
        self._write(module, "stopped", self._extras(module))

    def _write(self, module: LearnerModule, state: State, extras: Sequence[Extra] = ()) -> dict[str, ColouredMaps]:
        """Write the page. Failures are logged."""
        try:
            return self.page.write(module.learner.exported, state=state, step=module.steps_done, extras=extras)
        except Exception as error:  # a failure of the page must not stop the run
            log.warning("The report page cannot be written (%s: %s); training continues.", type(error).__name__, error)
            return {}
        finally:
            self._written_at = time.perf_counter()

    def _extras(self, module: LearnerModule) -> list[Extra]:
        """Return the optional sections of the page, or none if drawing them fails."""
        from dovetail.report.extras import extras_of
        from dovetail.run.restored import Restored

        subject, network = self.page.subject, module.learner.exported
        run = Restored(subject.folder, subject.options, subject.recipe, network, module.learner, module.steps_done)
        try:
            return extras_of(run, self.page.names, self.page.images)
        except Exception as error:
            log.warning("Slots and attention are missing on the report page (%s: %s).", type(error).__name__, error)
            return []

    def _show(
        self, loggers: Sequence[Logger], after: dict[str, ColouredMaps], extras: Sequence[Extra], *, step: int
    ) -> None:
        """Pass all images to all loggers."""
        pictures = {f"{extra.id}/{name}": sheet.pixels() for extra in extras for name, sheet in extra.sheets.items()}
        if self.page.examples:
            pictures["views"] = views_sheet(self.page.examples).pixels()
        for when, maps in (("before", self.page.before), ("after", after)):
            for tap, colours in maps.items():
                strip = np.concatenate([enlarged(picture) for picture in colours.pictures], axis=1)
                pictures[f"pca/{tap}/{when}"] = strip
        for logger in loggers:
            for name, pixels in pictures.items():
                log_picture(logger, name, pixels, step=step)

    def _module(self, module: LightningModule) -> LearnerModule:
        if not isinstance(module, LearnerModule):
            raise TypeError(f"expected a LearnerModule, got {type(module).__name__}")
        return module


def enlarged(picture: np.ndarray) -> np.ndarray:
    """Enlarge a map [h, w, 3] to a height of about `MAP_PX` by repeating its cells."""
    times = max(1, MAP_PX // picture.shape[0])
    return picture.repeat(times, axis=0).repeat(times, axis=1)
