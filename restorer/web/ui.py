"""The page: what is on it and what happens on a click. The work is in work.py and in the package."""

import logging
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
from gradio import themes

from .. import models, photo
from ..errors import RestoreError, UnsupportedImage
from ..files import READABLE
from ..options import FORMATS, Options
from ..pipeline import Restorer, Result
from ..settings import Settings
from ..tiling import Progress
from . import work

STYLE = Path(__file__).with_name("style.css")
_TITLE = "Neural Image Restore"
# Everything that computes shares one worker
_DEVICE: dict[str, Any] = {"concurrency_id": "device", "concurrency_limit": 1}
_QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
_FORMAT_NAMES = {
    "same": "As the photo",
    "png": "PNG",
    "jpeg": "JPEG",
    "webp": "WebP",
    "tiff": "TIFF",
    "avif": "AVIF",
}
_SIZES = (1, 2, 3, 4, 6, 8)
_START = "Choose a photo to begin."
_FIELDS = (
    "outscale",
    "model",
    "denoise",
    "face_enhance",
    "face_model",
    "face_strength",
    "format",
    "quality",
    "keep_metadata",
    "remove_gps",
)


def theme() -> themes.Base:
    """Gradio's plain theme in the system's own fonts: none is fetched from elsewhere."""
    return themes.Base(
        primary_hue="teal",
        neutral_hue="stone",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    ).set(button_primary_background_fill="*primary_700", button_primary_background_fill_hover="*primary_800")


def build(restorer: Restorer, settings: Settings, workshop: work.Workshop) -> gr.Blocks:
    """The page, ready for server.py to queue and serve."""
    page = _Page(restorer, settings, workshop)
    with gr.Blocks(title=_TITLE, analytics_enabled=False, delete_cache=(1800, 3600)) as blocks:
        gr.Markdown(f"# {_TITLE}\nMakes old, small and damaged photos large and clear.", elem_id="title")
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                upload = gr.File(label="Photo", file_types=_endings(), height=150, elem_id="upload")
                said = gr.Markdown(_START, elem_id="said")
                start = gr.Button("Restore", variant="primary", interactive=False, elem_id="start")
                stop = gr.Button("Stop", variant="stop", visible=False, elem_id="stop")
                download = gr.DownloadButton("Download", visible=False, variant="primary", elem_id="download")
                fields = _option_fields(page)
            with gr.Column(scale=3, min_width=320):
                slider = gr.ImageSlider(
                    label="Before and after",
                    type="filepath",
                    interactive=False,
                    buttons=["fullscreen"],
                    max_height=720,
                    elem_id="slider",
                )
        given = [upload, *(fields[name] for name in _FIELDS)]
        outputs = [slider, said, start, stop, download]
        run = start.click(_busy, None, [start, stop, download], **_QUIET).then(
            page.restore, given, outputs, show_progress_on=slider, api_visibility="private", **_DEVICE
        )
        stop.click(_stopped, None, [said, start, stop], cancels=run, queue=False, **_QUIET)
        upload.change(page.picked, given, outputs, cancels=run, **_QUIET)
        for name in ("model", "outscale", "format"):
            fields[name].change(page.chosen, given, [said, start, download], **_QUIET)
        fields["face_enhance"].change(
            _faces, fields["face_enhance"], [fields["face_model"], fields["face_strength"]], **_QUIET
        )
        for name in ("model", "outscale"):
            fields[name].change(
                page.denoise, [fields["model"], fields["outscale"]], fields["denoise"], **_QUIET
            )
    return blocks


