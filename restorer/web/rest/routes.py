"""The handlers of the REST API: accept jobs, report them, serve results."""

import asyncio
import hashlib
import json
import logging
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import Header, Request
from fastapi import Path as PathParameter
from fastapi.responses import FileResponse, Response, StreamingResponse
from pydantic import BaseModel

from ... import atomic
from ...errors import DiskFull, QueueFull, RestoreError, UnknownModel
from ...models import sources
from ..job_runner import JobRunner
from ..jobs import Job
from ..refusal import Refusal, refuse_with
from . import forms
from .schemas import (
    Accepted,
    Deleted,
    Estimate,
    Health,
    Look,
    ModelInfo,
    NoOptions,
    Ready,
    Status,
    options_model,
)

MEDIA_TYPES = {
    ".jpg": "image/jpeg",
    ".png": "image/png",
    ".webp": "image/webp",
    ".tif": "image/tiff",
    ".avif": "image/avif",
    ".jxl": "image/jxl",
}
_KEEP_ALIVE_SECONDS = 15
_EVENT_SECONDS = 0.2  # between two looks at a job whose events are streamed
# Forms checked, and photos looked at, at a time: more would delay all other answers
_MAX_ADMISSIONS = _MAX_EXAMINATIONS = 2
_SPAN = re.compile(r"(\d{1,18})-(\d{0,18})|-(\d{1,18})")  # of a Range
_UNITS_PER_FILE = 1000  # of a job's progress
_KEY = "repeating a request with the same key returns the same job, for as long as it is kept"
JobId = Annotated[str, PathParameter(description="as returned by POST /enhance")]


