"""Upscale a Photo: network passes, transparency, and the final resize."""

import math
from dataclasses import replace
from typing import Protocol

import numpy as np

from ..images.photo import Photo
from ..images.resample import bands, luma, resample_rows, resize, round_to
from ..progress import Progress
from .tiling import run, tiles


class TileEngine(Protocol):
    """What upscale() needs of a network; engine.Engine is one."""

    scale: int
    align: int
    pad: int

    def __call__(self, tile: np.ndarray) -> np.ndarray: ...


def network_passes(outscale: float, scale: int) -> int:
    """Return how many times to apply a network that enlarges `scale` times, at least once.

    Each pass costs scale squared times the one before, so a further one is made only if at least two thirds
    of its enlargement are used. Lanczos does the rest.
    """
    passes, rest = 1, outscale / scale
    while scale > 1 and rest > 1 and rest >= scale / 1.5:
        passes, rest = passes + 1, rest / scale
    return passes


def output_size(width: int, height: int, outscale: float) -> tuple[int, int]:
    """Return the width and height of the result, each rounded half up and at least 1."""
    return max(1, math.floor(width * outscale + 0.5)), max(1, math.floor(height * outscale + 0.5))


def tiles_needed(
    width: int, height: int, engine: TileEngine, *, outscale: float, tile: int
) -> tuple[int, int]:
    """Return the number of tiles for a photo's colour, and of the input pixels in them, context included."""
    count = pixels = 0
    for _ in range(network_passes(outscale, engine.scale)):
        windows = tiles(
            _round_up(height, engine.align),
            _round_up(width, engine.align),
            tile=_round_up(tile, engine.align),
            pad=_round_up(engine.pad, engine.align),
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

    An opaque alpha is not run through the network; any other is run as a separate grey image. The colour of
    fully transparent pixels never shows: the network does not see it, and colour is premultiplied by alpha
    for the resize.
    """
    width, height = output_size(photo.width, photo.height, outscale)
    pixels, alpha = photo.pixels, photo.alpha
    passes = network_passes(outscale, engine.scale)
    if alpha is not None and not is_opaque(alpha):
        total = _TotalProgress(progress, 2 * passes)
        # Alpha first: only one of its channels stays in memory while the colour is enlarged
        coverage = luma(_enlarge(np.repeat(alpha[..., None], 3, axis=2), engine, passes, tile, total))
        colour = _enlarge(fill_transparent(pixels, alpha), engine, passes, tile, total)
        larger, alpha = _resize_with_alpha(colour, coverage, width, height)
    else:
        total = _TotalProgress(progress, passes)
        larger = resize(_enlarge(pixels, engine, passes, tile, total), width, height)
        if alpha is not None:
            alpha = np.full((height, width), np.iinfo(alpha.dtype).max, alpha.dtype)
    if photo.meta.grey:  # networks add a slight tint
        for rows in bands(height):
            larger[rows] = luma(larger[rows])[..., None]
    return replace(photo, pixels=larger, alpha=alpha)


class _TotalProgress:
    """Progress over several passes; those to come are assumed to have as many tiles as the current one."""

    def __init__(self, progress: Progress | None, passes: int) -> None:
        self._progress, self._passes_left, self._tiles_done = progress, passes, 0

    def __call__(self, done: int, total: int) -> None:
        if self._progress:
            self._progress(self._tiles_done + done, self._tiles_done + total * self._passes_left)
        if done == total:
            self._tiles_done, self._passes_left = self._tiles_done + total, self._passes_left - 1


def _enlarge(plane: np.ndarray, engine: TileEngine, passes: int, tile: int, progress: Progress) -> np.ndarray:
    for _ in range(passes):
        height, width = plane.shape[:2]
        padded = _pad_to_multiple(plane, engine.align)
        plane = run(
            padded,
            engine,
            scale=engine.scale,
            tile=_round_up(tile, engine.align),
            pad=_round_up(engine.pad, engine.align),
            align=engine.align,
            progress=progress,
        )[: height * engine.scale, : width * engine.scale]
    return plane


def _round_up(length: int, align: int) -> int:
    return -(-length // align) * align


def _pad_to_multiple(plane: np.ndarray, align: int) -> np.ndarray:
    """Reflect the plane at its bottom and right edges up to sides that are multiples of `align`."""
    height, width = plane.shape[:2]
    below, right = -height % align, -width % align
    if not below and not right:
        return plane
    mode = "reflect" if min(height, width) > max(below, right) else "edge"
    return np.pad(plane, ((0, below), (0, right), (0, 0)), mode=mode)


def is_opaque(alpha: np.ndarray) -> bool:
    return int(alpha.min()) == np.iinfo(alpha.dtype).max


def fill_transparent(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Return (H, W, 3) pixels with the nearby visible colours wherever (H, W) alpha is 0.

    Hidden pixels may hold anything. A network would sharpen the edge between them, or black, and the visible
    ones.
    """
    weight = alpha[..., None].astype(np.float32)
    fill = _push_pull(pixels * weight, weight)
    return np.where(alpha[..., None] > 0, pixels, round_to(fill, pixels.dtype))


def _push_pull(weighted: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Return weighted / weight, averaging the surroundings where weight is 0 (Gortler et al., 1996)."""
    height, width = weight.shape[:2]
    known = weight > 0
    if known.all() or height == width == 1:
        return weighted / np.where(known, weight, 1)
    coarse = _push_pull(_sum_2x2(weighted), _sum_2x2(weight))
    coarse = coarse.repeat(2, axis=0).repeat(2, axis=1)[:height, :width]
    return np.where(known, weighted / np.where(known, weight, 1), coarse)


def _sum_2x2(plane: np.ndarray) -> np.ndarray:
    """Sum 2 x 2 pixels; beyond the edge is 0."""
    height, width = plane.shape[:2]
    even = np.pad(plane, ((0, height % 2), (0, width % 2), (0, 0)))
    return even[::2, ::2] + even[1::2, ::2] + even[::2, 1::2] + even[1::2, 1::2]


def _resize_with_alpha(
    colour: np.ndarray, alpha: np.ndarray, width: int, height: int
) -> tuple[np.ndarray, np.ndarray]:
    """Resize colour and alpha: premultiply, resize, divide.

    Neither is clipped in between, because Lanczos overshoots in both alike. Where alpha rounds to 0 the
    colour is black, as it is invisible.
    """
    white = int(np.iinfo(alpha.dtype).max)
    if alpha.shape == (height, width):
        for rows in bands(height):
            colour[rows][alpha[rows] == 0] = 0
        return colour, alpha
    product = np.empty(colour.shape, np.uint16)
    for rows in bands(len(product)):
        product[rows] = np.rint(colour[rows] * (alpha[rows, :, None] * np.float32(65535 / white / white)))
    out = np.empty((height, width, 3), alpha.dtype)
    coverage = np.empty((height, width), alpha.dtype)
    for rows in bands(height):
        share = resample_rows(alpha[..., None], rows, width, height) / np.float32(white)
        premultiplied = resample_rows(product, rows, width, height) * np.float32(white / 65535)
        visible = share * white >= 0.5
        np.divide(premultiplied, share, out=premultiplied, where=visible)
        out[rows] = np.where(visible, round_to(premultiplied, alpha.dtype), 0)
        coverage[rows] = round_to(share[..., 0] * white, alpha.dtype)
    return out, coverage
