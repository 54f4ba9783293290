import numpy as np
import pytest

from restorer.errors import Cancelled, InvalidOutput, OutOfMemory
from restorer.inference import tiling


def nearest(scale):
    """A pointwise network: tiled and untiled outputs are identical."""
    return lambda tile: tile.repeat(scale, axis=0).repeat(scale, axis=1)


def box_blur(radius):
    """A zero-padded network with a known receptive field."""

    def blur(tile):
        padded = np.pad(tile.astype(np.int64), ((radius, radius), (radius, radius), (0, 0)))
        height, width = tile.shape[:2]
        offsets = range(2 * radius + 1)
        total = sum(padded[y : y + height, x : x + width] for y in offsets for x in offsets)
        return (total // (2 * radius + 1) ** 2).astype(tile.dtype)

    return blur


SIZES = [(1, 1), (1, 97), (31, 33), (64, 64), (65, 63), (127, 200), (40, 301)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("tile", "pad"), [(32, 0), (32, 5), (33, 16), (64, 34), (4096, 10)])
@pytest.mark.parametrize("scale", [1, 2, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_pointwise_function_is_the_same_tiled_and_untiled(rng, size, tile, pad, scale, dtype):
    image = rng.integers(0, np.iinfo(dtype).max, (*size, 3), dtype=dtype)
    out = tiling.run(image, nearest(scale), scale=scale, tile=tile, pad=pad)
    np.testing.assert_array_equal(out, nearest(scale)(image))
    assert out.dtype == dtype


@pytest.mark.parametrize("size", [(50, 70), (131, 77), (200, 33)])
@pytest.mark.parametrize("radius", [1, 4])
def test_context_of_the_receptive_field_leaves_no_seam(rng, size, radius):
    image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    untiled = box_blur(radius)(image)
    np.testing.assert_array_equal(tiling.run(image, box_blur(radius), scale=1, tile=32, pad=radius), untiled)
    seamed = tiling.run(image, box_blur(radius), scale=1, tile=32, pad=radius - 1)
    assert (seamed != untiled).any(), "less context leaves a seam"


@pytest.mark.parametrize("align", [1, 2, 4])
@pytest.mark.parametrize("size", [(64, 64), (132, 100), (300, 44), (36, 1000)])
@pytest.mark.parametrize(("tile", "pad"), [(32, 8), (64, 24), (48, 0)])
def test_tiles_cover_the_image_once_with_context_and_alignment(size, tile, pad, align):
    tiles = tiling.tiles(*size, tile=tile, pad=pad, align=align)
    count = np.zeros(size, int)
    for window, core in tiles:
        count[core.slices] += 1
        assert window.top % align == window.left % align == 0
        for near, far, edge, limit in (
            (window.top, core.top, 0, None),
            (window.left, core.left, 0, None),
            (core.bottom, window.bottom, None, size[0]),
            (core.right, window.right, None, size[1]),
        ):
            assert far - near >= pad or near == edge or far == limit
    assert (count == 1).all()
    assert len({(w.bottom - w.top, w.right - w.left) for w, _ in tiles}) == 1
    assert tiles[0].window.bottom - tiles[0].window.top <= tile + 2 * pad


class Faulty:
    """Runs out of memory for tiles above a size, or at some calls."""

    def __init__(self, function, *, largest=None, calls=()):
        self.function, self.largest, self.calls, self.called = function, largest, set(calls), 0
        self.sides = []

    def __call__(self, tile):
        self.called += 1
        self.sides.append(max(tile.shape[:2]))
        if self.called in self.calls or (self.largest and max(tile.shape[:2]) > self.largest):
            raise OutOfMemory("out of memory")
        return self.function(tile)


@pytest.mark.parametrize("call", range(1, 13))
def test_out_of_memory_at_any_tile_does_not_change_the_result(rng, call):
    image = rng.integers(0, 256, (190, 250, 3), dtype=np.uint8)
    faulty = Faulty(box_blur(3), calls=[call])
    out = tiling.run(image, faulty, scale=1, tile=64, pad=3)
    np.testing.assert_array_equal(out, box_blur(3)(image))
    assert faulty.called > 12


@pytest.mark.parametrize("align", [1, 4])
def test_tile_size_is_halved_until_tiles_fit(rng, align):
    image = rng.integers(0, 256, (400, 400, 3), dtype=np.uint8)
    faulty = Faulty(nearest(2), largest=40)
    out = tiling.run(image, faulty, scale=2, tile=256, pad=4, align=align)
    np.testing.assert_array_equal(out, nearest(2)(image))
    failed = [side for side in faulty.sides if side > 40]
    assert len(failed) == 3  # 256, 128, 64: each once
    assert max(faulty.sides[-50:]) <= 40 + 2 * align


def test_too_little_memory_for_the_smallest_tile_raises(rng):
    image = rng.integers(0, 256, (100, 100, 3), dtype=np.uint8)
    faulty = Faulty(nearest(1), largest=1)
    with pytest.raises(OutOfMemory, match="not enough memory for a tile of 32 pixels"):
        tiling.run(image, faulty, scale=1, tile=100, pad=0)
    assert faulty.sides == [100, 50, 25]  # at most 32


@pytest.mark.parametrize(
    "broken",
    [
        lambda tile: tile.repeat(2, 0),
        lambda tile: nearest(2)(tile).astype(np.uint16),
        lambda tile: nearest(2)(tile)[1:],
        lambda tile: nearest(2)(tile)[..., :1],
    ],
)
def test_output_of_the_wrong_shape_or_dtype_raises(rng, broken):
    with pytest.raises(InvalidOutput, match="the output of a tile is"):
        tiling.run(rng.integers(0, 256, (60, 60, 3), dtype=np.uint8), broken, scale=2, tile=32, pad=2)


def test_missing_and_duplicate_tiles_raise(rng, monkeypatch):
    image = rng.integers(0, 256, (100, 100, 3), dtype=np.uint8)
    original = tiling.tiles
    for change, message in ((lambda t: t[:-1], "not written"), (lambda t: [*t, t[0]], "twice")):
        monkeypatch.setattr(tiling, "tiles", lambda *a, change=change, **k: change(original(*a, **k)))
        with pytest.raises(InvalidOutput, match=message):
            tiling.run(image, nearest(1), scale=1, tile=32, pad=2)


def test_progress_counts_every_tile_and_may_cancel(rng):
    image = rng.integers(0, 256, (100, 100, 3), dtype=np.uint8)
    steps = []
    tiling.run(image, nearest(1), scale=1, tile=50, pad=0, progress=lambda *t: steps.append(t))
    assert steps == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]

    calls = Faulty(nearest(1))

    def stop(done, _total):
        if done == 2:
            raise Cancelled("stopped")

    with pytest.raises(Cancelled):
        tiling.run(image, calls, scale=1, tile=50, pad=0, progress=stop)
    assert calls.called == 2


class FakeDevice:
    """A Device that computes batches at once; runs out of memory at some calls or above `room` pixels."""

    def __init__(self, function, *, asynchronous=True, room=None, starts=(), waits=()):
        self.function, self.asynchronous, self.room = function, asynchronous, room
        self.starts, self.waits = set(starts), set(waits)
        self.started, self.waited, self.open, self.most_open = 0, 0, 0, 0
        self.batches = []

    def start(self, windows):
        self.started += 1
        self.batches.append(windows.shape[:3])
        count, height, width, _ = windows.shape
        if self.started in self.starts or (self.room and count * height * width > self.room):
            raise OutOfMemory("out of memory")
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        outputs = np.stack([self.function(window) for window in windows])

        def wait():
            self.waited += 1
            self.open -= 1
            if self.waited in self.waits:
                raise OutOfMemory("out of memory")
            return outputs

        return wait


@pytest.mark.parametrize("size", [*SIZES, (190, 250), (9, 900), (900, 17), (24, 1200)])
@pytest.mark.parametrize("asynchronous", [False, True])
def test_batches_are_written_to_their_positions(rng, size, asynchronous):
    image = rng.integers(0, 30, (*size, 3), dtype=np.uint8)  # dark: every output resembles its window
    device = FakeDevice(box_blur(3), asynchronous=asynchronous)
    steps = []
    out = tiling.run(image, device, scale=1, tile=32, pad=3, progress=lambda *t: steps.append(t))
    np.testing.assert_array_equal(out, box_blur(3)(image))
    tiles = tiling.tiles(*size, tile=32, pad=3)
    height, width = tiles[0].window.shape
    batch_size = max(1, 38**2 // (height * width)) if asynchronous else 1
    assert len(device.batches) == -(-len(tiles) // batch_size), "as few batches as possible"
    assert max(count * height * width for count, height, width in device.batches) <= 38**2
    assert steps == [(done, len(tiles)) for done in range(len(tiles) + 1)]
    assert device.most_open == min(asynchronous + 1, len(device.batches))


def test_thin_windows_are_batched(rng):
    device = FakeDevice(nearest(1))
    tiling.run(rng.integers(0, 30, (9, 900, 3), dtype=np.uint8), device, scale=1, tile=32, pad=3)
    assert max(batch[0] for batch in device.batches) == 4


@pytest.mark.parametrize("call", range(1, 10))
@pytest.mark.parametrize("where", ["starts", "waits"])
@pytest.mark.parametrize("size", [(190, 250), (11, 1500)])
def test_out_of_memory_in_any_batch_does_not_change_the_result(rng, call, where, size):
    image = rng.integers(0, 30, (*size, 3), dtype=np.uint8)
    device = FakeDevice(box_blur(3), **{where: [call]})
    out = tiling.run(image, device, scale=1, tile=64, pad=3)
    np.testing.assert_array_equal(out, box_blur(3)(image))
    assert device.open == 0, "every batch was waited for"


def test_smaller_batches_are_tried_before_smaller_tiles():
    image = np.full((7, 800, 3), 90, np.uint8)
    shape = tiling.tiles(7, 800, tile=50, pad=2)[0].window.shape
    device = FakeDevice(nearest(2), room=3 * shape[0] * shape[1])
    tiling.run(image, device, scale=2, tile=50, pad=2)
    assert [batch[0] for batch in device.batches] == [7, 7, 3, 3, 3, 3, 3, 1]
    assert {batch[1:] for batch in device.batches} == {shape}, "no tile is smaller"


def test_split_tiles_are_batched_by_shape(rng):
    image = rng.integers(0, 30, (100, 131, 3), dtype=np.uint8)
    device = FakeDevice(box_blur(3), room=10_000)
    out = tiling.run(image, device, scale=1, tile=131, pad=3)
    np.testing.assert_array_equal(out, box_blur(3)(image))
    assert len({batch[1:] for batch in device.batches}) > 3


def test_two_failed_batches_halve_the_tile_size_once():
    image = np.full((100, 200, 3), 90, np.uint8)
    device = FakeDevice(nearest(1), waits=[1, 2])
    tiling.run(image, device, scale=1, tile=100, pad=0)
    assert device.batches[:2] == [(1, 100, 100)] * 2
    assert {batch[1:] for batch in device.batches[2:]} == {(50, 50)}
    assert sum(batch[0] for batch in device.batches[2:]) == 8


def test_cancelling_starts_no_further_batch():
    image = np.full((200, 200, 3), 90, np.uint8)
    device = FakeDevice(nearest(1))

    def stop(done, _total):
        if done == 1:
            raise Cancelled("stopped")

    with pytest.raises(Cancelled):
        tiling.run(image, device, scale=1, tile=50, pad=0, progress=stop)
    assert len(device.batches) == 2


def test_missing_or_reordered_outputs_raise(rng):
    image = rng.integers(0, 256, (1, 60, 3), np.uint8).repeat(10, axis=0).repeat(10, axis=1)

    class Shuffled(FakeDevice):
        change = staticmethod(lambda outputs: outputs[::-1])

        def start(self, windows):
            wait = super().start(windows)
            return lambda: self.change(wait())

    device = Shuffled(nearest(2))
    with pytest.raises(InvalidOutput, match="two different results"):
        tiling.run(image, device, scale=2, tile=40, pad=4)
    device.change = lambda outputs: outputs[1:]
    with pytest.raises(InvalidOutput, match="returned 3 of 4 tiles"):
        tiling.run(image, device, scale=2, tile=40, pad=4)
