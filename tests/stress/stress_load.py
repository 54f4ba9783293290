"""A thousand submits at once, 500 slow clients, and 20,000 jobs in sequence."""

import asyncio
import json
import logging
import statistics
import time

import numpy as np

from tests.conftest import photo_like, png
from tests.crashing import running
from tests.loading import ask, ended, form
from tests.web.test_killed import clean, save_weights
from tests.web.test_loaded import PHOTO, check_submits, many, port_of, submits

__all__ = ["clean"]  # a fixture


def test_thousand_submits_against_queue_of_32(tmp_path):
    for name, seconds in (("within a second", 1.0), ("in one instant", 0.0)):
        (folder := tmp_path / name).mkdir()
        with running(save_weights(folder), "hang", at=1, queue=32) as server:
            time.sleep(4)  # the model is loaded after the start
            answers, healths = asyncio.run(submits(port_of(server), 1000, seconds))
            accepted = check_submits(answers, healths, most=33)
            server.kill()
        with running(folder) as server:
            for job in accepted:
                assert asyncio.run(ended(port_of(server), job))["status"] == "completed"
        refused = sorted(answer.seconds * 1000 for answer in answers if answer.status == 503)
        health = sorted(answer.seconds * 1000 for answer in healths)
        print(
            f"\n1000 submits {name}: 33 accepted, 967 refused in {statistics.median(refused):.0f} ms "
            f"({refused[-1]:.0f} at most); /health {statistics.median(health):.0f} ms ({health[-1]:.0f})"
        )


def test_500_slow_bodies_do_not_slow_other_jobs(tmp_path):
    photo = png(photo_like(np.random.default_rng(5), 200, 200))

    async def restore(port: int) -> float:
        start = time.perf_counter()
        answer = await ask(port, form(photo, tile="64"))
        assert answer.status == 202, answer
        assert (await ended(port, json.loads(answer.body)["job_id"]))["status"] == "completed"
        return time.perf_counter() - start

    async def measure(port: int) -> tuple[float, float, list]:
        await restore(port)
        alone = statistics.median([await restore(port) for _ in range(5)])
        slow = [asyncio.create_task(ask(port, form(PHOTO), slowly=1200)) for _ in range(500)]
        await asyncio.sleep(5)
        loaded = statistics.median([await restore(port) for _ in range(5)])
        return alone, loaded, await asyncio.gather(*slow)

    with running(save_weights(tmp_path)) as server:
        alone, loaded, slow = asyncio.run(measure(port_of(server)))
        server.kill()
    assert {answer.status for answer in slow} <= {0, 408}
    longest = max(answer.seconds for answer in slow)
    print(f"\na job: {alone:.2f} s alone, {loaded:.2f} s beside 500 slow clients, ended in {longest:.0f} s")


def test_20000_jobs_with_faults_end_once(tmp_path, monkeypatch):
    logging.disable()  # pytest stores every record, with the objects of its traceback
    try:
        states, memory = many(tmp_path, monkeypatch, 20_000, 1000)
    finally:
        logging.disable(logging.NOTSET)
    growth = (memory[-1] - memory[4]) / (len(memory) - 5)
    print(f"\n20000 jobs: {dict(states)}; {growth:.2f} MB more for each 1000 after the first 5000")
    assert states == {"completed": 18_200, "failed": 1_400, "cancelled": 400}
    assert growth < 1
