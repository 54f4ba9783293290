"""CUDA graphs and the engine's way through a GPU, with a processor in the GPU's place.

What PyTorch's own objects are called with is held to their signatures; tests/test_gpu.py needs a GPU.
"""

import contextlib
import gc
import logging
import weakref
from unittest import mock

import numpy as np
import pytest
import torch
from torch import nn

from restorer import cuda_graphs, engine, tiling
from restorer.errors import InvalidOutput, OutOfMemory

CPU = torch.device("cpu")


class Recording:
    """Runs again into one buffer, as a CUDA graph does."""

    def __init__(self, network, example):
        self.network, self.given, self.out = network, example.clone(), network(example)

    def __call__(self, batch):
        self.given.copy_(batch)
        self.out.copy_(self.network(self.given))
        return self.out


class Recorder:
    def __init__(self, change=lambda recording: recording):
        self.shapes, self.alive, self.change = [], weakref.WeakSet(), change

    def __call__(self, network, example):
        self.shapes.append(tuple(example.shape))
        made = self.change(Recording(network, example))
        self.alive.add(made)
        return made


class Clocked:
    """A network that is launched at once or slowly, and done at the next synchronise()."""

    def __init__(self, monkeypatch, *, launching, computing):
        self.now, self.launching, self.computing, self.calls, self.waits = 0.0, launching, computing, 0, 0
        monkeypatch.setattr(cuda_graphs.time, "perf_counter", lambda: self.now)

    def __call__(self, batch):
        self.calls += 1
        self.now += self.launching
        return batch * 2

    def synchronise(self):
        self.waits += 1
        self.now += self.computing


def picture(value, side=4):
    return torch.full((1, 3, side, side), float(value))


def test_a_shape_that_comes_again_is_recorded_and_answers_follow_their_tiles(monkeypatch):
    network, record = Clocked(monkeypatch, launching=3, computing=1), Recorder()
    run = cuda_graphs.Graphs(network, record=record, synchronise=network.synchronise)
    for value in range(10):
        torch.testing.assert_close(run(picture(value)), picture(2 * value))
    assert record.shapes == [(1, 3, 4, 4)]
    assert network.waits == 2, "only one call is timed"
    for value in range(3):
        torch.testing.assert_close(run(picture(value, 8)), picture(2 * value, 8))
        torch.testing.assert_close(run(picture(value)), picture(2 * value))
    assert record.shapes == [(1, 3, 4, 4), (1, 3, 8, 8)]


def test_a_shape_that_keeps_the_gpu_busy_is_not_recorded(monkeypatch):
    network, record = Clocked(monkeypatch, launching=1, computing=3), Recorder()
    run = cuda_graphs.Graphs(network, record=record, synchronise=network.synchronise)
    for value in range(5):
        torch.testing.assert_close(run(picture(value)), picture(2 * value))
    assert record.shapes == [] and network.calls == 5 and network.waits == 2


def test_few_recordings_are_held_and_all_can_be_given_back(monkeypatch):
    network, record = Clocked(monkeypatch, launching=1, computing=0), Recorder()
    run = cuda_graphs.Graphs(network, record=record, synchronise=network.synchronise)
    assert not run.forget()
    for side in range(1, 300):
        for value in range(3):
            torch.testing.assert_close(run(picture(value, side)), picture(2 * value, side))
    assert len(record.shapes) == 299
    gc.collect()
    assert len(record.alive) == 2
    assert len(run._pays) <= cuda_graphs._WATCHED
    waits = network.waits
    assert run.forget() and not run.forget()
    assert network.waits == waits + 1, "what is under way still needs the memory"
    gc.collect()
    assert len(record.alive) == 0
    torch.testing.assert_close(run(picture(3, 299)), picture(6, 299))


def refused(recording):
    raise RuntimeError("operation not permitted when stream is capturing\nmore")


def another(recording):
    recording.network = lambda batch: batch * 2 + 0.1
    return recording


