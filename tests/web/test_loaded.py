"""More jobs than there is room for, bodies that never end, and jobs by the hundred of which some fail."""

import asyncio
import errno
import gc
import hashlib
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest

from restorer import Restorer
from restorer.errors import InvalidOutput, OutOfMemory, UnsupportedImage
from restorer.web import metrics, middleware
from restorer.web.cleanup import CacheCleaner
from restorer.web.rest import jobs, routes
from restorer.web.rest.jobs import Jobs
from restorer.web.service import Service
from restorer.web.settings import Settings
from restorer.web.worker import Worker
from tests.conftest import photo_like, png, save_network
from tests.loading import Answer, ask, ended, form, get
from tests.web.test_killed import clean, made

__all__ = ["clean"]  # a fixture
PHOTO = png(photo_like(np.random.default_rng(4), 20, 20))
RAISED = (UnsupportedImage, OutOfMemory, InvalidOutput, RuntimeError, MemoryError, OSError)
KINDS = (
    len(RAISED) + 4
)  # and: cancelled in the line, cancelled at work, its input gone, its record not written


def port_of(server) -> int:
    return server.client.base_url.port


async def submits(port: int, count: int, seconds: float) -> tuple[list[Answer], list[Answer]]:
    """The answers to jobs that are sent within so many seconds, and to /health meanwhile."""
    healths, going = [], True
    gc.freeze()  # else collections in this process would be taken for the server's pauses

    async def probe() -> None:
        while going:
            healths.append(await ask(port, get("/health")))
            await asyncio.sleep(0.02)

    async def one(number: int) -> Answer:
        await asyncio.sleep(seconds * number / count)
        return await ask(port, form(PHOTO))

    probing = asyncio.create_task(probe())
    answers = await asyncio.gather(*map(one, range(count)))
    going = False
    await probing
    return answers, healths


def check_submits(answers: list[Answer], healths: list[Answer], most: int) -> list[str]:
    assert Counter(answer.status for answer in answers) == {202: most, 503: len(answers) - most}
    assert all(int(answer.headers["retry-after"]) > 0 for answer in answers if answer.status == 503)
    assert healths and {answer.status for answer in healths} == {200}
    return [json.loads(answer.body)["job_id"] for answer in answers if answer.status == 202]


def test_a_full_line_takes_as_many_as_it_may_and_no_more(servers, tmp_path):
    with servers.running(made(tmp_path), fault="hang", at=1, queue=32) as server:
        accepted = check_submits(*asyncio.run(submits(port_of(server), 200, 0)), most=33)
        server.kill()
    with servers.running(tmp_path) as server:
        for job in accepted:
            assert asyncio.run(ended(port_of(server), job))["status"] == "completed"


@pytest.mark.parametrize("announced", [True, False])
def test_a_body_that_comes_too_slowly_is_ended(monkeypatch, announced):
    monkeypatch.setattr(middleware, "_BODY_SECONDS", 0.3)
    sent = []

    async def app(scope, receive, send):
        while (await receive()).get("more_body"):
            pass
        raise AssertionError("a body that never ends has ended")

    async def receive():
        await asyncio.sleep(0.05)
        return {"type": "http.request", "body": b"x", "more_body": True}

    async def send(message):
        sent.append(message)

    headers = [(b"content-length", b"1000")] if announced else []
    scope = {"type": "http", "method": "POST", "path": "/enhance", "headers": headers}
    asyncio.run(middleware.BodyLimitMiddleware(app, 2000)(scope, receive, send))
    assert sent[0]["status"] == 408 and (b"connection", b"close") in sent[0]["headers"]


def test_a_body_that_comes_steadily_has_all_the_time_it_needs(monkeypatch):
    """By a clock of its own: 20 parts of 8 s, each of which earns 10 s beyond the first 30."""
    got, now = [], 100.0
    monkeypatch.setattr(middleware, "time", SimpleNamespace(monotonic=lambda: now))

    async def app(scope, receive, send):
        nonlocal now
        while (message := await receive()).get("more_body"):
            got.append(message["body"])
        now += 1000
        assert (await receive())["type"] == "http.disconnect", "what comes after it has no deadline"

    async def receive():
        nonlocal now
        now += 8
        await asyncio.sleep(0)  # where a deadline that has passed would end it
        if len(got) < 20:
            return {"type": "http.request", "body": bytes(200_000), "more_body": True}
        ends.append({"type": "http.request", "body": b"", "more_body": False})
        return ends[0] if len(ends) == 1 else {"type": "http.disconnect"}

    ends: list[dict] = []
    scope = {"type": "http", "method": "POST", "path": "/enhance", "headers": []}
    asyncio.run(middleware.BodyLimitMiddleware(app, 10**7)(scope, receive, None))
    assert len(got) == 20


