"""Faults at every tile: the result is correct or an error is raised, never anything else."""

import numpy as np
import pytest
import torch

from restorer.errors import InvalidOutput, OutOfMemory
from restorer.inference import tiling
from restorer.inference.engine import Engine
from tests.conftest import photo_like
from tests.inference.test_tiling import box_blur, nearest

SHAPE, TILE, PAD = (150, 200), 40, 4


class Scripted:
    """A function with faults at some of its calls, {call: fault}."""

    def __init__(self, function, faults):
        self.function, self.faults, self.calls, self.previous = function, faults, 0, None

    def __call__(self, window):
        fault = self.faults.get(self.calls, lambda engine, window: engine.function(window))
        self.calls += 1
        output = fault(self, window)
        self.previous = self.function(window)
        return output


def out_of_memory(engine, window):
    raise OutOfMemory("out of memory")


def broken(engine, window):
    raise RuntimeError("broken")


def none(engine, window):
    return None


def stale(engine, window):
    """The output of the previous tile."""
    return (
        engine.previous.copy() if engine.previous is not None else engine.function(window[::-1, ::-1] ^ 255)
    )


def empty(engine, window):
    return np.zeros_like(engine.function(window))


def changing(engine, window):
    window[:] = 0
    return engine.function(window)


WRONG = [broken, none, stale, empty, changing]


def run(image, faults, function=None):
    return tiling.run(image, Scripted(function or nearest(2), faults), scale=2, tile=TILE, pad=PAD)


@pytest.fixture
def image(rng):
    return photo_like(rng, *SHAPE)


def count(image):
    return len(tiling.tiles(*image.shape[:2], tile=TILE, pad=PAD))


@pytest.mark.parametrize("depth", [1, 2])
def test_repeated_out_of_memory_does_not_change_the_result(image, depth):
    blur = box_blur(PAD)
    untiled = blur(image)
    for first in range(count(image) * 2):
        faulty = Scripted(blur, {first + offset: out_of_memory for offset in range(depth)})
        try:
            out = tiling.run(image, faulty, scale=1, tile=128, pad=PAD)
        except OutOfMemory:
            pytest.fail("128 can be halved twice")
        np.testing.assert_array_equal(out, untiled)


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_output_at_any_tile_raises(image, wrong):
    clean = image.copy()
    for call in range(count(image)):
        with pytest.raises((InvalidOutput, RuntimeError, ValueError)):
            run(image, {call: wrong})
    np.testing.assert_array_equal(image, clean)


def test_exchanged_outputs_raise(rng):
    """No two tiles are alike here; tests/stress counts how often they are in photos."""
    image = rng.integers(0, 256, (15, 20, 3), np.uint8).repeat(10, axis=0).repeat(10, axis=1)
    windows = [image[tile.window.slices] for tile in tiling.tiles(*SHAPE, tile=TILE, pad=PAD)]
    for one in range(len(windows)):
        for other in range(one):
            exchanged = {one: windows[other], other: windows[one]}
            faults = {
                call: lambda engine, _, shown=shown: engine.function(shown)
                for call, shown in exchanged.items()
            }
            with pytest.raises(InvalidOutput, match="two different results"):
                run(image, faults)


def test_missing_or_duplicate_tile_raises(image, monkeypatch):
    tiles = tiling.tiles(*SHAPE, tile=TILE, pad=PAD)
    for index in range(len(tiles)):
        for changed, message in (
            (tiles[:index] + tiles[index + 1 :], "not written"),
            ([*tiles, tiles[index]], "twice"),
            ([tiles[index], *tiles], "twice"),
        ):
            monkeypatch.setattr(tiling, "tiles", lambda *_, changed=changed, **__: changed)
            with pytest.raises(InvalidOutput, match=message):
                run(image, {})


@pytest.mark.parametrize(
    "odd", [lambda tile: 255 - tile, lambda tile: tile * 0, lambda tile: tile[..., ::-1]]
)
def test_network_that_changes_brightness_is_trusted_after_a_few_tiles(image, odd):
    faulty = Scripted(lambda tile: nearest(2)(odd(tile)), {})
    out = tiling.run(image, faulty, scale=2, tile=TILE, pad=PAD)
    np.testing.assert_array_equal(out, nearest(2)(odd(image)))
    assert count(image) < faulty.calls <= count(image) + 4


class Poisoned(torch.nn.Module):
    """Enlarges twice; returns NaN at `where` in one call, only of float16 or of any."""

    def __init__(self, call, where, only_half):
        super().__init__()
        self.call, self.where, self.only_half, self.calls = call, where, only_half, [0]

    def forward(self, x):
        out = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
        if x.dtype == torch.float16 or not self.only_half:
            if self.calls[0] == self.call:
                out[self.where] = float("nan")
            self.calls[0] += 1
        return out


@pytest.mark.parametrize("where", [(0, 1, 7, 9), ...])
def test_nan_at_any_tile_raises_or_is_recomputed(image, where):
    for call in range(count(image)):
        engine = Engine(Poisoned(call, where, False), scale=2, device=torch.device("cpu"))
        with pytest.raises(InvalidOutput, match="NaN"):
            tiling.run(image, engine, scale=2, tile=TILE, pad=PAD)
        engine = Engine(Poisoned(call, where, True), scale=2, device=torch.device("cpu"), half=True)
        out = tiling.run(image, engine, scale=2, tile=TILE, pad=PAD)
        np.testing.assert_allclose(out, nearest(2)(image), atol=1)  # float16
