"""A device that hangs: its photo has failed at a deadline, and a new process goes on with the others."""

import asyncio
import threading
import time
from types import SimpleNamespace

import pytest

from restorer import QueueFull
from restorer.errors import Cancelled, TimedOut
from restorer.web import worker
from restorer.web.worker import Worker
from tests.conftest import taken, wait_until
from tests.web.test_killed import PHOTOS, clean, made, results

__all__ = ["clean"]  # a fixture


def test_a_hang_ends_in_an_error_and_nobody_waits_behind_it(monkeypatch):
    monkeypatch.setattr(worker, "_BEAT", 0.01)
    shop, forever, begun = Worker(patience=0.2), threading.Event(), []

    async def outcome(make):
        try:
            async for _ in shop.steps(make):
                pass
        except Exception as error:  # noqa: BLE001
            return type(error)

    async def run():
        works = [lambda progress: forever.wait(600), begun.append, begun.append]
        return await asyncio.wait_for(asyncio.gather(*map(outcome, works)), 120)

    assert asyncio.run(run()) == [TimedOut, Cancelled, Cancelled]
    assert begun == [] and shop.stuck.is_set()
    with pytest.raises(QueueFull):
        shop.join()
    forever.set()


def test_one_whose_waiter_left_is_watched_all_the_same(monkeypatch):
    monkeypatch.setattr(worker, "_BEAT", 0.01)
    shop, forever = Worker(patience=0.2), threading.Event()

    async def leave():
        steps = shop.steps(lambda progress: forever.wait(600))
        await anext(steps)
        await steps.aclose()

    asyncio.run(leave())
    time.sleep(0.3)
    shop.watch()
    assert shop.stuck.is_set()
    forever.set()


def test_steps_however_many_are_no_hang(monkeypatch):
    """By a clock of its own: ten steps of 0.5 s, each looked at, with a patience of 0.6 s."""
    now, looks = 100.0, 0
    monkeypatch.setattr(worker, "_BEAT", 0.01)
    monkeypatch.setattr(worker, "time", SimpleNamespace(monotonic=lambda: now))
    shop = Worker(patience=0.6)
    really = shop.watch

    def watch():
        nonlocal looks
        really()
        looks += 1

    monkeypatch.setattr(shop, "watch", watch)

    def long(progress):
        nonlocal now
        for done in range(10):
            progress(done, 10)
            now += 0.5
            before = looks
            wait_until(lambda before=before: looks >= before + 2)  # the first may have begun before
        return "done"

    assert taken(shop.steps(long))[-1] == "done"


def test_one_that_comes_back_late_is_stopped_at_its_next_step(monkeypatch):
    monkeypatch.setattr(worker, "_BEAT", 0.01)
    shop, late, after = Worker(patience=0.2), threading.Event(), []

    def slow(progress):
        late.wait(600)
        progress(1, 2)
        after.append("went on")

    with pytest.raises(TimedOut, match="0.2 seconds"):
        taken(shop.steps(slow))
    late.set()
    assert shop.close(seconds=120) and after == []


def until(told):
    """What told() says once it says something, within two minutes."""
    for _ in range(2400):
        if said := told():
            return said
        time.sleep(0.05)
    pytest.fail("nothing was told for two minutes")


def test_a_job_that_hangs_has_failed_and_the_next_server_goes_on(servers, clean, tmp_path):
    with servers.running(made(tmp_path), fault="hang", at=2, patience=15) as server:
        job = server.post(*PHOTOS, tile="32").json()["job_id"]
        waiting = server.post(*PHOTOS, tile="32").json()["job_id"]
        until(lambda: server.client.get("/health").status_code != 200)
        assert server.post(*PHOTOS).status_code == server.client.get("/ready").status_code == 503
        errors = until(lambda: server.client.get(f"/status/{job}").json()["errors"])
        assert errors[0]["original_filename"] == "a.png" and "given up" in errors[0]["error"]
        server.kill()
    with servers.running(tmp_path) as server:
        told = server.ended(job)
        assert told["errors"] == errors and [one["original_filename"] for one in told["results"]] == ["b.png"]
        assert results(server, server.ended(waiting)) == clean[0]
