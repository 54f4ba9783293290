"""Allocated and estimated memory; bench.growth and bench.tiles measure that of a process."""

import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from restorer.images import encode, resample
from restorer.images.photo import Meta, Photo
from restorer.inference import backends, engine, upscale
from restorer.models import architectures
from restorer.models.registry import find
from tests.conftest import save_network


class Nearest:
    scale, align, pad = 4, 1, 8

    def __call__(self, tile):
        return tile.repeat(4, axis=0).repeat(4, axis=1)


def restore(height: int, width: int, form: str, channels: int, depth: int) -> tuple[int, int]:
    """Bytes of the result's samples and of its file."""
    ramp = (np.add.outer(np.arange(height), np.arange(width)) % 2**depth).astype(f"uint{depth}")
    samples = np.repeat(ramp[..., None], 3, axis=2)
    photo = Photo(samples, ramp if channels == 4 else None, Meta("png", depth=depth))
    result = upscale.upscale(photo, Nearest(), outscale=4, tile=256)
    file = encode.encode(result, form, quality=90)
    return result.pixels.nbytes + (0 if result.alpha is None else result.alpha.nbytes), len(file.data)


@pytest.mark.parametrize(
    ("form", "channels", "depth"),
    [("png", 3, 8), ("png", 4, 8), ("png", 3, 16), ("jpeg", 3, 8), ("tiff", 3, 8)],
)
def test_peak_memory_is_little_more_than_the_result(form, channels, depth, monkeypatch):
    """As a multiple of the result; transparency needs a second image for a time."""
    monkeypatch.setattr(resample.os, "cpu_count", lambda: 2)  # each thread holds a few rows
    restore(300, 300, form, channels, depth)  # import everything first
    tracemalloc.start()
    try:
        result, file = restore(1000, 1000, form, channels, depth)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert 1 <= (peak - file) / result < 1.8


@pytest.mark.parametrize("backend", [name for name in backends.NAMES if name.startswith("cpu")])
def test_tile_size_follows_the_memory_of_the_backend(backend, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(backends, "has_bfloat16_kernels", lambda: True)
    save_network(tmp_path / "custom/tiny.pth", seed=1)
    spec = architectures.detect(architectures.read_state(tmp_path / "custom/tiny.pth"), "tiny")
    model = find("custom/tiny", tmp_path)
    run = engine.load(model, tmp_path, device=backend, half=None, lock=threading.Lock())
    assert run.bytes == round(spec.bytes * backends.MEMORY_FACTOR.get(backend, 1))
    free = 2 * run.bytes * (96 + 2 * run.pad) ** 2
    monkeypatch.setattr(run, "_free_memory", lambda: free)
    assert run.best_tile() == 96
    monkeypatch.setattr(run, "_free_memory", lambda: free - 1)
    assert run.best_tile() == 64
