"""A batch on many machines: Ray Data streams the photos through workers that each hold one Restorer."""

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..errors import DeviceLost, InvalidOption, RestoreError
from .manifest import Record
from .runner import Batch, Entry, Worker

_BLOCK = 8  # photos that a worker takes at once; when it dies they are looked at again, and done ones told
_LOUD = logging.ERROR  # less than this Ray says for those who debug it
_PROJECT = Path(__file__).resolve().parents[2]


class _RayWorker:
    """A Worker as Ray Data calls it: with a row, for a row."""

    def __init__(self, asked: Batch) -> None:
        self._work = Worker(asked)

    def __call__(self, row: dict[str, str]) -> dict[str, str]:
        try:
            return {"record": json.dumps(asdict(self._work(Entry(**row))))}
        except DeviceLost:
            logging.getLogger(__name__).exception("this worker is replaced")
            os._exit(1)  # Ray starts another process, which can use the GPU


def connect(address: str) -> Any:  # noqa: ANN401  the package, which has no types of its own
    """Ray, connected to a cluster. Raises InvalidOption where it is not installed or no cluster answers."""
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise InvalidOption("Ray is not installed: pip install -r requirements-ray.txt") from error
    logging.getLogger("ray.data").setLevel(_LOUD)
    if ray.is_initialized():
        return ray
    here = {"env_vars": {"PYTHONPATH": str(_PROJECT)}}
    there = {"working_dir": str(_PROJECT), "excludes": [".git"]}  # and what .gitignore names
    try:
        if address == "local":
            ray.init(include_dashboard=False, log_to_driver=False, logging_level=_LOUD, runtime_env=here)
        else:
            ray.init(address, log_to_driver=False, logging_level=_LOUD, runtime_env=there)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise InvalidOption(f"no Ray cluster answers at {address!r}: {error}") from error
    return ray


def default_gpus(device: str | None, machines: Sequence[Mapping[str, float]]) -> int:
    """GPUs that a worker on that device needs by default: one where there are any, on a processor none."""
    return int(any(one.get("GPU") for one in machines) and not (device or "").startswith("cpu"))


def worker_slots(resources: Mapping[str, float], gpus: float, cpus: int) -> int:
    """How many workers a machine has room for."""
    by_cpu = int(resources.get("CPU", 0) // cpus)
    return min(by_cpu, int(resources.get("GPU", 0) / gpus + 1e-9)) if gpus else by_cpu


def run(
    asked: Batch,
    todo: Sequence[Entry],
    noted: Callable[[Record], object],
    *,
    address: str,
    gpus: float | None = None,
    cpus: int = 1,
    workers: int = 0,
) -> None:
    """Restore photos on a Ray cluster. A worker or machine that dies is replaced, and its photos done again.

    address  "local" for this machine alone, "auto" for the cluster it belongs to, or a cluster's own
    gpus     that each worker needs, and cpus; None for one where the cluster has any
    workers  how many; 0 for as many as there is room for
    noted    is told, here, of each photo that ended

    Raises InvalidOption where Ray is not installed, or there is no room for one worker.
    """
    ray = connect(address)
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if gpus is None:
        gpus = default_gpus(asked.device, machines)
    room = sum(worker_slots(one, gpus, cpus) for one in machines)
    if not room:
        wanted = f"{gpus:g} GPUs and {cpus} processors" if gpus else f"{cpus} processors"
        raise InvalidOption(f"no machine of the cluster has the {wanted} that a worker needs")
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    rows = ray.data.from_items([asdict(entry) for entry in todo], override_num_blocks=-(-len(todo) // _BLOCK))
    done = rows.map(
        _RayWorker,
        fn_constructor_args=(asked,),
        compute=ray.data.ActorPoolStrategy(size=min(workers or room, room, len(todo))),
        num_gpus=gpus,
        num_cpus=cpus,
    )
    try:
        for row in done.iter_rows():
            noted(Record(**json.loads(row["record"])))
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, (RestoreError, OSError)):
            raise cause from error
        raise RestoreError(f"Ray: {str(error).strip().splitlines()[-1]}") from error
