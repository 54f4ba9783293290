"""Event handlers of the first tab: from the values of its controls to what it shows."""

import shutil
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from ...errors import RestoreError
from ...images import encode
from ...images.photo import Photo
from ...models import registry, sources
from ...options import PRESETS, Options
from ...pipeline import Plan
from ...progress import Progress
from .. import previews
from ..service import Service
from ..worker import Step

QUALITY_INFO = "Best: most detail. Fast: shortest wait. Auto: chosen by the photo's size."
PRESET_NAMES = ["Auto", "Best", "Fast"]  # in the order of options.PRESETS
SIZE_INFO = "Scale of the photo's width and height"
START_MESSAGE = "Choose, drop or paste a photo to begin."
SAMPLES = sorted((Path(__file__).parents[3] / "assets/samples").glob("*.jpg"))
FORMAT_NAMES = {
    "same": "Same as the photo",
    "png": "PNG",
    "jpeg": "JPEG",
    "webp": "WebP",
    "tiff": "TIFF",
    "avif": "AVIF",
}
# The option controls, in the order in which handlers receive their values
FIELDS = (
    "preset",
    "outscale",
    "long_side",
    "print_size",
    "model",
    "denoise",
    "restore_faces",
    "face_model",
    "face_strength",
    "format",
    "quality",
    "max_bytes",
    "keep_metadata",
    "remove_gps",
)
# Those that the estimate depends on
ESTIMATE_FIELDS = (
    "preset",
    "outscale",
    "long_side",
    "print_size",
    "model",
    "denoise",
    "restore_faces",
    "format",
)


@dataclass(frozen=True)
class SelectedPhoto:
    """The path of an upload, and its size, depth and metadata without its samples (`outline`)."""

    path: str
    outline: Photo


@dataclass(frozen=True)
class Failure:
    """Why a photo could not be restored. No two are equal, as a State reports only changes."""

    message: str
    id: str = field(default_factory=lambda: uuid.uuid4().hex)


