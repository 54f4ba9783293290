"""Resize, round and convert image arrays, one band of rows at a time.

An image may have 400 megapixels; a temporary float32 copy of it would take 4.8 GB.
"""

import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import cv2
import numpy as np
from PIL import Image

T = TypeVar("T")
Rows = Callable[[slice], np.ndarray]  # computes the samples of a slice of rows on demand

_ROWS = 256
_THREADS = 8  # each holds several copies of its rows
_LANCZOS = Image.Resampling.LANCZOS
_LOBES = 3  # of Pillow's Lanczos: its radius, in pixels of the smaller image


class RowReader:
    """An image (H, W, C) that arrives in bands of rows, from the top.

    shape, dtype  of the image

    Slices of rows must be read from the top; rows above the latest slice are forgotten.
    """

    def __init__(self, bands: Iterator[np.ndarray], shape: tuple[int, int, int], dtype: np.dtype) -> None:
        self.shape, self.dtype = shape, dtype
        self._bands, self._top, self._rows = bands, 0, np.empty((0, *shape[1:]), dtype)

    def __len__(self) -> int:
        return self.shape[0]

    def all(self) -> np.ndarray:
        """Return the image, of which nothing was read before."""
        out, top = np.empty(self.shape, self.dtype), 0
        for band in self._bands:
            rows = band[: len(out) - top]
            out[top : top + len(rows)] = rows
            top += len(rows)
        return out

    def __getitem__(self, rows: slice) -> np.ndarray:
        first, last, _ = rows.indices(len(self))
        pieces = [self._rows[first - self._top :]]
        bottom = self._top + len(self._rows)
        while bottom < last:
            band = next(self._bands)
            pieces.append(band[max(0, first - bottom) :])
            bottom += len(band)
        self._rows = np.concatenate(pieces) if len(pieces) > 1 else pieces[0]
        self._top = first
        return self._rows[: last - first]


def bands(height: int, size: int = _ROWS) -> Iterator[slice]:
    """Split the rows of an image into slices of at most `size` rows."""
    return (slice(top, min(top + size, height)) for top in range(0, height, size))


def map_stripes(function: Callable[[slice], T], height: int, size: int) -> Iterator[T]:
    """Yield `function` of each slice of `size` rows, in order, computed in several threads."""
    stripes = [slice(top, min(top + size, height)) for top in range(0, height, size)]
    with ThreadPoolExecutor(min(len(stripes), os.cpu_count() or 1, _THREADS)) as threads:
        yield from threads.map(function, stripes)


def to_uint8(samples: np.ndarray) -> np.ndarray:
    """Convert uint16 samples to uint8, rounded to nearest (65535 becomes 255). uint8 is returned as is."""
    if samples.dtype == np.uint8:
        return samples
    # Exact: no quotient is nearer to a half than 1 / 514, and an error in float32 is far smaller
    return cv2.convertScaleAbs(samples, alpha=1 / 257).reshape(samples.shape)


def to_uint16(samples: np.ndarray) -> np.ndarray:
    """Convert uint8 samples to uint16 (255 becomes 65535). uint16 is returned as is."""
    return samples if samples.dtype == np.uint16 else samples * np.uint16(257)


def luma(pixels: np.ndarray) -> np.ndarray:
    """Convert (H, W, 3) uint8 or uint16 RGB to (H, W) luma, rounded (ITU-R BT.601 weights)."""
    out = np.empty(pixels.shape[:2], pixels.dtype)
    for rows in bands(len(out)):
        red, green, blue = np.moveaxis(pixels[rows].astype(np.uint32), 2, 0)
        out[rows] = (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16
    return out


def lookup(samples: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Return table[samples], in the table's dtype."""
    out = np.empty(samples.shape, table.dtype)
    for rows in bands(len(out)):
        out[rows] = table[samples[rows]]
    return out


def resize(plane: np.ndarray | RowReader, width: int, height: int) -> np.ndarray:
    """Resize (H, W, C) uint8 or uint16: antialiased Lanczos with three lobes, rounded once."""
    if plane.shape[:2] == (height, width):
        return plane if isinstance(plane, np.ndarray) else plane.all()
    out = np.empty((height, width, plane.shape[2]), plane.dtype)
    for rows in resampled_bands(plane, height):
        out[rows] = round_to(resample_rows(plane, rows, width, height), plane.dtype)
    return out


def resampled_bands(plane: np.ndarray | RowReader, height: int) -> Iterator[slice]:
    """Split the rows of an image resized to `height` into slices that need few rows of `plane`."""
    return bands(height, max(1, round(_ROWS / max(1, len(plane) / height))))


def resample_rows(plane: np.ndarray | RowReader, rows: slice, width: int, height: int) -> np.ndarray:
    """Return some rows of (H, W, C) resized to width x height, as float32, neither rounded nor clipped."""
    if plane.shape[:2] == (height, width):
        return plane[rows].astype(np.float32)
    step = len(plane) / height
    reach = _LOBES * max(step, 1) + 1
    first, last = max(0, math.floor(rows.start * step - reach)), math.ceil(rows.stop * step + reach)
    source = plane[first:last]
    box = (0, rows.start * step - first, plane.shape[1], min(rows.stop * step - first, len(source)))
    size = (width, rows.stop - rows.start)
    channels = [Image.fromarray(channel) for channel in np.moveaxis(source.astype(np.float32), 2, 0)]
    return np.dstack([np.asarray(channel.resize(size, _LANCZOS, box)) for channel in channels])


def blend_enlarged(small: np.ndarray, large: np.ndarray, share: float) -> np.ndarray:
    """Blend (H, W, 3) `large` with `small` enlarged to its size by bicubic interpolation.

    share  of `large`, 0 to 1; at 0 the result is cv2.resize(small, INTER_CUBIC)
    """
    out = cv2.resize(small, large.shape[1::-1], interpolation=cv2.INTER_CUBIC)
    return cv2.addWeighted(large, share, out, 1 - share, 0, dst=out)


def round_to(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Round floats to an integer dtype, clipped to its range. Overwrites `values`."""
    np.clip(values, 0, np.iinfo(dtype).max, out=values)
    return np.rint(values, out=values).astype(dtype)


def shrunk(image: np.ndarray, side: int) -> np.ndarray:
    """Return an image (H, W) or (H, W, C), averaged to at most `side` pixels a side."""
    height, width = image.shape[:2]
    scale = min(1.0, side / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)
