"""Writing: exact where the format is, readable by others, limits, and what a format cannot hold."""

import io
import struct
from dataclasses import replace

import cv2
import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from restorer.errors import ImageTooLarge
from restorer.images import encode, photo
from restorer.images.photo import Meta, Photo
from tests import pictures, profiles
from tests.conftest import photo_like

FORMATS = ("png", "jpeg", "webp", "tiff", "avif")


def made(samples: np.ndarray, **meta: object) -> Photo:
    """A Photo of a file's samples."""
    samples = np.atleast_3d(samples)
    channels = samples.shape[2]
    pixels = np.repeat(samples[..., :1], 3, axis=2) if channels < 3 else samples[..., :3]
    alpha = samples[..., -1] if channels in (2, 4) else None
    known = Meta("png", grey=channels < 3, depth=samples.dtype.itemsize * 8)
    return Photo(pixels, alpha, replace(known, **meta))


def written(subject: Photo, form: str, quality: int = 95) -> bytes:
    return encode.encode(subject, form, quality=quality).data


def assert_same(read: Photo, expected: Photo) -> None:
    np.testing.assert_array_equal(read.pixels, expected.pixels)
    assert read.pixels.dtype == expected.pixels.dtype
    assert (read.meta.grey, read.meta.depth) == (expected.meta.grey, expected.meta.depth)
    assert (read.alpha is None) == (expected.alpha is None)
    if read.alpha is not None:
        np.testing.assert_array_equal(read.alpha, expected.alpha)


# Exactness


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (7, 1), (300, 41)])
@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("form", ["png", "tiff"])
def test_what_is_written_is_read_exactly(form, channels, deep, size, rng):
    subject = made(pictures.noise(rng, *size, channels, deep).reshape(*size, -1))
    assert_same(photo.decode(written(subject, form)), subject)


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_png_and_tiff_as_opencv_reads_them(channels, deep, rng):
    samples = pictures.noise(rng, 300, 41, channels, deep)
    swapped = samples if channels == 1 else samples[..., [2, 1, 0, 3][:channels]]
    for form in ("png",) if channels == 4 and not deep else ("png", "tiff"):  # OpenCV multiplies alpha in
        data = np.frombuffer(written(made(samples), form), np.uint8)
        np.testing.assert_array_equal(cv2.imdecode(data, cv2.IMREAD_UNCHANGED), swapped)


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("order", ["<", ">"])
def test_tiff_as_tifffile_reads_it(order, channels, deep, rng):
    samples = pictures.noise(rng, 300, 41, channels, deep)
    subject = made(samples, exif=pictures.camera_exif(order))
    with tifffile.TiffFile(io.BytesIO(written(subject, "tiff"))) as tiff:
        assert tiff.byteorder == order
        page = tiff.pages.first
        np.testing.assert_array_equal(page.asarray(), samples)
        assert page.photometric.name == ("MINISBLACK" if channels < 3 else "RGB")
        assert [kind.name for kind in page.extrasamples] == (["UNASSALPHA"] if channels in (2, 4) else [])
        assert len(page.dataoffsets) == 2, "strips, not one block"


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("form", ["png", "tiff"])
def test_png_and_tiff_as_pillow_reads_them(form, channels, rng):
    samples = pictures.noise(rng, 30, 41, channels)
    data = written(made(samples), form)
    image = Image.open(io.BytesIO(data))
    assert image.mode == {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[channels]
    np.testing.assert_array_equal(np.asarray(image), samples)
    if form == "png":
        Image.open(io.BytesIO(data)).verify()  # every chunk's checksum
        np.testing.assert_array_equal(imagecodecs.png_decode(data), samples)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1)])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_the_smallest_pictures(form, size, channels):
    subject = made(np.full((*size, channels), 200, np.uint8))
    read = photo.decode(written(subject, form))
    assert (read.height, read.width) == size
    assert (read.alpha is not None) == (channels in (2, 4) and form != "jpeg")
    expected = 255 - (255 - 200) * 200 // 255 if form == "jpeg" and channels in (2, 4) else 200
    np.testing.assert_allclose(read.pixels.astype(int), expected, atol=2)


