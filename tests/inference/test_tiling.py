import numpy as np
import pytest

from restorer.errors import Cancelled, InvalidOutput, OutOfMemory
from restorer.inference import tiling


def nearest(scale):
    """A pointwise network: tiled and whole must agree to the bit."""
    return lambda tile: tile.repeat(scale, axis=0).repeat(scale, axis=1)


def box_blur(radius):
    """A network with a known receptive field, zero-padded as convolutions are."""

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
def test_a_pointwise_function_gives_the_same_tiled_and_whole(rng, size, tile, pad, scale, dtype):
    image = rng.integers(0, np.iinfo(dtype).max, (*size, 3), dtype=dtype)
    out = tiling.run(image, nearest(scale), scale=scale, tile=tile, pad=pad)
    np.testing.assert_array_equal(out, nearest(scale)(image))
    assert out.dtype == dtype


@pytest.mark.parametrize("size", [(50, 70), (131, 77), (200, 33)])
@pytest.mark.parametrize("radius", [1, 4])
def test_context_as_wide_as_the_receptive_field_leaves_no_seam(rng, size, radius):
    image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    whole = box_blur(radius)(image)
    np.testing.assert_array_equal(tiling.run(image, box_blur(radius), scale=1, tile=32, pad=radius), whole)
    too_little = tiling.run(image, box_blur(radius), scale=1, tile=32, pad=radius - 1)
    assert (too_little != whole).any(), "the oracle sees a seam where there is one"


@pytest.mark.parametrize("align", [1, 2, 4])
@pytest.mark.parametrize("size", [(64, 64), (132, 100), (300, 44), (36, 1000)])
@pytest.mark.parametrize(("tile", "pad"), [(32, 8), (64, 24), (48, 0)])
def test_tiles_cover_once_with_context_one_shape_and_alignment(size, tile, pad, align):
    found = tiling.tiles(*size, tile=tile, pad=pad, align=align)
    count = np.zeros(size, int)
    for window, core in found:
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
    assert len({(w.bottom - w.top, w.right - w.left) for w, _ in found}) == 1
    assert max(found[0].window.bottom - found[0].window.top, 0) <= tile + 2 * pad


class Faulty:
    """Runs out of memory for tiles above a size, or at given calls."""

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
def test_out_of_memory_at_any_tile_changes_nothing(rng, call):
    image = rng.integers(0, 256, (190, 250, 3), dtype=np.uint8)
    faulty = Faulty(box_blur(3), calls=[call])
    out = tiling.run(image, faulty, scale=1, tile=64, pad=3)
    np.testing.assert_array_equal(out, box_blur(3)(image))
    assert faulty.called > 12


@pytest.mark.parametrize("align", [1, 4])
def test_tiles_shrink_by_halves_until_they_fit(rng, align):
    image = rng.integers(0, 256, (400, 400, 3), dtype=np.uint8)
    faulty = Faulty(nearest(2), largest=40)
    out = tiling.run(image, faulty, scale=2, tile=256, pad=4, align=align)
    np.testing.assert_array_equal(out, nearest(2)(image))
    failed = [side for side in faulty.sides if side > 40]
    assert len(failed) == 3  # 256, 128, 64: what once did not fit is not tried again
    assert max(faulty.sides[-50:]) <= 40 + 2 * align


def test_the_smallest_tile_that_does_not_fit_is_a_clear_error(rng):
    image = rng.integers(0, 256, (100, 100, 3), dtype=np.uint8)
    faulty = Faulty(nearest(1), largest=1)
    with pytest.raises(OutOfMemory, match="not even a tile of 32 pixels"):
        tiling.run(image, faulty, scale=1, tile=100, pad=0)
    assert faulty.sides == [100, 50, 25]  # 50 pixels make two tiles of at most 32


@pytest.mark.parametrize(
    "broken",
    [
        lambda tile: tile.repeat(2, 0),
        lambda tile: nearest(2)(tile).astype(np.uint16),
        lambda tile: nearest(2)(tile)[1:],
        lambda tile: nearest(2)(tile)[..., :1],
    ],
)
def test_an_answer_of_the_wrong_shape_or_dtype_is_refused(rng, broken):
    with pytest.raises(InvalidOutput, match="came back as"):
        tiling.run(rng.integers(0, 256, (60, 60, 3), dtype=np.uint8), broken, scale=2, tile=32, pad=2)


def test_skipped_and_doubled_tiles_are_found(rng, monkeypatch):
    image = rng.integers(0, 256, (100, 100, 3), dtype=np.uint8)
    true = tiling.tiles
    for change, words in ((lambda t: t[:-1], "not restored"), (lambda t: [*t, t[0]], "twice")):
        monkeypatch.setattr(tiling, "tiles", lambda *a, change=change, **k: change(true(*a, **k)))
        with pytest.raises(InvalidOutput, match=words):
            tiling.run(image, nearest(1), scale=1, tile=32, pad=2)


def test_progress_counts_every_tile_and_can_stop(rng):
    image = rng.integers(0, 256, (100, 100, 3), dtype=np.uint8)
    told = []
    tiling.run(image, nearest(1), scale=1, tile=50, pad=0, progress=lambda *t: told.append(t))
    assert told == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]

    calls = Faulty(nearest(1))

    def stop(done, _total):
        if done == 2:
            raise Cancelled("stopped")

    with pytest.raises(Cancelled):
        tiling.run(image, calls, scale=1, tile=50, pad=0, progress=stop)
    assert calls.called == 2


