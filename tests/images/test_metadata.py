"""Metadata is converted between formats and updated; damaged blocks are dropped."""

import io
import re
import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
import tifffile
from PIL import ExifTags, Image, PngImagePlugin

from restorer.images import encode, photo, privacy
from restorer.images.formats import exif, metadata, xmp
from restorer.images.placement import Placement
from tests import pictures, profiles
from tests.conftest import photo_like

FORMATS = ("png", "jpeg", "webp", "tiff", "avif")
SOURCES = (*FORMATS, "heif")
PROFILE = profiles.rgb("p3")
IPTC = b"\x1c\x02\x00\x00\x02\x00\x04\x1c\x02\x78\x00\x09a caption"


def source(image_format: str, rng: np.random.Generator, block: bytes, xmp: bytes = pictures.XMP) -> bytes:
    """Return a 40 x 30 photo with a profile, EXIF and XMP, written by other libraries."""
    image = Image.fromarray(photo_like(rng, 30, 40))
    if image_format == "jpeg":
        data = pictures.with_exif(pictures.pillow(image, "JPEG", icc_profile=PROFILE, dpi=(300, 300)), block)
        return pictures.segment(data, 0xE1, b"http://ns.adobe.com/xap/1.0/\0" + xmp)
    if image_format == "png":
        text = (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp)
        profile = (b"iCCP", b"p3\0\0" + zlib.compress(PROFILE))
        return pictures.png(
            np.asarray(image),
            profile,
            (b"pHYs", struct.pack(">IIB", 11811, 11811, 1)),
            (b"eXIf", block),
            text,
        )
    if image_format == "tiff":
        return tiff_from_exif(np.asarray(image), block, xmp)
    if image_format == "heif":
        with_profile = Image.fromarray(np.asarray(image))
        with_profile.info["icc_profile"] = PROFILE
        return pictures.heic(with_profile, exif=b"Exif\0\0" + block, xmp=xmp)
    return pictures.pillow(image, image_format.upper(), exif=block, xmp=xmp, icc_profile=PROFILE)


def tiff_from_exif(samples: np.ndarray, block: bytes, xmp: bytes) -> bytes:
    """Add an image to an EXIF block, which is a TIFF file without one.

    Its first directory cannot grow in place, so a new one points to the nested directories.
    """
    order = "<" if block[:2] == b"II" else ">"
    (count,) = struct.unpack_from(order + "H", block, 8)
    tags = {}
    for at in range(10, 10 + 12 * count, 12):
        tag, kind, number = struct.unpack_from(order + "HHI", block, at)
        size = number * {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 7: 1}[kind]
        start = at + 8 if size <= 4 else struct.unpack_from(order + "I", block, at + 8)[0]
        tags[tag] = (kind, block[start : start + size])
    height, width = samples.shape[:2]
    tags |= {256: (4, [width]), 257: (4, [height]), 258: (3, [8, 8, 8]), 259: (3, [1]), 262: (3, [2])}
    tags |= {273: (4, [len(block)]), 277: (3, [3]), 278: (4, [height]), 279: (4, [samples.nbytes])}
    tags |= {700: (1, xmp), 34675: (7, PROFILE)}
    start = len(block) + samples.nbytes
    return (
        block[:4]
        + struct.pack(order + "I", start)
        + block[8:]
        + samples.tobytes()
        + pictures.directory(order, tags, start, 0)
    )


def read_exif(data: bytes) -> Image.Exif:
    return Image.open(io.BytesIO(data)).getexif()


def read_xmp(data: bytes) -> bytes:
    return Image.open(io.BytesIO(data)).info.get("xmp", b"")


