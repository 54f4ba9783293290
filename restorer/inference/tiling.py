"""Run a network segment by segment, each in tiles of one shape."""

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import groupby
from typing import Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import torch

from ..errors import InvalidOutput, OutOfMemory
from ..options import SMALLEST_TILE
from ..progress import Progress
from .memory import out_of_memory
from .network import IMAGE, Compute, Segment, unused

Buffer = TypeVar("Buffer")
# Largest difference between a pixel and the same pixel computed alone, relative to its largest value.
# Backends differ by 1e-5 in float32, by 1e-3 with TF32 and by 2e-2 in 16 bits
_TOLERANCE, _TOLERANCE_OF_16_BITS = 0.005, 0.05
_SMALLEST_VALUE = 0.05  # taken for the largest value where all are smaller
_GRID = 32  # most rows and columns from which that pixel is chosen
_FIXED_ATTEMPTS = 3  # further ones, in all


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

    def grown(self, pixels: int, shape: tuple[int, int]) -> "Box":
        """Return this box with so many pixels more on each side, clipped to (height, width)."""
        return Box(
            max(self.top - pixels, 0),
            max(self.left - pixels, 0),
            min(self.bottom + pixels, shape[0]),
            min(self.right + pixels, shape[1]),
        )


class Tile(NamedTuple):
    """A window, which is the input, and its core, the part of the output that is used."""

    window: Box
    core: Box


