"""A detail, before the minutes that all of a photo may take: with these options, or by every model."""

from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import gradio as gr

from ...errors import BadWeights
from ...images.photo import Photo
from ...models import registry, sources
from ...options import Options
from ...progress import Progress
from ...result import Result
from .. import previews
from ..worker import Step
from .restore_tab import RestoreTab, SelectedPhoto, spot_of

T = TypeVar("T")


class CropPreview:
    """What those named *values are given are the values of handlers.FIELDS."""

    def __init__(self, page: RestoreTab) -> None:
        self.page = page

    async def tried(self, spot: str, asked: SelectedPhoto | None, *values: object) -> AsyncIterator[tuple]:
        """A detail about the spot that was clicked, as these options would restore it."""
        if not spot:
            yield gr.skip(), gr.skip(), tried_out()
            return
        async for shown in self.tried_again(spot, asked, *values):
            yield shown

    async def tried_again(
        self, spot: str, asked: SelectedPhoto | None, *values: object
    ) -> AsyncIterator[tuple]:
        """The same detail with the options as they are now; where none was clicked, the middle."""
        async for pair in self._watched(self._detail, spot, asked, values):
            yield gr.ImageSlider(pair, visible=True), gr.Button(visible=True), tried_out()

    def _detail(
        self, spot: str, asked: SelectedPhoto, values: tuple[object, ...], progress: Progress
    ) -> tuple[str, str]:
        made = self.page.restorer.restore(
            self._part(spot, asked), progress=progress, **vars(self.page.options(values, asked.outline))
        )
        return self._previews(made)

    async def side_by_side(
        self, spot: str, asked: SelectedPhoto | None, *values: object
    ) -> AsyncIterator[tuple]:
        """The same detail through every model that is here, and their names."""
        async for made in self._watched(self._by_each_model, spot, asked, values):
            sheet = gr.Gallery([(after, name) for name, after in made.items()], visible=True)
            yield sheet, tuple(made), gr.Markdown("Click one to take its model.", visible=True)

    def _by_each_model(
        self, spot: str, asked: SelectedPhoto, values: tuple[object, ...], progress: Progress
    ) -> dict[str, str]:
        weights, made = self.page.restorer.weights, {}
        part, options = self._part(spot, asked), self.page.options(values, asked.outline)
        for model in registry.available(weights):
            if model.kind != "upscale" or not sources.is_present(model, weights):
                continue
            with suppress(BadWeights):  # a file of the user's that is no network has nothing to show
                denoise = options.denoise if model.pair else Options.denoise
                chosen = replace(options, model=model.name, denoise=denoise, face_enhance="off")
                result = self.page.restorer.restore(part, progress=progress, **vars(chosen))
                made[model.name] = self._previews(result)[1]
        return made

    def _part(self, spot: str, asked: SelectedPhoto) -> Photo:
        return previews.detail(self.page.service.decode(self.page.service.upload(asked.path)), spot_of(spot))

    def _previews(self, result: Result) -> tuple[str, str]:
        before, after = previews.previews(result, self.page.service.new_folder())
        return str(before), str(after)

    async def _watched(
        self, make: Callable[..., T], spot: str, asked: SelectedPhoto | None, values: tuple[object, ...]
    ) -> AsyncIterator[T]:
        """What `make` makes of the photo that was chosen, if one was; what stops this, stops it."""
        if asked is None:
            return
        with self.page.service.user_errors():
            async for step in self.page.service.worker.steps(partial(make, spot, asked, values)):
                if not isinstance(step, Step):
                    yield step


def took(names: tuple[str, ...], event: gr.SelectData) -> tuple[str, str]:
    return names[event.index], f"**{names[event.index]}** is chosen."


def trying(spot: str = "?") -> Any:  # noqa: ANN401  a button or nothing
    return gr.Button("Trying…", interactive=False) if spot else gr.skip()


def tried_out() -> gr.Button:
    return gr.Button("Try a detail", interactive=True)
