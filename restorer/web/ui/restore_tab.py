"""Event handlers of the first tab: choose a photo, estimate, restore, and come back to a job after a reload.

Handlers return updates by component; components that are left out stay as they are.
"""

import asyncio
import json
import shutil
import uuid
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import gradio as gr
import numpy as np

from ...atomic import write_atomic
from ...errors import RestoreError, UnsupportedImage
from ...estimate import Plan
from ...images.photo import Photo
from ...options import Options
from ...repair.pipeline import mask_of, mask_png
from .. import previews
from ..job_runner import JobRunner
from ..jobs import Job
from . import texts
from .components import SAMPLES, PhotoTab
from .fields import FIELDS
from .result_view import ResultView

_READY: dict[str, Any] = {"value": "Restore", "variant": "primary", "visible": True}
_AGAIN: dict[str, Any] = {"value": "Restore again", "variant": "secondary", "visible": True}
_CLEAN_STRENGTH = 0.5  # at 1x, where the photo's own detail counts; docs/colour.md has the figures
# The fields that a look sets, and those that the estimate depends on
SUGGESTED_FIELDS: tuple[str, ...] = ("outscale", "long_side", "print_size", "colour", "restore_faces")
ESTIMATE_FIELDS = (
    "preset",
    "outscale",
    "long_side",
    "print_size",
    "model",
    "denoise",
    "restore_faces",
    "format",
    "repair",
)
Updates = dict[Any, Any]


@dataclass(frozen=True)
class SelectedPhoto:
    """The path of an upload, and its size, depth and metadata without its samples (`outline`)."""

    path: str
    outline: Photo


