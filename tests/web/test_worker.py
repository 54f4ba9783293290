import asyncio
import gc
import threading
import time
import weakref
from types import SimpleNamespace

import pytest

from restorer import QueueFull, UnsupportedImage
from restorer.errors import Cancelled
from restorer.web import worker
from restorer.web.worker import Step, Worker
from tests.conftest import taken, wait_until


def slow(tiles, log, *, seconds=0.05):
    """A restoration that only counts its tiles."""

    def restore(progress):
        for done in range(tiles):
            progress(done, tiles)
            log.append(done)
            time.sleep(seconds)
        return "restored"

    return restore


def test_steps_end_with_the_result(monkeypatch):
    monkeypatch.setattr(worker, "_BEAT", 0.01)
    seen = threading.Event()

    def restore(progress):
        for done in range(4):
            progress(done, 4)
        assert seen.wait(120)
        return "restored"

    async def run():
        steps = []
        async for step in Worker().steps(restore):
            steps.append(step)
            seen.set()
        return steps

    *steps, last = asyncio.run(run())
    assert last == "restored"
    assert all(isinstance(step, Step) and step.done <= step.total for step in steps)
    assert steps


def test_an_error_comes_out_where_the_steps_are_taken():
    def fails(progress):
        raise UnsupportedImage("no")

    with pytest.raises(UnsupportedImage, match="no"):
        taken(Worker().steps(fails))


@pytest.mark.parametrize("way", ["close", "cancel"])
def test_leaving_stops_within_a_tile_and_the_next_one_waits_for_that(monkeypatch, way):
    monkeypatch.setattr(worker, "_BEAT", 0.01)
    shop, first, second = Worker(), [], []

    async def leave(end):
        steps = shop.steps(slow(100, first))
        while not first:
            await anext(steps)
        await end(steps)

    async def close(steps):
        await steps.aclose()

    async def cancel(steps):
        waiting = asyncio.ensure_future(anext(steps))
        await asyncio.sleep(0)
        waiting.cancel()

    asyncio.run(leave({"close": close, "cancel": cancel}[way]))
    done = len(first)
    assert taken(shop.steps(slow(2, second)))[-1] == "restored"
    assert len(first) <= done + 1
    assert second == [0, 1]


def test_a_closed_workshop_stops_its_photo_and_takes_no_other(monkeypatch):
    monkeypatch.setattr(worker, "_BEAT", 0.01)
    shop, log = Worker(), []

    async def under_way():
        steps = shop.steps(slow(100, log))
        while not log:
            await anext(steps)
        assert shop.close(seconds=120)
        async for _ in steps:
            pass

    with pytest.raises(Cancelled):
        asyncio.run(under_way())
    assert len(log) < 100


def test_what_was_stopped_or_failed_does_not_stay_in_memory(monkeypatch):
    monkeypatch.setattr(worker, "_BEAT", 0.01)
    kept = []

    class Picture:
        pass

    def restore(progress):
        picture = Picture()
        kept.append(weakref.ref(picture))
        for done in range(50):
            progress(done, 50)
            time.sleep(0.01)
        raise UnsupportedImage("no")

    async def leave():
        steps = shop.steps(restore)
        while not kept:
            await anext(steps)
        await steps.aclose()

    async def fail():
        with pytest.raises(UnsupportedImage):
            async for _ in shop.steps(restore):
                pass

    shop = Worker()
    gc.disable()
    try:
        asyncio.run(leave())
        asyncio.run(fail())
        assert shop.close(seconds=120)
        assert len(kept) == 2
        wait_until(lambda: not any(reference() for reference in kept))  # their threads end after the line
    finally:
        gc.enable()


def test_tickets_are_served_in_order_and_know_their_place(monkeypatch):
    monkeypatch.setattr(worker, "_BEAT", 0.01)
    shop, order = Worker(), []
    all_seen, at_work = threading.Event(), {number: threading.Event() for number in range(4)}

    def named(name):
        def restore(progress):
            order.append(name)
            assert all_seen.wait(120) and at_work[name].wait(120)

        return restore

    async def run():
        tickets = [shop.join() for _ in range(4)]
        assert [shop.place(ticket) for ticket in tickets] == [0, 1, 2, 3]
        places = {number: [] for number in range(4)}

        async def take(number):
            async for step in shop.steps(named(number), tickets[number]):
                if isinstance(step, Step):
                    places[number].append(step.place)
                    if all(places[other] for other in (0, 1, 3)):
                        all_seen.set()
                    if step.place == 0:
                        at_work[number].set()

        shop.leave(tickets[2])  # before its turn: those behind move up
        assert [shop.place(ticket) for ticket in tickets] == [0, 1, 0, 2]
        await asyncio.gather(*(take(number) for number in (3, 1, 0)))
        return places

    places = asyncio.run(run())
    assert order == [0, 1, 3]
    assert places[3] == sorted(places[3], reverse=True) and places[3][0] == 2 and places[3][-1] == 0
    assert shop.waiting == 0 and shop.silent == 0


def test_the_line_has_an_end():
    shop = Worker(longest=2)
    tickets = [shop.join() for _ in range(3)]
    with pytest.raises(QueueFull, match="2 are waiting"):
        shop.join()
    shop.leave(tickets[1])
    shop.join()
    shop.join(always=True)
    assert shop.waiting == 4
    shop.close(seconds=0)
    with pytest.raises(QueueFull, match="ending"):
        shop.join(always=True)


def test_a_silent_worker_is_seen(monkeypatch):
    shop, begun, stuck, now = Worker(), threading.Event(), threading.Event(), 100.0
    monkeypatch.setattr(worker, "_BEAT", 0.01)
    monkeypatch.setattr(worker, "time", SimpleNamespace(monotonic=lambda: now))

    def hang(progress):
        begun.set()
        stuck.wait(120)

    async def run():
        nonlocal now
        steps = shop.steps(hang)
        await anext(steps)
        assert begun.wait(120) and shop.silent == 0
        now += 7
        silent = shop.silent
        stuck.set()
        await steps.aclose()
        return silent

    assert asyncio.run(run()) == 7
