"""Event handlers that restore a detail of a photo first: with the chosen options, or with every model."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import gradio as gr

from ...errors import BadWeights
from ...images import colour
from ...images.photo import Photo
from ...models import registry, sources
from ...options import Options
from ...progress import Progress
from ...result import Result
from .. import previews
from .form import SelectedPhoto
from .restore_tab import RestoreTab
from .result_view import parse_position

T = TypeVar("T")
_COMPARE: dict[str, Any] = {"value": "Compare models", "interactive": True}


class CropPreview:
    """Handlers that need the server's state. `*values` are the values of PhotoTab.fields.

    A position is "x,y", each 0 to 1; "" stands for the centre.
    """

    def __init__(self, page: RestoreTab) -> None:
        self.page = page

    async def preview_click(self, position: str, photo: SelectedPhoto | None, *values: object) -> tuple:
        """Preview the position that was clicked."""
        if not position:  # cleared, as the upload changed
            return gr.skip(), gr.skip(), reset_button()
        return await self.preview(position, photo, *values)

    async def preview(self, position: str, photo: SelectedPhoto | None, *values: object) -> tuple:
        """Show the detail before and after, restored with the current options."""
        if photo is None:
            return gr.skip(), gr.skip(), gr.skip()
        pair = await self._run(partial(self._restore, position, photo, values))
        return gr.ImageSlider(pair, visible=True), gr.Button(**_COMPARE, visible=True), reset_button()

    def _restore(
        self, position: str, photo: SelectedPhoto, values: tuple[object, ...], progress: Progress
    ) -> tuple[str, str]:
        options = self.page.form.options(values, photo.outline)
        return self._previews(self._restore_crops(self._crops(position, photo, options), options, progress))

    async def compare_models(self, position: str, photo: SelectedPhoto | None, *values: object) -> tuple:
        """Show the detail restored by every model that needs no download, and return their names."""
        if photo is None:
            return gr.skip(), gr.skip(), gr.skip(), reset_compare_button()
        images = await self._run(partial(self._restore_by_each_model, position, photo, values))
        gallery = gr.Gallery([(after, name) for name, after in images.items()], visible=True)
        message = gr.Markdown("Click an image to choose its model.", visible=True)
        return gallery, tuple(images), message, reset_compare_button()

    def _restore_by_each_model(
        self, position: str, photo: SelectedPhoto, values: tuple[object, ...], progress: Progress
    ) -> dict[str, str]:
        weights, images = self.page.restorer.weights, {}
        options = self.page.form.options(values, photo.outline)
        crops = self._crops(position, photo, options)
        for model in registry.available(weights):
            if model.kind != "upscale" or not sources.is_present(model, weights):
                continue
            with suppress(BadWeights):  # skip a custom file that is not a network
                denoise = options.denoise if model.denoise_model else Options.denoise
                chosen = replace(options, model=model.name, denoise=denoise, face_enhance="off")
                images[model.name] = self._previews(self._restore_crops(crops, chosen, progress))[1]
        return images

    def _crops(self, position: str, photo: SelectedPhoto, options: Options) -> tuple[Photo, Photo]:
        """Return the detail as it is, and with the colours that the whole photo is corrected to."""
        whole, spot = self.page.service.decode_upload(photo.path), parse_position(position)
        return previews.detail(whole, spot), previews.detail(colour.apply(whole, options), spot)

    def _restore_crops(self, crops: tuple[Photo, Photo], options: Options, progress: Progress) -> Result:
        chosen = replace(options, colour="off")
        return replace(
            self.page.restorer.restore(crops[1], progress=progress, **vars(chosen)), before=crops[0]
        )

    def _previews(self, result: Result) -> tuple[str, str]:
        before, after = previews.previews(result, self.page.service.new_folder())
        return str(before), str(after)

    async def _run(self, task: Callable[[Progress], T]) -> T:
        with self.page.service.user_errors(self.page.form.user_message):
            return await self.page.service.run(task)


def choose_model(names: tuple[str, ...], event: gr.SelectData) -> tuple[str, str]:
    return names[event.index], f"**{names[event.index]}** is chosen."


def disable_button(position: str = "?") -> Any:  # noqa: ANN401  a button or nothing
    """Disable the button while a preview runs; a cleared position ("") starts none."""
    return gr.Button("Working…", interactive=False) if position else gr.skip()


def reset_compare_button() -> gr.Button:
    return gr.Button(**_COMPARE)


def reset_button() -> gr.Button:
    return gr.Button("Preview a detail", interactive=True)
