"""One queue for page, gradio_client and REST, on a device that computes until the test releases it."""

import asyncio
import json
import os
import re
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import gradio as gr
import httpx
import numpy as np
import pytest
import uvicorn
from gradio_client import Client, handle_file
from gradio_client.utils import QueueError

from restorer import Restorer
from restorer.errors import Cancelled, QueueFull
from restorer.web import server
from restorer.web.gpu_queue import GPU, GpuQueue
from restorer.web.settings import Settings
from restorer.web.worker import Worker
from tests.conftest import photo_like, png, wait_until
from tests.serving import free_port
from tests.web.test_isolation import functions, values_of
from tests.web.test_rest import ended, posted, settings_in

pytestmark = pytest.mark.slow

COMPUTING = {"preview", "preview_click", "compare_models", "detect", "enhance", "enhance_batch", "run_job"}


class Device:
    """Replaces Restorer.restore(): photos are identified by their width and run until released or stopped."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.started: list[int] = []
        self.stopped: list[int] = []
        self.released, self._free = threading.Event(), threading.Lock()
        real_restore = Restorer.restore

        def restore(restorer, data, *, progress=None, **options):
            width = (restorer.decode(data) if isinstance(data, bytes) else data).width
            assert self._free.acquire(blocking=False), "two photos at the same time"
            try:
                self.started.append(width)
                while not self.released.is_set():
                    progress(0, 2)
                    time.sleep(0.01)
                return real_restore(restorer, data, progress=progress, **options)
            except Cancelled:
                self.stopped.append(width)
                raise
            finally:
                self._free.release()

        monkeypatch.setattr(Restorer, "restore", restore)


class Served:
    """A server in a thread, with real connections."""

    def __init__(self, settings: Settings) -> None:
        self.server = server.Server(settings)
        port = free_port()
        self.address, self.folder = f"http://127.0.0.1:{port}", settings.upload_folder
        self.app = self.server.asgi()
        self._uvicorn = uvicorn.Server(
            uvicorn.Config(
                self.app, host="127.0.0.1", port=port, log_level="error", timeout_graceful_shutdown=1
            )
        )
        self._thread = threading.Thread(target=self._uvicorn.run, daemon=True)
        self._thread.start()
        self.client = httpx.Client(base_url=self.address, timeout=120)
        wait_until(lambda: self._uvicorn.started)
        self.functions = {name: (number, values) for number, (name, values) in functions(self.client).items()}

    def close(self) -> None:
        self.server.worker.close(60)
        self.client.close()
        self._uvicorn.should_exit = True
        self._thread.join(60)

    @property
    def length(self) -> int:
        return self.client.get("/ready").json()["queue_length"]

    def upload(self, width: int) -> dict:
        """Upload a photo of that width and return it as Gradio's clients pass it on."""
        files = {"files": (f"{width}.png", photo(width))}
        (path,) = self.client.post("/gradio_api/upload", files=files).json()
        return {"path": path, "meta": {"_type": "gradio.FileData"}}

    def call(self, endpoint: str, value: object) -> httpx.Response:
        """Call an endpoint as programs do."""
        name = "photos" if endpoint == "enhance_batch" else "photo"
        body = {name: value, "face_enhance": False} if value else {}
        return self.client.post(f"/gradio_api/call/v2/{endpoint}", json=body)

    def join(self, function: str, value: object, session: str = "") -> httpx.Response:
        """Call a function of the page as the page does."""
        number, components = self.functions[function]
        data = [value, *values_of(components)[1:]]
        body = {"data": data, "fn_index": number, "session_hash": session or uuid.uuid4().hex}
        return self.client.post("/gradio_api/queue/join", json=body)

    def picked(self, file: dict) -> str:
        """Choose a photo as the page does, and return its session."""
        session = uuid.uuid4().hex
        assert self.join("pick", file, session).status_code == 200
        self.events(session)
        return session

    def start(self, file: dict) -> str:
        """Choose and start a photo as the page does, and return the job's id."""
        session = self.picked(file)
        assert self.join("start", None, session).status_code == 200
        return self.job_of(session)

    def job_of(self, session: str) -> str:
        """Return the id of the job that a function of the page has started."""
        messages = [
            json.loads(line[6:]) for line in self.events(session).splitlines() if line[:6] == "data: "
        ]
        output = next(message["output"] for message in messages if message["msg"] == "process_completed")
        texts = [value for value in output["data"] if isinstance(value, str)]
        (job,) = (text for text in texts if re.fullmatch("[0-9a-f]{32}", text))
        return job

    def events(self, session: str) -> str:
        return self.client.get(f"/gradio_api/queue/data?session_hash={session}").text

    def output(self, endpoint: str, value: object) -> list:
        """Call an endpoint and return its output."""
        event = self.call(endpoint, value).json()["event_id"]
        text = self.client.get(f"/gradio_api/call/{endpoint}/{event}").text
        last = text.strip().split("\n\n")[-1]
        assert last.startswith("event: complete"), text
        return json.loads(last.partition("data: ")[2])

    def post(self, width: int) -> dict:
        return posted(self.client, (f"{width}.png", photo(width)), face_enhance="false")