@pytest.mark.parametrize("form", ["jpeg", "webp", "avif"])
def test_lossy_formats_stay_close(form, rng):
    subject = made(photo_like(rng, 90, 70))
    assert np.abs(photo.decode(written(subject, form)).pixels.astype(int) - subject.pixels).mean() < 3


@pytest.mark.parametrize("form", ["jpeg", "webp", "avif"])
def test_quality_counts(form, rng):
    subject = made(photo_like(rng, 90, 70))
    sizes = [len(written(subject, form, quality)) for quality in (1, 30, 60, 90, 100)]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[2] / 2


@pytest.mark.parametrize("form", FORMATS)
def test_same_photo_same_bytes(form, rng):
    subject = made(
        photo_like(rng, 90, 70), exif=pictures.camera_exif(), xmp=pictures.XMP, icc=profiles.rgb("p3")
    )
    assert written(subject, form) == written(replace(subject, pixels=subject.pixels.copy()), form)


# Grey, alpha, depth


@pytest.mark.parametrize("form", FORMATS)
def test_grey_stays_grey(form, rng):
    subject = made(photo_like(rng, 50, 70)[..., 0])
    data = written(subject, form)
    read = photo.decode(data)
    assert read.meta.grey or form == "webp", "WebP has no grey"
    assert np.ptp(read.pixels.astype(int), axis=2).max() <= 1
    assert Image.open(io.BytesIO(data)).mode == ("RGB" if form == "webp" else "L")


@pytest.mark.parametrize("form", ["png", "tiff", "webp", "avif"])
def test_alpha_stays(form, rng):
    alpha = np.repeat(np.linspace(0, 255, 70).astype(np.uint8)[None], 50, axis=0)
    subject = replace(made(photo_like(rng, 50, 70)), alpha=alpha)
    found = photo.decode(written(subject, form)).alpha
    np.testing.assert_allclose(
        found.astype(int), alpha, atol=2 if form == "avif" else 0
    )  # its alpha is lossy


@pytest.mark.parametrize("quality", [30, 95])
@pytest.mark.parametrize("form", ["png", "tiff", "webp", "avif"])
def test_what_is_opaque_stays_opaque(form, quality, rng):
    samples = np.dstack([photo_like(rng, 90, 70), np.full((90, 70), 255, np.uint8)])
    alpha = photo.decode(written(made(samples), form, quality)).alpha
    if form in ("png", "tiff"):
        assert alpha is not None
    assert alpha is None or (alpha == 255).all(), "the writers of WebP and AVIF leave an opaque one out"


def test_jpeg_lays_transparency_on_white_and_says_so():
    samples = np.zeros((16, 48, 4), np.uint8)
    samples[..., 0], samples[:, 16:32, 3], samples[:, 32:, 3] = 100, 255, 128
    encoded = encode.encode(made(samples), "jpeg", quality=100)
    pixels = photo.decode(encoded.data).pixels.astype(int)
    for left, expected in ((0, (255, 255, 255)), (16, (100, 0, 0)), (32, (177, 127, 127))):
        np.testing.assert_allclose(
            pixels[4:12, left + 4 : left + 12], np.broadcast_to(expected, (8, 8, 3)), atol=2
        )
    assert encoded.warnings == ("transparency is laid on white: JPEG has none",)


@pytest.mark.parametrize("form", ["jpeg", "webp", "avif"])
def test_sixteen_bits_become_eight_and_are_said_to(form):
    ramp = np.repeat(np.linspace(0, 65535, 256).astype(np.uint16)[None, :, None], 3, axis=2).repeat(
        16, axis=0
    )
    encoded = encode.encode(made(ramp), form, quality=100)
    np.testing.assert_allclose(photo.decode(encoded.data).pixels[8, :, 0], np.arange(256), atol=2)
    assert encoded.warnings == (f"16 bits a channel become 8: {form.upper()} is written with 8",)


def test_jpeg_keeps_all_colour_samples(rng):
    data = written(made(photo_like(rng, 50, 70)), "jpeg")
    factors = [layer[1:3] for layer in Image.open(io.BytesIO(data)).layer]
    assert factors == [(1, 1)] * 3


