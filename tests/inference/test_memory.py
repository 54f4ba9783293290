"""Allocated and estimated memory; bench.growth measures that of a process."""

import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest

from restorer.images import encode, resample
from restorer.images.photo import Meta, Photo
from restorer.inference import upscale


class Nearest:
    scale, align = 4, 1

    def bands(self, image, *, tile, progress=None, stats=None):
        for top in range(0, len(image), tile):
            yield image[top : top + tile].repeat(4, axis=0).repeat(4, axis=1)


def restore(
    enlarge: Callable, height: int, width: int, image_format: str, channels: int, depth: int
) -> tuple[int, int]:
    """Bytes of the result's samples and of its file."""
    ramp = (np.add.outer(np.arange(height), np.arange(width)) % 2**depth).astype(f"uint{depth}")
    samples = np.repeat(ramp[..., None], 3, axis=2)
    photo = Photo(samples, ramp if channels == 4 else None, Meta("png", depth=depth))
    result = enlarge(photo, Nearest(), outscale=4, tile=256)
    file = encode.encode(result, image_format, quality=90)
    return result.pixels.nbytes + (0 if result.alpha is None else result.alpha.nbytes), len(file.data)


@pytest.mark.parametrize(
    ("enlarge", "image_format", "channels", "depth", "limit"),
    [
        (upscale.upscale, "png", 3, 8, 1.8),
        (upscale.upscale, "png", 4, 8, 1.8),
        (upscale.upscale, "png", 3, 16, 1.8),
        (upscale.upscale, "jpeg", 3, 8, 1.8),
        (upscale.upscale, "tiff", 3, 8, 1.8),
        (upscale.upscale_matched, "png", 3, 16, 1.8),
        (upscale.upscale_matched, "png", 3, 8, 3.8),  # 16 bits until its low frequencies are matched
    ],
)
def test_peak_memory_is_little_more_than_the_result(
    enlarge, image_format, channels, depth, limit, monkeypatch
):
    """As a multiple of the result; transparency needs a second image for a time."""
    monkeypatch.setattr(resample.os, "cpu_count", lambda: 2)  # each thread holds a few rows
    restore(enlarge, 300, 300, image_format, channels, depth)  # import everything first
    tracemalloc.start()
    try:
        result, file = restore(enlarge, 1000, 1000, image_format, channels, depth)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert 1 <= (peak - file) / result < limit


@pytest.mark.slow
def test_network_output_is_never_held_as_a_whole(monkeypatch):
    """At 1x the 4x output is 16 times the result."""
    pixels = np.zeros((2000, 2000, 3), np.uint8)
    photo = Photo(pixels, None, Meta("png"))
    upscale.upscale(photo, Nearest(), outscale=1, tile=64)
    tracemalloc.start()
    try:
        upscale.upscale(photo, Nearest(), outscale=1, tile=64)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 6 * pixels.nbytes
