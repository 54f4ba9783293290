"""From an upload to files that a browser can show: a restoration as a generator that can be stopped."""

import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ..errors import Cancelled
from ..files import READABLE, result_stem, write_atomic
from ..photo import Photo
from ..pipeline import Result
from ..pixels import to_uint8

PREVIEW_SIDE = 2048
AGE = 3600  # seconds that a result is kept
_BEAT = 0.5  # seconds between two looks at whether anybody still waits


@dataclass(frozen=True)
class Step:
    """Tiles done and tiles in all, so far."""

    done: int
    total: int


class Workshop:
    """Where photos are worked on: one at a time, each in a thread, until the server closes."""

    def __init__(self) -> None:
        self._turn, self._closed = threading.Lock(), threading.Event()

    def steps(self, restore: Callable[..., Result]) -> Iterator[Step | Result]:
        """Run `restore(progress=...)`; yield a Step every half second and the Result at the end.

        Closing the generator stops the work within one tile, and the next photo begins when it has
        ended. Raises what `restore` raises.
        """
        stopped, ended = threading.Event(), threading.Event()
        latest = Step(0, 0)
        answer: list[Result | BaseException] = []

        def progress(done: int, total: int) -> None:
            nonlocal latest
            latest = Step(done, total)
            if stopped.is_set() or self._closed.is_set():
                raise Cancelled("stopped")

        def work() -> None:
            try:
                with self._turn:
                    progress(0, 0)
                    answer.append(restore(progress=progress))
            except BaseException as error:  # noqa: BLE001  raised again below, in the caller's thread
                answer.append(error)
            finally:
                if stopped.is_set():
                    answer.clear()
                ended.set()

        threading.Thread(target=work, daemon=True).start()
        try:
            while not ended.wait(_BEAT):
                yield latest
        finally:
            stopped.set()
        # Taken out: an error's traceback knows this list, and a ring of the two would keep the pictures alive
        result = answer.pop()
        if isinstance(result, BaseException):
            try:
                raise result
            finally:
                del result
        yield result

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