# Conversion between formats


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("image_format", SOURCES)
def test_metadata_is_converted_and_updated(image_format, to, order, rng):
    before = photo.decode(source(image_format, rng, pictures.camera_exif(order, 6)))
    assert (before.width, before.height) == (30, 40)
    assert before.meta.warnings == ()
    doubled = before.pixels.repeat(2, axis=0).repeat(2, axis=1)
    data = encode.encode(replace(before, pixels=doubled), to, quality=90).data
    after = photo.decode(data)
    assert (after.width, after.height) == (60, 80), "the orientation is applied once"

    tags = read_exif(data)
    assert (tags[ExifTags.Base.Make], tags[ExifTags.Base.DateTime]) == ("Maker", "2020:02:03 04:05:06")
    assert tags.get(ExifTags.Base.Orientation, 1) == 1
    details = tags.get_ifd(ExifTags.IFD.Exif)
    assert details[ExifTags.Base.ExposureTime] == 1 / 250
    assert details[ExifTags.Base.ExposureBiasValue] == pytest.approx(-1 / 3)
    assert details[ExifTags.Base.ISOSpeedRatings] == 400
    assert details[ExifTags.Base.UserComment] == b"ASCII\0\0\0a comment"
    assert details[ExifTags.Base.MakerNote] == b"MAKERNOTE\0\1\2\3"
    assert (details[ExifTags.Base.ExifImageWidth], details[ExifTags.Base.ExifImageHeight]) == (60, 80)
    gps = tags.get_ifd(ExifTags.IFD.GPSInfo)
    assert (gps[1], gps[2], gps[29]) == ("N", (52, 31, 12), "GPSMARK")
    interop = tags.get_ifd(ExifTags.IFD.Interop)
    assert (interop[1], interop[0x1001], interop[0x1002]) == ("R98", 60, 80)
    thumbnail = tags.get_ifd(ExifTags.IFD.IFD1)
    assert bool(thumbnail) == (to == "jpeg")
    assert b"THUMBNAIL" not in data

    packet = read_xmp(data)
    assert "Grüße".encode() in packet
    for expected in (rb'tiff:Orientation="1"', rb'tiff:ImageWidth="60"', rb"exif:PixelXDimension='60'"):
        assert expected in packet
    assert b"<tiff:ImageLength>80</" in packet
    assert b"<exif:PixelYDimension> 80</" in packet
    assert b"<exif:GPSAltitude>3141/100</" in packet

    assert Image.open(io.BytesIO(data)).info["icc_profile"] == PROFILE
    assert after.meta.metadata.dpi == pytest.approx((300, 300), abs=0.01)
    assert after.meta.warnings == ()


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("to", FORMATS)
def test_exif_values_keep_their_type_and_bytes(to, order, rng):
    block = pictures.camera_exif(order)
    data = encode.encode(photo.decode(source("jpeg", rng, block)), to, quality=90).data
    written = exif.parse(photo.decode(data).meta.metadata.exif)
    original = exif.parse(block)
    assert written.order == order
    for pointer in (exif.EXIF, exif.GPS):
        for tag, value in original.tags[pointer].items():
            if tag != exif.INTEROP:
                assert written.tags[pointer][tag] == value, hex(tag)
    assert written.tags[exif.EXIF][exif.INTEROP] == original.tags[exif.EXIF][exif.INTEROP]
    assert written.tags[0x010F] == original.tags[0x010F]


def test_types_that_pillow_changes_in_a_rotated_avif_are_restored(rng):
    block = pictures.camera_exif("<", 6)
    values = exif.parse(photo.decode(source("avif", rng, block)).meta.metadata.exif).tags[exif.EXIF]
    for tag, value in exif.parse(block).tags[exif.EXIF].items():
        if tag != exif.INTEROP:
            assert values[tag].kind == value.kind or {values[tag].kind, value.kind} <= {3, 4}, hex(tag)