class RestoreTab:
    """Handlers that need the server's state. `*values` are the values of FIELDS."""

    def __init__(self, runner: JobRunner, components: PhotoTab, view: ResultView) -> None:
        self.runner, self.service, self.components, self.view = runner, runner.service, components, view
        self.restorer, self.settings = runner.service.restorer, runner.service.settings
        self.retention = texts.period(runner.service.settings.retention_seconds)
        self.unchanged = {components.message: gr.skip()}  # Gradio accepts no empty dict
        self.unchanged_suggestion = {components.look: gr.skip()}

    # The photo

    def copy_sample(self, event: gr.SelectData) -> str:
        """Copy a sample photo into the upload folder and return its path."""
        return self._copy_upload(SAMPLES[event.index], SAMPLES[event.index].name)

    def _copy_upload(self, path: Path, name: str) -> str:
        copy = self.settings.upload_folder / uuid.uuid4().hex / name
        copy.parent.mkdir(parents=True)
        return str(shutil.copyfile(path, copy))

    async def pick(
        self, path: str | None, shown: SelectedPhoto | None, job_id: str, *values: object
    ) -> Updates:
        """Show an upload and the estimate of its result; cancel the job of the previous one.

        If an upload follows another before its answer, the first event already sees the second upload, and
        the second event must not cancel the job that was started meanwhile.
        """
        if path and shown and path == shown.path:
            return self.unchanged
        if job := self.runner.jobs.get(job_id):
            await self.runner.cancel(job)
        return await asyncio.to_thread(self._show_upload, path, values)

    def _show_upload(self, path: str | None, values: tuple[object, ...]) -> Updates:
        """Show an upload, or the example and what to do."""
        c, photo, preview, message = self.components, None, None, texts.START
        if path:
            try:
                decoded = self.service.decode_upload(path)
                preview = previews.preview(decoded, self.settings.processed_folder)
                photo = SelectedPhoto(path, _outline(decoded))
            except RestoreError as error:
                message = self.warning(error)
        return {
            **(self._estimate(photo, values, start=_READY) if photo else self._no_estimate(message)),
            c.selected: photo,
            c.samples: gr.Gallery(visible=photo is None),
            c.example: gr.Column(visible=photo is None),
            c.photo: gr.Image(str(preview) if preview else None, visible=photo is not None),
            c.stop: gr.Button(visible=False),
            c.look: gr.Markdown(visible=False),
            c.suggestion: None,
            c.crop_column: gr.Column(visible=photo is not None),
            c.preview: gr.Button("Preview a detail", interactive=True),
            **dict.fromkeys(
                [c.detail, c.compare, c.comparison, c.comparison_message], gr.update(visible=False)
            ),
            **dict.fromkeys([c.result_column, c.faces, c.outcome, c.back], gr.update(visible=False)),
            **dict.fromkeys([c.restored, c.shown]),
            **dict.fromkeys([c.zoom_position, c.crop_position, c.job, c.damage_map], ""),
            c.repair: gr.Accordion(label=texts.REPAIR),
            c.repair_message: texts.REPAIR_INFO,
            c.remembered: self.upload_name(photo.path) if photo else "",
        }

    def upload_name(self, path: str) -> str:
        """Return the path of an upload as the browser remembers it. Raises UnsupportedImage."""
        return str(self.service.upload_path(path).relative_to(self.settings.upload_folder))

    def show_look(self, photo: SelectedPhoto | None, job_id: str) -> Updates:
        """Show in one line what is wrong with a photo that waits, and what is suggested."""
        c = self.components
        if photo is None or job_id:
            return self.unchanged_suggestion
        try:
            seen = self.restorer.look(self.service.upload(photo.path))
        except RestoreError:  # the estimate reports it
            return self.unchanged_suggestion
        return {
            c.look: gr.Markdown(seen.line, visible=True),
            c.suggestion: _suggested_values(seen.options),
            c.repair: gr.Accordion(
                label=texts.repair(any(finding.name == "damage" for finding in seen.findings))
            ),
        }

    def offer_suggestions(self, suggestion: dict[str, Any] | None, *values: object) -> gr.Button:
        """Show the button that uses the suggestions if it would change something.

        values  of SUGGESTED_FIELDS
        """
        chosen = dict(zip(SUGGESTED_FIELDS, values, strict=True))
        changes = any(chosen[name] not in (value, None) for name, value in (suggestion or {}).items())
        return gr.Button(visible=changes)

    def use_suggestions(self, suggestion: dict[str, Any] | None) -> list[Any]:
        """Set SUGGESTED_FIELDS as a look suggests."""
        return [(suggestion or {}).get(name, gr.skip()) for name in SUGGESTED_FIELDS]

    # Estimates

    def estimate(self, photo: SelectedPhoto | None, *values: object) -> Updates:
        """Show size, quality, time and cost of the result, or an error; and each preset's time."""
        return self._estimate(photo, values) if photo else self.unchanged

    def measure(self, photo: SelectedPhoto | None, *values: object) -> Updates:
        """Update the estimate after loading and timing the model, which may take seconds."""
        if photo:
            with suppress(RestoreError):  # the estimate reports it
                pixels = photo.outline.width * photo.outline.height
                self.restorer.measure(pixels, **vars(self.options(values, photo.outline)))
        return self.estimate(photo, *values)

    def _estimate(
        self,
        photo: SelectedPhoto,
        values: tuple[object, ...],
        note: str = "",
        start: dict[str, Any] | None = None,
    ) -> Updates:
        """Return the updates of PhotoTab.estimate.

        note   precedes the estimate
        start  changes of the start button
        """
        c, before = self.components, photo.outline
        try:
            options = self.options(values, before)
            plan = self.restorer.plan(before, **vars(options))
            size = before.width, before.height
            text = texts.plan(plan, self.restorer, options, size, self.service.cost(plan))
            if plan.reason:
                text += f"\n\n{texts.better(plan, self._seconds(photo, values, 'best'))}"
            possible = True
        except RestoreError as error:
            text, possible = self.warning(error), False
        return {
            c.message: f"{note}\n\n{text}" if note else text,
            c.start: gr.update(interactive=possible, **(start or {})),
            c.fields["preset"]: self._presets(photo, values),
        }

    def _no_estimate(self, message: str) -> Updates:
        c = self.components
        return {
            c.message: message,
            c.start: gr.update(interactive=False, **_READY),
            c.fields["preset"]: gr.Radio(choices=texts.PRESET_CHOICES),
        }

    def _presets(self, photo: SelectedPhoto, values: tuple[object, ...]) -> gr.Radio:
        """Return the choices of Quality, each with its time if known."""
        choices = []
        for name, preset in texts.PRESET_CHOICES:
            seconds = self._seconds(photo, values, preset)
            choices.append((name if seconds is None else f"{name} · {texts.duration(seconds)}", preset))
        return gr.Radio(choices=choices)

    def _seconds(self, photo: SelectedPhoto, values: tuple[object, ...], model: str) -> float | None:
        """Return the estimated time with another model; None if unknown."""
        try:
            options = replace(self.options(values, photo.outline), model=model)
            plan: Plan = self.restorer.plan(photo.outline, **vars(options))
        except RestoreError:
            return None
        return plan.seconds

    def denoise_slider(self, model: str, preset: str, outscale: float) -> gr.Slider:
        """Show the denoise slider for models that support it."""
        if self.restorer.model(Options(model=model or preset, outscale=outscale)).denoise_model:
            return gr.Slider(visible=True)
        return gr.Slider(visible=False, value=Options.denoise)

    # Jobs

    async def start(self, photo: SelectedPhoto | None, own_mask: str, *values: object) -> Updates:
        """Submit a job; jobs.js follows it.

        own_mask  upload of a mask in any size that mask.js exported, "" to fill what is detected
        """
        c = self.components
        if photo is None:
            return self.unchanged
        try:
            options, mask = self.option_values(values), None
            if own_mask and options["repair"] != "off":
                mask = await asyncio.to_thread(self._full_size_mask, own_mask, photo.outline)
            job = await self.runner.start([photo.path], options, mask)
        except RestoreError as error:
            return {c.message: self.warning(error)}
        hidden = dict.fromkeys(
            [c.result_column, c.faces, c.outcome, c.back, c.crop_column], gr.update(visible=False)
        )
        return {
            **hidden,
            c.photo: gr.Image(visible=True),
            c.start: gr.Button(visible=False),
            c.stop: gr.Button(visible=True),
            c.job: job.id,
        }

    def _full_size_mask(self, own_mask: str, photo: Photo) -> Path:
        """Write an uploaded mask, enlarged to the photo's size. Raises RestoreError."""
        try:
            mask = mask_of(self.service.decode_upload(own_mask)).astype(np.uint8) * 255
        except UnsupportedImage as error:
            raise RestoreError("the marks could not be uploaded; try again") from error
        mask = cv2.resize(mask, (photo.width, photo.height), interpolation=cv2.INTER_LINEAR)
        file = self.settings.upload_folder / uuid.uuid4().hex / previews.MASK
        write_atomic(file, mask_png(mask > 127))
        return file

    async def stop(self, job_id: str) -> None:
        """Cancel a job; jobs.js reports its end."""
        if job := self.runner.jobs.get(job_id):
            await self.runner.cancel(job)

    def finish(
        self,
        ended: str,
        job_id: str,
        photo: SelectedPhoto | None,
        earlier: previews.ResultFiles | None,
        *values: object,
    ) -> Updates:
        """Show the result of a job that has ended, or why there is none.

        earlier  the photo's last result, which is shown again without a new one
        """
        c, job = self.components, self.runner.jobs.get(job_id)
        if photo is None or ended.partition(" ")[0] != job_id:  # another photo was chosen meanwhile
            return self.unchanged
        try:
            files = self.result(job)
        except RestoreError as error:
            note = self.warning(error)
            if job and job.state == "cancelled":
                note = "Stopped."
            ended_updates = {c.stop: gr.Button(visible=False), c.job: ""}
            with suppress(RestoreError):  # expired
                if earlier:
                    shown = self.view.show(earlier)
                    return {**self._estimate(photo, values, note, _AGAIN), **shown, **ended_updates}
            return {
                **self._estimate(photo, values, note, _READY),
                **dict.fromkeys([c.photo, c.crop_column], gr.update(visible=True)),
                **ended_updates,
            }
        return {
            **self._estimate(photo, values, start=_AGAIN),
            **self.view.show(files),
            c.stop: gr.Button(visible=False),
            c.restored: files,
        }

    def result(self, job: Job | None) -> previews.ResultFiles:
        """Return what a job's only photo became. Raises RestoreError if there is no result."""
        if job is None:
            raise RestoreError(
                f"the result has expired: results are kept for {self.retention}; restore the photo again"
            )
        item = job.items[0]
        if not item.result:
            raise RestoreError(item.error or "stopped")
        file = self.runner.jobs.result_folder(job, 0) / str(item.result["file"])
        return previews.written_files(item.name, file, self.settings.processed_folder)

    def resume(self, remembered: str, *values: object) -> Updates:
        """Show again what the browser remembers: a photo, and the job that restores it or did."""
        c, ids = self.components, parse_ids(remembered)
        job = self.runner.jobs.get(ids.get("job", ""))
        path = str(self.settings.upload_folder / ids["photo"]) if ids.get("photo") else None
        try:
            self.service.upload_path(path)
        except RestoreError:
            path = None
        if path is None and job and job.items:
            with suppress(OSError):
                path = self._copy_upload(self.runner.jobs.input_path(job, 0), Path(job.items[0].name).name)
        if path is None:
            if not ids.get("photo"):
                return self.unchanged
            message = f"Your last photo has expired: photos and results are kept for {self.retention}."
            return {c.message: message}
        updates = {**self._show_upload(path, values), c.upload: path}
        if not job:
            if ids.get("job"):
                note = f"The result has expired: results are kept for {self.retention}."
                updates[c.message] = f"{note}\n\n{updates[c.message]}"
            return updates
        if not job.ended:
            updates |= {c.start: gr.Button(visible=False), c.stop: gr.Button(visible=True)}
            updates[c.crop_column] = gr.Column(visible=False)
        return {**updates, c.job: job.id}

    def back(self) -> Updates:
        """Show the photo in place of its result, so that its marks can be corrected."""
        c = self.components
        hidden = dict.fromkeys([c.result_column, c.faces, c.outcome, c.back], gr.update(visible=False))
        return {**hidden, c.photo: gr.Image(visible=True), c.crop_column: gr.Column(visible=True)}

    # Options

    def option_values(self, values: tuple[object, ...]) -> dict[str, object]:
        """Return the values of FIELDS as options by name, as Service.options() takes them."""
        options: dict[str, object] = dict(zip(FIELDS, values, strict=True))
        restore_faces, default = options.pop("restore_faces"), self.restorer.options.face_enhance
        options["face_enhance"] = "off" if not restore_faces else "auto" if default == "off" else default
        repair, default = options.pop("repair"), self.restorer.options.repair
        options["repair"] = "off" if not repair else "on" if default == "off" else default
        for name in ("long_side", "print_size", "max_bytes"):  # an empty field is None
            options[name] = options[name] or getattr(Options, name)
        if options["outscale"] == 1 and not options["long_side"] and not options["print_size"]:
            options["strength"] = _CLEAN_STRENGTH
        options["model"] = options["model"] or options["preset"]
        del options["preset"]
        return options

    def warning(self, error: RestoreError) -> str:
        """Return an error's message for a line on the page."""
        return f"⚠ {self.user_message(error)}"

    def user_message(self, error: Exception) -> str:
        """Return an error's message with the labels of controls, not names such as print_size."""
        message = self.service.user_message(error)
        for name, field in self.components.fields.items():
            if "_" in name:
                message = message.replace(name, field.label)
        return message

    def options(self, values: tuple[object, ...], before: Photo) -> Options:
        """Return the values of FIELDS as Options for a photo."""
        return self.service.options(self.option_values(values), before)


