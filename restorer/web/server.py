"""Put page, programs' interfaces, queue, janitor and guard together, and serve them."""

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
from fastapi.exceptions import RequestValidationError
from gradio import processing_utils
from gradio import routes as gradio_routes
from gradio.route_utils import FnIndexInferError
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Match
from starlette.types import Scope

from .. import atomic
from ..errors import RestoreError
from ..images import sandbox
from ..options import PRESETS
from ..pipeline import Restorer
from . import auth, client_api, metrics, middleware
from .cleanup import CacheCleaner
from .previews import CACHED
from .rest import forms, openapi, routes
from .rest.jobs import Jobs
from .service import FULL, Service
from .settings import Settings
from .ui import layout, restore_tab
from .worker import Worker

_GRACE = 1  # second in which the first page goes out, before importing torch slows everything
_LOCK = 2  # seconds in which the server before has gone
_PATIENCE = 6  # seconds for the tile under way when the server ends: all is over within ten


class Server:
    """One server of these settings, built but not yet serving."""

    def __init__(self, settings: Settings) -> None:
        for folder in (settings.jobs_folder, settings.processed_folder):
            folder.mkdir(parents=True, exist_ok=True)
        self.settings, self.worker = settings, Worker(settings.max_queue, settings.watchdog_timeout)
        self.restorer = _restorer_class()(
            weights=settings.restorer_weights or None,
            device=settings.device or None,
            limits=settings.limits,
            auto_cpu_megapixels=settings.auto_cpu_megapixels,
            decoder=sandbox.decode,
            model=settings.model,
        )
        free = partial(metrics.free_bytes, settings.processed_folder)
        told = metrics.Metrics(self.worker, free)
        service = Service(settings, self.restorer, self.worker, told)
        self._lock = filelock.FileLock(settings.jobs_folder / ".lock", thread_local=False)
        try:
            self._lock.acquire(timeout=_LOCK)  # one that was killed may still be at work for the disk
        except filelock.Timeout as error:
            taken = f"{settings.upload_folder} is another server's: set UPLOAD_FOLDER and PROCESSED_FOLDER"
            raise OSError(taken) from error
        self.jobs = Jobs(settings.jobs_folder, settings.processed_folder)
        self.rest = routes.RestApi(service, self.jobs)
        self.janitor = CacheCleaner(
            settings.upload_folder,
            settings.jobs_folder,
            settings.processed_folder,
            settings.processed_folder / CACHED,
            needed=self.jobs.needed,
            age=settings.retention_seconds,
        )
        # served from where they lie, not copied
        gr.set_static_paths([settings.processed_folder, *restore_tab.SAMPLES])
        processing_utils.async_ssrf_protected_download = middleware.refuse_download
        # Gradio's lets pages of any site read and send, cookies included
        gradio_routes.CustomCORSMiddleware = partial(  # type: ignore[misc]  # pyright: ignore[reportPrivateImportUsage]
            middleware.SameOriginMiddleware, proxies=settings.forwarded_allow_ips
        )
        # its own line is before the device; api_open would let programs pass by Gradio's
        self.blocks = layout.build(service).queue(max_size=None, default_concurrency_limit=8, api_open=False)

    def options(self) -> dict[str, Any]:
        """What Blocks.launch() and gr.mount_gradio_app() are both given."""
        settings = self.settings
        largest = settings.max_file_size_mb * 2**20
        lock = [Middleware(auth.ApiKeyMiddleware, key=settings.api_key)] if settings.api_key else []
        own = openapi.routes(self.rest)
        return {
            "theme": layout.theme(),
            "css_paths": [layout.STYLE],
            "js": layout.SCRIPT.read_text(),
            "blocked_paths": [str(settings.processed_folder / CACHED), str(settings.jobs_folder)],
            "max_file_size": largest,
            "show_error": False,
            "enable_monitoring": False,
            "run_history": False,
            "ssr_mode": False,
            "footer_links": ["api"],
            "app_kwargs": {
                "routes": own,
                "middleware": [
                    Middleware(
                        middleware.BodyLimitMiddleware,
                        limit=settings.max_files_per_job * largest + forms.FORM_BYTES,
                    ),
                    *lock,
                    Middleware(
                        middleware.RouteAllowlist, ours=partial(_matched, own), calls=client_api.NAMES
                    ),
                    Middleware(forms.QueueFullMiddleware, worker=self.worker),
                ],
                "exception_handlers": {
                    forms.Refusal: _refused,
                    OSError: _not_stored,
                    RequestValidationError: _not_valid,
                    **dict.fromkeys((LookupError, TypeError, ValueError, FnIndexInferError), _misread),
                },
                "lifespan": self._lifespan,
            },
        }

    def asgi(self) -> FastAPI:
        """An ASGI application, for a host that serves it."""
        app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
        self.blocks.has_launched = True  # else Gradio takes any file of this machine for an upload
        return gr.mount_gradio_app(app, self.blocks, path="/", **self.options())

    @asynccontextmanager
    async def _lifespan(self, _app: FastAPI) -> AsyncIterator[None]:
        self.rest.resume()
        tasks = [asyncio.create_task(self._sweep()), asyncio.create_task(self._watch())]
        warming = threading.Timer(_GRACE, _warm, [self.restorer])
        warming.daemon = True
        warming.start()
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            warming.cancel()
            self._lock.release()
            # who ends the process while a thread is inside torch makes an abort of it
            await asyncio.to_thread(warming.join, _PATIENCE)

    async def _sweep(self) -> None:
        while True:
            try:
                gone = await asyncio.to_thread(self.janitor.sweep)
                self.jobs.forget_deleted()
            except Exception:  # noqa: BLE001  the next sweep must come
                logging.getLogger(__name__).exception("the sweep failed")
            else:
                if gone:
                    logging.getLogger(__name__).info("swept %d folders", len(gone))
            await asyncio.sleep(self.settings.cleanup_interval)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(1)
            self.worker.watch()

    def close(self) -> None:
        """Stop what is worked on, put it back for the next process, and take nothing any more."""
        self.worker.close(_PATIENCE)  # new jobs are answered with 503 meanwhile
        self.jobs.put_back()
        closing = threading.Thread(target=self.blocks.close, kwargs={"verbose": False}, daemon=True)
        closing.start()
        closing.join(1)
        logging.shutdown()
        sys.stdout.flush()


