"""What the page does when something is chosen or clicked: from the controls' values to what they show."""

import shutil
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, replace
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

QUALITY = "Best has the most detail, Fast the shortest wait; Auto chooses by the photo's size"
PRESET_NAMES = ["Auto", "Best", "Fast"]  # of options.PRESETS
TIMES = "Times the photo's width and height"
START = "Choose, drop or paste a photo to begin."
SAMPLES = sorted((Path(__file__).parents[3] / "assets/samples").glob("*.jpg"))
FORMAT_NAMES = {
    "same": "As the photo",
    "png": "PNG",
    "jpeg": "JPEG",
    "webp": "WebP",
    "tiff": "TIFF",
    "avif": "AVIF",
}
# The controls, in the order in which the handlers are given their values
FIELDS = (
    "preset",
    "outscale",
    "long_side",
    "model",
    "denoise",
    "restore_faces",
    "face_model",
    "face_strength",
    "format",
    "quality",
    "keep_metadata",
    "remove_gps",
)
# Of them, those the quote depends on
QUOTED = ("preset", "outscale", "long_side", "model", "denoise", "restore_faces", "format")


@dataclass(frozen=True)
class SelectedPhoto:
    """A photo that was chosen. outline: its size, depth and metadata, without its picture."""

    path: str
    outline: Photo


@dataclass(frozen=True)
class Failed:
    """Why a photo could not be restored; no two are equal, for a State tells only changes."""

    why: str
    mark: str


