"""What is written down of each job: one line in the log, and numbers for Prometheus. No names, no keys."""

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
from .worker import Worker

_LOG = logging.getLogger(__name__)
disable_created_metrics()  # times of creation that nobody asks for
_SECONDS = (0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000)


class Metrics:
    """Counts what page, API and REST restore.

    free  bytes left on the disk with the results
    """

    def __init__(self, worker: Worker, free: Callable[[], int]) -> None:
        self._registry = registry = CollectorRegistry()
        self._photos = Counter("restorer_photos", "Photos by how they ended", ["state"], registry=registry)
        self._seconds = Histogram(
            *("restorer_stage_seconds", "Seconds of a photo by stage", ["stage"]),
            buckets=_SECONDS,
            registry=registry,
        )
        self._pixels = Counter("restorer_output_pixels", "Pixels of the results", registry=registry)
        self._retries = Counter(
            "restorer_out_of_memory_retries", "Tiles tried again smaller", registry=registry
        )
        self._jobs = Gauge("restorer_jobs", "REST jobs that are kept, by state", ["state"], registry=registry)
        for name, text, function in (
            ("restorer_queue_length", "Waiting or worked on", lambda: worker.waiting),
            ("restorer_disk_free_bytes", "Left on the disk with the results", free),
            ("restorer_worker_silent_seconds", "Since the worker told of a step", lambda: worker.silent),
        ):
            Gauge(name, text, registry=registry).set_function(function)

    def count_jobs(self, state: str, count: Callable[[], float]) -> None:
        """Show a number of jobs, asked for whenever somebody looks."""
        self._jobs.labels(state).set_function(count)

    @contextmanager
    def photo(self, name: str) -> Iterator[Callable[[Result], None]]:
        """Around one photo, of that id; call what it gives with the result. Its end is seen by itself."""
        entry: dict[str, object] = {"id": name, "state": "failed"}
        start = time.perf_counter()

        def told(result: Result) -> None:
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
            yield told
        except Cancelled:
            entry["state"] = "cancelled"
            raise
        except BaseException as error:
            entry.update(state="failed", error=type(error).__name__)
            raise
        finally:
            entry["seconds"] = round(time.perf_counter() - start, 3)
            self._photos.labels(entry["state"]).inc()
            words = " ".join(f"{name}={value}" for name, value in entry.items())
            _LOG.info("photo %s", words, extra={"entry": entry})

    def metrics(self) -> bytes:
        """The numbers in Prometheus' text format."""
        return generate_latest(self._registry)


class JsonFormatter(logging.Formatter):
    """Every record as one line of JSON, a photo's with what was written down of it."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        told = {"time": self.formatTime(record), "level": record.levelname, "logger": record.name}
        told |= {"message": record.getMessage(), **getattr(record, "entry", {})}
        if record.exc_info:
            told["traceback"] = self.formatException(record.exc_info)
        return json.dumps(told)


def configure_logging(*, as_json: bool) -> None:
    """Send this project's log, and what others warn of, to standard error."""
    handler = logging.StreamHandler()
    plain = logging.Formatter("%(asctime)s %(name)s: %(message)s")
    handler.setFormatter(JsonFormatter() if as_json else plain)
    logging.basicConfig(handlers=[handler])
    logging.getLogger("restorer").setLevel(logging.INFO)


def free_bytes(folder: Path) -> int:
    return shutil.disk_usage(folder).free
