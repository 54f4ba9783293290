"""A batch on a Ray cluster of three single-CPU nodes on this machine, some of which are killed."""

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
from tests.batch.test_batch import (
    arguments,
    hidden_files,
    modification_times,
    records,
    result_names,
    results,
)
from tests.conftest import photo_like, png, save_network

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PHOTOS, BROKEN = 70, 5


@pytest.fixture
def cluster(monkeypatch) -> Iterator["object"]:
    """A cluster with a head node and two others, in `others`."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.others = [cluster.add_node(num_cpus=1), cluster.add_node(num_cpus=1)]
    yield cluster
    cluster.shutdown()


@pytest.fixture
def folder(tmp_path, rng) -> Path:
    save_network(tmp_path / "weights/custom/tiny.safetensors", seed=1, features=32, convs=8)
    (tmp_path / "in").mkdir()
    for index in range(PHOTOS):
        (tmp_path / f"in/{index:03}.png").write_bytes(png(photo_like(rng, 24, 32)))
    for index in range(BROKEN):
        (tmp_path / f"in/broken{index}.jpg").write_bytes(b"\xff\xd8\xff" + rng.bytes(99))
    return tmp_path


# The command line with at least 0.1 s per photo. The class is in __main__ because Ray pickles such by value
SLOW_MAIN = """
import sys, time
from restorer.batch import ray as cluster
from restorer.__main__ import main
class SlowWorker(cluster._RayWorker):
    def __call__(self, row):
        time.sleep(0.1)
        return super().__call__(row)
cluster._RayWorker = SlowWorker
sys.exit(main(sys.argv[1:]))
"""


def wait_for_results(folder: Path, count: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 600
    while len(result_names(folder)) < count:
        assert process.poll() is None and time.monotonic() < deadline, len(result_names(folder))
        time.sleep(0.02)


@pytest.mark.long
def test_each_photo_is_restored_once_though_worker_node_and_driver_are_killed(cluster, folder):
    options = [*arguments(folder), "--ray", cluster.address]
    command, slow = [sys.executable, "-m", "restorer", *options], [sys.executable, "-c", SLOW_MAIN, *options]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    with (folder / "log").open("w") as log:
        driver = subprocess.Popen(slow, cwd=ROOT, env=environment, stderr=log)
        wait_for_results(folder, 10, driver)
        processes = psutil.process_iter(["cmdline"])  # None for one that has just ended
        workers = [process for process in processes if "MapWorker" in "".join(process.info["cmdline"] or ())]
        assert workers, "no worker to kill"
        os.kill(workers[0].pid, signal.SIGKILL)
        wait_for_results(folder, 20, driver)
        cluster.remove_node(cluster.others[0], allow_graceful=False)
        wait_for_results(folder, 40, driver)
        driver.kill()
        driver.wait()
        first = modification_times(folder)
        resumed = subprocess.run(command, cwd=ROOT, env=environment, stderr=log)
    assert resumed.returncode == 1, (folder / "log").read_text()[-2000:]
    assert set(Counter(record["path"] for record in records(folder)).values()) == {1}
    assert Counter(record["state"] for record in records(folder)) == {"restored": PHOTOS, "failed": BROKEN}
    assert {record["path"] for record in records(folder) if record["state"] == "failed"} == {
        f"broken{index}.jpg" for index in range(BROKEN)
    }
    repeated = sum(path.stat().st_mtime_ns != time_ns for path, time_ns in first.items())
    assert repeated <= 3, "at most the current photo of each worker"
    distributed = results(folder)
    assert len(distributed) == PHOTOS
    assert hidden_files(folder) == []
    single = arguments(folder)
    single[2] = str(folder / "single")
    subprocess.run([sys.executable, "-m", "restorer", *single], cwd=ROOT, env=environment)
    assert {path.name: path.read_bytes() for path in (folder / "single").glob("*.png")} == distributed


@pytest.mark.parametrize(
    ("resources", "gpus", "cpus", "slots"),
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
def test_worker_slots_of_a_node(resources, gpus, cpus, slots):
    assert ray.worker_slots(resources, gpus, cpus) == slots


@pytest.mark.parametrize(
    ("device", "gpus"), [(None, 1), ("cuda", 1), ("vulkan", 1), ("cpu", 0), ("cpu:torch", 0), ("cpu:ncnn", 0)]
)
def test_worker_gets_a_gpu_if_there_is_one_unless_the_device_is_a_cpu(device, gpus):
    assert ray.default_gpus(device, [{"CPU": 8}, {"CPU": 8, "GPU": 1}]) == gpus
    assert ray.default_gpus(device, [{"CPU": 8}]) == 0


def test_missing_ray_names_the_requirements_file(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InvalidOption, match="requirements-ray.txt"):
        ray.connect("local")


def test_unreachable_cluster_is_wrong_usage(folder):
    command = [sys.executable, "-m", "restorer", *arguments(folder), "--ray", "auto"]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 2
    assert "no Ray cluster answers at 'auto'" in process.stderr
