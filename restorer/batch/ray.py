"""Run a batch on many machines: Ray Data streams the photos through workers with one Restorer each."""

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..errors import DeviceLost, InvalidOption, RestoreError
from .manifest import Record
from .plan import Batch, Entry
from .runner import Worker

_BLOCK = 8  # photos per task; if its worker dies, the finished ones are recognised by their records
_LOG_LEVEL = logging.ERROR  # everything below is for debugging Ray itself
_PROJECT = Path(__file__).resolve().parents[2]


class _RayWorker:
    """Adapt Worker to the rows of Ray Data."""

    def __init__(self, job: Batch) -> None:
        self._worker = Worker(job)

    def __call__(self, row: dict[str, str]) -> dict[str, str]:
        try:
            return {"record": json.dumps(asdict(self._worker(Entry(**row))))}
        except DeviceLost:
            logging.getLogger(__name__).exception("replacing this worker")
            os._exit(1)  # Ray starts another process, which can use the GPU


def connect(address: str) -> Any:  # noqa: ANN401  the package, which has no types of its own
    """Connect to a cluster and return Ray. Raises InvalidOption without Ray or a cluster at that address."""
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise InvalidOption("Ray is not installed: pip install -r requirements-ray.txt") from error
    logging.getLogger("ray.data").setLevel(_LOG_LEVEL)
    if ray.is_initialized():
        return ray
    local_env = {"env_vars": {"PYTHONPATH": str(_PROJECT)}}
    cluster_env = {"working_dir": str(_PROJECT), "excludes": [".git"]}  # Ray also excludes .gitignore's
    try:
        if address == "local":
            ray.init(
                include_dashboard=False, log_to_driver=False, logging_level=_LOG_LEVEL, runtime_env=local_env
            )
        else:
            ray.init(address, log_to_driver=False, logging_level=_LOG_LEVEL, runtime_env=cluster_env)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise InvalidOption(f"no Ray cluster answers at {address!r}: {error}") from error
    return ray


def default_gpus(device: str | None, nodes: Sequence[Mapping[str, float]]) -> int:
    """Return the GPUs per worker: 1 if any node has GPUs and the device is not a CPU, else 0."""
    return int(any(node.get("GPU") for node in nodes) and not (device or "").startswith("cpu"))


def worker_slots(resources: Mapping[str, float], gpus: float, cpus: int) -> int:
    """Return how many workers fit on a node."""
    by_cpu = int(resources.get("CPU", 0) // cpus)
    return min(by_cpu, int(resources.get("GPU", 0) / gpus + 1e-9)) if gpus else by_cpu


def run(
    job: Batch,
    entries: Sequence[Entry],
    on_record: Callable[[Record], object],
    *,
    address: str,
    gpus: float | None = None,
    cpus: int = 1,
    workers: int = 0,
) -> None:
    """Restore photos on a Ray cluster. Workers and nodes that die are replaced, and their photos retried.

    address    "local" for this machine, "auto" for the cluster it belongs to, or a cluster's address
    gpus       per worker; None: 1 if the cluster has any, else 0
    cpus       per worker
    workers    number of workers; 0: as many as fit
    on_record  called in this process with the record of each finished photo

    Raises InvalidOption if Ray is not installed or no node has room for a worker.
    """
    ray = connect(address)
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if gpus is None:
        gpus = default_gpus(job.device, nodes)
    slots = sum(worker_slots(node, gpus, cpus) for node in nodes)
    if not slots:
        needed = f"{gpus:g} GPUs and {cpus} CPUs" if gpus else f"{cpus} CPUs"
        raise InvalidOption(f"no node of the cluster has the {needed} that a worker needs")
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    blocks = -(-len(entries) // _BLOCK)
    records = ray.data.from_items([asdict(entry) for entry in entries], override_num_blocks=blocks).map(
        _RayWorker,
        fn_constructor_args=(job,),
        compute=ray.data.ActorPoolStrategy(size=min(workers or slots, slots, len(entries))),
        num_gpus=gpus,
        num_cpus=cpus,
    )
    try:
        for row in records.iter_rows():
            on_record(Record(**json.loads(row["record"])))
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, (RestoreError, OSError)):
            raise cause from error
        raise RestoreError(f"Ray: {str(error).strip().splitlines()[-1]}") from error
