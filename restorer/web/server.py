"""Build the app from page, REST API, queue, cleanup and middleware, and serve it."""

import asyncio
import gc
import logging
import os
import re
import signal
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import filelock
import gradio as gr
from fastapi import FastAPI
from fastapi.exception_handlers import http_exception_handler
from fastapi.exceptions import RequestValidationError
from gradio import http_server, processing_utils
from gradio import routes as gradio_routes
from gradio.route_utils import FnIndexInferError
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Match
from starlette.types import Scope

from .. import atomic
from ..errors import InvalidOption, RestoreError
from ..images import sandbox
from ..options import PRESETS
from ..pipeline import Restorer
from . import auth, client_api, metrics, middleware
from .cleanup import sweep
from .gpu_queue import GpuQueue
from .job_runner import JobRunner
from .jobs import Jobs
from .previews import CACHED
from .refusal import Refusal, invalid_values
from .rest import forms, openapi
from .rest.routes import RestApi
from .service import FULL, UNEXPECTED, Service
from .settings import Settings
from .ui import components, layout
from .worker import Worker

_WARM_UP_DELAY = 1  # seconds; the first page is served before importing torch slows everything down
_LOCK_TIMEOUT = 2  # seconds for the previous server to exit
_SHUTDOWN_TIMEOUT = 6  # seconds for the current tile, so that the server exits within ten