def test_bigtiff_types_are_not_written_to_exif(rng):
    extra = [(50000, "Q", 1, 2**40, True), (305, "s", 0, "a program", True)]
    data = pictures.tiff(
        photo_like(rng, 30, 40), photometric="rgb", bigtiff=True, software=False, extratags=extra
    )
    read = photo.decode(data)
    assert set(exif.parse(read.meta.metadata.exif).tags) == {305}
    assert dict(read_exif(encode.encode(read, "jpeg", quality=90).data)) == {305: "a program"}


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("image_format", ["jpeg", "png", "tiff", "webp"])
def test_resolution_is_converted_without_exif(image_format, to, rng):
    image = photo_like(rng, 30, 40)
    if image_format == "webp":
        data = pictures.pillow(
            image,
            "WEBP",
            exif=pictures.exif_block("<", {282: (5, [400, 1]), 283: (5, [200, 1]), 296: (3, [2])}),
        )
    else:
        data = pictures.pillow(image, image_format.upper(), dpi=(400, 200))
    result = encode.encode(photo.decode(data), to, quality=90).data
    assert photo.decode(result).meta.metadata.dpi == pytest.approx((400, 200), abs=0.02)
    dpi = Image.open(io.BytesIO(result)).info.get("dpi")
    if to in ("jpeg", "png", "tiff"):
        assert dpi == pytest.approx((400, 200), abs=0.02)


def test_png_resolution_is_rounded_to_pixels_per_metre(rng):
    data = pictures.pillow(photo_like(rng, 8, 9), "JPEG", dpi=(72, 96))
    result = encode.encode(photo.decode(data), "png", quality=90).data
    assert struct.pack(">4sIIB", b"pHYs", 2835, 3780, 1) in result


@pytest.mark.parametrize(
    ("unit", "values", "expected"),
    [
        (1, (118, 118), None),
        (2, (118, 118), (118, 118)),
        (3, (118, 118), (299.72, 299.72)),
        (2, (1, 1), None),
        (2, (0, 0), None),
    ],
)
def test_exif_resolution_is_read_in_dots_per_inch(unit, values, expected, rng):
    block = pictures.exif_block("<", {282: (5, [values[0], 1]), 283: (5, [values[1], 1]), 296: (3, [unit])})
    read = photo.decode(pictures.png(pictures.noise(rng, 8, 9), (b"eXIf", block)))
    assert read.meta.metadata.dpi == (expected and pytest.approx(expected))


def test_jfif_density_per_centimetre_is_converted(rng):
    data = pictures.pillow(photo_like(rng, 8, 9), "JPEG", dpi=(100, 100))
    at = data.index(b"JFIF") + 7
    assert photo.decode(data[:at] + b"\2" + data[at + 1 :]).meta.metadata.dpi == pytest.approx((254, 254))
    assert photo.decode(data[:at] + b"\0" + data[at + 1 :]).meta.metadata.dpi is None


@pytest.mark.parametrize("image_format", FORMATS)
def test_without_metadata_only_the_profile_is_written(image_format, rng):
    read = photo.decode(source("jpeg", rng, pictures.camera_exif("<", 6)))
    data = encode.encode(
        replace(read, meta=replace(read.meta, metadata=replace(read.meta.metadata, comment=b"MARK"))),
        image_format,
        quality=90,
        keep_metadata=False,
    ).data
    back = photo.decode(data)
    assert (
        back.meta.metadata.exif,
        back.meta.metadata.xmp,
        back.meta.metadata.dpi,
        back.meta.metadata.icc,
    ) == (b"", b"", None, PROFILE)
    assert b"Maker" not in data
    assert b"MARK" not in data
    assert (back.width, back.height) == (30, 40)


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("image_format", SOURCES)
def test_gps_can_be_removed(image_format, to, rng):
    read = photo.decode(source(image_format, rng, pictures.camera_exif()))
    with_gps = encode.encode(read, to, quality=90).data
    without_gps = encode.encode(read, to, quality=90, remove_gps=True).data
    assert all(mark in with_gps for mark in pictures.GPS_MARKS)
    assert not any(mark in without_gps for mark in (*pictures.GPS_MARKS, b"GPS"))
    assert ExifTags.IFD.GPSInfo not in read_exif(without_gps)
    packet = read_xmp(without_gps)
    assert "Grüße".encode() in packet
    assert xmp.validate(packet, warnings := []) and not warnings
    assert read_exif(without_gps)[ExifTags.Base.Make] == "Maker"


