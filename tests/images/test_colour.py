"""Fading is removed without clipping, and photos without it are not touched."""

import numpy as np
import pytest
from skimage import data
from skimage.color import deltaE_ciede2000, rgb2lab

from bench.colour import faded as randomly_faded
from restorer.errors import WeightsUnavailable
from restorer.images import colour, fading, photo
from restorer.images.icc import decode_srgb, encode_srgb
from restorer.options import Options
from tests.conftest import photo_like, png


def faded(pixels: np.ndarray) -> np.ndarray:
    """Return a photo with less red, more blue than green, and a yellow veil."""
    return np.rint(pixels * [0.6, 0.5, 0.35] + [75, 70, 50]).astype(np.uint8)


def scene(rng: np.random.Generator) -> np.ndarray:
    """Return a colourful photo with black, white and greys."""
    pixels = photo_like(rng, 120, 160)
    pixels[:, :40] = np.linspace(0, 255, 120).astype(np.uint8)[:, None, None]
    return pixels


def toned(rng: np.random.Generator) -> np.ndarray:
    grey = scene(rng)[..., :1] / 255
    return np.rint(255 * grey * [0.95, 0.8, 0.6]).astype(np.uint8)


def corrected(pixels: np.ndarray, **options: object) -> np.ndarray:
    before = photo.decode(png(pixels))
    return colour.apply(before, Options(colour="auto").changed(options)).pixels


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(deltaE_ciede2000(rgb2lab(a), rgb2lab(b)).mean())


def chroma(pixels: np.ndarray) -> float:
    return float(np.linalg.norm(rgb2lab(pixels)[..., 1:], axis=2).mean())


def test_a_faded_photo_is_nearer_to_the_original(rng):
    original = scene(rng)
    before = faded(original)
    assert distance(original, corrected(before)) < 0.5 * distance(original, before)


def test_fadings_of_photographs_are_about_halved():
    ratios = []
    for seed in range(12):
        original = (data.astronaut, data.coffee, data.chelsea)[seed % 3]()[::4, ::4]
        before = randomly_faded(original, np.random.default_rng(seed))
        ratios.append(distance(original, corrected(before, colour="on")) / distance(original, before))
    assert np.median(ratios) < 0.6


def test_an_exact_estimate_undoes_the_fading(rng):
    original = scene(rng)
    gain, gamma, veil = np.array([0.7, 0.8, 0.5]), np.array([0.8, 1, 1.3]), np.array([0.08, 0.05, 0.02])
    light = gain * decode_srgb(original / 255) ** gamma + veil
    before = np.rint(255 * encode_srgb(light)).astype(np.uint8)
    exact = colour.Fading(1.0, False, 20.0, np.array([0, 1]), veil, veil + gain, 1 / gamma)
    assert distance(original, colour.correct(before, exact)) < 0.1 * distance(original, before)


def test_the_order_and_the_number_of_samples_do_not_matter(rng):
    light = decode_srgb(scene(rng).reshape(-1, 3) / 255)
    expected = fading.estimate([light])
    np.testing.assert_allclose(fading.estimate([rng.permutation(light)]), expected)
    np.testing.assert_allclose(fading.estimate([np.repeat(light, 2, axis=0)]), expected, atol=0.005)
    assert np.abs(fading.estimate([0.5 * light]) - expected).max() > 0.1


def test_a_photo_and_its_corners_are_measured(rng, monkeypatch):
    small, opaque = rng.integers(0, 256, (10, 21, 3), dtype=np.uint8), np.ones((10, 21), bool)
    opaque[0, 0] = False
    seen = []
    monkeypatch.setattr(colour, "reduced", lambda *_: (small, opaque))
    monkeypatch.setattr(fading, "estimate", lambda views: seen.extend(views) or np.ones((3, 3)))
    colour.measure(small)
    assert [len(view) for view in seen] == [10 * 21 - 1, 8 * 17 - 1, 8 * 17, 8 * 17, 8 * 17]
    np.testing.assert_array_equal(seen[-1], decode_srgb(small[2:, 4:].reshape(-1, 3) / np.float32(255)))


