"""Cut an image into overlapping windows, process each, and assemble the cores.

Independent of networks: a TileFunction maps (h, w, C) to (h*scale, w*scale, C) of the same dtype; a Device
does so with several windows of one shape at once.
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
# An output is compared with its window by the means of _GRID x _GRID cells, which may differ by _TOLERANCE
# of white. Photos differ by up to 21 of 255 levels with the real models and by 37 with random weights; the
# output of the neighbouring tile differs by more in 9 of 10 cases
_GRID, _TOLERANCE = 8, 1 / 8
_MAX_DOUBTS = 4  # tiles that are computed twice before a network is trusted to change the means


@runtime_checkable
class Device(Protocol):
    """Processes batches of windows; engine.Engine is one.

    asynchronous  computes after start() has returned, several windows at a time. The next batch is started
                  before the previous outputs are written
    """

    asynchronous: bool

    def start(self, windows: np.ndarray) -> Answers:
        """Start computing windows (n, h, w, C).

        Returns a function that waits for the outputs (n, h*scale, w*scale, C). Both may raise OutOfMemory.
        """
        ...


TileFunction = Callable[[np.ndarray], np.ndarray]


class Box(NamedTuple):
    """A rectangle in pixels; bottom and right are exclusive."""

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
        """Return this box in the coordinates of `outer`."""
        return Box(
            self.top - outer.top, self.left - outer.left, self.bottom - outer.top, self.right - outer.left
        )


class Tile(NamedTuple):
    """A window, which is the input, and its core, the part of the output that is used."""

    window: Box
    core: Box


_Batch = list[tuple[Tile, int]]  # tiles, each with the tile size it was cut for
_Wait = Callable[[], list[np.ndarray]]


def tiles(height: int, width: int, *, tile: int, pad: int, align: int = 1) -> list[Tile]:
    """Return windows of one shape, at most tile + 2 pad a side, whose cores cover the image exactly once.

    Every core has `pad` pixels of context on each side, or reaches the image's edge. Windows start at
    multiples of `align`; height, width, tile and pad must be multiples of it too.
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
    window = math.ceil((length - 2 * pad) / count / align) * align + 2 * pad  # no larger than needed
    starts = [(length - window) * i // (count - 1) // align * align for i in range(count)]
    # cut in the middle of the overlap, so that each side has its pad
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
    """Apply `function` to an image tile by tile; return (H*scale, W*scale, C) of the same dtype.

    image     (H, W, C), uint8 or uint16; it is not changed, and `function` cannot change it
    function  may raise OutOfMemory: smaller batches are tried first, then half the tile size for that tile
              and those after it, down to 32, before the error propagates
    progress  called with (done, total) before the first tile and after each; an exception from it stops
              the work within one tile, or within two batches of a Device

    Raises InvalidOutput unless every pixel was written exactly once from an output of the right shape and
    dtype, and if a tile's output resembles neither the tile nor a second output for it.
    """
    height, width, channels = image.shape
    out = np.empty((height * scale, width * scale, channels), image.dtype)
    written = np.zeros((height, width), bool)
    tile_size = min(tile, max(height, width))
    engine = _Watched(function, scale)
    max_pixels = (tile + 2 * pad) ** 2 if engine.asynchronous else 0  # of a batch of several windows
    pending = [(task, tile_size) for task in reversed(tiles(height, width, tile=tile, pad=pad, align=align))]
    running: deque[tuple[_Batch, _Wait]] = deque()
    done, total = 0, len(pending)
    if progress:
        progress(0, total)
    while pending or running:
        if pending and pending[-1][1] > tile_size:
            parts = _split(pending.pop()[0], tile_size, pad, align, (height, width))
            pending.extend((part, tile_size) for part in reversed(parts))
            total += len(parts) - 1
            continue
        if pending and len(running) <= engine.asynchronous:
            batch = _next_batch(pending, max_pixels)
            running.append((batch, engine.start([image[task.window.slices] for task, _ in batch])))
            continue
        batch, wait = running.popleft()
        try:
            outputs = wait()
        except OutOfMemory:
            if len(batch) > 1:
                max_pixels = min(max_pixels, len(batch) // 2 * math.prod(batch[0][0].window.shape))
            elif batch[0][1] <= tile_size:  # otherwise an earlier batch has already reduced it
                tile_size = _halve(tile_size, align)
            pending.extend(reversed(batch))
            continue
        for (task, _), output in zip(batch, outputs, strict=True):
            if written[task.core.slices].any():
                raise InvalidOutput(f"the tile at {task.core.left}, {task.core.top} was written twice")
            core = task.core.seen_from(task.window)
            out[task.core.scaled(scale).slices] = output[core.scaled(scale).slices]
            written[task.core.slices] = True
            done += 1
            if progress:
                progress(done, total)
    if not written.all():
        raise InvalidOutput(f"{np.count_nonzero(~written)} pixels of the image were not written")
    return out


def _next_batch(pending: _Batch, max_pixels: int) -> _Batch:
    """Pop the last pending tile, and those before it of the same shape, up to `max_pixels` in total."""
    batch = [pending.pop()]
    task, side = batch[0]
    while (
        (len(batch) + 1) * math.prod(task.window.shape) <= max_pixels
        and pending
        and pending[-1][1] == side
        and pending[-1][0].window.shape == task.window.shape
    ):
        batch.append(pending.pop())
    return batch


def _halve(tile: int, align: int) -> int:
    if tile <= SMALLEST_TILE:
        raise OutOfMemory(
            f"not enough memory for a tile of {tile} pixels; close other programs or use a smaller model"
        )
    return max(tile // 2 // align * align, SMALLEST_TILE)


def _split(task: Tile, tile: int, pad: int, align: int, shape: tuple[int, int]) -> list[Tile]:
    """Split a core into tiles of at most `tile` pixels a side, each with its context from the image."""
    core = task.core
    result = []
    # a core may start between two multiples of align, its window may not
    for part in tiles(core.bottom - core.top, core.right - core.left, tile=tile, pad=0):
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
        result.append(Tile(window, box))
    return result


class _Watched:
    """A function whose outputs are checked: shape, dtype, and whether each can belong to its window.

    A network roughly preserves local brightness, which an output of another tile does not match. A network
    that does change it returns the same output twice; after a few of these the check is dropped.
    """

    def __init__(self, function: TileFunction | Device, scale: int) -> None:
        self._function, self._scale, self._doubts_left = function, scale, _MAX_DOUBTS
        self.asynchronous = isinstance(function, Device) and function.asynchronous

    def start(self, windows: list[np.ndarray]) -> _Wait:
        wait = self._start(windows)
        return lambda: [self._verify(*pair) for pair in zip(windows, wait(), strict=True)]

    def _verify(self, window: np.ndarray, output: np.ndarray) -> np.ndarray:
        if self._doubts_left and _unlike(output, window):
            if _unlike(output, self._start([window])()[0]):
                raise InvalidOutput("the device returned two different results for one tile; try again")
            self._doubts_left -= 1
        return output

    def _start(self, windows: list[np.ndarray]) -> _Wait:
        wait = self._answers(windows)

        def checked() -> list[np.ndarray]:
            outputs = wait()
            if len(outputs) != len(windows):
                raise InvalidOutput(f"the device returned {len(outputs)} of {len(windows)} tiles")
            return [self._check_shape(*pair) for pair in zip(windows, outputs, strict=True)]

        return checked

    def _answers(self, windows: list[np.ndarray]) -> Callable[[], np.ndarray | list[np.ndarray]]:
        """Start the function; the returned function raises OutOfMemory for both."""
        function = self._function
        if isinstance(function, Device):
            try:
                return function.start(np.stack(windows))
            except OutOfMemory as error:
                # a new exception: the traceback of this one keeps its frames, and their memory, alive
                return partial(_raise, OutOfMemory(*error.args))
        (window,) = windows
        read_only = window.view()
        read_only.flags.writeable = False
        return lambda: [function(read_only)]

    def _check_shape(self, window: np.ndarray, output: np.ndarray) -> np.ndarray:
        height, width, channels = window.shape
        expected = (height * self._scale, width * self._scale, channels)
        actual = getattr(output, "shape", None), getattr(output, "dtype", type(output))
        if actual != (expected, window.dtype):
            raise InvalidOutput(
                f"the output of a tile is {actual[0]} {actual[1]}; expected {expected} {window.dtype}"
            )
        return output


def _raise(error: OutOfMemory) -> np.ndarray:
    raise error


def _unlike(one: np.ndarray, other: np.ndarray) -> bool:
    """Return whether the means of any cell of two images, at whatever scales, differ too much."""
    grid = tuple(min(_GRID, side) for side in other.shape[1::-1])
    means = [
        cv2.resize(image, grid, interpolation=cv2.INTER_AREA).astype(np.float32) for image in (one, other)
    ]
    return float(np.abs(means[0] - means[1]).max()) > _TOLERANCE * np.iinfo(one.dtype).max
