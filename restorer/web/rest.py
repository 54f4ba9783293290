"""The REST interface: jobs are taken, run in the one line, asked about, and their files handed out."""

import asyncio
import json
import logging
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse
from gradio.route_utils import get_root_url
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException

from .. import models, photo
from ..errors import Cancelled, InvalidOption, QueueFull, RestoreError, UnknownModel
from ..jobs import Item, Job, Jobs
from ..options import FORMATS, Options
from ..tiling import Progress
from ..upscale import output_size
from . import ledger
from . import service as shared
from .service import WRONG, Service
from .workshop import Step, Ticket

_LOOK = 0.25  # seconds between two looks at a job whose events are streamed
_STUCK = 900  # seconds without a step after which the worker is not taken for alive
_RETRY = 30  # seconds after which asking again makes sense
_THOUSAND = 1000  # what one file counts in a job's progress
_OPTIONS = {field.name: type(field.default) for field in fields(Options)} | {"long_side": int}
FORM = 64 * 1024  # bytes of a form beside its files


class Refused(Exception):
    """An answer that is not the one asked for: a status, and a body that says why and what the limit is."""

    def __init__(self, status: int, error: str, **more: object) -> None:
        super().__init__(error)
        self.status, self.body = status, {"error": error, **more}

    def response(self) -> JSONResponse:
        headers = {"Retry-After": str(_RETRY)} if self.status == 503 else None
        return JSONResponse(self.body, self.status, headers)


