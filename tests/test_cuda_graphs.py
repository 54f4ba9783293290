"""CUDA graphs and the engine's way through a GPU, with a processor in the GPU's place.

What PyTorch's own objects are called with is held to their signatures; tests/test_gpu.py needs a GPU.
"""

import contextlib
import gc
import logging
import threading
import weakref
from unittest import mock

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from restorer import cuda_graphs, engine, tiling
from restorer.engines import Turns
from restorer.errors import InvalidOutput, OutOfMemory
from restorer.faces.restore import FaceEngine

CPU = torch.device("cpu")


class Replay:
    """Computes again into one buffer, as a CUDA graph does."""

    def __init__(self, network, example):
        self.network, self.given, self.out = network, torch.zeros_like(example), network(example)

    def __call__(self, batch):
        self.given.copy_(batch)
        self.out.copy_(self.network(self.given))
        return self.out


class Capture:
    def __init__(self, change=lambda replay: replay):
        self.shapes, self.alive, self.change = [], weakref.WeakSet(), change

    def __call__(self, network, example):
        self.shapes.append(tuple(example.shape))
        made = self.change(Replay(network, example))
        self.alive.add(made)
        return made


class Clocked:
    """A network that is launched at once or slowly, and done at the next synchronise()."""

    def __init__(self, monkeypatch, *, launching, computing, first=0.0):
        self.now, self.launching, self.computing, self.calls, self.waits = 0.0, launching, computing, 0, 0
        self.first, self.seen = first, set()
        monkeypatch.setattr(cuda_graphs.time, "perf_counter", lambda: self.now)

    def __call__(self, batch):
        self.calls += 1
        thread = threading.get_ident()
        self.now += self.launching + (0 if thread in self.seen else self.first)
        self.seen.add(thread)
        return batch * 2

    def synchronise(self):
        self.waits += 1
        self.now += self.computing


def graphs(network, capture):
    return cuda_graphs.Graphs(network, capture=capture, synchronise=network.synchronise)


def picture(value, side=4):
    return torch.full((1, 3, side, side), float(value))


def run_often(run, side, times=10):
    for value in range(times):
        torch.testing.assert_close(run(picture(value, side)), picture(2 * value, side))


def test_a_shape_that_comes_again_is_captured_and_answers_follow_their_tiles(monkeypatch):
    network, capture = Clocked(monkeypatch, launching=3, computing=1), Capture()
    run = graphs(network, capture)
    run_often(run, 4)
    assert capture.shapes == [(1, 3, 4, 4)]
    assert network.waits == 2, "only one call is timed"
    for _ in range(3):
        run_often(run, 8, 1)
        run_often(run, 4, 2)
    assert capture.shapes == [(1, 3, 4, 4), (1, 3, 8, 8)]
    assert run.pixels == 16 + 64


def test_a_shape_that_keeps_the_gpu_busy_is_not_captured(monkeypatch):
    network, capture = Clocked(monkeypatch, launching=1, computing=3, first=50), Capture()
    run = graphs(network, capture)
    run_often(run, 4, 1)
    for _ in range(4):  # each thread's first call takes long, whatever the GPU does
        thread = threading.Thread(target=run_often, args=(run, 4, 1))
        thread.start()
        thread.join()
    assert capture.shapes == [] and network.waits == 2


def test_few_graphs_are_held_and_all_can_be_given_back(monkeypatch):
    network, capture = Clocked(monkeypatch, launching=1, computing=0), Capture()
    run = graphs(network, capture)
    assert not run.forget()
    for side in range(1, 300):
        run_often(run, side, 3)
    assert len(capture.shapes) == 299
    gc.collect()
    assert len(capture.alive) == 2
    assert len(run._pays) <= cuda_graphs._KNOWN
    waits = network.waits
    assert run.forget() and not run.forget()
    assert network.waits == waits + 1, "what is under way still needs the memory"
    gc.collect()
    assert len(capture.alive) == 0 == run.pixels
    run_often(run, 299)
    assert len(capture.shapes) == 299, "what was given up is not held again at once"


def test_shapes_in_turn_are_not_captured_again_and_again(monkeypatch):
    network, capture = Clocked(monkeypatch, launching=1, computing=0), Capture()
    run = graphs(network, capture)
    for _ in range(20):
        for side in (4, 8, 12):
            run_often(run, side, 1)
    assert len(capture.shapes) == 3