async def run_nothing(job_id: str) -> None:
    raise AssertionError


def photo(width: int) -> bytes:
    return png(photo_like(np.random.default_rng(width), 10, width))


@pytest.fixture
def device(monkeypatch):
    device = Device(monkeypatch)
    yield device
    device.released.set()


@pytest.fixture
def serve(tmp_path, monkeypatch, device):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    with ExitStack() as stack:

        def serve(**changes) -> Served:
            served = Served(settings_in(tmp_path, **changes))
            stack.callback(served.close)
            return served

        yield serve


@contextmanager
def stream(served: Served, path: str) -> Iterator[Iterator[str]]:
    """Open an event stream; its connection is closed on exit."""
    with (
        httpx.Client(base_url=served.address, timeout=120) as client,
        client.stream("GET", f"/gradio_api/{path}") as answer,
    ):
        yield answer.iter_lines()


def test_every_event_that_computes_shares_one_queue(serve):
    functions = serve().server.blocks.fns.values()
    computing = [function for function in functions if function.concurrency_id == GPU["concurrency_id"]]
    assert {function.api_name for function in computing} == COMPUTING
    assert {function.concurrency_limit for function in computing} == {1} and all(f.queue for f in computing)


def test_private_names_of_gradio_exist():
    queue = GpuQueue(Worker(), 2).attach(gr.Blocks(), run_nothing)._queue
    names = ("push", "remove_from_queue", "set_server_app", "create_event_queue_for_fn", "active_jobs")
    names += ("event_ids_to_events", "pending_messages_per_session", "pending_event_ids_session")
    assert [name for name in names if not hasattr(queue, name)] == []
    events = queue.event_queue_per_concurrency_id["gpu"]
    assert (events.queue, events.current_concurrency, events.concurrency_limit) == ([], 0, 1)


def test_only_one_module_uses_private_names_of_gradio():
    package = Path(server.__file__).parents[1]
    modules = [path.name for path in package.rglob("*.py") if "blocks._queue" in path.read_text()]
    assert modules == ["gpu_queue.py"]


def test_everything_else_answers_while_45_clients_wait(serve, device):
    served = serve(max_queue=60)
    file = served.upload(10)
    waiting = [served.call("enhance", file) for _ in range(20)]
    assert {answer.status_code for answer in waiting} == {200}
    pages = [served.start(file) for _ in range(20)]
    jobs = [served.post(10)["job_id"] for _ in range(6)]
    wait_until(lambda: device.started == [10])
    assert served.length == 46
    assert served.output("quote", file)[0]["width"] == 40
    assert served.output("models", None)
    session = uuid.uuid4().hex
    assert served.join("pick", file, session).status_code == 200
    assert "process_completed" in served.client.get(f"/gradio_api/queue/data?session_hash={session}").text
    assert served.client.post("/quote", files={"files": ("a.png", photo(10))}).json()["width"] == 40
    assert served.client.get("/").status_code == served.client.get("/models").status_code == 200
    assert device.started == [10] and device.stopped == []
    # only the running photo has a thread
    assert sum(thread.name.endswith("(work)") for thread in threading.enumerate()) == 1
    device.released.set()
    assert all(ended(served.client, job)["status"] == "completed" for job in (*pages, *jobs))