@pytest.mark.parametrize(
    "packet",
    [
        b"<a exif:GPSLatitude='1,2N' b='2'/>",
        b'<a\n exif:GPSLatitude = "1,2N"\n b="2"/>',
        b"<a b='2'><exif:GPSLatitude>1,2N</exif:GPSLatitude></a>",
        b"<a b='2'><exif:GPSLatitude x='/'>1,2N</exif:GPSLatitude></a>",
        b"<a b='2'><drone-dji:GpsLongtitude>1,2N</drone-dji:GpsLongtitude></a>",
        b"<a b='2'><exif:GPSLatitude rdf:value='1,2N'/><c/></a>",
        b"<a b='2'><exif:GPSInfo><exif:GPSLatitude>1,2N</exif:GPSLatitude></exif:GPSInfo></a>",
    ],
)
def test_gps_is_removed_from_xmp(packet):
    updated = xmp.remove(packet, privacy.is_place)
    assert b"1,2N" not in updated
    assert b"gps" not in updated.lower()
    assert re.search(rb"b=['\"]2", updated)
    assert (b"<c/>" in packet) == (b"<c/>" in updated)


def test_gps_in_xmp_comments_is_not_parsed():
    packet = b"<a><!-- <exif:GPS> " + b"<exif:GPS> " * 50_000 + b"--><b exif:GPSx='1,2N' c='a > b'/></a>"
    updated = xmp.remove(packet, privacy.is_place)
    assert updated == packet.replace(b" exif:GPSx='1,2N'", b"")


@pytest.mark.parametrize("to", ["jpeg", "tiff"])
@pytest.mark.parametrize("image_format", ["jpeg", "tiff"])
def test_caption_is_converted_between_jpeg_and_tiff(image_format, to, rng):
    image = photo_like(rng, 30, 40)
    if image_format == "jpeg":
        other = b"8BIM\x04\x0c\0\0" + struct.pack(">I", 3) + b"abc\0"
        resource = b"8BIM\x04\x04\x05named" + struct.pack(">I", len(IPTC)) + IPTC
        data = pictures.segment(pictures.pillow(image, "JPEG"), 0xED, b"Photoshop 3.0\0" + other + resource)
    else:
        data = pictures.tiff(image, photometric="rgb", extratags=[(33723, "B", len(IPTC), IPTC, True)])
    result = encode.encode(photo.decode(data), to, quality=90).data
    assert photo.decode(result).meta.metadata.iptc == IPTC
    if to == "jpeg":
        assert Image.open(io.BytesIO(result)).info["photoshop"][0x0404] == IPTC
        assert result[2:4] == b"\xff\xe0", "the JFIF segment comes first"
        segment = result.index(b"Photoshop 3.0\0") - 2
        assert int.from_bytes(result[segment : segment + 2], "big") % 2 == 0, "resources have an even length"
    else:
        with tifffile.TiffFile(io.BytesIO(result)) as tiff:
            assert bytes(tiff.pages.first.tags[33723].value) == IPTC


def test_jpeg_comment_is_preserved(rng):
    data = pictures.pillow(photo_like(rng, 30, 40), "JPEG", comment=b"a comment")
    result = encode.encode(photo.decode(data), "jpeg", quality=90).data
    assert Image.open(io.BytesIO(result)).info["comment"] == b"a comment"


