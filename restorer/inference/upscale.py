"""Upscale a Photo: network passes, transparency, and the final resize."""

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ..images import low_frequencies
from ..images.photo import Photo
from ..images.resample import (
    RowReader,
    bands,
    luma,
    resample_rows,
    resampled_bands,
    resize,
    round_to,
    to_uint8,
    to_uint16,
)
from ..progress import PassProgress, Progress, Stats

if TYPE_CHECKING:
    from .engine import Engine


def network_passes(outscale: float, scale: int) -> int:
    """Return how many times to apply a network that enlarges `scale` times, at least once.

    Each pass costs scale squared times the one before, so another pass runs only if at least two thirds
    of its enlargement are used. Lanczos does the rest.
    """
    passes, rest = 1, outscale / scale
    while scale > 1 and rest > 1 and rest >= scale / 1.5:
        passes, rest = passes + 1, rest / scale
    return passes


def output_size(width: int, height: int, outscale: float) -> tuple[int, int]:
    """Return the width and height of the result, each rounded half up and at least 1."""
    return max(1, math.floor(width * outscale + 0.5)), max(1, math.floor(height * outscale + 0.5))


def network_pixels(photo: Photo, engine: "Engine", outscale: float) -> int:
    """Return how many pixels networks read to enlarge a photo, in all passes and for its alpha."""
    return _planes(photo) * sum(math.prod(size) for size in _pass_sizes(photo, engine, outscale))


def tiles_needed(photo: Photo, engine: "Engine", *, outscale: float, tile: int) -> int:
    """Return the number of tiles to enlarge a photo, which progress counts."""
    return _planes(photo) * sum(
        engine.count_tiles(*size, tile) for size in _pass_sizes(photo, engine, outscale)
    )


def _planes(photo: Photo) -> int:
    return 1 if photo.alpha is None or is_opaque(photo.alpha) else 2


def _pass_sizes(photo: Photo, engine: "Engine", outscale: float) -> list[tuple[int, int]]:
    """Return the height and width that each pass reads, multiples of `align`."""
    sizes = []
    for number in range(network_passes(outscale, engine.scale)):
        sides = (side * engine.scale**number for side in (photo.height, photo.width))
        height, width = (-(-side // engine.align) * engine.align for side in sides)
        sizes.append((height, width))
    return sizes


def upscale(
    photo: Photo,
    engine: "Engine",
    *,
    outscale: float,
    tile: int,
    progress: Progress | None = None,
    stats: Stats | None = None,
) -> Photo:
    """Enlarge a Photo `outscale` times, colour and alpha, in tiles of `tile` pixels a side.

    An opaque alpha is not run through the network; any other is run as a separate grey image. The colour of
    fully transparent pixels never shows: the network does not see it, and colour is premultiplied by alpha
    for the resize. The network's output is resized as it arrives, so that it is never held as a whole.

    stats  see Engine.bands()
    """
    width, height = output_size(photo.width, photo.height, outscale)
    alpha = photo.alpha
    passes = network_passes(outscale, engine.scale)
    transparent = alpha is not None and not is_opaque(alpha)
    steps = PassProgress(progress, (1 + transparent) * passes)
    enlarge = partial(_enlarge, engine=engine, passes=passes, tile=tile, progress=steps, stats=stats)
    if alpha is not None and transparent:
        # Alpha first: only one of its channels stays in memory while the colour is enlarged
        coverage = enlarge(np.repeat(alpha[..., None], 3, axis=2))
        coverage = np.concatenate([luma(coverage[rows]) for rows in bands(len(coverage))])
        larger, alpha = _resize_with_alpha(enlarge(visible_pixels(photo)), coverage, width, height)
    else:
        larger = resize(enlarge(photo.pixels), width, height)
        if alpha is not None:
            alpha = np.full((height, width), np.iinfo(alpha.dtype).max, alpha.dtype)
    if photo.meta.grey:  # networks add a slight tint
        for rows in bands(height):
            larger[rows] = luma(larger[rows])[..., None]
    return replace(photo, pixels=larger, alpha=alpha)


def upscale_matched(photo: Photo, engine: "Engine", **options: Any) -> Photo:  # noqa: ANN401  of upscale()
    """Upscale a Photo and give the result the photo's low frequencies, see images/low_frequencies.py.

    In between, samples have 16 bits, so that they are rounded once and backends differ by one level at most.
    """
    alpha = None if photo.alpha is None else to_uint16(photo.alpha)
    before = replace(photo, pixels=to_uint16(photo.pixels), alpha=alpha)
    after = upscale(before, engine, **options)
    transparent = alpha is not None and not is_opaque(alpha)
    low_frequencies.match(
        after.pixels,
        before.pixels,
        larger_alpha=after.alpha if transparent else None,
        photo_alpha=alpha if transparent else None,
    )
    if photo.pixels.dtype == np.uint16:
        return after
    return replace(
        after, pixels=to_uint8(after.pixels), alpha=None if after.alpha is None else to_uint8(after.alpha)
    )


def _enlarge(
    plane: np.ndarray, engine: "Engine", passes: int, tile: int, progress: Progress, stats: Stats | None
) -> RowReader:
    height, width = (engine.scale * side for side in plane.shape[:2])
    padded = _pad_to_multiple(plane, engine.align)
    output = engine.bands(padded, tile=tile, progress=progress, stats=stats)
    reader = RowReader((rows[:, :width] for rows in output), (height, width, 3), plane.dtype)
    return reader if passes == 1 else _enlarge(reader.all(), engine, passes - 1, tile, progress, stats)


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


def visible_pixels(photo: Photo) -> np.ndarray:
    """Return the pixels (H, W, 3) with the nearby visible colours wherever alpha is 0.

    Hidden pixels may hold anything, for example a face that would be detected. A network would sharpen the
    edge between them, or black, and the visible ones.
    """
    pixels, alpha = photo.pixels, photo.alpha
    if alpha is None or is_opaque(alpha):
        return pixels
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
    colour: RowReader, alpha: np.ndarray, width: int, height: int
) -> tuple[np.ndarray, np.ndarray]:
    """Resize colour and alpha: premultiply, resize, divide.

    Neither is clipped in between, because Lanczos overshoots in both alike. Where alpha rounds to 0 the
    colour is black, as it is invisible.
    """
    white = int(np.iinfo(alpha.dtype).max)
    out = np.empty((height, width, 3), alpha.dtype)
    if alpha.shape == (height, width):
        for rows in bands(height):
            out[rows] = np.where(alpha[rows, :, None] > 0, colour[rows], 0)
        return out, alpha
    scale = np.float32(65535 / white / white)

    def premultiplied() -> Iterator[np.ndarray]:
        for rows in bands(len(colour)):
            yield np.rint(colour[rows] * (alpha[rows, :, None] * scale)).astype(np.uint16)

    product = RowReader(premultiplied(), colour.shape, np.dtype(np.uint16))
    coverage = np.empty((height, width), alpha.dtype)
    for rows in resampled_bands(product, height):
        share = resample_rows(alpha[..., None], rows, width, height) / np.float32(white)
        values = resample_rows(product, rows, width, height) * np.float32(white / 65535)
        visible = share * white >= 0.5
        np.divide(values, share, out=values, where=visible)
        out[rows] = np.where(visible, round_to(values, alpha.dtype), 0)
        coverage[rows] = round_to(share[..., 0] * white, alpha.dtype)
    return out, coverage