class Later:
    """Takes windows together and answers when asked; runs out of memory at given calls."""

    def __init__(self, function, *, asynchronous=True, room=None, starts=(), waits=()):
        self.function, self.asynchronous, self.room = function, asynchronous, room
        self.starts, self.waits = set(starts), set(waits)
        self.started, self.waited, self.open, self.most_open = 0, 0, 0, 0
        self.given = []

    def start(self, windows):
        self.started += 1
        self.given.append(windows.shape[:3])
        count, height, width, _ = windows.shape
        if self.started in self.starts or (self.room and count * height * width > self.room):
            raise OutOfMemory("out of memory")
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        answers = np.stack([self.function(window) for window in windows])

        def wait():
            self.waited += 1
            self.open -= 1
            if self.waited in self.waits:
                raise OutOfMemory("out of memory")
            return answers

        return wait


@pytest.mark.parametrize("size", [*SIZES, (190, 250), (9, 900), (900, 17), (24, 1200)])
@pytest.mark.parametrize("asynchronous", [False, True])
def test_tiles_taken_together_and_ahead_are_put_where_they_belong(rng, size, asynchronous):
    image = rng.integers(0, 30, (*size, 3), dtype=np.uint8)  # dark: no answer is unlike its window
    device = Later(box_blur(3), asynchronous=asynchronous)
    told = []
    out = tiling.run(image, device, scale=1, tile=32, pad=3, progress=lambda *t: told.append(t))
    np.testing.assert_array_equal(out, box_blur(3)(image))
    found = tiling.tiles(*size, tile=32, pad=3)
    height, width = found[0].window.shape
    at_once = max(1, 38**2 // (height * width)) if asynchronous else 1
    assert len(device.given) == -(-len(found) // at_once), "as few batches as there can be"
    assert max(count * height * width for count, height, width in device.given) <= 38**2
    assert told == [(done, len(found)) for done in range(len(found) + 1)]
    assert device.most_open == min(asynchronous + 1, len(device.given))


def test_thin_windows_are_taken_together(rng):
    device = Later(nearest(1))
    tiling.run(rng.integers(0, 30, (9, 900, 3), dtype=np.uint8), device, scale=1, tile=32, pad=3)
    assert max(given[0] for given in device.given) == 4


@pytest.mark.parametrize("call", range(1, 10))
@pytest.mark.parametrize("where", ["starts", "waits"])
@pytest.mark.parametrize("size", [(190, 250), (11, 1500)])
def test_memory_may_run_out_in_any_batch(rng, call, where, size):
    image = rng.integers(0, 30, (*size, 3), dtype=np.uint8)
    device = Later(box_blur(3), **{where: [call]})
    out = tiling.run(image, device, scale=1, tile=64, pad=3)
    np.testing.assert_array_equal(out, box_blur(3)(image))
    assert device.open == 0, "every answer was asked for"


def test_fewer_at_once_are_tried_before_smaller_ones():
    image = np.full((7, 800, 3), 90, np.uint8)
    shape = tiling.tiles(7, 800, tile=50, pad=2)[0].window.shape
    device = Later(nearest(2), room=3 * shape[0] * shape[1])
    tiling.run(image, device, scale=2, tile=50, pad=2)
    assert [given[0] for given in device.given] == [7, 7, 3, 3, 3, 3, 3, 1]
    assert {given[1:] for given in device.given} == {shape}, "no tile was made smaller"


def test_parts_of_many_shapes_are_taken_together_by_shape(rng):
    image = rng.integers(0, 30, (100, 131, 3), dtype=np.uint8)
    device = Later(box_blur(3), room=10_000)
    out = tiling.run(image, device, scale=1, tile=131, pad=3)
    np.testing.assert_array_equal(out, box_blur(3)(image))
    assert len({given[1:] for given in device.given}) > 3


def test_two_batches_that_fail_together_make_tiles_smaller_once():
    image = np.full((100, 200, 3), 90, np.uint8)
    device = Later(nearest(1), waits=[1, 2])
    tiling.run(image, device, scale=1, tile=100, pad=0)
    assert device.given[:2] == [(1, 100, 100)] * 2
    assert {given[1:] for given in device.given[2:]} == {(50, 50)}
    assert sum(given[0] for given in device.given[2:]) == 8


def test_a_stop_leaves_no_more_than_the_batch_that_is_under_way():
    image = np.full((200, 200, 3), 90, np.uint8)
    device = Later(nearest(1))

    def stop(done, _total):
        if done == 1:
            raise Cancelled("stopped")

    with pytest.raises(Cancelled):
        tiling.run(image, device, scale=1, tile=50, pad=0, progress=stop)
    assert len(device.given) == 2


def test_answers_that_are_too_few_or_in_another_order_are_refused(rng):
    image = rng.integers(0, 256, (1, 60, 3), np.uint8).repeat(10, axis=0).repeat(10, axis=1)

    class Shuffled(Later):
        change = staticmethod(lambda answers: answers[::-1])

        def start(self, windows):
            wait = super().start(windows)
            return lambda: self.change(wait())

    device = Shuffled(nearest(2))
    with pytest.raises(InvalidOutput, match="two different answers"):
        tiling.run(image, device, scale=2, tile=40, pad=4)
    device.change = lambda answers: answers[1:]
    with pytest.raises(InvalidOutput, match="3 tiles came back of 4"):
        tiling.run(image, device, scale=2, tile=40, pad=4)