def test_one_networks_graphs_make_room_for_another(monkeypatch):
    network, capture = Clocked(monkeypatch, launching=1, computing=0), Capture()
    runs = [graphs(network, capture) for _ in range(2)]
    for run in runs:
        run_often(run, 4)
    assert all(run.pixels for run in runs)
    assert cuda_graphs.forget()
    assert not any(run.pixels for run in runs) and not cuda_graphs.forget()


def test_faces_that_find_no_room_take_that_of_graphs(monkeypatch):
    network = Clocked(monkeypatch, launching=1, computing=0)
    run = graphs(network, Capture())
    run_often(run, 4)

    class Hungry(nn.Module):
        def forward(self, x, **_):
            if run.pixels:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return x

    crop = np.full((512, 512, 3), 9, np.uint8)
    (out,) = FaceEngine(Hungry(), device=CPU)([crop])
    np.testing.assert_array_equal(out, crop)


def test_operations_can_be_counted(monkeypatch):
    """The report of what photos cost counts them; a replay shows none."""
    conv = nn.Conv2d(3, 3, 1)
    run = cuda_graphs.Graphs(conv, capture=Capture(), synchronise=lambda: None)
    with torch.inference_mode():
        for _ in range(5):
            run(picture(1))
            with FlopCounterMode(display=False) as counter:
                run(picture(1))
            assert counter.get_total_flops() == 2 * 9 * 16


def refused(replay):
    raise RuntimeError("operation not permitted when stream is capturing\nmore")


def another(replay):
    replay.network = lambda batch: batch * 2 + 0.1
    return replay


def deaf(replay):
    """As if what it is given were not read."""
    return lambda batch: replay.network(replay.given)


@pytest.mark.parametrize(
    ("change", "told"),
    [(refused, "operation not permitted"), (another, "another answer"), (deaf, "another answer")],
)
def test_what_cannot_be_captured_is_computed_and_the_log_says_so(monkeypatch, caplog, change, told):
    network, capture = Clocked(monkeypatch, launching=1, computing=0), Capture(change)
    run = graphs(network, capture)
    with caplog.at_level(logging.WARNING):
        for side in (4, 8):
            run_often(run, side, 6)
    assert len(capture.shapes) == 1 and len(caplog.records) == 1 and told in caplog.text
    assert "\n" not in caplog.records[0].getMessage()


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA: no room"), RuntimeError("CUDA error: out of memory")]
)
def test_a_graph_without_room_leaves_the_others(monkeypatch, caplog, error):
    def no_room(replay):
        if replay.given.shape[-1] == 8:
            raise error
        return replay

    network, capture = Clocked(monkeypatch, launching=1, computing=0), Capture(no_room)
    run = graphs(network, capture)
    for side in (4, 8, 4, 8):
        run_often(run, side, 4)
    assert capture.shapes == [(1, 3, 4, 4), (1, 3, 8, 8)] and not caplog.records
    assert run.pixels == 16


def test_not_a_number_is_captured_as_the_network_gives_it():
    capture = Capture()
    run = cuda_graphs.Graphs(lambda batch: batch / 0, capture=capture, synchronise=lambda: None)
    for _ in range(5):
        assert run(picture(0)).isnan().all()
    assert capture.shapes


def test_pytorch_is_asked_for_a_graph_by_its_own_names(monkeypatch):
    """The calls fit the signatures of the installed PyTorch, and what is captured is what is replayed."""
    inside = []

    class Context:
        def __enter__(self):
            inside.append(True)

        def __exit__(self, *_):
            inside.pop()

    made = mock.create_autospec(torch.cuda.CUDAGraph)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", made)
    for name in ("Stream", "stream", "current_stream", "graph"):
        monkeypatch.setattr(torch.cuda, name, mock.create_autospec(getattr(torch.cuda, name)))
    torch.cuda.stream.return_value = contextlib.nullcontext()
    torch.cuda.graph.return_value = Context()
    given = []

    def network(batch):
        assert inside
        given.append(batch)
        return batch * 2

    replay = cuda_graphs.captured(network, picture(1))
    assert not given[0].any(), "else one that reads nothing would give the expected answer too"
    out = replay(picture(5))
    torch.testing.assert_close(given, [picture(5)])
    assert replay(picture(6)) is out
    assert made.return_value.replay.call_count == 2
    assert torch.cuda.graph.call_args.args == (made.return_value,)
    told = {"stream": torch.cuda.Stream.return_value, "capture_error_mode": "thread_local"}
    assert torch.cuda.graph.call_args.kwargs == told
    torch.cuda.stream.assert_called_once_with(torch.cuda.current_stream.return_value)


