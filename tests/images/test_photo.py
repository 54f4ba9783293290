"""Decoding: formats, bit depths and channels; orientation; unsupported and damaged files."""

import io
import re
import struct
import subprocess
import sys
import tracemalloc
import zlib
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from restorer.errors import DamagedImage, ImageTooLarge, RestoreError, UnsupportedImage
from restorer.images import photo, sandbox
from restorer.images.formats import tiff
from restorer.images.formats.boxes import box, boxes
from tests import broken, pictures, profiles
from tests.conftest import photo_like

ADAM7 = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
LOSSLESS = ("PNG", "TIFF", "BMP", "WEBP")


def samples_of(read: photo.Photo) -> np.ndarray:
    """Return a Photo's samples in the shape a file stores them."""
    colour = read.pixels[..., :1] if read.meta.grey else read.pixels
    if read.meta.grey:
        assert (read.pixels == colour).all(), "grey has three equal channels"
    out = colour if read.alpha is None else np.dstack([colour, read.alpha])
    return out[..., 0] if out.shape[2] == 1 else out


def read_exactly(data: bytes, expected: np.ndarray) -> photo.Photo:
    read = photo.decode(data)
    np.testing.assert_array_equal(samples_of(read), expected)
    assert read.pixels.dtype == expected.dtype
    assert read.meta.depth == expected.dtype.itemsize * 8
    assert read.pixels.flags.c_contiguous
    return read


# Channels and depths


@pytest.mark.parametrize("image_format", LOSSLESS)
def test_lossless_rgb_decodes_exactly(image_format, rng):
    expected = pictures.noise(rng, 13, 17)
    options = {"lossless": True} if image_format == "WEBP" else {}
    read = read_exactly(pictures.pillow(expected, image_format, **options), expected)
    assert read.meta.format == image_format.lower()
    assert (read.width, read.height, read.meta.grey, read.alpha) == (17, 13, False, None)


@pytest.mark.parametrize("channels", [1, 2, 4])
@pytest.mark.parametrize("image_format", ["PNG", "TIFF"])
def test_grey_and_alpha_decode_exactly(image_format, channels, rng):
    expected = pictures.noise(rng, 13, 17, channels)
    read = read_exactly(pictures.pillow(expected, image_format), expected)
    assert read.meta.grey == (channels < 3)
    assert (read.alpha is not None) == (channels in (2, 4))


def test_webp_with_alpha_decodes_exactly(rng):
    expected = pictures.noise(rng, 13, 17, 4)
    read_exactly(pictures.pillow(expected, "WEBP", lossless=True, exact=True), expected)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bit_png_decodes_exactly(channels, rng):
    expected = pictures.noise(rng, 13, 17, channels, deep=True)
    read_exactly(imagecodecs.png_encode(expected), expected)


def test_depth_is_taken_from_the_file_not_from_the_values():
    dark = np.full((4, 4, 3), 200, np.uint16)
    read_exactly(imagecodecs.png_encode(dark), dark)
    read_exactly(pictures.tiff(dark, photometric="rgb"), dark)


def test_interlaced_png_decodes_exactly(rng):
    expected = pictures.noise(rng, 21, 19)
    assert read_exactly(interlaced(expected), expected).meta.format == "png"


def interlaced(samples: np.ndarray) -> bytes:
    """Encode an Adam7 PNG: seven passes of unfiltered rows."""
    rows = b""
    for top, left, down, right in ADAM7:
        part = samples[top::down, left::right]
        rows += b"".join(b"\0" + row.tobytes() for row in part) if part.size else b""
    plain = bytearray(pictures.raw_png(samples.shape[1], samples.shape[0], 8, 2, rows))
    plain[28] = 1
    plain[29:33] = struct.pack(">I", zlib.crc32(plain[12:29]))
    return bytes(plain)


@pytest.mark.parametrize(
    ("bits", "kind", "row", "key", "expected"),
    [
        (1, 0, b"\x1b", b"\0\1", [[0, 255], [0, 255], [0, 255], [255, 0]]),
        (2, 0, b"\x1b", b"\0\2", [[0, 255], [85, 255], [170, 0], [255, 255]]),
        (8, 0, b"abca", b"\0a", [[97, 0], [98, 255], [99, 255], [97, 0]]),
        (
            8,
            2,
            b"abcdefabdabc",
            b"\0a\0b\0c",
            [[97, 98, 99, 0], [100, 101, 102, 255], [97, 98, 100, 255], [97, 98, 99, 0]],
        ),  # fmt: skip
        (16, 0, b"aAbBaBaA", b"aA", [[0x6141, 0], [0x6242, 65535], [0x6142, 65535], [0x6141, 0]]),
        (
            16,
            2,
            b"aAbBcCaAbBcDaAbBcCaAbAcC",
            b"aAbBcC",
            [
                [0x6141, 0x6242, 0x6343, 0],
                [0x6141, 0x6242, 0x6344, 65535],
                [0x6141, 0x6242, 0x6343, 0],
                [0x6141, 0x6241, 0x6343, 65535],
            ],
        ),  # fmt: skip
    ],
)
def test_transparent_colour_of_png_becomes_alpha(bits, kind, row, key, expected):
    data = pictures.raw_png(4, 1, bits, kind, b"\0" + row, (b"tRNS", key))
    read_exactly(data, np.array([expected], np.uint16 if bits == 16 else np.uint8))


def test_palette_transparency_becomes_alpha():
    palette = bytes([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 8, 7])
    data = pictures.raw_png(4, 1, 2, 3, b"\0\x1b", (b"PLTE", palette), (b"tRNS", b"\xff\x80"))
    read_exactly(
        data, np.array([[[255, 0, 0, 255], [0, 255, 0, 128], [0, 0, 255, 255], [9, 8, 7, 255]]], np.uint8)
    )
    opaque = pictures.raw_png(4, 1, 2, 3, b"\0\x1b", (b"PLTE", palette))
    read_exactly(opaque, np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 8, 7]]], np.uint8))