def test_to_uint8_is_the_nearest_for_every_value():
    values = np.arange(65536, dtype=np.uint16).reshape(1024, 64)
    np.testing.assert_array_equal(encode.to_uint8(values), np.rint(values / 257).astype(np.uint8))


@pytest.mark.parametrize("deep", [False, True])
def test_luma(deep, rng):
    pixels = pictures.noise(rng, 300, 31, deep=deep)
    weights = np.rint(np.array([0.299, 0.587, 0.114]) * 65536) / 65536  # ITU-R BT.601
    np.testing.assert_allclose(encode.luma(pixels).astype(float), pixels @ weights, atol=0.5)
    grey = np.repeat(pictures.noise(rng, 300, 31, 1, deep)[..., None], 3, axis=2)
    np.testing.assert_array_equal(encode.luma(grey), grey[..., 0])


# Formats and their limits


@pytest.mark.parametrize(
    ("form", "depth", "alpha", "expected"),
    [(form, 8, False, form) for form in FORMATS]
    + [("gif", 8, True, "png"), ("bmp", 8, False, "png"), ("heif", 8, False, "jpeg")]
    + [("heif", 16, False, "png"), ("heif", 8, True, "png")],
)
def test_same_format(form, depth, alpha, expected):
    samples = np.zeros((2, 2, 4 if alpha else 3), np.uint16 if depth == 16 else np.uint8)
    subject = made(samples, format=form)
    assert encode.output_format(subject, "same") == expected
    assert {encode.output_format(subject, chosen) for chosen in FORMATS} == set(FORMATS)


@pytest.mark.parametrize(("form", "side"), [("jpeg", 65_500), ("webp", 16_383), ("avif", 65_536)])
def test_a_side_beyond_the_formats_limit_is_refused(form, side):
    subject = made(np.zeros((2, 2, 3), np.uint8))
    encode.check_fits(subject, side, 1, form)
    for width, height in ((side + 1, 1), (1, side + 1)):
        with pytest.raises(
            ImageTooLarge, match=rf"{width} x {height}.*{form.upper()} holds {side} a side: .*PNG"
        ):
            encode.check_fits(subject, width, height, form)
    with pytest.raises(ImageTooLarge):
        written(made(np.zeros((1, side + 1, 3), np.uint8)), form)


@pytest.mark.parametrize(("form", "side"), [("jpeg", 65_500), ("webp", 16_383)])
def test_the_longest_side_can_be_written(form, side):
    data = written(made(np.zeros((1, side, 1), np.uint8)), form)
    assert photo.decode(data).width == side


def test_tiff_beyond_its_offsets_is_refused():
    subject = made(np.zeros((2, 2, 4), np.uint16))
    encode.check_fits(subject, 20_000, 20_000, "tiff")
    with pytest.raises(ImageTooLarge, match=r"4.2 GB; TIFF holds 4: choose PNG"):
        encode.check_fits(subject, 26_000, 20_000, "tiff")


def test_blocks_too_large_for_a_jpeg_are_left_out_and_said(rng):
    note = pictures.exif_block("<", {0x010F: (2, b"Maker\0")}, {0x927C: (7, bytes(70_000))})
    xmp = pictures.XMP.replace(b"</rdf:RDF>", b"<!--" + b"x" * 70_000 + b"--></rdf:RDF>")
    subject = made(pictures.noise(rng, 8, 9), exif=note, xmp=xmp)
    encoded = encode.encode(subject, "jpeg", quality=90)
    read = photo.decode(encoded.data)
    assert (read.meta.exif, read.meta.xmp) == (b"", b"")
    assert [warning[:8] for warning in encoded.warnings] == ["the EXIF", "the XMP "]
    for form in ("png", "webp", "tiff", "avif"):
        read = photo.decode(written(subject, form))
        assert len(read.meta.exif) > 70_000
        assert len(read.meta.xmp) > 70_000


def test_a_large_profile_is_kept_by_every_format(rng):
    body = profiles.rgb("p3")
    profile = struct.pack(">I", 200_000) + (body + rng.bytes(200_000 - len(body)))[4:]
    subject = made(photo_like(rng, 40, 40), icc=profile)
    for form in FORMATS:
        assert photo.decode(written(subject, form)).meta.icc == profile, form
