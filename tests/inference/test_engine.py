from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from restorer.errors import InvalidOutput, OutOfMemory
from restorer.inference import backends, engine, memory, network, tiling
from restorer.models import architectures, loader, registry, sources
from restorer.options import SMALLEST_TILE
from restorer.progress import Stats
from tests.conftest import photo_like, sweep
from tests.inference.seeded import NETWORKS, Blur, Nearest, create, doubled, parts_of
from tests.reference import photos


def nearest(gain=1.0, half=False, module=None):
    """An engine that doubles pixels."""
    parts = parts_of(module or Nearest(2, gain), halos=(0,), scale=2)
    return engine.Engine(parts, backends.modules(parts, torch.float16) if half else None, scale=2)


def samples(run, image, **options):
    return np.concatenate(list(run.bands(image, **{"tile": 64, **options})))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_identity_network_preserves_every_level(dtype):
    levels = np.arange(np.iinfo(dtype).max + 1, dtype=dtype).reshape(-1, 16, 1).repeat(3, axis=2)
    out = nearest()(levels)
    np.testing.assert_array_equal(out, doubled(levels))
    assert out.dtype == dtype


def test_channel_order_rounding_and_clamping():
    np.testing.assert_array_equal(nearest(1.3)(np.array([[[10, 100, 200]]], np.uint8))[0, 0], [13, 130, 255])
    halves = nearest(0.75)(np.array([[[1, 3, 5]]], np.uint8))
    np.testing.assert_array_equal(halves[0, 0], np.rint([0.75, 2.25, 3.75]))


@pytest.fixture(scope="module")
def video() -> nn.Module:
    """realesr-animevideov3, the fastest installed network."""
    name = "realesr-animevideov3"
    state = loader.load(sources.installed(registry.find(name, Path("absent")))).state
    return architectures.build(architectures.detect(state, name), state, name).requires_grad_(False)


def test_results_are_reproducible(video):
    run = engine.Engine(network.segments(video), scale=4)
    for picture in photos().values():
        assert run(picture).tobytes() == run(picture).tobytes()


def test_float16_is_close_to_float32(video):
    """No value exceeds float16 with real weights."""
    picture = photos()["chelsea"][:32, :32]
    parts = network.segments(video)
    full = engine.Engine(parts, scale=4)
    half = engine.Engine(parts, backends.modules(parts, torch.float16), scale=4)
    expected = full(picture)
    half._exact = half._exact._replace(compute=[lambda *_: pytest.fail("computed in float32")] * len(parts))
    assert 50 < cv2.PSNR(half(picture), expected) < 100, "close, but not float32"


@pytest.mark.parametrize("kind", NETWORKS)
def test_16_bits_and_unshuffled_input(kind, rng):
    """Against the module itself, for every scale and pixel unshuffle."""
    module, (_, _, scale, align) = create(kind), NETWORKS[kind]
    picture = rng.integers(0, 65536, (9 * align, 7 * align, 3), dtype=np.uint16)
    batch = torch.from_numpy(picture.astype(np.int32)).permute(2, 0, 1)[None] / 65535
    expected = module(batch)[0].permute(1, 2, 0).mul(65535).round().clamp(0, 65535).numpy()
    out = engine.Engine(network.segments(module), scale=scale, align=align)(picture)
    assert out.dtype == np.uint16 and np.abs(out - expected).max() <= 1


class Overflows(nn.Module):
    """Fits in float32; an intermediate value of bright pixels exceeds float16's 65504."""

    def __init__(self):
        super().__init__()
        self.big = nn.Parameter(torch.tensor(60000.0), requires_grad=False)
        self.dtypes = []

    def forward(self, x):
        self.dtypes.append(x.dtype)
        return nn.functional.interpolate((x + 1) * self.big / self.big - 1, scale_factor=2)


def test_image_that_overflows_float16_continues_in_float32(rng):
    """From the band with the bright pixel on; those above stay."""
    picture = np.zeros((200, 8, 3), np.uint8)
    module = Overflows()
    run = nearest(half=True, module=module)
    np.testing.assert_array_equal(samples(run, picture), doubled(picture))
    half = run._backend.compute[0]
    assert torch.float32 not in half.dtypes and len(half.dtypes) > 1
    checks = module.dtypes.count(torch.float32)  # by the pixel that is compared
    picture[150, 3] = 255
    np.testing.assert_allclose(samples(run, picture, tile=32), doubled(picture), atol=1)
    assert module.dtypes.count(torch.float32) > 2 * checks, "computed again in float32"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinity_raise_invalid_output(value):
    class Bad(Nearest):
        def forward(self, x):
            out = super().forward(x)
            out[0, 1, -1, -1] = value
            return out

    for half in (False, True):
        with pytest.raises(InvalidOutput, match="NaN"):
            nearest(half=half, module=Bad())(np.zeros((4, 4, 3), np.uint8))


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
        nearest(module=Hungry())(np.zeros((4, 4, 3), np.uint8))


