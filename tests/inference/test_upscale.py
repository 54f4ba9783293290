import numpy as np
import pytest
from PIL import Image

from restorer.images.photo import Meta, Photo
from restorer.inference import upscale
from tests.conftest import photo_like


class Nearest:
    """An engine that repeats pixels and counts its calls."""

    def __init__(self, scale=4, align=1):
        self.scale, self.align, self.calls, self.pixels = scale, align, 0, 0

    def enlarge(self, image):
        return image.repeat(self.scale, axis=0).repeat(self.scale, axis=1)

    def count_tiles(self, height, width, tile):
        return -(-height // tile)

    def bands(self, image, *, tile, progress=None, stats=None):
        self.calls += 1
        self.pixels += image.shape[0] * image.shape[1]
        assert image.shape[0] % self.align == image.shape[1] % self.align == 0
        out, rows, total = self.enlarge(image), tile * self.scale, self.count_tiles(*image.shape[:2], tile)
        progress(0, total)
        for number in range(total):
            progress(number + 1, total)
            yield out[number * rows : (number + 1) * rows]


def photo(pixels, alpha=None, **meta):
    return Photo(pixels, alpha, Meta("png", **meta))


def nearest(array, scale):
    return array.repeat(scale, axis=0).repeat(scale, axis=1)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("align", [1, 2, 4])
@pytest.mark.parametrize("size", [(1, 1), (3, 50), (67, 41)])
def test_native_scale_is_the_network_output(rng, dtype, align, size):
    pixels = rng.integers(0, np.iinfo(dtype).max, (*size, 3), dtype=dtype)
    out = upscale.upscale(photo(pixels), Nearest(4, align), outscale=4, tile=32)
    np.testing.assert_array_equal(out.pixels, nearest(pixels, 4))
    assert out.alpha is None


@pytest.mark.parametrize(
    ("outscale", "scale", "passes"),
    [
        *[(1, 4, 1), (2, 4, 1), (4, 4, 1), (5, 4, 1), (8, 4, 1), (1, 1, 1), (8, 1, 1)],
        *[(1, 2, 1), (2, 2, 1), (2.5, 2, 1), (3, 2, 2), (4, 2, 2), (5, 2, 2), (6, 2, 3), (8, 2, 3)],
    ],
)
def test_number_of_network_passes(outscale, scale, passes):
    assert upscale.network_passes(outscale, scale) == passes


@pytest.mark.parametrize("outscale", [1, 1.3, 2, 2.5, 3, 4, 5.5, 8])
@pytest.mark.parametrize("scale", [1, 2, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_any_scale_has_its_size_and_preserves_a_flat_colour(outscale, scale, dtype):
    colour = np.array([10, 100, 200], dtype) * (1 if dtype == np.uint8 else 257)
    pixels = np.broadcast_to(colour.astype(dtype), (21, 33, 3))
    out = upscale.upscale(photo(pixels), Nearest(scale), outscale=outscale, tile=64)
    assert (out.height, out.width) == (int(21 * outscale + 0.5), int(33 * outscale + 0.5))
    assert (out.pixels == colour).all()


def test_shrinking_is_antialiased(rng):
    """A 4x network at scale 1: fine stripes average out instead of aliasing."""

    class Stripes(Nearest):
        def enlarge(self, tile):
            out = super().enlarge(tile)
            out[:, ::2] = 0
            out[:, 1::2] = 200
            return out

    for dtype, tolerance in ((np.uint8, 2), (np.uint16, 2)):
        out = upscale.upscale(photo(np.zeros((40, 40, 3), dtype)), Stripes(), outscale=1, tile=64)
        assert abs(out.pixels[8:-8, 8:-8].astype(int) - 100).max() <= tolerance


def test_8_and_16_bit_pixels_are_resized_alike(rng):
    pixels = photo_like(rng, 40, 52)
    eight_bit = upscale.upscale(photo(pixels), Nearest(), outscale=2.5, tile=64).pixels
    sixteen_bit = upscale.upscale(
        photo(pixels.astype(np.uint16) * 257), Nearest(), outscale=2.5, tile=64
    ).pixels
    assert (
        abs(sixteen_bit / 257 - eight_bit).max() < 1.5
    )  # Pillow rounds 8-bit samples twice, once after each axis


def test_opaque_alpha_skips_the_network_and_stays_opaque(rng):
    pixels = photo_like(rng, 30, 40)
    plain, opaque = Nearest(), Nearest()
    without = upscale.upscale(photo(pixels), plain, outscale=4, tile=32)
    out = upscale.upscale(photo(pixels, np.full((30, 40), 255, np.uint8)), opaque, outscale=4, tile=32)
    assert opaque.calls == plain.calls
    np.testing.assert_array_equal(out.pixels, without.pixels)
    assert out.alpha.shape == (120, 160)
    assert (out.alpha == 255).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_nearest_network_preserves_alpha(rng, dtype):
    top = np.iinfo(dtype).max
    pixels = rng.integers(0, top, (20, 24, 3), dtype=dtype)
    alpha = rng.integers(0, top, (20, 24), dtype=dtype, endpoint=True)
    out = upscale.upscale(photo(pixels, alpha), Nearest(2), outscale=2, tile=64)
    np.testing.assert_array_equal(out.alpha, nearest(alpha, 2))
    # colour times alpha is what shows: only rounding may change it
    share = nearest(alpha, 2)[..., None] / top
    visible, expected = out.pixels * share, nearest(pixels, 2) * share
    assert abs(visible - expected).max() <= 1
    solid = nearest(alpha, 2) == top
    np.testing.assert_array_equal(out.pixels[solid], nearest(pixels, 2)[solid])


@pytest.mark.parametrize("hidden", [0, 255])
@pytest.mark.parametrize("outscale", [1, 3, 4])
def test_colour_of_transparent_pixels_never_shows(hidden, outscale):
    """A red disc on transparent black or white has no dark or bright fringe on grey."""
    y, x = np.mgrid[0:48, 0:48]
    inside = (y - 24) ** 2 + (x - 24) ** 2 < 15**2
    pixels = np.where(inside[..., None], [200, 30, 30], hidden).astype(np.uint8)
    alpha = np.where(inside, 255, 0).astype(np.uint8)
    out = upscale.upscale(photo(pixels, alpha), Nearest(4), outscale=outscale, tile=64)
    share = out.alpha[..., None] / 255
    over = out.pixels * share + 128 * (1 - share)
    low, high = np.array([128, 30, 30]), np.array([200, 128, 128])
    assert (over >= low - 1.5).all()
    assert (over <= high + 1.5).all()


def test_grey_photo_stays_grey(rng):
    class Tinting(Nearest):
        def enlarge(self, tile):
            out = super().enlarge(tile).astype(np.int64)
            out[..., 0] += 9
            return np.clip(out, 0, 255).astype(tile.dtype)

    grey = np.repeat(rng.integers(0, 256, (30, 30, 1), dtype=np.uint8), 3, axis=2)
    out = upscale.upscale(photo(grey, grey=True), Tinting(), outscale=4, tile=64).pixels
    assert (out[..., 0] == out[..., 1]).all()
    assert (out[..., 1] == out[..., 2]).all()
    tinted = nearest(grey, 4).astype(float)
    tinted[..., 0] = np.minimum(tinted[..., 0] + 9, 255)
    expected = np.asarray(Image.fromarray(np.rint(tinted).astype(np.uint8)).convert("L"), int)
    assert abs(out[..., 0] - expected).max() <= 1


def test_progress_is_monotonic_and_ends_complete(rng):
    pixels, alpha = photo_like(rng, 70, 70), rng.integers(0, 256, (70, 70), dtype=np.uint8)
    steps = []
    upscale.upscale(
        photo(pixels, alpha), Nearest(2), outscale=4, tile=32, progress=lambda *t: steps.append(t)
    )
    done = [step[0] for step in steps]
    assert done == sorted(done)
    assert steps[-1][0] == steps[-1][1]
    assert all(a < b for a, b in steps[:-1])


def test_transparent_pixels_do_not_affect_the_result(rng):

    class Blurring(Nearest):
        def enlarge(self, tile):
            mean = sum(np.roll(tile.astype(int), shift, axis) for axis in (0, 1) for shift in (-2, 0, 2)) // 6
            return super().enlarge(mean.astype(tile.dtype))

    pixels = photo_like(rng, 50, 61)
    alpha = rng.integers(0, 256, (50, 61), dtype=np.uint8)
    alpha[10:40, 20:50] = 0
    results = []
    for hidden in (0, 255, 77):
        filled = np.where(alpha[..., None] > 0, pixels, hidden).astype(np.uint8)
        results.append(upscale.upscale(photo(filled, alpha), Blurring(2), outscale=3, tile=32))
    for other in results[1:]:
        np.testing.assert_array_equal(other.pixels, results[0].pixels)
        np.testing.assert_array_equal(other.alpha, results[0].alpha)


def test_transparent_pixels_are_filled_with_the_nearest_visible_colours(rng):
    pixels = np.zeros((32, 64, 3), np.uint8)
    pixels[:, :20], pixels[:, 44:] = (200, 40, 10), (10, 40, 200)
    alpha = np.zeros((32, 64), np.uint8)
    alpha[:, :20] = alpha[:, 44:] = 255
    filled = upscale.visible_pixels(Photo(pixels, alpha, Meta("png")))
    np.testing.assert_array_equal(filled[alpha > 0], pixels[alpha > 0])
    assert (filled[:, 20:24] == (200, 40, 10)).all()
    assert (filled[:, 40:44] == (10, 40, 200)).all()
    assert (filled[..., 1] == 40).all()


@pytest.mark.parametrize("outscale", [1, 3, 4, 8])
@pytest.mark.parametrize(("scale", "align"), [(4, 1), (2, 2), (1, 4)])
@pytest.mark.parametrize("alpha", [None, 255, 99])
def test_predicted_tiles_and_pixels_match_those_that_run(rng, outscale, scale, align, alpha):
    engine, steps = Nearest(scale, align), []
    pixels = rng.integers(0, 256, (101, 67, 3), dtype=np.uint8)
    before = photo(pixels, None if alpha is None else np.full((101, 67), alpha, np.uint8))
    upscale.upscale(before, engine, outscale=outscale, tile=32, progress=lambda *step: steps.append(step))
    assert upscale.tiles_needed(before, engine, outscale=outscale, tile=32) == steps[-1][0] == steps[-1][1]
    assert upscale.network_pixels(before, engine, outscale) == engine.pixels


@pytest.mark.parametrize("outscale", [0.3, 1, 1.7, 2, 3, 3.99])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("alpha", [False, True])
def test_resize_of_bands_equals_that_of_the_whole_image(rng, outscale, dtype, alpha):
    """Bands of rows see as much beyond their edges as Lanczos needs; Pillow resizes the whole image."""
    top = np.iinfo(dtype).max
    pixels = rng.integers(0, top, (150, 40, 3), dtype=dtype, endpoint=True)
    before = photo(pixels, np.full((150, 40), top, dtype) if alpha else None)
    if alpha:
        before.alpha[0, 0] = top - 1  # not opaque
    out = upscale.upscale(before, Nearest(4), outscale=outscale, tile=32)
    width, height = upscale.output_size(40, 150, outscale)
    planes = [
        np.asarray(Image.fromarray(plane).resize((width, height), Image.Resampling.LANCZOS))
        for plane in np.moveaxis(nearest(pixels, 4).astype(np.float32), 2, 0)
    ]
    expected = np.clip(np.dstack(planes), 0, top)
    rows = slice(8, None) if alpha else slice(None)
    assert np.abs(out.pixels[rows] - expected[rows]).max() <= (1.01 if alpha else 0.51) + 2.5e-5 * top
