"""`python tests/crashing.py`: servers that die or find no room at a step, forked from one that is imported.

Each line of standard input is a JSON object: folder, port, and how it fails: at the step of that number it
is killed ("kill"), finds the disk full once ("once") or as long as the file "full" is there ("full"), or
at the tile of that number it hangs ("hang", with "patience" for the deadline).
"file" limits the bytes of a file. The process number is answered; the steps are written to folder/steps.
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

_FILE_STEPS = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir"}


class Steps:
    """Counts what a server does with its files, its tiles, and the beginnings of its stages."""

    def __init__(self, folder: Path, fault: str, at: int) -> None:
        self.fault, self.at, self.count, self.folder = fault, at, 0, folder
        self.places = [str(folder / name) for name in ("uploads", "processed")]
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

    def audit(self, event: str, given: tuple) -> None:
        if event not in _FILE_STEPS or not str(given[0]).startswith(tuple(self.places)):
            return
        if event == "open" and not (isinstance(given[1], str) and set(given[1]) & set("wax+")):
            return
        if event in ("os.remove", "os.rmdir") and self.fault in ("once", "full"):
            return  # there is always room to delete
        name = Path(str(given[0])).name
        self.step(f"{event} {'.part' if name.endswith('.part') else name if len(name) < 30 else 'id'}")


def serve(asked: dict) -> None:
    import gradio
    import uvicorn

    from restorer import result
    from restorer.images import encode, sandbox
    from restorer.inference import tiling
    from restorer.web import server
    from restorer.web.rest import jobs
    from restorer.web.settings import Settings
    from restorer.web.ui import layout

    folder = Path(asked["folder"])
    log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ["GRADIO_TEMP_DIR"] = str(folder / "uploads")
    layout.build = lambda service: gradio.Blocks()  # the page has tests of its own
    settings = Settings(
        upload_folder=folder / "uploads",
        processed_folder=folder / "processed",
        restorer_weights=str(folder / "weights"),
        model="custom/quick",
        device="cpu:torch",
        min_free_disk_mb=0,
        watchdog_timeout=asked.get("patience", 900),
        max_queue=asked.get("queue", 20),
    )
    app = server.asgi(settings)
    steps = Steps(folder, asked.get("fault", ""), asked.get("at", 0))

    def before(module: object, name: str, said: str) -> None:
        really = getattr(module, name)

        def stepped(*given, **options):
            steps.step(said)
            return really(*given, **options)

        setattr(module, name, stepped)

    if steps.fault in ("", "kill", "hang"):
        before(sandbox, "_photo", "decode")
        before(result.encode, "encode", "encode")
        before(tiling._Watched, "_answers", "tile")
        before(jobs.Jobs, "begin", "begin")
    before(os, "fsync", "fsync")  # a full disk may be told of as late as this
    assert result.encode is encode
    sys.addaudithook(steps.audit)
    if limit := asked.get("file"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    uvicorn.run(app, host="127.0.0.1", port=asked["port"], log_level="warning")


class Servers:
    """Starts such servers; those still running are killed at the end."""

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
    def running(self, folder: Path, **fault: object) -> Iterator["Served"]:
        import socket

        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        assert self._parent.stdin and self._parent.stdout
        self._parent.stdin.write(json.dumps({"folder": str(folder), "port": port, **fault}) + "\n")
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
        while Path(f"/proc/{self.pid}").exists():  # its threads too, which may be at work for the disk
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
            raise AssertionError("the server did not come up")

    def post(self, *files: tuple[str, bytes], **options: str) -> httpx.Response | None:
        """The answer to a job; None from a server that died meanwhile."""
        try:
            return self.client.post("/enhance", files=[("files", file) for file in files], data=options)
        except httpx.HTTPError:
            return None

    def ended(self, job_id: str, seconds: float = 60) -> dict | None:
        """What is told of a job that has ended; None from a server that died meanwhile."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                told = self.client.get(f"/status/{job_id}").json()
            except httpx.HTTPError:
                return None
            if told["status"] not in ("queued", "processing"):
                return told
            time.sleep(0.02)
        raise AssertionError(f"not ended: {told}\n{(self.folder / 'log').read_text()[-3000:]}")


def main() -> None:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    import torch  # noqa: F401  what takes seconds, once

    from restorer.models import architectures  # noqa: F401
    from restorer.web import server  # noqa: F401

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children are nobody's to wait for
    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            try:
                serve(json.loads(line))
            except BaseException:  # noqa: BLE001  this is no parent's to see: to the log, and out
                traceback.print_exc()
            os._exit(1)
        print(pid, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