class Server:
    """A server, built but not yet serving.

    Raises OSError if a folder cannot be written or another server uses it, InvalidOption for a ROOT_PATH that
    is a path of the server itself, and UnknownModel for a MODEL that does not exist.
    """

    def __init__(self, settings: Settings) -> None:
        if middleware.SERVED.match(settings.root_path):
            raise InvalidOption(f"ROOT_PATH is {settings.root_path!r}, a path of the server; use another")
        for name, folder in (
            ("UPLOAD_FOLDER", settings.jobs_folder),
            ("PROCESSED_FOLDER", settings.processed_folder),
        ):
            try:
                folder.mkdir(parents=True, exist_ok=True)
                atomic.check_writable(folder)
            except OSError as error:
                raise OSError(f"cannot write to {name}, {folder}: {error.strerror}") from error
        self.settings, self.worker, self._stopped = settings, Worker(settings.watchdog_timeout), False
        self.queue = GpuQueue(self.worker, settings.max_queue)
        self.restorer = _restorer_class()(
            weights=settings.restorer_weights or None,
            device=settings.device or None,
            limits=settings.limits,
            auto_cpu_megapixels=settings.auto_cpu_megapixels,
            decoder=sandbox.decode,
            model=settings.model,
        )
        free = partial(metrics.free_bytes, settings.processed_folder)
        exported = metrics.Metrics(self.worker, self.queue, free)
        self.service = Service(settings, self.restorer, self.worker, self.queue, exported)
        self._lock = filelock.FileLock(settings.jobs_folder / ".lock", thread_local=False)
        try:
            self._lock.acquire(timeout=_LOCK_TIMEOUT)  # a killed server may still be writing to the disk
        except filelock.Timeout as error:
            raise OSError(
                f"{settings.upload_folder} is used by another server; set UPLOAD_FOLDER and PROCESSED_FOLDER"
            ) from error
        self.jobs = Jobs(settings.jobs_folder, settings.processed_folder)
        self.runner = JobRunner(self.service, self.jobs)
        # serve results in place instead of copying them
        gr.set_static_paths([settings.processed_folder, *components.IMAGES])
        processing_utils.async_ssrf_protected_download = middleware.refuse_download
        # Gradio asks Matplotlib for its backend in the first event; choosing one stops all answers for 0.2 s
        os.environ.setdefault("MPLBACKEND", "agg")
        http_server.get_space = lambda: None  # type: ignore[assignment]  # a Space gets a server that edits code
        # Gradio's own allows pages of any site to send requests and read answers, with cookies
        gradio_routes.CustomCORSMiddleware = partial(  # type: ignore[misc]  # pyright: ignore[reportPrivateImportUsage]
            middleware.SameOriginMiddleware,
            proxies=settings.forwarded_allow_ips,
            root_path=settings.root_path,
            allowed_origins=re.findall(r"[^\s,]+", settings.allowed_origins),
        )
        self.blocks = self.queue.attach(layout.build(self.runner), self.runner.run)

    def options(self) -> dict[str, Any]:
        """Return the options of Blocks.launch() and gr.mount_gradio_app()."""
        settings = self.settings
        max_file_bytes = settings.max_file_size_mb * 2**20
        authentication = [Middleware(auth.ApiKeyMiddleware, key=settings.api_key)] if settings.api_key else []
        own_routes = openapi.routes(RestApi(self.runner))
        return {
            "theme": components.theme(),
            "css_paths": [layout.STYLE],
            "js": layout.SCRIPT.read_text(),
            "head": "".join(f"<script>{script.read_text()}</script>" for script in layout.HEAD_SCRIPTS),
            "blocked_paths": [str(settings.processed_folder / CACHED), str(settings.jobs_folder)],
            "max_file_size": max_file_bytes,
            "show_error": False,
            "enable_monitoring": False,
            "run_history": False,
            "ssr_mode": False,
            "footer_links": [],
            "app_kwargs": {
                "routes": own_routes,
                "middleware": [
                    Middleware(
                        middleware.BodyLimitMiddleware,
                        limit=max(settings.max_files_per_job, 2) * max_file_bytes + forms.FORM_BYTES,
                        timeout=settings.upload_timeout,
                    ),
                    *authentication,
                    Middleware(
                        middleware.RouteAllowlist,
                        is_own_route=partial(_matches_any, own_routes),
                        endpoints=client_api.NAMES,
                    ),
                    Middleware(
                        middleware.QueueFullMiddleware,
                        queue=self.queue,
                        is_accepted=lambda key: self.jobs.find(key) is not None,
                    ),
                ],
                "exception_handlers": {
                    Refusal: _handle_refusal,
                    HTTPException: _handle_http_error,
                    Exception: _handle_unexpected_error,
                    OSError: _handle_disk_full,
                    RequestValidationError: _handle_validation_error,
                    **dict.fromkeys(
                        (LookupError, TypeError, ValueError, FnIndexInferError), _handle_invalid_call
                    ),
                },
                "lifespan": self._lifespan,
            },
        }

    def asgi(self) -> FastAPI:
        """Return the server as an ASGI application."""
        app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
        self.blocks.has_launched = True  # else Gradio accepts any file of this machine as an upload
        return gr.mount_gradio_app(app, self.blocks, path="/", **self.options())

    @asynccontextmanager
    async def _lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        self.queue.set_app(app)
        await self.runner.resume()
        tasks = [asyncio.create_task(self._sweep()), asyncio.create_task(self._watch())]
        warm_up = threading.Timer(_WARM_UP_DELAY, _warm_up, [self.restorer])
        warm_up.daemon = True
        warm_up.start()
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            warm_up.cancel()
            await asyncio.to_thread(self._stop_jobs)
            # Gradio deletes all uploads when it ends; these expire as usual
            self.blocks.temp_file_sets.clear()
            self._lock.release()
            # exiting while a thread is inside torch aborts the process
            await asyncio.to_thread(warm_up.join, _SHUTDOWN_TIMEOUT)

    async def _sweep(self) -> None:
        settings = self.settings
        folders = [
            settings.upload_folder,
            settings.jobs_folder,
            settings.processed_folder,
            settings.processed_folder / CACHED,
        ]
        while True:
            try:
                deleted = await asyncio.to_thread(
                    sweep, folders, in_use=self.jobs.is_unfinished, max_age=settings.retention_seconds
                )
                self.jobs.forget_deleted()
            except Exception:  # noqa: BLE001  the next sweep must run
                logging.getLogger(__name__).exception("cleanup failed")
            else:
                if deleted:
                    logging.getLogger(__name__).info("deleted %d expired folders", len(deleted))
            await asyncio.sleep(settings.cleanup_interval)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(1)
            self.worker.watch()
            # uploads do not expire while they wait
            if waiting := list(self.queue.uploads()):
                await asyncio.to_thread(self.service.touch, *waiting)

    def close(self) -> None:
        """Stop the jobs and close the page."""
        self._stop_jobs()
        closing = threading.Thread(target=self.blocks.close, kwargs={"verbose": False}, daemon=True)
        closing.start()
        closing.join(1)
        logging.shutdown()
        sys.stdout.flush()

    def _stop_jobs(self) -> None:
        """Refuse new jobs, stop the running one and requeue it for the next process."""
        if not self._stopped:
            self._stopped = True
            self.worker.close(_SHUTDOWN_TIMEOUT)  # new jobs are answered with 503 meanwhile
            self.jobs.requeue()


