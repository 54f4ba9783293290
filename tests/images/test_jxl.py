"""JPEG XL in both directions; imagecodecs, which calls libjxl by itself, and exiftool compare."""

import io
import struct
from dataclasses import replace

import imagecodecs
import numpy as np
import pytest
from PIL import Image

from restorer.errors import DamagedImage, UnsupportedImage
from restorer.images import encode, photo, sandbox
from restorer.images.formats import jxl
from restorer.images.formats.boxes import box, boxes
from restorer.images.formats.metadata import RawMetadata
from tests import pictures, profiles
from tests.conftest import photo_like
from tests.images.readers import exiftool, needs_exiftool, tagged
from tests.images.test_encode import photo_of
from tests.images.test_photo import _ORIENT, read_exactly

EXIF = pictures.exif_block("<", {0x0112: (3, [3]), 0x010F: (2, b"Maker\0")})


def container(codestream: bytes, *others: bytes) -> bytes:
    head = jxl.CONTAINER + box(b"ftyp", b"jxl \0\0\0\0jxl ")
    return b"".join([head, *others, box(b"jxlc", codestream)])


def lossless(samples: np.ndarray) -> bytes:
    return imagecodecs.jpegxl_encode(samples, lossless=True)


# In


@pytest.mark.parametrize("decode", [photo.decode, sandbox.decode])
@pytest.mark.parametrize("wrap", [bytes, container])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_lossless_jxl_decodes_exactly(channels, wrap, decode, rng):
    samples = pictures.noise(rng, 30, 41, channels)
    data = wrap(lossless(samples))
    read = read_exactly(data, samples)
    assert read.meta.lossless and not read.meta.warnings
    np.testing.assert_array_equal(decode(data).pixels, read.pixels)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bit_jxl_decodes_exactly(channels, rng):
    """imagecodecs declares these samples as linear light."""
    samples = pictures.noise(rng, 30, 41, channels, deep=True)
    read = photo.decode(lossless(samples))
    assert read.meta.linear and read.meta.depth == 16
    back = encode.encode(read, "png", quality=95).data
    np.testing.assert_allclose(imagecodecs.png_decode(back).astype(int), samples, atol=2)


@pytest.mark.parametrize("bits", [10, 12])
def test_deep_jxl_is_scaled_to_16_bits(bits, rng):
    samples = pictures.noise(rng, 9, 11, deep=True) >> (16 - bits)
    read = photo.decode(imagecodecs.jpegxl_encode(samples, lossless=True, bitspersample=bits))
    stored = imagecodecs.png_decode(encode.encode(read, "png", quality=95).data)
    np.testing.assert_allclose(stored, samples * (65535 / (2**bits - 1)), atol=2)


def test_float_jxl_is_reduced_with_a_warning(rng):
    samples = rng.random((9, 11, 3), np.float32)
    read = photo.decode(imagecodecs.jpegxl_encode(samples, lossless=True))
    assert "floating-point" in read.meta.warnings[0] and read.meta.depth == 16
    stored = imagecodecs.png_decode(encode.encode(read, "png", quality=95).data)
    np.testing.assert_allclose(stored / 65535, samples, atol=1e-4)


def test_first_frame_of_an_animation_decodes(rng):
    frames = rng.integers(0, 256, (3, 20, 30, 3), np.uint8)
    read = photo.decode(imagecodecs.jpegxl_encode(frames, lossless=True, photometric="rgb"))
    np.testing.assert_array_equal(read.pixels, frames[0])
    assert "only the first picture" in read.meta.warnings[0]


@pytest.mark.parametrize("orientation", pictures.ORIENTATIONS)
def test_orientation_is_that_of_the_codestream(orientation, rng, monkeypatch):
    initialise = jxl.library().JxlEncoderInitBasicInfo

    def with_orientation(reference):
        initialise(reference)
        reference._obj.orientation = orientation

    monkeypatch.setattr(jxl.library(), "JxlEncoderInitBasicInfo", with_orientation)
    samples = pictures.noise(rng, 20, 30)
    data = jxl.encode(samples, RawMetadata(exif=EXIF), 100, lossless=True)
    monkeypatch.undo()
    read = photo.decode(data)
    np.testing.assert_array_equal(read.pixels, _ORIENT[orientation](samples), "and not that of EXIF")
    np.testing.assert_array_equal(read.pixels, imagecodecs.jpegxl_decode(data))
    assert (read.meta.orientation, read.meta.stored) == (orientation, (30, 20))
    result = encode.encode(read, "jxl", quality=90).data
    np.testing.assert_array_equal(photo.decode(result).pixels, read.pixels, "a lossless file stays lossless")


