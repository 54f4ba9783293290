"""Cut an image into overlapping windows, run a callable on each, put the cores together again.

Knows nothing of networks: the callable maps (h, w, C) to (h*scale, w*scale, C) of the same dtype, or is a
Device, which does so with several windows of one shape.
"""

import math
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, Protocol, runtime_checkable

import cv2
import numpy as np

from ..errors import InvalidOutput, OutOfMemory
from ..options import SMALLEST_TILE
from ..progress import Progress

Answers = Callable[[], np.ndarray]
# An answer's likeness to its window: means over so many parts a side, and by how much of white they may
# differ. Photos through the real models differ by up to 21 of 255 levels, random weights by 37; the tile next
# door differs by more in 9 of 10 cases
_PARTS, _FAR = 8, 1 / 8
_DOUBTS = 4  # tiles asked for twice before a network is taken to be like that


@runtime_checkable
class Device(Protocol):
    """What begins with windows and is asked for the answers later: engine.Engine is one.

    asynchronous  it computes meanwhile, and takes several windows at once. It is given the next before the
                  answers to the last are put in place
    """

    asynchronous: bool

    def start(self, windows: np.ndarray) -> Answers:
        """Begin with windows (n, h, w, C); what is given back waits for the answers (n, h*scale, w*scale, C).

        Both may raise OutOfMemory.
        """
        ...


TileFunction = Callable[[np.ndarray], np.ndarray]


class Box(NamedTuple):
    """A rectangle in pixels; bottom and right are just outside."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def slices(self) -> tuple[slice, slice]:
        return slice(self.top, self.bottom), slice(self.left, self.right)

    @property
    def shape(self) -> tuple[int, int]:
        return self.bottom - self.top, self.right - self.left

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


_Batch = list[tuple[Tile, int]]  # tiles, and of how many pixels a side they were cut
_Wait = Callable[[], list[np.ndarray]]


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
    function: TileFunction | Device,
    *,
    scale: int,
    tile: int,
    pad: int,
    align: int = 1,
    progress: Progress | None = None,
) -> np.ndarray:
    """Apply `function` to a whole image, tile by tile.

    image     (H, W, C), uint8 or uint16; not changed, and function is given nothing that it could change
    function  may raise OutOfMemory: fewer windows are given at once, then that tile, and those still to
              come, are tried at half the size, down to 32, before the error is passed on
    progress  is told (done, total) before the first tile and after each; an exception from it stops
              the work within one tile, of a Device within two batches

    Returns (H*scale, W*scale, C) of the same dtype. Raises InvalidOutput unless every pixel was
    written exactly once and by an answer of the right shape and dtype, and where a tile's answer is unlike
    the tile and unlike a second answer to it.
    """
    height, width, channels = image.shape
    out = np.empty((height * scale, width * scale, channels), image.dtype)
    written = np.zeros((height, width), bool)
    largest = min(tile, max(height, width))
    engine = _Watched(function, scale)
    most = (tile + 2 * pad) ** 2 if engine.asynchronous else 0  # pixels at once, of more than one window
    pending = [(task, largest) for task in reversed(tiles(height, width, tile=tile, pad=pad, align=align))]
    under_way: deque[tuple[_Batch, _Wait]] = deque()
    done, total = 0, len(pending)
    if progress:
        progress(0, total)
    while pending or under_way:
        if pending and pending[-1][1] > largest:
            parts = _split(pending.pop()[0], largest, pad, align, (height, width))
            pending.extend((part, largest) for part in reversed(parts))
            total += len(parts) - 1
            continue
        if pending and len(under_way) <= engine.asynchronous:
            batch = _next(pending, most)
            under_way.append((batch, engine.start([image[task.window.slices] for task, _ in batch])))
            continue
        batch, wait = under_way.popleft()
        try:
            answers = wait()
        except OutOfMemory:
            if len(batch) > 1:
                most = min(most, len(batch) // 2 * math.prod(batch[0][0].window.shape))
            elif batch[0][1] <= largest:  # else a batch that was begun before has made it smaller
                largest = _smaller(largest, align)
            pending.extend(reversed(batch))
            continue
        for (task, _), answer in zip(batch, answers, strict=True):
            if written[task.core.slices].any():
                raise InvalidOutput(f"the tile at {task.core.left}, {task.core.top} was restored twice")
            core = task.core.seen_from(task.window)
            out[task.core.scaled(scale).slices] = answer[core.scaled(scale).slices]
            written[task.core.slices] = True
            done += 1
            if progress:
                progress(done, total)
    if not written.all():
        raise InvalidOutput(f"{np.count_nonzero(~written)} pixels of the image were not restored")
    return out


def _next(pending: _Batch, most: int) -> _Batch:
    """Take the last of what is pending, and those before it that have its shape, of `most` pixels in all."""
    batch = [pending.pop()]
    task, side = batch[0]
    while (
        (len(batch) + 1) * math.prod(task.window.shape) <= most
        and pending
        and pending[-1][1] == side
        and pending[-1][0].window.shape == task.window.shape
    ):
        batch.append(pending.pop())
    return batch


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

    def __init__(self, function: TileFunction | Device, scale: int) -> None:
        self._function, self._scale, self._doubts = function, scale, _DOUBTS
        self.asynchronous = isinstance(function, Device) and function.asynchronous

    def start(self, windows: list[np.ndarray]) -> _Wait:
        wait = self._begun(windows)

        def answers() -> list[np.ndarray]:
            return [self._believed(*pair) for pair in zip(windows, wait(), strict=True)]

        return answers

    def _believed(self, window: np.ndarray, answer: np.ndarray) -> np.ndarray:
        if self._doubts and _unlike(answer, window):
            if _unlike(answer, self._begun([window])()[0]):
                raise InvalidOutput("the device gave two different answers to one tile: try again")
            self._doubts -= 1
        return answer

    def _begun(self, windows: list[np.ndarray]) -> _Wait:
        wait = self._answers(windows)

        def checked() -> list[np.ndarray]:
            answers = wait()
            if len(answers) != len(windows):
                raise InvalidOutput(f"{len(answers)} tiles came back of {len(windows)}")
            return [self._checked(*pair) for pair in zip(windows, answers, strict=True)]

        return checked

    def _answers(self, windows: list[np.ndarray]) -> Callable[[], np.ndarray | list[np.ndarray]]:
        """Want of memory is told when they are waited for."""
        function = self._function
        if isinstance(function, Device):
            try:
                return function.start(np.stack(windows))
            except OutOfMemory as error:
                # without the frames that it went through, and the memory that they hold
                return partial(_raised, OutOfMemory(*error.args))
        (window,) = windows
        seen = window.view()
        seen.flags.writeable = False
        return lambda: [function(seen)]

    def _checked(self, window: np.ndarray, answer: np.ndarray) -> np.ndarray:
        height, width, channels = window.shape
        expected = (height * self._scale, width * self._scale, channels)
        given = getattr(answer, "shape", None), getattr(answer, "dtype", type(answer))
        if given != (expected, window.dtype):
            raise InvalidOutput(
                f"a tile came back as {given[0]} {given[1]}; it must be {expected} {window.dtype}"
            )
        return answer


def _raised(error: OutOfMemory) -> np.ndarray:
    raise error


def _unlike(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether one part of two pictures of the same thing, at whatever scale, differs in its mean."""
    parts = tuple(min(_PARTS, side) for side in other.shape[1::-1])
    means = [
        cv2.resize(each, parts, interpolation=cv2.INTER_AREA).astype(np.float32) for each in (one, other)
    ]
    return float(np.abs(means[0] - means[1]).max()) > _FAR * np.iinfo(one.dtype).max
