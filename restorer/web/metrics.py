"""Log one line per photo and count for Prometheus; file names and keys appear in neither."""

import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)

from ..errors import Cancelled
from ..result import Result
from .gpu_queue import GpuQueue
from .worker import Worker

_LOG = logging.getLogger(__name__)
disable_created_metrics()  # the _created series, which nobody reads
_SECONDS = (0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000)


class Metrics:
    """Metrics of the photos that page, gradio_client and REST API restore.

    free  returns the free bytes of the disk with the results
    """

    def __init__(self, worker: Worker, queue: GpuQueue, free: Callable[[], int]) -> None:
        self._registry = registry = CollectorRegistry()
        self._photos = Counter("restorer_photos", "Photos by final state", ["state"], registry=registry)
        self._seconds = Histogram(
            *("restorer_stage_seconds", "Seconds per photo by stage", ["stage"]),
            buckets=_SECONDS,
            registry=registry,
        )
        self._pixels = Counter("restorer_output_pixels", "Pixels of the results", registry=registry)
        self._retries = Counter(
            "restorer_out_of_memory_retries",
            "Tiles retried at a smaller size after running out of memory",
            registry=registry,
        )
        self._jobs = Gauge("restorer_jobs", "Jobs on disk by state", ["state"], registry=registry)
        for name, text, function in (
            ("restorer_queue_length", "Tasks waiting or running", lambda: queue.length),
            ("restorer_disk_free_bytes", "Free bytes of the disk with the results", free),
            (
                "restorer_worker_silent_seconds",
                "Seconds since the running task made progress",
                lambda: worker.silent_seconds,
            ),
        ):
            Gauge(name, text, registry=registry).set_function(function)

    def count_jobs(self, state: str, count: Callable[[], float]) -> None:
        """Export the number of jobs in a state; `count` is called at every scrape."""
        self._jobs.labels(state).set_function(count)

    @contextmanager
    def track_photo(self, photo_id: str) -> Iterator[Callable[[Result], None]]:
        """Log and count one photo; call the yielded function with its result.

        Without a result the photo counts as failed, or as cancelled if Cancelled is raised inside.
        """
        entry: dict[str, object] = {"id": photo_id, "state": "failed"}
        start = time.perf_counter()

        def record(result: Result) -> None:
            entry.update(
                state="completed",
                model=result.model,
                pixels_in=result.before.width * result.before.height,
                pixels_out=result.width * result.height,
                faces=len(result.faces),
            )
            for stage, seconds in result.stages.items():
                self._seconds.labels(stage).observe(seconds)
            self._pixels.inc(result.width * result.height)
            self._retries.inc(result.retries)

        try:
            yield record
        except Cancelled:
            entry["state"] = "cancelled"
            raise
        except BaseException as error:
            entry.update(state="failed", error=type(error).__name__)
            raise
        finally:
            entry["seconds"] = round(time.perf_counter() - start, 3)
            self._photos.labels(entry["state"]).inc()
            fields = " ".join(f"{name}={value}" for name, value in entry.items())
            _LOG.info("photo %s", fields, extra={"entry": entry})

    def metrics(self) -> bytes:
        """Return all metrics in the Prometheus text format."""
        return generate_latest(self._registry)


class JsonFormatter(logging.Formatter):
    """Format each record as one line of JSON, including the fields that track_photo() logs."""

    def format(self, record: logging.LogRecord) -> str:
        fields = {"time": self.formatTime(record), "level": record.levelname, "logger": record.name}
        fields |= {"message": record.getMessage(), **getattr(record, "entry", {})}
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return json.dumps(fields)


def configure_logging(*, as_json: bool) -> None:
    """Log to standard error: this project from INFO, libraries from WARNING."""
    handler = logging.StreamHandler()
    plain = logging.Formatter("%(asctime)s %(name)s: %(message)s")
    handler.setFormatter(JsonFormatter() if as_json else plain)
    logging.basicConfig(handlers=[handler])
    logging.getLogger("restorer").setLevel(logging.INFO)


def free_bytes(folder: Path) -> int:
    return shutil.disk_usage(folder).free
