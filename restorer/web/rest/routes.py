"""The handlers of the REST API: accept jobs, run them, report them, serve results."""

import asyncio
import json
import logging
import os
import shutil
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fastapi import Request
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse

from ... import atomic
from ...errors import Cancelled, DiskFull, QueueFull, RestoreError, TimedOut
from ...models import sources
from ...progress import Progress
from .. import previews
from ..service import Service, receipt
from . import forms
from .forms import Refusal, refuse_with
from .jobs import STATES, Job, Jobs

_MEDIA_TYPES = {
    ".jpg": "image/jpeg",
    ".png": "image/png",
    ".webp": "image/webp",
    ".tif": "image/tiff",
    ".avif": "image/avif",
}
_KEEP_ALIVE_SECONDS = 15
_EVENT_SECONDS = 0.25  # between two looks at a job whose events are streamed
_RETRY_SECONDS = 1.0  # until a record that could not be written is tried again
_MAX_ADMISSIONS = 2  # forms examined at a time: more would delay all other answers
_UNITS_PER_FILE = 1000  # of a job's progress


class _QueuedJob:
    """The state of a job in the queue that is not part of its record.

    event_id  of the event that runs it
    progress  index of the current file, its steps done and in total
    changed   set, and replaced by a new event, on every change
    """

    def __init__(self) -> None:
        self.event_id, self.progress, self.changed = "", (0, 0, 0), asyncio.Event()

    def notify(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()


class RestApi:
    """The handlers of the routes, and the jobs behind them."""

    def __init__(self, service: Service, jobs: Jobs) -> None:
        self.service, self.jobs, self.settings = service, jobs, service.settings
        self._queued: dict[str, _QueuedJob] = {}
        self._admissions = asyncio.Semaphore(_MAX_ADMISSIONS)
        for state in STATES:
            service.metrics.count_jobs(state, partial(jobs.count, state))

    async def start(self, uploads: Sequence[str], options: dict[str, object]) -> Job:
        """Accept a job of the page, with previews. Raises QueueFull, DiskFull and UnsupportedImage."""
        with self.service.queue.reservation():
            self.service.check_disk_space()
            files = [(Path(upload).name, self.service.upload_path(upload)) for upload in uploads]
            job = await asyncio.to_thread(self.jobs.add, files, options, previews=True, transfer=_copy)
            await self._submit(job)
        return job

    async def cancel(self, job: Job) -> bool:
        """Cancel a job; return False if it has ended already."""
        if not await asyncio.to_thread(self.jobs.end, job, "cancelled"):
            return False
        if queued := self._remove(job):
            await self.service.queue.remove(queued.event_id)  # a running job stops at its next step
        return True

    async def resume(self) -> None:
        """Queue the jobs of earlier processes in their order."""
        for job in self.jobs.unfinished():
            await self._submit(job)

    async def _submit(self, job: Job) -> None:
        queued = self._queued[job.id] = _QueuedJob()
        queued.event_id = await self.service.queue.submit(job.id)

    async def run(self, job_id: str) -> None:
        """Run a job; its event in the queue calls this."""
        job, queued = self.jobs.get(job_id), self._queued.get(job_id)
        if not job or not queued:
            return
        try:
            await self.service.run(partial(self._work, job, queued), lambda _: queued.notify())
        except Cancelled:  # by the client, who was answered, or by a shutdown: the next process resumes it
            pass
        except TimedOut as error:
            await asyncio.to_thread(self._abort, job, str(error))
        except Exception:  # noqa: BLE001  one job of the queue
            logging.getLogger(__name__).exception("job failed")
            self.jobs.end(job, "failed")
        finally:
            self._remove(job)

    def _remove(self, job: Job) -> _QueuedJob | None:
        if queued := self._queued.pop(job.id, None):
            queued.notify()
        return queued

    def _abort(self, job: Job, error: str) -> None:
        """Fail the current file; the next process continues with those after it."""
        if job.next:
            self.jobs.finish_file(job, job.next, error=error)
        if not job.next:
            self.jobs.end(job, job.final_state)

    def _work(self, job: Job, queued: _QueuedJob, progress: Progress) -> None:
        """Restore all pending files of a job; runs in the worker's thread."""
        if not _retry_until_written(partial(self.jobs.begin, job), progress):
            return
        for index, item in enumerate(job.items):
            if item.pending:
                self._restore_file(job, index, queued, progress)
        _retry_until_written(partial(self.jobs.end, job, job.final_state), progress)

    def _restore_file(self, job: Job, index: int, queued: _QueuedJob, progress: Progress) -> None:
        item, folder = job.items[index], self.jobs.result_folder(job, index)

        def report(done: int, total: int) -> None:
            queued.progress = index, done, total
            progress(done, total)
            if job.ended:
                raise Cancelled("the job has ended")

        try:
            result, file = self.service.restore_to_file(
                self.jobs.input_path(job, index).read_bytes(),
                job.options,
                report,
                name=item.name,
                folder=folder,
            )
            if job.previews:
                files = previews.write_files(result, item.name, file, self.settings.processed_folder)
                previews.cache_result(result, files)
            outcome = {"result": {"file": file.name, **receipt(result)}}
        except Cancelled:
            raise
        except Exception as error:  # noqa: BLE001  one file of a batch
            outcome = {"error": self.service.user_message(error)}
        if not _retry_until_written(partial(self.jobs.finish_file, job, item, **outcome), progress):
            shutil.rmtree(folder, ignore_errors=True)
            raise Cancelled("the job has ended")

    async def enhance(self, request: Request) -> Response:
        """Accept a job."""
        queue = self.service.queue

        @asynccontextmanager
        async def admission() -> AsyncIterator[None]:
            with refuse_with(503, QueueFull, limit=queue.max_waiting), queue.reservation():
                async with self._admissions:
                    yield

        with refuse_with(507, DiskFull, limit=self.settings.min_free_disk_mb):
            self.service.check_disk_space()
        async with self._form(request, self.settings.max_files_per_job, admission()) as (files, options):
            job = await asyncio.to_thread(self.jobs.add, files, options)
            await self._submit(job)
        body = {"job_id": job.id, "status": job.state, "queue_position": self._position(job)}
        return JSONResponse(body, 202, {"Location": f"{request.scope.get('root_path', '')}/status/{job.id}"})

    async def quote(self, request: Request) -> Response:
        """Estimate what a photo takes."""
        async with self._form(request, 1, self._admissions) as (files, options):
            data = await asyncio.to_thread(files[0][1].read_bytes)
        try:
            return JSONResponse(await asyncio.to_thread(self.service.estimate, data, options))
        except RestoreError as error:
            raise Refusal(422, self.service.user_message(error)) from error

    async def status(self, request: Request) -> Response:
        """Report a job's status."""
        return JSONResponse(self._status(self._job(request), request))

    async def events(self, request: Request) -> Response:
        """Stream a job's status whenever it changes, and last as an event named end.

        An EventSource connects again after the last event, and stops for good when it gets 204.
        """
        job = self._job(request)
        if request.headers.get("last-event-id") == "end":
            return Response(status_code=204)

        async def stream() -> AsyncIterator[str]:
            sent, sent_at = "", time.monotonic()
            while True:
                queued = self._queued.get(job.id)
                changed = queued.changed if queued else asyncio.Event()
                ended, status = job.ended, json.dumps(self._status(job, request))
                if ended:
                    yield f"id: end\nevent: end\ndata: {status}\n\n"
                    return
                if status != sent:
                    sent, sent_at = status, time.monotonic()
                    yield f"data: {status}\n\n"
                elif time.monotonic() - sent_at > _KEEP_ALIVE_SECONDS:  # or proxies close the connection
                    sent_at = time.monotonic()
                    yield ": keep-alive\n\n"
                if self.service.worker.closed:
                    return
                with suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(changed.wait(), _EVENT_SECONDS)

        headers = {"Cache-Control": "no-store"}
        return StreamingResponse(stream(), media_type="text/event-stream", headers=headers)

    async def processed(self, request: Request) -> Response:
        """Serve a restored photo."""
        job, number = self._job(request), request.path_params["index"]
        index = int(number) if number.isdecimal() and len(number) < 6 else len(job.items)
        item = job.items[index] if index < len(job.items) else None
        if item is None or not item.result or item.result["file"] != request.path_params["name"]:
            raise Refusal(404, "no such file")
        path = self.jobs.result_folder(job, index) / str(item.result["file"])
        if not path.is_file():
            raise Refusal(404, "the file has expired; restore the photo again")
        return FileResponse(
            path,
            filename=path.name,
            media_type=_MEDIA_TYPES.get(path.suffix, "application/octet-stream"),
            headers={"X-Content-Type-Options": "nosniff", "Cache-Control": "private"},
        )

    async def delete(self, request: Request) -> Response:
        """Cancel an unfinished job; delete an ended one."""
        job = self._job(request)
        if await self.cancel(job):
            return JSONResponse({"job_id": job.id, "status": "cancelled"})
        await asyncio.to_thread(self.jobs.delete, job)
        return JSONResponse({"job_id": job.id, "status": "deleted"})

    async def models(self, _request: Request) -> Response:
        """List the models."""
        return JSONResponse(await asyncio.to_thread(self.service.models))

    async def health(self, _request: Request) -> Response:
        """Report whether the event loop and the device respond."""
        if self.service.worker.stuck.is_set():
            raise Refusal(503, "the device does not respond; restart the server")
        return JSONResponse({"status": "ok"})

    async def ready(self, _request: Request) -> Response:
        """Report whether a job would run: queue, disk space, folders and model."""
        queue, restorer = self.service.queue, self.service.restorer
        if self.service.worker.closed:
            raise Refusal(503, "the server is shutting down; try again in a minute")
        with refuse_with(503, DiskFull, limit=self.settings.min_free_disk_mb):
            self.service.check_disk_space()
        try:
            for folder in (self.settings.jobs_folder, self.settings.processed_folder):
                await asyncio.to_thread(atomic.check_writable, folder)
        except OSError as error:
            logging.getLogger(__name__).exception("not ready")
            raise Refusal(503, "the folder of uploads or results cannot be written") from error
        model = restorer.model(restorer.options)
        if not sources.is_present(model, restorer.weights) and not model.url:
            raise Refusal(503, f"model {model.name} is missing and cannot be downloaded")
        return JSONResponse({"status": "ready", "model": model.name, "queue_length": queue.length})

    async def metrics(self, _request: Request) -> Response:
        """Export metrics for Prometheus."""
        return Response(self.service.metrics.metrics(), media_type="text/plain; version=0.0.4")

    @asynccontextmanager
    async def _form(
        self, request: Request, max_files: int, admission: AbstractAsyncContextManager[None]
    ) -> AsyncIterator[forms.Form]:
        """Read and validate a form."""
        async with forms.read(
            request,
            self.settings.jobs_folder,
            max_files=max_files,
            max_megabytes=self.settings.max_file_size_mb,
            admission=admission,
        ) as (files, options):
            await asyncio.to_thread(forms.validate, self.service, files, options)
            yield files, options

    def _job(self, request: Request) -> Job:
        job = self.jobs.get(request.path_params["job_id"])
        if job is None:
            raise Refusal(404, "no such job; ended jobs are deleted after a while")
        return job

    def _position(self, job: Job) -> int:
        queued = self._queued.get(job.id)
        return self.service.queue.position(queued.event_id) if queued else 0

    def _downloading(self) -> dict[str, object] | None:
        """Describe the download of a model, in bytes."""
        if not (downloading := self.service.restorer.downloading):
            return None
        return dict(zip(("model", "done", "total"), downloading, strict=True))

    def _status(self, job: Job, request: Request) -> dict[str, Any]:
        root = str(request.base_url).rstrip("/")
        queued = self._queued.get(job.id)
        current, done, steps = queued.progress if queued else (0, 0, 0)
        finished = sum(not item.pending for item in job.items)
        running = current == finished and steps and not job.ended
        part = _UNITS_PER_FILE * done // steps if running else 0
        total = _UNITS_PER_FILE * len(job.items)
        return {
            "job_id": job.id,
            "status": job.state,
            "queue_position": self._position(job),
            "progress": {"done": _UNITS_PER_FILE * finished + part, "total": total},
            "downloading": self._downloading() if job.state == "processing" else None,
            "results": [
                {
                    "original_filename": item.name,
                    "url": f"{root}/processed/{job.id}/{index}/{quote(str(item.result['file']))}",
                    **{key: value for key, value in item.result.items() if key != "file"},
                }
                for index, item in enumerate(job.items)
                if item.result
            ],
            "errors": [
                {"original_filename": item.name, "error": item.error} for item in job.items if item.error
            ],
        }


def _copy(source: Path, target: Path) -> None:
    """Copy a file, by a link where the disk allows it."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _retry_until_written(change: Callable[[], bool], progress: Progress) -> bool:
    """Return what a change of a job's record returns, retrying until it can be written to disk."""
    while True:
        try:
            return change()
        except OSError:
            logging.getLogger(__name__).exception("cannot write a job record; retrying")
            time.sleep(_RETRY_SECONDS)
            progress(0, 0)  # raises if the job was cancelled