def tiles(height: int, width: int, *, tile: int, pad: int) -> list[Tile]:
    """Return windows of one shape, at most tile + 2 pad a side, whose cores cover the map exactly once.

    Every core has `pad` pixels of context on each side, or reaches the map's edge. Row by row, from the top.
    On a map narrower than a tile they are longer and have the area of a square tile: PyTorch computes inputs
    of up to 20,480 values by another algorithm, which rounds differently.
    """
    rows = _spans(height, max(tile, tile * tile // width), pad)
    columns = _spans(width, max(tile, tile * tile // height), pad)
    return [
        Tile(Box(y0, x0, y1, x1), Box(top, left, bottom, right))
        for y0, y1, top, bottom in rows
        for x0, x1, left, right in columns
    ]


def _spans(length: int, tile: int, pad: int) -> list[tuple[int, int, int, int]]:
    if length <= tile + 2 * pad:
        return [(0, length, 0, length)]
    count = math.ceil((length - 2 * pad) / tile)
    window = math.ceil((length - 2 * pad) / count) + 2 * pad  # no larger than needed
    starts = [(length - window) * i // (count - 1) for i in range(count)]
    # cut in the middle of the overlap, so that each side has its pad
    cuts = [
        0,
        *((left + window + right) // 2 for left, right in zip(starts, starts[1:], strict=False)),
        length,
    ]
    return [(s, s + window, cuts[i], cuts[i + 1]) for i, s in enumerate(starts)]


def segment_tile(segment: Segment, tile: int) -> int:
    """Return the side of a segment's tiles in pixels of the maps it reads."""
    return max(tile // segment.divisor, SMALLEST_TILE)


def count_tiles(segments: Sequence[Segment], height: int, width: int, tile: int) -> int:
    """Return the number of tiles of all segments for maps of this size."""
    return sum(
        len(tiles(height, width, tile=segment_tile(segment, tile), pad=segment.halo)) for segment in segments
    )


class NotFinite(InvalidOutput):
    """A network returned NaN or infinite values."""


class Sink(Protocol, Generic[Buffer]):
    """Converts the output to samples, one band of rows at a time."""

    def band(self, rows: int, columns: int) -> Buffer:
        """Return memory for a band."""
        ...

    def write(self, band: Buffer, box: Box, output: torch.Tensor) -> None:
        """Write an output (1, C, h, w) to a box of the band. May raise NotFinite."""
        ...

    def samples(self, band: Buffer) -> np.ndarray:
        """Return the complete band (rows, columns, C). May raise NotFinite."""
        ...


class Run:
    """One pass of a network over an image.

    segments   of the network, with modules in float32 on the device of the maps
    compute    the segments as the backend runs them
    tile       side of a tile in pixels; halved when memory runs out, down to 32
    fixed      try a tile again, up to three times, instead of smaller ones
    progress   called with (done, total) tiles of all segments before the first tile and after each; an
               exception from it stops the work within one tile
    lock       held while a tile is computed and compared
    check_all  compare one pixel of each tile with the same pixel computed alone by the module; False: only in
               the last segment, as every comparison waits for the device

    retries    number of out-of-memory errors so far
    """

    def __init__(
        self,
        segments: Sequence[Segment],
        compute: Sequence[Compute],
        *,
        tile: int,
        fixed: bool = False,
        progress: Progress | None = None,
        lock: AbstractContextManager[object] | None = None,
        check_all: bool = True,
    ) -> None:
        self._segments, self._compute, self._tile = segments, compute, tile
        self._progress, self._lock, self._check_all = progress, lock or nullcontext(), check_all
        self._fixed, self._attempts_left = fixed, _FIXED_ATTEMPTS
        self._done = self._total = self.retries = 0
        self._counted = 0  # tile size with which the total was counted

    def bands(self, image: torch.Tensor, sink: Sink[Buffer]) -> Iterator[np.ndarray]:
        """Yield the output of a (1, C, h, w) image from top to bottom, in bands of rows.

        The result does not depend on the tile size, nor on errors: maps are exact, with zeros beyond the
        image's edges only, as in the network itself. A band is yielded after the next one was started.

        Raises OutOfMemory if a tile of 32 pixels does not fit, NotFinite, and InvalidOutput unless every
        pixel was computed exactly once, in the expected shape, and the checks pass.
        """
        maps, last = {IMAGE: image}, len(self._segments) - 1
        for index, segment in enumerate(self._segments[:-1]):
            tasks = self._tiles(index, maps)
            for core, output in self._outputs(index, maps, tasks, self._tile):
                if output.is_cuda and core.shape == image.shape[-2:]:
                    maps[segment.writes] = output  # whose memory, unlike the system's, is not new
                    continue
                if segment.writes not in maps:
                    maps[segment.writes] = _empty_map(segment, image)
                maps[segment.writes][(..., *core.slices)] = output
            for name in unused(self._segments, index, maps):
                del maps[name]
        scale, previous = self._segments[-1].scale, None
        cut, size = self._tiles(last, maps), self._tile
        for _, row in groupby(cut, key=lambda tile: tile.core.top):
            tasks = list(row)
            top, left, bottom, right = tasks[0].core.top, 0, tasks[0].core.bottom, tasks[-1].core.right
            band = sink.band((bottom - top) * scale, (right - left) * scale)
            for core, output in self._outputs(last, maps, tasks, size):
                sink.write(band, core.seen_from(Box(top, left, bottom, right)).scaled(scale), output)
            if previous is not None:
                yield sink.samples(previous)
            previous = band
        if previous is not None:
            yield sink.samples(previous)

    def _tiles(self, index: int, maps: dict[str, torch.Tensor]) -> list[Tile]:
        """Cut a segment's map; count the tiles to come, at first and after the tile size has changed."""
        segment = self._segments[index]
        height, width = maps[segment.reads[0]].shape[-2:]
        if self._tile != self._counted:
            self._total = self._done + count_tiles(self._segments[index:], height, width, self._tile)
            self._counted = self._tile
        self._report()
        return tiles(height, width, tile=segment_tile(segment, self._tile), pad=segment.halo)

    def _outputs(
        self, index: int, maps: dict[str, torch.Tensor], tasks: list[Tile], size: int
    ) -> Iterator[tuple[Box, torch.Tensor]]:
        """Yield the cores of these tiles of that size, a whole row or map, and their outputs."""
        segment = self._segments[index]
        height, width = maps[segment.reads[0]].shape[-2:]
        top, bottom = tasks[0].core.top, tasks[-1].core.bottom
        written = np.zeros((bottom - top, width), bool)
        pending = [(task, size) for task in reversed(tasks)]
        while pending:
            task, size = pending.pop()
            if size > self._tile:  # memory ran out after the tile was cut
                smaller = _split(task.core, segment_tile(segment, self._tile), segment.halo, (height, width))
                pending.extend((tile, self._tile) for tile in reversed(smaller))
                self._total += len(smaller) - 1
                continue
            try:
                with out_of_memory():
                    output = self._output(index, maps, task)
            except OutOfMemory:
                self.retries += 1
                self._shrink()
                pending.append((task, size))
                continue
            core = task.core
            region = written[core.top - top : core.bottom - top, core.left : core.right]
            if region.any():
                raise InvalidOutput(f"the tile at {task.core.left}, {task.core.top} was computed twice")
            region[:] = True
            yield task.core, output
            self._done += 1
            self._report()
        if not written.all():
            raise InvalidOutput(f"{np.count_nonzero(~written)} pixels of the image were not computed")

    def _output(self, index: int, maps: dict[str, torch.Tensor], task: Tile) -> torch.Tensor:
        """Compute a tile; return the output of its core."""
        segment = self._segments[index]
        windows = [_cut(maps[name], task.window) for name in segment.reads]
        core = task.core.seen_from(task.window)
        with self._lock:
            output = self._compute[index](*windows)
            expected = (1, segment.channels, *(side * segment.scale for side in task.window.shape))
            if tuple(output.shape) != expected:
                raise InvalidOutput(f"the output of a tile is {tuple(output.shape)}; expected {expected}")
            if self._check_all or index == len(self._segments) - 1:
                _check_pixel(segment, windows, output, core)
        return output[(..., *core.scaled(segment.scale).slices)]

    def _shrink(self) -> None:
        """Halve the tile size, or use up an attempt. Raises OutOfMemory at the end of either."""
        if self._fixed and self._attempts_left:
            self._attempts_left -= 1
        elif self._fixed or self._tile <= SMALLEST_TILE:
            raise OutOfMemory(
                f"not enough memory for a tile of {self._tile} pixels; close other programs or use a "
                "smaller model"
            )
        else:
            self._tile = max(self._tile // 2, SMALLEST_TILE)

    def _report(self) -> None:
        if self._progress:
            self._progress(self._done, self._total)


def _empty_map(segment: Segment, image: torch.Tensor) -> torch.Tensor:
    return torch.empty(
        (1, segment.channels, *image.shape[-2:]),
        dtype=image.dtype,
        device=image.device,
        memory_format=_layout(image),
    )


def _cut(plane: torch.Tensor, window: Box) -> torch.Tensor:
    if window.shape == plane.shape[-2:]:
        return plane
    return plane[(..., *window.slices)].contiguous(memory_format=_layout(plane))


def _layout(plane: torch.Tensor) -> torch.memory_format:
    nhwc = plane.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if nhwc else torch.contiguous_format


def _check_pixel(segment: Segment, windows: list[torch.Tensor], output: torch.Tensor, core: Box) -> None:
    """Compare a pixel of a core with the same pixel computed alone."""
    y, x = _distinct_pixel(windows[0], core)
    pixel = Box(y, x, y + 1, x + 1)
    height, width = windows[0].shape[-2:]
    around = pixel.grown(segment.halo, (height, width))
    alone = segment.module(*(window[(..., *around.slices)].float() for window in windows))
    expected = alone[(..., *pixel.seen_from(around).scaled(segment.scale).slices)]
    actual = output[(..., *pixel.scaled(segment.scale).slices)].float()
    if not (actual.isfinite().all() and expected.isfinite().all()):
        raise NotFinite("the network returned NaN or infinite values")
    tolerance = _TOLERANCE if windows[0].dtype == torch.float32 else _TOLERANCE_OF_16_BITS
    limit = tolerance * max(float(expected.abs().max()), _SMALLEST_VALUE)
    if not float((actual - expected).abs().max()) <= limit:
        raise InvalidOutput("the device returned a wrong result for a tile; try again or another backend")


def _distinct_pixel(window: torch.Tensor, core: Box) -> tuple[int, int]:
    """Return row and column of the pixel, of a grid in a core, that differs most from the grid's mean.

    Other tiles rarely have the same there, while most of a tile may be sky or paper.
    """
    rows, columns = (
        range(first, last, -(-(last - first) // _GRID))
        for first, last in ((core.top, core.bottom), (core.left, core.right))
    )
    grid = window[0, :, core.top : core.bottom : rows.step, core.left : core.right : columns.step].float()
    difference = (grid - grid.mean((1, 2), keepdim=True)).abs().sum(0)
    row, column = divmod(int(difference.argmax()), len(columns))
    return rows[row], columns[column]


def _split(core: Box, tile: int, halo: int, shape: tuple[int, int]) -> list[Tile]:
    """Split a core into tiles of at most `tile` pixels a side, each with its context from the map."""
    parts = tiles(*core.shape, tile=tile, pad=0)
    moved = (
        Box(part.top + core.top, part.left + core.left, part.bottom + core.top, part.right + core.left)
        for _, part in parts
    )
    return [Tile(box.grown(halo, shape), box) for box in moved]
