import numpy as np
import pytest
import torch

from restorer.errors import Cancelled, InvalidOutput, OutOfMemory
from restorer.inference import network, tiling
from tests.inference.seeded import NETWORKS, Blur, Nearest, create, image, parts_of

SIZES = [(1, 1), (1, 97), (31, 33), (64, 64), (65, 63), (127, 200), (40, 301)]


class Floats:
    """A sink that stores outputs as they are."""

    def band(self, rows, columns):
        return np.full((rows, columns, 3), np.nan, np.float32)

    def write(self, band, box, output):
        assert np.isnan(band[box.slices]).all(), "written twice"
        band[box.slices] = output[0].permute(1, 2, 0).numpy()

    def samples(self, band):
        return band


def run(parts, first, compute=None, **options):
    passes = tiling.Run(parts, compute or [part.module for part in parts], **options)
    return torch.from_numpy(np.concatenate(list(passes.bands(first, Floats())))).permute(2, 0, 1)[None]


def whole(parts, first):
    for part in parts:
        first = part.module(first)
    return first


BLURS = parts_of(Blur(2), Blur(3), Nearest(2), halos=(2, 3, 0), scale=2)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("tile", [32, 33, 64, 4096])
def test_result_does_not_depend_on_the_tile(size, tile):
    first = image(*size)
    torch.testing.assert_close(run(BLURS, first, tile=tile), whole(BLURS, first), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_networks_are_exact_at_any_tile(kind, layout):
    module, align = create(kind).to(memory_format=layout), NETWORKS[kind][3]
    parts = network.segments(module)
    for height, width in ((1, 40), (73, 51)):
        batch = image(height * align, width * align)
        first = torch.nn.functional.pixel_unshuffle(batch, align).contiguous(memory_format=layout)
        expected = module(batch)
        for tile in (32, 40, 64):
            limit = 1e-5 * float(expected.abs().max())
            torch.testing.assert_close(run(parts, first, tile=tile), expected, rtol=0, atol=limit)


def test_one_row_less_context_leaves_a_seam():
    first = image(131, 77)
    parts = [BLURS[0], BLURS[1]._replace(halo=2), BLURS[2]]
    with pytest.raises(AssertionError):
        out = run(parts, first, tile=32, check_all=False)
        torch.testing.assert_close(out, whole(parts, first), rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(64, 64), (132, 100), (300, 44), (36, 1000), (700, 3)])
