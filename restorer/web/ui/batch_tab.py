"""Event handlers of the second tab, which restores many photos one after the other.

Handlers return updates by component; components that are left out stay as they are.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import gradio as gr

from ...errors import RestoreError, UnsupportedImage
from .. import previews
from ..jobs import Job, JobFile
from . import texts
from .components import PLACEHOLDER, ManyTab
from .form import Updates
from .restore_tab import RestoreTab, parse_ids

_READY: dict[str, Any] = {"value": "Restore all", "variant": "primary"}
_AGAIN: dict[str, Any] = {"value": "Restore again", "variant": "secondary"}
_VIEWABLE = {".jpg", ".jpeg", ".png", ".webp", ".avif", ".gif"}
_VIEWABLE_BYTES = 5_000_000  # of a file that the browser shows before it is restored


class BatchTab:
    """Handlers that need the server's state. `*values` are the values of PhotoTab.fields."""

    def __init__(self, page: RestoreTab, components: ManyTab) -> None:
        self.page, self.runner, self.components = page, page.runner, components

    def pick(self, paths: list[str] | None, job_id: str) -> Updates:
        """Show the chosen photos, which wait to be restored; a batch that runs stays on display."""
        job = self.runner.jobs.get(job_id)
        if job and not job.ended:
            return gr.skip()
        c, hidden = self.components, gr.update(visible=False)
        images = [(self._waiting_image(path), f"{Path(path).name}: waiting") for path in paths or ()]
        return {
            c.message: texts.MANY,
            c.gallery: gr.Gallery(images, visible=bool(images)),
            c.start: gr.Button(**_READY, interactive=bool(images), visible=True),
            **dict.fromkeys([c.stop, c.continue_button, c.archive, c.slider, c.download], hidden),
            c.job: "",
        }

    def remove(self, paths: list[str] | None, job_id: str) -> Updates:
        """Show the remaining photos, unless the results of a job are on display."""
        return gr.skip() if job_id else self.pick(paths, job_id)

    async def start(self, paths: list[str] | None, autopilot: bool, *values: object) -> Updates:
        """Submit a job; jobs.js follows it."""
        c = self.components
        options = {**self.page.form.option_values(values), "autopilot": autopilot}
        if options["repair"] == "on":
            options["repair"] = "auto"
        try:
            job = await self.runner.start(paths or (), options)
        except (RestoreError, OSError) as error:
            return {c.message: self.page.form.warning(error)}
        hidden = dict.fromkeys([c.archive, c.slider, c.download], gr.update(visible=False))
        return {**hidden, **self._running(), c.job: job.id}

    async def proceed(self, job_id: str) -> Updates:
        """Restore the photos that a stopped job left, with its options; jobs.js follows it again."""
        c, job = self.components, self.runner.jobs.get(job_id)
        try:
            if not job:
                raise RestoreError(f"the photos have expired: they are kept for {self.page.retention}")
            if job.ended:  # not if another tab has continued it
                await self.runner.resume_cancelled(job)
        except (RestoreError, OSError) as error:
            return {c.message: self.page.form.warning(error)}
        return self._running()

    def _running(self) -> Updates:
        """Show Stop in place of the buttons that start a job, whose photos cannot be changed."""
        c = self.components
        return {
            c.upload: gr.File(interactive=False),
            **dict.fromkeys([c.start, c.continue_button], gr.Button(visible=False)),
            c.stop: gr.Button(visible=True),
        }

    def update(self, job_id: str, paths: list[str] | None = None) -> Updates:
        """Show the photos of a job, each with its state, and offer the results once it has ended."""
        c, job = self.components, self.runner.jobs.get(job_id)
        if not job:
            return gr.skip()
        images = list(self._images(job, paths or ()))
        updates = {c.gallery: gr.Gallery(images, visible=True), c.message: _summary(job)}
        if not job.ended:
            return {**updates, **self._running()}
        start = _AGAIN if _are_of(paths, job) else _READY  # others may have been chosen meanwhile
        left = sum(item.pending for item in job.items) if job.state == "cancelled" else 0
        updates |= {
            c.upload: gr.File(interactive=True),
            c.start: gr.Button(**start, interactive=bool(paths), visible=True),
            c.stop: gr.Button(visible=False),
            c.continue_button: gr.Button(f"Continue, {texts.count(left, 'photo')} left", visible=left > 0),
        }
        results = [self._result(job, index) for index in range(len(job.items))]
        if files := [result.file for result in results if result]:
            with suppress(OSError):  # a full disk; each result can still be downloaded
                name = f"restored-{len(files)}.zip"  # not that of fewer, which browsers may have cached
                archive = previews.write_zip(files, self.runner.jobs.results / job.id / name)
                size = texts.file_size(archive.stat().st_size)
                label = f"Download {texts.count(len(files), 'photo')}, ZIP, {size}"
                updates[c.archive] = gr.DownloadButton(label, value=str(archive), visible=True)
        return updates

    def compare(self, job_id: str, event: gr.SelectData) -> Updates:
        """Show the selected photo before and after."""
        c, job = self.components, self.runner.jobs.get(job_id)
        files = self._result(job, event.index) if job else None
        if not files:
            return dict.fromkeys([c.slider, c.download], gr.update(visible=False))
        name = files.file.name
        return {
            c.slider: gr.ImageSlider((str(files.before), str(files.after)), visible=True),
            c.download: gr.DownloadButton(f"Download {name}", value=str(files.file), visible=True),
        }

    def resume(self, remembered: str) -> Updates:
        """Show again the job that the browser remembers."""
        c, job_id = self.components, parse_ids(remembered).get("batch", "")
        if not job_id:
            return gr.skip()
        if not self.runner.jobs.get(job_id):
            message = f"Your last results have expired: results are kept for {self.page.retention}."
            return {c.message: message}
        return {c.job: job_id}  # jobs.js asks for an update when it follows the job

    def _result(self, job: Job, index: int) -> previews.ResultFiles | None:
        """Return the files of a restored photo if they have not expired."""
        item = job.items[index] if index < len(job.items) else None
        if not item or not item.result:
            return None
        path = self.runner.jobs.result_folder(job, index) / str(item.result["file"])
        return self.page.service.result_files(path) if path.is_file() else None

    def _images(self, job: Job, uploads: Sequence[str]) -> Iterator[tuple[str, str]]:
        """Yield an image and a caption for each photo of a job."""
        shared = _shared_notes(job)
        matching = _are_of(uploads, job)
        for index, item in enumerate(job.items):
            image = self._waiting_image(uploads[index]) if matching else str(PLACEHOLDER)
            if files := self._result(job, index):
                image, state = str(files.after), _result_text(item, shared)
            elif item.result:
                state = "expired"
            elif item.error:
                image, state = str(PLACEHOLDER), f"⚠ {item.error}"
            else:
                state = "stopped" if job.ended else "running" if item is job.next else "waiting"
            yield image, f"{item.name}: {state}"

    def _waiting_image(self, upload: str) -> str:
        """Return the upload itself if browsers can show it."""
        with suppress(UnsupportedImage, OSError):  # not an upload, or expired
            path = self.page.service.upload_path(upload)
            if path.suffix.lower() in _VIEWABLE and path.stat().st_size <= _VIEWABLE_BYTES:
                return str(path)
        return str(PLACEHOLDER)


