"""Encoding: exact in lossless formats, readable by other libraries, within each format's limits."""

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
from restorer.images import encode, photo, result_metadata
from restorer.images.formats.metadata import RawMetadata
from restorer.images.photo import Meta, Photo
from restorer.options import Options
from restorer.result import encode_within
from tests import pictures, profiles
from tests.conftest import photo_like

FORMATS = ("png", "jpeg", "webp", "tiff", "avif", "jxl")


def photo_of(samples: np.ndarray, **meta: object) -> Photo:
    """Return a Photo with these samples; `meta` are fields of Meta."""
    samples = np.atleast_3d(samples)
    channels = samples.shape[2]
    pixels = np.repeat(samples[..., :1], 3, axis=2) if channels < 3 else samples[..., :3]
    alpha = samples[..., -1] if channels in (2, 4) else None
    base = Meta("png", grey=channels < 3, depth=samples.dtype.itemsize * 8)
    return Photo(pixels, alpha, replace(base, **meta))


def encoded_bytes(subject: Photo, image_format: str, quality: int = 95) -> bytes:
    return encode.encode(subject, image_format, quality=quality).data


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
@pytest.mark.parametrize("image_format", ["png", "tiff"])
def test_png_and_tiff_round_trip_exactly(image_format, channels, deep, size, rng):
    subject = photo_of(pictures.noise(rng, *size, channels, deep).reshape(*size, -1))
    assert_same(photo.decode(encoded_bytes(subject, image_format)), subject)


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_opencv_reads_png_and_tiff_exactly(channels, deep, rng):
    samples = pictures.noise(rng, 300, 41, channels, deep)
    swapped = samples if channels == 1 else samples[..., [2, 1, 0, 3][:channels]]
    for image_format in (
        ("png",) if channels == 4 and not deep else ("png", "tiff")
    ):  # OpenCV premultiplies alpha
        data = np.frombuffer(encoded_bytes(photo_of(samples), image_format), np.uint8)
        np.testing.assert_array_equal(cv2.imdecode(data, cv2.IMREAD_UNCHANGED), swapped)


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("order", ["<", ">"])
def test_tifffile_reads_tiff_exactly(order, channels, deep, rng):
    samples = pictures.noise(rng, 300, 41, channels, deep)
    subject = photo_of(samples, metadata=RawMetadata(exif=pictures.camera_exif(order)))
    with tifffile.TiffFile(io.BytesIO(encoded_bytes(subject, "tiff"))) as tiff:
        assert tiff.byteorder == order
        page = tiff.pages.first
        np.testing.assert_array_equal(page.asarray(), samples)
        assert page.photometric.name == ("MINISBLACK" if channels < 3 else "RGB")
        assert [kind.name for kind in page.extrasamples] == (["UNASSALPHA"] if channels in (2, 4) else [])
        assert len(page.dataoffsets) == 2, "two strips"


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("image_format", ["png", "tiff"])
def test_pillow_reads_png_and_tiff_exactly(image_format, channels, rng):
    samples = pictures.noise(rng, 30, 41, channels)
    data = encoded_bytes(photo_of(samples), image_format)
    image = Image.open(io.BytesIO(data))
    assert image.mode == {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[channels]
    np.testing.assert_array_equal(np.asarray(image), samples)
    if image_format == "png":
        Image.open(io.BytesIO(data)).verify()  # checks every chunk's CRC
        np.testing.assert_array_equal(imagecodecs.png_decode(data), samples)


@pytest.mark.parametrize("image_format", FORMATS)
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1)])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_one_pixel_sides_can_be_encoded(image_format, size, channels):
    subject = photo_of(np.full((*size, channels), 200, np.uint8))
    read = photo.decode(encoded_bytes(subject, image_format))
    assert (read.height, read.width) == size
    assert (read.alpha is not None) == (channels in (2, 4) and image_format != "jpeg")
    expected = 255 - (255 - 200) * 200 // 255 if image_format == "jpeg" and channels in (2, 4) else 200
    np.testing.assert_allclose(read.pixels.astype(int), expected, atol=2)


@pytest.mark.parametrize("image_format", encode.LOSSY)
def test_lossy_formats_stay_close(image_format, rng):
    subject = photo_of(photo_like(rng, 90, 70))
    assert (
        np.abs(photo.decode(encoded_bytes(subject, image_format)).pixels.astype(int) - subject.pixels).mean()
        < 3
    )


@pytest.mark.parametrize("image_format", encode.LOSSY)
def test_higher_quality_gives_larger_files(image_format, rng):
    subject = photo_of(photo_like(rng, 90, 70))
    sizes = [len(encoded_bytes(subject, image_format, quality)) for quality in (1, 30, 60, 90, 100)]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[2] / 2


@pytest.mark.parametrize("image_format", FORMATS)
def test_encoding_is_deterministic(image_format, rng):
    subject = photo_of(
        photo_like(rng, 90, 70),
        metadata=RawMetadata(icc=profiles.rgb("p3"), exif=pictures.camera_exif(), xmp=pictures.XMP),
    )
    assert encoded_bytes(subject, image_format) == encoded_bytes(
        replace(subject, pixels=subject.pixels.copy()), image_format
    )