def test_other_errors_of_a_network_propagate():
    class Broken(Nearest):
        def forward(self, x):
            raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="shape mismatch"):
        nearest(module=Broken())(np.zeros((4, 4, 3), np.uint8))


def test_impossible_allocation_raises_out_of_memory():
    class Huge(Nearest):
        def forward(self, x):
            return torch.empty(2**50) + x.sum()

    with pytest.raises(OutOfMemory):
        nearest(module=Huge())(np.zeros((4, 4, 3), np.uint8))


def test_maps_without_room_raise_out_of_memory(monkeypatch):
    def full(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(tiling, "_empty_map", full)
    run = engine.Engine(parts_of(Blur(1), Nearest(2), halos=(1, 0), scale=2), scale=2)
    with pytest.raises(OutOfMemory):
        run(np.zeros((4, 4, 3), np.uint8))


def test_tile_size_follows_the_free_memory(monkeypatch):
    run = nearest()
    for tile, free in ((256, 10**12), (128, 4 * run._tile_bytes(256, 256, 256) - 4), (32, 0)):
        monkeypatch.setattr(memory, "free", lambda _, free=free: free)
        assert run.best_tile() == tile


@pytest.mark.parametrize("side", [64, 1000])
def test_a_large_tile_does_not_cut_an_image_whose_maps_fit(monkeypatch, rng, side):
    picture = photo_like(rng, side, side)
    run = engine.Engine(parts_of(Blur(9), Blur(9), Nearest(2), halos=(9, 9, 0), scale=2), scale=2)
    expected = samples(run, picture)
    monkeypatch.setattr(memory, "free", lambda _: 8 * run._tile_bytes(side, side, side))
    stats = Stats()
    np.testing.assert_array_equal(samples(run, picture, tile=4096, stats=stats), expected)
    assert stats.parts == 1


@sweep("align, rows, dtype", [1, 2, 4], [300, 1000], [np.uint8, np.uint16], count=4)
def test_image_whose_maps_do_not_fit_is_cut_into_parts(monkeypatch, rng, align, rows, dtype):
    """Each part has context, which covers the receptive field of this network."""
    picture = photo_like(rng, 2000, 24).astype(dtype)
    parts = parts_of(Blur(9), Blur(9), Nearest(2), halos=(9, 9, 0), scale=2)
    run = engine.Engine(parts, scale=2)
    expected, whole = samples(run, picture), Stats()
    samples(run, picture, stats=whole)
    assert whole.parts == 1
    bytes_per_row = 24 * (run._map_bytes + 3 * 2**2 * picture.itemsize)
    tile_bytes = run._tile_bytes(SMALLEST_TILE, 2000, 24)
    fitting = rows * align
    monkeypatch.setattr(
        memory, "free", lambda _: int((fitting * bytes_per_row + tile_bytes) / engine._FRACTION) + 1
    )
    stats, steps = Stats(), []
    run.align = align  # rows of a part are multiples of it, and its context has so many times as many
    cut = run._cut(2000, 24, SMALLEST_TILE, picture.itemsize)
    assert {row % align for part in cut for row in part} == {0}
    assert max(part.last - part.first for part in cut) <= fitting + align
    context = engine.PART_CONTEXT * align
    assert all(part.top - part.first == context or part.first == 0 for part in cut)
    run.align, fitting = 1, rows
    out = samples(run, picture, tile=SMALLEST_TILE, stats=stats, progress=lambda *step: steps.append(step))
    np.testing.assert_array_equal(out, expected)
    assert (
        stats.parts
        == len(run._cut(2000, 24, SMALLEST_TILE, picture.itemsize))
        == -(-2000 // (rows - 2 * engine.PART_CONTEXT))
    )
    done = [step for step, _ in steps]
    assert done == sorted(done) and steps[-1][0] == steps[-1][1]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"memory.max": "max", "memory.current": "5", "memory.stat": "inactive_file 1"}, None),
        ({"memory.max": "1000", "memory.current": "700", "memory.stat": "anon 9\ninactive_file 200"}, 500),
        ({"memory.max": "100", "memory.current": "700", "memory.stat": "inactive_file 200"}, 0),
        (
            {
                "memory/memory.limit_in_bytes": "1000",
                "memory/memory.usage_in_bytes": "300",
                "memory/memory.stat": "total_inactive_file 50",
            },
            750,
        ),
    ],
)
def test_free_memory_respects_the_limit_of_a_container(tmp_path, files, expected):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    free = memory.free(torch.device("cpu"), cgroup=tmp_path)
    assert free == expected if expected is not None else free > 10**7
