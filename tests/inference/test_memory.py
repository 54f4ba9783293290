"""Allocated and estimated memory; bench.growth measures that of a process."""

import tracemalloc

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


def restore(height: int, width: int, image_format: str, channels: int, depth: int) -> tuple[int, int]:
    """Bytes of the result's samples and of its file."""
    ramp = (np.add.outer(np.arange(height), np.arange(width)) % 2**depth).astype(f"uint{depth}")
    samples = np.repeat(ramp[..., None], 3, axis=2)
    photo = Photo(samples, ramp if channels == 4 else None, Meta("png", depth=depth))
    result = upscale.upscale(photo, Nearest(), outscale=4, tile=256)
    file = encode.encode(result, image_format, quality=90)
    return result.pixels.nbytes + (0 if result.alpha is None else result.alpha.nbytes), len(file.data)


@pytest.mark.parametrize(
    ("image_format", "channels", "depth"),
    [("png", 3, 8), ("png", 4, 8), ("png", 3, 16), ("jpeg", 3, 8), ("tiff", 3, 8)],
)
def test_peak_memory_is_little_more_than_the_result(image_format, channels, depth, monkeypatch):
    """As a multiple of the result; transparency needs a second image for a time."""
    monkeypatch.setattr(resample.os, "cpu_count", lambda: 2)  # each thread holds a few rows
    restore(300, 300, image_format, channels, depth)  # import everything first
    tracemalloc.start()
    try:
        result, file = restore(1000, 1000, image_format, channels, depth)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert 1 <= (peak - file) / result < 1.8


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
