"""From an upload to files that a browser can show: a restoration as a generator that can be stopped."""

import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ..encode import to_uint8
from ..errors import Cancelled
from ..files import READABLE, result_stem, write_atomic
from ..photo import Photo
from ..pipeline import Result

PREVIEW_SIDE = 2048
_BEAT = 0.5  # seconds between two looks at whether anybody still waits


@dataclass(frozen=True)
class Step:
    """Tiles done and tiles in all, so far."""

    done: int
    total: int


def steps(restore: Callable[..., Result]) -> Iterator[Step | Result]:
    """Run `restore(progress=...)` in a thread; yield a Step every half second and the Result at the end.

    Closing the generator stops the work within one tile. Raises what `restore` raises.
    """
    stopped = threading.Event()
    ended = threading.Event()
    latest = Step(0, 0)
    answer: list[Result | BaseException] = []

    def progress(done: int, total: int) -> None:
        nonlocal latest
        latest = Step(done, total)
        if stopped.is_set():
            raise Cancelled("stopped")

    def work() -> None:
        try:
            answer.append(restore(progress=progress))
        except BaseException as error:  # noqa: BLE001  raised again below, in the caller's thread
            answer.append(error)
        finally:
            ended.set()

    threading.Thread(target=work, daemon=True).start()
    try:
        while not ended.wait(_BEAT):
            yield latest
    finally:
        stopped.set()
    if isinstance(answer[0], BaseException):
        raise answer[0]
    yield answer[0]


@dataclass(frozen=True)
class Shown:
    """A result on disk: the full-size file, and two previews of one size for the slider."""

    file: Path
    before: Path
    after: Path


def store(result: Result, name: str, outscale: float, folder: Path) -> Shown:
    """Write a result and its previews into a new folder below `folder`. `name` is the upload's."""
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
