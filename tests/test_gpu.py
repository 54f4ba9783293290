"""What only a machine with a GPU can show."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import photo_like

from restorer import engine, networks, tiling
from restorer.metrics import psnr

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
CUDA = torch.device("cuda")


FILE = Path(__file__).parents[1] / "weights/restore-lite-x4.safetensors"


def engine_on(device, *, half):
    state = networks.read_state(FILE)
    shape = networks.recognise(state, FILE.name)
    network = networks.build(shape, state, FILE.name)
    return engine.Engine(network, scale=4, device=device, half=half, pad=shape.pad)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_gpu_gives_the_processors_picture(rng, dtype, caplog):
    image = photo_like(rng, 300, 410).astype(dtype) * dtype(np.iinfo(dtype).max // 255)
    out = {}
    for device, half in ((torch.device("cpu"), False), (CUDA, False), (CUDA, True)):
        run = engine_on(device, half=half)
        for _ in range(2):
            out[device.type, half] = tiling.run(image, run, scale=4, tile=64, pad=run.pad)
        assert device.type == "cpu" or run._graphs.pixels, "launching takes longer than so few pixels"
    assert psnr(out["cpu", False], out["cuda", False]) > 60
    assert psnr(out["cpu", False], out["cuda", True]) > 45
    assert not caplog.records


def test_a_small_tile_is_captured_and_its_memory_comes_back(rng):
    run = engine_on(CUDA, half=True)
    tile, other = rng.integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    plain = run(tile)
    for _ in range(3):
        run(other)
    assert run._graphs.pixels == 32 * 32
    np.testing.assert_array_equal(run(tile), plain)
    assert run._graphs.forget()
    np.testing.assert_array_equal(run(tile), plain)