@needs_exiftool
def test_metadata_that_exiftool_wrote_is_read(rng, tmp_path):
    data = container(lossless(photo_like(rng, 30, 40)))
    data = tagged(tmp_path / "a.jxl", data, "-EXIF:Artist=An Author", "-XMP:Rating=5")
    tags = exiftool(encode.encode(photo.decode(data), "jpeg", quality=90).data)
    assert (tags["IFD0:Artist"], tags["XMP-xmp:Rating"]) == ("An Author", 5)


def test_compressed_boxes_are_read_and_unknown_ones_named(rng):
    compressed = box(b"brob", b"Exif" + imagecodecs.brotli_encode(bytes(4) + EXIF))
    bomb = box(b"brob", b"xml " + imagecodecs.brotli_encode(bytes(60_000_000)))
    others = box(b"jumb", b"....c2pa"), box(b"jhgm", b"\0"), box(b"abcd", b"\0")
    read = photo.decode(container(lossless(photo_like(rng, 30, 40)), compressed, bomb, *others))
    assert b"Maker" in read.meta.metadata.exif and not read.meta.metadata.xmp
    assert "a damaged metadata box was left out" in read.meta.warnings
    warnings = " ".join(encode.encode(read, "jxl", quality=90).warnings)
    for name in ("C2PA", "gain map", "JPEG XL boxes (abcd)"):
        assert name in warnings


