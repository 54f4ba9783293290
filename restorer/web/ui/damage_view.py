"""Event handlers that look for damage in the chosen photo, and mark what was repaired in a result."""

from functools import partial
from typing import Any

import cv2
import gradio as gr
import numpy as np

from ...images.photo import Photo
from ...progress import Progress
from .. import previews
from . import texts
from .restore_tab import RestoreTab, SelectedPhoto, Updates

_GLANCE = 1024  # largest side in pixels of the copy of a photo in which damage is looked for unasked


class DamageView:
    """Handlers that need the server's state."""

    def __init__(self, page: RestoreTab) -> None:
        self.page, self.service, self.components = page, page.service, page.components

    async def look(self, photo: SelectedPhoto | None, repair: bool) -> Updates:
        """Say whether damage is seen; with `repair`, let the page mark it."""
        c = self.components
        if photo is None:
            return {c.damage_map: ""}
        with self.service.user_errors():
            seen, file = await self.service.run(partial(self._look, photo, repair), lambda _: None)
            upload = self.page.upload_name(photo.path)
        return {
            c.repair: gr.Accordion(label=texts.REPAIR_SEEN if seen else texts.REPAIR),
            c.repair_message: texts.REPAIR_INFO if seen or not repair else texts.REPAIR_UNSURE,
            c.damage_map: f"{upload}|{file}" if file else "",
        }

    def _look(self, photo: SelectedPhoto, repair: bool, progress: Progress) -> tuple[bool, str]:
        """Return whether damage is seen with confidence and, with `repair`, the file of the probabilities."""
        from ...repair import damage

        decoded = self.service.decode(self.service.upload(photo.path))
        small = _reduced(decoded, previews.PREVIEW_SIDE if repair else _GLANCE)
        probability = self.page.restorer.find_damage(small, progress)
        sensitivity = self.page.restorer.options.repair_sensitivity
        seen = bool(damage.chosen(probability, sensitivity, confident=True).any())
        return seen, str(previews.write_damage(probability, self.service.new_folder())) if repair else ""

    def mark(self, shown: previews.ResultFiles | None, marked: bool) -> Any:  # noqa: ANN401  images or nothing
        """Show the photo with or without marks beside its result."""
        if shown is None or not shown.marked.is_file():
            return gr.skip()
        return str(shown.marked if marked else shown.before), str(shown.after)


def _reduced(photo: Photo, side: int) -> Photo:
    """Return the photo with sides of at most `side` pixels."""
    scale = side / max(photo.width, photo.height)
    if scale >= 1:
        return photo
    size = max(1, round(photo.width * scale)), max(1, round(photo.height * scale))

    def resized(samples: np.ndarray) -> np.ndarray:
        return cv2.resize(samples, size, interpolation=cv2.INTER_AREA)

    return Photo(resized(photo.pixels), None if photo.alpha is None else resized(photo.alpha), photo.meta)
