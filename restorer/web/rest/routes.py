"""The REST interface: jobs are taken, run in the one line, asked about, and their files handed out."""

import asyncio
import json
import logging
import shutil
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from functools import partial
from typing import Any
from urllib.parse import quote

from fastapi import Request
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse
from gradio.route_utils import get_root_url

from ...errors import Cancelled, DiskFull, QueueFull, RestoreError, TimedOut
from ...models import sources
from ...progress import Progress
from ..service import Service, receipt
from ..worker import QueueEntry, Step
from . import forms
from .forms import Refusal, refuse_with
from .jobs import STATES, Job, Jobs

_TYPES = {
    ".jpg": "image/jpeg",
    ".png": "image/png",
    ".webp": "image/webp",
    ".tif": "image/tiff",
    ".avif": "image/avif",
}
_PING = 15  # seconds after which a stream of events says something
_LOOK = 0.25  # seconds between two looks at a job whose events are streamed
_AGAIN = 1.0  # seconds after which a record that could not be written is tried again
_AT_ONCE = 2  # forms that are looked into: more would only keep the others from being answered
_THOUSAND = 1000  # what one file counts in a job's progress


class _Live:
    """What is known of a job in the line beside its record.

    at    which file is worked on, and of that the steps done and all
    news  set, and replaced, whenever something is new
    """

    def __init__(self, ticket: QueueEntry) -> None:
        self.ticket, self.at, self.news = ticket, (0, 0, 0), asyncio.Event()
        self.task: asyncio.Task | None = None

    def tell(self) -> None:
        self.news.set()
        self.news = asyncio.Event()


