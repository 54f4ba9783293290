"""More jobs than the queue holds, bodies that never end, and hundreds of jobs some of which fail."""

import asyncio
import errno
import gc
import hashlib
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import numpy as np
import psutil
import pytest

from restorer import Restorer
from restorer.errors import InvalidOutput, OutOfMemory, UnsupportedImage
from restorer.web import job_runner, jobs, metrics, middleware
from restorer.web.cleanup import sweep
from restorer.web.gpu_queue import GpuQueue
from restorer.web.jobs import Jobs
from restorer.web.service import Service
from restorer.web.settings import Settings
from restorer.web.worker import Worker
from tests.conftest import photo_like, png, save_network
from tests.crashing import running
from tests.loading import Answer, ask, ended, form, get
from tests.web.test_killed import clean, save_weights

pytestmark = pytest.mark.slow

__all__ = ["clean"]  # a fixture
PHOTO = png(photo_like(np.random.default_rng(4), 20, 20))
RAISED = (UnsupportedImage, OutOfMemory, InvalidOutput, RuntimeError, MemoryError, OSError)
# Kinds of faults: an index into RAISED, or
CANCELLED_WAITING, CANCELLED_RUNNING, INPUT_DELETED, RECORD_UNWRITABLE = range(len(RAISED), len(RAISED) + 4)
KINDS, NO_FAULT = len(RAISED) + 4, -1


def port_of(server) -> int:
    return server.client.base_url.port


async def submits(port: int, count: int, seconds: float) -> tuple[list[Answer], list[Answer]]:
    """Submit jobs within `seconds`; return the answers to them, and to /health meanwhile."""
    healths, running = [], True
    gc.freeze()  # collections in this process would look like pauses of the server

    async def probe() -> None:
        while running:
            healths.append(await ask(port, get("/health")))
            await asyncio.sleep(0.02)

    async def submit(number: int) -> Answer:
        await asyncio.sleep(seconds * number / count)
        return await ask(port, form(PHOTO))

    probing = asyncio.create_task(probe())
    answers = await asyncio.gather(*map(submit, range(count)))
    running = False
    await probing
    return answers, healths


def check_submits(answers: list[Answer], healths: list[Answer], most: int) -> list[str]:
    assert Counter(answer.status for answer in answers) == {202: most, 503: len(answers) - most}
    assert all(int(answer.headers["retry-after"]) > 0 for answer in answers if answer.status == 503)
    assert healths and {answer.status for answer in healths} == {200}
    return [json.loads(answer.body)["job_id"] for answer in answers if answer.status == 202]


def test_full_queue_refuses_jobs_beyond_its_limit(tmp_path):
    with running(save_weights(tmp_path), "hang", at=1, queue=32) as server:
        accepted = check_submits(*asyncio.run(submits(port_of(server), 200, 0)), most=33)
        server.kill()
    with running(tmp_path) as server:
        for job in accepted:
            assert asyncio.run(ended(port_of(server), job))["status"] == "completed"


@pytest.mark.parametrize("announced", [True, False])
@pytest.mark.parametrize("chunk", [b"", b"x"])
def test_body_that_does_not_advance_gets_408(announced, chunk):
    sent = []

    async def app(scope, receive, send):
        while (await receive()).get("more_body"):
            pass
        raise AssertionError("the endless body has ended")

    async def receive():
        await asyncio.sleep(0.05)
        return {"type": "http.request", "body": chunk, "more_body": True}

    async def send(message):
        sent.append(message)

    headers = [(b"content-length", b"1000")] if announced else []
    scope = {"type": "http", "method": "POST", "path": "/enhance", "headers": headers}
    asyncio.run(middleware.BodyLimitMiddleware(app, 2000, timeout=0.3)(scope, receive, send))
    assert sent[0]["status"] == 408 and (b"connection", b"close") in sent[0]["headers"]


def test_slow_body_that_advances_has_no_deadline(monkeypatch):
    """On a fake clock: 0.8 MB at 64 kbit/s, a 16 kB chunk every two seconds; then a chunk every 29 s."""
    chunks, now = [], 100.0
    monkeypatch.setattr(middleware, "time", SimpleNamespace(monotonic=lambda: now))

    async def app(scope, receive, send):
        nonlocal now
        while (message := await receive()).get("more_body"):
            chunks.append(message["body"])
        now += 1000
        assert (await receive())["type"] == "http.disconnect", "after the body there is no deadline"

    async def receive():
        nonlocal now
        now += 2 if len(chunks) < 50 else 29
        await asyncio.sleep(0)  # a deadline that has passed raises here
        if len(chunks) < 60:
            return {"type": "http.request", "body": bytes(16_000), "more_body": True}
        ends.append({"type": "http.request", "body": b"", "more_body": False})
        return ends[0] if len(ends) == 1 else {"type": "http.disconnect"}

    ends: list[dict] = []
    scope = {"type": "http", "method": "POST", "path": "/enhance", "headers": []}
    asyncio.run(middleware.BodyLimitMiddleware(app, 10**7, timeout=30)(scope, receive, None))
    assert len(chunks) == 60


