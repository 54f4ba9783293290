"""A server is killed, or its disk is full, at a step of a job: no job is lost, incomplete or run twice."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from restorer.web.cleanup import sweep
from tests.conftest import files_below, photo_like, png, save_network
from tests.crashing import Served, running

pytestmark = pytest.mark.slow

PHOTOS = [
    (name, png(photo_like(np.random.default_rng(side), side, 70)))
    for name, side in (("a.png", 60), ("b.png", 20))
]
SEED = 10
CRASHED = "the server crashed 3 times while restoring this photo"


@pytest.fixture(scope="module")
def clean(tmp_path_factory) -> tuple[list[str], list[str]]:
    """The sha256 of each result, and the steps, of a server without faults."""
    folder = save_weights(tmp_path_factory.mktemp("clean"))
    with running(folder) as server:
        status = server.ended(server.post(*PHOTOS, tile="32").json()["job_id"])
        return results(server, status), (folder / "steps").read_text().splitlines()


def save_weights(folder: Path) -> Path:
    torch.manual_seed(0)  # the biases, which save_network() does not seed
    save_network(folder / "weights/custom/quick.safetensors", seed=1)
    return folder


def results(server: Served, status: dict) -> list[str]:
    """The sha256 of each result of a completed job."""
    assert status["status"] == "completed" and not status["errors"], status
    files = [server.client.get(result["url"]) for result in status["results"]]
    assert all(file.status_code == 200 for file in files)
    return [hashlib.sha256(file.content).hexdigest() for file in files]


def records(folder: Path) -> dict[str, dict]:
    """The records on disk by job id, as another process will load them."""
    paths = (folder / "uploads/jobs").glob("*/job.json")
    return {path.parent.name: json.loads(path.read_bytes()) for path in paths if len(path.parent.name) == 32}


def left(folder: Path) -> list[Path]:
    """What remains after everything has expired."""
    uploads, processed = folder / "uploads", folder / "processed"
    swept = (uploads, uploads / "jobs", processed, processed / "kept")
    sweep(swept, in_use=lambda name: name == "jobs", max_age=0)
    return [
        path
        for root in (uploads, processed)
        for path in root.rglob("*")
        if path.name not in ("jobs", ".lock")
    ]


def killed(folder: Path, at: int, expected: list[str]) -> str:
    """Kill a server at a step of a job, check the next server, and return the last step."""
    with running(save_weights(folder), "kill", at=at) as server:
        answer = server.post(*PHOTOS, tile="32")
        accepted = answer.json()["job_id"] if answer is not None and answer.status_code == 202 else None
        status = server.ended(accepted) if accepted else None
        server.kill()
    steps = (folder / "steps").read_text().splitlines()
    assert len(steps) == at
    check_next(folder, {accepted: status} if accepted else {}, expected)
    return steps[-1]


def check_next(
    folder: Path,
    accepted: dict[str, dict | None],
    expected: list[str],
    seconds: float = 60,
    *,
    often: bool = False,
) -> int:
    """Check that accepted jobs end, ended ones stay so, results are complete, and all can be deleted.

    accepted  last status of each job, None if the server died before its end
    expected  sha256 of each result
    often     servers were killed so often that three may have died at one file, which then fails

    Returns the number of such files.
    """
    lost = 0
    before = records(folder)
    assert set(accepted) <= set(before), "an accepted job is lost"
    (folder / "steps").unlink()
    with running(folder) as server:
        for job, record in before.items():
            status = server.ended(job, seconds)
            crashed = [error for error in status["errors"] if often and error["error"] == CRASHED]
            lost += len(crashed)
            if not crashed:
                assert results(server, status) == expected
            else:
                assert len(status["results"]) + len(crashed) == len(expected) and status["errors"] == crashed
            if accepted.get(job):
                assert record["state"] == accepted[job]["status"] == status["status"]
        steps = (folder / "steps").read_text().splitlines()
        unfinished = sum(record["state"] in ("queued", "processing") for record in before.values())
        assert steps.count("begin") == unfinished, "an ended job was started again"
        pending = sum(
            not item["result"] and not item["error"] for record in before.values() for item in record["items"]
        )
        hopeless = sum(
            record["starts"] >= 3 and record["state"] == "processing" for record in before.values()
        )
        assert steps.count("decode") == pending - hopeless, "a finished file was restored again"
        for job in before:
            assert server.client.delete(f"/jobs/{job}").json()["status"] == "deleted"
        server.kill()
    assert left(folder) == []
    return lost


def test_jobs_survive_a_kill_at_any_step(clean, tmp_path):
    expected, steps = clean
    sample = np.random.default_rng(SEED).choice(len(steps), 4, replace=False) + 1
    for at in sorted({*sample.tolist(), steps.index("tile") + 2}):
        (folder := tmp_path / str(at)).mkdir()
        killed(folder, at, expected)


def full_at(folder: Path, at: int, expected: list[str]) -> int:
    """Fill the disk at one step: the job is refused with 507 or ends, and the next one is unaffected."""
    with running(save_weights(folder), "once", at=at) as server:
        answer = server.post(*PHOTOS, tile="32")
        assert answer is not None and answer.status_code in (202, 507), answer and answer.text
        if answer.status_code == 507:
            assert "disk is full" in answer.json()["error"] and answer.headers["retry-after"]
            assert records(folder) == {}
        else:
            status = server.ended(answer.json()["job_id"])
            assert status["status"] == "completed"
            assert len(status["results"]) + len(status["errors"]) == len(PHOTOS)
            assert all("disk is full" in error["error"] for error in status["errors"])
            assert records(folder)[status["job_id"]]["state"] == status["status"]
        assert parts(folder) == []
        second = server.ended(server.post(*PHOTOS, tile="32").json()["job_id"])
        assert results(server, second) == expected
        server.kill()
    assert left(folder) == []
    return answer.status_code


def parts(folder: Path) -> list[Path]:
    """Incomplete files."""
    files = files_below(folder)
    return [path for path in files if path.name.endswith(".part") or path.name.startswith("tmp")]


def writing(steps: list[str]) -> int:
    """The number of steps that need disk space."""
    return sum(step.startswith(("open", "os.mkdir", "os.rename", "fsync")) for step in steps)


def test_full_disk_is_reported_and_leaves_nothing_behind(clean, tmp_path):
    codes = set()
    for at in (1, 6, 9, 17):
        (folder := tmp_path / str(at)).mkdir()
        codes.add(full_at(folder, at, clean[0]))
    assert codes == {202, 507}


def test_records_are_written_once_the_disk_has_space(clean, tmp_path):
    """Until then no job has ended."""
    accepting = writing(clean[1][: clean[1].index("begin")])
    (tmp_path / "full").touch()
    with running(save_weights(tmp_path), "full", at=accepting + 1) as server:
        job = server.post(*PHOTOS, tile="32").json()["job_id"]
        assert server.post(*PHOTOS).status_code == 507
        assert server.client.delete(f"/jobs/{job}").status_code == 507
        assert server.client.get(f"/status/{job}").json()["status"] == "queued"
        (tmp_path / "full").unlink()
        assert results(server, server.ended(job)) == clean[0]
        server.kill()
    assert set(records(tmp_path)) == {job} and left(tmp_path) == []


def test_files_over_the_process_limit_fail_and_smaller_ones_succeed(clean, tmp_path):
    (small,) = [data for name, data in PHOTOS if name == "b.png"]
    large = png(np.random.default_rng(1).integers(0, 256, (200, 200, 3), np.uint8))
    with running(save_weights(tmp_path), max_file_bytes=90_000) as server:
        answer = server.post(("large.png", large))
        assert answer.status_code == 507 and parts(tmp_path) == []
        status = server.ended(server.post(("b.png", small), outscale="8", format="tiff").json()["job_id"])
        assert status["status"] == "failed" and "disk is full" in status["errors"][0]["error"]
        assert parts(tmp_path) == []
        status = server.ended(server.post(("b.png", small), tile="32").json()["job_id"])
        assert results(server, status) == clean[0][1:]
        server.kill()
    assert left(tmp_path) == []
