"""Tests that need a GPU."""

import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from restorer.inference import engine
from restorer.inference.upscale import Stats
from restorer.models import registry
from tests.reference import photos

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def load(name, device, half):
    weights = Path(__file__).parents[2] / "weights"
    return engine.load(registry.find(name, weights), weights, device=device, half=half, lock=threading.Lock())


def enlarge(device, image, *, half=None, tile=2048, fail=()):
    """Return the result of the built-in model, with out-of-memory errors at some calls."""
    run = load(registry.BUILT_IN, device, half)
    calls = []

    def failing(compute):
        def call(*windows):
            calls.append(len(calls))
            if calls[-1] in fail:
                raise torch.OutOfMemoryError("out of memory")
            return compute(*windows)

        return call

    run._backend = run._backend._replace(compute=[failing(compute) for compute in run._backend.compute])
    stats = Stats()
    result = np.concatenate(list(run.bands(image, tile=tile, stats=stats)))
    assert stats.retries == len(fail)
    return result


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_gpu_and_cpu_results_agree(dtype):
    image = photos()["chelsea"].astype(dtype) * dtype(np.iinfo(dtype).max // 255)
    white, expected = int(np.iinfo(dtype).max), enlarge("cpu:torch", image).astype(np.float64)
    for half, decibels in ((False, 60), (True, 45)):
        error = np.square(enlarge("cuda", image, half=half) - expected).mean()
        assert 10 * np.log10(white**2 / error) > decibels


def test_tiles_and_errors_change_at_most_one_level():
    image = photos()["chelsea"]
    expected = enlarge("cuda", image).astype(int)
    for options in ({"tile": 64}, {"fail": (0,)}, {"fail": (2, 5)}):
        assert np.abs(enlarge("cuda", image, **options) - expected).max() <= 1
    assert cv2.PSNR(enlarge("cuda", image), expected.astype(np.uint8)) > 100


@pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability() != (9, 0), reason="no Hopper"
)
def test_triton_computes_rrdbnet_on_hopper():
    image, exact = photos()["chelsea"], load("RealESRGAN_x4plus", "cuda", False)
    run = load("RealESRGAN_x4plus", "cuda", None)
    assert type(run._backend.compute[1]).__name__ == "DenseBlock"
    assert type(run._backend.compute[-1]).__name__ == "Tail"
    assert cv2.PSNR(run(image), exact(image)) > 50