@pytest.mark.parametrize(("tile", "pad"), [(32, 8), (64, 24), (48, 0)])
def test_tiles_cover_the_map_once_with_context(size, tile, pad):
    tiles = tiling.tiles(*size, tile=tile, pad=pad)
    count = np.zeros(size, int)
    for window, core in tiles:
        count[core.slices] += 1
        for near, far, edge, limit in (
            (window.top, core.top, 0, None),
            (window.left, core.left, 0, None),
            (core.bottom, window.bottom, None, size[0]),
            (core.right, window.right, None, size[1]),
        ):
            assert far - near >= pad or near == edge or far == limit
    assert (count == 1).all()
    assert len({window.shape for window, _ in tiles}) == 1
    height, width = tiles[0].window.shape
    assert height * width <= (tile + 2 * pad) ** 2
    assert min(size) < tile or max(height, width) <= tile + 2 * pad
    assert height * width >= min(size[0] * size[1], tile * tile // 4), "PyTorch rounds small inputs otherwise"


class Scripted:
    """A segment with faults at some of its calls, {call: fault}; counts the calls of all its copies."""

    def __init__(self, part, faults, calls):
        self.part, self.faults, self.calls, self.sides = part, faults, calls, []

    def __call__(self, *windows):
        fault = self.faults.get(self.calls[0], lambda part, *windows: part.module(*windows))
        self.calls[0] += 1
        self.sides.append(max(windows[0].shape[-2:]))
        return fault(self.part, *windows)


def scripted(parts, faults):
    calls = [0]
    return [Scripted(part, faults, calls) for part in parts], calls


def out_of_memory(part, *windows):
    raise OutOfMemory("out of memory")


@pytest.mark.parametrize("depth", [1, 2])
def test_out_of_memory_at_any_segment_and_tile_changes_nothing(depth):
    first = image(150, 200)
    expected = run(BLURS, first, tile=128)
    compute, calls = scripted(BLURS, {})
    run(BLURS, first, compute, tile=128)
    total = calls[0]
    assert total >= 20
    for call in range(total):
        compute, _ = scripted(BLURS, {call + offset: out_of_memory for offset in range(depth)})
        torch.testing.assert_close(run(BLURS, first, compute, tile=128), expected, rtol=0, atol=0)


def test_out_of_memory_while_a_window_is_copied_halves_the_tile(monkeypatch):
    first, cut = image(150, 200), tiling._cut
    expected = run(BLURS, first, tile=128)

    def full(plane, window):
        if max(window.shape) > 100:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return cut(plane, window)

    monkeypatch.setattr(tiling, "_cut", full)
    torch.testing.assert_close(run(BLURS, first, tile=128), expected, rtol=0, atol=0)


def test_tile_size_is_halved_once_for_the_rest_of_the_image():
    first = image(400, 400)
    largest = 70

    def small_only(part, *windows):
        if max(windows[0].shape[-2:]) > largest:
            raise OutOfMemory("out of memory")
        return part.module(*windows)

    compute, _ = scripted(BLURS, {call: small_only for call in range(1000)})
    passes = tiling.Run(BLURS, compute, tile=256)
    list(passes.bands(first, Floats()))
    assert passes.retries == 2, "256 and 128"
    assert [max(part.sides) for part in compute[1:]] == [63, 31]


@pytest.mark.parametrize("segment", range(len(BLURS)))
def test_tiles_that_were_cut_before_memory_ran_out_are_split(segment):
    """Several rows of tiles are cut at once; those after the first must not be halved again."""
    first, tile = image(400, 400), 128
    plain, _ = scripted(BLURS, {})
    expected = run(BLURS, first, plain, tile=tile)
    largest = max(plain[segment].sides)

    def smaller_only(part, *windows):
        if max(windows[0].shape[-2:]) == largest:
            raise OutOfMemory("out of memory")
        return part.module(*windows)

    compute, _ = scripted(BLURS, {})
    compute[segment].faults = {call: smaller_only for call in range(1000)}
    torch.testing.assert_close(run(BLURS, first, compute, tile=tile), expected, rtol=0, atol=0)
    assert len(plain[segment].sides) > 4 and compute[segment].sides.count(largest) == 1


def test_fixed_tile_is_tried_again():
    """A backend whose result depends on the tile's size."""
    first = image(150, 200)
    expected, sides = run(BLURS, first, tile=64), set()
    for call in range(12):
        compute, _ = scripted(BLURS, {call + offset: out_of_memory for offset in range(3)})
        torch.testing.assert_close(run(BLURS, first, compute, tile=64, fixed=True), expected, rtol=0, atol=0)
        sides.add(max(compute[0].sides))
    assert len(sides) == 1
    compute, calls = scripted(BLURS, {call: out_of_memory for call in range(1000)})
    with pytest.raises(OutOfMemory, match="not enough memory for a tile of 64 pixels"):
        run(BLURS, first, compute, tile=64, fixed=True)
    assert calls[0] == 4


def test_too_little_memory_for_the_smallest_tile_raises():
    compute, calls = scripted(BLURS, {call: out_of_memory for call in range(1000)})
    with pytest.raises(OutOfMemory, match="not enough memory for a tile of 32 pixels"):
        run(BLURS, image(100, 100), compute, tile=100)
    assert calls[0] == 3, "100, 50 and 32 pixels"


def stale(part, *windows):
    """Another tile's output."""
    return part.module(*(window.flip(-1, -2) * 0.5 + 0.4 for window in windows))


WRONG = {
    "empty": lambda part, *windows: part.module(*windows) * 0,
    "stale": stale,
    "nan": lambda part, *windows: part.module(*windows) * torch.nan,
    "channels": lambda part, *windows: part.module(*windows)[:, :1],
    "rows": lambda part, *windows: part.module(*windows)[..., 1:, :],
    "two images": lambda part, *windows: part.module(*windows).repeat(2, 1, 1, 1),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_output_at_any_segment_and_tile_raises(wrong):
    first = image(60, 90)
    compute, calls = scripted(BLURS, {})
    run(BLURS, first, compute, tile=40)
    for call in range(calls[0]):
        compute, _ = scripted(BLURS, {call: WRONG[wrong]})
        with pytest.raises(InvalidOutput):
            run(BLURS, first, compute, tile=40)


@pytest.mark.parametrize("kind", ["rrdb", "compact"])
def test_exchanged_outputs_raise(kind):
    """In each segment, two neighbouring tiles of a picture in which no two tiles are alike."""
    parts = network.segments(create(kind))
    squares = torch.rand(1, 3, 6, 6, generator=torch.Generator().manual_seed(3))
    first = torch.nn.functional.interpolate(squares, scale_factor=16)
    for index in range(len(parts)):
        seen = []

        def exchanged(*windows, part=parts[index], seen=seen):
            seen.append(windows)
            return part.module(*(seen[0] if len(seen) == 2 else windows))

        compute = [part.module for part in parts]
        compute[index] = exchanged
        with pytest.raises(InvalidOutput, match="wrong result for a tile"):
            run(parts, first, compute, tile=48)


def test_missing_and_duplicate_tiles_raise(monkeypatch):
    original = tiling.tiles
    for change, message in ((lambda t: t[:-1], "not computed"), (lambda t: [*t, t[-1]], "computed twice")):
        monkeypatch.setattr(tiling, "tiles", lambda *a, change=change, **k: change(original(*a, **k)))
        with pytest.raises(InvalidOutput, match=message):
            run(BLURS, image(100, 100), tile=32)


def test_backend_that_writes_to_its_window_is_detected():
    def overwrite(window):
        output = BLURS[0].module(window)
        window.zero_()
        return output

    with pytest.raises(InvalidOutput):
        run(BLURS, image(50, 50), [overwrite, *(part.module for part in BLURS[1:])], tile=32)


def test_progress_counts_the_tiles_of_all_segments_and_may_cancel():
    steps = []
    run(BLURS, image(100, 100), tile=50, progress=lambda *step: steps.append(step))
    total = sum(len(tiling.tiles(100, 100, tile=side, pad=pad)) for side, pad in ((50, 2), (50, 3), (32, 0)))
    assert steps[0] == (0, total) and steps[-1] == (total, total)
    assert [done for done, _ in dict.fromkeys(steps)] == list(range(total + 1))
    assert tiling.count_tiles(BLURS, 100, 100, 50) == total

    compute, calls = scripted(BLURS, {})

    def stop(done, _total):
        if done == 2:
            raise Cancelled("stopped")

    with pytest.raises(Cancelled):
        run(BLURS, image(100, 100), compute, tile=50, progress=stop)
    assert calls[0] == 2


def test_a_band_is_yielded_after_the_next_one_was_computed():
    computed = []

    def counting(window):
        computed.append(len(computed))
        return BLURS[2].module(window)

    passes = tiling.Run(BLURS, [BLURS[0].module, BLURS[1].module, counting], tile=64)
    bands = passes.bands(image(100, 32), Floats())
    assert next(bands).shape[0] < 100 and len(computed) == 2
