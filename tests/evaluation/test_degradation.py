"""Degradation recipes are reproducible from a seed and ordered by severity."""

import numpy as np
import pytest

from restorer.evaluation import degradation, metrics
from restorer.evaluation.degradation import RECIPES
from restorer.models import compat
from tests.conftest import photo_like


@pytest.fixture
def truth(rng) -> np.ndarray:
    return photo_like(rng, 96, 128)


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("scale", [1, 2, 4])
def test_same_seed_gives_same_image(name, scale, truth):
    image = degradation.degrade(truth, RECIPES[name], scale=scale, seed=5)
    assert (image.shape, image.dtype) == ((96 // scale, 128 // scale, 3), np.uint8)
    np.testing.assert_array_equal(image, degradation.degrade(truth, RECIPES[name], scale=scale, seed=5))
    other = degradation.degrade(truth, RECIPES[name], scale=scale, seed=6)
    assert np.array_equal(image, other) == (name == "small"), "only that recipe is deterministic"


def test_small_recipe_averages_areas_and_heavy_recipe_is_worse(truth):
    small = degradation.degrade(truth, RECIPES["small"], seed=0)
    np.testing.assert_allclose(small, truth.reshape(24, 4, 32, 4, 3).mean((1, 3)), atol=0.5)
    default, heavy = (
        np.mean([metrics.psnr(small, degradation.degrade(truth, RECIPES[name], seed=s)) for s in range(5)])
        for name in ("default", "heavy")
    )
    assert 20 < default < 36
    assert heavy < default - 4


def test_matlab_bicubic_matches_basicsr_in_8_and_16_bits(truth):
    theirs = compat.load_attribute("basicsr.utils.matlab_functions", "imresize")
    expected = np.clip(theirs(truth / 255, 2) * 255, 0, 255)
    np.testing.assert_allclose(degradation.matlab_bicubic(truth, 2), expected, atol=0.51)
    deep = degradation.matlab_bicubic(truth.astype(np.uint16) * 257, 2)
    np.testing.assert_allclose(deep / 257, expected, atol=0.01)
    assert degradation.matlab_bicubic(truth, 1 / 4).shape == (24, 32, 3)