class RestApi:
    """The handlers of the routes."""

    def __init__(self, runner: JobRunner) -> None:
        self.runner, self.jobs = runner, runner.jobs
        self.service, self.settings = runner.service, runner.service.settings
        self._admissions = asyncio.Semaphore(_MAX_ADMISSIONS)
        self._examinations = asyncio.Semaphore(_MAX_EXAMINATIONS)
        self._accepting = asyncio.Lock()  # of requests with an Idempotency-Key
        self.options_model = options_model(self.service.restorer.options)

    async def enhance(
        self,
        request: Request,
        response: Response,
        idempotency_key: Annotated[str, Header(max_length=255, description=_KEY)] = "",
    ) -> Accepted:
        """Submit a job of one or more photos.

        Options may be sent in the query instead of the form. With one photo, a mask may be sent: a picture of
        its size whose light pixels are filled, instead of detected damage.

        For example: `curl -F files=@old.jpg -F outscale=2 http://127.0.0.1:7860/enhance`
        """
        if is_new := not self.jobs.find(idempotency_key):
            with refuse_with(507, DiskFull, limit=self.settings.min_free_disk_mb):
                self.service.check_disk_space()
        admission = self._reservation() if is_new else self._admissions
        max_files = self.settings.max_files_per_job
        async with forms.read(
            request, self.service, self.options_model, max_files=max_files, admission=admission, mask=True
        ) as form:
            job = await self._accept(*form, idempotency_key)
        response.headers["Location"] = f"{request.scope.get('root_path', '')}/status/{job.id}"
        return Accepted.model_validate(self._summary(job))

    @asynccontextmanager
    async def _reservation(self) -> AsyncIterator[None]:
        queue = self.service.queue
        with refuse_with(503, QueueFull, limit=queue.max_waiting), queue.reservation():
            async with self._admissions:
                yield

    async def _accept(
        self, files: list[tuple[str, Path]], options: dict[str, object], mask: Path | None, key: str
    ) -> Job:
        """Return the job of this Idempotency-Key, or a new one."""
        async with self._accepting if key else nullcontext():
            digest = await asyncio.to_thread(_digest, files, options, mask) if key else ""
            if job := self.jobs.find(key):
                if job.digest != digest:
                    error = f"Idempotency-Key {key!r} belongs to other files or options; use a new key"
                    raise Refusal(422, error)
                return job
            add = partial(self.jobs.add, files, options, mask=mask, key=key, digest=digest)
            return await self.runner.accept(add)

    async def quote(self, request: Request) -> Estimate:
        """Estimate size, time and cost of a photo."""
        return Estimate.model_validate(
            await self._examined(request, self.service.estimate, self.options_model)
        )

    async def look(self, request: Request) -> Look:
        """Say what is wrong with a photo, and which options suit it."""
        return Look.model_validate(await self._examined(request, self.service.look, NoOptions))

    async def _examined(
        self, request: Request, examine: Callable[..., dict[str, object]], model: type[BaseModel]
    ) -> object:
        """Return what `examine` returns for the photo and the options of a form."""
        reading = forms.read(request, self.service, model, max_files=1, admission=self._admissions)
        async with reading as (files, options, _):
            ((name, path),) = files
            data = await asyncio.to_thread(path.read_bytes)
        try:
            async with self._examinations:
                return await asyncio.to_thread(examine, data, options)
        except RestoreError as error:
            message = self.service.user_message(error)
            raise Refusal(422, message, index=0, original_filename=name) from error

    async def status(self, job_id: JobId, request: Request) -> Status:
        """Get a job's status, results and errors."""
        return self._status(self._job(job_id), request)

    async def events(
        self, job_id: JobId, request: Request, last_event_id: Annotated[str, Header()] = ""
    ) -> Response:
        """Stream a job's status as server-sent events; the last one is named end.

        The data of each event is a Status. An EventSource connects again after the last event, and stops for
        good when it gets 204. As it cannot send headers, it may send the API key as `access_token`.
        """
        job = self._job(job_id)
        if last_event_id == "end":
            return Response(status_code=204)

        async def stream() -> AsyncIterator[str]:
            sent, sent_at = "", time.monotonic()
            while True:
                ended, status = job.ended, self._status(job, request).model_dump_json()
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
                await asyncio.sleep(_EVENT_SECONDS)

        headers = {"Cache-Control": "no-store"}
        return StreamingResponse(stream(), media_type="text/event-stream", headers=headers)

    async def processed(
        self, job_id: JobId, index: Annotated[int, PathParameter(ge=0)], name: str, request: Request
    ) -> Response:
        """Get a restored photo, or the mask of what was repaired; Range is supported."""
        job = self._job(job_id)
        is_plain = request.path_params["index"] == str(index)  # not "+0": a file has one address
        item = job.items[index] if is_plain and index < len(job.items) else None
        if item is None or not item.result or name not in (item.result["file"], item.result.get("mask_file")):
            raise Refusal(404, "no such file")
        path = self.jobs.result_folder(job, index) / name
        if not path.is_file():
            raise Refusal(404, "the file has expired; restore the photo again")
        _check_range(request, path.stat().st_size)
        return FileResponse(
            path,
            filename=path.name,
            media_type=MEDIA_TYPES.get(path.suffix, "application/octet-stream"),
            headers={"X-Content-Type-Options": "nosniff", "Cache-Control": "private"},
        )

    async def delete(self, job_id: JobId) -> Deleted:
        """Cancel an unfinished job; delete an ended one."""
        job = self._job(job_id)
        if await self.runner.cancel(job):
            return Deleted(job_id=job.id, status="cancelled")
        await asyncio.to_thread(self.jobs.delete, job)
        return Deleted(job_id=job.id, status="deleted")

    async def models(self) -> list[ModelInfo]:
        """List the models."""
        return [ModelInfo.model_validate(model) for model in await asyncio.to_thread(self.service.models)]

    async def health(self) -> Health:
        """Check that the event loop and the device respond."""
        if self.service.worker.stuck.is_set():
            raise Refusal(503, "the device does not respond; restart the server")
        return Health()

    async def ready(self) -> Ready:
        """Check that a job would run: disk space, folders and model."""
        restorer = self.service.restorer
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
        with refuse_with(503, UnknownModel):
            model = restorer.model(restorer.options)
        if not sources.is_present(model, restorer.weights) and not model.url:
            raise Refusal(503, f"model {model.name} is missing and cannot be downloaded")
        return Ready(status="ready", model=model.name, queue_length=self.service.queue.length)

    async def metrics(self) -> Response:
        """Export metrics for Prometheus."""
        return Response(self.service.metrics.metrics(), media_type="text/plain; version=0.0.4")

    def _job(self, job_id: str) -> Job:
        job = self.jobs.get(job_id)
        if job is None:
            raise Refusal(404, "no such job; ended jobs are deleted after a while")
        return job

    def _summary(self, job: Job) -> dict[str, Any]:
        queued = self.runner.queued.get(job.id)
        position = self.service.queue.position(queued.event_id) if queued else 0
        return {"job_id": job.id, "status": job.state, "queue_position": position}

    def _activity(self) -> str:
        """Describe the download of a model that the running job waits for."""
        if not (downloading := self.service.restorer.downloading):
            return ""
        model, done, total = downloading
        return f"downloading {model}: {done / 1e6:.0f} of {total / 1e6:.0f} MB"

    def _status(self, job: Job, request: Request) -> Status:
        root = str(request.base_url).rstrip("/")
        queued = self.runner.queued.get(job.id)
        current, done, steps = queued.progress if queued else (0, 0, 0)
        finished = sum(not item.pending for item in job.items)
        running = current == finished and steps and not job.ended
        part = _UNITS_PER_FILE * done // steps if running else 0
        files = [
            (item, {"index": index, "original_filename": item.name}) for index, item in enumerate(job.items)
        ]
        return Status.model_validate(
            self._summary(job)
            | {
                "progress": {
                    "done": _UNITS_PER_FILE * finished + part,
                    "total": _UNITS_PER_FILE * len(job.items),
                },
                "activity": self._activity() if job.state == "processing" else "",
                "results": [
                    item.result
                    | file
                    | {
                        key: f"{root}/processed/{job.id}/{file['index']}/{quote(str(name))}"
                        for key, name in (
                            ("url", item.result["file"]),
                            ("mask_url", item.result.get("mask_file")),
                        )
                        if name
                    }
                    for item, file in files
                    if item.result
                ],
                "errors": [{**file, "error": item.error} for item, file in files if item.error],
            }
        )


def _check_range(request: Request, size: int) -> None:
    """Drop an invalid Range header (RFC 9110, section 14.2). Raises Refusal for one beyond the file's end."""
    text, starts = request.headers.get("range", ""), []
    for part in text.removeprefix("bytes=").split(","):
        span = _SPAN.fullmatch(part.strip())
        if not span or not text.startswith("bytes=") or (span[2] and int(span[2]) < int(span[1])):
            headers = request.scope["headers"]
            request.scope["headers"] = [header for header in headers if header[0] != b"range"]
            return
        starts.append(int(span[1]) if span[1] else size - int(span[3]))
    if max(starts) >= size:
        error = f"the file has {size} bytes; the range begins after its end"
        raise Refusal(416, error, headers={"Content-Range": f"bytes */{size}"}, limit=size)


def _digest(files: list[tuple[str, Path]], options: dict[str, object], mask: Path | None) -> str:
    """Return the SHA-256 of a job's file names, files, options and mask."""
    sent = [*files, *([("", mask)] if mask else [])]  # no photo has an empty name
    hashes = [(name, hashlib.sha256(path.read_bytes()).hexdigest()) for name, path in sent]
    return hashlib.sha256(json.dumps([hashes, options], sort_keys=True).encode()).hexdigest()