def _suggested_values(options: dict[str, Any]) -> dict[str, Any]:
    """Return the values of the controls for the options that a look suggests."""
    values = {
        "outscale": int(options["outscale"]),
        "long_side": 0,
        "print_size": "",
        "colour": options.get("colour", "off"),
    }
    if "face_enhance" in options:
        values["restore_faces"] = options["face_enhance"] != "off"
    return values


def quality_slider(image_format: str) -> gr.Slider:
    """Show the file quality for lossy formats."""
    return gr.Slider(visible=image_format not in ("png", "tiff"))


def gps_checkbox(keep_metadata: bool) -> gr.Checkbox:
    return gr.Checkbox(visible=keep_metadata)


def face_controls(restore_faces: bool) -> tuple[gr.Dropdown, gr.Slider]:
    return gr.Dropdown(visible=restore_faces), gr.Slider(visible=restore_faces)


def colour_slider(colour: str) -> gr.Slider:
    return gr.Slider(visible=colour != "off")


def size_radio(long_side: float | None, print_size: str) -> gr.Radio:
    """Disable Size if a long side in pixels or the size of a print overrides it."""
    return gr.Radio(**texts.size_state(long_side, print_size))


def preset_radio(model: str) -> gr.Radio:
    return gr.Radio(**texts.preset_state(model))


def parse_ids(remembered: str) -> dict[str, str]:
    """Parse what a browser remembers; ignore anything else, as any client may send it."""
    try:
        ids = json.loads(remembered or "{}")
    except ValueError:
        return {}
    if not isinstance(ids, dict):
        return {}
    return {key: value for key, value in ids.items() if isinstance(value, str)}


def _outline(photo: Photo) -> Photo:
    """Replace a photo's samples by views of a single sample, which take no memory."""
    pixels = np.broadcast_to(np.zeros((), photo.pixels.dtype), photo.pixels.shape)
    alpha = None if photo.alpha is None else np.broadcast_to(photo.alpha.min(), photo.alpha.shape)
    return replace(photo, pixels=pixels, alpha=alpha)