@pytest.mark.parametrize(
    ("change", "told"), [(refused, "operation not permitted"), (another, "another answer")]
)
def test_what_cannot_be_recorded_is_computed_and_the_log_says_so(monkeypatch, caplog, change, told):
    network, record = Clocked(monkeypatch, launching=1, computing=0), Recorder(change)
    run = cuda_graphs.Graphs(network, record=record, synchronise=network.synchronise)
    with caplog.at_level(logging.WARNING):
        for side in (4, 8):
            for value in range(6):
                torch.testing.assert_close(run(picture(value, side)), picture(2 * value, side))
    assert len(record.shapes) == 1 and len(caplog.records) == 1 and told in caplog.text
    assert "\n" not in caplog.records[0].getMessage()


def test_a_recording_without_room_leaves_the_others(monkeypatch, caplog):
    def no_room(recording):
        if recording.given.shape[-1] == 8:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return recording

    network, record = Clocked(monkeypatch, launching=1, computing=0), Recorder(no_room)
    run = cuda_graphs.Graphs(network, record=record, synchronise=network.synchronise)
    for side in (4, 8, 4, 8):
        for value in range(4):
            torch.testing.assert_close(run(picture(value, side)), picture(2 * value, side))
    assert record.shapes == [(1, 3, 4, 4), (1, 3, 8, 8)] and not caplog.records


def test_not_a_number_is_recorded_as_the_network_gives_it(monkeypatch):
    record = Recorder()
    run = cuda_graphs.Graphs(lambda batch: batch / 0, record=record, synchronise=lambda: None)
    for _ in range(5):
        assert run(picture(0)).isnan().all()
    assert record.shapes


def test_pytorch_is_asked_for_a_graph_by_its_own_names(monkeypatch):
    """The calls fit the signatures of the installed PyTorch, and what is recorded is what is run again."""
    made = mock.create_autospec(torch.cuda.CUDAGraph)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", made)
    monkeypatch.setattr(torch.cuda, "Stream", mock.create_autospec(torch.cuda.Stream))
    monkeypatch.setattr(torch.cuda, "synchronize", mock.create_autospec(torch.cuda.synchronize))
    monkeypatch.setattr(torch.cuda, "device", mock.create_autospec(torch.cuda.device))
    monkeypatch.setattr(torch.cuda, "graph", mock.create_autospec(torch.cuda.graph))
    network = mock.Mock(side_effect=lambda batch: batch * 2)
    again = cuda_graphs.recorded(network, picture(1))
    (seen,) = network.call_args.args
    out = again(picture(5))
    torch.testing.assert_close(seen, picture(5))
    assert again(picture(6)) is out
    assert made.return_value.replay.call_count == 2
    assert torch.cuda.graph.call_args.args == (made.return_value,)


@pytest.fixture
def gpu(monkeypatch):
    """torch.cuda done by the processor: copies are made when they are waited for, and not before."""
    waiting = []

    class Stream:
        def __init__(self, device=None, priority=0):
            pass

        def wait_stream(self, stream):
            assert stream == "current"

        def record_event(self):
            event = mock.Mock(spec=torch.cuda.Event)
            event.synchronize.side_effect = finished
            return event

    def finished():
        while waiting:
            waiting.pop(0)()

    copy, to, empty = torch.Tensor.copy_, torch.Tensor.to, torch.empty

    def copied(self, source, non_blocking=False):
        if non_blocking:
            waiting.append(torch.inference_mode()(lambda: copy(self, source)))
            return self
        return copy(self, source)

    monkeypatch.setattr(torch.Tensor, "copy_", copied)
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *a, non_blocking=False, **k: to(self, *a, **k))
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self.clone())
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, stream: None)
    monkeypatch.setattr(torch, "empty", lambda *a, pin_memory=False, **k: empty(*a, **k).fill_(77))
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "current")
    monkeypatch.setattr(cuda_graphs, "recorded", Recording)
    return waiting