class _Page:
    """The handlers. What they are given, after the upload's path, are the values of _option_fields()."""

    def __init__(self, restorer: Restorer, settings: Settings, workshop: work.Workshop) -> None:
        self.restorer, self.settings, self.workshop = restorer, settings, workshop

    def picked(self, path: str | None, *values: object) -> tuple:
        """Another photo: what was made of the one before is no longer shown."""
        said, fine = self._described(path, values)
        start = gr.Button(visible=True, interactive=fine)
        return None, said, start, gr.Button(visible=False), gr.DownloadButton(visible=False)

    def chosen(self, path: str | None, *values: object) -> tuple[str, gr.Button, gr.DownloadButton]:
        """What will be made of the photo, or why nothing can."""
        said, fine = self._described(path, values)
        return said, gr.Button(interactive=fine), gr.DownloadButton(visible=False)

    def denoise(self, model: str, outscale: float) -> gr.Slider:
        """The denoise slider is there for the models that have it."""
        if self.restorer.model(Options(model=model, outscale=outscale)).pair:
            return gr.Slider(visible=True)
        return gr.Slider(visible=False, value=Options.denoise)

    async def restore(
        self,
        path: str,
        *values: object,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> AsyncIterator[tuple]:
        """Restore the upload, telling tiles and yielding twice a second: what stops it, stops it here."""
        try:
            async for step in self.workshop.steps(partial(self._made, path, _options(values))):
                if not isinstance(step, work.Step):
                    yield step
                    return
                if step.total:
                    progress((step.done, step.total), desc="Restoring", unit="tiles")
                else:
                    progress(None, desc="Preparing")  # its turn, the photo, the model
                yield tuple(gr.skip() for _ in range(5))
        except RestoreError as error:
            yield _failed(str(error))
        except Exception:  # noqa: BLE001  one job of the queue: the next one must have its turn
            logging.getLogger(__name__).exception("a restoration failed")
            yield _failed("something went wrong; the server's log says what")

    def _made(self, path: str, options: Options, progress: Progress) -> tuple:
        result = self.restorer.restore(self._upload(path), progress=progress, **vars(options))
        return self._done(result, path, options.outscale)

    def _done(self, result: Result, path: str, outscale: float) -> tuple:
        shown = work.store(result, Path(path).name, outscale, self.settings.processed_folder)
        size = len(result.data) / 1e6
        said = f"**{result.width} × {result.height}** · {result.model} · {result.seconds:.1f} s"
        if result.faces and result.face_note not in result.warnings:
            said += f" · {result.face_note}"
        said += "".join(f"\n- {warning}" for warning in result.warnings)
        label = f"Download {_FORMAT_NAMES[result.format]}, {size:.1f} MB"
        return (
            (str(shown.before), str(shown.after)),
            said,
            gr.Button(visible=True),
            gr.Button(visible=False),
            gr.DownloadButton(label, value=str(shown.file), visible=True),
        )

    def _described(self, path: str | None, values: tuple[object, ...]) -> tuple[str, bool]:
        if not path:
            return _START, False
        try:
            options = _options(values)
            found = photo.decode(self._upload(path), max_pixels=self.settings.limits.input_pixels)
            width, height = self.restorer.result_size(found, options)
            model = self.restorer.model(options)
        except RestoreError as error:
            return f"⚠ {error}", False
        here = (
            ""
            if models.is_present(model, self.restorer.weights)
            else f", to download: {model.bytes / 1e6:.0f} MB"
        )
        return f"{found.width} × {found.height} → **{width} × {height}** · {model.name}{here}", True

    def _upload(self, path: str | None) -> bytes:
        """The upload's bytes. Gradio hands over any path that a program sends, and deletes old uploads."""
        real = Path(path or "").resolve()
        if not real.is_relative_to(self.settings.upload_folder):
            raise UnsupportedImage("this is not an uploaded file")
        try:
            return real.read_bytes()
        except OSError as error:
            raise UnsupportedImage("the upload is no longer there; choose the photo again") from error


def _option_fields(page: _Page) -> dict[str, Any]:
    default = page.restorer.options
    names = [model.name for model in models.available(page.restorer.weights) if model.kind == "upscale"]
    with gr.Accordion("Options", open=False, elem_id="options"):
        return {
            "outscale": gr.Radio(
                [(f"{times}x", times) for times in _SIZES],
                value=default.outscale,
                label="Size",
                info="Times the photo's width and height",
                elem_id="outscale",
            ),
            "model": gr.Dropdown(["auto", *names], value=default.model, label="Model", elem_id="model"),
            "denoise": gr.Slider(
                0,
                1,
                default.denoise,
                label="Denoise",
                info="Less keeps more grain",
                visible=bool(page.restorer.model(default).pair),
                elem_id="denoise",
            ),
            "face_enhance": gr.Radio(
                [("Where possible", "auto"), ("Always", "on"), ("Never", "off")],
                value=default.face_enhance,
                label="Restore faces",
                elem_id="face_enhance",
            ),
            "face_model": gr.Dropdown(
                [model.name for model in models.MODELS if model.kind == "face"],
                value=default.face_model,
                label="Face model",
                visible=default.face_enhance != "off",
                elem_id="face_model",
            ),
            "face_strength": gr.Slider(
                0,
                1,
                default.face_strength,
                label="Face strength",
                info="Less keeps more of the face as it was",
                visible=default.face_enhance != "off",
                elem_id="face_strength",
            ),
            "format": gr.Dropdown(
                [(_FORMAT_NAMES[form], form) for form in FORMATS],
                value=default.format,
                label="File format",
                elem_id="format",
            ),
            "quality": gr.Slider(
                1,
                100,
                default.quality,
                step=1,
                label="Quality",
                info="Of JPEG, WebP and AVIF",
                elem_id="quality",
            ),
            "keep_metadata": gr.Checkbox(
                default.keep_metadata,
                label="Keep metadata",
                info="Date, camera, caption",
                elem_id="keep_metadata",
            ),
            "remove_gps": gr.Checkbox(
                default.remove_gps, label="Remove GPS", info="Where it was taken", elem_id="remove_gps"
            ),
        }


def _options(values: tuple[object, ...]) -> Options:
    return Options(**dict(zip(_FIELDS, values, strict=True)))  # type: ignore[arg-type]


def _faces(enhance: str) -> tuple[gr.Dropdown, gr.Slider]:
    """What is chosen about faces is there where faces are looked for."""
    return gr.Dropdown(visible=enhance != "off"), gr.Slider(visible=enhance != "off")


def _busy() -> tuple[gr.Button, gr.Button, gr.DownloadButton]:
    return gr.Button(visible=False), gr.Button(visible=True), gr.DownloadButton(visible=False)


def _stopped() -> tuple[str, gr.Button, gr.Button]:
    return "Stopped.", gr.Button(visible=True), gr.Button(visible=False)


def _failed(why: str) -> tuple:
    return (
        None,
        f"⚠ {why}",
        gr.Button(visible=True),
        gr.Button(visible=False),
        gr.DownloadButton(visible=False),
    )


def _endings() -> list[str]:
    return ["image", *(suffix for suffixes in READABLE.values() for suffix in suffixes)]
