"""Cut an image into overlapping windows, run a callable on each, put the cores together again.

Knows nothing of networks: the callable maps (h, w, C) to (h*scale, w*scale, C) of the same dtype.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np

from .errors import InvalidOutput, OutOfMemory
from .options import SMALLEST_TILE

TileFunction = Callable[[np.ndarray], np.ndarray]
Progress = Callable[[int, int], None]
# An answer's likeness to its window: means over so many parts a side, and by how much of white they may
# differ. Photos through the real models differ by up to 21 of 255 levels, random weights by 37; the tile next
# door differs by more in 9 of 10 cases
_PARTS, _FAR = 8, 1 / 8
_DOUBTS = 4  # tiles asked for twice before a network is taken to be like that


class Box(NamedTuple):
    """A rectangle in pixels; bottom and right are just outside."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def slices(self) -> tuple[slice, slice]:
        return slice(self.top, self.bottom), slice(self.left, self.right)

    def scaled(self, scale: int) -> "Box":
        return Box(*(edge * scale for edge in self))

    def seen_from(self, outer: "Box") -> "Box":
        return Box(
            self.top - outer.top, self.left - outer.left, self.bottom - outer.top, self.right - outer.left
        )


class Tile(NamedTuple):
    """What the callable sees (window) and what is kept of its answer (core, inside the window)."""

    window: Box
    core: Box


def tiles(height: int, width: int, *, tile: int, pad: int, align: int = 1) -> list[Tile]:
    """Windows of one shape, at most tile + 2 pad a side, whose cores cover the image exactly once.

    Every core has `pad` pixels of context on each side, or reaches to the image's edge. Windows start
    at multiples of `align`, for which height, width, tile and pad must be multiples of it too.
    """
    rows = _spans(height, tile, pad, align)
    columns = _spans(width, tile, pad, align)
    return [
        Tile(Box(y0, x0, y1, x1), Box(top, left, bottom, right))
        for y0, y1, top, bottom in rows
        for x0, x1, left, right in columns
    ]


def _spans(length: int, tile: int, pad: int, align: int) -> list[tuple[int, int, int, int]]:
    if length <= tile + 2 * pad:
        return [(0, length, 0, length)]
    count = math.ceil((length - 2 * pad) / tile)
    window = math.ceil((length - 2 * pad) / count / align) * align + 2 * pad  # no larger than these need
    starts = [(length - window) * i // (count - 1) // align * align for i in range(count)]
    # a cut lies in the middle of what two windows share, so each side has its pad
    cuts = [
        0,
        *((left + window + right) // 2 for left, right in zip(starts, starts[1:], strict=False)),
        length,
    ]
    return [(s, s + window, cuts[i], cuts[i + 1]) for i, s in enumerate(starts)]


def run(
    image: np.ndarray,
    function: TileFunction,
    *,
    scale: int,
    tile: int,
    pad: int,
    align: int = 1,
    progress: Progress | None = None,
) -> np.ndarray:
    """Apply `function` to a whole image, tile by tile.

    image     (H, W, C), uint8 or uint16; not changed, and function is given nothing that it could change
    function  may raise OutOfMemory: that tile, and those still to come, are tried at half the size,
              down to 32, before the error is passed on
    progress  is told (done, total) before the first tile and after each; an exception from it stops
              the work within one tile

    Returns (H*scale, W*scale, C) of the same dtype. Raises InvalidOutput unless every pixel was
    written exactly once and by an answer of the right shape and dtype, and where a tile's answer is unlike
    the tile and unlike a second answer to it.
    """
    height, width, channels = image.shape
    out = np.empty((height * scale, width * scale, channels), image.dtype)
    written = np.zeros((height, width), bool)
    largest = min(tile, max(height, width))
    engine = _Watched(function, scale)
    pending = [(task, largest) for task in reversed(tiles(height, width, tile=tile, pad=pad, align=align))]
    done = 0
    if progress:
        progress(0, len(pending))
    while pending:
        task, side = pending.pop()
        if side > largest:
            pending.extend(
                (part, largest) for part in reversed(_split(task, largest, pad, align, (height, width)))
            )
            continue
        try:
            answer = engine(image[task.window.slices])
        except OutOfMemory:
            largest = _smaller(largest, align)
            pending.append((task, side))
            continue
        if written[task.core.slices].any():
            raise InvalidOutput(f"the tile at {task.core.left}, {task.core.top} was restored twice")
        core = task.core.seen_from(task.window)
        out[task.core.scaled(scale).slices] = answer[core.scaled(scale).slices]
        written[task.core.slices] = True
        done += 1
        if progress:
            progress(done, done + len(pending))
    if not written.all():
        raise InvalidOutput(f"{np.count_nonzero(~written)} pixels of the image were not restored")
    return out


def _smaller(tile: int, align: int) -> int:
    if tile <= SMALLEST_TILE:
        raise OutOfMemory(
            f"not even a tile of {tile} pixels fits into memory: close other programs or take a smaller model"
        )
    return max(tile // 2 // align * align, SMALLEST_TILE)


def _split(task: Tile, tile: int, pad: int, align: int, shape: tuple[int, int]) -> list[Tile]:
    """The same core in tiles of at most `tile` pixels a side, each with its context from the image."""
    core = task.core
    # a core may begin between two multiples of align; its window may not
    parts = tiles(core.bottom - core.top, core.right - core.left, tile=tile, pad=0)
    found = []
    for part in parts:
        box = Box(
            part.core.top + core.top,
            part.core.left + core.left,
            part.core.bottom + core.top,
            part.core.right + core.left,
        )
        window = Box(
            max(box.top - pad, 0) // align * align,
            max(box.left - pad, 0) // align * align,
            min(-(-(box.bottom + pad) // align) * align, shape[0]),
            min(-(-(box.right + pad) // align) * align, shape[1]),
        )
        found.append(Tile(window, box))
    return found


class _Watched:
    """The function, whose answers are looked at: shape, dtype, and whether they can belong to their windows.

    A network keeps the light of each place, roughly; an answer meant for another tile does not have it. Where
    a network does not keep it, it says the same when it is asked again; after a few of these it is believed.
    """

    def __init__(self, function: TileFunction, scale: int) -> None:
        self._function, self._scale, self._doubts = function, scale, _DOUBTS

    def __call__(self, window: np.ndarray) -> np.ndarray:
        answer = self._answer(window)
        if self._doubts and _unlike(answer, window):
            if _unlike(answer, self._answer(window)):
                raise InvalidOutput("the device gave two different answers to one tile: try again")
            self._doubts -= 1
        return answer

    def _answer(self, window: np.ndarray) -> np.ndarray:
        seen = window.view()
        seen.flags.writeable = False
        answer = self._function(seen)
        height, width, channels = window.shape
        expected = (height * self._scale, width * self._scale, channels)
        given = getattr(answer, "shape", None), getattr(answer, "dtype", type(answer))
        if given != (expected, window.dtype):
            raise InvalidOutput(
                f"a tile came back as {given[0]} {given[1]}; it must be {expected} {window.dtype}"
            )
        return answer


def _unlike(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether one part of two pictures of the same thing, at whatever scale, differs in its mean."""
    parts = tuple(min(_PARTS, side) for side in other.shape[1::-1])
    means = [
        cv2.resize(each, parts, interpolation=cv2.INTER_AREA).astype(np.float32) for each in (one, other)
    ]
    return float(np.abs(means[0] - means[1]).max()) > _FAR * np.iinfo(one.dtype).max
