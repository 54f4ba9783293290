"""Tests that need a GPU."""

from pathlib import Path

import numpy as np
import pytest
import torch

from restorer.evaluation.metrics import psnr
from restorer.inference import engine, tiling
from restorer.models import architectures
from tests.conftest import photo_like

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
CUDA = torch.device("cuda")
FILE = Path(__file__).parents[2] / "weights/restore-lite-x4.safetensors"


def create_engine(device, *, half):
    state = architectures.read_state(FILE)
    spec = architectures.detect(state, FILE.name)
    network = architectures.build(spec, state, FILE.name)
    return engine.Engine(network, scale=4, device=device, half=half, pad=spec.pad)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_gpu_and_cpu_results_agree(rng, dtype):
    image = photo_like(rng, 300, 410).astype(dtype) * dtype(np.iinfo(dtype).max // 255)
    out = {}
    for device, half in ((torch.device("cpu"), False), (CUDA, False), (CUDA, True)):
        run = create_engine(device, half=half)
        out[device.type, half] = tiling.run(image, run, scale=4, tile=64, pad=run.pad)
    assert psnr(out["cpu", False], out["cuda", False]) > 60
    assert psnr(out["cpu", False], out["cuda", True]) > 45