def test_the_outputs_for_all_views_are_averaged(rng):
    first, second = (decode_srgb(scene(rng).reshape(-1, 3) / 255) ** power for power in (1, 0.7))
    np.testing.assert_allclose(fading.estimate([first, first]), fading.estimate([first]))
    bends = [np.arctanh(np.log(fading.estimate(views)[2]) / 0.6) for views in ([first], [second])]
    assert np.abs(bends[0] - bends[1]).max() > 0.01
    together = fading.estimate([first, second])
    np.testing.assert_allclose(together[2], np.exp(0.6 * np.tanh(np.mean(bends, axis=0))))


def test_a_photo_without_fading_is_returned_itself(rng):
    before = photo.decode(png(scene(rng)))
    assert colour.apply(before, Options(colour="auto")) is before
    assert colour.apply(photo.decode(png(faded(before.pixels))), Options()).pixels.tolist() == (
        faded(before.pixels).tolist()
    )


def test_on_corrects_a_photo_whose_fading_is_not_certain(rng):
    before = scene(rng)
    before[before < 12] = 12
    assert (corrected(before) == before).all()
    after = corrected(before, colour="on")
    assert (after != before).any() and (corrected(before, colour="neutral") == after).all()


def test_nothing_is_clipped_that_was_not(rng):
    before = faded(scene(rng))
    before[:5], before[5:10] = 0, 255  # damage beyond the photo's own range
    before[10, :50, 0] = np.arange(1, 51)
    after = corrected(before)
    np.testing.assert_array_equal((after == 0) | (after == 255), (before == 0) | (before == 255))
    assert (after != before).any()


def test_16_bits_stay_16_bits(rng):
    small = faded(scene(rng))
    exact = small.astype(np.uint16) * 257
    noisy = exact + rng.integers(0, 100, small.shape, dtype=np.uint16)
    fading = colour.measure(noisy)
    assert np.abs(colour.correct(exact, fading) / 257 - colour.correct(small, fading)).max() < 0.51
    after = colour.correct(noisy, fading)
    assert after.dtype == np.uint16 and len(np.unique(after)) > 5000


def test_strength_blends_the_photo_and_the_corrected_one(rng):
    before = faded(scene(rng))
    half, full = (corrected(before, colour_strength=strength).astype(int) for strength in (0.5, 1))
    assert np.abs(half - (full + before) / 2).max() <= 1
    assert (corrected(before, colour_strength=0) == before).all()


def test_a_toned_photo_keeps_its_tone_unless_neutral(rng):
    tone = toned(rng)
    assert colour.measure(tone).toned
    before = np.rint(tone * 0.6 + [60, 50, 35]).astype(np.uint8)
    auto, neutral = corrected(before), corrected(before, colour="neutral")
    assert (auto != before).any() and np.ptp(auto.astype(int)) > 1.3 * np.ptp(before.astype(int))
    assert chroma(auto) > 0.7 * chroma(before)
    assert (neutral == neutral[..., :1]).all()
    assert (corrected(tone) == tone).all() and chroma(corrected(tone, colour="neutral")) < 0.1


def test_a_toned_photo_gets_one_curve(rng):
    tint = np.array([30, 60, 120]) / 255  # of a cyanotype: shadows are blue, lights white
    before = np.rint(255 * (tint + (1 - tint) * (scene(rng)[..., :1] / 300))).astype(np.uint8)
    measured = colour.measure(before)
    assert measured.toned
    for part in (measured.black, measured.white, measured.gamma):
        assert np.ptp(part) == 0
    after = corrected(before, colour="on")
    assert (after != before).any() and chroma(after) > 0.9 * chroma(before)


