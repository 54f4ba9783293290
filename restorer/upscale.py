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
    done = [_enlarge(plane, engine, count, tile, follow) for plane in planes]
    if len(done) == 2:
        larger, alpha = _merged(done[0], luma(done[1]), width, height)
    else:
        larger = _resize(done[0], width, height)
        if alpha is not None:
            alpha = np.full((height, width), np.iinfo(alpha.dtype).max, alpha.dtype)
    if photo.meta.grey:  # a network leaves a trace of colour
        larger = np.repeat(luma(larger)[..., None], 3, axis=2)
    return replace(photo, pixels=larger, alpha=alpha)


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


def _merged(
    premultiplied: np.ndarray, alpha: np.ndarray, width: int, height: int
) -> tuple[np.ndarray, np.ndarray]:
    """Colour and alpha, resized and in alpha's dtype, from colour times alpha in uint16.

    Both are divided before either is clipped: where Lanczos overshoots, it overshoots in both alike.
    Where alpha rounds to 0 the colour is black: nothing is known of it.
    """
    top = int(np.iinfo(alpha.dtype).max)
    share = _resampled(alpha, width, height) / np.float32(top)
    colour = np.zeros((height, width, 3), alpha.dtype)
    seen = share * top >= 0.5
    for channel in range(3):
        times = _resampled(premultiplied[..., channel], width, height)
        times *= np.float32(top / 65535)
        np.divide(times, share, out=times, where=seen)
        colour[..., channel] = np.where(seen, _rounded(times, alpha.dtype), 0)
    return colour, _rounded(share * top, alpha.dtype)


def _resize(plane: np.ndarray, width: int, height: int) -> np.ndarray:
    """Lanczos with three lobes, antialiased, rounded. (H, W, 3) uint8 or uint16."""
    if plane.shape[:2] == (height, width):
        return plane
    if plane.dtype == np.uint8:
        return np.asarray(Image.fromarray(plane).resize((width, height), _LANCZOS))
    channels = (_resampled(plane[..., channel], width, height) for channel in range(plane.shape[2]))
    return np.dstack([_rounded(channel, plane.dtype) for channel in channels])


def _resampled(channel: np.ndarray, width: int, height: int) -> np.ndarray:
    """One channel (H, W) resized in float32, neither rounded nor clipped."""
    floats = Image.fromarray(channel.astype(np.float32))
    return np.array(floats.resize((width, height), _LANCZOS))


def _rounded(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    return np.rint(np.clip(values, 0, np.iinfo(dtype).max)).astype(dtype)


def _bands(array: np.ndarray) -> Iterator[slice]:
    return (slice(top, top + _ROWS) for top in range(0, len(array), _ROWS))