class Scripted:
    """Jobs of one file each through the true line, with a restorer that answers with a hash, or fails."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        save_network(folder / "weights/custom/quick.safetensors", seed=1)
        monkeypatch.setattr(routes, "_AGAIN", 0.01)
        settings = Settings(
            upload_folder=folder / "uploads", processed_folder=folder / "processed", min_free_disk_mb=0
        )
        settings.processed_folder.mkdir(parents=True)
        restorer = Restorer(weights=folder / "weights", model="custom/quick", device="cpu:torch")
        pixels = photo_like(np.random.default_rng(0), 4, 4)
        self.one = restorer.restore(png(pixels), face_enhance="off")
        restorer.restore = self.restore  # type: ignore[method-assign]
        self.shop = Worker(100)
        told = metrics.Metrics(self.shop, lambda: 0)
        self.jobs = Jobs(settings.jobs_folder, settings.processed_folder)
        self.rest = routes.RestApi(Service(settings, restorer, self.shop, told), self.jobs)
        folders = (settings.upload_folder, settings.jobs_folder, settings.processed_folder)
        needed = self.jobs.needed
        self.janitor = CacheCleaner(*folders, needed=lambda name: name == "jobs" or needed(name), age=0)
        self.folder, self.unwritable, really = folder, set(), jobs.write_atomic

        def write(path: Path, data: bytes) -> None:
            if path.parent.name in self.unwritable:
                self.unwritable.remove(path.parent.name)
                raise OSError(errno.ENOSPC, "no room")
            really(path, data)

        monkeypatch.setattr(jobs, "write_atomic", write)

    def restore(self, data: bytes, *, progress, **_: object) -> object:
        number, kind = map(int, data.split())
        progress(0, 2)
        if 0 <= kind < len(RAISED):
            raise (
                RAISED[kind](errno.ENOSPC, "no room") if RAISED[kind] is OSError else RAISED[kind]("scripted")
            )
        if kind == len(RAISED) + 1:
            assert self.jobs.end(self.running[number], "cancelled")
            self.rest._live[self.running[number].id].task.get_loop().call_soon_threadsafe(
                self.rest._live[self.running[number].id].task.cancel
            )
        progress(1, 2)
        if kind == len(RAISED) + 3:
            self.unwritable.add(self.running[number].id)
        return replace(self.one, data=hashlib.sha256(data).digest() * 10)

    async def batch(self, numbers: range) -> Counter[str]:
        """Run these jobs, a tenth of them with a fault; how they ended."""
        self.running, kinds = {}, {}
        for number in numbers:
            while self.shop.waiting > 50:
                await asyncio.sleep(0.001)
            kind = kinds[number] = number // 10 % KINDS if number % 10 == 0 else -1
            place = self.folder / "in"
            place.write_bytes(b"%d %d" % (number, kind))
            job = self.running[number] = self.jobs.add([(f"{number}.png", place)], {})
            if kind == len(RAISED) + 2:
                (self.jobs.uploads / job.id / "0").unlink()
            self.rest._start(job, self.shop.join())
            if kind == len(RAISED):
                assert self.jobs.end(job, "cancelled")
                self.rest._live[job.id].task.cancel()
        while self.rest._live or self.shop.waiting:
            await asyncio.sleep(0.001)
        states = Counter(self._checked(number, kinds[number]) for number in numbers)
        for number in numbers[::2]:
            self.jobs.delete(self.running[number])
        self.janitor.sweep()
        self.jobs.forget_deleted()
        return states

    def _checked(self, number: int, kind: int) -> str:
        job = self.running[number]
        failed = 0 <= kind < len(RAISED) or kind == len(RAISED) + 2
        cancelled = kind in (len(RAISED), len(RAISED) + 1)
        assert job.state == ("failed" if failed else "cancelled" if cancelled else "completed"), (kind, job)
        (item,) = job.items
        assert bool(item.error) == failed and (item.result is not None) == (job.state == "completed")
        record = json.loads((self.jobs.uploads / job.id / "job.json").read_bytes())
        assert (record["state"], record["items"][0]["error"]) == (job.state, item.error)
        files = list(self.jobs.result_folder(job, 0).glob("*"))
        if job.state == "completed":
            (file,) = files
            right = hashlib.sha256(b"%d %d" % (number, kind)).digest() * 10
            assert file.name == item.result["file"] and file.read_bytes() == right
        else:
            assert files == []
        return job.state

    def left(self) -> list[Path]:
        return [path for name in ("uploads", "processed") for path in (self.folder / name).rglob("*")]


def many(
    folder: Path, monkeypatch: pytest.MonkeyPatch, count: int, batch: int
) -> tuple[Counter[str], list[float]]:
    """The ends of so many jobs, and the memory in MB after each batch."""
    scripted, states, memory = Scripted(folder, monkeypatch), Counter(), []
    for first in range(0, count, batch):
        states += asyncio.run(scripted.batch(range(first, first + batch)))
        gc.collect()
        memory.append(psutil.Process().memory_info().rss / 2**20)
    assert states.total() == count and not scripted.jobs._known
    assert [path.name for path in scripted.left()] == ["jobs"]
    return states, memory


def test_many_jobs_with_faults_end_once_each_and_leave_nothing(tmp_path, monkeypatch):
    states, _ = many(tmp_path, monkeypatch, 200, 100)
    assert states == {"completed": 182, "failed": 14, "cancelled": 4}