@pytest.mark.parametrize("image_format", ["PNG", "TIFF", "BMP"])
def test_bilevel_decodes_as_grey(image_format, rng):
    expected = (pictures.noise(rng, 9, 13, 1) // 128 * 255).astype(np.uint8)
    read = read_exactly(pictures.pillow(Image.fromarray(expected).convert("1"), image_format), expected)
    assert read.meta.grey


def test_first_frame_of_gif_decodes_with_transparency():
    first = Image.new("P", (6, 4), 1)
    first.putpalette([1, 2, 3, 200, 100, 50])
    first.putpixel((2, 1), 0)
    second = Image.new("P", (6, 4), 0)
    second.putpalette([1, 2, 3, 200, 100, 50])
    data = pictures.pillow(first, "GIF", save_all=True, append_images=[second], transparency=0, disposal=2)
    expected = np.full((4, 6, 4), [200, 100, 50, 255], np.uint8)
    read = photo.decode(data)
    expected[1, 2] = [*read.pixels[1, 2], 0]
    np.testing.assert_array_equal(samples_of(read), expected)
    assert "only the first picture of the file is restored" in read.meta.warnings


@pytest.mark.parametrize("image_format", ["PNG", "WEBP", "TIFF", "AVIF"])
def test_first_of_several_images_decodes(image_format):
    first, second = (Image.new("RGB", (48, 32), colour) for colour in ("#a03060", "#10e020"))
    options = {"TIFF": {}, "PNG": {}}.get(image_format, {"quality": 100, "lossless": True})
    if image_format == "AVIF":
        options = {"quality": 100, "subsampling": "4:4:4"}
    read = photo.decode(
        pictures.pillow(first, image_format, save_all=True, append_images=[second], **options)
    )
    np.testing.assert_allclose(read.pixels, np.asarray(first), atol=1)
    assert any("only the first picture" in warning for warning in read.meta.warnings)


def test_first_image_of_mpo_decodes(rng):
    first, second = (Image.fromarray(photo_like(rng, 40, 60)) for _ in range(2))
    data = pictures.pillow(first, "MPO", save_all=True, append_images=[second], quality=90)
    assert Image.open(io.BytesIO(data)).format == "MPO"
    read = read_exactly(data, np.asarray(Image.open(io.BytesIO(data))))
    assert read.meta.format == "jpeg"
    truncated = photo.decode(data[:-200])
    np.testing.assert_array_equal(truncated.pixels, read.pixels, "only the second image is truncated")


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_jpeg_decodes_as_in_pillow(mode, rng):
    data = pictures.pillow(Image.fromarray(photo_like(rng, 33, 47)).convert(mode), "JPEG", quality=85)
    read = read_exactly(data, np.asarray(Image.open(io.BytesIO(data))))
    assert read.meta.grey == (mode == "L")


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"restart_marker_rows": 1}, {"subsampling": 2}]
)
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_jpeg_that_lacks_only_its_end_marker_is_read(mode, options, rng):
    image = Image.fromarray(photo_like(rng, 60, 76)).convert(mode)
    data = pictures.pillow(image, "JPEG", quality=92, **options)
    for cut in (1, 2):
        read = read_exactly(data[:-cut], np.asarray(Image.open(io.BytesIO(data))))
        assert read.meta.warnings == ("the file lacks its end marker; all pixels are there",)
    for cut in (*range(5, 60), *range(60, len(data) // 2, 97)):
        try:
            pixels = samples_of(photo.decode(data[:-cut]))
        except DamagedImage:
            continue
        np.testing.assert_array_equal(pixels, np.asarray(Image.open(io.BytesIO(data))))


def test_progressive_jpeg_that_ends_after_a_scan_is_damaged(rng):
    data = pictures.pillow(photo_like(rng, 60, 76), "JPEG", quality=92, progressive=True)
    starts = [match.start() for match in re.finditer(rb"\xff\xda", data)]
    for start in starts[1:]:
        with pytest.raises(DamagedImage):
            photo.decode(data[:start])


@pytest.mark.parametrize("decode", [photo.decode, sandbox.decode])
@pytest.mark.parametrize("bits", [8, 10, 12, 16])
@pytest.mark.parametrize("channels", [1, 3])
def test_lossless_jpeg_decodes_exactly(channels, bits, decode, rng):
    stored = pictures.noise(rng, 20, 31, channels, deep=bits > 8) >> (16 - bits if bits > 8 else 0)
    if bits == 8 and channels == 1:
        pytest.skip("imagecodecs does not write it")
    data = bytes(imagecodecs.jpeg_encode(stored, lossless=True, bitspersample=bits))
    read = decode(data)
    top = 2**bits - 1
    expected = stored if bits == 8 else np.rint(stored * (65535 / top)).astype(np.uint16)
    np.testing.assert_array_equal(samples_of(read), expected)
    assert read.meta.lossless and photo.size(data) == (31, 20)


def test_12_bit_jpeg_is_scaled_to_16_bits(rng):
    stored = photo_like(rng, 40, 60)[..., 0].astype(np.uint16) * 16
    data = bytes(imagecodecs.jpeg_encode(stored, level=100, bitspersample=12))
    read = photo.decode(data)
    assert np.abs(read.pixels[..., 0] / (65535 / 4095) - stored).max() < 8
    with pytest.raises(DamagedImage):
        photo.decode(data[: len(data) // 2])


# TIFF


@pytest.mark.parametrize("bigtiff", [False, True])
@pytest.mark.parametrize("place", ["next", "subdirectory"])
def test_a_tiff_whose_first_page_is_a_thumbnail_gives_the_full_page(place, bigtiff, rng):
    full, small = pictures.noise(rng, 40, 50), pictures.noise(rng, 8, 10)
    out = io.BytesIO()
    with tifffile.TiffWriter(out, bigtiff=bigtiff) as file:
        options = {"photometric": "rgb", "metadata": None}
        nested = {"subifds": 1} if place == "subdirectory" else {}
        file.write(small, subfiletype=1, extratags=[(315, "s", 0, "An Author", True)], **nested, **options)
        file.write(full, **options)
    read = read_exactly(out.getvalue(), full)
    assert b"An Author" in read.meta.metadata.exif
    assert photo.size(out.getvalue()) == (50, 40)


@pytest.mark.parametrize("compression", [None, "zlib", "lzw", "packbits"])
@pytest.mark.parametrize("predictor", [False, True])
def test_16_bit_tiff_decodes_exactly(compression, predictor, rng):
    expected = pictures.noise(rng, 30, 21, deep=True)
    options = {"predictor": True} if predictor and compression in ("zlib", "lzw") else {}
    read_exactly(
        pictures.tiff(expected, photometric="rgb", compression=compression, rowsperstrip=7, **options),
        expected,
    )


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize(
    "options", [{"tile": (16, 32)}, {"bigtiff": True}, {}], ids=["tiles", "bigtiff", "strips"]
)
@pytest.mark.parametrize("deep", [False, True])
def test_tiff_layouts_decode_exactly(byteorder, options, deep, rng):
    expected = pictures.noise(rng, 40, 50, deep=deep)
    read_exactly(pictures.tiff(expected, photometric="rgb", byteorder=byteorder, **options), expected)


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_planar_tiff_decodes_exactly(channels, deep, rng):
    expected = pictures.noise(rng, 20, 31, channels, deep)
    planes = expected if channels == 1 else np.moveaxis(expected, 2, 0)
    extra = {"extrasamples": ["unassalpha"]} if channels in (2, 4) else {}
    kind = "rgb" if channels > 2 else "minisblack"
    layout = {"planarconfig": "separate"} if channels > 1 else {}
    read_exactly(pictures.tiff(planes, photometric=kind, compression="zlib", **layout, **extra), expected)


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("channels", [2, 4])
def test_premultiplied_tiff_is_divided_by_alpha(channels, deep, rng):
    top = 65535 if deep else 255
    plain = pictures.noise(rng, 20, 31, channels, deep).astype(np.int64)
    plain[0, :, -1], plain[1, :, -1] = 0, top
    stored = plain.copy()
    stored[..., :-1] = np.rint(plain[..., :-1] * (plain[..., -1:] / top))
    kind = "rgb" if channels == 4 else "minisblack"
    dtype = np.uint16 if deep else np.uint8
    data = pictures.tiff(stored.astype(dtype), photometric=kind, extrasamples=["assocalpha"])
    samples = samples_of(photo.decode(data)).astype(np.int64)
    assert samples.max() <= top
    np.testing.assert_array_equal(samples[..., -1], plain[..., -1])
    opacity = plain[..., -1:] / top
    # The stored value is off by up to half a step, which a small alpha magnifies
    assert (np.abs(samples[..., :-1] - plain[..., :-1])[1:] * opacity[1:] <= 0.5 + opacity[1:]).all()
    np.testing.assert_array_equal(samples[1], plain[1])
    assert (samples[0, :, :-1] == 0).all()


def test_division_by_alpha_rounds_to_nearest():
    alpha, colour = (grid.astype(np.uint8) for grid in np.mgrid[1:256, 0:256])
    exact = np.minimum(np.floor(colour * 255.0 / alpha + 0.5), 255)
    np.testing.assert_array_equal(tiff.unpremultiply(colour[..., None], alpha[..., None])[..., 0], exact)


def test_unspecified_extra_channel_of_tiff_is_dropped(rng):
    stored = pictures.noise(rng, 20, 31, 4, deep=True)
    data = pictures.tiff(stored, photometric="rgb", extrasamples=["unspecified"])
    read = read_exactly(data, stored[..., :3])
    assert read.meta.warnings == ("channels beyond colour and alpha were left out",)


@pytest.mark.parametrize("deep", [False, True])
def test_white_is_zero_tiff_is_inverted(deep, rng):
    stored = pictures.noise(rng, 20, 31, 1, deep)
    read_exactly(pictures.tiff(stored, photometric="miniswhite"), (65535 if deep else 255) - stored)


def test_12_bit_tiff_is_scaled_to_16_bits():
    stored = np.linspace(0, 4095, 64 * 16).astype(np.uint16).reshape(16, 64)
    packed = np.packbits(stored[..., None] >> np.arange(11, -1, -1) & 1, axis=None).tobytes()
    tags = {256: (3, [64]), 257: (3, [16]), 258: (3, [12]), 259: (3, [1]), 262: (3, [1]), 277: (3, [1])}
    block = pictures.exif_block("<", tags | {273: (4, [0]), 278: (3, [16]), 279: (4, [len(packed)])})
    start = len(block)
    block = pictures.exif_block("<", tags | {273: (4, [start]), 278: (3, [16]), 279: (4, [len(packed)])})
    read_exactly(block + packed, np.rint(stored * (65535 / 4095)).astype(np.uint16))


def tiff_of_strips(samples: np.ndarray, strips: list[bytes], **tags: tuple[int, list[int]]) -> bytes:
    """Build a TIFF from encoded strips of 16 rows each."""
    height, width = samples.shape[:2]
    bits = samples.dtype.itemsize * 8
    entries = {"t256": (3, [width]), "t257": (3, [height]), "t258": (3, [bits] * 3), "t262": (3, [2])}
    entries |= {"t277": (3, [3]), "t278": (3, [16]), **tags}
    block = b""
    for _ in range(2):
        starts = np.cumsum([len(block), *map(len, strips)])[:-1]
        entries |= {"t273": (4, starts.tolist()), "t279": (4, [len(strip) for strip in strips])}
        block = pictures.exif_block("<", {int(tag[1:]): value for tag, value in entries.items()})
    return block + b"".join(strips)


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize(
    ("number", "codec"),
    [(1, None), (5, "lzw"), (8, "zlib"), (32773, "packbits"), (34925, "lzma"), (50000, "zstd")],
)
def test_padded_last_strip_decodes(number, codec, deep, rng):
    samples = pictures.noise(rng, 32, 20, deep=deep) // 9
    compress = getattr(imagecodecs, f"{codec}_encode") if codec else bytes
    strips = [compress(samples[:16].tobytes()), compress(samples[16:].tobytes())]
    read_exactly(tiff_of_strips(samples[:20], strips, t259=(3, [number])), samples[:20])


def test_only_damaged_pixel_tags_make_a_tiff_damaged(rng):
    samples = pictures.noise(rng, 16, 20)
    intact = tiff_of_strips(samples, [samples.tobytes()], t305=(2, b"a program\0"), t338=(3, [0, 0, 0]))
    read_exactly(intact, samples)
    for tag, kind, count in ((305, 2, 10), (338, 3, 3)):
        at = intact.index(struct.pack("<HHI", tag, kind, count)) + 8
        damaged = intact[:at] + b"\xff\xff\xff\x7f" + intact[at + 4 :]
        if tag == 305:
            assert read_exactly(damaged, samples).meta.warnings
        else:
            with pytest.raises(DamagedImage):
                photo.decode(damaged)


def test_tiff_with_two_widths_is_damaged(rng):
    samples = pictures.noise(rng, 16, 20)
    intact = tiff_of_strips(samples, [samples.tobytes()], t305=(3, [10]))
    at = intact.index(struct.pack("<HHI", 305, 3, 1))
    two_widths = intact[:at] + struct.pack("<HHI", 256, 3, 1) + intact[at + 8 :]  # 10 besides 20
    with pytest.raises(DamagedImage):
        photo.decode(two_widths)


@pytest.mark.parametrize("bigtiff", [False, True])
def test_palette_of_tiff_is_applied(bigtiff, rng):
    colours = rng.integers(0, 256, (3, 256), dtype=np.uint16) * 257
    stored = pictures.noise(rng, 20, 30, 1)
    data = pictures.tiff(stored, photometric="palette", colormap=colours, bigtiff=bigtiff)
    read_exactly(data, (colours.T[stored] // 257).astype(np.uint8))


@pytest.mark.parametrize("kind", ["jpeg", "palette", "lab", "ycbcr"])
def test_other_tiffs_decode_as_in_pillow(kind, rng):
    image = Image.fromarray(photo_like(rng, 48, 64))
    options = {"compression": "jpeg", "quality": 90} if kind in ("jpeg", "ycbcr") else {}
    mode = {"palette": "P", "lab": "LAB", "ycbcr": "YCbCr"}.get(kind, "RGB")
    if kind == "lab":
        reference = np.asarray(image)
        lab = cv2.cvtColor(reference, cv2.COLOR_RGB2LAB)  # L 0..255, a and b + 128, white D65
        lab[..., 1:] -= 128  # TIFF stores them signed
        data = pictures.tiff(lab, photometric="cielab")
        compressed = pictures.pillow(Image.fromarray(lab, "LAB"), "TIFF", compression="jpeg", quality=95)
        for read, limit in ((photo.decode(data), 3), (photo.decode(compressed), 4)):
            assert np.abs(read.pixels.astype(int) - reference).mean() < limit
            assert read.meta.warnings == ("the colours were converted from Lab to sRGB",)
        return
    data = pictures.pillow(image.convert(mode), "TIFF", **options)
    read_exactly(data, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


# AVIF and HEIC


@pytest.mark.parametrize("bits", [10, 12])
@pytest.mark.parametrize("channels", [1, 2, 4])
def test_deep_avif_is_scaled_to_16_bits(bits, channels, rng):
    stored = pictures.noise(rng, 32, 48, channels, deep=True) >> (16 - bits)
    stored[0, 0], stored[0, 1] = 2**bits - 1, 0
    data = pictures.deep_avif(stored, bits)
    expected = np.rint(imagecodecs.avif_decode(data) * (65535 / (2**bits - 1))).astype(np.uint16)
    read = read_exactly(data, expected)
    assert read.pixels.max() == 65535
    if channels < 3:  # grey is not converted to YCbCr
        np.testing.assert_array_equal(expected, np.rint(stored * (65535 / (2**bits - 1))))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_avif_decodes_closely(channels, rng):
    expected = np.dstack([photo_like(rng, 32, 48)] * 2)[..., :channels].squeeze()
    read = photo.decode(pictures.deep_avif(expected, 8))
    np.testing.assert_allclose(samples_of(read), expected, atol=2)
    assert read.meta.grey == (channels < 3)


@pytest.mark.parametrize("bits", [10, 12])
def test_deep_heic_is_scaled_to_16_bits(bits, rng):
    stored = pictures.noise(rng, 64, 64, deep=True) >> (16 - bits)
    stored[0, 0], stored[0, 1] = 2**bits - 1, 0
    read_exactly(
        pictures.deep_heic(stored, bits), np.rint(stored * (65535 / (2**bits - 1))).astype(np.uint16)
    )


def test_heic_decodes_closely(rng):
    expected = photo_like(rng, 64, 80)
    read = photo.decode(pictures.heic(Image.fromarray(expected)))
    np.testing.assert_allclose(read.pixels, expected, atol=3)
    assert (read.meta.format, read.meta.depth) == ("heif", 8)
    with_alpha = np.dstack([expected, expected[..., 0]])
    read = photo.decode(pictures.heic(Image.fromarray(with_alpha)))
    np.testing.assert_allclose(samples_of(read), with_alpha, atol=3)
    assert photo.decode(pictures.heic(Image.fromarray(expected[..., 0]))).meta.grey


def test_tiled_heic_decodes_closely(rng):
    expected = photo_like(rng, 200, 300)
    data = pictures.heic(Image.fromarray(expected), tile_size=128)
    np.testing.assert_allclose(photo.decode(data).pixels, expected, atol=3)


# Orientation

_ORIENT = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: np.rot90,
}


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", pictures.ORIENTATIONS)
def test_orientation_of_jpeg_is_applied(orientation, order, rng):
    jpeg = pictures.pillow(photo_like(rng, 24, 40), "JPEG", quality=90)
    data = pictures.with_exif(jpeg, pictures.camera_exif(order, orientation))
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    read_exactly(data, np.asarray(upright))
    np.testing.assert_array_equal(
        np.asarray(upright), _ORIENT[orientation](np.asarray(Image.open(io.BytesIO(jpeg))))
    )


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("orientation", pictures.ORIENTATIONS)
def test_orientation_of_png_is_applied(orientation, deep, rng):
    stored = pictures.noise(rng, 12, 20, deep=deep)
    data = pictures.png(stored, (b"eXIf", pictures.camera_exif(orientation=orientation)))
    read_exactly(data, _ORIENT[orientation](stored))


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("orientation", pictures.ORIENTATIONS)
def test_orientation_of_tiff_is_applied(orientation, deep, rng):
    stored = pictures.noise(rng, 12, 20, deep=deep)
    data = pictures.tiff(stored, photometric="rgb", extratags=[(274, "H", 1, orientation, True)])
    read_exactly(data, _ORIENT[orientation](stored))


@pytest.mark.parametrize("orientation", pictures.ORIENTATIONS)
def test_orientation_of_tiff_read_by_pillow_is_applied(orientation, rng):
    stored = Image.fromarray(pictures.noise(rng, 12, 20) // 64 * 64).convert("P")
    exif = Image.Exif()
    exif[274] = orientation
    read_exactly(
        pictures.pillow(stored, "TIFF", exif=exif), _ORIENT[orientation](np.asarray(stored.convert("RGB")))
    )


@pytest.mark.parametrize("orientation", pictures.ORIENTATIONS)
def test_orientation_of_webp_is_applied(orientation, rng):
    stored = pictures.noise(rng, 12, 20)
    data = pictures.pillow(stored, "WEBP", lossless=True, exif=pictures.camera_exif(orientation=orientation))
    read_exactly(data, _ORIENT[orientation](stored))


@pytest.mark.parametrize("orientation", pictures.ORIENTATIONS)
def test_orientation_of_avif_is_applied(orientation, rng):
    stored = photo_like(rng, 24, 40)
    # Pillow writes the orientation to the container, which is authoritative
    data = pictures.pillow(
        stored, "AVIF", quality=100, subsampling="4:4:4", exif=pictures.camera_exif(orientation=orientation)
    )
    np.testing.assert_allclose(photo.decode(data).pixels, _ORIENT[orientation](stored), atol=3)


def with_aperture(data: bytes, *numbers: int) -> bytes:
    """Return an AVIF with a clean aperture: width, height and offsets of its centre, each a fraction."""
    top = dict(boxes(data))
    meta = dict(boxes(top[b"meta"][4:]))
    properties = dict(boxes(meta[b"iprp"]))
    aperture = box(b"clap", struct.pack(">iIiIiIiI", *numbers))
    number = len([*boxes(properties[b"ipco"])]) + 1
    association = bytearray(properties[b"ipma"])
    association[10] += 1  # of the first item
    count = association[10] - 1
    association.insert(11 + count, 0x80 | number)
    location = bytearray(meta[b"iloc"])
    assert location[4] == 0x44
    added = len(aperture) + 1
    at = 8
    for _ in range(int.from_bytes(location[6:8], "big")):
        struct.pack_into(">I", location, at + 6, struct.unpack_from(">I", location, at + 6)[0] + added)
        at += 14
    properties |= {b"ipco": properties[b"ipco"] + aperture, b"ipma": bytes(association)}
    meta |= {b"iloc": bytes(location), b"iprp": b"".join(box(*one) for one in properties.items())}
    top[b"meta"] = top[b"meta"][:4] + b"".join(box(*one) for one in meta.items())
    return b"".join(box(*one) for one in top.items())


@pytest.mark.parametrize("orientation", pictures.ORIENTATIONS)
def test_crop_of_avif_is_applied_before_its_orientation(orientation, rng):
    stored = photo_like(rng, 24, 40)
    exif = pictures.exif_block("<", {0x0112: (3, [orientation])})
    data = pictures.pillow(stored, "AVIF", quality=100, subsampling="4:4:4", exif=exif)
    read = photo.decode(with_aperture(data, 20, 1, 12, 1, 4, 1, -3, 1))  # from 14 to 34, from 3 to 15
    np.testing.assert_allclose(read.pixels, _ORIENT[orientation](stored[3:15, 14:34]), atol=3)
    assert read.meta.warnings == ()
    whole = photo.decode(with_aperture(data, 20, 1, 12, 1, 40, 1, 0, 1))
    np.testing.assert_array_equal(whole.pixels, photo.decode(data).pixels)
    assert "crop" in whole.meta.warnings[0]


def test_exif_orientation_of_avif_is_ignored(rng):
    stored = photo_like(rng, 24, 40)
    data = pictures.pillow(
        stored, "AVIF", quality=100, subsampling="4:4:4", exif=pictures.camera_exif("<", 1)
    )
    # Pillow removed the tag; insert one that contradicts the container
    contradictory = data.replace(struct.pack("<HHI", 0x0110, 2, 1), struct.pack("<HHI", 0x0112, 3, 1))
    np.testing.assert_allclose(photo.decode(contradictory).pixels, stored, atol=3)


@pytest.mark.parametrize("orientation", pictures.ORIENTATIONS)
def test_orientation_of_heic_is_applied(orientation, rng):
    stored = Image.fromarray(photo_like(rng, 64, 96))
    # pillow_heif writes the orientation to the container and keeps the tag, which must not be applied again
    data = pictures.heic(stored, exif=b"Exif\0\0" + pictures.camera_exif(orientation=orientation))
    read = photo.decode(data)
    np.testing.assert_allclose(read.pixels, _ORIENT[orientation](np.asarray(stored)), atol=3)
    assert (read.meta.orientation, read.meta.stored) == (orientation, (96, 64))


def test_orientation_in_the_exif_of_heic_does_not_count(rng):
    stored = photo_like(rng, 64, 96)
    data = pictures.heic(Image.fromarray(stored), exif=b"Exif\0\0" + pictures.camera_exif(orientation=1))
    contradictory = data.replace(struct.pack("<HHIH", 0x0112, 3, 1, 1), struct.pack("<HHIH", 0x0112, 3, 1, 6))
    contradictory = contradictory.replace(
        struct.pack(">HHIH", 0x0112, 3, 1, 1), struct.pack(">HHIH", 0x0112, 3, 1, 6)
    )
    assert contradictory != data
    read = photo.decode(contradictory)
    np.testing.assert_allclose(read.pixels, stored, atol=3)
    assert (read.meta.orientation, read.meta.stored) == (1, (96, 64))


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_orientation_out_of_range_is_ignored(orientation, rng):
    stored = pictures.noise(rng, 12, 20)
    read_exactly(pictures.png(stored, (b"eXIf", pictures.camera_exif(orientation=orientation))), stored)


def test_real_photos_of_every_orientation_decode_upright(shared):
    for kind in ("Landscape", "Portrait"):
        reference, *others = (
            photo.decode((shared / "hostile/exif-orientation" / f"{kind}_{number}.jpg").read_bytes()).pixels
            for number in range(9)
        )
        thumb = cv2.resize(reference, (60, 60), interpolation=cv2.INTER_AREA).astype(int)
        for number, other in enumerate(others, 1):
            assert other.shape == reference.shape, (kind, number)
            difference = np.abs(cv2.resize(other, (60, 60), interpolation=cv2.INTER_AREA) - thumb).mean()
            assert difference < 6, (kind, number, difference)


# Unsupported and too large


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello, this is text",
        b"<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"8BPS\0\1" + bytes(100),
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        b"%PDF-1.7\n",
        b"P6 2 2 255 " + bytes(12),
        b"\0\0\x01\0\x01\0" + bytes(60),
        b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom",
        b"\0\0\0\x18ftypcrx \0\0\0\1crx isom",
        bytes(1000),
    ],
    ids=["empty", "text", "svg", "svg2", "psd", "eps", "pdf", "ppm", "ico", "mp4", "cr3", "zeros"],
)
def test_unsupported_format_is_refused(data):
    with pytest.raises(UnsupportedImage, match="use one of JPEG, PNG") as caught:
        photo.decode(data)
    assert not isinstance(caught.value, DamagedImage)


@pytest.mark.parametrize("dtype", [np.uint32, np.int16, np.float64, np.int32])
@pytest.mark.parametrize("shape", [(8, 9), (8, 9, 3)])
def test_tiff_with_other_sample_types_is_refused(dtype, shape):
    data = pictures.tiff(np.zeros(shape, dtype), photometric="rgb" if len(shape) == 3 else "minisblack")
    with pytest.raises(UnsupportedImage, match="8 or 16 bits") as caught:
        photo.decode(data)
    assert not isinstance(caught.value, DamagedImage)


@pytest.mark.parametrize("decode", [photo.decode, sandbox.decode])
@pytest.mark.parametrize("options", [{}, {"compression": "zlib", "predictor": 3}, {"tile": (16, 16)}])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_floating_point_tiff_becomes_16_bit(channels, dtype, options, decode, rng):
    samples = rng.random((20, 31, channels), np.float32).astype(dtype)
    extra = {"extrasamples": ["unassalpha"]} if channels == 4 else {}
    kind = "minisblack" if channels == 1 else "rgb"
    read = decode(pictures.tiff(samples.squeeze(), photometric=kind, **extra, **options))
    expected = np.rint(samples.astype(np.float64) * 65535)
    np.testing.assert_allclose(samples_of(read).reshape(samples.shape), expected, atol=1)
    assert read.meta.depth == 16
    assert read.meta.warnings == ("the floating-point samples were reduced to 16 bits per channel",)


def test_floating_point_samples_outside_the_range_are_clipped_with_a_warning():
    samples = np.array([[np.nan, np.inf, -np.inf, -0.5, 1.5, 1e30, 0.5, 1.0]], np.float32)
    read = photo.decode(pictures.tiff(samples, photometric="minisblack"))
    assert read.pixels[0, :, 0].tolist() == [0, 65535, 0, 0, 65535, 65535, 32768, 65535]
    assert "clipped" in read.meta.warnings[1]


def test_floating_point_tiff_in_linear_light_is_recognised_by_its_profile(rng):
    samples = rng.random((20, 30, 3), np.float32)
    read = photo.decode(pictures.tiff(samples, photometric="rgb", iccprofile=profiles.rgb("linear")))
    curved = np.where(samples <= 0.0031308, samples * 12.92, 1.055 * samples ** (1 / 2.4) - 0.055)
    assert read.meta.linear
    # 16 bits of linear light are coarse in the shadows
    np.testing.assert_allclose(read.pixels / 65535, curved, atol=1e-4)


def test_tiff_with_unsupported_photometric_is_refused(rng):
    data = pictures.tiff(pictures.noise(rng, 8, 9, 5), photometric="separated", extrasamples=["unassalpha"])
    with pytest.raises(UnsupportedImage, match="photometric interpretation 5") as caught:
        photo.decode(data)
    assert not isinstance(caught.value, DamagedImage)


@pytest.mark.parametrize(
    "tags", [[(50706, "B", 4, b"\1\4\0\0", True)], [(254, "I", 1, 1, True)]], ids=["dng", "nef"]
)
def test_camera_raw_files_are_refused(tags, rng):
    reduced = {"subfiletype": 1} if tags[0][0] == 254 else {"extratags": tags}
    with pytest.raises(UnsupportedImage, match="raw file"):
        photo.decode(pictures.tiff(pictures.noise(rng, 8, 9), photometric="rgb", **reduced))


@pytest.mark.parametrize(
    ("start", "name"),
    [
        (b"II*\0\x10\0\0\0CR\2\0", "Canon CR2"),
        (b"\0\0\0\x18ftypcrx \0\0\0\1crx isom", "Canon CR3"),
        (b"FUJIFILMCCD-RAW 0201", "Fujifilm RAF"),
        (b"IIRO\x08\0\0\0", "Olympus ORF"),
        (b"IIU\0\x18\0\0\0", "Panasonic RW2"),
    ],
)
def test_camera_raw_files_are_recognised_by_their_first_bytes(start, name):
    with pytest.raises(UnsupportedImage, match=rf"camera raw file \({name}\)") as caught:
        photo.decode(start + bytes(200))
    assert not isinstance(caught.value, DamagedImage)


@pytest.mark.parametrize(("tag", "value"), [(262, 32803), (259, 34713), (259, 32767), (259, 65535)])
@pytest.mark.parametrize("subfile", [0, 1])
def test_previews_of_raw_files_are_not_taken_for_the_photo(subfile, tag, value, rng):
    """NEF, ARW and others: the first directory is a preview, a subdirectory has what the sensor measured."""
    out = io.BytesIO()
    with tifffile.TiffWriter(out) as file:
        file.write(
            pictures.noise(rng, 8, 10), photometric="rgb", subfiletype=subfile, subifds=1, metadata=None
        )
        file.write(pictures.noise(rng, 40, 50, 1), photometric="minisblack", metadata=None)
    data = out.getvalue()
    number = 1  # of photometric interpretation and of compression alike
    for kind in (3, 4):
        old = struct.pack("<HHIHH", tag, kind, 1, number, 0)
        at = data.rfind(old)
        if at > 0:
            data = data[:at] + struct.pack("<HHII", tag, kind, 1, value) + data[at + 12 :]
    with pytest.raises(UnsupportedImage, match="camera raw file"):
        photo.decode(data)


def test_pngs_of_iphone_apps_are_named():
    header = pictures.chunk(b"CgBI", bytes(4)) + pictures.chunk(b"IHDR", bytes(13))
    with pytest.raises(UnsupportedImage, match="CgBI") as caught:
        photo.decode(b"\x89PNG\r\n\x1a\n" + header)
    assert not isinstance(caught.value, DamagedImage)


def test_tiff_with_unsupported_compression_is_refused(rng):
    """A JPEG 2000 in a strip could decompress to an image of any size."""
    data = pictures.tiff(pictures.noise(rng, 64, 64), photometric="rgb", compression="jpeg2000")
    with pytest.raises(UnsupportedImage, match="TIFF compression 34712"):
        photo.decode(data)


def test_tiff_with_100_channels_is_refused(rng):
    with pytest.raises(UnsupportedImage, match="100 channels"):
        photo.decode(
            pictures.tiff(pictures.noise(rng, 4, 4, 100), photometric="minisblack", planarconfig="contig")
        )


@pytest.mark.parametrize(
    "image_format",
    ["png", "deep png", "jpeg", "progressive", "webp", "gif", "bmp", "tiff", "avif", "heic", "jxl", "jp2"],
)
def test_huge_size_in_header_is_refused_without_allocating(image_format, rng):
    data = broken.huge(image_format)
    photo.decode(whole_files(rng)[image_format])  # so that imports are not measured
    tracemalloc.start()
    with pytest.raises(
        ImageTooLarge, match=r"(50000 x 50000 = 2500.0|16383 x 16383 = 268.4) megapixels; the limit is 100.0"
    ):
        photo.decode(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5_000_000
    with pytest.raises(ImageTooLarge):
        photo.size(data)


@pytest.mark.parametrize("kind", [b"CgBI", b"tEXt", b"IHDR"])
def test_size_in_second_png_header_is_checked(kind):
    small, large = (struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0) for side in (9, 50_000))
    head, body = b"\x89PNG\r\n\x1a\n", pictures.chunk(b"IDAT", zlib.compress(bytes(28 * 9)))
    for chunks in ([(kind, small), (b"IHDR", large)], [(b"IHDR", small), (kind, small), (b"IHDR", large)]):
        with pytest.raises((ImageTooLarge, UnsupportedImage)):
            photo.decode(head + b"".join(pictures.chunk(*one) for one in chunks) + body)


def with_small_blocks(kind: str, count: int, rng: np.random.Generator) -> bytes:
    """Return an image file with `count` small metadata blocks."""
    samples = pictures.noise(rng, 8, 9)
    if kind == "jpeg":
        data = pictures.pillow(samples, "JPEG")
        return data[:2] + b"\xff\xe1\0\x0aExif\0\0xx" * count + data[2:]
    if kind == "tiff":
        tag = (40000, "I", 10 * count, bytes(40 * count), True)
        data = pictures.tiff(samples, photometric="rgb", extratags=[tag])
        entry = struct.pack("<HHI", 40000, 12, 5 * count)
        return data.replace(struct.pack("<HHI", 40000, 4, 10 * count), entry)
    data = pictures.png(samples)
    block = pictures.chunk(b"tEXt", b"a\0b") if kind == "png" else pictures.chunk(b"iCCP", b"junk")
    return data[:33] + block * count + data[33:]


@pytest.mark.parametrize("kind", ["png", "png warnings", "jpeg", "tiff"])
def test_work_for_small_blocks_is_bounded(kind, rng):
    """Ten times the blocks cause no more function calls."""

    def calls(count: int) -> int:
        data, total = with_small_blocks(kind, count, rng), 0

        def count_call(frame, event, _):
            nonlocal total
            total += event in ("call", "c_call")

        sys.setprofile(count_call)
        try:
            if kind == "tiff":
                assert len(photo.decode(data).meta.warnings) <= 1
            else:
                with pytest.raises(DamagedImage):
                    photo.decode(data)
        finally:
            sys.setprofile(None)
        return total

    calls(20_000)  # so that imports are not counted
    assert calls(200_000) <= calls(20_000) + 20


def test_1000_small_blocks_are_accepted(rng):
    samples = pictures.noise(rng, 8, 9)
    for block, text in (((b"tEXt", b"a\0b"), 15_000), ((b"iCCP", b"junk"), 0)):
        read = read_exactly(pictures.png(samples, *[block] * 1000), samples)
        assert (len(read.meta.warnings), len(read.meta.metadata.text)) == (int(text == 0), text)
    data = pictures.pillow(samples, "JPEG")
    crowded = data[:2] + b"\xff\xe1\0\x0aExif\0\0xx" * 1000 + data[2:]
    np.testing.assert_array_equal(photo.decode(crowded).pixels, photo.decode(data).pixels)


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "AVIF", "JPEG2000"])
def test_pixel_limit_is_exact(image_format, rng):
    data = pictures.pillow(pictures.noise(rng, 20, 30), image_format)
    assert photo.decode(data, max_pixels=600).width == 30
    with pytest.raises(ImageTooLarge, match=r"30 x 20"):
        photo.decode(data, max_pixels=599)


# Damaged


def whole_files(rng: np.random.Generator) -> dict[str, bytes]:
    image = Image.fromarray(photo_like(rng, 60, 76))
    deep = np.asarray(image).astype(np.uint16) * 257
    return {
        "jpeg": pictures.pillow(image, "JPEG", quality=90),
        "progressive": pictures.pillow(image, "JPEG", quality=90, progressive=True),
        "png": pictures.pillow(image, "PNG"),
        "deep png": imagecodecs.png_encode(deep),
        "webp": pictures.pillow(image, "WEBP"),
        "lossless webp": pictures.pillow(image, "WEBP", lossless=True),
        "gif": pictures.pillow(image, "GIF"),
        "bmp": pictures.pillow(image, "BMP"),
        "avif": pictures.pillow(image, "AVIF", quality=95),
        "deep avif": pictures.deep_avif(deep >> 6, 10),
        "heic": pictures.heic(image),
        "heic of tiles": pictures.heic(image, tile_size=64),
        "jxl": imagecodecs.jpegxl_encode(np.asarray(image), lossless=True),
        "lossy jxl": imagecodecs.jpegxl_encode(np.asarray(image), 90, usecontainer=True),
        "jp2": pictures.pillow(image, "JPEG2000"),
        "deep j2k": imagecodecs.jpeg2k_encode(deep, codecformat="j2k"),
        "tiff": pictures.pillow(image, "TIFF"),
        "lzw tiff": pictures.pillow(image, "TIFF", compression="tiff_lzw"),
        "jpeg tiff": pictures.pillow(image, "TIFF", compression="jpeg"),
        "cmyk tiff": pictures.pillow(image.convert("CMYK"), "TIFF", compression="tiff_deflate"),
        "one bit tiff": pictures.pillow(image.convert("1"), "TIFF", compression="group4"),
        "deep tiff": pictures.tiff(deep, photometric="rgb"),
        "deep lzw tiff": pictures.tiff(deep, photometric="rgb", compression="lzw", rowsperstrip=8),
        "tiled tiff": pictures.tiff(deep, photometric="rgb", compression="zlib", tile=(32, 32)),
    }


def test_truncated_file_never_decodes_partially(rng):
    for kind, data in whole_files(rng).items():
        complete = photo.decode(data).pixels
        cuts = {
            *range(0, len(data), max(len(data) // 24, 1)),
            *(len(data) * part // 100 for part in (10, 50, 90, 99)),
        }
        refused = 0
        for cut in sorted(cuts | {len(data) - 1, len(data) - 4, len(data) - 13}):
            try:
                pixels = photo.decode(data[:cut]).pixels
            except UnsupportedImage:
                refused += 1
            else:
                np.testing.assert_array_equal(pixels, complete, f"{kind} cut at {cut} of {len(data)}")
        assert refused >= len(cuts) - 2, kind


def test_size_is_read_from_the_header(rng):
    for kind, data in whole_files(rng).items():
        assert photo.size(data) == (76, 60), kind
        with pytest.raises(ImageTooLarge):
            photo.size(data, max_pixels=76 * 60 - 1)
        with pytest.raises((DamagedImage, UnsupportedImage)):
            photo.size(data[:3])
    stored = Image.fromarray(pictures.noise(rng, 6, 9))
    exif = Image.Exif()
    exif[0x0112] = 6
    assert photo.size(pictures.pillow(stored, "JPEG", exif=exif)) == (9, 6), "before orientation"


@pytest.mark.parametrize("bits", [8, 16])
def test_png_with_missing_pixels_is_damaged(bits):
    rows = (b"\0" + bytes([200]) * (30 * bits // 8)) * 5
    with pytest.raises(DamagedImage):
        photo.decode(pictures.raw_png(10, 10, bits, 2, rows))


def test_unknown_critical_png_chunk_is_refused(rng):
    samples = pictures.noise(rng, 8, 9)
    read_exactly(pictures.png(samples, (b"abCd", b"")), samples)
    with pytest.raises(DamagedImage):
        photo.decode(pictures.png(samples, (b"ABCD", b"")))


def test_wrong_png_checksum_costs_metadata_but_damages_pixels(rng):
    samples = pictures.noise(rng, 8, 9)
    for kind, body in ((b"eXIf", pictures.camera_exif("<", 6)), (b"tRNS", b"\0a\0b\0c"), (b"IDAT", b"")):
        data = pictures.png(samples, *[(kind, body)] * (kind != b"IDAT"))
        end = data.index(kind) + 4 + int.from_bytes(data[data.index(kind) - 4 : data.index(kind)], "big")
        damaged = data[:end] + bytes(4) + data[end + 4 :]
        if kind == b"eXIf":
            read = read_exactly(damaged, samples)
            assert (read.meta.metadata.exif, len(read.meta.warnings)) == (b"", 1)
        else:
            with pytest.raises(DamagedImage):
                photo.decode(damaged)


@pytest.mark.parametrize("compression", ["zlib", "lzw", "packbits"])
@pytest.mark.parametrize("deep", [False, True])
def test_tiff_with_short_strip_is_damaged(compression, deep, rng):
    samples = pictures.noise(rng, 32, 20, deep=deep)
    data = bytearray(pictures.tiff(samples, photometric="rgb", compression=compression, rowsperstrip=32))
    half = getattr(imagecodecs, f"{compression}_encode")(samples[:16].tobytes())
    with tifffile.TiffFile(io.BytesIO(bytes(data))) as tiff:
        page = tiff.pages.first
        start, count = page.dataoffsets[0], page.tags[279].valueoffset
    data[start : start + len(half)] = half
    data[count : count + 4] = struct.pack("<I", len(half))
    with pytest.raises(DamagedImage):
        photo.decode(bytes(data))


def test_tiff_with_missing_strips_is_damaged(rng):
    data = pictures.tiff(pictures.noise(rng, 32, 20), photometric="rgb", compression="zlib", rowsperstrip=8)
    for tag in (273, 279):
        short = data.replace(struct.pack("<HHI", tag, 4, 4), struct.pack("<HHI", tag, 4, 3))
        short = short.replace(struct.pack("<HHI", tag, 3, 4), struct.pack("<HHI", tag, 3, 3))
        assert short != data
        with pytest.raises(DamagedImage):
            photo.decode(short)


def test_damage_inside_a_file_raises_only_restore_errors(rng):
    for kind, data in whole_files(rng).items():
        for _ in range(12):
            damaged = bytearray(data)
            for at in rng.integers(2, len(data), 6):
                damaged[at] = rng.integers(256)
            try:
                photo.decode(bytes(damaged))
            except RestoreError:
                pass
            except Exception as error:
                raise AssertionError(f"{kind}: {error!r}") from error


def intact_and_with_broken_metadata(kind: str, image: Image.Image, junk: bytes) -> tuple[bytes, bytes]:
    if kind == "jpeg":
        intact = damaged = pictures.pillow(image, "JPEG")
        for start in (b"MPF\0", b"ICC_PROFILE\0"):
            damaged = pictures.segment(damaged, 0xE2, start + junk)
        damaged = pictures.segment(damaged, 0xED, b"Photoshop 3.0\0008BIM\4")
        return intact, pictures.segment(damaged, 0xE1, b"Exif\0\0" + junk)
    if kind == "png":
        chunks = [(b"iCCP", junk), (b"eXIf", junk), (b"zTXt", b"a\0\0" + junk)]
        chunks += [(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + junk)]
        chunks += [(b"tEXt", b"dpi\0seven"), (b"tEXt", b"transparency\0" + junk)]
        damaged = pictures.png(np.asarray(image), *chunks, (b"gAMA", b""), (b"pHYs", b"\0"), (b"sRGB", b""))
        at = damaged.index(b"eXIf") + 8
        damaged = damaged[:at] + bytes([damaged[at] ^ 1]) + damaged[at + 1 :]  # breaks the checksum
        return pictures.pillow(image, "PNG"), damaged
    if kind == "heic":
        return pictures.heic(image), pictures.heic(image, exif=b"Exif\0\0" + junk, xmp=junk)
    if kind == "tiff":
        tags = [(700, "B", 300, junk, True), (33723, "B", 300, junk, True), (34675, "B", 300, junk, True)]
        samples = np.asarray(image)
        return (
            pictures.tiff(samples, photometric="rgb", software=False, extratags=extra) for extra in ([], tags)
        )
    options = {"icc_profile": junk, "exif": junk, "xmp": junk}
    return (pictures.pillow(image, "WEBP", lossless=True, **extra) for extra in ({}, options))


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "tiff", "heic"])
def test_broken_metadata_does_not_affect_the_pixels(kind, rng):
    junk = rng.bytes(300)
    intact, damaged = intact_and_with_broken_metadata(kind, Image.fromarray(photo_like(rng, 40, 60)), junk)
    read = photo.decode(damaged)
    np.testing.assert_array_equal(read.pixels, photo.decode(intact).pixels)
    assert read.meta.warnings
    assert (
        read.meta.metadata.icc,
        read.meta.metadata.exif,
        read.meta.metadata.xmp,
        read.meta.metadata.iptc,
    ) == (b"", b"", b"", b"")


def test_avif_with_broken_exif_keeps_its_orientation(rng):
    stored = photo_like(rng, 24, 40)
    options = {"quality": 100, "subsampling": "4:4:4", "icc_profile": b""}
    data = bytearray(pictures.pillow(stored, "AVIF", exif=pictures.camera_exif(orientation=6), **options))
    at = data.index(b"II*\0")
    data[at : at + 4] = b"QQQQ"
    read = photo.decode(bytes(data))
    np.testing.assert_allclose(read.pixels, _ORIENT[6](stored), atol=3)
    assert read.meta.warnings == ("the EXIF block is damaged and was left out",)


def test_decompression_bombs_in_png_metadata_are_left_out(rng):
    stored = pictures.noise(rng, 8, 9)
    bomb = zlib.compress(bytes(60_000_000), 9)
    data = pictures.png(stored, (b"iCCP", b"x\0\0" + bomb), (b"zTXt", b"Raw profile type exif\0\0" + bomb))
    tracemalloc.start()
    read = read_exactly(data, stored)
    assert tracemalloc.get_traced_memory()[1] < 45_000_000
    tracemalloc.stop()
    assert read.meta.metadata.icc == b""


def test_decoding_prints_nothing(rng, tmp_path):
    """Not through Python's warnings, logging or a C library."""
    junk = bytes(rng.integers(0, 256, 64, dtype=np.uint8))
    for number, data in enumerate(whole_files(rng).values()):
        (tmp_path / f"{number}a").write_bytes(data[: len(data) * 2 // 3])
        (tmp_path / f"{number}b").write_bytes(data[:-9])
        middle = len(data) // 8
        (tmp_path / f"{number}c").write_bytes(data[:middle] + junk[:8] + data[middle + 8 :])
    for compression in ("group3", "tiff_ccitt", "tiff_lzw"):
        image = Image.fromarray(photo_like(rng, 60, 76)).convert("P" if "lzw" in compression else "1")
        data = pictures.pillow(image, "TIFF", compression=compression)
        middle = len(data) // 8
        (tmp_path / compression).write_bytes(data[:middle] + junk[:8] + data[middle + 8 :])
    (tmp_path / "long").write_bytes(pictures.raw_png(9, 5, 8, 2, bytes(28 * 20)))
    samples = pictures.noise(rng, 16, 20)
    intact = tiff_of_strips(samples, [samples.tobytes()], t305=(2, b"a program\0"))
    at = intact.index(struct.pack("<HHI", 305, 2, 10)) + 8
    (tmp_path / "tag").write_bytes(intact[:at] + b"\xff\xff\xff\x7f" + intact[at + 4 :])
    block = pictures.camera_exif("<", 6)
    avif = pictures.pillow(photo_like(rng, 20, 30), "AVIF", exif=block)
    at = avif.index(struct.pack("<HHI", 0x010F, 2, 6)) + 8
    (tmp_path / "avif").write_bytes(avif[:at] + b"\xff\xff\xff\x7f" + avif[at + 4 :])
    script = (
        "import pathlib, sys\nfrom restorer import errors\nfrom restorer.images import photo\n"
        "for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):\n"
        "    try:\n        photo.decode(path.read_bytes())\n"
        "    except errors.RestoreError:\n        pass\n"
    )
    root = Path(__file__).parents[2]
    process = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], cwd=root, capture_output=True, text=True
    )
    assert (process.returncode, process.stdout, process.stderr) == (0, "", "")


def test_fuzzer_files_decode_or_raise_restore_errors(shared):
    outcomes = []
    for path in sorted((shared / "hostile/go-fuzz").iterdir()):
        try:
            read = photo.decode(path.read_bytes(), max_pixels=5_000_000)
        except RestoreError as error:
            outcomes.append(type(error))
        else:
            assert read.pixels.shape == (read.height, read.width, 3)
            outcomes.append(photo.Photo)
    assert outcomes.count(photo.Photo) > 90
    assert DamagedImage in outcomes
