"""Event handlers that detect damage in the chosen photo, and mark what was repaired in a result."""

from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from ...images.photo import Photo
from ...images.resample import shrunk
from ...options import Options
from ...progress import Progress
from .. import previews
from . import texts
from .form import SelectedPhoto, Updates
from .restore_tab import RestoreTab


class DamageView:
    """Handlers that need the server's state."""

    def __init__(self, page: RestoreTab) -> None:
        self.page, self.service, self.components = page, page.service, page.components

    def choose(self, photo: SelectedPhoto | None, repair: bool) -> Updates:
        """Name the photo whose damage detect() marks: the selected one if it is to be repaired."""
        c = self.components
        if photo is None or not repair:
            return {c.damage_photo: "", c.damage_map: ""}
        return {c.damage_photo: self.page.upload_name(photo.path)}

    async def detect(self, upload: str, photo: SelectedPhoto | None) -> Updates:
        """Let the page mark the damage on the photo, and say whether some is seen with confidence."""
        c = self.components
        if photo is None or not upload:
            return {c.damage_map: ""}
        with self.service.user_errors():
            file, seen = await self.service.run(partial(self._detect, photo))
        return {
            c.repair: gr.Accordion(label=texts.repair(seen)),
            c.repair_message: texts.REPAIR_INFO if seen else texts.REPAIR_UNSURE,
            c.damage_map: f"{self.page.upload_name(photo.path)}|{file}",
        }

    def _detect(self, photo: SelectedPhoto, progress: Progress) -> tuple[Path, bool]:
        """Return the file of what is detected, and whether some is seen with confidence."""
        preview = _reduced(self.service.decode_upload(photo.path), previews.PREVIEW_SIDE)
        probability = self.page.restorer.find_damage(preview, progress)
        return previews.write_damage(probability, self.service.new_folder()), _is_seen(probability)

    def mark(self, shown: previews.ResultFiles | None, marked: bool) -> Any:  # noqa: ANN401  images or nothing
        """Show the photo with or without marks beside its result."""
        if shown is None or not shown.marked.is_file():
            return gr.skip()
        return str(shown.marked if marked else shown.before), str(shown.after)


def _is_seen(probability: np.ndarray) -> bool:
    from ...repair import damage  # torch

    return bool(damage.chosen(probability, Options.repair_sensitivity, confident=True).any())


def _reduced(photo: Photo, side: int) -> Photo:
    """Return the photo with sides of at most `side` pixels."""
    alpha = None if photo.alpha is None else shrunk(photo.alpha, side)
    return Photo(shrunk(photo.pixels, side), alpha, photo.meta)
