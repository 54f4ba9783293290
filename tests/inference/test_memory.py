"""Memory as allocated and as estimated; bench.growth and bench.tiles measure what a process takes."""

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


def restored(height: int, width: int, form: str, channels: int, depth: int) -> tuple[int, int]:
    """Bytes of the result's samples, and of its file."""
    ramp = (np.add.outer(np.arange(height), np.arange(width)) % 2**depth).astype(f"uint{depth}")
    samples = np.repeat(ramp[..., None], 3, axis=2)
    before = Photo(samples, ramp if channels == 4 else None, Meta("png", depth=depth))
    after = upscale.upscale(before, Nearest(), outscale=4, tile=256)
    file = encode.encode(after, form, quality=90)
    return after.pixels.nbytes + (0 if after.alpha is None else after.alpha.nbytes), len(file.data)


@pytest.mark.parametrize(
    ("form", "channels", "depth"),
    [("png", 3, 8), ("png", 4, 8), ("png", 3, 16), ("jpeg", 3, 8), ("tiff", 3, 8)],
)
def test_a_photo_takes_little_more_than_its_result(form, channels, depth, monkeypatch):
    """Bytes that numpy and Python allocate: 1 is the result; transparency has a second picture for a time."""
    monkeypatch.setattr(resample.os, "cpu_count", lambda: 2)  # each thread holds a few stripes
    restored(300, 300, form, channels, depth)  # imports
    tracemalloc.start()
    try:
        result, file = restored(1000, 1000, form, channels, depth)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert 1 <= (peak - file) / result < 1.8


@pytest.mark.parametrize("backend", [name for name in backends.NAMES if name.startswith("cpu")])
def test_a_tile_is_chosen_by_what_its_backend_takes(backend, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(backends, "has_bfloat16_kernels", lambda: True)
    save_network(tmp_path / "custom/tiny.pth", seed=1)
    shape = architectures.detect(architectures.read_state(tmp_path / "custom/tiny.pth"), "tiny")
    model = find("custom/tiny", tmp_path)
    run = engine.load(model, tmp_path, device=backend, half=None, lock=threading.Lock())
    assert run.bytes == round(shape.bytes * backends.MEMORY_FACTOR.get(backend, 1))
    free = 2 * run.bytes * (96 + 2 * run.pad) ** 2
    monkeypatch.setattr(run, "_free_memory", lambda: free)
    assert run.best_tile() == 96
    monkeypatch.setattr(run, "_free_memory", lambda: free - 1)
    assert run.best_tile() == 64