def serve(settings: Settings) -> None:
    """Serve until Ctrl-C or SIGTERM, then end the process with code 0; the tile under way is waited for.

    Where the device hangs the process starts itself anew: a thread inside of it cannot be ended.

    Raises OSError where the port is taken, or the folders are another server's.
    """
    stopping = False

    def stop(*_: object) -> None:  # raising here could leave a lock held, or be lost in a destructor
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
        os._exit(0)  # a thread inside torch would turn an orderly exit into an abort
    logging.getLogger(__name__).error("the device does not respond; restarting the server")
    proxies = {"FORWARDED_ALLOW_IPS": settings.forwarded_allow_ips}  # which uvicorn was not told of
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **proxies})


def asgi(settings: Settings) -> FastAPI:
    """The same server as an ASGI application, for a host that serves it."""
    return Server(settings).asgi()


def _restorer_class() -> type[Restorer]:
    if os.environ.get("SPACES_ZERO_GPU", "").lower() not in ("1", "t", "true"):  # as the package reads it
        return Restorer
    from .zerogpu import ZeroGpuRestorer

    return ZeroGpuRestorer


def _warm(restorer: Restorer) -> None:
    """Load and time the models that the page offers in front while nobody waits for them.

    What is there then stays: a collection that looked at all of it would stop every answer for 0.2 s.
    """
    sandbox.start()
    try:
        restorer.measure()
        for preset in PRESETS if restorer.options.model in PRESETS else ():
            restorer.measure(model=preset)
    except RestoreError as error:
        logging.getLogger(__name__).warning("%s", error)  # the page says it when a photo is chosen
    gc.freeze()


def _not_stored(_request: Request, error: OSError) -> Response:
    """What could not be written down is not accepted."""
    if not atomic.is_disk_full(error):
        raise error
    logging.getLogger(__name__).error("an upload was not stored", exc_info=error)
    return forms.Refusal(507, FULL).response()


def _refused(_request: Request, error: forms.Refusal) -> Response:
    return error.response()


def _not_valid(_request: Request, error: RequestValidationError) -> Response:
    """FastAPI's own answer has the body in it, and none for a body that is no text."""
    told = [{"loc": list(one["loc"]), "msg": one["msg"]} for one in error.errors()]
    return JSONResponse({"detail": told}, 422)


def _misread(request: Request, error: Exception) -> Response:
    """Gradio looks for functions and parameters where a request says they are, and does not check first."""
    if request.method != "POST" or not re.search(r"/gradio_api/(queue/join|call/|run/)", request.url.path):
        raise error
    logging.getLogger(__name__).info("a call was refused: %s", type(error).__name__)
    return JSONResponse({"detail": "there is no such function, or it has other parameters"}, 422)


def _matched(routes: list[BaseRoute], scope: Scope) -> bool:
    return any(route.matches(scope)[0] is not Match.NONE for route in routes)
