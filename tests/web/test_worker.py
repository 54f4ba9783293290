import asyncio
import gc
import threading
import time
import weakref
from types import SimpleNamespace

import pytest

from restorer import QueueFull, UnsupportedImage
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
        # their threads end after the queue is empty
        wait_until(lambda: not any(reference() for reference in references))
    finally:
        gc.enable()


def test_tasks_run_in_order_and_report_their_position():
    worker, order = Worker(), []
    all_seen, running = threading.Event(), {number: threading.Event() for number in range(4)}

    def task(number):
        def restore(progress):
            order.append(number)
            assert all_seen.wait(120) and running[number].wait(120)

        return restore

    async def run():
        entries = [worker.join() for _ in range(4)]
        assert [worker.position(entry) for entry in entries] == [0, 1, 2, 3]
        positions = {number: [] for number in range(4)}

        async def take(number):
            async for step in worker.steps(task(number), entries[number]):
                if isinstance(step, Step):
                    positions[number].append(step.position)
                    if all(positions[other] for other in (0, 1, 3)):
                        all_seen.set()
                    if step.position == 0:
                        running[number].set()

        worker.leave(entries[2])  # while waiting: those behind it move up
        assert [worker.position(entry) for entry in entries] == [0, 1, 0, 2]
        await asyncio.gather(*(take(number) for number in (3, 1, 0)))
        return positions

    positions = asyncio.run(run())
    assert order == [0, 1, 3]
    last = positions[3]
    assert last == sorted(last, reverse=True) and last[0] == 2 and last[-1] == 0
    assert worker.queue_length == 0 and worker.silent_seconds == 0


def test_full_queue_and_closed_worker_raise_queue_full():
    worker = Worker(max_waiting=2)
    entries = [worker.join() for _ in range(3)]
    with pytest.raises(QueueFull, match="2 waiting"):
        worker.join()
    worker.leave(entries[1])
    worker.join()
    worker.join(always=True)
    assert worker.queue_length == 4
    worker.close(seconds=0)
    with pytest.raises(QueueFull, match="shutting down"):
        worker.join(always=True)


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
