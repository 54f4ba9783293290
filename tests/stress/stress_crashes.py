"""Kill servers at every step of a job and at random moments, and fill their disks."""

import os
import shutil
import subprocess
import threading
import time
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.conftest import photo_like, png, save_quick_and_slow
from tests.crashing import running
from tests.serving import launched
from tests.stress.hanging import WIDTH
from tests.web.test_killed import (
    PHOTOS,
    check_next,
    clean,
    full_at,
    killed,
    left,
    parts,
    results,
    save_weights,
    writing,
)
from tests.web.test_rest import ended, posted

HANGING = Path(__file__).parent / "hanging.py"
__all__ = ["clean"]  # a fixture
SEED, KILLS = 1910, 40


def test_jobs_survive_a_kill_at_every_step(clean, tmp_path):
    expected, steps = clean
    last_steps = []
    for at in range(1, len(steps) + 1):
        (folder := tmp_path / str(at)).mkdir()
        last_steps.append(killed(folder, at, expected))
        shutil.rmtree(folder)
    assert {"tile", "decode", "encode", "begin", "fsync", "os.rename .part"} <= set(last_steps)
    print(f"\nkilled at each of {len(steps)} steps: nothing lost or repeated")


def test_jobs_survive_kills_at_random_moments(clean, tmp_path):
    rng, kills = np.random.default_rng(SEED), 0
    while kills < KILLS:
        (folder := tmp_path / str(kills)).mkdir()
        accepted: dict[str, dict | None] = {}
        with running(save_weights(folder)) as server:
            killer = threading.Timer(rng.uniform(0.0, 0.4), server.process.kill)
            killer.start()
            while server.alive and (answer := server.post(*PHOTOS, tile="32")) is not None:
                if answer.status_code == 202:
                    accepted[answer.json()["job_id"]] = None
                    if rng.random() < 0.5:
                        accepted[answer.json()["job_id"]] = server.ended(answer.json()["job_id"])
            killer.join()
        kills += 1
        check_next(folder, accepted, clean[0])
        shutil.rmtree(folder)
    print(f"\n{kills} kills at random moments, seed {SEED}: nothing lost or repeated")


def test_full_disk_at_every_step_of_a_job(clean, tmp_path):
    codes = []
    for at in range(1, writing(clean[1]) + 1):
        (folder := tmp_path / str(at)).mkdir()
        codes.append(full_at(folder, at, clean[0]))
        shutil.rmtree(folder)
    assert len(codes) > 30 and set(codes) == {202, 507}
    print(f"\nfull disk at each of {len(codes)} steps: {codes.count(507)} refused with 507, the others ended")


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "small"
    folder.mkdir()
    mount = shutil.which("mount")
    if (
        not mount
        or os.geteuid()
        or subprocess.run([mount, "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder]).returncode
    ):
        pytest.skip("needs permission to mount a tmpfs")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_server_recovers_from_a_full_disk(clean, small_disk: Path):
    """Jobs are sent until the disk is full: accepted jobs end, and jobs run again once there is space."""
    large = png(np.random.default_rng(2).integers(0, 256, (300, 300, 3), np.uint8))
    codes, states = [], []
    with running(save_weights(small_disk)) as server:
        for number in range(60):
            answer = server.post((f"{number}.png", large), outscale="1")
            codes.append(answer.status_code)
            if answer.status_code == 202:
                states.append(server.ended(answer.json()["job_id"])["status"])
        assert set(codes) == {202, 507} and parts(small_disk) == []
        for job in [job for job in (small_disk / "uploads/jobs").iterdir() if len(job.name) == 32]:
            assert server.client.delete(f"/jobs/{job.name}").json()["status"] == "deleted"
        status = server.ended(server.post(*PHOTOS, tile="32").json()["job_id"])
        assert results(server, status) == clean[0]
        server.kill()
    assert left(small_disk) == []
    print(
        f"\n2 MB of disk: {codes.count(202)} accepted, of which {states.count('failed')} failed; "
        f"{codes.count(507)} refused with 507"
    )


def test_jobs_of_one_folder_end_once_over_many_kills(clean, tmp_path):
    """For 100 seconds, one server after the other is killed over the same folder."""
    save_weights(tmp_path)
    rng, accepted, kills = np.random.default_rng(SEED + 1), {}, 0
    end = time.monotonic() + 100
    while time.monotonic() < end:
        with running(tmp_path) as server:
            threading.Timer(rng.uniform(0.1, 1.0), server.process.kill).start()
            while server.alive and len(accepted) < 10 * (kills + 1):
                if (answer := server.post(*PHOTOS, tile="32")) is not None and answer.status_code == 202:
                    accepted[answer.json()["job_id"]] = None
            while server.alive:
                time.sleep(0.01)
        kills += 1
    lost = check_next(tmp_path, accepted, clean[0], seconds=300, often=True)
    print(f"\n{len(accepted)} jobs over {kills} kills of one folder, seed {SEED + 1}: each ended once,")
    print(f"{lost} files failed, each after three servers had died at it")


def test_server_with_hanging_device_restarts_and_ends_every_job_once(tmp_path):
    rng = np.random.default_rng(SEED)
    save_quick_and_slow(tmp_path)
    good, bad = png(photo_like(rng, 20, 30)), png(photo_like(rng, 20, WIDTH))
    with launched(tmp_path, HANGING, preloaded=False, WATCHDOG_TIMEOUT="20", OMP_NUM_THREADS="1") as (
        process,
        address,
    ):
        client = httpx.Client(base_url=address, timeout=60, transport=httpx.HTTPTransport(retries=100))
        first = posted(client, ("a.png", good), ("b.png", bad), ("c.png", good))["job_id"]
        others = [posted(client, ("d.png", good))["job_id"] for _ in range(3)]
        status = ended_across_restart(client, first)
        assert [result["original_filename"] for result in status["results"]] == ["a.png", "c.png"]
        (error,) = status["errors"]
        assert error["original_filename"] == "b.png" and "no progress for 20 s" in error["error"]
        assert [ended_across_restart(client, job)["status"] for job in others] == ["completed"] * 3
        assert client.get("/health").status_code == 200 and process.is_alive()
        assert (tmp_path / "log").read_text().count("restarting the server") == 1


def ended_across_restart(client: httpx.Client, job: str) -> dict:
    """ended(), with retries while the server restarts."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            return ended(client, job)
        except (httpx.HTTPError, KeyError):
            time.sleep(0.2)
    raise AssertionError("the server does not answer")