class RestoreTab:
    """Handlers that need the server's state. `*values` are the values of FIELDS."""

    def __init__(self, service: Service) -> None:
        self.service, self.restorer, self.settings = service, service.restorer, service.settings

    # Estimates

    def picked(self, path: str | None, *values: object) -> tuple:
        """Show an upload and the estimate of its result."""
        photo, preview, message = None, None, START_MESSAGE
        if path:
            try:
                decoded = self.service.decode(self.service.upload(path))
                preview = previews.preview(decoded, self.settings.processed_folder)
                photo = SelectedPhoto(path, _outline(decoded))
            except RestoreError as error:
                message = f"⚠ {self.service.user_message(error)}"
        message, possible = self._estimate(photo, values) if photo else (message, False)
        presets = self._presets(photo, values) if photo else gr.Radio(choices=preset_choices())
        image = gr.Image(str(preview) if preview else None, visible=bool(preview))
        buttons = gr.Button(visible=True, interactive=possible), presets, gr.Button(visible=False)
        hidden = gr.update(visible=False)
        preview_button = gr.Button("Preview a detail", interactive=True)
        crop = gr.Column(visible=bool(preview)), hidden, hidden, hidden, hidden, preview_button, ""
        # hides the previous result, as a State that is set without the queue triggers no change event
        return photo, image, message, *buttons, *crop, None, "", *[hidden] * 5

    def estimate(self, photo: SelectedPhoto | None, *values: object) -> tuple[Any, Any, Any]:
        """Show size, model, tiles, time and cost of the result, or an error; and each preset's time."""
        if photo is None:
            return gr.skip(), gr.skip(), gr.skip()
        message, possible = self._estimate(photo, values)
        return message, gr.Button(interactive=possible), self._presets(photo, values)

    def measure(self, photo: SelectedPhoto | None, *values: object) -> tuple[Any, Any, Any]:
        """Update the estimate after loading and timing the model, which may take seconds."""
        if photo:
            with suppress(RestoreError):  # the estimate reports it
                pixels = photo.outline.width * photo.outline.height
                self.restorer.measure(pixels, **vars(self.options(values, photo.outline)))
        return self.estimate(photo, *values)

    def _presets(self, photo: SelectedPhoto, values: tuple[object, ...]) -> gr.Radio:
        """Return the choices of Quality, each with its time if known."""
        choices = []
        for preset, name in zip(PRESETS, PRESET_NAMES, strict=True):
            seconds = self._seconds(photo, values, preset)
            choices.append((name if seconds is None else f"{name} · {_duration(seconds)}", preset))
        return gr.Radio(choices=choices)

    def _seconds(self, photo: SelectedPhoto, values: tuple[object, ...], model: str) -> float | None:
        """Return the estimated time with another model; None if unknown."""
        try:
            options = replace(self.options(values, photo.outline), model=model)
            return self.restorer.plan(photo.outline, **vars(options)).seconds
        except RestoreError:
            return None

    def _estimate(self, photo: SelectedPhoto, values: tuple[object, ...]) -> tuple[str, bool]:
        """Return the estimate or an error as text, and whether the photo can be restored."""
        try:
            options = self.options(values, photo.outline)
            plan = self.restorer.plan(photo.outline, **vars(options))
            text = self._plan_text(photo.outline, plan, options)
            if plan.reason:
                seconds = self._seconds(photo, values, "best")
                duration = "" if seconds is None else f", about {_duration(seconds)}"
                reason = plan.reason[0].upper() + plan.reason[1:]
                text += f"\n\n{reason}; choose Best for more detail{duration}."
            return text, True
        except RestoreError as error:
            return f"⚠ {self.service.user_message(error)}", False

    def _plan_text(self, before: Photo, plan: Plan, options: Options) -> str:
        image_format = FORMAT_NAMES[encode.output_format(before, options.format)]
        text = f"{before.width} × {before.height} → **{plan.width} × {plan.height}** {image_format}"
        text += f" · {plan.model.name}"
        warnings = "".join(f"\n- {warning}" for warning in plan.warnings)
        required = [plan.model]
        if options.denoise < 1:
            required.append(registry.find(plan.model.denoise_model, self.restorer.weights))
        if missing := [model for model in required if not sources.is_present(model, self.restorer.weights)]:
            return f"{text}, to download: {sum(model.bytes for model in missing) / 1e6:.0f} MB{warnings}"
        if plan.tiles is None or plan.seconds is None:
            return text + warnings
        with_faces = options.face_enhance != "off" and not self._missing_face_models()
        text += f" · {count(plan.tiles, 'tile')}, about {_duration(plan.seconds)}"
        text += " plus faces" if with_faces else ""
        if cost := self.service.cost(plan):
            text += f" · ${cost:.4f}"
        return text + warnings

    def stop(self, photo: SelectedPhoto | None, *values: object) -> str:
        message = self._estimate(photo, values)[0] if photo else START_MESSAGE
        return f"Stopped.\n\n{message}"

    def denoise_slider(self, model: str, preset: str, outscale: float) -> gr.Slider:
        """Show the denoise slider for models that support it."""
        if self.restorer.model(Options(model=model or preset, outscale=outscale)).denoise_model:
            return gr.Slider(visible=True)
        return gr.Slider(visible=False, value=Options.denoise)

    def model_label(self, model: registry.Model) -> str:
        """Return a model's name, purpose, and source of its weights."""
        source = sources.locate(model, self.restorer.weights)
        if source is None:
            return f"{model.name}: {model.about} ({model.bytes / 1e6:.1f} MB, to download)"
        checksum = f", SHA-256 {source.sha256[:12]}" if source.sha256 else ""
        return f"{model.name}: {model.about} ({source.bytes / 1e6:.1f} MB, {source.kind}{checksum})"

    def face_info(self) -> str:
        """Describe what the restoration of faces still needs to download."""
        names = {"detect": "the face detector", "face": "the face model"}
        missing = [
            f"{names[model.kind]} ({model.bytes / 1e6:.1f} MB)" for model in self._missing_face_models()
        ]
        if not missing:
            return "Detect and restore faces"
        download = f"The first use downloads {' and '.join(missing)}"
        return f"{download}; without a network, copy the files into the server's weights folder"

    def _missing_face_models(self) -> list[registry.Model]:
        weights, default = self.restorer.weights, self.restorer.options
        required = [(default.face_detector, "detect"), (default.face_model, "face")]
        models = [registry.find(name, weights, kind) for name, kind in required]
        return [model for model in models if not sources.is_present(model, weights)]

    def choose_sample(self, event: gr.SelectData) -> str:
        """Copy a sample photo into the upload folder and return its path."""
        path = self.settings.upload_folder / uuid.uuid4().hex / SAMPLES[event.index].name
        path.parent.mkdir(parents=True)
        return str(shutil.copyfile(SAMPLES[event.index], path))

    # Restoration

    async def restore(
        self,
        path: str,
        photo: SelectedPhoto | None,
        *values: object,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> previews.ResultFiles | Failure:
        """Restore an upload and report progress."""
        first_step = None
        estimated = self._seconds(photo, values, str(self.option_values(values)["model"])) if photo else None

        def report(step: Step) -> None:
            nonlocal first_step
            if step.total:
                first_step = first_step or (time.monotonic(), step.done)
                left = _time_left(first_step, step, estimated)
                progress((step.done, step.total), desc=f"Step {step.done} of {step.total}{left}")
            elif download := self.restorer.downloading:
                name, done, total = download
                progress((done, total), desc=f"Downloading {name}, {total / 1e6:.1f} MB")
            else:
                progress(None, desc="Preparing")

        try:
            task = partial(self._restore_and_cache, path, self.option_values(values))
            return await self.service.run(task, report)
        except Exception as error:  # noqa: BLE001  one job of the queue: the next one must run
            return Failure(self.service.user_message(error))

    def _restore_and_cache(
        self, path: str, options: dict[str, object], progress: Progress
    ) -> previews.ResultFiles:
        result, files = self.service.restore_upload(path, options, progress)
        previews.cache_result(result, files)
        return files

    def finish(
        self, outcome: previews.ResultFiles | Failure | None, photo: SelectedPhoto | None, *values: object
    ) -> tuple:
        """Reset the buttons after a run; hide the previous result unless there is a new one."""
        done = isinstance(outcome, previews.ResultFiles)
        hidden = [gr.skip() if done else gr.update(visible=False)] * 4
        faces = gr.Column(visible=isinstance(outcome, previews.ResultFiles) and bool(outcome.faces))
        if outcome is None or photo is None:  # another photo was chosen: picked() shows it
            return gr.skip(), gr.skip(), *hidden, faces, *[gr.skip()] * 4
        message, possible = self._estimate(photo, values)
        return (
            *([gr.skip()] * 2 if done else [gr.Image(visible=True), gr.Column(visible=True)]),
            *hidden,
            faces,
            f"⚠ {outcome.message}" if isinstance(outcome, Failure) else message,
            gr.Button(visible=True, interactive=possible),
            self._presets(photo, values),
            gr.Button(visible=False),
        )

    # Options

    def option_values(self, values: tuple[object, ...]) -> dict[str, object]:
        """Return the values of FIELDS as options by name, as Service.options() takes them."""
        options: dict[str, object] = dict(zip(FIELDS, values, strict=True))
        restore_faces, default = options.pop("restore_faces"), self.restorer.options.face_enhance
        options["face_enhance"] = "off" if not restore_faces else "auto" if default == "off" else default
        for name in ("long_side", "print_size", "max_bytes"):  # an empty field is None
            options[name] = options[name] or getattr(Options, name)
        options["model"] = options["model"] or options["preset"]
        del options["preset"]
        return options

    def options(self, values: tuple[object, ...], before: Photo) -> Options:
        """Return the values of FIELDS as Options for a photo."""
        return self.service.options(self.option_values(values), before)


def size_radio(long_side: float | None, print_size: str) -> gr.Radio:
    """Disable Size if a long side in pixels or the size of a print overrides it."""
    if long_side or print_size:
        name = "Long side in pixels" if long_side else "Print size"
        return gr.Radio(interactive=False, info=f"Not used: {name} is set under More options")
    return gr.Radio(interactive=True, info=SIZE_INFO)


def preset_choices() -> list[tuple[str, str]]:
    """Return the choices of Quality while no photo is selected."""
    return list(zip(PRESET_NAMES, PRESETS, strict=True))


def preset_radio(model: str) -> gr.Radio:
    return gr.Radio(**preset_state(model))


def preset_state(model: str) -> dict[str, Any]:
    """Return the state of Quality, which is disabled if a model is chosen."""
    if model:
        return {"interactive": False, "info": f"Not used: {model} is chosen under More options"}
    return {"interactive": True, "info": QUALITY_INFO}


def quality_slider(image_format: str) -> gr.Slider:
    """Show the file quality for lossy formats."""
    return gr.Slider(visible=image_format not in ("png", "tiff"))


def gps_checkbox(keep_metadata: bool) -> gr.Checkbox:
    return gr.Checkbox(visible=keep_metadata)


def face_controls(restore_faces: bool) -> tuple[gr.Dropdown, gr.Slider]:
    return gr.Dropdown(visible=restore_faces), gr.Slider(visible=restore_faces)


def show_stop() -> tuple[gr.Button, gr.Button]:
    """Replace the start button by the stop button."""
    return gr.Button(visible=False), gr.Button(visible=True)


def show_start() -> tuple[gr.Button, gr.Button]:
    """Replace the stop button by the start button."""
    return gr.Button(visible=True), gr.Button(visible=False)


def clear() -> tuple:
    """Reset the state and the buttons when the upload changes."""
    start = gr.Button(visible=True, interactive=False)
    return None, None, "", start, gr.Radio(choices=preset_choices()), gr.Button(visible=False)


def parse_position(text: str) -> tuple[float, float]:
    """Parse "x,y", each clipped to 0 to 1; return the centre if invalid, as any client may send it."""
    try:
        x, y = (min(max(float(part), 0.0), 1.0) for part in text.split(","))
    except ValueError:
        return 0.5, 0.5
    return (x, y) if x == x and y == y else (0.5, 0.5)


def count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _outline(photo: Photo) -> Photo:
    """Replace a photo's samples by views of a single sample, which take no memory."""
    pixels = np.broadcast_to(np.zeros((), photo.pixels.dtype), photo.pixels.shape)
    alpha = None if photo.alpha is None else np.broadcast_to(photo.alpha.min(), photo.alpha.shape)
    return replace(photo, pixels=pixels, alpha=alpha)


def _time_left(first_step: tuple[float, int], step: Step, estimated: float | None) -> str:
    """Return the time left, from the rate since the first step or, before a second one, from the estimate.

    first_step  its time, by time.monotonic(), and steps done by then
    estimated   seconds in total
    """
    start, first = first_step
    elapsed = time.monotonic() - start
    if step.done > first:
        left = elapsed / (step.done - first) * (step.total - step.done)
    elif estimated and estimated > elapsed:
        left = estimated - elapsed
    else:
        return ""
    return f", about {_duration(left)} left"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
