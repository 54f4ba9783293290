"""Tests that need a GPU."""

import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from restorer.inference import engine
from restorer.models import registry
from restorer.progress import Stats
from tests.reference import photos

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def load(name, device, half):
    weights = Path(__file__).parents[2] / "weights"
    return engine.load(registry.find(name, weights), weights, device=device, half=half, lock=threading.Lock())


def enlarge(device, image, *, name=registry.BUILT_IN, half=None, tile=2048, fail=()):
    """Return the result of a model, with out-of-memory errors at some calls."""
    run = load(name, device, half)
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


HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)


@pytest.mark.parametrize("name", [registry.BUILT_IN, "RealESRGAN_x4plus"])
def test_tiles_and_errors_change_little(name):
    """cuDNN chooses other kernels for other sizes, and the difference grows with the number of layers."""
    image = np.resize(photos()["chelsea"], (150, 190, 3))
    levels = 0 if HOPPER else 1 if name == registry.BUILT_IN else 8
    later = (1, 3) if name == registry.BUILT_IN else (2, 50)  # calls, of which one segment has few
    expected = enlarge("cuda", image, name=name).astype(int)
    for options in ({"tile": 64}, {"fail": (0,)}, {"tile": 128, "fail": later}):
        assert np.abs(enlarge("cuda", image, name=name, **options) - expected).max() <= levels
    assert cv2.PSNR(enlarge("cuda", image, name=name), expected.astype(np.uint8)) > 100


@pytest.mark.skipif(not HOPPER, reason="no Hopper")
def test_triton_computes_networks_on_hopper():
    image, exact = photos()["chelsea"], load("RealESRGAN_x4plus", "cuda", False)
    run = load("RealESRGAN_x4plus", "cuda", None)
    assert {type(compute).__name__ for compute in run._backend.compute} == {"Layers", "DenseBlock", "Tail"}
    for size in ((45, 57), (8, 20_000)):  # the tail's tile of the second has 80,000 rows
        photo = np.resize(image, (*size, 3))
        assert cv2.PSNR(run(photo), exact(photo)) > 50
