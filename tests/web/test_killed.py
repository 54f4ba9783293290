"""A server is killed, or its disk is full, at a step of a job: nothing is lost, halved or done twice."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from restorer.web.cleanup import CacheCleaner
from tests.conftest import photo_like, png, save_network
from tests.crashing import Served, Servers

PHOTOS = [
    (name, png(photo_like(np.random.default_rng(side), side, 70)))
    for name, side in (("a.png", 60), ("b.png", 20))
]
SEED = 10
GIVEN_UP = "the server ended 3 times while this was worked on"


@pytest.fixture(scope="module")
def clean(servers, tmp_path_factory) -> tuple[list[str], list[str]]:
    """The sha256 of each result, and the steps, of a server that nothing happened to."""
    folder = made(tmp_path_factory.mktemp("clean"))
    with servers.running(folder) as server:
        told = server.ended(server.post(*PHOTOS, tile="32").json()["job_id"])
        return results(server, told), (folder / "steps").read_text().splitlines()


def made(folder: Path) -> Path:
    torch.manual_seed(0)  # else no two of its biases are alike
    save_network(folder / "weights/custom/quick.safetensors", seed=1)
    return folder


def results(server: Served, told: dict) -> list[str]:
    assert told["status"] == "completed" and not told["errors"], told
    files = [server.client.get(result["url"]) for result in told["results"]]
    assert all(file.status_code == 200 for file in files)
    return [hashlib.sha256(file.content).hexdigest() for file in files]


def records(folder: Path) -> dict[str, dict]:
    """The jobs that lie on disk, by id: those another process will know."""
    found = (folder / "uploads/jobs").glob("*/job.json")
    return {path.parent.name: json.loads(path.read_bytes()) for path in found if len(path.parent.name) == 32}


def left(folder: Path) -> list[Path]:
    """What a sweep leaves once everything is old enough."""
    uploads, processed = folder / "uploads", folder / "processed"
    places = (uploads, uploads / "jobs", processed, processed / "kept")
    CacheCleaner(*places, needed=lambda name: name == "jobs", age=0).sweep()
    return [
        path
        for root in (uploads, processed)
        for path in root.rglob("*")
        if path.name not in ("jobs", ".lock")
    ]


def killed(servers: Servers, folder: Path, at: int, whole: list[str]) -> str:
    """Kill a server at that step of a job, and ask the next one; the last step."""
    with servers.running(made(folder), fault="kill", at=at) as server:
        answer = server.post(*PHOTOS, tile="32")
        accepted = answer.json()["job_id"] if answer is not None and answer.status_code == 202 else None
        told = server.ended(accepted) if accepted else None
        server.kill()
    steps = (folder / "steps").read_text().splitlines()
    assert len(steps) == at
    check_next(servers, folder, {accepted: told} if accepted else {}, whole)
    return steps[-1]


def check_next(
    servers: Servers,
    folder: Path,
    accepted: dict[str, dict | None],
    whole: list[str],
    seconds: float = 60,
    *,
    often: bool = False,
) -> int:
    """All that was accepted ends, what had ended stays so, no part is seen, and all can be deleted.

    accepted  what was last told of each job, None where the server died before its end
    often     servers were killed so often that three may have died at one file, which is given up then

    Returns how many files were given up.
    """
    lost = 0
    before = records(folder)
    assert set(accepted) <= set(before), "an accepted job is lost"
    (folder / "steps").unlink()
    with servers.running(folder) as server:
        for job, record in before.items():
            told = server.ended(job, seconds)
            given_up = [error for error in told["errors"] if often and error["error"] == GIVEN_UP]
            lost += len(given_up)
            if not given_up:
                assert results(server, told) == whole
            else:
                assert len(told["results"]) + len(given_up) == len(whole) and told["errors"] == given_up
            if accepted.get(job):
                assert record["state"] == accepted[job]["status"] == told["status"]
        steps = (folder / "steps").read_text().splitlines()
        unfinished = sum(record["state"] in ("queued", "processing") for record in before.values())
        assert steps.count("begin") == unfinished, "what has ended is not begun again"
        again = [
            not item["result"] and not item["error"] for record in before.values() for item in record["items"]
        ]
        hopeless = sum(
            record["starts"] >= 3 and record["state"] == "processing" for record in before.values()
        )
        assert steps.count("decode") == sum(again) - hopeless, "what was done is not done again"
        for job in before:
            assert server.client.delete(f"/jobs/{job}").json()["status"] == "deleted"
        server.kill()
    assert left(folder) == []
    return lost


def test_a_server_killed_at_a_step_loses_and_doubles_nothing(servers, clean, tmp_path):
    whole, steps = clean
    some = np.random.default_rng(SEED).choice(len(steps), 4, replace=False) + 1
    for at in sorted({*some.tolist(), steps.index("tile") + 2}):
        (folder := tmp_path / str(at)).mkdir()
        killed(servers, folder, at, whole)


def full_at(servers: Servers, folder: Path, at: int, whole: list[str]) -> int:
    """The disk is full at one step: 507, or a job that ends in one way; the next job is as if nothing was."""
    with servers.running(made(folder), fault="once", at=at) as server:
        answer = server.post(*PHOTOS, tile="32")
        assert answer is not None and answer.status_code in (202, 507), answer and answer.text
        if answer.status_code == 507:
            assert "no room" in answer.json()["error"] and answer.headers["retry-after"]
            assert records(folder) == {}
        else:
            told = server.ended(answer.json()["job_id"])
            assert told["status"] == "completed" and len(told["results"]) + len(told["errors"]) == len(PHOTOS)
            assert all("no room" in error["error"] for error in told["errors"])
            assert records(folder)[told["job_id"]]["state"] == told["status"]
        assert parts(folder) == []
        second = server.ended(server.post(*PHOTOS, tile="32").json()["job_id"])
        assert results(server, second) == whole
        server.kill()
    assert left(folder) == []
    return answer.status_code


def parts(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.name.endswith(".part") or path.name.startswith("tmp")]


def writing(steps: list[str]) -> int:
    return sum(step.startswith(("open", "os.mkdir", "os.rename", "fsync")) for step in steps)


def test_a_full_disk_is_said_and_leaves_nothing(servers, clean, tmp_path):
    codes = set()
    for at in (1, 6, 9, 17):
        (folder := tmp_path / str(at)).mkdir()
        codes.add(full_at(servers, folder, at, clean[0]))
    assert codes == {202, 507}


def test_a_disk_that_stays_full_heals(servers, clean, tmp_path):
    """The records of what was accepted are written once there is room; until then nothing has ended."""
    taken = writing(clean[1][: clean[1].index("begin")])
    (tmp_path / "full").touch()
    with servers.running(made(tmp_path), fault="full", at=taken + 1) as server:
        job = server.post(*PHOTOS, tile="32").json()["job_id"]
        assert server.post(*PHOTOS).status_code == 507
        assert server.client.delete(f"/jobs/{job}").status_code == 507
        assert server.client.get(f"/status/{job}").json()["status"] == "queued"
        (tmp_path / "full").unlink()
        assert results(server, server.ended(job)) == clean[0]
        server.kill()
    assert set(records(tmp_path)) == {job} and left(tmp_path) == []


def test_files_beyond_a_limit_are_refused_and_smaller_ones_taken(servers, clean, tmp_path):
    (small,) = [data for name, data in PHOTOS if name == "b.png"]
    large = png(np.random.default_rng(1).integers(0, 256, (200, 200, 3), np.uint8))
    with servers.running(made(tmp_path), file=90_000) as server:
        answer = server.post(("large.png", large))
        assert answer.status_code == 507 and parts(tmp_path) == []
        told = server.ended(server.post(("b.png", small), outscale="8", format="tiff").json()["job_id"])
        assert (
            told["status"] == "failed" and "no room" in told["errors"][0]["error"] and parts(tmp_path) == []
        )
        told = server.ended(server.post(("b.png", small), tile="32").json()["job_id"])
        assert results(server, told) == clean[0][1:]
        server.kill()
    assert left(tmp_path) == []
