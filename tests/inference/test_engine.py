from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from restorer.errors import InvalidOutput, OutOfMemory
from restorer.inference import engine
from restorer.models import architectures, loader, registry, sources
from tests.reference import photos

CPU = torch.device("cpu")


class Nearest(nn.Module):
    """Doubles every pixel; has one weight for half() and to() to convert."""

    def __init__(self, gain=1.0):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain))

    def forward(self, x):
        return nn.functional.interpolate(x * self.gain, scale_factor=2, mode="nearest")


def doubled(tile):
    return tile.repeat(2, axis=0).repeat(2, axis=1)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_identity_network_preserves_every_level(dtype):
    levels = np.arange(np.iinfo(dtype).max + 1, dtype=dtype).reshape(-1, 16, 1).repeat(3, axis=2)
    out = engine.Engine(Nearest(), scale=2, device=CPU)(levels)
    np.testing.assert_array_equal(out, doubled(levels))
    assert out.dtype == dtype


def test_channel_order_rounding_and_clamping():
    tile = np.array([[[10, 100, 200]]], np.uint8)
    out = engine.Engine(Nearest(1.3), scale=2, device=CPU)(tile)
    np.testing.assert_array_equal(out[0, 0], [13, 130, 255])
    halves = engine.Engine(Nearest(0.75), scale=2, device=CPU)(np.array([[[1, 3, 5]]], np.uint8))
    np.testing.assert_array_equal(halves[0, 0], np.rint([0.75, 2.25, 3.75]))


@pytest.fixture(scope="module")
def video() -> nn.Module:
    """realesr-animevideov3, the fastest installed network."""
    name = "realesr-animevideov3"
    state = loader.load(sources.installed(registry.find(name, Path("absent")))).state
    return architectures.build(architectures.detect(state, name), state, name)


def test_results_are_reproducible(video):
    run = engine.Engine(video, scale=4, device=CPU)
    for tile in photos().values():
        assert run(tile).tobytes() == run(tile).tobytes()


def test_float16_is_close_to_float32(video):
    """No tile overflows float16 with real weights."""
    tile = photos()["chelsea"][:32, :32]
    full, half = (engine.Engine(video, scale=4, device=CPU, half=half) for half in (False, True))
    half.network = lambda _: pytest.fail("recomputed in float32")
    assert 50 < cv2.PSNR(half(tile), full(tile)) < 100, "close, but not float32"


class Overflows(nn.Module):
    """Fits in float32; an intermediate value exceeds float16's 65504."""

    def __init__(self):
        super().__init__()
        self.big = nn.Parameter(torch.tensor(60000.0))
        self.dtypes = []

    def forward(self, x):
        self.dtypes.append(x.dtype)
        return (x + 1) * self.big / self.big - 1


def test_tile_that_overflows_float16_is_recomputed_in_float32(rng):
    tile = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    run = engine.Engine(Overflows(), scale=1, device=CPU, half=True)
    np.testing.assert_array_equal(run(tile), tile)
    assert run.half_network.dtypes == [torch.float16]
    assert run.network.dtypes == [torch.float32]
    dark = np.zeros((8, 8, 3), np.uint8)
    run(dark)
    assert run.network.dtypes == [torch.float32], "a tile that fits is not recomputed"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinity_raise_invalid_output(value):
    class Bad(Nearest):
        def forward(self, x):
            out = super().forward(x)
            out[0, 1, 2, 3] = value
            return out

    for half in (False, True):
        with pytest.raises(InvalidOutput, match="NaN"):
            engine.Engine(Bad(), scale=2, device=CPU, half=half)(np.zeros((4, 4, 3), np.uint8))


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("MPS backend out of memory (MPS allocated: 5.00 GB)"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError(
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"
        ),
    ],
)
def test_every_out_of_memory_error_is_converted(error):
    class Hungry(Nearest):
        def forward(self, x):
            raise error

    with pytest.raises(OutOfMemory):
        engine.Engine(Hungry(), scale=2, device=CPU)(np.zeros((4, 4, 3), np.uint8))


def test_other_errors_of_a_network_propagate():
    class Broken(Nearest):
        def forward(self, x):
            raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="shape mismatch"):
        engine.Engine(Broken(), scale=2, device=CPU)(np.zeros((4, 4, 3), np.uint8))


def test_impossible_allocation_raises_out_of_memory():
    class Huge(Nearest):
        def forward(self, x):
            return torch.empty(2**50) + x.sum()

    with pytest.raises(OutOfMemory):
        engine.Engine(Huge(), scale=2, device=CPU)(np.zeros((4, 4, 3), np.uint8))


def test_tile_size_follows_the_free_memory(monkeypatch):
    run = engine.Engine(Nearest(), scale=2, device=CPU, pad=10, bytes=1000)
    for free, expected in ((10**12, 256), (2 * 1000 * 120**2, 96), (2 * 1000 * 121**2, 96), (0, 32)):
        monkeypatch.setattr(run, "_free_memory", lambda free=free: free)
        assert run.best_tile() == expected
    monkeypatch.setattr(run, "_free_memory", lambda: 10**12)
    run.name = "cpu:openvino"
    assert run.best_tile() == 512