# Grey, alpha, depth


@pytest.mark.parametrize("image_format", FORMATS)
def test_grey_stays_grey(image_format, rng):
    subject = photo_of(photo_like(rng, 50, 70)[..., 0])
    data = encoded_bytes(subject, image_format)
    read = photo.decode(data)
    assert read.meta.grey or image_format == "webp", "WebP has no grey"
    assert np.ptp(read.pixels.astype(int), axis=2).max() <= 1
    if image_format == "jxl":
        assert imagecodecs.jpegxl_decode(data).ndim == 2
    else:
        assert Image.open(io.BytesIO(data)).mode == ("RGB" if image_format == "webp" else "L")


@pytest.mark.parametrize("image_format", ["png", "tiff", "webp", "avif", "jxl"])
def test_alpha_is_preserved(image_format, rng):
    alpha = np.repeat(np.linspace(0, 255, 70).astype(np.uint8)[None], 50, axis=0)
    subject = replace(photo_of(photo_like(rng, 50, 70)), alpha=alpha)
    decoded = photo.decode(encoded_bytes(subject, image_format)).alpha
    tolerance = 2 if image_format == "avif" else 0  # AVIF's alpha is lossy
    np.testing.assert_allclose(decoded.astype(int), alpha, atol=tolerance)


@pytest.mark.parametrize("quality", [30, 95])
@pytest.mark.parametrize("image_format", ["png", "tiff", "webp", "avif", "jxl"])
def test_opaque_alpha_stays_opaque(image_format, quality, rng):
    samples = np.dstack([photo_like(rng, 90, 70), np.full((90, 70), 255, np.uint8)])
    alpha = photo.decode(encoded_bytes(photo_of(samples), image_format, quality)).alpha
    if image_format in ("png", "tiff"):
        assert alpha is not None
    assert alpha is None or (alpha == 255).all(), "WebP and AVIF encoders drop an opaque alpha"


def test_jpeg_flattens_transparency_onto_white_with_a_warning():
    samples = np.zeros((16, 48, 4), np.uint8)
    samples[..., 0], samples[:, 16:32, 3], samples[:, 32:, 3] = 100, 255, 128
    encoded = encode.encode(photo_of(samples), "jpeg", quality=100)
    pixels = photo.decode(encoded.data).pixels.astype(int)
    for left, expected in ((0, (255, 255, 255)), (16, (100, 0, 0)), (32, (177, 127, 127))):
        np.testing.assert_allclose(
            pixels[4:12, left + 4 : left + 12], np.broadcast_to(expected, (8, 8, 3)), atol=2
        )
    assert encoded.warnings == ("transparency is flattened onto white: JPEG has no alpha channel",)


@pytest.mark.parametrize("image_format", ["jpeg", "webp", "avif"])
def test_16_bits_are_reduced_to_8_with_a_warning(image_format):
    ramp = np.repeat(np.linspace(0, 65535, 256).astype(np.uint16)[None, :, None], 3, axis=2).repeat(
        16, axis=0
    )
    encoded = encode.encode(photo_of(ramp), image_format, quality=100)
    np.testing.assert_allclose(photo.decode(encoded.data).pixels[8, :, 0], np.arange(256), atol=2)
    assert encoded.warnings == (
        f"16-bit channels are reduced to 8 bits: {image_format.upper()} is written with 8",
    )


def test_jpeg_is_written_without_chroma_subsampling(rng):
    data = encoded_bytes(photo_of(photo_like(rng, 50, 70)), "jpeg")
    factors = [layer[1:3] for layer in Image.open(io.BytesIO(data)).layer]
    assert factors == [(1, 1)] * 3


def test_to_uint8_rounds_every_value_to_nearest():
    values = np.arange(65536, dtype=np.uint16).reshape(1024, 64)
    np.testing.assert_array_equal(encode.to_uint8(values), np.rint(values / 257).astype(np.uint8))


@pytest.mark.parametrize("deep", [False, True])
def test_luma_has_bt601_weights(deep, rng):
    pixels = pictures.noise(rng, 300, 31, deep=deep)
    weights = np.rint(np.array([0.299, 0.587, 0.114]) * 65536) / 65536  # ITU-R BT.601
    np.testing.assert_allclose(encode.luma(pixels).astype(float), pixels @ weights, atol=0.5)
    grey = np.repeat(pictures.noise(rng, 300, 31, 1, deep)[..., None], 3, axis=2)
    np.testing.assert_array_equal(encode.luma(grey), grey[..., 0])


# Formats and their limits


@pytest.mark.parametrize(
    ("image_format", "depth", "alpha", "expected"),
    [(image_format, 8, False, image_format) for image_format in FORMATS]
    + [
        ("gif", 8, True, "png"),
        ("bmp", 8, False, "png"),
        ("heif", 8, False, "jpeg"),
        ("jp2", 16, True, "png"),
    ]
    + [("heif", 16, False, "png"), ("heif", 8, True, "png")],
)
def test_output_format_for_same(image_format, depth, alpha, expected):
    samples = np.zeros((2, 2, 4 if alpha else 3), np.uint16 if depth == 16 else np.uint8)
    subject = photo_of(samples, format=image_format)
    assert encode.output_format(subject, "same") == expected
    assert {encode.output_format(subject, chosen) for chosen in FORMATS} == set(FORMATS)


