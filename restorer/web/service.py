"""What page, gradio_client and REST API share: one restorer, queue, worker, metrics, and checks."""

import logging
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import aclosing, contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import gradio as gr

from .. import atomic
from ..cost import pricing
from ..errors import Cancelled, DiskFull, RestoreError, UnsupportedImage, WeightsUnavailable
from ..estimate import Plan
from ..images import photo
from ..images.photo import Photo
from ..models import registry, sources
from ..models.registry import Model
from ..options import Options
from ..pipeline import Restorer
from ..progress import Progress
from ..result import Result
from . import previews
from .gpu_queue import GpuQueue
from .metrics import Metrics, free_bytes
from .settings import Settings
from .worker import Step, Worker

T = TypeVar("T")
FULL = "the server's disk is full; try again later"
_EXPIRED = "the upload has expired; choose the photo again"
UNEXPECTED = "unexpected error; see the server log"


class Service:
    """The state of a server that outlives a request."""

    def __init__(
        self, settings: Settings, restorer: Restorer, worker: Worker, queue: GpuQueue, metrics: Metrics
    ) -> None:
        self.settings, self.restorer, self.metrics = settings, restorer, metrics
        self.worker, self.queue = worker, queue

    async def run(self, task: Callable[[Progress], T], report: Callable[[Step], None] | None = None) -> T:
        """Run `task(progress)` in the worker and return its result; call `report` twice a second meanwhile.

        Call this in an event of the queue. If its client leaves, the task stops and Cancelled is raised.
        """
        async with aclosing(self.worker.steps(task)) as steps:
            async for step in steps:
                if not isinstance(step, Step):
                    return step
                if self.queue.client_left():
                    raise Cancelled("the client has left")
                if report:
                    report(step)
        raise AssertionError("the worker returned no result")

    def restore_to_file(
        self,
        data: bytes,
        values: dict[str, object],
        progress: Progress,
        *,
        name: str,
        folder: Path,
        mask: bytes | None = None,
    ) -> tuple[Result, Path]:
        """Restore a photo and write its file into `folder`, named after the upload's `name`.

        values  as in options()
        mask    see Restorer.restore()
        """
        top, *parts = folder.relative_to(self.settings.processed_folder).parts
        # the log gets part of the id only: the complete one gives access to the job
        with self.metrics.track_photo("/".join([top[:12], *parts])) as record:
            self.check_disk_space()
            options = self.options(values)
            result = self.restorer.restore(data, mask=mask, progress=progress, **vars(options))
            file = previews.write(result, name, folder, options.size_mark)
            record(result)
        return result, file

    def restore_upload(
        self, path: str, values: dict[str, object], progress: Progress, mask: str | None = None
    ) -> tuple[Result, previews.ResultFiles]:
        """Restore an upload, with the upload `mask`; return the result and its files for a browser."""
        result, file = self.restore_to_file(
            self.upload(path),
            values,
            progress,
            name=path,
            folder=self.new_folder(),
            mask=self.upload(mask) if mask else None,
        )
        files = self.result_files(file)
        previews.write_previews(result, files)
        return result, files

    def result_files(self, file: Path) -> previews.ResultFiles:
        """Return the paths of the files of a result."""
        return previews.ResultFiles(file, self.settings.processed_folder)

    def new_folder(self) -> Path:
        """Return the path of a new folder for results, not created yet."""
        return self.settings.processed_folder / uuid.uuid4().hex

    def options(self, values: dict[str, object], before: Photo | photo.Size | None = None) -> Options:
        """Return the restorer's options updated with `values`, and sized for a photo.

        Raises InvalidOption.
        """
        options = self.restorer.options.changed(values)
        return options.sized(before.width, before.height) if before else options

    def check_disk_space(self) -> None:
        """Raise DiskFull if the disk for the results has less than MIN_FREE_DISK_MB left."""
        required = self.settings.min_free_disk_mb
        if free_bytes(self.settings.processed_folder) < required * 2**20:
            raise DiskFull(f"the server's disk has less than {required} MB left; try again later")

    def cost(self, plan: Plan) -> float | None:
        """Return the cost in dollars; None without a price or a time estimate."""
        price = self.settings.price_per_gpu_second
        return pricing.dollars(plan.seconds, price) if price and plan.seconds is not None else None

    def estimate(self, data: bytes, values: dict[str, object]) -> dict[str, object]:
        """Estimate what restoring a photo takes: size, model, tiles, seconds, cost.

        Raises what restoring it would raise before the first tile.
        """
        before = self.restorer.decode(data)
        options = self.options(values, before)
        self.restorer.measure(before.width * before.height, **vars(options))
        plan = self.restorer.plan(before, **vars(options))
        return {
            "width": plan.width,
            "height": plan.height,
            "model": plan.model.name,
            "reason": plan.reason,
            "present": sources.is_present(plan.model, self.restorer.weights),
            "tiles": plan.tiles,
            "seconds": None if plan.seconds is None else round(plan.seconds, 2),
            "cost": self.cost(plan),
            "warnings": list(plan.warnings),
        }

    def look(self, data: bytes, _values: dict[str, object]) -> dict[str, object]:
        """Say what is wrong with a photo and suggest options. Raises what Restorer.decode() raises."""
        return self.restorer.look(data).as_dict()

    def models(self) -> list[dict[str, object]]:
        """List every model and the source of its weights."""
        return [self._model(model) for model in registry.available(self.restorer.weights)]

    def _model(self, model: Model) -> dict[str, object]:
        source = sources.locate(model, self.restorer.weights)
        engine = self.restorer.networks.loaded_upscaler(model) if model.kind == "upscale" else None
        return {
            "name": model.name,
            "kind": model.kind,
            "about": model.about,
            "licence": model.licence,
            "bytes": source.bytes if source else model.bytes,
            "present": source is not None,
            "source": source.kind if source else "to download",
            "sha256": (engine or source or model).sha256,
        }

    def decode_upload(self, path: str | None) -> Photo:
        """Decode an upload. Raises what upload() and Restorer.decode() raise."""
        return self.restorer.decode(self.upload(path))

    def upload(self, path: str | None) -> bytes:
        """Read an upload. Raises UnsupportedImage as upload_path() does."""
        try:
            return self.upload_path(path).read_bytes()
        except OSError as error:
            raise UnsupportedImage(_EXPIRED) from error

    def upload_path(self, path: str | Path | None) -> Path:
        """Resolve the path of an upload.

        Raises UnsupportedImage for a path outside the upload folder, as Gradio passes on any path that a
        program sends, and for an expired upload.
        """
        if not (resolved := self._upload_path(path)):
            raise UnsupportedImage("not an uploaded file; upload the photo")
        if not resolved.is_file():
            raise UnsupportedImage(_EXPIRED)
        return resolved

    def touch(self, *paths: str | Path) -> None:
        """Restart the retention time of uploads and results."""
        for path in paths:
            with suppress(OSError, ValueError):
                if self._upload_path(path) or Path(path).resolve().is_relative_to(
                    self.settings.processed_folder
                ):
                    os.utime(path)

    def _upload_path(self, path: str | Path | None) -> Path | None:
        """Resolve the path of an upload; None outside the upload folder and for files of jobs."""
        try:
            resolved = Path(path or "").resolve()
        except (ValueError, OSError):  # a NUL, or a name that is too long
            return None
        if resolved.is_relative_to(self.settings.jobs_folder):
            return None
        return resolved if resolved.is_relative_to(self.settings.upload_folder) else None

    @contextmanager
    def user_errors(self, message: Callable[[Exception], str] | None = None) -> Iterator[None]:
        """Convert exceptions to gr.Error with a message for the user, by default that of user_message()."""
        try:
            yield
        except gr.Error:
            raise
        except Exception as error:  # one job of the queue: the client must get the error
            raise gr.Error((message or self.user_message)(error), print_exception=False) from error

    def user_message(self, error: Exception) -> str:
        """Return an error's message for the user, without paths and addresses of the server.

        Unexpected errors are logged.
        """
        if not isinstance(error, RestoreError):
            logging.getLogger(__name__).error("restoration failed", exc_info=error)
            return FULL if atomic.is_disk_full(error) else UNEXPECTED
        if isinstance(error, WeightsUnavailable):
            logging.getLogger(__name__).warning("%s", error)
            return f"{error.args[0]}; choose another model, or check the server's network"
        return str(error).replace(str(self.restorer.weights.absolute()), "the server's weights folder")


def receipt(result: Result) -> dict[str, object]:
    """Return what is reported of a result beside its file."""
    return {
        **result.receipt,
        "width": result.width,
        "height": result.height,
        "seconds": round(result.seconds, 3),
        "faces": result.face_note,
        "warnings": list(result.warnings),
    }