def test_all_compressed_boxes_together_have_a_limit(rng, monkeypatch):
    inflated = []

    def decode(data, out):
        inflated.append(out)
        return brotli_decode(data, out=out)

    brotli_decode = imagecodecs.brotli_decode
    monkeypatch.setattr(imagecodecs, "brotli_decode", decode)
    half = box(b"brob", b"abcd" + imagecodecs.brotli_encode(bytes(jxl._MAX_INFLATED // 2 + 1)))
    read = photo.decode(container(lossless(photo_like(rng, 30, 40)), *[half] * 3))
    assert sum(inflated) < 3 * jxl._MAX_INFLATED and "a damaged metadata box" in " ".join(read.meta.warnings)


@pytest.mark.parametrize("offset", [b"", bytes(4), b"\0\0\0\2xx"])
def test_exif_is_read_from_where_it_starts(offset, rng):
    read = photo.decode(container(lossless(photo_like(rng, 30, 40)), box(b"Exif", offset + EXIF)))
    assert b"Maker" in read.meta.metadata.exif and not read.meta.warnings


def test_cmyk_is_refused(rng, monkeypatch):
    data = jxl.encode(pictures.noise(rng, 8, 9), RawMetadata(icc=profiles.rgb("adobe")), 100, lossless=True)
    monkeypatch.setattr(jxl, "_CMYK", b"RGB ")  # libjxl's encoder has no fourth colour
    with pytest.raises(UnsupportedImage, match="CMYK"):
        photo.decode(data)


def test_missing_pixels_are_damage(rng):
    data = container(lossless(pictures.noise(rng, 60, 60)))
    for cut in (len(data) - 1, len(data) // 2, 60):
        with pytest.raises(DamagedImage):
            photo.decode(data[:cut])


def test_without_libjxl_the_format_is_refused(rng, monkeypatch):
    jxl.library.cache_clear()
    monkeypatch.setitem(jxl._ARGUMENTS, "NoSuchFunction", ())
    with pytest.raises(UnsupportedImage, match="installed without libjxl"):
        photo.decode(lossless(pictures.noise(rng, 8, 9)))
    with pytest.raises(UnsupportedImage, match="installed without libjxl"):
        encode.check_fits(photo_of(pictures.noise(rng, 8, 9)), 8, 9, "jxl")
    jxl.library.cache_clear()


# Out


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_quality_100_is_lossless(channels, deep, rng):
    subject = photo_of(pictures.noise(rng, 30, 41, channels, deep).reshape(30, 41, -1))
    data = encode.encode(subject, "jxl", quality=100).data
    read = read_exactly(data, pictures.noise(np.random.default_rng(7), 30, 41, channels, deep))
    assert not read.meta.linear and not read.meta.metadata.icc, "sRGB at 16 bits too"
    stored = imagecodecs.jpegxl_decode(data)
    np.testing.assert_array_equal(stored.reshape(30, 41, -1)[..., 0], subject.pixels[..., 0])


def test_the_profile_of_a_lossless_file_is_carried(rng):
    for name in ("p3", "adobe", "linear"):
        profile = profiles.rgb(name)
        samples = pictures.noise(rng, 20, 30)
        read = photo.decode(pictures.tiff(samples, photometric="rgb", iccprofile=profile))
        again = photo.decode(encode.encode(read, "jxl", quality=100).data)
        assert again.meta.metadata.icc == profile and again.meta.linear == (name == "linear")
        np.testing.assert_array_equal(again.pixels, read.pixels)


@pytest.mark.parametrize("name", ["p3", "adobe", "grey"])
def test_the_colours_of_a_lossy_file_have_an_equal_profile(name):
    """libjxl describes a profile of a matrix and curves by numbers, from which it makes another one."""
    grey = name == "grey"
    values = np.array([[60, 90, 200], [200, 40, 60], [30, 180, 70], [128, 128, 128]], np.uint8)
    samples = np.repeat(np.repeat(values[None, :, :1] if grey else values[None], 24, axis=0), 24, axis=1)
    profile = profiles.grey() if grey else profiles.rgb(name)
    subject = photo_of(samples, metadata=RawMetadata(icc=profile))
    read = photo.decode(encode.encode(subject, "jxl", quality=98).data)
    assert read.meta.metadata.icc not in (b"", profile)
    np.testing.assert_allclose(read.pixels[12, 12::24], subject.pixels[12, 12::24], atol=2)
    same = subject.pixels[12, 12::24]
    expected, stored = (_srgb(same, one, grey=grey) for one in (profile, read.meta.metadata.icc))
    np.testing.assert_allclose(stored, expected, atol=1)


def _srgb(values: np.ndarray, profile: bytes, *, grey: bool) -> np.ndarray:
    from restorer.images import icc

    image = Image.fromarray(values[None, :, 0] if grey else values[None])
    return np.asarray(icc.to_srgb(image, profile)).astype(int)


def test_deep_lossy_files_keep_16_bits(rng):
    samples = photo_like(rng, 64, 64).astype(np.uint16) * 257 + 100
    read = photo.decode(encode.encode(photo_of(samples), "jxl", quality=99).data)
    assert read.meta.depth == 16 and len(np.unique(read.pixels & 255)) > 100
    assert np.abs(read.pixels.astype(int) - samples).mean() < 2 * 257


def test_boxes_hold_exif_and_xmp_as_other_programs_expect_them(rng):
    subject = photo_of(photo_like(rng, 30, 40), metadata=RawMetadata(exif=EXIF, xmp=pictures.XMP))
    data = encode.encode(subject, "jxl", quality=90).data
    stored = dict(boxes(data))
    assert stored[b"Exif"].startswith(bytes(4) + b"II*\0")
    (orientation,) = struct.unpack_from("<H", stored[b"Exif"], stored[b"Exif"].index(b"\x12\1\3\0") + 8)
    assert orientation == 1 and stored[b"xml "].startswith(b"<?xpacket")
    plain = encode.encode(subject, "jxl", quality=90, keep_metadata=False).data
    assert plain.startswith(jxl.CODESTREAM)


def test_bytes_do_not_depend_on_the_number_of_threads(rng, monkeypatch):
    subject = photo_of(photo_like(rng, 300, 300))
    files = set()
    for count in (1, 3):
        monkeypatch.setattr(
            jxl.library(), "JxlThreadParallelRunnerDefaultNumWorkerThreads", lambda n=count: n
        )
        files |= {encode.encode(subject, "jxl", quality=quality).data for quality in (90, 100)}
    assert len(files) == 2


def test_a_jpeg_that_jxl_transcodes_is_not_lossless(rng):
    jpeg = pictures.pillow(photo_like(rng, 40, 40), "JPEG", quality=90)
    data = imagecodecs.jpegxl_encode_jpeg(jpeg, usecontainer=True)
    read = photo.decode(data)
    assert not read.meta.lossless
    expected = np.asarray(Image.open(io.BytesIO(jpeg))).astype(int)
    assert np.abs(read.pixels.astype(int) - expected).mean() < 3
    assert "jbrd" not in " ".join(encode.encode(replace(read), "png", quality=90).warnings)
