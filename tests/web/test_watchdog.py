"""A device that hangs: its photo fails after the timeout, and a new process continues with the others."""

import asyncio
import threading
import time
from types import SimpleNamespace

import pytest

from restorer.errors import Cancelled, TimedOut
from restorer.web import worker as worker_module
from restorer.web.worker import Worker
from tests.conftest import collect, wait_until
from tests.crashing import running
from tests.web.test_killed import PHOTOS, clean, results, save_weights

pytestmark = pytest.mark.slow

__all__ = ["clean"]  # a fixture


@pytest.fixture(autouse=True)
def fast_polling(monkeypatch):
    monkeypatch.setattr(worker_module, "_POLL_SECONDS", 0.01)


def test_hang_raises_timed_out_and_cancels_other_tasks():
    """Even one whose thread waits for the device, as the client of the hanging task has left."""
    worker, never, started = Worker(timeout=0.2), threading.Event(), []

    async def error_of(task):
        try:
            async for _ in worker.steps(task):
                pass
        except Exception as error:  # noqa: BLE001
            return type(error)

    async def run():
        tasks = [lambda progress: never.wait(600), started.append]
        errors = await asyncio.wait_for(asyncio.gather(*map(error_of, tasks)), 120)
        return [*errors, await error_of(started.append)]

    assert asyncio.run(run()) == [TimedOut, Cancelled, Cancelled]
    assert started == [] and worker.stuck.is_set() and worker.closed
    never.set()


def test_hang_is_detected_after_its_client_left():
    worker, never = Worker(timeout=0.2), threading.Event()

    async def leave():
        steps = worker.steps(lambda progress: never.wait(600))
        await anext(steps)
        await steps.aclose()

    asyncio.run(leave())
    time.sleep(0.3)
    worker.watch()
    assert worker.stuck.is_set()
    never.set()


def test_task_longer_than_the_timeout_is_not_a_hang(monkeypatch):
    """On a fake clock: ten steps of 0.5 s with a timeout of 0.6 s, each checked by watch()."""
    now, checks = 100.0, 0
    monkeypatch.setattr(worker_module, "time", SimpleNamespace(monotonic=lambda: now))
    worker = Worker(timeout=0.6)
    real_watch = worker.watch

    def watch():
        nonlocal checks
        real_watch()
        checks += 1

    monkeypatch.setattr(worker, "watch", watch)

    def long_task(progress):
        nonlocal now
        for done in range(10):
            progress(done, 10)
            now += 0.5
            before = checks
            wait_until(lambda before=before: checks >= before + 2)  # the first may have started earlier
        return "done"

    assert collect(worker.steps(long_task))[-1] == "done"


def test_task_that_returns_after_its_timeout_is_stopped():
    worker, late, continued = Worker(timeout=0.2), threading.Event(), []

    def slow_task(progress):
        late.wait(600)
        progress(1, 2)
        continued.append(True)

    with pytest.raises(TimedOut, match="0.2 s"):
        collect(worker.steps(slow_task))
    late.set()
    assert worker.close(seconds=120) and continued == []


def wait_for(function):
    """Call `function` until it returns something true, for two minutes, and return that."""
    for _ in range(2400):
        if value := function():
            return value
        time.sleep(0.05)
    pytest.fail("no value within two minutes")


@pytest.mark.long
def test_job_that_hangs_fails_and_the_next_server_continues(clean, tmp_path):
    with running(save_weights(tmp_path), "hang", at=2, timeout=15) as server:
        job = server.post(*PHOTOS, tile="32").json()["job_id"]
        waiting = server.post(*PHOTOS, tile="32").json()["job_id"]
        wait_for(lambda: server.client.get("/health").status_code != 200)
        assert server.post(*PHOTOS).status_code == server.client.get("/ready").status_code == 503
        errors = wait_for(lambda: server.client.get(f"/status/{job}").json()["errors"])
        assert errors[0]["original_filename"] == "a.png" and "no progress for 15 s" in errors[0]["error"]
        server.kill()
    with running(tmp_path) as server:
        status = server.ended(job)
        assert status["errors"] == errors
        assert [result["original_filename"] for result in status["results"]] == ["b.png"]
        assert results(server, server.ended(waiting)) == clean[0]