def on_gpu(network, **options):
    """An engine that takes the processor for a GPU."""
    made = engine.Engine(network, scale=2, device=CPU, **options)
    made._on_gpu, made.ahead = True, 1
    made._graphs = cuda_graphs.Graphs(made.half_network or made.network, synchronise=lambda: None)
    return made


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
def test_the_way_through_a_gpu_gives_what_the_processor_gives(rng, gpu, dtype, half, monkeypatch):
    image = rng.integers(0, np.iinfo(dtype).max, (150, 230, 3), dtype=dtype)
    plain = engine.Engine(Upscaler(), scale=2, device=CPU, half=half)
    expected = tiling.run(image, plain, scale=2, tile=32, pad=1)
    run = on_gpu(Upscaler(), half=half)
    monkeypatch.setattr(run, "at_once", lambda height, width: 3)
    for _ in range(3):
        out = tiling.run(image, run, scale=2, tile=32, pad=1)
        far = np.abs(out.astype(int) - expected).max()
        assert far <= (np.iinfo(dtype).max // 255 if half else 0), "a batch of 16 bits may round otherwise"
    assert not gpu, "every copy was waited for"
    network = run.half_network if half else run.network
    windows = tiling.tiles(150, 230, tile=32, pad=1)
    assert len(windows) % 3, "the last batch is smaller"
    assert network.batches[0] == ((3, 3, *windows[0].window.shape), torch.float16 if half else torch.float32)
    assert len(run._graphs._kept) == 2, "full batches, and the last"


def test_of_a_batch_only_the_tile_that_overflows_is_done_again(rng, gpu):
    class Overflows(Upscaler):
        def forward(self, x):
            out = super().forward(x)
            if x.dtype == torch.float16:
                out[x.mean((1, 2, 3)) > 0.5] *= 70_000
            return out

    run = on_gpu(Overflows(), half=True)
    tiles = rng.integers(0, 100, (3, 20, 20, 3), dtype=np.uint8)
    tiles[1] += 150
    whole, in_half = (engine.Engine(Upscaler(), scale=2, device=CPU, half=half) for half in (False, True))
    out = run.start(tiles)()
    np.testing.assert_array_equal(out[1], whole(tiles[1]))
    for index in (0, 2):
        assert np.abs(out[index].astype(int) - in_half(tiles[index])).max() <= 1
    assert run.network.batches == [((1, 3, 20, 20), torch.float32)]


def test_not_a_number_from_a_gpu_is_an_error(gpu):
    class Bad(Upscaler):
        def forward(self, x):
            return super().forward(x) / 0

    for half in (False, True):
        wait = on_gpu(Bad(), half=half).start(np.zeros((2, 8, 8, 3), np.uint8))
        with pytest.raises(InvalidOutput, match="NaN"):
            wait()


def test_recordings_make_room_before_tiles_get_smaller(gpu, rng, monkeypatch):
    run = on_gpu(Upscaler())
    tile = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
    for _ in range(4):
        run(tile)
    assert run._graphs._kept
    true = run.network.forward

    def hungry(x):
        if run._graphs._kept:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return true(x)

    monkeypatch.setattr(run.network, "forward", hungry)
    run(tile[:8])
    assert not run._graphs._kept
    monkeypatch.setattr(run.network, "forward", mock.Mock(side_effect=torch.OutOfMemoryError("again")))
    with pytest.raises(OutOfMemory):
        run(tile[:9])


def test_small_tiles_are_taken_together_up_to_the_largest(monkeypatch):
    run = on_gpu(Upscaler(), pad=10)
    monkeypatch.setattr(run, "best_tile", lambda: 492)
    for shape, expected in (((512, 512), 1), ((256, 256), 4), ((128, 256), 8), ((2000, 512), 1)):
        assert run.at_once(*shape) == expected
    assert engine.Engine(Upscaler(), scale=2, device=CPU).at_once(8, 8) == 1
