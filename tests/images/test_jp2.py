"""JPEG 2000: Pillow and imagecodecs write it, exiftool and ImageMagick add to it."""

import struct

import imagecodecs
import numpy as np
import pytest
from PIL import Image

from restorer.errors import DamagedImage, UnsupportedImage
from restorer.images import encode, photo, sandbox
from restorer.images.formats import jp2
from restorer.images.formats.boxes import box, boxes
from tests import pictures, profiles
from tests.conftest import photo_like
from tests.images.readers import converted, exiftool, needs_exiftool, needs_imagemagick, tagged
from tests.images.test_photo import _ORIENT, read_exactly


def lossless(samples: np.ndarray, codec: str = "jp2", **options: object) -> bytes:
    return imagecodecs.jpeg2k_encode(samples, level=0, codecformat=codec, reversible=True, **options)


def rebuilt(data: bytes, *others: bytes, **header: bytes | None) -> bytes:
    """Return a JP2 file with other boxes in its header (None removes one), and more after the header."""
    parts = dict(boxes(data))
    fields: dict[bytes, bytes | None] = dict(boxes(parts[b"jp2h"]))
    fields |= {name.encode(): contents for name, contents in header.items()}
    inner = b"".join(box(kind, contents) for kind, contents in fields.items() if contents is not None)
    head = jp2.CONTAINER + box(b"ftyp", parts[b"ftyp"]) + box(b"jp2h", inner)
    return b"".join([head, *others, box(b"jp2c", parts[b"jp2c"])])


@pytest.mark.parametrize("decode", [photo.decode, sandbox.decode])
@pytest.mark.parametrize("codec", ["jp2", "j2k"])
@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_lossless_jpeg_2000_decodes_exactly(channels, deep, codec, decode, rng):
    samples = pictures.noise(rng, 30, 41, channels, deep)
    data = lossless(samples, codec)
    read = read_exactly(data, samples)
    assert not read.meta.warnings and read.meta.format == "jp2"
    np.testing.assert_array_equal(decode(data).pixels, read.pixels)
    assert encode.output_format(read, "same") == "png"


@pytest.mark.parametrize(("bits", "deep"), [(4, False), (5, False), (7, False), (10, True), (12, True)])
def test_other_depths_are_scaled(bits, deep, rng):
    samples = pictures.noise(rng, 20, 30, deep=deep) >> ((16 if deep else 8) - bits)
    read = photo.decode(lossless(samples, bitspersample=bits))
    top = 65535 if deep else 255
    np.testing.assert_array_equal(read.pixels, np.floor(samples * (top / (2**bits - 1)) + 0.5))


@pytest.mark.parametrize("irreversible", [False, True])
def test_what_pillow_writes_is_read(irreversible, rng):
    samples = photo_like(rng, 60, 76)
    data = pictures.pillow(samples, "JPEG2000", irreversible=irreversible, tile_size=(32, 32))
    np.testing.assert_allclose(photo.decode(data).pixels, samples, atol=4 if irreversible else 0)


@needs_imagemagick
def test_what_imagemagick_writes_is_read(rng):
    samples = photo_like(rng, 60, 76)
    data = converted(pictures.pillow(samples, "PNG"), "png", "jp2")
    assert np.abs(photo.decode(data).pixels.astype(int) - samples).mean() < 3


def test_the_values_of_a_profile_are_unchanged(rng):
    """imagecodecs converts to sRGB through the profile."""
    samples, profile = pictures.noise(rng, 20, 30), profiles.rgb("adobe")
    for method in (2, 3):
        data = rebuilt(lossless(samples), colr=bytes([method, 0, 0]) + profile)
        read = read_exactly(data, samples)
        assert read.meta.metadata.icc == profile


def test_palettes_are_applied(rng):
    indices, colours = pictures.noise(rng, 20, 30, 1) % 4, pictures.noise(rng, 4, 3, 1)
    palette = struct.pack(">HB3B", 4, 3, 7, 7, 7) + colours.tobytes()
    mapping = b"".join(struct.pack(">HBB", 0, 1, column) for column in range(3))
    data = rebuilt(lossless(indices), colr=struct.pack(">BBBI", 1, 0, 0, 16), pclr=palette, cmap=mapping)
    read_exactly(data, colours[indices])