def test_positions_count_the_clients_of_every_door(serve, device):
    served = serve()
    served.start(served.upload(11))
    wait_until(lambda: device.started == [11])
    event = served.call("enhance", served.upload(12)).json()["event_id"]
    first = served.post(13)
    batch = served.call("enhance_batch", [served.upload(14)]).json()["event_id"]
    page = served.start(served.upload(15))
    second = served.post(16)

    def position(job: str) -> int:
        return served.client.get(f"/status/{job}").json()["queue_position"]

    assert (first["queue_position"], position(page), second["queue_position"]) == (2, 4, 5)
    assert served.client.delete(f"/jobs/{first['job_id']}").json()["status"] == "cancelled"
    assert (position(page), position(second["job_id"])) == (3, 4)
    device.released.set()
    assert ended(served.client, second["job_id"])["status"] == "completed"
    assert device.started == [11, 12, 14, 15, 16], "in the order of their arrival"
    for name, waiting in (("enhance", event), ("enhance_batch", batch)):
        assert "event: complete" in served.client.get(f"/gradio_api/call/{name}/{waiting}").text


def test_batch_of_gradio_client_is_one_event(serve, device):
    served = serve(max_queue=2)
    event = served.call("enhance_batch", [served.upload(width) for width in (10, 11, 12, 13)])
    wait_until(lambda: device.started == [10])
    others = [served.post(20)["job_id"], served.post(21)["job_id"]]  # the queue is full now
    assert served.length == 3
    device.released.set()
    text = served.client.get(f"/gradio_api/call/enhance_batch/{event.json()['event_id']}").text
    files, receipts = json.loads(text.rpartition("data: ")[2])
    assert len(files) == 4 and [receipt.get("width") for receipt in receipts] == [40, 44, 48, 52]
    assert all(ended(served.client, job)["status"] == "completed" for job in others)
    assert device.started == [10, 11, 12, 13, 20, 21]


def test_batch_of_the_page_is_one_event(serve, device):
    served = serve(max_queue=2)
    session = uuid.uuid4().hex
    served.join("start_1", [served.upload(width) for width in (10, 11, 12, 13)], session)
    job = served.job_of(session)
    wait_until(lambda: device.started == [10])
    others = [served.post(20)["job_id"], served.post(21)["job_id"]]
    device.released.set()
    results = ended(served.client, job)["results"]
    assert [(result["width"], result["height"]) for result in results] == [(w, 40) for w in (40, 44, 48, 52)]
    assert len(list(served.folder.parent.glob(f"processed/{job}/*/after.jpg"))) == 4
    assert not list(served.folder.parent.glob("processed/kept/*")), "all samples of all photos"
    assert all(ended(served.client, job)["status"] == "completed" for job in others)
    assert device.started == [10, 11, 12, 13, 20, 21]


def test_full_queue_is_503_at_every_door(serve, device):
    served = serve(max_queue=2)
    file = served.upload(10)
    jobs = [served.post(10)["job_id"] for _ in range(3)]
    doors = [
        served.client.post("/enhance", files={"files": ("a.png", photo(10))}),
        served.call("enhance", file),
        served.call("enhance_batch", [file]),
        served.client.post("/gradio_api/call/enhance", json={"data": [file]}),
        *(served.join(name, file) for name in sorted(COMPUTING)),
    ]
    assert {answer.status_code for answer in doors} == {503}
    assert all(
        int(answer.headers["retry-after"]) > 0 and "full (2 waiting)" in answer.text for answer in doors
    )
    session = served.picked(file)
    assert served.join("start", None, session).status_code == 200
    assert "full (2 waiting)" in served.events(session)
    # the page of a user whose photo has just been restored still works
    for name in ("pick", "estimate", "finish", "zoom"):
        assert served.join(name, None).status_code == 200, name
    assert served.call("models", None).status_code == 200
    assert served.length == 3
    device.released.set()
    assert all(ended(served.client, job)["status"] == "completed" for job in jobs)
    assert ended(served.client, served.start(file))["status"] == "completed"