@pytest.mark.parametrize(("image_format", "side"), [("jpeg", 65_500), ("webp", 16_383), ("avif", 65_536)])
def test_side_beyond_the_format_limit_is_refused(image_format, side):
    subject = photo_of(np.zeros((2, 2, 3), np.uint8))
    encode.check_fits(subject, side, 1, image_format)
    for width, height in ((side + 1, 1), (1, side + 1)):
        with pytest.raises(
            ImageTooLarge,
            match=rf"{width} x {height}.*{image_format.upper()} allows at most {side} per side; use PNG",
        ):
            encode.check_fits(subject, width, height, image_format)
    with pytest.raises(ImageTooLarge):
        encoded_bytes(photo_of(np.zeros((1, side + 1, 3), np.uint8)), image_format)


@pytest.mark.parametrize(("image_format", "side"), [("jpeg", 65_500), ("webp", 16_383)])
def test_longest_side_can_be_encoded(image_format, side):
    data = encoded_bytes(photo_of(np.zeros((1, side, 1), np.uint8)), image_format)
    assert photo.decode(data).width == side


def test_tiff_beyond_4_gb_is_refused():
    subject = photo_of(np.zeros((2, 2, 4), np.uint16))
    encode.check_fits(subject, 20_000, 20_000, "tiff")
    with pytest.raises(ImageTooLarge, match=r"4.2 GB; TIFF allows at most 4 GB; use PNG"):
        encode.check_fits(subject, 26_000, 20_000, "tiff")


def test_blocks_too_large_for_jpeg_are_left_out_with_a_warning(rng):
    note = pictures.exif_block("<", {0x010F: (2, b"Maker\0")}, {0x927C: (7, bytes(70_000))})
    xmp = pictures.XMP.replace(b"</rdf:RDF>", b"<!--" + b"x" * 70_000 + b"--></rdf:RDF>")
    subject = photo_of(pictures.noise(rng, 8, 9), metadata=RawMetadata(exif=note, xmp=xmp))
    encoded = encode.encode(subject, "jpeg", quality=90)
    assert photo.decode(encoded.data).meta.metadata.xmp == b""
    assert Image.open(io.BytesIO(encoded.data)).getexif()[0x010F] == "Maker"
    assert [warning.partition(" (")[0] for warning in encoded.warnings] == [
        "left out: EXIF",
        "left out: XMP",
        "left out: thumbnail",
    ]
    for image_format in ("png", "webp", "tiff", "avif", "jxl"):
        read = photo.decode(encoded_bytes(subject, image_format))
        assert len(read.meta.metadata.exif) > 70_000
        assert len(read.meta.metadata.xmp) > 70_000


def test_large_profile_is_preserved_by_every_format(rng):
    body = profiles.rgb("p3")
    profile = struct.pack(">I", 200_000) + (body + rng.bytes(200_000 - len(body)))[4:]
    subject = photo_of(photo_like(rng, 40, 40), metadata=RawMetadata(icc=profile))
    for image_format in FORMATS:
        quality = 100 if image_format == "jxl" else 95  # lossy, it has numbers instead, see test_jxl.py
        read = photo.decode(encoded_bytes(subject, image_format, quality))
        assert read.meta.metadata.icc == profile, image_format


# The quality


def test_metadata_is_converted_once_for_all_qualities(rng, monkeypatch):
    calls = []
    update = result_metadata.update
    monkeypatch.setattr(result_metadata, "update", lambda *a, **k: calls.append(a) or update(*a, **k))
    subject = photo_of(photo_like(rng, 60, 80))
    write = encode.encoder(subject, "jpeg", Options(), history="{}")
    full = write(95)
    small = encode_within(len(full.data) // 2, 95, write)
    assert len(small.data) <= len(full.data) // 2 and "the quality was lowered" in small.warnings[-1]
    assert len(calls) == 1


def test_lossless_file_is_not_encoded_at_other_qualities(rng):
    data = pictures.pillow(photo_like(rng, 20, 30), "WEBP", lossless=True)
    subject, qualities = photo.decode(data), []
    write = encode.encoder(subject, "webp", Options())
    with pytest.raises(ImageTooLarge, match="max_bytes is 100"):
        encode_within(100, 95, lambda quality: qualities.append(quality) or write(quality))
    assert qualities == [95]


@pytest.mark.parametrize("image_format", ["png", "jpeg", "webp", "tiff", "avif", "jxl"])
def test_resolution_is_stored_without_other_metadata(image_format, rng):
    subject = photo.decode(pictures.pillow(photo_like(rng, 20, 30), "JPEG", dpi=(72, 72)))
    for dpi, expected in ((0, None), (240, pytest.approx((240, 240), abs=0.02))):
        encoded = encode.encode(subject, image_format, quality=90, keep_metadata=False, dpi=dpi)
        assert photo.decode(encoded.data).meta.metadata.dpi == expected
        assert not encoded.warnings
