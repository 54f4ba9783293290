"""Servers that are killed, hang or run out of disk space at a step."""

import errno
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import httpx

from tests.serving import exit_code, free_port, redirect_output, started

_FILE_EVENTS = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir"}


class Steps:
    """Count a server's file operations, tiles and stages, and fail at one of them."""

    def __init__(self, folder: Path, fault: str, at: int) -> None:
        self.fault, self.at, self.count, self.folder = fault, at, 0, folder
        self.watched = tuple(str(folder / name) for name in ("uploads", "processed"))
        self.log = os.open(folder / "steps", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.lock = threading.RLock()  # reentrant: a finalizer may remove a file while a step is counted

    def step(self, name: str) -> None:
        with self.lock:  # os.write() releases the GIL, and another thread's step would hide the fault
            self.count += self.fault != "hang" or name == "tile"
            count = self.count
            os.write(self.log, f"{name}\n".encode())
            if self.fault == "kill" and count == self.at:
                os.kill(os.getpid(), signal.SIGKILL)
        full = self.fault == "full" and count >= self.at and os.access(self.folder / "full", os.F_OK)
        if self.fault == "hang" and name == "tile" and count == self.at:
            threading.Event().wait()
        if full or (self.fault == "once" and count == self.at):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def audit(self, event: str, arguments: tuple) -> None:
        if event not in _FILE_EVENTS or not str(arguments[0]).startswith(self.watched):
            return
        if event == "open" and not (isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")):
            return
        if event in ("os.remove", "os.rmdir") and self.fault in ("once", "full"):
            return  # deleting needs no space
        name = Path(str(arguments[0])).name
        self.step(f"{event} {'.part' if name.endswith('.part') else name if len(name) < 30 else 'id'}")


@dataclass(frozen=True)
class Fault:
    """What goes wrong in a server.

    kind            "kill": it dies at step number `at`; "once": it finds the disk full at that step; "full":
                    it finds it full from that step on while the file folder/full exists; "hang": it hangs at
                    tile number `at`
    timeout         of the watchdog in seconds
    queue           how many jobs may wait
    max_file_bytes  limit on the size of a file
    """

    kind: str = ""
    at: int = 0
    timeout: float = 900
    queue: int = 20
    max_file_bytes: int = 0


def _serve(folder: Path, port: int, fault: Fault) -> None:
    import gradio
    import torch
    import uvicorn

    from restorer import result
    from restorer.images import encode, sandbox
    from restorer.inference import engine
    from restorer.web import jobs, server
    from restorer.web.settings import Settings
    from restorer.web.ui import layout

    redirect_output(folder / "log", "ab")
    torch.set_num_threads(1)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_TEMP_DIR"] = str(folder / "uploads")
    layout.build = lambda runner: gradio.Blocks()  # the page is not tested here
    settings = Settings(
        upload_folder=folder / "uploads",
        processed_folder=folder / "processed",
        restorer_weights=str(folder / "weights"),
        model="custom/quick",
        device="cpu:torch",
        min_free_disk_mb=0,
        watchdog_timeout=fault.timeout,
        max_queue=fault.queue,
    )
    app = server.asgi(settings)
    steps = Steps(folder, fault.kind, fault.at)

    def count_calls(owner: object, function: str, step: str) -> None:
        real = getattr(owner, function)

        def counted(*args, **kwargs):
            steps.step(step)
            return real(*args, **kwargs)

        setattr(owner, function, counted)

    if steps.fault in ("", "kill", "hang"):
        count_calls(sandbox, "_read_photo", "decode")
        count_calls(result.encode, "encode", "encode")
        count_calls(engine.Guarded, "__call__", "tile")
        count_calls(jobs.Jobs, "begin", "begin")
    count_calls(os, "fsync", "fsync")  # which may be the first to report a full disk
    assert result.encode is encode
    sys.addaudithook(steps.audit)
    if limit := fault.max_file_bytes:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")


@contextmanager
def running(folder: Path, kind: str = "", **options: int) -> Iterator["Served"]:
    """Start a server with a fault, see Fault, and kill it at the end. It writes its steps to folder/steps."""
    process = started(_serve, folder, port := free_port(), Fault(kind, **options))
    served = Served(process, f"http://127.0.0.1:{port}", folder)
    try:
        served.await_answer()
        yield served
    finally:
        served.kill()


class Served:
    """A running server and a client of it."""

    def __init__(self, process: BaseProcess, address: str, folder: Path) -> None:
        self.process, self.folder = process, folder
        self.client = httpx.Client(base_url=address, timeout=60)

    @property
    def alive(self) -> bool:
        return self.process.is_alive()

    def kill(self) -> None:
        self.process.kill()
        exit_code(self.process)
        self.client.close()

    def await_answer(self) -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and self.alive:
            try:
                self.client.get("/health")
                return
            except httpx.HTTPError:
                time.sleep(0.02)
        if self.alive:
            raise AssertionError("the server did not start")

    def post(self, *files: tuple[str, bytes], **options: str) -> httpx.Response | None:
        """Submit a job and return the answer; None if the server died meanwhile."""
        try:
            return self.client.post("/enhance", files=[("files", file) for file in files], data=options)
        except httpx.HTTPError:
            return None

    def ended(self, job_id: str, seconds: float = 60) -> dict | None:
        """Wait for a job to end and return its status; None if the server died meanwhile."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                status = self.client.get(f"/status/{job_id}").json()
            except httpx.HTTPError:
                return None
            if status["status"] not in ("queued", "processing"):
                return status
            time.sleep(0.02)
        raise AssertionError(f"not ended: {status}\n{(self.folder / 'log').read_text()[-3000:]}")