def test_gradio_client_reports_a_full_queue(serve):
    served = serve(max_queue=1)
    jobs = [served.post(10)["job_id"] for _ in range(2)]
    client = Client(served.address, verbose=False)
    (served.folder / "photo.png").write_bytes(photo(10))
    with pytest.raises(QueueError, match="full"):
        client.submit(handle_file(served.folder / "photo.png"), api_name="/enhance").result(timeout=120)
    assert [served.client.delete(f"/jobs/{job}").status_code for job in jobs] == [200, 200]


@pytest.mark.parametrize(
    "path", ["/enhance", "/gradio_api/call/enhance", "/gradio_api/call/v2/enhance_batch"]
)
def test_full_queue_is_reported_before_the_body_is_read(serve, path):
    served, sent = serve(max_queue=1), []
    for _ in range(2):
        served.post(10)

    async def receive():
        raise AssertionError("the body was read")

    async def send(message):
        sent.append(message)

    headers = [
        (b"host", b"127.0.0.1"),
        (b"content-length", b"1000000"),
        (b"content-type", b"multipart/form-data"),
    ]
    scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "headers": headers}
    scope |= {"query_string": b"", "scheme": "http", "client": ("127.0.0.1", 1), "root_path": ""}
    scope |= {"asgi": {"version": "3.0"}, "http_version": "1.1", "server": ("127.0.0.1", 80)}
    asyncio.run(served.app(scope, receive, send))
    assert sent[0]["status"] == 503 and b"retry-after" in dict(sent[0]["headers"])


def test_requests_that_are_examined_have_a_reservation():
    queue = GpuQueue(worker := Worker(), 1)
    queue.attach(gr.Blocks(), run_nothing)
    with queue.reservation(), queue.reservation():
        with pytest.raises(QueueFull, match="1 waiting"), queue.reservation():
            pass
        assert queue.length == 0, "they do not count as waiting"
    with queue.reservation():
        pass
    worker.close(0)
    with pytest.raises(QueueFull, match="shutting down"):
        queue.check()


def leave_running(served: Served, door: str) -> None:
    """Start a photo of width 10 at a door and drop the connection once it runs."""
    file = served.upload(10)
    if door in ("enhance", "enhance_batch"):
        value = [file, served.upload(11)] if door == "enhance_batch" else file
        path = f"call/{door}/{served.call(door, value).json()['event_id']}"
    else:
        session = served.picked(file)
        assert served.join(door, "0.5,0.5", session).status_code == 200
        path = f"queue/data?session_hash={session}"
    with stream(served, path):
        wait_until(lambda: served.length == 1)


@pytest.mark.parametrize("door", ["preview", "enhance", "enhance_batch"])
def test_client_that_vanishes_frees_the_device(serve, device, door):
    """The device is never released: the next photo starts only if the first one is stopped."""
    served = serve()
    leave_running(served, door)
    job = served.post(20)["job_id"]
    wait_until(lambda: device.started == [10, 20])
    assert device.stopped == [10]
    device.released.set()
    assert ended(served.client, job)["status"] == "completed"
    assert device.started == [10, 20], "neither the first photo nor the rest of its batch ran again"


CLIENT = """
import sys, time
from gradio_client import Client, handle_file
client = Client(sys.argv[1], verbose=False)
job = client.submit(handle_file(sys.argv[2]), face_enhance=False, api_name="/enhance")
while job.status().code.name not in ("IN_QUEUE", "PROCESSING", "PROGRESS"):
    time.sleep(0.01)
print(job.status().code.name, job.status().rank, flush=True)
job.result()
"""


