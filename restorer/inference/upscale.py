"""A Photo in, a larger Photo out: passes of a network, transparency, and the resize to the asked scale."""

import math
from dataclasses import replace
from typing import Protocol

import numpy as np

from ..images.photo import Photo
from ..images.resample import bands, luma, resample_rows, resize, round_to
from ..progress import Progress
from .tiling import run, tiles


class TileEngine(Protocol):
    """What upscale() asks of a network: engine.Engine is one."""

    scale: int
    align: int
    pad: int

    def __call__(self, tile: np.ndarray) -> np.ndarray: ...


def network_passes(outscale: float, scale: int) -> int:
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


def tiles_needed(
    width: int, height: int, engine: TileEngine, *, outscale: float, tile: int
) -> tuple[int, int]:
    """How many tiles the colour of a photo takes, and how many pixels the network sees in them."""
    count = pixels = 0
    for _ in range(network_passes(outscale, engine.scale)):
        windows = tiles(
            _multiple(height, engine.align),
            _multiple(width, engine.align),
            tile=_multiple(tile, engine.align),
            pad=_multiple(engine.pad, engine.align),
            align=engine.align,
        )
        count += len(windows)
        pixels += sum((box.bottom - box.top) * (box.right - box.left) for box, _ in windows)
        width, height = width * engine.scale, height * engine.scale
    return count, pixels


def upscale(
    photo: Photo, engine: TileEngine, *, outscale: float, tile: int, progress: Progress | None = None
) -> Photo:
    """Enlarge a Photo `outscale` times, colour and alpha, in tiles of `tile` input pixels a side.

    An opaque alpha is not run through the network. Otherwise it goes through as a picture of its own, and
    what lies hidden under transparent pixels shows nowhere: the network does not see it, and colour is
    multiplied by alpha while it is resized.
    """
    width, height = output_size(photo.width, photo.height, outscale)
    pixels, alpha = photo.pixels, photo.alpha
    count = network_passes(outscale, engine.scale)
    if alpha is not None and not is_opaque(alpha):
        follow = _Follow(progress, 2 * count)
        # First, for of its three channels only one is kept while the colours are made
        coverage = luma(_enlarge(np.repeat(alpha[..., None], 3, axis=2), engine, count, tile, follow))
        colour = _enlarge(fill_transparent(pixels, alpha), engine, count, tile, follow)
        larger, alpha = _merged(colour, coverage, width, height)
    else:
        larger = resize(_enlarge(pixels, engine, count, tile, _Follow(progress, count)), width, height)
        if alpha is not None:
            alpha = np.full((height, width), np.iinfo(alpha.dtype).max, alpha.dtype)
    if photo.meta.grey:  # a network leaves a trace of colour
        for rows in bands(height):
            larger[rows] = luma(larger[rows])[..., None]
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


def is_opaque(alpha: np.ndarray) -> bool:
    return int(alpha.min()) == np.iinfo(alpha.dtype).max


def fill_transparent(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """The pixels, with the visible colours around them where alpha is 0: what lies there may be anything.

    A network must not see it, nor black in its place: it would sharpen the edge between the two.
    """
    weight = alpha[..., None].astype(np.float32)
    colours = _push_pull(pixels * weight, weight)
    return np.where(alpha[..., None] > 0, pixels, round_to(colours, pixels.dtype))


def _push_pull(weighted: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """weighted / weight, and where the weight is 0 an average of what is near (Gortler et al., 1996)."""
    height, width = weight.shape[:2]
    known = weight > 0
    if known.all() or height == width == 1:
        return weighted / np.where(known, weight, 1)
    coarse = _push_pull(_halved(weighted), _halved(weight))
    coarse = coarse.repeat(2, axis=0).repeat(2, axis=1)[:height, :width]
    return np.where(known, weighted / np.where(known, weight, 1), coarse)


def _halved(plane: np.ndarray) -> np.ndarray:
    """Sums of two by two pixels; beyond the edge lies 0."""
    height, width = plane.shape[:2]
    even = np.pad(plane, ((0, height % 2), (0, width % 2), (0, 0)))
    return even[::2, ::2] + even[1::2, ::2] + even[::2, 1::2] + even[1::2, 1::2]


def _merged(colour: np.ndarray, alpha: np.ndarray, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """Colour and alpha at another size: multiplied before they are resized, and divided after.

    Neither is clipped in between: where Lanczos overshoots, it overshoots in both alike. Where alpha
    rounds to 0 the colour is black: nothing is seen of it.
    """
    top = int(np.iinfo(alpha.dtype).max)
    if alpha.shape == (height, width):
        for rows in bands(height):
            colour[rows][alpha[rows] == 0] = 0
        return colour, alpha
    product = np.empty(colour.shape, np.uint16)
    for rows in bands(len(product)):
        product[rows] = np.rint(colour[rows] * (alpha[rows, :, None] * np.float32(65535 / top / top)))
    out = np.empty((height, width, 3), alpha.dtype)
    coverage = np.empty((height, width), alpha.dtype)
    for rows in bands(height):
        share = resample_rows(alpha[..., None], rows, width, height) / np.float32(top)
        times = resample_rows(product, rows, width, height) * np.float32(top / 65535)
        seen = share * top >= 0.5
        np.divide(times, share, out=times, where=seen)
        out[rows] = np.where(seen, round_to(times, alpha.dtype), 0)
        coverage[rows] = round_to(share[..., 0] * top, alpha.dtype)
    return out, coverage
