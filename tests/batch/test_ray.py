"""A batch on a Ray cluster of three machines of one processor, all on this one; parts of it die."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from restorer.batch import ray
from restorer.errors import InvalidOption
from tests.batch.test_batch import left_behind, lines, names, results, words
from tests.conftest import photo_like, png, save_network

ROOT = Path(__file__).parents[2]
PHOTOS, BROKEN = 290, 10


@pytest.fixture
def machines(monkeypatch) -> Iterator["object"]:
    """The cluster, and a way to take one of its two smaller machines away."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    from ray.cluster_utils import Cluster

    # what a process on the second machine costs in memory is not the matter here
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    made.others = [made.add_node(num_cpus=1), made.add_node(num_cpus=1)]
    yield made
    made.shutdown()


@pytest.fixture
def folder(tmp_path, rng) -> Path:
    save_network(tmp_path / "weights/custom/tiny.safetensors", seed=1, features=32, convs=8)
    (tmp_path / "in").mkdir()
    for index in range(PHOTOS):
        (tmp_path / f"in/{index:03}.png").write_bytes(png(photo_like(rng, 24, 32)))
    for index in range(BROKEN):
        (tmp_path / f"in/broken{index}.jpg").write_bytes(b"\xff\xd8\xff" + rng.bytes(99))
    return tmp_path


# The command line, where each photo takes a while on any processor; Ray sends workers a class of __main__
PACED = """
import sys, time
from restorer.batch import ray as cluster
from restorer.__main__ import main
class Paced(cluster._RayWorker):
    def __call__(self, row):
        time.sleep(0.1)
        return super().__call__(row)
cluster._RayWorker = Paced
sys.exit(main(sys.argv[1:]))
"""


def wait_for(folder: Path, count: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 600
    while len(names(folder)) < count:
        assert process.poll() is None and time.monotonic() < deadline, len(names(folder))
        time.sleep(0.02)


def test_each_photo_once_though_worker_machine_and_driver_die(machines, folder):
    asked = [*words(folder), "--ray", machines.address]
    command, paced = [sys.executable, "-m", "restorer", *asked], [sys.executable, "-c", PACED, *asked]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    with (folder / "log").open("w") as log:
        driver = subprocess.Popen(paced, cwd=ROOT, env=environment, stderr=log)
        wait_for(folder, 20, driver)
        running = psutil.process_iter(["cmdline"])  # None for one that has just ended
        workers = [one for one in running if "MapWorker" in "".join(one.info["cmdline"] or ())]
        assert workers, "no worker was found to be killed"
        os.kill(workers[0].pid, signal.SIGKILL)
        wait_for(folder, 60, driver)
        machines.remove_node(machines.others[0], allow_graceful=False)
        wait_for(folder, 110, driver)
        driver.kill()
        driver.wait()
        first = {path: path.stat().st_mtime_ns for path in (folder / "out").glob("*.png")}
        again = subprocess.run(command, cwd=ROOT, env=environment, stderr=log)
    assert again.returncode == 1, (folder / "log").read_text()[-2000:]
    told = lines(folder)
    assert set(Counter(line["path"] for line in told).values()) == {1}
    states = Counter(line["state"] for line in told)
    assert states == {"restored": PHOTOS, "failed": BROKEN}
    assert {line["path"] for line in told if line["state"] == "failed"} == {
        f"broken{index}.jpg" for index in range(BROKEN)
    }
    redone = sum(path.stat().st_mtime_ns != when for path, when in first.items())
    assert redone <= 3, "at most what each worker had under way"
    distributed = results(folder)
    assert len(distributed) == PHOTOS
    assert left_behind(folder) == []
    alone = [*words(folder)]
    alone[2] = str(folder / "alone")
    subprocess.run([sys.executable, "-m", "restorer", *alone], cwd=ROOT, env=environment)
    assert {path.name: path.read_bytes() for path in (folder / "alone").glob("*.png")} == distributed


@pytest.mark.parametrize(
    ("resources", "gpus", "cpus", "room"),
    [
        ({"CPU": 8}, 0, 1, 8),
        ({"CPU": 8}, 0, 3, 2),
        ({"CPU": 8, "GPU": 4}, 1, 1, 4),
        ({"CPU": 2, "GPU": 4}, 1, 1, 2),
        ({"CPU": 8, "GPU": 1}, 0.25, 1, 4),
        ({"CPU": 8, "GPU": 0.3}, 0.1, 1, 3),
        ({"CPU": 8}, 1, 1, 0),
        ({}, 0, 1, 0),
    ],
)
def test_room_for_workers(resources, gpus, cpus, room):
    assert ray.worker_slots(resources, gpus, cpus) == room


@pytest.mark.parametrize(
    ("device", "gpus"), [(None, 1), ("cuda", 1), ("vulkan", 1), ("cpu", 0), ("cpu:torch", 0), ("cpu:ncnn", 0)]
)
def test_a_worker_has_a_gpu_where_there_is_one_unless_it_computes_on_a_processor(device, gpus):
    assert ray.default_gpus(device, [{"CPU": 8}, {"CPU": 8, "GPU": 1}]) == gpus
    assert ray.default_gpus(device, [{"CPU": 8}]) == 0


def test_without_ray_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InvalidOption, match="requirements-ray.txt"):
        ray.connect("local")


def test_a_cluster_that_does_not_answer_is_told(folder):
    command = [sys.executable, "-m", "restorer", *words(folder), "--ray", "auto"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "no Ray cluster answers at 'auto'" in done.stderr
