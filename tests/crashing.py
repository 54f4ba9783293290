"""`python tests/crashing.py`: fork servers that are killed, hang or run out of disk space at a step.

Each line of standard input is a JSON object with

    folder, port
    fault           "kill": die at step number `at`; "once": find the disk full at that step; "full": find it
                    full from that step on while the file folder/full exists; "hang": hang at tile number `at`
    timeout         of the watchdog in seconds
    queue           how many jobs may wait
    max_file_bytes  limit on the size of a file

The process id is written to standard output, the steps to folder/steps.
"""

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

_FILE_EVENTS = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir"}


class Steps:
    """Count a server's file operations, tiles and stages, and fail at one of them."""

    def __init__(self, folder: Path, fault: str, at: int) -> None:
        self.fault, self.at, self.count, self.folder = fault, at, 0, folder
        self.watched = tuple(str(folder / name) for name in ("uploads", "processed"))
        self.log = os.open(folder / "steps", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def step(self, name: str) -> None:
        self.count += self.fault != "hang" or name == "tile"
        os.write(self.log, f"{name}\n".encode())
        full = self.fault == "full" and self.count >= self.at and os.access(self.folder / "full", os.F_OK)
        if self.fault == "kill" and self.count == self.at:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.fault == "hang" and name == "tile" and self.count == self.at:
            threading.Event().wait()
        if full or (self.fault == "once" and self.count == self.at):
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


def serve(request: dict) -> None:
    import gradio
    import uvicorn

    from restorer import result
    from restorer.images import encode, sandbox
    from restorer.inference import engine
    from restorer.web import server
    from restorer.web.rest import jobs
    from restorer.web.settings import Settings
    from restorer.web.ui import layout

    folder = Path(request["folder"])
    log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ["GRADIO_TEMP_DIR"] = str(folder / "uploads")
    layout.build = lambda service: gradio.Blocks()  # the page is not tested here
    settings = Settings(
        upload_folder=folder / "uploads",
        processed_folder=folder / "processed",
        restorer_weights=str(folder / "weights"),
        model="custom/quick",
        device="cpu:torch",
        min_free_disk_mb=0,
        watchdog_timeout=request.get("timeout", 900),
        max_queue=request.get("queue", 20),
    )
    app = server.asgi(settings)
    steps = Steps(folder, request.get("fault", ""), request.get("at", 0))

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
    if limit := request.get("max_file_bytes"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    uvicorn.run(app, host="127.0.0.1", port=request["port"], log_level="warning")


class Servers:
    """Start such servers; each is killed when its context exits."""

    def __init__(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "GRADIO_ANALYTICS_ENABLED": "False"}
        self._parent = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    @contextmanager
    def running(self, folder: Path, **options: object) -> Iterator["Served"]:
        import socket

        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        assert self._parent.stdin and self._parent.stdout
        self._parent.stdin.write(json.dumps({"folder": str(folder), "port": port, **options}) + "\n")
        self._parent.stdin.flush()
        served = Served(int(self._parent.stdout.readline()), f"http://127.0.0.1:{port}", folder)
        try:
            served.await_answer()
            yield served
        finally:
            served.kill()

    def close(self) -> None:
        self._parent.kill()
        self._parent.wait()


class Served:
    """A running server and a client of it."""

    def __init__(self, pid: int, address: str, folder: Path) -> None:
        self.pid, self.folder = pid, folder
        self.client = httpx.Client(base_url=address, timeout=60)

    @property
    def alive(self) -> bool:
        try:
            return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except OSError:
            return False

    def kill_now(self) -> None:
        if self.alive:
            os.kill(self.pid, signal.SIGKILL)

    def kill(self) -> None:
        self.kill_now()
        while Path(f"/proc/{self.pid}").exists():  # its threads may still be writing to the disk
            time.sleep(0.01)
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


def main() -> None:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    import torch  # noqa: F401  imported once, as it takes seconds

    from restorer.models import architectures  # noqa: F401
    from restorer.web import server  # noqa: F401

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children are reaped automatically
    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            try:
                serve(json.loads(line))
            except BaseException:  # noqa: BLE001  must not reach the parent's loop
                traceback.print_exc()
            os._exit(1)
        print(pid, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
