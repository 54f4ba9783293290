"""A device that hangs: its photo has failed at a deadline, and a new process goes on with the others."""

import asyncio
import threading
import time
from pathlib import Path

import httpx
import pytest
from conftest import photo_like, png, save_quick_and_slow, taken
from hanging import WIDTH
from test_page import launched
from test_rest import ended, posted

from restorer import QueueFull
from restorer.errors import Cancelled, TimedOut
from restorer.web import workshop
from restorer.web.workshop import Workshop

HANGING = Path(__file__).parent / "hanging.py"


def test_a_hang_ends_in_an_error_and_nobody_waits_behind_it(monkeypatch):
    monkeypatch.setattr(workshop, "_BEAT", 0.01)
    shop, forever, begun = Workshop(patience=0.2), threading.Event(), []

    async def outcome(make):
        try:
            async for _ in shop.steps(make):
                pass
        except Exception as error:  # noqa: BLE001
            return type(error)

    async def run():
        works = [lambda progress: forever.wait(60), begun.append, begun.append]
        return await asyncio.wait_for(asyncio.gather(*map(outcome, works)), 30)

    assert asyncio.run(run()) == [TimedOut, Cancelled, Cancelled]
    assert begun == [] and shop.stuck.is_set()
    with pytest.raises(QueueFull):
        shop.join()
    forever.set()


def test_one_whose_waiter_left_is_watched_all_the_same(monkeypatch):
    monkeypatch.setattr(workshop, "_BEAT", 0.01)
    shop, forever = Workshop(patience=0.2), threading.Event()

    async def leave():
        steps = shop.steps(lambda progress: forever.wait(60))
        await anext(steps)
        await steps.aclose()

    asyncio.run(leave())
    time.sleep(0.3)
    shop.watch()
    assert shop.stuck.is_set()
    forever.set()


def test_steps_however_many_are_no_hang(monkeypatch):
    monkeypatch.setattr(workshop, "_BEAT", 0.01)

    def long(progress):
        for done in range(10):
            progress(done, 10)
            time.sleep(0.1)
        return "done"

    assert taken(Workshop(patience=0.6).steps(long))[-1] == "done"


def test_one_that_comes_back_late_is_stopped_at_its_next_step(monkeypatch):
    monkeypatch.setattr(workshop, "_BEAT", 0.01)
    shop, late, after = Workshop(patience=0.2), threading.Event(), []

    def slow(progress):
        late.wait(60)
        progress(1, 2)
        after.append("went on")

    with pytest.raises(TimedOut, match="0.2 seconds"):
        taken(shop.steps(slow))
    late.set()
    assert shop.close(seconds=30) and after == []


def test_a_server_whose_device_hangs_starts_anew_and_ends_every_job_once(tmp_path, rng):
    save_quick_and_slow(tmp_path)
    good, bad = png(photo_like(rng, 20, 30)), png(photo_like(rng, 20, WIDTH))
    with launched(tmp_path, HANGING, STEP_SECONDS="2", OMP_NUM_THREADS="1") as (process, address):
        client = httpx.Client(base_url=address, timeout=60, transport=httpx.HTTPTransport(retries=100))
        first = posted(client, ("a.png", good), ("b.png", bad), ("c.png", good))["job_id"]
        others = [posted(client, ("d.png", good))["job_id"] for _ in range(3)]
        told = patiently(client, first)
        assert [result["original_filename"] for result in told["results"]] == ["a.png", "c.png"]
        (error,) = told["errors"]
        assert error["original_filename"] == "b.png" and "given up" in error["error"]
        assert [patiently(client, job)["status"] for job in others] == ["completed"] * 3
        assert client.get("/health").status_code == 200 and process.poll() is None
        assert (tmp_path / "log").read_text().count("starts itself anew") == 1


def patiently(client: httpx.Client, job: str) -> dict:
    """ended(), through the seconds in which no server answers."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            return ended(client, job)
        except (httpx.HTTPError, KeyError):
            time.sleep(0.2)
    raise AssertionError("no server answers")
