"""`python -m bench.startup`: seconds until --help is printed, a page is served, a model is loaded."""

import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable

from restorer.models import registry

_ROUNDS = 5
_LOAD = f"restorer.load({registry.BUILT_IN!r})"


def main() -> int:
    for name, measured in (
        ("python -m restorer --help", help_printed),
        ("first page of app.py", first_page),
        ("import torch", torch_imported),
        (_LOAD, model_loaded),
    ):
        seconds = [measured() for _ in range(_ROUNDS)]
        print(f"{name:36} {min(seconds):.2f} / {statistics.median(seconds):.2f} s", flush=True)
    return 0


def help_printed() -> float:
    return _run("-m", "restorer", "--help")


def torch_imported() -> float:
    return _run("-c", "import torch")


def model_loaded() -> float:
    return _run("-c", f"import restorer; {_LOAD}")


def first_page() -> float:
    """From the command to the page's whole HTML. The libraries are in the system's cache after the first."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "HOST": "127.0.0.1", "PORT": str(port)}
        environment |= {name: folder for name in ("UPLOAD_FOLDER", "PROCESSED_FOLDER", "GRADIO_TEMP_DIR")}
        start = time.perf_counter()
        server = subprocess.Popen(
            [sys.executable, "app.py"],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            return _until(lambda: _page(port), server) - start
        finally:
            server.terminate()
            server.wait()


def _page(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=60) as answer:
            return b"</html>" in answer.read()
    except (urllib.error.URLError, ConnectionError):
        return False


def _until(true: Callable[[], bool], server: subprocess.Popen) -> float:
    while not true():
        if server.poll() is not None:
            raise SystemExit("app.py ended before it served a page")
        time.sleep(0.02)
    return time.perf_counter()


def _run(*words: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(main())
