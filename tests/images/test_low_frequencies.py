"""The low frequencies of an enlarged image are its photo's; nothing else changes."""

import imagecodecs
import numpy as np
import pytest
from skimage import data

import restorer
from restorer.images import low_frequencies, photo
from restorer.images.low_frequencies import CELL
from restorer.images.resample import to_uint16
from restorer.inference import upscale
from restorer.models import registry, sources
from tests.conftest import photo_like
from tests.inference.test_upscale import Nearest

SCENE = to_uint16(data.astronaut()[30:230, 150:350])


def shifted(pixels: np.ndarray, shift: np.ndarray) -> np.ndarray:
    return np.clip(pixels + shift, 0, 65535).astype(np.uint16)


def cell_means(image: np.ndarray, cell: int) -> np.ndarray:
    height, width = (side // cell * cell for side in image.shape[:2])
    return image[:height, :width].reshape(height // cell, cell, width // cell, cell, 3).mean((1, 3))


@pytest.mark.parametrize("scale", [1, 2, 4])
@pytest.mark.parametrize("size", [(1, 1), (3, 50), (67, 41), (120, 136)])
def test_an_image_with_the_means_of_the_photo_does_not_change(scale, size):
    small = SCENE[: size[0], : size[1]]
    larger = small.repeat(scale, axis=0).repeat(scale, axis=1)
    y, x = np.mgrid[: larger.shape[0], : larger.shape[1]]
    if scale > 1:  # texture of the finest frequency has no effect on the means
        larger = shifted(larger // 2 + 16384, 3000 * (1 - 2 * ((x + y) % 2))[..., None])
        small = small // 2 + 16384
    matched = larger.copy()
    low_frequencies.match(matched, small)
    np.testing.assert_allclose(matched.astype(int), larger.astype(int), atol=2)


@pytest.mark.parametrize("outscale", [1, 1.5, 2.3, 4])
def test_a_smooth_shift_of_colours_is_removed(outscale):
    size = round(194 * outscale)
    index = np.minimum((np.arange(size) / outscale).astype(int), 193)
    true = SCENE[index][:, index] // 2 + 16000
    y, x = np.mgrid[:size, :size] / size
    shift = np.dstack([2000 * np.sin(3 * x + y), -1500 * y, 1000 + 0 * x])
    matched = shifted(true, shift)
    low_frequencies.match(matched, SCENE[:194, :194] // 2 + 16000)
    error = matched.astype(float) - true
    assert np.abs(cell_means(error, 32)).max() < 60 if outscale in (1, 4) else np.abs(error).mean() < 300
    assert np.abs(error).mean() < np.abs(shift).mean() / 4
    assert outscale not in (1, 4) or np.abs(error[-1]).max() < 250, "cells that extend beyond the photo"


def test_bands_of_the_computation_leave_no_seams(monkeypatch):
    bands, results = low_frequencies.bands, []
    for size in (256, 64, 33):
        monkeypatch.setattr(low_frequencies, "bands", lambda height, rows=size: bands(height, rows))
        larger = shifted(SCENE.repeat(3, axis=0).repeat(3, axis=1), np.linspace(0, 3000, 600)[:, None, None])
        low_frequencies.match(larger, SCENE)
        results.append(larger.astype(int))
    assert max(np.abs(results[0] - other).max() for other in results[1:]) <= 1


def test_transparent_pixels_neither_count_nor_change(rng):
    small = np.full((64, 64, 3), 20000, np.uint16)
    alpha = np.zeros((64, 64), np.uint16)
    alpha[:, 20:40] = 65535
    results = []
    for hidden in (0, 65535):
        before = small.copy()
        before[alpha == 0] = hidden
        larger = np.full((128, 128, 3), 26000, np.uint16)
        larger_alpha = alpha.repeat(2, axis=0).repeat(2, axis=1)
        larger[larger_alpha == 0] = 0
        low_frequencies.match(larger, before, larger_alpha=larger_alpha, photo_alpha=alpha)
        assert not larger[larger_alpha == 0].any()
        results.append(larger)
    np.testing.assert_array_equal(*results)
    assert np.abs(results[0][:, 40:80].astype(int) - 20000).max() < 300


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("alpha", [None, "opaque", "half"])
def test_depth_and_alpha_stay_as_they_are(rng, dtype, alpha):
    top = np.iinfo(dtype).max
    pixels = photo_like(rng, 40, 30).astype(dtype) * dtype(top // 255)
    plane = None if alpha is None else np.full((40, 30), top, dtype)
    if alpha == "half":
        plane[:20] = top // 2
    before = photo.Photo(pixels, plane, photo.Meta("png"))
    after = upscale.upscale_matched(before, Nearest(4), outscale=4, tile=32)
    assert after.pixels.dtype == dtype
    np.testing.assert_allclose(
        after.pixels.astype(int), pixels.repeat(4, 0).repeat(4, 1), atol=max(1, top // 2**14)
    )
    if plane is not None:
        np.testing.assert_array_equal(after.alpha, plane.repeat(4, 0).repeat(4, 1))


def present() -> list:
    """The names of the models that are present; RRDBNets are slow."""
    folder = registry.weights_folder(None)
    models = [model for model in registry.MODELS if model.kind == "upscale"]
    names = [model.name for model in models if sources.is_present(model, folder)]
    return [pytest.param(name, marks=pytest.mark.slow if "x4plus" in name else ()) for name in names]


@pytest.mark.parametrize("model", present())
def test_dark_pictures_keep_their_light(model):
    run = restorer.Restorer(model=model, face_enhance="off", format="png", outscale=2)
    for level in (400, 1000, 2000):
        noise = np.random.default_rng(level).normal(0, level * 0.05, (40, 44))
        sky = np.rint(level + noise).astype(np.uint16)
        result = imagecodecs.png_decode(run.restore(bytes(imagecodecs.png_encode(sky))).data)
        assert abs(result.mean() / sky.mean() - 1) < 0.05


@pytest.mark.parametrize("model", present())
def test_colours_of_blocks_stay_those_of_the_photo(model):
    from skimage.color import deltaE_ciede2000, rgb2lab

    pixels = data.astronaut()[60:124, 180:260]
    run = restorer.Restorer(model=model, face_enhance="off", format="png", outscale=4)
    result = run.restore(bytes(imagecodecs.png_encode(pixels)))
    lab = [
        rgb2lab(cell_means(image / 255, size))
        for image, size in ((pixels, CELL), (result.after.pixels, 4 * CELL))
    ]
    assert deltaE_ciede2000(*lab).mean() < 0.5