class Rest:
    """The routes, and the jobs behind them."""

    def __init__(self, service: Service, jobs: Jobs) -> None:
        self.service, self.jobs, self.settings = service, jobs, service.settings
        self._running: dict[str, asyncio.Task] = {}
        self._tickets: dict[str, Ticket] = {}
        self._steps: dict[str, Step] = {}
        self._news: dict[str, asyncio.Event] = {}  # set, and replaced, whenever something is new of a job
        for state in ("queued", "processing", "completed", "failed", "cancelled"):
            service.ledger.count_jobs(state, partial(jobs.count, state))

    # Jobs

    def resume(self) -> None:
        """Put the jobs of an earlier process into the line, in their order. In the server's event loop."""
        for job in self.jobs.waiting():
            self._start(job, self.service.workshop.join(always=True))

    def _start(self, job: Job, ticket: Ticket) -> None:
        self._tickets[job.id] = ticket
        task = self._running[job.id] = asyncio.get_running_loop().create_task(self._run(job, ticket))
        task.add_done_callback(lambda _: self._left(job))

    def _left(self, job: Job) -> None:
        self._tell(job)
        for table in (self._running, self._tickets, self._steps, self._news):
            table.pop(job.id, None)

    def _tell(self, job: Job) -> None:
        self._news.pop(job.id, asyncio.Event()).set()

    async def _run(self, job: Job, ticket: Ticket) -> None:
        try:
            async for step in self.service.workshop.steps(partial(self._work, job), ticket):
                if isinstance(step, Step):
                    self._steps[job.id] = step
                    self._tell(job)
        except Cancelled:  # by the client, who has the answer, or by the server's end, for the next process
            pass
        except Exception:  # noqa: BLE001  one job of the queue
            logging.getLogger(__name__).exception("a job failed")
            self.jobs.end(job, "failed")

    def _work(self, job: Job, progress: Progress) -> None:
        """All files of a job that are not done yet, in the workshop's thread."""
        if not self.jobs.begin(job):
            return
        try:
            for index, item in enumerate(job.items):
                if not item.result and not item.error:
                    self._one(job, index, item, progress)
        except Cancelled:
            if self.service.workshop.closed:
                self.jobs.put_back(job)
            raise
        self.jobs.end(job, "completed" if any(item.result for item in job.items) else "failed")

    def _one(self, job: Job, index: int, item: Item, progress: Progress) -> None:
        place = self.jobs.result_folder(job, index)
        try:
            result, file = self.service.restored(
                self.jobs.input(job, index), job.options, progress, name=item.name, place=place
            )
            told = {"file": file.name, **shared.receipt(result)}
            kept = self.jobs.note(job, item, result=told)
        except Cancelled:
            raise
        except RestoreError as error:
            kept = self.jobs.note(job, item, error=self.service.words(error))
        except Exception:  # noqa: BLE001  one file of a batch
            logging.getLogger(__name__).exception("a file of a job failed")
            kept = self.jobs.note(job, item, error=WRONG)
        if not kept:
            raise Cancelled("the job has ended")

    # Routes

    async def enhance(self, request: Request) -> Response:
        """Take a job."""
        self._check_ready()
        with tempfile.TemporaryDirectory(dir=self.settings.jobs_folder, prefix="tmp") as folder:
            files, given = await self._form(request, Path(folder), self.settings.max_files_per_job)
            await asyncio.to_thread(self._check, files, given)
            try:
                ticket = self.service.workshop.join()
            except QueueFull as error:
                raise Refused(503, str(error), limit=self.settings.max_queue) from error
            try:
                job = await asyncio.to_thread(self.jobs.add, files, given)
            except BaseException:
                self.service.workshop.leave(ticket)
                raise
        self._start(job, ticket)
        body = {"job_id": job.id, "status": job.state, "queue_position": self._place(job)}
        return JSONResponse(body, 202, {"Location": f"/status/{job.id}"})

    async def quote(self, request: Request) -> Response:
        """What a photo will take."""
        with tempfile.TemporaryDirectory(dir=self.settings.jobs_folder, prefix="tmp") as folder:
            files, given = await self._form(request, Path(folder), 1)
            await asyncio.to_thread(self._check, files, given)
            data = await asyncio.to_thread(files[0][1].read_bytes)
            try:
                return JSONResponse(await asyncio.to_thread(shared.quoted, self.service, data, given))
            except RestoreError as error:
                raise Refused(422, self.service.words(error)) from error

    async def status(self, request: Request) -> Response:
        """How far a job is."""
        return JSONResponse(self._told(self._known(request), request))

    async def events(self, request: Request) -> Response:
        """How far a job is, whenever that changes, until it has ended."""
        job = self._known(request)

        async def lines() -> AsyncIterator[str]:
            told = ""
            while True:
                ended, now = job.ended, json.dumps(self._told(job, request))
                if now != told:
                    told = now
                    yield f"data: {now}\n\n"
                if ended:
                    return
                news = self._news.setdefault(job.id, asyncio.Event())
                with suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(news.wait(), _LOOK)

        headers = {"Cache-Control": "no-store"}
        return StreamingResponse(lines(), media_type="text/event-stream", headers=headers)

    async def processed(self, request: Request) -> Response:
        """A restored photo."""
        job, index = self._known(request), request.path_params["index"]
        item = job.items[index] if index < len(job.items) else None
        if item is None or not item.result or item.result["file"] != request.path_params["name"]:
            raise Refused(404, "there is no such file")
        path = self.jobs.result_folder(job, index) / str(item.result["file"])
        if not path.is_file():
            raise Refused(404, "the file was deleted; restore the photo again")
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
            if task := self._running.get(job.id):
                task.cancel()
            return JSONResponse({"job_id": job.id, "status": "cancelled"})
        await asyncio.to_thread(self.jobs.delete, job)
        return JSONResponse({"job_id": job.id, "status": "deleted"})

    async def models(self, _request: Request) -> Response:
        """The models."""
        return JSONResponse(await asyncio.to_thread(shared.listed, self.service))

    async def health(self, _request: Request) -> Response:
        """The loop answers."""
        return JSONResponse({"status": "ok"})

    async def ready(self, _request: Request) -> Response:
        """Whether a job would be worked on."""
        self._check_ready()
        workshop, restorer = self.service.workshop, self.service.restorer
        if workshop.silent > _STUCK:
            raise Refused(503, f"the worker is silent for {workshop.silent:.0f} seconds", limit=_STUCK)
        model = restorer.model(restorer.options)
        if not models.is_present(model, restorer.weights) and not model.url:
            raise Refused(503, f"the model {model.name} is not here and cannot be fetched")
        return JSONResponse({"status": "ready", "model": model.name, "queue_length": workshop.waiting})

    async def metrics(self, _request: Request) -> Response:
        """Numbers for Prometheus."""
        return Response(self.service.ledger.metrics(), media_type="text/plain; version=0.0.4")

    # What comes in

    def _check_ready(self) -> None:
        if self.service.workshop.closed:
            raise Refused(503, "the server is ending; try again in a minute")
        floor = self.settings.min_free_disk_mb
        if ledger.free_bytes(self.settings.processed_folder) < floor * 2**20:
            raise Refused(503, f"less than {floor} MB are left on the server's disk", limit=floor)

    async def _form(
        self, request: Request, folder: Path, most: int
    ) -> tuple[list[tuple[str, Path]], dict[str, object]]:
        """The files of a form, copied into `folder`, and its options."""
        largest = self.settings.max_file_size_mb * 2**20
        try:
            form = await request.form(max_files=most, max_fields=len(_OPTIONS), max_part_size=FORM)
        except (HTTPException, MultiPartException) as error:
            why = getattr(error, "detail", str(error))
            if "Too many files" in str(why):
                raise Refused(422, f"a request takes at most {most} files", limit=most) from error
            raise Refused(422, f"the form cannot be read: {why}") from error
        try:
            files, given = [], {}
            for name, value in form.multi_items():
                if isinstance(value, UploadFile):
                    if name not in ("files", "files[]", "file"):
                        raise Refused(422, f"files come in the field files, not {name!r}", allowed=["files"])
                    if (value.size or 0) > largest:
                        megabytes = self.settings.max_file_size_mb
                        raise Refused(413, f"{value.filename}: larger than {megabytes} MB", limit=largest)
                    path = folder / str(len(files))
                    with path.open("wb") as out:
                        await asyncio.to_thread(shutil.copyfileobj, value.file, out)
                    files.append((Path((value.filename or "photo").replace("\\", "/")).name, path))
                else:
                    given[name] = _typed(name, value)
        finally:
            await form.close()
        if not files:
            raise Refused(422, "there is no file: send one or more in the field files")
        return files, given

    def _check(self, files: list[tuple[str, Path]], given: dict[str, object]) -> None:
        """Refuse what is seen to be wrong or too large before any of it is worked on."""
        limits = self.settings.limits
        try:
            chosen = self.service.options({**given, "long_side": 0}, lambda: None)  # type: ignore[arg-type]
            model = self.service.restorer.model(chosen)
        except UnknownModel as error:
            raise Refused(422, self.service.words(error)) from error  # which lists them
        except InvalidOption as error:
            raise Refused(422, str(error)) from error
        if chosen.denoise < 1 and not model.pair:
            raise Refused(422, f"denoise is {chosen.denoise}, but {model.name} has no strength to choose")
        for name, path in files:
            try:
                width, height = photo.size(path.read_bytes())
            except RestoreError:
                continue  # one bad file of a job is told in its status
            if width * height > limits.input_pixels:
                raise Refused(
                    422,
                    f"{name} has {width} x {height} = {width * height / 1e6:.1f} megapixels",
                    limit=limits.input_pixels,
                )
            times = given.get("long_side") or 0
            outscale = float(times) / max(width, height) if times else chosen.outscale  # type: ignore[arg-type]
            if not 1 <= outscale <= 8:
                low, high = max(width, height), 8 * max(width, height)
                raise Refused(422, f"long_side is {times}; {name} allows from {low} to {high}")
            out = output_size(width, height, outscale)
            if out[0] * out[1] > limits.output_pixels:
                raise Refused(
                    422,
                    f"{name} would have {out[0]} x {out[1]} = {out[0] * out[1] / 1e6:.1f} megapixels",
                    limit=limits.output_pixels,
                )

    # What goes out

    def _known(self, request: Request) -> Job:
        job = self.jobs.get(request.path_params["job_id"])
        if job is None:
            raise Refused(404, "there is no such job; those that ended an hour ago are deleted")
        return job

    def _place(self, job: Job) -> int:
        ticket = self._tickets.get(job.id)
        return self.service.workshop.place(ticket) if ticket else 0

    def _told(self, job: Job, request: Request) -> dict[str, Any]:
        root = get_root_url(request=request, route_path=request.url.path, root_path=None)
        step = self._steps.get(job.id, Step())
        through = sum(bool(item.result or item.error) for item in job.items)
        part = _THOUSAND * step.done // step.total if step.total and not job.ended else 0
        total = _THOUSAND * len(job.items)
        return {
            "job_id": job.id,
            "status": job.state,
            "queue_position": self._place(job),
            "progress": {"done": min(_THOUSAND * through + part, total), "total": total},
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


def _typed(name: str, value: str) -> object:
    """An option of a form as what it is. Raises Refused."""
    kind = _OPTIONS.get(name)
    if kind is None:
        raise Refused(422, f"there is no option {name!r}", allowed=sorted(_OPTIONS))
    text = value.strip()
    if name == "face_enhance":
        return {"true": "on", "false": "off"}.get(text.lower(), text)
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise Refused(422, f"{name} is {text!r}", allowed=["true", "false"])
        return text.lower() == "true"
    try:
        return kind(text)
    except ValueError as error:
        words = {float: "a number", int: "a whole number"}[kind]
        raise Refused(422, f"{name} is {text!r}; it must be {words}") from error


_TYPES = {
    ".jpg": "image/jpeg",
    ".png": "image/png",
    ".webp": "image/webp",
    ".tif": "image/tiff",
    ".avif": "image/avif",
}
_STATUS = {
    "job_id": "0123456789abcdef0123456789abcdef",
    "status": "completed",
    "queue_position": 0,
    "progress": {"done": 1000, "total": 1000},
    "results": [
        {
            "original_filename": "old.jpg",
            "url": "http://127.0.0.1:7860/processed/0123456789abcdef0123456789abcdef/0/old_4x.jpg",
            "width": 1600,
            "height": 1200,
            "model": "restore-lite-x4",
            "faces": "faces: 2 found, 2 restored",
            "warnings": [],
        }
    ],
    "errors": [],
}


def routes(rest: Rest) -> APIRouter:
    """The routes of the interface, with what its description says of them."""
    router = APIRouter()

    def add(path: str, run: Callable, method: str, summary: str, status: int = 200, **extra: Any) -> None:  # noqa: ANN401
        example = _CURL.get((method, path), f"curl http://127.0.0.1:7860{path}")
        router.add_api_route(
            *(path, run),
            methods=[method],
            tags=["Restore photos"],
            summary=summary,
            description=f"`{example}`",
            status_code=status,
            response_model=None,
            openapi_extra=extra,
        )

    example = {"200": {"content": {"application/json": {"example": _STATUS}}}}
    forms = {many: _form_of("files", many=many) for many in (True, False)}
    add("/enhance", rest.enhance, "POST", "Restore photos: a job", 202, requestBody=forms[True])
    add("/status/{job_id}", rest.status, "GET", "How far a job is", parameters=[_JOB], responses=example)
    add("/status/{job_id}/events", rest.events, "GET", "The same as server-sent events", parameters=[_JOB])
    index = {"name": "index", "in": "path", "required": True, "schema": {"type": "integer"}}
    name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
    path = "/processed/{job_id}/{index:int}/{name}"
    add(path, rest.processed, "GET", "A restored photo; Range is understood", parameters=[_JOB, index, name])
    add("/jobs/{job_id}", rest.delete, "DELETE", "Cancel a job, or remove an ended one", parameters=[_JOB])
    add("/quote", rest.quote, "POST", "What a photo will take", requestBody=forms[False])
    add("/models", rest.models, "GET", "The models, and which are here")
    add("/health", rest.health, "GET", "The server answers")
    add("/ready", rest.ready, "GET", "A job would be worked on")
    add("/metrics", rest.metrics, "GET", "Numbers for Prometheus")
    return router


# Where it is more than the address
_CURL = {
    (
        "POST",
        "/enhance",
    ): "curl -F files=@old.jpg -F outscale=2 -F face_enhance=auto http://127.0.0.1:7860/enhance",
    ("POST", "/quote"): "curl -F files=@old.jpg -F outscale=2 http://127.0.0.1:7860/quote",
    ("DELETE", "/jobs/{job_id}"): "curl -X DELETE http://127.0.0.1:7860/jobs/{job_id}",
    ("GET", "/status/{job_id}/events"): "curl -N http://127.0.0.1:7860/status/{job_id}/events",
}
_JOB = {"name": "job_id", "in": "path", "required": True, "schema": {"type": "string"}}


def _form_of(files: str, *, many: bool) -> dict[str, Any]:
    """What a form may hold, for the description: the files, and every option with its default."""
    file: dict[str, Any] = {"type": "string", "format": "binary"}
    kinds = {str: "string", float: "number", int: "integer", bool: "boolean"}
    options: dict[str, Any] = {
        field.name: {"type": kinds[type(field.default)], "default": field.default}
        for field in fields(Options)
    }
    options["long_side"] = {"type": "integer", "default": 0, "description": "in pixels, in place of outscale"}
    options["face_enhance"] = {"enum": ["auto", "true", "false"], "default": "auto"}
    options["format"]["enum"] = list(FORMATS)
    schema = {
        "type": "object",
        "required": [files],
        "properties": {files: {"type": "array", "items": file} if many else file, **options},
    }
    return {"required": True, "content": {"multipart/form-data": {"schema": schema}}}
