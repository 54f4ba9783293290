"""Put page, queue and guard together, and serve them."""

import logging
import os
import signal
import sys
import threading
from contextlib import suppress

import gradio as gr
from starlette.middleware import Middleware

from ..errors import RestoreError
from ..pipeline import Restorer
from ..settings import Settings
from . import handlers, ui
from .guard import KeyGuard
from .work import AGE, KEPT, Workshop, sweep

_PATIENCE = 8  # seconds for the tile under way when the server ends


def build(settings: Settings, workshop: Workshop) -> tuple[Restorer, gr.Blocks]:
    """The restorer and the queued Blocks of a server with these settings."""
    for folder in (settings.upload_folder, settings.processed_folder):
        folder.mkdir(parents=True, exist_ok=True)
    sweep(settings.processed_folder, AGE)
    # served from where they lie, not copied
    gr.set_static_paths([settings.processed_folder, *handlers.SAMPLES])
    restorer = Restorer(
        weights=settings.restorer_weights or None,
        device=settings.device or None,
        limits=settings.limits,
        model=settings.model,
    )
    blocks = ui.build(restorer, settings, workshop)
    # api_open would let programs pass by the queue
    return restorer, blocks.queue(max_size=settings.max_queue, api_open=False)


def _warm(restorer: Restorer) -> None:
    """Load and time the default model while nobody waits for it."""
    try:
        restorer.measure()
    except RestoreError as error:
        logging.getLogger(__name__).warning("%s", error)  # the page says it when a photo is chosen


def serve(settings: Settings) -> None:
    """Serve until Ctrl-C or SIGTERM, then end the process with code 0; the tile under way is waited for.

    Raises OSError where the port is taken.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    workshop = Workshop()
    guard = [Middleware(KeyGuard, key=settings.api_key)] if settings.api_key else []
    restorer, blocks = build(settings, workshop)
    with suppress(KeyboardInterrupt):  # as early as during the launch
        blocks.launch(
            server_name=settings.host,
            server_port=settings.port,
            theme=ui.theme(),
            css_paths=[ui.STYLE],
            js=ui.SCRIPT.read_text(),
            blocked_paths=[str(settings.processed_folder / KEPT)],
            max_file_size=settings.max_file_size_mb * 2**20,
            show_error=False,
            enable_monitoring=False,
            run_history=False,
            ssr_mode=False,
            footer_links=[],
            app_kwargs={"middleware": guard},
            prevent_thread_lock=True,
        )
        threading.Thread(target=_warm, args=(restorer,), daemon=True).start()
        blocks.block_thread()
    workshop.close(_PATIENCE)
    logging.shutdown()
    sys.stdout.flush()
    os._exit(0)  # a thread that is inside torch would turn an ordinary end into an abort