def test_png_text_is_preserved_except_raw_profiles(rng):
    texts = PngImagePlugin.PngInfo()
    texts.add_text("Title", "a title")
    texts.add_text("Long", "long " * 99, zip=True)
    texts.add_itxt("Author", "Grüße", "de")
    texts.add_text("Raw profile type iptc", "SECRET")
    data = pictures.pillow(photo_like(rng, 30, 40), "PNG", pnginfo=texts)
    result = encode.encode(photo.decode(data), "png", quality=90).data
    assert Image.open(io.BytesIO(result)).text == {
        "Title": "a title",
        "Long": "long " * 99,
        "Author": "Grüße",
    }


@pytest.mark.parametrize("kind", [b"tEXt", b"zTXt"])
def test_exif_in_png_text_is_read(kind, rng):
    block = b"Exif\0\0" + pictures.camera_exif("<", 6)
    text = b"\nexif\n%8d\n%s\n" % (len(block), re.sub(rb"(.{72})", rb"\1\n", block.hex().encode()))
    body = b"Raw profile type exif\0" + (b"\0" + zlib.compress(text) if kind == b"zTXt" else text)
    read = photo.decode(pictures.png(pictures.noise(rng, 20, 30), (kind, body)))
    assert (read.width, read.height) == (20, 30)
    assert exif.parse(read.meta.metadata.exif).tags[0x010F].body == b"Maker\0"


def test_reference_to_extended_xmp_is_removed():
    attribute, element = (
        b" xmpNote:HasExtendedXMP='0123'",
        b"<xmpNote:HasExtendedXMP>0123</xmpNote:HasExtendedXMP>",
    )
    for packet in (b"<a%s><b/></a>" % attribute, b"<a>%s<b/></a>" % element):
        assert xmp.update(packet, 1, 1, Placement()) == b"<a><b/></a>"


def test_storage_tags_are_not_converted(rng):
    extra = [(34377, "B", 9, b"8BIMTHUMB", True), (33550, "d", 3, (1.0, 1.0, 0.0), True)]
    data = pictures.tiff(
        photo_like(rng, 30, 40), photometric="rgb", compression="lzw", extratags=extra, software="me"
    )
    result = encode.encode(photo.decode(data), "jpeg", quality=90).data
    assert dict(read_exif(result)) == {ExifTags.Base.Software: "me"}
    assert b"8BIMTHUMB" not in encode.encode(photo.decode(data), "tiff", quality=90).data


def test_array_shape_written_by_tifffile_is_dropped(rng):
    out = io.BytesIO()
    tifffile.imwrite(out, photo_like(rng, 30, 40), photometric="rgb")
    read = photo.decode(out.getvalue())
    doubled = replace(read, pixels=read.pixels.repeat(2, axis=0))
    assert tifffile.imread(io.BytesIO(encode.encode(doubled, "tiff", quality=90).data)).shape == (60, 40, 3)
    assert b'"shape"' not in read.meta.metadata.exif


# Damaged metadata


def test_truncated_exif_does_not_affect_the_pixels(rng):
    samples = pictures.noise(rng, 12, 14)
    for order in "<>":
        block = pictures.camera_exif(order, 1)
        for cut in range(0, len(block), 7):
            read = photo.decode(pictures.png(samples, (b"eXIf", block[:cut])))
            np.testing.assert_array_equal(read.pixels, samples)
            assert cut == 0 or cut >= len(block) - 60 or "EXIF block is damaged" in read.meta.warnings[0]
            for image_format in FORMATS if cut % 49 == 0 else ("png", "tiff"):
                back = photo.decode(encode.encode(read, image_format, quality=90).data)
                assert back.meta.warnings == (), "the written block is intact"


def test_random_bytes_in_exif_do_not_affect_the_pixels(rng):
    jpeg = pictures.pillow(photo_like(rng, 12, 14), "JPEG")
    expected = np.asarray(Image.open(io.BytesIO(jpeg)))
    for number in range(300):
        block = bytearray(pictures.camera_exif("<>"[number % 2], 1))
        for at in rng.integers(0 if number % 3 else 8, len(block), 8):
            block[at] = rng.integers(256)
        read = photo.decode(pictures.with_exif(jpeg, bytes(block)))
        assert sorted(read.pixels.shape) == sorted(expected.shape)
        back = photo.decode(encode.encode(read, "tiff", quality=90, remove_gps=True).data)
        np.testing.assert_array_equal(back.pixels, read.pixels)


