"""Downloads from a local server that answers correctly, wrongly, slowly or not at all."""

import contextlib
import hashlib
import io
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import filelock
import httpx
import pytest
from huggingface_hub import constants

from restorer.errors import BadWeights, Cancelled, WeightsUnavailable
from restorer.models import download, registry
from restorer.models.registry import Model
from tests.serving import free_port

BODY = bytes(range(256)) * 1200
WRONG = BODY[:-1] + b"!"
ROOT = Path(__file__).parents[2]


def sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


class Server(ThreadingHTTPServer):
    """Answers each path with a function of the request, and records (path, Range) of every request."""

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict[str, Callable[[Handler], None]] = {}
        self.requests: list[tuple[str, str | None]] = []
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:  # noqa: N802
        self.server.requests.append((self.path, self.headers["Range"]))
        answer = self.server.answers.get(self.path, status(404))
        with contextlib.suppress(ConnectionError):  # the client disconnected
            answer(self)

    def head(self, code: int, length: int | None, **headers: str) -> None:
        self.send_response(code)
        if length is not None:
            self.send_header("Content-Length", str(length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


def whole(body: bytes, *, pieces: int = 1, before_each: Callable[[int], object] = lambda piece: None):
    """Answer with the body or the requested range, in pieces, calling `before_each` before each piece."""

    def answer(request: Handler) -> None:
        start = 0
        if requested := request.headers["Range"]:
            start = int(requested.removeprefix("bytes=").removesuffix("-"))
            if start >= len(body):
                return request.head(416, 0)
            content_range = f"bytes {start}-{len(body) - 1}/{len(body)}"
            request.head(206, len(body) - start, Content_Range=content_range)
        else:
            request.head(200, len(body))
        step = -(-(len(body) - start) // pieces)
        for piece in range(pieces):
            before_each(piece)
            request.wfile.write(body[start + piece * step : start + (piece + 1) * step])

    return answer


def truncated(body: bytes, after: int):
    def answer(request: Handler) -> None:
        request.head(200, len(body))
        request.wfile.write(body[:after])

    return answer


def without_range(body: bytes, *, content_length: bool = True):
    def answer(request: Handler) -> None:
        request.head(200, len(body) if content_length else None)
        request.wfile.write(body)

    return answer


def status(code: int):
    return lambda request: request.head(code, 0)


def redirect(to: str):
    return lambda request: request.head(302, 0, Location=to)


@pytest.fixture(autouse=True)
def own_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the local server reachable whatever proxies or offline mode the environment sets."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    server = Server()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def model(server) -> Model:
    url = f"{server.url}/official/tiny.pth"
    return Model("tiny", "upscale", 4, len(BODY), sha256(BODY), url, "MIT", "for tests")


@pytest.fixture
def mirrored(server, model, monkeypatch) -> Model:
    """The model with a mirror on the same server."""
    monkeypatch.setattr(download, "addresses", lambda model: iter([f"{server.url}/mirror", model.url]))
    return model


def names(folder: Path) -> set[str]:
    """Return the files in a folder except locks."""
    return {path.name for path in folder.iterdir() if not path.name.endswith(".lock")}


def test_file_is_downloaded_into_a_new_folder(server, model, tmp_path):
    server.answers["/official/tiny.pth"] = whole(BODY, pieces=7)
    folder = tmp_path / "new" / "with space"
    path = download.ensure(model, folder).path
    assert path == folder / "tiny.pth"
    assert path.read_bytes() == BODY
    assert names(folder) == {"tiny.pth"}
    assert download.ensure(model, folder).path == path
    assert server.requests == [("/official/tiny.pth", None)]


def test_download_reports_progress_and_can_be_cancelled(server, model, tmp_path):
    server.answers["/official/tiny.pth"] = whole(BODY, pieces=7)
    reports = []

    def progress(done: int, total: int) -> None:
        reports.append((done, total))
        if len(reports) == 1:
            raise Cancelled("stopped")

    with pytest.raises(Cancelled):
        download.ensure(model, tmp_path, progress)
    assert names(tmp_path) == {"tiny.pth.part"}
    assert download.ensure(model, tmp_path, progress).path.read_bytes() == BODY
    assert 0 < reports[0][0] < len(BODY) and reports[-1] == (len(BODY), len(BODY))


def test_truncated_download_is_resumed(server, model, tmp_path):
    server.answers["/official/tiny.pth"] = truncated(BODY, 100_000)
    with pytest.raises(WeightsUnavailable, match="closed connection"):
        download.ensure(model, tmp_path)
    assert names(tmp_path) == {"tiny.pth.part"}
    assert (tmp_path / "tiny.pth.part").read_bytes() == BODY[:100_000]
    server.answers["/official/tiny.pth"] = whole(BODY)
    assert download.ensure(model, tmp_path).path.read_bytes() == BODY
    assert server.requests[1:] == [("/official/tiny.pth", "bytes=100000-")]
    assert names(tmp_path) == {"tiny.pth"}


def test_download_from_the_mirror_is_resumed_from_the_official_release(server, mirrored, tmp_path):
    server.answers = {"/mirror": truncated(BODY, 70_000), "/official/tiny.pth": whole(BODY)}
    assert download.ensure(mirrored, tmp_path).path.read_bytes() == BODY
    assert server.requests == [("/mirror", None), ("/official/tiny.pth", "bytes=70000-")]


def test_truncated_download_without_content_length_is_resumed(server, model, tmp_path):
    server.answers["/official/tiny.pth"] = without_range(BODY[:5000], content_length=False)
    with pytest.raises(WeightsUnavailable, match=f"ended after 5000 of {len(BODY)} bytes"):
        download.ensure(model, tmp_path)
    server.answers["/official/tiny.pth"] = whole(BODY)
    assert download.ensure(model, tmp_path).path.read_bytes() == BODY
    assert server.requests[1:] == [("/official/tiny.pth", "bytes=5000-")]


def test_server_that_ignores_range_restarts_the_download(server, model, tmp_path):
    (tmp_path / "tiny.pth.part").write_bytes(BODY[:1000])
    server.answers["/official/tiny.pth"] = without_range(BODY)
    assert download.ensure(model, tmp_path).path.read_bytes() == BODY
    assert server.requests == [("/official/tiny.pth", "bytes=1000-")]


def test_part_of_another_file_is_discarded(server, model, tmp_path):
    (tmp_path / "tiny.pth.part").write_bytes(b"another file" * 50)
    server.answers["/official/tiny.pth"] = whole(BODY)
    assert download.ensure(model, tmp_path).path.read_bytes() == BODY
    assert [byte_range for _, byte_range in server.requests] == ["bytes=600-", None]


def test_oversized_part_is_discarded(server, model, tmp_path):
    (tmp_path / "tiny.pth.part").write_bytes(BODY + b"more")
    server.answers["/official/tiny.pth"] = whole(BODY)
    assert download.ensure(model, tmp_path).path.read_bytes() == BODY
    assert [byte_range for _, byte_range in server.requests] == [None]


def test_complete_part_needs_no_request(server, model, tmp_path):
    (tmp_path / "tiny.pth.part").write_bytes(BODY)
    assert download.ensure(model, tmp_path).path.read_bytes() == BODY
    assert names(tmp_path) == {"tiny.pth"}
    assert server.requests == []


@pytest.mark.parametrize("body", [WRONG, BODY[:3000], BODY + b"too long", b"<html>login</html>"])
def test_wrong_bytes_are_renamed_and_reported(body, server, model, tmp_path):
    server.answers["/official/tiny.pth"] = whole(body)
    with pytest.raises(BadWeights) as caught:
        download.ensure(model, tmp_path)
    assert names(tmp_path) == {"tiny.pth.bad"}
    assert (tmp_path / "tiny.pth.bad").read_bytes() == body
    for text in ("tiny.pth", sha256(BODY), sha256(body), "tiny.pth.bad"):
        assert text in str(caught.value)
    server.answers["/official/tiny.pth"] = whole(BODY)
    assert download.ensure(model, tmp_path).path.read_bytes() == BODY


def test_endless_body_is_aborted(server, model, tmp_path):
    def endless(request: Handler) -> None:
        request.head(200, None)
        for _ in range(200):  # ends eventually, so a failure does not hang
            request.wfile.write(bytes(100_000))

    server.answers["/official/tiny.pth"] = endless
    with pytest.raises(BadWeights):
        download.ensure(model, tmp_path)
    assert len(BODY) < (tmp_path / "tiny.pth.bad").stat().st_size < len(BODY) + 1_000_000


def test_official_release_is_used_after_a_wrong_mirror(server, mirrored, tmp_path):
    server.answers = {"/mirror": whole(WRONG), "/official/tiny.pth": whole(BODY)}
    assert download.ensure(mirrored, tmp_path).path.read_bytes() == BODY
    assert server.requests == [("/mirror", None), ("/official/tiny.pth", None)]


def test_official_release_is_used_after_a_mirror_without_the_file(server, mirrored, tmp_path):
    server.answers = {"/official/tiny.pth": whole(BODY)}
    assert download.ensure(mirrored, tmp_path).path.read_bytes() == BODY
    assert [path for path, _ in server.requests] == ["/mirror", "/official/tiny.pth"]


def test_official_release_is_not_requested_after_a_good_mirror(server, mirrored, tmp_path):
    server.answers = {"/mirror": whole(BODY)}
    assert download.ensure(mirrored, tmp_path).path.read_bytes() == BODY
    assert [path for path, _ in server.requests] == ["/mirror"]


def test_wrong_mirror_and_no_official_release_raises_bad_weights(server, mirrored, tmp_path):
    server.answers = {"/mirror": whole(WRONG)}
    with pytest.raises(BadWeights, match=sha256(WRONG)):
        download.ensure(mirrored, tmp_path)
    assert names(tmp_path) == {"tiny.pth.bad"}


def assert_has_instructions(error: object, model: Model, folder: Path) -> None:
    message = str(error)
    assert message.endswith(f"Download {model.url} manually and save it as {folder / 'tiny.pth'}")
    assert "\n" not in message


@pytest.mark.parametrize(("code", "reason"), [(404, "404 Not Found"), (500, "500 Internal Server Error")])
def test_http_error_is_reported(code, reason, server, model, tmp_path):
    server.answers["/official/tiny.pth"] = status(code)
    with pytest.raises(WeightsUnavailable) as caught:
        download.ensure(model, tmp_path)
    assert_has_instructions(caught.value, model, tmp_path)
    assert f"{model.url}: {reason}" in str(caught.value)
    assert names(tmp_path) == set()


def test_refused_connection_is_reported(model, tmp_path):
    model = replace(model, url=f"http://127.0.0.1:{free_port()}/tiny.pth")
    with pytest.raises(WeightsUnavailable, match=r"refused|\[Errno|attempts failed") as caught:
        download.ensure(model, tmp_path)
    assert_has_instructions(caught.value, model, tmp_path)


def test_unresolvable_host_is_reported(model, tmp_path):
    model = replace(model, url="http://no-such-host.invalid/tiny.pth")
    with pytest.raises(WeightsUnavailable) as caught:
        download.ensure(model, tmp_path)
    assert_has_instructions(caught.value, model, tmp_path)


def test_proxy_that_needs_a_missing_package_is_reported(model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "socksio", None)
    monkeypatch.setenv("http_proxy", "socks5://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    with pytest.raises(WeightsUnavailable, match="SOCKS"):
        download.ensure(model, tmp_path)


def test_redirect_is_followed(server, model, tmp_path):
    server.answers = {"/official/tiny.pth": redirect(f"{server.url}/stored/1"), "/stored/1": whole(BODY)}
    (tmp_path / "tiny.pth.part").write_bytes(BODY[:10])
    assert download.ensure(model, tmp_path).path.read_bytes() == BODY
    assert server.requests == [("/official/tiny.pth", "bytes=10-"), ("/stored/1", "bytes=10-")]


def test_redirect_loop_is_aborted(server, model, tmp_path):
    server.answers = {"/official/tiny.pth": redirect(model.url)}
    with pytest.raises(WeightsUnavailable, match="redirects"):
        download.ensure(model, tmp_path)


@pytest.mark.parametrize("sent", [0, 50_000])
def test_silent_server_times_out(sent, server, model, tmp_path, monkeypatch):
    done = threading.Event()

    def stall(request: Handler) -> None:
        if sent:
            request.head(200, len(BODY))
            request.wfile.write(BODY[:sent])
        ends.append(done.wait(120))

    ends: list[bool] = []
    server.answers["/official/tiny.pth"] = stall
    monkeypatch.setattr(download, "_TIMEOUT", httpx.Timeout(60, read=1))
    with pytest.raises(WeightsUnavailable, match=r"official/tiny\.pth: .*(timed out|Timeout)"):
        download.ensure(model, tmp_path)
    assert ends == [], "the client waited for the server"
    done.set()
    part = tmp_path / "tiny.pth.part"
    assert (part.stat().st_size if part.exists() else 0) == sent


def test_progress_bar_is_shown_only_on_a_terminal(server, model, tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    server.answers["/official/tiny.pth"] = whole(BODY, pieces=5, before_each=lambda piece: time.sleep(0.12))
    for stream in (terminal := Terminal(), pipe := io.StringIO()):
        monkeypatch.setattr(sys, "stderr", stream)
        download.ensure(model, tmp_path)
        (tmp_path / "tiny.pth").unlink()
    assert "Downloading tiny" in terminal.getvalue()
    assert re.search(r"[2468]0%.*k/307k", terminal.getvalue())
    assert pipe.getvalue() == ""


@pytest.mark.slow
def test_wrong_existing_file_is_renamed_to_bad(server, model, tmp_path):
    (tmp_path / "tiny.pth").write_bytes(WRONG)
    with pytest.raises(BadWeights) as caught:
        download.ensure(model, tmp_path)
    for text in ("tiny.pth", sha256(BODY), sha256(WRONG)):
        assert text in str(caught.value)
    assert names(tmp_path) == {"tiny.pth.bad"}
    assert server.requests == []
    server.answers["/official/tiny.pth"] = whole(BODY)
    assert download.ensure(model, tmp_path).path.read_bytes() == BODY


def test_correct_existing_file_needs_no_network(model, tmp_path):
    (tmp_path / "tiny.pth").write_bytes(BODY)
    assert download.ensure(replace(model, url="http://no-such-host.invalid/tiny.pth"), tmp_path).path.exists()


def test_custom_file_is_not_verified(server, tmp_path):
    (tmp_path / "custom").mkdir()
    (tmp_path / "custom" / "own.pth").write_bytes(b"anything")
    own = registry.find("custom/own", tmp_path)
    assert download.ensure(own, tmp_path).path == tmp_path / "custom" / "own.pth"
    (tmp_path / "custom" / "own.pth").unlink()
    with pytest.raises(WeightsUnavailable, match="custom/own was removed"):
        download.ensure(own, tmp_path)


@pytest.mark.parametrize("inside", ["", "deeper"])
def test_unwritable_folder_is_reported(inside, server, model, tmp_path):
    server.answers["/official/tiny.pth"] = whole(BODY)
    (tmp_path / "taken").write_text("a file where the folder should be")
    folder = tmp_path / "taken" / inside
    with pytest.raises(WeightsUnavailable, match="(File exists|Not a directory)") as caught:
        download.ensure(model, folder)
    assert_has_instructions(caught.value, model, folder)


@pytest.mark.slow
def test_built_in_file_is_verified_and_never_downloaded(tmp_path, monkeypatch):
    model = registry.find(registry.BUILT_IN, tmp_path)
    assert download.ensure(model, tmp_path).path == registry.path(model, tmp_path)
    monkeypatch.setattr(registry, "_PROJECT_WEIGHTS", tmp_path)
    with pytest.raises(WeightsUnavailable, match="part of the project") as caught:
        download.ensure(model, tmp_path)
    assert str(tmp_path / model.file) in str(caught.value)
    (tmp_path / model.file).write_bytes(BODY)
    with pytest.raises(
        BadWeights, match=rf"Renamed to {registry.BUILT_IN}\.safetensors\.bad\. It is part of"
    ):
        download.ensure(model, tmp_path)
    assert names(tmp_path) == {f"{registry.BUILT_IN}.safetensors.bad"}


def test_addresses_are_the_mirror_at_its_revision_then_the_release():
    by_name = {model.name: model for model in registry.MODELS}
    hub = constants.ENDPOINT
    assert list(download.addresses(by_name["RealESRGAN_x4plus"])) == [
        f"{hub}/rippertnt/upscale/resolve/main/RealESRGAN_x4plus.pth",
        "https://github.com/xinntao/Real-ESRGAN/releases/download/v0.1.0/RealESRGAN_x4plus.pth",
    ]
    pinned = replace(by_name["GFPGANv1.3"], revision="c0ffee")
    assert next(download.addresses(pinned)) == f"{hub}/leonelhs/gfpgan/resolve/c0ffee/GFPGANv1.3.pth"
    assert len(list(download.addresses(by_name["parsenet"]))) == 1
    assert len(set(download.addresses(by_name["yunet"]))) == 1 or hub != "https://huggingface.co"


# Run in a subprocess: prints a line when ready and another with the result
FETCH = """
import sys
from pathlib import Path
from restorer.models import download
from restorer.errors import RestoreError
from restorer.models.registry import Model
from tests.serving import free_port
url, mirror, size, sha256, folder = sys.argv[1:]
model = Model("tiny", "upscale", 4, int(size), sha256, url, "MIT", "", mirror=mirror)
print("ready", flush=True)
try:
    print(download.ensure(model, Path(folder)).path)
except RestoreError as error:
    print(type(error).__name__, error)
"""


def start_fetch(model: Model, folder: Path, code: str = FETCH, **environment: str) -> subprocess.Popen:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    process = subprocess.Popen(
        [sys.executable, "-c", code, model.url, model.mirror, str(model.bytes), model.sha256, str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=inherited | environment,
    )
    assert process.stdout and process.stdout.readline() == "ready\n"
    return process


def remaining_output(process: subprocess.Popen) -> str:
    """Read the output until exit; communicate() would lose what readline() has buffered."""
    with process:
        return process.stdout.read() if process.stdout else ""


def wait_until(condition: Callable[[], bool], seconds: float = 120) -> None:
    end = time.perf_counter() + seconds
    while not condition():
        assert time.perf_counter() < end, f"condition not met within {seconds:g} s"
        time.sleep(0.01)


def test_two_processes_download_once(server, model, tmp_path):
    both_started = threading.Event()
    server.answers["/official/tiny.pth"] = whole(
        BODY, pieces=2, before_each=lambda piece: piece and both_started.wait(300)
    )
    processes = [start_fetch(model, tmp_path) for _ in range(2)]
    wait_until(lambda: len(server.requests) > 0)
    time.sleep(0.3)  # the other process is ready: it now waits for the lock, or sends a second request
    both_started.set()
    outputs = [remaining_output(process) for process in processes]
    assert outputs == [f"{tmp_path / 'tiny.pth'}\n"] * 2
    assert server.requests == [("/official/tiny.pth", None)]
    assert names(tmp_path) == {"tiny.pth"}
    assert (tmp_path / "tiny.pth").read_bytes() == BODY


# FETCH, retried until it succeeds
FETCH_WITH_RETRIES = FETCH.replace("try:\n    print(", "while True:\n  try:\n    print(").replace(
    "folder)).path)\nexcept", "folder)).path)\n    break\n  except"
)
FETCH_WITH_RETRIES = FETCH_WITH_RETRIES.replace("\n    print(type(error).__name__, error)", "\n    pass")


def eight_fetch_from_a_flaky_server(folder: Path, seed: int) -> None:
    """Fetch with retries from a server that is slow, truncates, fails and sends wrong bytes."""
    rng, sent = random.Random(seed), []

    def flaky(request: Handler) -> None:
        behaviour = rng.choice(["truncated", "truncated", "truncated", "error", "wrong", "whole"])
        sent.append(behaviour)
        if behaviour == "error":
            return status(503)(request)
        body = WRONG if behaviour == "wrong" else BODY
        pieces = rng.randrange(2, 9)
        stop = rng.randrange(1, pieces) if behaviour == "truncated" else pieces

        def wait(piece: int) -> None:
            time.sleep(rng.uniform(0, 0.02))
            if piece == stop:
                raise ConnectionError

        whole(body, pieces=pieces, before_each=wait)(request)

    with serving() as server:
        server.answers["/official/tiny.pth"] = flaky
        url = f"{server.url}/official/tiny.pth"
        model = Model("tiny", "upscale", 4, len(BODY), sha256(BODY), url, "MIT", "for tests")
        processes = [start_fetch(model, folder, code=FETCH_WITH_RETRIES) for _ in range(8)]
        outputs = [remaining_output(process) for process in processes]
    assert outputs == [f"{folder / 'tiny.pth'}\n"] * 8
    assert (folder / "tiny.pth").read_bytes() == BODY
    assert names(folder) <= {"tiny.pth", "tiny.pth.bad"} and sent[-1] in ("truncated", "whole", "wrong")


@pytest.mark.slow
def test_eight_processes_and_a_flaky_server_leave_one_good_file(tmp_path):
    eight_fetch_from_a_flaky_server(tmp_path, seed=8)


def test_waiting_for_another_download_can_be_cancelled(server, model, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "_LOCK_TIMEOUT", 0.05)

    def cancel(done: int, total: int) -> None:
        raise Cancelled("stopped")

    with filelock.FileLock(tmp_path / ".tiny.pth.lock"), pytest.raises(Cancelled):
        download.ensure(model, tmp_path, cancel)
    assert server.requests == []
    server.answers["/official/tiny.pth"] = whole(BODY)
    assert download.ensure(model, tmp_path).path.read_bytes() == BODY


def test_killed_download_leaves_no_file_and_is_resumed(server, model, tmp_path):
    half = len(BODY) // 2
    killed = threading.Event()
    server.answers["/official/tiny.pth"] = whole(
        BODY, pieces=2, before_each=lambda piece: piece and killed.wait(300)
    )
    process = start_fetch(model, tmp_path)
    part = tmp_path / "tiny.pth.part"
    wait_until(lambda: part.exists() and part.stat().st_size > half - 10_000)
    process.send_signal(signal.SIGKILL)
    remaining_output(process)
    killed.set()
    assert names(tmp_path) == {"tiny.pth.part"}
    size = part.stat().st_size
    server.answers["/official/tiny.pth"] = whole(BODY)
    assert download.ensure(model, tmp_path).path.read_bytes() == BODY
    assert server.requests[1:] == [("/official/tiny.pth", f"bytes={size}-")]


def test_offline_mode_sends_no_request(server, model, tmp_path):
    server.answers["/official/tiny.pth"] = whole(BODY)
    output = remaining_output(start_fetch(model, tmp_path, HF_HUB_OFFLINE="1"))
    assert output.startswith("WeightsUnavailable") and "HF_HUB_OFFLINE" in output
    assert_has_instructions(output.strip(), model, tmp_path)
    assert server.requests == []
    (tmp_path / "tiny.pth").write_bytes(BODY)
    output = remaining_output(start_fetch(model, tmp_path, HF_HUB_OFFLINE="1"))
    assert output == f"{tmp_path / 'tiny.pth'}\n"


def test_mirror_uses_hf_endpoint(server, model, tmp_path):
    address = "/some/mirror/resolve/main/tiny.pth"
    server.answers[address] = whole(BODY)
    process = start_fetch(replace(model, mirror="some/mirror"), tmp_path, HF_ENDPOINT=server.url)
    assert remaining_output(process) == f"{tmp_path / 'tiny.pth'}\n"
    assert server.requests == [(address, None)]


def test_official_file_is_verified_by_size_and_sha256(shared, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "addresses", lambda model: pytest.fail("unexpected download"))
    for name in ("realesr-animevideov3", "realesr-general-x4v3"):
        shutil.copyfile(shared / "weights" / f"{name}.pth", tmp_path / f"{name}.pth")
    anime = registry.find("realesr-animevideov3", tmp_path)
    assert download.ensure(anime, tmp_path).path == tmp_path / "realesr-animevideov3.pth"
    # The shared copy of this one was rebuilt from half precision and is shorter
    general = registry.find("realesr-general-x4v3", tmp_path)
    monkeypatch.setattr(download, "addresses", lambda model: iter(()))
    monkeypatch.setattr(download, "SETTLE_SECONDS", 0.0)
    with pytest.raises(WeightsUnavailable, match="truncated, 4884324 of 4885111 bytes"):
        download.ensure(general, tmp_path)
    path = tmp_path / "realesr-general-x4v3.pth"
    with path.open("ab") as file:
        file.write(bytes(general.bytes - path.stat().st_size))
    with pytest.raises(BadWeights, match=general.sha256):
        download.ensure(general, tmp_path)
    assert (tmp_path / "realesr-general-x4v3.pth.bad").exists()