class RestApi:
    """The routes, and the jobs behind them."""

    def __init__(self, service: Service, jobs: Jobs) -> None:
        self.service, self.jobs, self.settings = service, jobs, service.settings
        self._live: dict[str, _Live] = {}
        self._accepting = asyncio.Semaphore(_AT_ONCE)
        for state in STATES:
            service.metrics.count_jobs(state, partial(jobs.count, state))

    def resume(self) -> None:
        """Put the jobs of an earlier process into the line, in their order. In the server's event loop."""
        for job in self.jobs.waiting():
            self._start(job, self.service.worker.join(always=True))

    def _start(self, job: Job, ticket: QueueEntry) -> None:
        live = self._live[job.id] = _Live(ticket)
        live.task = asyncio.get_running_loop().create_task(self._run(job, live))
        live.task.add_done_callback(lambda _: self._left(job))

    def _left(self, job: Job) -> None:
        live = self._live.pop(job.id)
        self.service.worker.leave(live.ticket)  # a task that is cancelled before it began never did
        live.tell()

    async def _run(self, job: Job, live: _Live) -> None:
        try:
            async for step in self.service.worker.steps(partial(self._work, job, live), live.ticket):
                if isinstance(step, Step):
                    live.tell()
        except Cancelled:  # by the client, who has the answer, or by the server's end, for the next process
            pass
        except TimedOut as error:
            await asyncio.to_thread(self._given_up, job, str(error))
        except Exception:  # noqa: BLE001  one job of the queue
            logging.getLogger(__name__).exception("a job failed")
            self.jobs.end(job, "failed")

    def _given_up(self, job: Job, why: str) -> None:
        """The file under way has failed; the next process goes on with those after it."""
        if job.next:
            self.jobs.note(job, job.next, error=why)
        if not job.next:
            self.jobs.end(job, job.final_state)

    def _work(self, job: Job, live: _Live, progress: Progress) -> None:
        """All files of a job that are not done yet, in the worker's thread."""
        if not _written(partial(self.jobs.begin, job), progress):
            return
        for index, item in enumerate(job.items):
            if item.waiting:
                self._one(job, index, live, progress)
        _written(partial(self.jobs.end, job, job.final_state), progress)

    def _one(self, job: Job, index: int, live: _Live, progress: Progress) -> None:
        item, place = job.items[index], self.jobs.result_folder(job, index)

        def noted(done: int, total: int) -> None:
            live.at = index, done, total
            progress(done, total)

        try:
            result, file = self.service.restore_to_file(
                self.jobs.input(job, index), job.options, noted, name=item.name, place=place
            )
            outcome = {"result": {"file": file.name, **receipt(result)}}
        except Cancelled:
            raise
        except Exception as error:  # noqa: BLE001  one file of a batch
            outcome = {"error": self.service.user_message(error)}
        if not _written(partial(self.jobs.note, job, item, **outcome), progress):
            shutil.rmtree(place, ignore_errors=True)
            raise Cancelled("the job has ended")

    async def enhance(self, request: Request) -> Response:
        """Take a job."""
        line, tickets = self.service.worker, []

        @asynccontextmanager
        async def admitted() -> AsyncIterator[None]:
            with refuse_with(503, QueueFull, limit=self.settings.max_queue):
                tickets.append(line.join())
            async with self._accepting:
                yield

        with refuse_with(503, QueueFull, limit=self.settings.max_queue):
            line.check()  # before the form is read, and again when it has been
        with refuse_with(507, DiskFull, limit=self.settings.min_free_disk_mb):
            self.service.check_disk_space()
        try:
            async with self._form(request, self.settings.max_files_per_job, admitted()) as (files, given):
                job = await asyncio.to_thread(self.jobs.add, files, given)
                self._start(job, tickets.pop())
        finally:
            for ticket in tickets:
                line.leave(ticket)
        body = {"job_id": job.id, "status": job.state, "queue_position": self._place(job)}
        return JSONResponse(body, 202, {"Location": f"/status/{job.id}"})

    async def quote(self, request: Request) -> Response:
        """What a photo will take."""
        async with self._form(request, 1, self._accepting) as (files, given):
            data = await asyncio.to_thread(files[0][1].read_bytes)
        try:
            return JSONResponse(await asyncio.to_thread(self.service.quote, data, given))
        except RestoreError as error:
            raise Refusal(422, self.service.user_message(error)) from error

    async def status(self, request: Request) -> Response:
        """How far a job is."""
        return JSONResponse(self._told(self._known(request), request))

    async def events(self, request: Request) -> Response:
        """How far a job is, whenever that changes, until it has ended."""
        job = self._known(request)

        async def lines() -> AsyncIterator[str]:
            told, spoke = "", time.monotonic()
            while True:
                live = self._live.get(job.id)
                news = live.news if live else asyncio.Event()
                ended, now = job.ended, json.dumps(self._told(job, request))
                if now != told:
                    told, spoke = now, time.monotonic()
                    yield f"data: {now}\n\n"
                elif time.monotonic() - spoke > _PING:  # else what stands between would think it has gone
                    spoke = time.monotonic()
                    yield ": still here\n\n"
                if ended or self.service.worker.closed:
                    return
                with suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(news.wait(), _LOOK)

        headers = {"Cache-Control": "no-store"}
        return StreamingResponse(lines(), media_type="text/event-stream", headers=headers)

    async def processed(self, request: Request) -> Response:
        """A restored photo."""
        job, number = self._known(request), request.path_params["index"]
        index = int(number) if number.isdecimal() and len(number) < 6 else len(job.items)
        item = job.items[index] if index < len(job.items) else None
        if item is None or not item.result or item.result["file"] != request.path_params["name"]:
            raise Refusal(404, "there is no such file")
        path = self.jobs.result_folder(job, index) / str(item.result["file"])
        if not path.is_file():
            raise Refusal(404, "the file was deleted; restore the photo again")
        return FileResponse(
            path,
            filename=path.name,
            media_type=_TYPES.get(path.suffix, "application/octet-stream"),
            headers={"X-Content-Type-Options": "nosniff", "Cache-Control": "private"},
        )

    async def delete(self, request: Request) -> Response:
        """Cancel a job that has not ended; remove one that has."""
        job = self._known(request)
        if await asyncio.to_thread(self.jobs.end, job, "cancelled"):
            if (live := self._live.get(job.id)) and live.task:
                live.task.cancel()
                self.service.worker.leave(live.ticket)  # now: the answer tells that the next ones moved up
            return JSONResponse({"job_id": job.id, "status": "cancelled"})
        await asyncio.to_thread(self.jobs.delete, job)
        return JSONResponse({"job_id": job.id, "status": "deleted"})

    async def models(self, _request: Request) -> Response:
        """The models."""
        return JSONResponse(await asyncio.to_thread(self.service.models))

    async def health(self, _request: Request) -> Response:
        """The loop answers, and the device was not given up."""
        if self.service.worker.stuck.is_set():
            raise Refusal(503, "the device hangs: the server must be started anew")
        return JSONResponse({"status": "ok"})

    async def ready(self, _request: Request) -> Response:
        """Whether a job would be worked on."""
        worker, restorer = self.service.worker, self.service.restorer
        with refuse_with(503, QueueFull):
            worker.check(always=True)
        with refuse_with(503, DiskFull, limit=self.settings.min_free_disk_mb):
            self.service.check_disk_space()
        model = restorer.model(restorer.options)
        if not sources.is_present(model, restorer.weights) and not model.url:
            raise Refusal(503, f"the model {model.name} is not here and cannot be fetched")
        return JSONResponse({"status": "ready", "model": model.name, "queue_length": worker.waiting})

    async def metrics(self, _request: Request) -> Response:
        """Numbers for Prometheus."""
        return Response(self.service.metrics.metrics(), media_type="text/plain; version=0.0.4")

    @asynccontextmanager
    async def _form(
        self, request: Request, most: int, admitted: AbstractAsyncContextManager[None]
    ) -> AsyncIterator[forms.Read]:
        """A form of at most so many files, checked."""
        megabytes, folder = self.settings.max_file_size_mb, self.settings.jobs_folder
        async with forms.read(request, folder, most=most, megabytes=megabytes, admitted=admitted) as (
            files,
            given,
        ):
            await asyncio.to_thread(forms.validate, self.service, files, given)
            yield files, given

    def _known(self, request: Request) -> Job:
        job = self.jobs.get(request.path_params["job_id"])
        if job is None:
            raise Refusal(404, "there is no such job; those that ended an hour ago are deleted")
        return job

    def _place(self, job: Job) -> int:
        live = self._live.get(job.id)
        return self.service.worker.place(live.ticket) if live else 0

    def _told(self, job: Job, request: Request) -> dict[str, Any]:
        root = get_root_url(request=request, route_path=request.url.path, root_path=None)
        live = self._live.get(job.id)
        index, done, steps = live.at if live else (0, 0, 0)
        through = sum(bool(item.result or item.error) for item in job.items)
        under_way = index == through and steps and not job.ended
        part = _THOUSAND * done // steps if under_way else 0
        total = _THOUSAND * len(job.items)
        return {
            "job_id": job.id,
            "status": job.state,
            "queue_position": self._place(job),
            "progress": {"done": _THOUSAND * through + part, "total": total},
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


def _written(change: Callable[[], bool], progress: Progress) -> bool:
    """What a change of a job's record says, once there is room on the disk to write it down."""
    while True:
        try:
            return change()
        except OSError:
            logging.getLogger(__name__).exception("a job's record cannot be written; trying again")
            time.sleep(_AGAIN)
            progress(0, 0)  # raises where nobody waits any more