@pytest.mark.parametrize(
    "junk", [b"x", b"II*\0", b"MM\0*\xff\xff\xff\xff", b"II*\0\x08\0\0\0\xff\xff", bytes(500)]
)
@pytest.mark.parametrize("image_format", ["jpeg", "png", "webp", "heif"])
def test_damaged_exif_is_dropped_with_a_warning(image_format, junk, rng):
    read = photo.decode(source(image_format, rng, junk))
    # pillow_heif, when writing, then takes the orientation from XMP
    assert (read.width, read.height) == ((30, 40) if image_format == "heif" else (40, 30))
    assert read.meta.metadata.exif == b""
    assert ["EXIF block is damaged" in warning for warning in read.meta.warnings] == [True]
    assert read.meta.metadata.xmp
    assert read.meta.metadata.icc


def test_exif_entries_that_share_bytes_do_not_multiply_them(rng):
    entry = struct.pack("<HHII", 0x9000, 7, 40_000, 8)
    block = b"II*\0\x08\0\0\0" + struct.pack("<H", 3000)
    block += b"".join(struct.pack("<H", 0x9000 + number) + entry[2:] for number in range(3000)) + bytes(
        40_000
    )
    read = photo.decode(pictures.png(pictures.noise(rng, 8, 9), (b"eXIf", block)))
    assert len(read.meta.metadata.exif) < 2 * len(block)


def test_cyclic_exif_directories_are_read(rng):
    for pointer in (exif.EXIF, exif.GPS):
        block = pictures.exif_block("<", {0x010F: (2, b"Maker\0"), pointer: (4, [8])})
        read = photo.decode(pictures.png(pictures.noise(rng, 8, 9), (b"eXIf", block)))
        assert exif.parse(read.meta.metadata.exif).tags[0x010F].body == b"Maker\0"


@pytest.mark.parametrize("image_format", SOURCES)
@pytest.mark.parametrize(
    "packet",
    [
        pictures.XMP.replace("ü".encode(), b"\xfc"),
        b"\xff" * 99,
        pictures.XMP[:-200],
        b"text",
        b'<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>',
    ],
    ids=["latin", "junk", "cut", "text", "entities"],
)
def test_damaged_xmp_is_dropped_with_a_warning(image_format, packet, rng):
    if image_format == "heif" and b"\xfc" in packet:
        pytest.skip("pillow_heif repairs this when writing")
    read = photo.decode(source(image_format, rng, pictures.camera_exif(), packet))
    assert read.meta.metadata.xmp == b""
    assert read.meta.warnings == ("the XMP block is damaged and was left out",)
    assert read.meta.metadata.exif
    assert read.meta.metadata.icc == PROFILE


def test_many_thumbnails_are_removed_from_xmp():
    element = b"<a:thumbnails>x</a:thumbnails>text<a:b a:thumbnails='1' c='2'/>"
    packet = b"<x xmlns:a='u'>" + element * 20_000 + b"</x>"
    updated = xmp.update(packet, 3, 4, Placement())
    assert updated == b"<x xmlns:a='u'>" + b"text<a:b c='2'/>" * 20_000 + b"</x>"


@pytest.mark.parametrize("excess", [0, 1])
def test_xmp_above_the_size_limit_is_dropped_with_a_warning(excess):
    warnings: list[str] = []
    packet = b"<x>" + b" " * (xmp.MAX_SIZE - 7 + excess) + b"</x>"
    assert xmp.validate(packet, warnings) == (b"" if excess else packet)
    assert len(warnings) == excess


