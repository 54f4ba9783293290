"""A Photo in, a larger Photo out: passes of a network, transparency, and the resize to the asked scale."""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Protocol

import numpy as np
from PIL import Image

from .encode import luma
from .photo import Photo
from .tiling import Progress, run

_ROWS = 256  # arithmetic on whole pictures goes in bands of rows, to stay small in memory
_LANCZOS = Image.Resampling.LANCZOS


class TileEngine(Protocol):
    """What upscale() asks of a network: engine.Engine is one."""

    scale: int
    align: int
    pad: int

    def __call__(self, tile: np.ndarray) -> np.ndarray: ...


def passes(outscale: float, scale: int) -> int:
    """How often a network that multiplies by `scale` is applied for `outscale`.

    Once at least; again only where two thirds of what a further pass adds would be kept, for each
    costs scale squared times the one before. Lanczos does the rest.
    """
    count, rest = 1, outscale / scale
    while scale > 1 and rest > 1 and rest >= scale / 1.5:
        count, rest = count + 1, rest / scale
    return count


def output_size(width: int, height: int, outscale: float) -> tuple[int, int]:
    """Width and height of the result, each rounded half up and at least 1."""
    return max(1, math.floor(width * outscale + 0.5)), max(1, math.floor(height * outscale + 0.5))


def upscale(
    photo: Photo, engine: TileEngine, *, outscale: float, tile: int, progress: Progress | None = None
) -> Photo:
    """Enlarge a Photo `outscale` times, colour and alpha, in tiles of `tile` input pixels a side.

    An opaque alpha is not run through the network. Otherwise colour is multiplied by alpha (in 16 bit)
    before and divided by it after, so that what lies hidden under transparent pixels shows nowhere.
    """
    width, height = output_size(photo.width, photo.height, outscale)
    pixels, alpha = photo.pixels, photo.alpha
    planes = [pixels]
    if alpha is not None and not _opaque(alpha):
        planes = [_premultiplied(pixels, alpha), np.repeat(alpha[..., None], 3, axis=2)]
    count = passes(outscale, engine.scale)
    follow = _Follow(progress, len(planes) * count)
    done = [_resize(_enlarge(plane, engine, count, tile, follow), width, height) for plane in planes]
    if alpha is None:
        return replace(photo, pixels=done[0])
    if len(done) == 1:
        return replace(
            photo, pixels=done[0], alpha=np.full((height, width), np.iinfo(alpha.dtype).max, alpha.dtype)
        )
    coverage = luma(done[1])
    return replace(photo, pixels=_unpremultiplied(done[0], coverage), alpha=coverage)


class _Follow:
    """Tiles done over several runs of the network, of which only the one under way is known in full."""

    def __init__(self, progress: Progress | None, runs: int) -> None:
        self.progress, self.runs, self.before, self.run = progress, runs, 0, 0

    def __call__(self, done: int, total: int) -> None:
        if self.progress:
            self.progress(self.before + done, self.before + total * (self.runs - self.run))
        if done == total:
            self.before, self.run = self.before + total, self.run + 1


def _enlarge(plane: np.ndarray, engine: TileEngine, count: int, tile: int, follow: _Follow) -> np.ndarray:
    for _ in range(count):
        height, width = plane.shape[:2]
        padded = _to_multiple(plane, engine.align)
        plane = run(
            padded,
            engine,
            scale=engine.scale,
            tile=_multiple(tile, engine.align),
            pad=_multiple(engine.pad, engine.align),
            align=engine.align,
            progress=follow,
        )[: height * engine.scale, : width * engine.scale]
    return plane


def _multiple(length: int, align: int) -> int:
    return -(-length // align) * align


def _to_multiple(plane: np.ndarray, align: int) -> np.ndarray:
    """The plane, reflected at the bottom and right edges up to sides that are multiples of `align`."""
    height, width = plane.shape[:2]
    below, right = -height % align, -width % align
    if not below and not right:
        return plane
    mode = "reflect" if min(height, width) > max(below, right) else "edge"
    return np.pad(plane, ((0, below), (0, right), (0, 0)), mode=mode)


def _opaque(alpha: np.ndarray) -> bool:
    return int(alpha.min()) == np.iinfo(alpha.dtype).max


def _premultiplied(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Colour times alpha as uint16, (H, W, 3)."""
    top = int(np.iinfo(alpha.dtype).max)
    out = np.empty(pixels.shape, np.uint16)
    for rows in _bands(out):
        share = alpha[rows, :, None] / np.float32(top)
        out[rows] = np.rint(pixels[rows] * share * np.float32(65535 / top))
    return out


def _unpremultiplied(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """The inverse, in alpha's dtype. Where alpha is 0 the colour is black: nothing is known of it."""
    top = int(np.iinfo(alpha.dtype).max)
    out = np.empty(pixels.shape, alpha.dtype)
    for rows in _bands(out):
        share = alpha[rows, :, None] / np.float32(top)
        colour = np.divide(pixels[rows] * np.float32(top / 65535), share, where=share > 0, out=None)
        out[rows] = np.rint(np.where(share > 0, np.minimum(colour, top), 0))
    return out


def _resize(plane: np.ndarray, width: int, height: int) -> np.ndarray:
    """Lanczos with three lobes, antialiased, rounded. (H, W, 3) uint8 or uint16."""
    if plane.shape[:2] == (height, width):
        return plane
    if plane.dtype == np.uint8:
        return np.asarray(Image.fromarray(plane).resize((width, height), _LANCZOS))
    out = np.empty((height, width, plane.shape[2]), plane.dtype)
    for channel in range(plane.shape[2]):  # Pillow resizes deep samples one channel at a time, as float32
        floats = Image.fromarray(plane[..., channel].astype(np.float32))
        resized = np.asarray(floats.resize((width, height), _LANCZOS))
        out[..., channel] = np.rint(np.clip(resized, 0, np.iinfo(plane.dtype).max))
    return out


def _bands(array: np.ndarray) -> Iterator[slice]:
    return (slice(top, top + _ROWS) for top in range(0, len(array), _ROWS))
