"""From an upload to files that a browser can show: a restoration that can be watched and stopped."""

import asyncio
import shutil
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from PIL import Image

from ..errors import Cancelled
from ..files import READABLE, result_stem, write_atomic
from ..photo import Photo
from ..pipeline import Result
from ..pixels import to_uint8
from ..tiling import Progress

PREVIEW_SIDE = 2048
AGE = 3600  # seconds that a result is kept
_BEAT = 0.5  # seconds between two looks at whether anybody still waits


T = TypeVar("T")


@dataclass(frozen=True)
class Step:
    """Tiles done and tiles in all, so far."""

    done: int
    total: int


class Workshop:
    """Where photos are worked on: one at a time, each in a thread, until the server closes."""

    def __init__(self) -> None:
        self._turn, self._closed = threading.Lock(), threading.Event()

    async def steps(self, make: Callable[[Progress], T]) -> AsyncIterator[Step | T]:
        """Run `make(progress)` in a thread; yield a Step every half second and what it made at the end.

        Closing or cancelling stops the work within one step of its own, and the next one begins when it has
        ended. Raises what `make` raises.
        """
        stopped = threading.Event()
        latest = Step(0, 0)

        def progress(done: int, total: int) -> None:
            nonlocal latest
            latest = Step(done, total)
            if stopped.is_set() or self._closed.is_set():
                raise Cancelled("stopped")

        def work(answer: Future[T]) -> None:
            try:
                with self._turn:
                    progress(0, 0)
                    answer.set_result(make(progress))
            except BaseException as error:  # noqa: BLE001  raised again below, in the caller's thread
                if stopped.is_set():
                    answer.cancel()  # nobody will look
                else:
                    answer.set_exception(error)
            finally:
                del answer  # an error's traceback knows this frame: a ring would keep the pictures alive

        answer: Future[T] = Future()
        threading.Thread(target=work, args=(answer,), daemon=True).start()
        ended = asyncio.wrap_future(answer)
        try:
            while not (await asyncio.wait([ended], timeout=_BEAT))[0]:
                yield latest
            yield ended.result()
        finally:
            stopped.set()
            del answer, ended  # for the same reason

    def close(self, seconds: float) -> bool:
        """Stop the photo under way and take no other; whether it ended within that time."""
        self._closed.set()
        return self._turn.acquire(timeout=seconds)


@dataclass(frozen=True)
class Shown:
    """A result on disk: the full-size file, and two previews of one size for the slider."""

    file: Path
    before: Path
    after: Path


def store(result: Result, name: str, outscale: float, folder: Path) -> Shown:
    """Write a result and its previews into a new folder below `folder`. `name` is the upload's."""
    sweep(folder, AGE)
    place = folder / uuid.uuid4().hex
    file = place / (result_stem(Path(name).stem, outscale) + READABLE[result.format][0])
    shown = Shown(file, place / "before.jpg", place / "after.jpg")
    size = _fitted(result.width, result.height)
    write_atomic(shown.file, result.data)
    _write_preview(result.before, size, shown.before)
    _write_preview(result.after, size, shown.after)
    return shown


def _fitted(width: int, height: int) -> tuple[int, int]:
    shrink = min(1, PREVIEW_SIDE / max(width, height))
    return max(1, round(width * shrink)), max(1, round(height * shrink))


def _write_preview(photo: Photo, size: tuple[int, int], path: Path) -> None:
    """A JPEG of exactly `size` pixels, transparency on white, in the photo's own colour space."""
    image = Image.fromarray(to_uint8(photo.pixels)).resize(size, Image.Resampling.LANCZOS, reducing_gap=2)
    if photo.alpha is not None:
        alpha = Image.fromarray(to_uint8(photo.alpha)).resize(size, Image.Resampling.LANCZOS, reducing_gap=2)
        image = Image.composite(image, Image.new("RGB", size, "white"), alpha)
    # grey and linear profiles do not fit these RGB, sRGB-curve values
    icc = None if photo.meta.grey or photo.meta.linear else photo.meta.icc
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, "JPEG", quality=90, subsampling=0, icc_profile=icc)


def sweep(folder: Path, age: float) -> None:
    """Delete the results in `folder` that are older than `age` seconds."""
    for place in folder.iterdir():
        try:
            if place.is_dir() and not place.is_symlink() and time.time() - place.stat().st_mtime > age:
                shutil.rmtree(place)
        except OSError:  # in use, or already gone: the next sweep sees it again
            continue