@pytest.mark.parametrize(
    "change",
    [
        lambda light: light / 8,  # too dark
        lambda light: light * [0.08, 0.15, 0.5],  # dark and blue
        lambda light: 0.45 + 0.1 * light,  # hardly any range
        lambda light: 0.3 + 0.5 * light,  # nothing dark, as in fog
        lambda light: np.ones_like(light),
    ],
)
def test_what_is_not_certainly_fading_is_left_alone(rng, change):
    light = change(decode_srgb(scene(rng) / 255))
    before = np.rint(255 * encode_srgb(light)).astype(np.uint8)
    assert colour.measure(before).share == 0
    assert (corrected(before) == before).all()


@pytest.mark.parametrize("value", [(30, 60, 200), (255, 0, 0), (250, 250, 250)])
def test_plain_colours_stay(value):
    before = np.full((40, 60, 3), value, np.uint8)
    measured = colour.measure(before)
    assert not measured.toned and (corrected(before, colour="on") == before).all()


def test_a_grey_photo_stays_grey(rng):
    before = np.repeat(faded(scene(rng))[..., 1:2], 3, axis=2)
    after = corrected(before)
    assert (after == after[..., :1]).all() and (after != before).any()
    assert not colour.measure(before).toned


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_transparent_pixels_do_not_count(rng, dtype):
    pixels = (faded(scene(rng)).astype(dtype)) * (np.iinfo(dtype).max // 255)
    alpha = np.full(pixels.shape[:2], np.iinfo(dtype).max, dtype)
    expected = colour.measure(pixels, alpha)
    pixels[30:70, 50:90], alpha[30:70, 50:90] = 0, 0
    measured = colour.measure(pixels, alpha)
    assert measured.share == pytest.approx(expected.share, abs=0.1)
    assert measured.black == pytest.approx(expected.black, abs=0.01)


@pytest.mark.parametrize("alpha", [254, 200, 130])
def test_translucent_pixels_count(rng, alpha):
    pixels = faded(scene(rng))
    expected = colour.measure(pixels)
    measured = colour.measure(pixels, np.full(pixels.shape[:2], alpha, np.uint8))
    assert (measured.share, measured.chroma) == (expected.share, expected.chroma) and measured.share == 1
    hidden = colour.measure(pixels, np.full(pixels.shape[:2], 20, np.uint8))
    assert not hidden.share and not hidden.monochrome
    dots = np.zeros(pixels.shape[:2], np.uint8)
    dots[::3, ::3] = 255
    assert not colour.measure(pixels, dots).monochrome


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (700, 2)])
@pytest.mark.parametrize("value", [0, 40, 255])
def test_any_size_and_plain_colours_are_accepted(shape, value):
    pixels = np.full((*shape, 3), value, np.uint8)
    hidden = np.zeros(shape, np.uint8)
    for alpha in (None, hidden):
        after = colour.correct(pixels, colour.measure(pixels, alpha))
        assert after.shape == pixels.shape and len(np.unique(after)) == 1


def test_levels_stay_in_order(rng):
    fading = colour.measure(faded(scene(rng)))
    ramp = np.repeat(np.arange(65536, dtype=np.uint16)[:, None, None], 3, axis=2)
    assert (np.diff(colour.correct(ramp, fading).astype(int), axis=0) >= 0).all()


@pytest.mark.parametrize("contents", [None, b"no weights", "damaged"])
def test_absent_or_damaged_estimator_is_reported(rng, tmp_path, monkeypatch, contents):
    file = tmp_path / "fading-estimator.safetensors"
    if contents:
        file.write_bytes(contents if contents != "damaged" else fading.FILE.read_bytes()[:-1] + b"\1")
    monkeypatch.setattr(fading, "FILE", file)
    fading._weights.cache_clear()
    with pytest.raises(WeightsUnavailable, match="missing or damaged"):
        colour.measure(scene(rng))
    fading._weights.cache_clear()