def test_killed_gradio_clients_leave_queue_and_device(serve, device, tmp_path):
    served, processes = serve(), []
    for width, status in ((10, ("PROCESSING", "PROGRESS")), (11, "IN_QUEUE 0"), (12, "IN_QUEUE 1")):
        (tmp_path / f"{width}.png").write_bytes(photo(width))
        command = [sys.executable, "-c", CLIENT, served.address, str(tmp_path / f"{width}.png")]
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        assert processes[-1].stdout.readline().startswith(status)
    job = served.post(20)
    assert job["queue_position"] == 3 and device.started == [10]
    for process in processes[1:] + processes[:1]:
        process.kill()
        process.wait()
    wait_until(lambda: device.started == [10, 20])
    device.released.set()
    assert ended(served.client, job["job_id"])["status"] == "completed"
    assert (device.started, device.stopped) == ([10, 20], [10])


def test_rest_job_continues_without_its_clients(serve, device):
    served = serve()
    job = served.post(10)["job_id"]
    with served.client.stream("GET", f"/status/{job}/events") as events:
        next(events.iter_lines())
    wait_until(lambda: device.started == [10])
    # another client may start the event of jobs by number, but it runs nothing and stops nothing
    session = uuid.uuid4().hex
    assert served.join("run_job", job, session).status_code == 200
    with stream(served, f"queue/data?session_hash={session}") as lines:
        next(lines)
    wait_until(lambda: served.length == 1)
    assert served.join("run_job", job, session).status_code == 200
    device.released.set()
    status = ended(served.client, job)
    assert status["status"] == "completed" and len(status["results"]) == 1
    assert "process_completed" in served.client.get(f"/gradio_api/queue/data?session_hash={session}").text
    assert device.started == [10] and device.stopped == []


def test_cancelled_job_is_stopped_or_never_started(serve, device):
    served = serve()
    running, waiting, last = (served.post(width)["job_id"] for width in (10, 11, 12))
    wait_until(lambda: device.started == [10])
    for job in (waiting, running):
        assert served.client.delete(f"/jobs/{job}").json()["status"] == "cancelled"
    wait_until(lambda: device.started == [10, 12])
    assert device.stopped == [10]
    device.released.set()
    assert ended(served.client, last)["status"] == "completed" and device.started == [10, 12]


def test_uploads_do_not_expire_while_they_wait(serve, device):
    served = serve()
    served.post(10)
    files = [served.upload(11), served.upload(12), served.upload(13)]
    assert served.call("enhance", files[0]).status_code == 200
    assert served.call("enhance_batch", files[1:]).status_code == 200
    paths = [Path(file["path"]) for file in files]
    for path in paths:
        os.utime(path, (0, 0))
    wait_until(lambda: all(path.stat().st_mtime > 0 for path in paths))
    assert sorted(served.server.queue.uploads()) == sorted(map(str, paths))


def test_clients_that_wait_survive_many_other_sessions(serve, device):
    """Gradio drops the messages of the oldest sessions, here of all but six, even while their events wait."""
    served = serve()
    sessions = [served.picked(served.upload(10)) for _ in range(2)]
    served.server.blocks._queue.pending_messages_per_session.max_size = 6
    for session in sessions:
        assert served.join("preview", "0.5,0.5", session).status_code == 200
    job = served.post(11)["job_id"]
    wait_until(lambda: device.started == [10])
    for _ in range(12):
        assert served.output("models", None)
    assert served.post(12)["queue_position"] == 3
    device.released.set()
    assert ended(served.client, job)["status"] == "completed"
    for session in sessions:
        text = served.client.get(f"/gradio_api/queue/data?session_hash={session}").text
        assert '"success":true' in text


def test_messages_to_rest_jobs_are_not_stored(serve, device):
    """Nobody reads the event stream of jobs."""
    served = serve()
    device.released.set()
    for _ in range(3):
        assert ended(served.client, served.post(10)["job_id"])["status"] == "completed"
    queue = served.server.blocks._queue
    wait_until(lambda: not queue.event_ids_to_events)
    assert not any(queue.pending_event_ids_session.values())
    stored = [
        messages for messages in queue.pending_messages_per_session.values() if hasattr(messages, "qsize")
    ]
    assert stored == []