@pytest.mark.parametrize("padding", [b"\0", b"  \n", b"\0\0\0\0"])
def test_xmp_padding_is_stripped(padding, rng):
    read = photo.decode(source("jpeg", rng, pictures.camera_exif(), pictures.XMP + padding))
    assert (read.meta.metadata.xmp, read.meta.warnings) == (pictures.XMP, ())


# TIFF directories


def test_exif_is_shortened_by_its_largest_tags():
    sizes = [40, 300, 7, 300, 90, 5000, 12]
    tags = {tag: exif.Entry(exif.ASCII, bytes(size)) for tag, size in enumerate(sizes, 50_000)}
    details = {tag + 100: value for tag, value in tags.items()}
    nested = details | {metadata.MAKER_NOTE: exif.Entry(exif.ASCII, bytes(9))}
    block = exif.Block("<", tags | {exif.EXIF: nested}, frozenset(), False)
    for limit in (100, 500, 1000, 6000, 20_000):
        outer, inner = dict(tags), dict(details)
        while len(expected := exif.serialize("<", outer | {exif.EXIF: inner} if inner else outer)) > limit:
            directory = max((outer, inner), key=lambda one: max(len(value.body) for value in one.values()))
            del directory[max(directory, key=lambda tag: len(directory[tag].body))]
        assert metadata.shortened(block, limit) == expected


def test_shortening_exif_serializes_it_a_few_times(monkeypatch):
    tags = {tag: exif.Entry(exif.ASCII, bytes(5 + tag % 7)) for tag in range(40_000, 48_000)}
    calls, serialize = [], exif.serialize
    monkeypatch.setattr(exif, "serialize", lambda *a: calls.append(a) or serialize(*a))
    data = metadata.shortened(exif.Block("<", tags, frozenset(), False), 65_000)
    assert 60_000 < len(data) <= 65_000 and len(calls) < 20


def test_exif_values_begin_on_even_offsets():
    tags = {number: exif.Entry(exif.UNDEFINED, bytes(5)) for number in range(40000, 40004)}
    block = exif.serialize("<", tags | {exif.EXIF: dict(tags)})
    offsets = [struct.unpack_from("<I", block, at + 8)[0] for at in range(10, 10 + 12 * 5, 12)]
    assert all(offset % 2 == 0 for offset in offsets)


def test_written_exif_parses_to_the_same_tags():
    for order in ("<", ">"):
        original = exif.parse(pictures.camera_exif(order))
        parsed = exif.parse(exif.serialize(order, original.tags))
        assert parsed == original._replace(has_next=False)
        assert original.has_next, "the thumbnail's directory"


@pytest.mark.parametrize(
    ("kind", "body", "expected"),
    [
        (1, b"\1\2", (1, 2)),
        (2, b"text\0", ()),
        (3, b"\1\0\2\0", (1, 2)),
        (4, b"\1\0\0\0", (1,)),
        (5, struct.pack("<4I", 1, 4, 3, 2), (0.25, 1.5)),
        (6, b"\xff", (-1,)),
        (7, b"\1", ()),
        (8, b"\xfe\xff", (-2,)),
        (9, b"\xfd\xff\xff\xff", (-3,)),
        (10, struct.pack("<ii", -1, 2), (-0.5,)),
        (11, struct.pack("<f", 1.5), (1.5,)),
        (12, struct.pack("<d", -2.5), (-2.5,)),
        (16, struct.pack("<Q", 2**40), (2**40,)),
    ],
)
def test_numbers_of_every_type(kind, body, expected):
    assert exif.numbers(exif.Entry(kind, body), "<") == expected
    assert exif.first_int(exif.Entry(kind, body), "<", 7) == (int(expected[0]) if expected else 7)


def test_rational_with_denominator_zero_has_no_integer():
    assert exif.first_int(exif.Entry(exif.RATIONAL, bytes(8)), "<", 7) == 7