def _are_of(uploads: Sequence[str] | None, job: Job) -> bool:
    """Return whether uploads have the names of a job's photos."""
    return [Path(path).name for path in uploads or ()] == [item.name for item in job.items]


def _summary(job: Job) -> str:
    done, failed = (sum(bool(getattr(item, name)) for item in job.items) for name in ("result", "error"))
    text = f"{done} of {texts.count(len(job.items), 'photo')} restored"
    text += (f", {failed} failed" if failed else "") + (", stopped" if job.state == "cancelled" else "")
    return text + "".join(f"\n- {note}" for note in _shared_notes(job))


def _shared_notes(job: Job) -> list[str]:
    """Return what is to be said of every restored photo, if there are several."""
    notes = [_notes(item) for item in job.items if item.result]
    return [note for note in notes[0] if all(note in others for others in notes)] if len(notes) > 1 else []


def _notes(item: JobFile) -> list[str]:
    result: dict[str, Any] = item.result or {}
    notes = [result.get("faces", ""), *result.get("warnings", ())]
    return [texts.plain(note) for note in dict.fromkeys(notes) if note]


def _result_text(item: JobFile, shared: list[str]) -> str:
    result: dict[str, Any] = item.result or {}
    notes = [note for note in _notes(item) if note not in shared]
    if share := (result.get("repair") or {}).get("share"):
        notes.insert(0, f"{100 * share:.2f} % repaired")
    return "; ".join([f"{result['width']} × {result['height']}", *notes])
