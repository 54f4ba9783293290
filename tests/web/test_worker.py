import asyncio
import gc
import threading
import time
import weakref
from types import SimpleNamespace

import pytest

from restorer import UnsupportedImage
from restorer.errors import Cancelled
from restorer.web import worker as worker_module
from restorer.web.worker import Step, Worker
from tests.conftest import collect, wait_until


@pytest.fixture(autouse=True)
def fast_polling(monkeypatch):
    monkeypatch.setattr(worker_module, "_POLL_SECONDS", 0.01)


def slow_task(tiles, log, *, seconds=0.05):
    """A task that logs its tiles."""

    def restore(progress):
        for done in range(tiles):
            progress(done, tiles)
            log.append(done)
            time.sleep(seconds)
        return "restored"

    return restore


def test_steps_end_with_the_result():
    step_seen = threading.Event()

    def restore(progress):
        for done in range(4):
            progress(done, 4)
        assert step_seen.wait(120)
        return "restored"

    async def run():
        steps = []
        async for step in Worker().steps(restore):
            steps.append(step)
            step_seen.set()
        return steps

    *steps, last = asyncio.run(run())
    assert last == "restored"
    assert all(isinstance(step, Step) and step.done <= step.total for step in steps)
    assert steps


def test_error_of_a_task_is_raised_from_steps():
    def fail(progress):
        raise UnsupportedImage("no")

    with pytest.raises(UnsupportedImage, match="no"):
        collect(Worker().steps(fail))


@pytest.mark.parametrize("method", ["close", "cancel"])
def test_closing_steps_stops_the_task_before_the_next_starts(method):
    worker, first, second = Worker(), [], []

    async def start_and(end):
        steps = worker.steps(slow_task(100, first))
        while not first:
            await anext(steps)
        await end(steps)

    async def close(steps):
        await steps.aclose()

    async def cancel(steps):
        pending = asyncio.ensure_future(anext(steps))
        await asyncio.sleep(0)
        pending.cancel()

    asyncio.run(start_and({"close": close, "cancel": cancel}[method]))
    done = len(first)
    assert collect(worker.steps(slow_task(2, second)))[-1] == "restored"
    assert len(first) <= done + 1
    assert second == [0, 1]


def test_closed_worker_stops_its_task():
    worker, log = Worker(), []

    async def run():
        steps = worker.steps(slow_task(100, log))
        while not log:
            await anext(steps)
        assert worker.close(seconds=120)
        async for _ in steps:
            pass

    with pytest.raises(Cancelled):
        asyncio.run(run())
    assert len(log) < 100


def test_stopped_and_failed_tasks_release_their_memory():
    references = []

    class Picture:
        pass

    def restore(progress):
        picture = Picture()
        references.append(weakref.ref(picture))
        for done in range(50):
            progress(done, 50)
            time.sleep(0.01)
        raise UnsupportedImage("no")

    async def leave():
        steps = worker.steps(restore)
        while not references:
            await anext(steps)
        await steps.aclose()

    async def fail():
        with pytest.raises(UnsupportedImage):
            async for _ in worker.steps(restore):
                pass

    worker = Worker()
    gc.disable()
    try:
        asyncio.run(leave())
        asyncio.run(fail())
        assert worker.close(seconds=120)
        assert len(references) == 2
        # their threads end after they have released the device
        wait_until(lambda: not any(reference() for reference in references))
    finally:
        gc.enable()


def test_next_task_waits_for_the_step_of_a_stopped_one():
    """Gradio starts the next task at once: two threads never use the device at the same time."""
    worker, running, entered, finish = Worker(), [], threading.Event(), threading.Event()

    def first(progress):
        running.append("first")
        entered.set()
        assert finish.wait(120)
        running.remove("first")
        progress(1, 2)

    def second(progress):
        assert running == []
        return "restored"

    async def run():
        steps = worker.steps(first)
        while not entered.is_set():
            await anext(steps)
        await steps.aclose()
        following = worker.steps(second)
        assert await anext(following) == Step() and running == ["first"]
        finish.set()
        return [step async for step in following][-1]

    assert asyncio.run(run()) == "restored"


def test_closed_worker_starts_no_task():
    worker, started = Worker(), []
    worker.close(seconds=0)

    async def run():
        await asyncio.wait_for(anext(worker.steps(started.append)), 120)

    with pytest.raises(Cancelled):
        asyncio.run(run())
    assert started == []


def test_silent_seconds_count_from_the_last_progress(monkeypatch):
    worker, started, finish, now = Worker(), threading.Event(), threading.Event(), 100.0
    monkeypatch.setattr(worker_module, "time", SimpleNamespace(monotonic=lambda: now))

    def hang(progress):
        started.set()
        finish.wait(120)

    async def run():
        nonlocal now
        steps = worker.steps(hang)
        await anext(steps)
        assert started.wait(120) and worker.silent_seconds == 0
        now += 7
        silent_seconds = worker.silent_seconds
        finish.set()
        await steps.aclose()
        return silent_seconds

    assert asyncio.run(run()) == 7
