"""The engine's asynchronous path for GPUs, emulated on the CPU."""

import contextlib
import threading

import numpy as np
import pytest
import torch
from torch import nn

from restorer.errors import InvalidOutput
from restorer.inference import engine, tiling
from restorer.inference.model_cache import LockedUpscaler

CPU = torch.device("cpu")


@pytest.fixture
def gpu(monkeypatch):
    """Emulate torch.cuda on the CPU: a copy takes place when it is waited for. Returns the pending copies."""
    pending = []

    class Stream:
        def __init__(self, device=None, priority=0):
            pass

        def wait_stream(self, stream):
            assert stream == "current"

    class Event:
        def __init__(self, *, blocking):
            pass

        def record(self, stream):
            assert isinstance(stream, Stream)

        def synchronize(self):
            while pending:
                pending.pop(0)()

    copy, to, empty = torch.Tensor.copy_, torch.Tensor.to, torch.empty

    def delayed_copy(self, source, non_blocking=False):
        if non_blocking:
            pending.append(torch.inference_mode()(lambda: copy(self, source)))
            return self
        return copy(self, source)

    monkeypatch.setattr(torch.Tensor, "copy_", delayed_copy)
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *a, non_blocking=False, **k: to(self, *a, **k))
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self.clone())
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, stream: None)
    monkeypatch.setattr(torch, "empty", lambda *a, pin_memory=False, **k: empty(*a, **k).fill_(77))
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "current")
    return pending


def on_gpu(network, **options):
    """An engine that runs asynchronously on the CPU."""
    result = engine.Engine(network, scale=2, device=CPU, **options)
    result.asynchronous = True
    return result


class Upscaler(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.last = nn.Conv2d(3, 12, 3, padding=1)
        self.batches = []

    def forward(self, x):
        self.batches.append((tuple(x.shape), x.dtype))
        out = nn.functional.pixel_shuffle(self.last(x), 2)
        return nn.functional.interpolate(x, scale_factor=2) + out / 50


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("half", [False, True])
def test_asynchronous_and_synchronous_results_agree(rng, gpu, dtype, half):
    image = rng.integers(0, np.iinfo(dtype).max, (14, 470, 3), dtype=dtype)
    synchronous = engine.Engine(Upscaler(), scale=2, device=CPU, half=half)
    expected = tiling.run(image, synchronous, scale=2, tile=32, pad=1)
    run = on_gpu(Upscaler(), half=half)
    for _ in range(3):
        out = tiling.run(image, run, scale=2, tile=32, pad=1)
        error = np.abs(out.astype(int) - expected).max()
        assert error <= (np.iinfo(dtype).max // 255 if half else 0)  # float16 batches may round differently
    assert not gpu, "every copy was waited for"
    network = run.half_network if half else run.network
    windows = tiling.tiles(14, 470, tile=32, pad=1)
    assert len(windows) % 2, "the last batch is smaller"
    assert network.batches[0] == ((2, 3, *windows[0].window.shape), torch.float16 if half else torch.float32)


def test_only_the_tile_that_overflows_is_recomputed(rng, gpu):
    class Overflows(Upscaler):
        def forward(self, x):
            out = super().forward(x)
            if x.dtype == torch.float16:
                out[x.mean((1, 2, 3)) > 0.5] *= torch.inf
            return out

    run = on_gpu(Overflows(), half=True)
    tiles = rng.integers(0, 100, (3, 20, 20, 3), dtype=np.uint8)
    tiles[1] += 150
    full, reduced = (engine.Engine(Upscaler(), scale=2, device=CPU, half=half) for half in (False, True))
    out = run.start(tiles)()
    np.testing.assert_array_equal(out[1], full(tiles[1]))
    for index in (0, 2):
        assert np.abs(out[index].astype(int) - reduced(tiles[index])).max() <= 1
    assert run.network.batches == [((1, 3, 20, 20), torch.float32)]


def test_nan_from_a_gpu_raises(gpu):
    class Bad(Upscaler):
        def forward(self, x):
            return super().forward(x) / 0

    for half in (False, True):
        wait = on_gpu(Bad(), half=half).start(np.zeros((2, 8, 8, 3), np.uint8))
        with pytest.raises(InvalidOutput, match="NaN"):
            wait()


def test_tf32_is_disabled_in_float32(gpu):
    calls = []

    class Recording(Upscaler):
        def forward(self, x):
            calls.append((x.dtype, torch.backends.cudnn.allow_tf32, torch.backends.cudnn.enabled))
            return super().forward(x)

    before = torch.backends.cudnn.allow_tf32
    on_gpu(Recording())(np.zeros((8, 8, 3), np.uint8))
    assert calls == [(torch.float32, False, True)]
    assert torch.backends.cudnn.allow_tf32 == before


def test_tile_is_recomputed_under_the_lock(gpu):
    lock = threading.Lock()
    calls = []

    class Overflows(Upscaler):
        def forward(self, x):
            calls.append((x.dtype, lock.locked()))
            return super().forward(x) * (torch.inf if x.dtype == torch.float16 else 1)

    run = LockedUpscaler(on_gpu(Overflows(), half=True, lock=lock), lock)
    run(np.full((8, 8, 3), 90, np.uint8))
    assert calls == [(torch.float16, True), (torch.float32, True)]
    assert not lock.locked()