class Scripted:
    """Jobs of one file each in the real queue, with a restorer that returns a hash of its input, or fails."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        save_network(folder / "weights/custom/quick.safetensors", seed=1)
        monkeypatch.setattr(job_runner, "_RETRY_SECONDS", 0.01)
        monkeypatch.setenv("GRADIO_ANALYTICS_MAX_EVENTS", "1")  # as app.py does
        monkeypatch.setenv("GRADIO_ANALYTICS_CACHE_FREQUENCY", str(10**9))
        settings = Settings(
            upload_folder=folder / "uploads", processed_folder=folder / "processed", min_free_disk_mb=0
        )
        settings.processed_folder.mkdir(parents=True)
        restorer = Restorer(weights=folder / "weights", model="custom/quick", device="cpu:torch")
        pixels = photo_like(np.random.default_rng(0), 4, 4)
        self.result = restorer.restore(png(pixels), face_enhance="off")
        restorer.restore = self.restore  # type: ignore[method-assign]
        self.queue = GpuQueue(worker := Worker(), 100)
        exported = metrics.Metrics(worker, self.queue, lambda: 0)
        self.jobs = Jobs(settings.jobs_folder, settings.processed_folder)
        service = Service(settings, restorer, worker, self.queue, exported)
        self.runner = job_runner.JobRunner(service, self.jobs)
        self.folders = settings.upload_folder, settings.jobs_folder, settings.processed_folder
        self.folder, self.unwritable, write_atomic = folder, set(), jobs.write_atomic

        def write(path: Path, data: bytes) -> None:
            if path.parent.name in self.unwritable:
                self.unwritable.remove(path.parent.name)
                raise OSError(errno.ENOSPC, "disk full")
            write_atomic(path, data)

        monkeypatch.setattr(jobs, "write_atomic", write)

    def restore(self, data: bytes, *, progress, **_: object) -> object:
        number, kind = map(int, data.split())
        progress(0, 2)
        if 0 <= kind < len(RAISED):
            error = RAISED[kind]
            raise error(errno.ENOSPC, "disk full") if error is OSError else error("scripted")
        job = self.batch_jobs[number]
        if kind == CANCELLED_RUNNING:
            asyncio.run_coroutine_threadsafe(self._cancel(job), self.loop).result()
        progress(1, 2)
        if kind == RECORD_UNWRITABLE:
            self.unwritable.add(job.id)
        return replace(self.result, data=hashlib.sha256(data).digest() * 10)

    async def _cancel(self, job: jobs.Job) -> None:
        assert await self.runner.cancel(job)

    def start(self) -> None:
        """Start the queue in the running event loop."""
        self.loop = asyncio.get_running_loop()
        blocks = self.queue.attach(gr.Blocks(), self.runner.run)
        self.queue.set_app(blocks.app)
        blocks.run_startup_events()

    async def batch(self, numbers: range) -> Counter[str]:
        """Run jobs, a tenth of them with a fault, and count their final states."""
        self.batch_jobs, kinds = {}, {}
        for number in numbers:
            while self.queue.length > 50:
                await asyncio.sleep(0.001)
            kind = kinds[number] = number // 10 % KINDS if number % 10 == 0 else NO_FAULT
            path = self.folder / "in"
            path.write_bytes(b"%d %d" % (number, kind))
            job = self.batch_jobs[number] = self.jobs.add([(f"{number}.png", path)], {})
            if kind == INPUT_DELETED:
                (self.jobs.uploads / job.id / "0").unlink()
            await self.runner.submit(job)
            if kind == CANCELLED_WAITING:
                await self._cancel(job)
        while self.runner.queued or self.queue.length:
            await asyncio.sleep(0.001)
        states = Counter(self._check(number, kinds[number]) for number in numbers)
        for number in numbers[::2]:
            self.jobs.delete(self.batch_jobs[number])
        sweep(self.folders, in_use=lambda name: name == "jobs" or self.jobs.is_unfinished(name), max_age=0)
        self.jobs.forget_deleted()
        return states

    def _check(self, number: int, kind: int) -> str:
        job = self.batch_jobs[number]
        failed = 0 <= kind < len(RAISED) or kind == INPUT_DELETED
        cancelled = kind in (CANCELLED_WAITING, CANCELLED_RUNNING)
        assert job.state == ("failed" if failed else "cancelled" if cancelled else "completed"), (kind, job)
        (item,) = job.items
        assert bool(item.error) == failed and (item.result is not None) == (job.state == "completed")
        record = json.loads((self.jobs.uploads / job.id / "job.json").read_bytes())
        assert (record["state"], record["items"][0]["error"]) == (job.state, item.error)
        files = list(self.jobs.result_folder(job, 0).glob("*"))
        if job.state == "completed":
            (file,) = files
            expected = hashlib.sha256(b"%d %d" % (number, kind)).digest() * 10
            assert file.name == item.result["file"] and file.read_bytes() == expected
        else:
            assert files == []
        return job.state

    def left(self) -> list[Path]:
        return [path for name in ("uploads", "processed") for path in (self.folder / name).rglob("*")]


def many(
    folder: Path, monkeypatch: pytest.MonkeyPatch, count: int, batch: int
) -> tuple[Counter[str], list[float]]:
    """Run jobs in batches; return their final states, and the memory in MB after each batch."""
    scripted, states, memory = Scripted(folder, monkeypatch), Counter(), []

    async def run() -> None:
        scripted.start()
        for first in range(0, count, batch):
            states.update(await scripted.batch(range(first, first + batch)))
            gc.collect()
            memory.append(psutil.Process().memory_info().rss / 2**20)

    asyncio.run(run())
    assert states.total() == count and not scripted.jobs._jobs
    assert [path.name for path in scripted.left()] == ["jobs"]
    return states, memory


def test_jobs_with_faults_end_once_and_leave_nothing_behind(tmp_path, monkeypatch):
    states, _ = many(tmp_path, monkeypatch, 200, 100)
    assert states == {"completed": 182, "failed": 14, "cancelled": 4}