@pytest.fixture
def gpu(monkeypatch):
    """torch.cuda done by the processor: copies are made when they are waited for, and not before."""
    waiting = []

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
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "current")
    monkeypatch.setattr(cuda_graphs, "captured", Replay)
    return waiting


def on_gpu(network, **options):
    """An engine that takes the processor for a GPU."""
    made = engine.Engine(network, scale=2, device=CPU, **options)
    made.asynchronous = True
    made._first = made._graphs = cuda_graphs.Graphs(made._first, synchronise=lambda: None)
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
def test_the_way_through_a_gpu_gives_what_the_processor_gives(rng, gpu, dtype, half):
    image = rng.integers(0, np.iinfo(dtype).max, (14, 470, 3), dtype=dtype)
    plain = engine.Engine(Upscaler(), scale=2, device=CPU, half=half)
    expected = tiling.run(image, plain, scale=2, tile=32, pad=1)
    run = on_gpu(Upscaler(), half=half)
    for _ in range(3):
        out = tiling.run(image, run, scale=2, tile=32, pad=1)
        far = np.abs(out.astype(int) - expected).max()
        assert far <= (np.iinfo(dtype).max // 255 if half else 0), "a batch of 16 bits may round otherwise"
    assert not gpu, "every copy was waited for"
    network = run.half_network if half else run.network
    windows = tiling.tiles(14, 470, tile=32, pad=1)
    assert len(windows) % 2, "the last batch is smaller"
    assert network.batches[0] == ((2, 3, *windows[0].window.shape), torch.float16 if half else torch.float32)
    assert len(run._graphs._kept) == 2, "full batches, and the last"


def test_of_a_batch_only_the_tile_that_overflows_is_done_again(rng, gpu):
    class Overflows(Upscaler):
        def forward(self, x):
            out = super().forward(x)
            if x.dtype == torch.float16:
                out[x.mean((1, 2, 3)) > 0.5] *= torch.inf
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


def test_graphs_make_room_before_tiles_get_smaller(gpu, rng, monkeypatch):
    run = on_gpu(Upscaler())
    tile = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
    for _ in range(4):
        run(tile)
    assert run._graphs.pixels == 256
    true = run.network.forward

    def hungry(x):
        if run._graphs.pixels:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return true(x)

    monkeypatch.setattr(run.network, "forward", hungry)
    run(tile[:8])
    assert not run._graphs.pixels
    monkeypatch.setattr(run.network, "forward", mock.Mock(side_effect=torch.OutOfMemoryError("again")))
    with pytest.raises(OutOfMemory):
        run(tile[:9])


def test_float32_is_no_tf32_on_a_gpu(gpu):
    seen = []

    class Seeing(Upscaler):
        def forward(self, x):
            seen.append((x.dtype, torch.backends.cudnn.allow_tf32, torch.backends.cudnn.enabled))
            return super().forward(x)

    before = torch.backends.cudnn.allow_tf32
    on_gpu(Seeing())(np.zeros((8, 8, 3), np.uint8))
    assert seen == [(torch.float32, False, True)]
    assert torch.backends.cudnn.allow_tf32 == before


def test_a_tile_is_done_again_in_its_turn(gpu):
    """Others that want the device wait, and nobody is waited for while the lock is held."""
    running = threading.Lock()
    held = []

    class Overflows(Upscaler):
        def forward(self, x):
            held.append((x.dtype, running.locked()))
            return super().forward(x) * (torch.inf if x.dtype == torch.float16 else 1)

    run = Turns(on_gpu(Overflows(), half=True, running=running), "sha256", "source", running)
    run(np.full((8, 8, 3), 90, np.uint8))
    assert held == [(torch.float16, True), (torch.float32, True)]
    assert not running.locked()