def test_premultiplied_alpha_is_divided_and_other_channels_are_left_out(rng):
    samples = pictures.noise(rng, 20, 30, 4)
    samples[..., 3] = 128
    samples[..., :3] //= 2
    definition = struct.pack(">H", 4) + b"".join(struct.pack(">3H", n, 0, n + 1) for n in range(3))
    read = photo.decode(rebuilt(lossless(samples), cdef=definition + struct.pack(">3H", 3, 2, 0)))
    np.testing.assert_allclose(read.pixels, np.minimum(samples[..., :3] * (255 / 128), 255), atol=0.6)
    read_exactly(
        rebuilt(lossless(samples), cdef=definition + struct.pack(">3H", 3, 65535, 65535)), samples[..., :3]
    )


@pytest.mark.parametrize("orientation", pictures.ORIENTATIONS)
def test_orientation_of_exif_is_applied(orientation, rng):
    samples = pictures.noise(rng, 20, 30)
    block = pictures.camera_exif(orientation=orientation)
    read = photo.decode(rebuilt(lossless(samples), box(b"uuid", b"JpgTiffExif->JP2" + block)))
    np.testing.assert_array_equal(read.pixels, _ORIENT[orientation](samples))


@needs_exiftool
def test_metadata_that_exiftool_wrote_is_carried(rng, tmp_path):
    data = tagged(
        tmp_path / "a.jp2",
        lossless(photo_like(rng, 30, 40)),
        "-EXIF:Artist=An Author",
        "-XMP:Rating=5",
        "-IPTC:Keywords=harbour",
    )
    tags = exiftool(encode.encode(photo.decode(data), "jpeg", quality=90).data)
    carried = tags["IFD0:Artist"], tags["XMP-xmp:Rating"], tags["IPTC:Keywords"]
    assert carried == ("An Author", 5, "harbour")


@pytest.mark.parametrize("kind", [b"resc", b"resd"])
def test_resolution_is_read(kind, rng):
    contents = box(kind, struct.pack(">4H2b", 11811, 10, 23622, 1, 1, 0))  # 300 and 600 dots per inch
    read = photo.decode(rebuilt(lossless(photo_like(rng, 30, 40)), **{"res ": contents}))
    assert read.meta.metadata.dpi == pytest.approx((600, 300), abs=0.1)


def test_what_no_result_can_have_is_named(rng):
    data = lossless(photo_like(rng, 30, 40))
    places = box(b"uuid", bytes.fromhex("b14bf8bd083d4b43a5ae8cd7d5a6ce03") + b"II*\0")
    second = box(b"jp2c", dict(boxes(data))[b"jp2c"])
    read = photo.decode(rebuilt(data, places, box(b"xml ", b"<a/>")) + second)
    warnings = " | ".join(read.meta.warnings + encode.encode(read, "png", quality=90).warnings)
    for name in ("GeoTIFF (in JPEG 2000)", "JPEG 2000 boxes (xml)", "only the first picture"):
        assert name in warnings


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"colr": struct.pack(">BBBI", 1, 0, 0, 12)}, "colour space 12"),
        ({"colr": b"\2\0\0" + profiles.cmyk()}, "CMYK"),
    ],
)
def test_other_colours_are_refused(change, words, rng):
    data = rebuilt(lossless(pictures.noise(rng, 8, 9, 4)), **change)
    with pytest.raises(UnsupportedImage, match=words) as caught:
        photo.decode(data)
    assert not isinstance(caught.value, DamagedImage)


def test_signed_samples_are_refused(rng):
    with pytest.raises(UnsupportedImage, match="signed"):
        photo.decode(lossless(pictures.noise(rng, 8, 9).astype(np.int8)))


def test_codestreams_without_an_end_are_damaged(rng):
    for codec in ("jp2", "j2k"):
        data = lossless(photo_like(rng, 60, 60), codec)
        for cut in (1, 2, len(data) // 2):
            with pytest.raises(DamagedImage):
                photo.decode(data[:-cut])


def test_pillow_reads_the_same(rng, tmp_path):
    samples = photo_like(rng, 60, 76)
    path = tmp_path / "a.jp2"
    path.write_bytes(lossless(samples))
    np.testing.assert_array_equal(np.asarray(Image.open(path)), photo.decode(path.read_bytes()).pixels)
