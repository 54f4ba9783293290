"""What page, API and REST share: one restorer, one line, one ledger, and the way from bytes to files."""

import logging
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import gradio as gr

from .. import atomic
from ..cost import pricing
from ..errors import DiskFull, InvalidOption, RestoreError, UnsupportedImage, WeightsUnavailable
from ..images import photo
from ..images.photo import Photo
from ..models import registry, sources
from ..models.registry import Model
from ..options import Options
from ..pipeline import Plan, Restorer
from ..progress import Progress
from ..result import Result
from . import previews
from .metrics import Metrics, free_bytes
from .settings import Settings
from .worker import Worker

_LONGEST = 100_000  # pixels of a long side, more than any format and limit
_TILE = 1024  # beyond it a stranger could choose how much memory the network takes
FULL = "there is no room on the server's disk; try again later"
_WRONG = "something went wrong; the server's log says what"


class Service:
    """Everything of a server that outlives a request."""

    def __init__(self, settings: Settings, restorer: Restorer, worker: Worker, metrics: Metrics) -> None:
        self.settings, self.restorer, self.worker, self.metrics = settings, restorer, worker, metrics

    def restore_to_file(
        self, data: bytes, given: dict[str, object], progress: Progress, *, name: str, place: Path
    ) -> tuple[Result, Path]:
        """A photo restored, and its file in the folder `place`, named after the upload's `name`."""
        folder, *parts = place.relative_to(self.settings.processed_folder).parts
        with self.metrics.photo("/".join([folder[:12], *parts])) as told:  # a whole id opens a job
            self.check_disk_space()
            options = self.options(given, lambda: self.decode(data))
            result = self.restorer.restore(data, progress=progress, **vars(options))
            file = previews.write(result, name, place, long_side=given.get("long_side"))
            told(result)
        return result, file

    def restore_upload(
        self, path: str, given: dict[str, object], progress: Progress
    ) -> tuple[Result, previews.ResultFiles]:
        """An upload restored, and what of it is on disk for a browser."""
        result, file = self.restore_to_file(
            self.upload(path), given, progress, name=path, place=self.new_folder()
        )
        return result, previews.write_files(result, path, file)

    def new_folder(self) -> Path:
        """A new folder for results, not made yet."""
        return self.settings.processed_folder / uuid.uuid4().hex

    def options(
        self, given: dict[str, object], before: Photo | photo.Size | Callable[[], Photo] | None
    ) -> Options:
        """What the restorer is asked for: its own options where nothing was given.

        given   by name; long_side, in pixels, stands for an outscale where it is not 0
        before  the photo or its size, or a function that gives it, asked only if its size matters; None
                where it is not known: then a long side is not looked at beyond its range
        """
        given = dict(given)
        long = given.pop("long_side", 0)
        if not isinstance(long, int | float) or isinstance(long, bool):
            raise InvalidOption(f"long_side is {long!r}; it must be a whole number")
        if not 0 <= long <= _LONGEST:
            raise InvalidOption(f"long_side is {long}; it must be from 0 to {_LONGEST}")
        seen = before() if long and callable(before) else before
        if long and isinstance(seen, Photo | photo.Size):
            given["outscale"] = _times(long, max(seen.width, seen.height))
        options = self.restorer.options.changed(given)
        if options.tile > _TILE:
            raise InvalidOption(f"tile is {options.tile}; a server takes at most {_TILE}")
        return options

    def check_disk_space(self) -> None:
        """Raise DiskFull where the disk for the results is as good as full."""
        floor = self.settings.min_free_disk_mb
        if free_bytes(self.settings.processed_folder) < floor * 2**20:
            raise DiskFull(f"less than {floor} MB are left on the server's disk; try again later")

    def cost(self, plan: Plan) -> float | None:
        """In dollars; None without a price, or before anything was measured."""
        price = self.settings.price_per_gpu_second
        return pricing.dollars(plan.seconds, price) if price and plan.seconds is not None else None

    def quote(self, data: bytes, given: dict[str, object]) -> dict[str, object]:
        """What restoring a photo will take. Raises what restoring it would raise at its start."""
        before = self.decode(data)
        options = self.options(given, before)
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

    def models(self) -> list[dict[str, object]]:
        """Every model, and where its weights come from."""
        return [self._model(model) for model in registry.available(self.restorer.weights)]

    def _model(self, model: Model) -> dict[str, object]:
        source = sources.locate(model, self.restorer.weights)
        return {
            "name": model.name,
            "kind": model.kind,
            "about": model.about,
            "licence": model.licence,
            "bytes": source.bytes if source else model.bytes,
            "present": source is not None,
            "source": source.kind if source else "to download",
            "sha256": self.restorer.sha256(model) or (source.sha256 if source else model.sha256),
        }

    def decode(self, data: bytes) -> Photo:
        return self.restorer.decode(data)

    def upload(self, path: str | None) -> bytes:
        """An upload's bytes. Gradio hands over any path that a program sends, and deletes old uploads."""
        if not (real := self._uploaded(path)):
            raise UnsupportedImage("this is not an uploaded file")
        try:
            return real.read_bytes()
        except OSError as error:
            raise UnsupportedImage("the upload is no longer there; choose the photo again") from error

    def touch(self, *paths: str | Path) -> None:
        """Let the hour of uploads and results begin anew."""
        for path in paths:
            with suppress(OSError, ValueError):
                if self._uploaded(path) or Path(path).resolve().is_relative_to(
                    self.settings.processed_folder
                ):
                    os.utime(path)

    def _uploaded(self, path: str | Path | None) -> Path | None:
        try:
            real = Path(path or "").resolve()
        except (ValueError, OSError):  # a NUL, a name that is too long
            return None
        if real.is_relative_to(self.settings.jobs_folder):
            return None
        return real if real.is_relative_to(self.settings.upload_folder) else None

    @contextmanager
    def user_errors(self) -> Iterator[None]:
        """What cannot be done is an error of Gradio's, in the user's words."""
        try:
            yield
        except gr.Error:
            raise
        except Exception as error:  # whoever waits must hear of it
            raise gr.Error(self.user_message(error), print_exception=False) from error

    def user_message(self, error: Exception) -> str:
        """What went wrong, without what is for the server's owner alone: addresses, and places of folders.

        What nobody expected is written to the log.
        """
        if not isinstance(error, RestoreError):
            logging.getLogger(__name__).error("a restoration failed", exc_info=error)
            return FULL if atomic.is_disk_full(error) else _WRONG
        if isinstance(error, WeightsUnavailable):
            logging.getLogger(__name__).warning("%s", error)
            return str(error).partition(" (")[0] + ": choose another model, or try again with a network"
        return str(error).replace(str(self.restorer.weights.absolute()), "the server's weights folder")


def _times(long: float, side: int) -> float:
    if not 1 <= long / side <= 8:
        raise InvalidOption(
            f"a long side of {long:.0f} pixels is {long / side:.1f} times the photo's {side}: "
            f"choose from {side} to {8 * side}"
        )
    return long / side


def receipt(result: Result) -> dict[str, object]:
    """What is told of a result beside its file."""
    return {
        **result.receipt,
        "width": result.width,
        "height": result.height,
        "seconds": round(result.seconds, 3),
        "faces": result.face_note,
        "warnings": list(result.warnings),
    }
