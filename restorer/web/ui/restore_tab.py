"""Event handlers of the first tab: choose a photo, restore it, and come back to a job after a reload.

Handlers return updates by component; components that are left out stay as they are.
"""

import asyncio
import json
import shutil
import uuid
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import gradio as gr
import numpy as np

from ...atomic import write_atomic
from ...errors import RestoreError, UnsupportedImage
from ...images.photo import Photo
from ...repair.pipeline import mask_of, mask_png
from .. import previews
from ..job_runner import JobRunner
from ..jobs import Job
from . import texts
from .components import SAMPLES, PhotoTab
from .form import Form, SelectedPhoto, Updates, suggested_values
from .result_view import ResultView

_READY: dict[str, Any] = {"value": "Restore", "variant": "primary", "visible": True}
_AGAIN: dict[str, Any] = {"value": "Restore again", "variant": "secondary", "visible": True}


class RestoreTab:
    """Handlers that need the server's state. `*values` are the values of PhotoTab.fields."""

    def __init__(self, runner: JobRunner, components: PhotoTab, view: ResultView) -> None:
        self.runner, self.service, self.components, self.view = runner, runner.service, components, view
        self.restorer, self.settings = runner.service.restorer, runner.service.settings
        self.form = Form(self.service, components)
        self.retention = texts.period(runner.service.settings.retention_seconds)

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
        """Show an upload and the estimate of its result; cancel this tab's job of the previous one.

        The options of damage are reset: what one photo needs may harm the next.

        If an upload follows another before its answer, the first event already sees the second upload, and
        the second event must not cancel the job that was started meanwhile.
        """
        c = self.components
        if path and shown and path == shown.path:
            return gr.skip()
        if job := self.runner.jobs.get(job_id):
            await self.runner.cancel(job)
        reset = {field: field.value for field in c.damage_options if shown}
        values = tuple(reset.get(field, value) for field, value in zip(c.options, values, strict=True))
        try:
            return {**await asyncio.to_thread(self._show_upload, path, values), **reset}
        except OSError as error:  # of the preview: a full disk
            return {**self._show_upload(None, values), **reset, c.message: self.form.warning(error)}

    def _show_upload(self, path: str | None, values: tuple[object, ...]) -> Updates:
        """Show an upload, or the example and what to do."""
        c, photo, preview, message = self.components, None, None, texts.START
        if path:
            try:
                decoded = self.service.decode_upload(path)
                preview = previews.preview(decoded, self.settings.processed_folder)
                photo = SelectedPhoto(path, _outline(decoded))
            except RestoreError as error:
                message = self.form.warning(error)
        return {
            **(self.form.updates(photo, values, start=_READY) if photo else self._no_photo(message)),
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
            return gr.skip()
        try:
            seen = self.restorer.look(self.service.upload(photo.path))
        except RestoreError:  # the estimate reports it
            return gr.skip()
        return {
            c.look: gr.Markdown(texts.look(seen.line), visible=True),
            c.suggestion: suggested_values(seen.options),
            c.repair: gr.Accordion(
                label=texts.repair(any(finding.name == "damage" for finding in seen.findings))
            ),
        }

    def _no_photo(self, message: str) -> Updates:
        c = self.components
        return {
            c.message: message,
            c.start: gr.update(interactive=False, **_READY),
            c.fields["preset"]: gr.update(choices=texts.PRESET_CHOICES),
        }

    # Jobs

    async def start(self, photo: SelectedPhoto | None, own_mask: str, *values: object) -> Updates:
        """Submit a job; jobs.js follows it.

        own_mask  upload of a mask in any size that mask.js exported, "" to fill what is detected
        """
        c = self.components
        if photo is None:
            return gr.skip()
        try:
            options, mask = self.form.option_values(values), None
            if own_mask and options["repair"] != "off":
                mask = await asyncio.to_thread(self._full_size_mask, own_mask, photo.outline)
            job = await self.runner.start([photo.path], options, mask)
        except (RestoreError, OSError) as error:
            return {c.message: self.form.warning(error)}
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
            return gr.skip()
        try:
            files = self.result(job)
            if files == earlier:  # the browser remembers its job again
                return gr.skip()
            result_updates = self.view.show(files)
        except RestoreError as error:
            note = self.form.warning(error)
            if job and job.state == "cancelled":
                note = "Stopped."
            with suppress(RestoreError):  # expired
                if earlier:
                    shown = {**self.view.show(earlier), c.stop: gr.Button(visible=False)}
                    shown[c.job] = earlier.file.parents[1].name  # which a reload shows again
                    return {**self.form.updates(photo, values, note, _AGAIN), **shown}
            return {
                **self.form.updates(photo, values, note, _READY),
                **dict.fromkeys([c.photo, c.crop_column], gr.update(visible=True)),
                c.stop: gr.Button(visible=False),
                c.job: "",
            }
        return {
            **self.form.updates(photo, values, start=_AGAIN),
            **result_updates,
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
        return self.service.result_files(file)

    def resume(self, remembered: str, *values: object) -> Updates:
        """Show again what the browser remembers: a photo, and the job that restores it or did.

        Options are set to those of the job.
        """
        c, ids = self.components, parse_ids(remembered)
        job = self.runner.jobs.get(ids.get("job", ""))
        path = str(self.settings.upload_folder / ids["photo"]) if ids.get("photo") else None
        try:
            self.service.upload_path(path)
        except RestoreError:
            path = None
        if path is None and job and job.items:
            with suppress(FileNotFoundError):
                path = self._copy_upload(self.runner.jobs.input_path(job, 0), Path(job.items[0].name).name)
        if path is None:
            if not ids.get("photo"):
                return gr.skip()
            message = f"Your last photo has expired: photos and results are kept for {self.retention}."
            return {c.message: message}
        if job:
            values = self.form.values_of(job.options, values)
        updates = {**self._show_upload(path, values), c.upload: path}
        if not job:
            if ids.get("job"):
                note = f"The result has expired: results are kept for {self.retention}."
                updates[c.message] = f"{note}\n\n{updates[c.message]}"
            return updates
        if not job.ended:
            updates |= {c.start: gr.Button(visible=False), c.stop: gr.Button(visible=True)}
            updates[c.crop_column] = gr.Column(visible=False)
        for field, value in zip(c.options, values, strict=True):
            updates[field] = updates.get(field, gr.update()) | {"value": value}
        return {**updates, c.job: job.id}

    def back(self) -> Updates:
        """Show the photo in place of its result, so that its marks can be corrected."""
        c = self.components
        hidden = dict.fromkeys([c.result_column, c.faces, c.outcome, c.back], gr.update(visible=False))
        return {**hidden, c.photo: gr.Image(visible=True), c.crop_column: gr.Column(visible=True)}


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