class RestoreTab:
    """The handlers that need something of the server.

    What those named *values are given are the values of FIELDS.
    """

    def __init__(self, service: Service) -> None:
        self.service, self.restorer, self.settings = service, service.restorer, service.settings

    # What will be made of a photo

    def picked(self, path: str | None, *values: object) -> tuple:
        """Another photo, with what will be made of it."""
        asked, shown, why = None, None, START
        if path:
            try:
                found = self.service.decode(self.service.upload(path))
                shown = previews.preview(found, self.settings.processed_folder)
                asked = SelectedPhoto(path, _outline(found))
            except RestoreError as error:
                why = f"⚠ {self.service.user_message(error)}"
        said, fine = self._foretold(asked, values) if asked else (why, False)
        presets = self._presets(asked, values) if asked else gr.Radio(choices=preset_choices())
        picture = gr.Image(str(shown) if shown else None, visible=bool(shown))
        buttons = gr.Button(visible=True, interactive=fine), presets, gr.Button(visible=False)
        hidden = gr.update(visible=False)
        again = gr.Button("Try a detail", interactive=True)
        trial = gr.Column(visible=bool(shown)), hidden, hidden, hidden, hidden, again, ""
        # what there is of the photo before goes too: a State set without the queue tells nobody of its change
        return asked, picture, said, *buttons, *trial, None, "", *[hidden] * 5

    def quoted(self, asked: SelectedPhoto | None, *values: object) -> tuple[Any, Any, Any]:
        """Size, model, tiles, time and cost of the result, or why there can be none; each preset's time."""
        if asked is None:
            return gr.skip(), gr.skip(), gr.skip()
        said, fine = self._foretold(asked, values)
        return said, gr.Button(interactive=fine), self._presets(asked, values)

    def measured(self, asked: SelectedPhoto | None, *values: object) -> tuple[Any, Any, Any]:
        """The quote again once the model is loaded and timed, which may take seconds."""
        if asked:
            with suppress(RestoreError):  # the quote says it
                pixels = asked.outline.width * asked.outline.height
                self.restorer.measure(pixels, **vars(self.options(values, asked.outline)))
        return self.quoted(asked, *values)

    def _presets(self, asked: SelectedPhoto, values: tuple[object, ...]) -> gr.Radio:
        """The choices of Quality, each with its time where that is known."""
        choices = []
        for preset, name in zip(PRESETS, PRESET_NAMES, strict=True):
            seconds = self._seconds(asked, values, preset)
            choices.append((name if seconds is None else f"{name} · {_duration(seconds)}", preset))
        return gr.Radio(choices=choices)

    def _seconds(self, asked: SelectedPhoto, values: tuple[object, ...], model: str) -> float | None:
        """The time that the photo takes with another model; None where it is not known."""
        try:
            options = replace(self.options(values, asked.outline), model=model)
            return self.restorer.plan(asked.outline, **vars(options)).seconds
        except RestoreError:
            return None

    def _foretold(self, asked: SelectedPhoto, values: tuple[object, ...]) -> tuple[str, bool]:
        """The quote, or why the photo cannot be restored so, and whether it can."""
        try:
            options = self.options(values, asked.outline)
            plan = self.restorer.plan(asked.outline, **vars(options))
            said = self._quote(asked.outline, plan, options)
            if plan.reason:
                seconds = self._seconds(asked, values, "best")
                about = "" if seconds is None else f", about {_duration(seconds)}"
                said += f"\n\n{plan.reason[0].upper()}{plan.reason[1:]}; choose Best for more detail{about}."
            return said, True
        except RestoreError as error:
            return f"⚠ {self.service.user_message(error)}", False

    def _quote(self, before: Photo, plan: Plan, options: Options) -> str:
        apart = ", and faces" if options.face_enhance != "off" and not self._faces_missing() else ""
        form = FORMAT_NAMES[encode.output_format(before, options.format)]
        said = f"{before.width} × {before.height} → **{plan.width} × {plan.height}** {form}"
        said += f" · {plan.model.name}"
        warned = "".join(f"\n- {warning}" for warning in plan.warnings)
        needed = [plan.model]
        if options.denoise < 1:
            needed.append(registry.find(plan.model.pair, self.restorer.weights))
        if absent := [one for one in needed if not sources.is_present(one, self.restorer.weights)]:
            return f"{said}, to download: {sum(model.bytes for model in absent) / 1e6:.0f} MB{warned}"
        if plan.tiles is None or plan.seconds is None:
            return said + warned
        said += f" · {count(plan.tiles, 'tile')}, about {_duration(plan.seconds)}{apart}"
        if cost := self.service.cost(plan):
            said += f" · {cost:.4f} $"
        return said + warned

    def stopped(self, asked: SelectedPhoto | None, *values: object) -> str:
        """What the page says when Stop was pressed."""
        said = self._foretold(asked, values)[0] if asked else START
        return f"Stopped.\n\n{said}"

    def denoise(self, model: str, preset: str, outscale: float) -> gr.Slider:
        """The denoise slider is there for the models that have it."""
        if self.restorer.model(Options(model=model or preset, outscale=outscale)).pair:
            return gr.Slider(visible=True)
        return gr.Slider(visible=False, value=Options.denoise)

    def about(self, model: registry.Model) -> str:
        """A model's line in the list: name, what for, and where its weights come from."""
        source = sources.locate(model, self.restorer.weights)
        if source is None:
            return f"{model.name}: {model.about} ({model.bytes / 1e6:.1f} MB, to download)"
        checked = f", SHA-256 {source.sha256[:12]}" if source.sha256 else ""
        return f"{model.name}: {model.about} ({source.bytes / 1e6:.1f} MB, {source.kind}{checked})"

    def face_help(self) -> str:
        """Whether faces can be restored at once, and what to do if not."""
        missing = [f"{model.name} ({model.bytes / 1e6:.1f} MB)" for model in self._faces_missing()]
        if not missing:
            return "Finds faces and restores them"
        needed = " and ".join(missing)
        return f"Needs {needed}: fetched when first used; without a network, put the file into weights/"

    def _faces_missing(self) -> list[registry.Model]:
        weights, default = self.restorer.weights, self.restorer.options
        needed = [(default.face_detector, "detect"), (default.face_model, "face")]
        found = [registry.find(name, weights, kind) for name, kind in needed]
        return [model for model in found if not sources.is_present(model, weights)]

    def sample(self, event: gr.SelectData) -> str:
        """One of the samples as if it had been uploaded."""
        path = self.settings.upload_folder / uuid.uuid4().hex / SAMPLES[event.index].name
        path.parent.mkdir(parents=True)
        return str(shutil.copyfile(SAMPLES[event.index], path))

    # One photo

    async def restore(
        self,
        path: str,
        asked: SelectedPhoto | None,
        *values: object,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> AsyncIterator[object]:
        """Restore the upload, telling tiles and yielding twice a second: what stops it, stops it here."""
        since = None
        expected = self._seconds(asked, values, str(self.given(values)["model"])) if asked else None
        try:
            async for step in self.service.worker.steps(partial(self._kept, path, self.given(values))):
                if not isinstance(step, Step):
                    yield step
                    return
                self.service.touch(path)
                if step.place:
                    progress(None, desc=f"Waiting, {step.place} before you")
                elif step.total:
                    since = since or (time.monotonic(), step.done)
                    left = _left(since, step, expected)
                    progress((step.done, step.total), desc=f"Step {step.done} of {step.total}{left}")
                elif download := self.restorer.downloading:
                    name, done, total = download
                    progress((done, total), desc=f"Downloading {name}, {total / 1e6:.1f} MB")
                else:
                    progress(None, desc="Preparing")  # its turn, the photo, the model
                yield gr.skip()
        except Exception as error:  # noqa: BLE001  one job of the queue: the next one must have its turn
            yield _failed(self.service.user_message(error))

    def _kept(self, path: str, given: dict[str, object], progress: Progress) -> previews.ResultFiles:
        result, shown = self.service.restore_upload(path, given, progress)
        previews.cache_result(result, shown)
        return shown

    def show(
        self, made: previews.ResultFiles | Failed | None, asked: SelectedPhoto | None, *values: object
    ) -> tuple:
        """The buttons as they are when nothing is under way; what there is of an earlier result is hidden."""
        done = isinstance(made, previews.ResultFiles)
        hidden = [gr.skip() if done else gr.update(visible=False)] * 4
        faces = gr.Column(visible=isinstance(made, previews.ResultFiles) and bool(made.faces))
        if made is None or asked is None:  # another photo, which picked() shows
            return gr.skip(), gr.skip(), *hidden, faces, *[gr.skip()] * 4
        said, fine = self._foretold(asked, values)
        return (
            *([gr.skip()] * 2 if done else [gr.Image(visible=True), gr.Column(visible=True)]),
            *hidden,
            faces,
            f"⚠ {made.why}" if isinstance(made, Failed) else said,
            gr.Button(visible=True, interactive=fine),
            self._presets(asked, values),
            gr.Button(visible=False),
        )

    # What the controls say

    def given(self, values: tuple[object, ...]) -> dict[str, object]:
        """The options by name."""
        given: dict[str, object] = dict(zip(FIELDS, values, strict=True))
        wanted, enhance = given.pop("restore_faces"), self.restorer.options.face_enhance
        given["face_enhance"] = "off" if not wanted else "auto" if enhance == "off" else enhance
        given["long_side"] = given["long_side"] or 0
        given["model"] = given["model"] or given["preset"]
        del given["preset"]
        return given

    def options(self, values: tuple[object, ...], before: Photo) -> Options:
        """What the restorer is asked for."""
        return self.service.options(self.given(values), before)


def sized(long_side: float | None) -> gr.Radio:
    """The size in times means nothing where a long side is given."""
    if long_side:
        return gr.Radio(interactive=False, info="Not used: a long side in pixels is given")
    return gr.Radio(interactive=True, info=TIMES)


def preset_choices() -> list[tuple[str, str]]:
    """Quality as long as there is no photo."""
    return list(zip(PRESET_NAMES, PRESETS, strict=True))


def exact(model: str) -> gr.Radio:
    """Quality means nothing where an exact model is chosen."""
    return gr.Radio(**quality_state(model))


def quality_state(model: str) -> dict[str, Any]:
    """What the control says and whether it can be used, by the exact model that is chosen, if any."""
    if model:
        return {"interactive": False, "info": f"Not used: {model} is chosen under More options"}
    return {"interactive": True, "info": QUALITY}


def lossy(form: str) -> gr.Slider:
    return gr.Slider(visible=form not in ("png", "tiff"))


def kept_metadata(kept: bool) -> gr.Checkbox:
    return gr.Checkbox(visible=kept)


def busy() -> tuple[gr.Button, gr.Button]:
    return gr.Button(visible=False), gr.Button(visible=True)


def dropped() -> tuple:
    """Nothing holds any more: another photo is on its way."""
    start = gr.Button(visible=True, interactive=False)
    return None, None, "", start, gr.Radio(choices=preset_choices()), gr.Button(visible=False)


def idle() -> tuple[gr.Button, gr.Button]:
    return gr.Button(visible=True), gr.Button(visible=False)


def faces_wanted(wanted: bool) -> tuple[gr.Dropdown, gr.Slider]:
    """What is chosen about faces is there where faces are looked for."""
    return gr.Dropdown(visible=wanted), gr.Slider(visible=wanted)


def _outline(found: Photo) -> Photo:
    """The photo's size, depth and metadata with a picture of one repeated sample, which takes no memory."""
    pixels = np.broadcast_to(np.zeros((), found.pixels.dtype), found.pixels.shape)
    alpha = None if found.alpha is None else np.broadcast_to(found.alpha.min(), found.alpha.shape)
    return replace(found, pixels=pixels, alpha=alpha)


def _failed(why: str) -> Failed:
    return Failed(why, uuid.uuid4().hex)


def spot_of(text: str) -> tuple[float, float]:
    """The two shares that the page or a program sends; what is none is the middle."""
    try:
        x, y = (min(max(float(part), 0.0), 1.0) for part in text.split(","))
    except ValueError:
        return 0.5, 0.5
    return (x, y) if x == x and y == y else (0.5, 0.5)


def count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _left(since: tuple[float, int], step: Step, expected: float | None) -> str:
    """The time that is left at the pace since the first step that was seen; before, of the expected time."""
    start, first = since
    elapsed = time.monotonic() - start
    if step.done > first:
        left = elapsed / (step.done - first) * (step.total - step.done)
    elif expected and expected > elapsed:
        left = expected - elapsed
    else:
        return ""
    return f", about {_duration(left)} left"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
