"""The estimator of fading: one network for NumPy and torch, exact inverses, and training that learns."""

import cv2
import numpy as np
import pytest
import torch
from skimage.color import deltaE_ciede2000, rgb2lab

from bench.colour import faded, fading
from restorer.images import fading as estimator
from restorer.images.icc import decode_srgb, encode_srgb
from tests.conftest import photo_like
from training import colour


@pytest.fixture(scope="module")
def crops(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for seed in range(3):
        pixels = photo_like(np.random.default_rng(seed), 60, 90)
        cv2.imwrite(str(folder / f"{seed}.png"), pixels)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(colour, "_CROPS", 4)
        return colour.load(folder, np.random.default_rng(0))


def arrays(weights: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in weights.items()}


def test_numpy_and_torch_compute_the_same(crops):
    rng = np.random.default_rng(1)
    weights = colour.initial(crops, rng)
    weights["last.weight"] = torch.from_numpy(rng.normal(0, 0.2, weights["last.weight"].shape)).float()
    statistics, black, white, _, _ = colour.batch(crops, 5, rng)
    outputs = estimator.forward(weights, statistics, torch)
    expected = estimator.forward(arrays(weights), statistics.numpy())
    np.testing.assert_allclose(outputs.numpy(), expected, atol=1e-4)
    curves = estimator.inverse(outputs, black, white, torch).numpy()
    np.testing.assert_allclose(curves, estimator.inverse(expected, black.numpy(), white.numpy()), atol=1e-4)
    assert (curves[:, 0] < curves[:, 1]).all() and np.ptp(curves[:, 2]) > 0.1


def test_crops_fade_as_in_the_benchmark(rng):
    pixels = photo_like(rng, 20, 30)
    light = decode_srgb(pixels[None].reshape(1, -1, 3) / 255)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(colour, "_WEAK", 0)
        (after,) = colour.fade([light], np.random.default_rng(3))
    expected = faded(pixels, np.random.default_rng(3)).reshape(1, -1, 3)
    np.testing.assert_array_equal(np.rint(255 * encode_srgb(after)), expected)
    gain, gamma, veil = fading(np.random.default_rng(3))
    inverse = ((after - veil) / gain).clip(0) ** (1 / gamma)
    assert np.abs(encode_srgb(inverse.clip(0, 1)) - pixels.reshape(1, -1, 3) / 255).mean() < 0.01


def test_the_distance_is_close_to_ciede2000(rng):
    original = rng.random((4000, 3))
    changed = (original + rng.normal(0, 0.05, original.shape)).clip(0, 1)
    expected = deltaE_ciede2000(rgb2lab(original), rgb2lab(changed))
    light = (torch.from_numpy(decode_srgb(part)).float() for part in (changed, original))
    measured = colour.distance(*light).numpy()
    assert np.corrcoef(measured, expected)[0, 1] > 0.95
    assert measured.mean() == pytest.approx(expected.mean(), rel=0.1)
    same = torch.from_numpy(original).float()
    assert colour.distance(same, same).max() < 0.05


@pytest.mark.slow
def test_training_learns_and_repeats(crops):
    rng = np.random.default_rng(5)
    first = colour.train(crops, 60, 8)
    parts = colour.batch(crops, 64, rng)
    untrained = colour.initial(crops, np.random.default_rng(1))
    assert colour.loss(first, parts) < 0.8 * colour.loss(untrained, parts)
    again = colour.train(crops, 60, 8)
    assert all(torch.equal(value, again[name]) for name, value in first.items())