def serve(settings: Settings) -> None:
    """Serve until Ctrl-C or SIGTERM, then finish the current tile and exit with status 0.

    If the device hangs, restart the process, as a thread inside the device cannot be ended.

    Raises OSError if the port is in use, or another server uses the folders.
    """
    stopping = False

    def stop(*_: object) -> None:  # an exception could leave a lock held, or be lost in a destructor
        nonlocal stopping
        stopping = True

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    metrics.configure_logging(as_json=settings.log_format == "json")
    server = Server(settings)
    server.blocks.launch(
        server_name=settings.host,
        server_port=settings.port,
        prevent_thread_lock=True,
        **server.options(),
    )
    while not stopping and not server.worker.stuck.wait(0.2):
        pass
    server.close()
    if stopping:
        os._exit(0)  # a regular exit aborts if a thread is inside torch
    timeout = settings.watchdog_timeout
    logging.getLogger(__name__).error("no progress for %g s; restarting the server", timeout)
    proxies = {"FORWARDED_ALLOW_IPS": settings.forwarded_allow_ips}  # prepare_gradio() has cleared it
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **proxies})


def asgi(settings: Settings) -> FastAPI:
    """Return a server as an ASGI application. Raises what Server() raises."""
    metrics.configure_logging(as_json=settings.log_format == "json")
    return Server(settings).asgi()


def _restorer_class() -> type[Restorer]:
    if os.environ.get("SPACES_ZERO_GPU", "").lower() not in ("1", "t", "true"):  # as spaces reads it
        return Restorer
    from .zerogpu import ZeroGpuRestorer

    return ZeroGpuRestorer


def _warm_up(restorer: Restorer) -> None:
    """Load and time the models of the Quality control.

    Objects that exist by then are excluded from garbage collection, which would pause every answer for 0.2 s.
    """
    sandbox.start()
    try:
        restorer.measure()
        for preset in PRESETS if restorer.options.model in PRESETS else ():
            restorer.measure(model=preset)
    except RestoreError as error:
        logging.getLogger(__name__).warning("%s", error)  # the page shows it once a photo is chosen
    gc.freeze()


def _handle_disk_full(request: Request, error: OSError) -> Response:
    """Answer 507 to an upload that could not be stored."""
    if not atomic.is_disk_full(error):
        raise error
    logging.getLogger(__name__).error("an upload was not stored", exc_info=error)
    return Refusal(507, FULL).response(request.scope)


def _handle_refusal(request: Request, error: Refusal) -> Response:
    return error.response(request.scope)


async def _handle_http_error(request: Request, error: HTTPException) -> Response:
    if _is_gradio(request):
        return await http_exception_handler(request, error)
    return Refusal(error.status_code, str(error.detail).lower(), headers=error.headers).response(
        request.scope
    )


def _handle_unexpected_error(request: Request, _error: Exception) -> Response:
    """Answer 500; starlette raises the error again, so that it is logged."""
    return Refusal(500, UNEXPECTED).response(request.scope)


def _handle_validation_error(request: Request, error: RequestValidationError) -> Response:
    """Answer without the body, which FastAPI's own handler echoes and which may not be text."""
    if not _is_gradio(request):
        return Refusal(422, invalid_values(error.errors())).response(request.scope)
    errors = [{"loc": list(one["loc"]), "msg": one["msg"]} for one in error.errors()]
    return JSONResponse({"detail": errors}, 422)


def _is_gradio(request: Request) -> bool:
    """Return whether a request is for a route of Gradio, whose clients read its own format of errors."""
    return "/gradio_api/" in request.url.path


def _handle_invalid_call(request: Request, error: Exception) -> Response:
    """Answer 422 where Gradio fails on a function or parameter that does not exist."""
    if request.method != "POST" or not re.search(r"/gradio_api/(queue/join|call/|run/)", request.url.path):
        raise error
    logging.getLogger(__name__).info("invalid Gradio call: %s", type(error).__name__)
    return JSONResponse({"detail": "unknown function or invalid parameters"}, 422)


def _matches_any(routes: list[BaseRoute], scope: Scope) -> bool:
    return any(route.matches(scope)[0] is not Match.NONE for route in routes)
