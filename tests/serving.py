"""Servers in processes of their own, forked from one that has imported what takes seconds."""

import multiprocessing
import os
import runpy
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path

import httpx

ROOT = Path(__file__).parents[1]
APP, STANDIN, HELD = ROOT / "app.py", ROOT / "tests/standin.py", ROOT / "tests/held.py"
_FORKING = multiprocessing.get_context("forkserver")
# What cannot be imported from the current folder is not preloaded, and takes seconds longer
_FORKING.set_forkserver_preload(["torch", "gradio", "restorer.web.server", "restorer.models.architectures"])
_SPAWNING = multiprocessing.get_context("spawn")


def started(target: Callable, *arguments: object, preloaded: bool = True) -> BaseProcess:
    """Start a process, which ends with this one.

    preloaded  fork it from one that has imported PyTorch and Gradio. Not if the environment has variables
               that are read at import, such as OMP_NUM_THREADS, TMPDIR and HF_*
    """
    context = _FORKING if preloaded else _SPAWNING
    process = context.Process(target=_with_parent, args=(target, *arguments), daemon=True)
    process.start()
    return process


def _with_parent(target: Callable, *arguments: object) -> None:
    def exit_with_parent() -> None:
        if parent := multiprocessing.parent_process():
            parent.join()
        os._exit(1)

    threading.Thread(target=exit_with_parent, daemon=True).start()
    target(*arguments)


def exit_code(process: BaseProcess) -> int | None:
    """Wait for a process to end and return its exit code, -n for signal n."""
    process.join(120)
    return process.exitcode


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold the jobs with custom/slow of a server that runs HELD or STANDIN, small photos excepted."""
    hold = folder / "hold"
    hold.touch()
    try:
        yield
    finally:
        hold.unlink()


def free_port() -> int:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return unused.getsockname()[1]


def redirect_output(log: Path, mode: str) -> None:
    """Write this process's output and errors to a file."""
    with log.open(mode) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


@contextmanager
def served(folder: Path, script: Path = APP, **options: object) -> Iterator[str]:
    """Run a script as launched() does; yield the address. It must exit with code 0 after SIGTERM."""
    with launched(folder, script, **options) as (server, address):
        yield address
        server.terminate()
        assert exit_code(server) == 0, (folder / "log").read_text()


@contextmanager
def launched(
    folder: Path, script: Path = APP, *, preloaded: bool = True, **environment: str
) -> Iterator[tuple[BaseProcess, str]]:
    """Run app.py or another script as __main__, with its own folders and port; yield process and address.

    preloaded  see started()
    """
    environment = {
        **os.environ,
        "PORT": str(free_port()),
        "UPLOAD_FOLDER": str(folder / "uploads"),
        "PROCESSED_FOLDER": str(folder / "processed"),
        "RESTORER_WEIGHTS": str(folder / "weights"),
        "MODEL": "custom/quick",
        "DEVICE": "cpu:torch",
        **environment,
    }
    server = started(_run, script, folder / "log", environment, preloaded=preloaded)
    address = f"http://127.0.0.1:{environment['PORT']}"
    try:
        _wait_until_ready(server, address)
        yield server, address
    finally:
        server.kill()
        server.join(120)


def _run(script: Path, log: Path, environment: dict[str, str]) -> None:
    redirect_output(log, "wb")
    os.environ.clear()
    os.environ.update(environment)
    sys.orig_argv[:] = [sys.executable, str(script)]
    sys.argv[:] = [str(script)]
    sys.path[0] = str(script.parent)
    runpy.run_path(str(script), run_name="__main__")


def _wait_until_ready(server: BaseProcess, address: str) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and server.is_alive():
        try:
            httpx.get(address, timeout=30)
            return
        except httpx.HTTPError:
            time.sleep(0.1)
    raise AssertionError("the server did not start")
