"""A thousand at once, five hundred that never come to an end, and twenty thousand one after the other."""

import asyncio
import json
import logging
import statistics
import time

import numpy as np

from tests.conftest import photo_like, png, servers
from tests.loading import ask, ended, form
from tests.web.test_killed import clean, made
from tests.web.test_loaded import PHOTO, check_submits, many, port_of, submits

__all__ = ["clean", "servers"]  # fixtures


def test_a_thousand_submits_against_a_line_of_32(servers, tmp_path):
    for name, seconds in (("within a second", 1.0), ("in one instant", 0.0)):
        (folder := tmp_path / name).mkdir()
        with servers.running(made(folder), fault="hang", at=1, queue=32) as server:
            time.sleep(4)  # it loads its model in the second after its start
            answers, healths = asyncio.run(submits(port_of(server), 1000, seconds))
            accepted = check_submits(answers, healths, most=33)
            server.kill()
        with servers.running(folder) as server:
            for job in accepted:
                assert asyncio.run(ended(port_of(server), job))["status"] == "completed"
        refused = sorted(answer.seconds * 1000 for answer in answers if answer.status == 503)
        health = sorted(answer.seconds * 1000 for answer in healths)
        print(
            f"\n1000 submits {name}: 33 accepted, 967 refused in {statistics.median(refused):.0f} ms "
            f"({refused[-1]:.0f} at most); /health {statistics.median(health):.0f} ms ({health[-1]:.0f})"
        )
        if seconds:
            assert refused[-1] < 200 and health[-1] < 100


def test_five_hundred_slow_bodies_do_not_slow_a_good_one(servers, tmp_path):
    good = png(photo_like(np.random.default_rng(5), 200, 200))

    async def restored(port: int) -> float:
        start = time.perf_counter()
        answer = await ask(port, form(good, tile="64"))
        assert answer.status == 202, answer
        assert (await ended(port, json.loads(answer.body)["job_id"]))["status"] == "completed"
        return time.perf_counter() - start

    async def measured(port: int) -> tuple[float, float, list]:
        await restored(port)
        alone = statistics.median([await restored(port) for _ in range(5)])
        slow = [asyncio.create_task(ask(port, form(PHOTO), slowly=60)) for _ in range(500)]
        await asyncio.sleep(5)
        beside = statistics.median([await restored(port) for _ in range(5)])
        return alone, beside, await asyncio.gather(*slow)

    with servers.running(made(tmp_path)) as server:
        alone, beside, slow = asyncio.run(measured(port_of(server)))
        server.kill()
    assert {answer.status for answer in slow} <= {0, 408}
    longest = max(answer.seconds for answer in slow)
    print(f"\na good job: {alone:.2f} s alone, {beside:.2f} s beside 500 slow, ended in {longest:.0f} s")
    assert beside < 2 * alone and longest < 50


def test_twenty_thousand_jobs_with_faults(tmp_path, monkeypatch):
    logging.disable()  # pytest keeps every record, with all that its traceback knows
    try:
        states, memory = many(tmp_path, monkeypatch, 20_000, 1000)
    finally:
        logging.disable(logging.NOTSET)
    growth = (memory[-1] - memory[4]) / (len(memory) - 5)
    print(f"\n20000 jobs: {dict(states)}; {growth:.2f} MB more for each 1000 after the first 5000")
    assert states == {"completed": 18_200, "failed": 1_400, "cancelled": 400}
    assert growth < 1
