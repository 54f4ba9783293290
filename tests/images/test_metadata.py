"""EXIF, XMP, profile, resolution, captions: carried between formats, corrected, or dropped when broken."""

import io
import re
import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
import tifffile
from PIL import ExifTags, Image, PngImagePlugin

from restorer.images import encode, photo
from restorer.images.formats import exif, xmp
from tests import pictures, profiles
from tests.conftest import photo_like

FORMATS = ("png", "jpeg", "webp", "tiff", "avif")
SOURCES = (*FORMATS, "heif")
PROFILE = profiles.rgb("p3")
IPTC = b"\x1c\x02\x00\x00\x02\x00\x04\x1c\x02\x78\x00\x09a caption"


def source(form: str, rng: np.random.Generator, block: bytes, xmp: bytes = pictures.XMP) -> bytes:
    """A 40 x 30 photo with a profile, EXIF and XMP, by other writers than ours."""
    image = Image.fromarray(photo_like(rng, 30, 40))
    if form == "jpeg":
        data = pictures.with_exif(pictures.pillow(image, "JPEG", icc_profile=PROFILE, dpi=(300, 300)), block)
        return pictures.segment(data, 0xE1, b"http://ns.adobe.com/xap/1.0/\0" + xmp)
    if form == "png":
        text = (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp)
        profile = (b"iCCP", b"p3\0\0" + zlib.compress(PROFILE))
        return pictures.png(
            np.asarray(image),
            profile,
            (b"pHYs", struct.pack(">IIB", 11811, 11811, 1)),
            (b"eXIf", block),
            text,
        )
    if form == "tiff":
        # An EXIF block is a TIFF without a picture: put one into it
        return tiff_of_exif(np.asarray(image), block, xmp)
    if form == "heif":
        with_profile = Image.fromarray(np.asarray(image))
        with_profile.info["icc_profile"] = PROFILE
        return pictures.heic(with_profile, exif=b"Exif\0\0" + block, xmp=xmp)
    return pictures.pillow(image, form.upper(), exif=block, xmp=xmp, icc_profile=PROFILE)


def tiff_of_exif(samples: np.ndarray, block: bytes, xmp: bytes) -> bytes:
    """The block's own directory cannot grow in place, so a new first one points to its nested ones."""
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


def exif_of(data: bytes) -> Image.Exif:
    """What Pillow, an independent reader, finds."""
    return Image.open(io.BytesIO(data)).getexif()


def xmp_of(data: bytes) -> bytes:
    return Image.open(io.BytesIO(data)).info.get("xmp", b"")


# Carried


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("form", SOURCES)
def test_everything_is_carried_and_corrected(form, to, order, rng):
    before = photo.decode(source(form, rng, pictures.camera_exif(order, 6)))
    assert (before.width, before.height) == (30, 40)
    assert before.meta.warnings == ()
    doubled = before.pixels.repeat(2, axis=0).repeat(2, axis=1)
    data = encode.encode(replace(before, pixels=doubled), to, quality=90).data
    after = photo.decode(data)
    assert (after.width, after.height) == (60, 80), "turned once"

    found = exif_of(data)
    assert (found[ExifTags.Base.Make], found[ExifTags.Base.DateTime]) == ("Maker", "2020:02:03 04:05:06")
    assert found.get(ExifTags.Base.Orientation, 1) == 1
    details = found.get_ifd(ExifTags.IFD.Exif)
    assert details[ExifTags.Base.ExposureTime] == 1 / 250
    assert details[ExifTags.Base.ExposureBiasValue] == pytest.approx(-1 / 3)
    assert details[ExifTags.Base.ISOSpeedRatings] == 400
    assert details[ExifTags.Base.UserComment] == b"ASCII\0\0\0a comment"
    assert details[ExifTags.Base.MakerNote] == b"MAKERNOTE\0\1\2\3"
    assert (details[ExifTags.Base.ExifImageWidth], details[ExifTags.Base.ExifImageHeight]) == (60, 80)
    place = found.get_ifd(ExifTags.IFD.GPSInfo)
    assert (place[1], place[2], place[29]) == ("N", (52, 31, 12), "GPSMARK")
    inter = found.get_ifd(ExifTags.IFD.Interop)
    assert (inter[1], inter[0x1001], inter[0x1002]) == ("R98", 60, 80)
    assert found.get_ifd(ExifTags.IFD.IFD1) == {}
    assert b"THUMBNAIL" not in data

    packet = xmp_of(data)
    assert "Grüße".encode() in packet
    for wanted in (rb'tiff:Orientation="1"', rb'tiff:ImageWidth="60"', rb"exif:PixelXDimension='60'"):
        assert wanted in packet
    assert b"<tiff:ImageLength>80</" in packet
    assert b"<exif:PixelYDimension> 80</" in packet
    assert b"<exif:GPSAltitude>3141/100</" in packet

    assert Image.open(io.BytesIO(data)).info["icc_profile"] == PROFILE
    assert after.meta.dpi == pytest.approx((300, 300), abs=0.01)
    assert after.meta.warnings == ()


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("to", FORMATS)
def test_kinds_and_bytes_of_exif_values_stay(to, order, rng):
    block = pictures.camera_exif(order)
    data = encode.encode(photo.decode(source("jpeg", rng, block)), to, quality=90).data
    written = exif.parse(photo.decode(data).meta.exif)
    original = exif.parse(block)
    assert written.order == order
    for pointer in (exif.EXIF, exif.GPS):
        for tag, value in original.tags[pointer].items():
            if tag != exif.INTEROP:
                assert written.tags[pointer][tag] == value, hex(tag)
    assert written.tags[exif.EXIF][exif.INTEROP] == original.tags[exif.EXIF][exif.INTEROP]
    assert written.tags[0x010F] == original.tags[0x010F]


def test_kinds_that_pillow_changes_in_a_turned_avif_are_mended(rng):
    block = pictures.camera_exif("<", 6)
    found = exif.parse(photo.decode(source("avif", rng, block)).meta.exif).tags[exif.EXIF]
    for tag, value in exif.parse(block).tags[exif.EXIF].items():
        if tag != exif.INTEROP:
            assert found[tag].kind == value.kind or {found[tag].kind, value.kind} <= {3, 4}, hex(tag)


def test_kinds_of_bigtiff_do_not_reach_an_exif_block(rng):
    extra = [(50000, "Q", 1, 2**40, True), (305, "s", 0, "a program", True)]
    data = pictures.tiff(
        photo_like(rng, 30, 40), photometric="rgb", bigtiff=True, software=False, extratags=extra
    )
    read = photo.decode(data)
    assert set(exif.parse(read.meta.exif).tags) == {305}
    assert dict(exif_of(encode.encode(read, "jpeg", quality=90).data)) == {305: "a program"}


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("form", ["jpeg", "png", "tiff", "webp"])
def test_resolution_is_carried_without_exif(form, to, rng):
    image = photo_like(rng, 30, 40)
    if form == "webp":
        data = pictures.pillow(
            image,
            "WEBP",
            exif=pictures.exif_block("<", {282: (5, [400, 1]), 283: (5, [200, 1]), 296: (3, [2])}),
        )
    else:
        data = pictures.pillow(image, form.upper(), dpi=(400, 200))
    result = encode.encode(photo.decode(data), to, quality=90).data
    assert photo.decode(result).meta.dpi == pytest.approx((400, 200), abs=0.02)
    found = Image.open(io.BytesIO(result)).info.get("dpi")
    if to in ("jpeg", "png", "tiff"):
        assert found == pytest.approx((400, 200), abs=0.02)


def test_resolution_of_png_is_rounded(rng):
    data = pictures.pillow(photo_like(rng, 8, 9), "JPEG", dpi=(72, 96))
    result = encode.encode(photo.decode(data), "png", quality=90).data
    assert struct.pack(">4sIIB", b"pHYs", 2835, 3780, 1) in result


@pytest.mark.parametrize(
    "unit",
    [
        (1, (118, 118), None),
        (2, (118, 118), (118, 118)),
        (3, (118, 118), (299.72, 299.72)),
        (2, (1, 1), None),
        (2, (0, 0), None),
    ],
)
def test_units_of_resolution(unit, rng):
    kind, values, expected = unit
    block = pictures.exif_block("<", {282: (5, [values[0], 1]), 283: (5, [values[1], 1]), 296: (3, [kind])})
    read = photo.decode(pictures.png(pictures.noise(rng, 8, 9), (b"eXIf", block)))
    assert read.meta.dpi == (expected and pytest.approx(expected))


def test_jfif_density_in_centimetres(rng):
    data = pictures.pillow(photo_like(rng, 8, 9), "JPEG", dpi=(100, 100))
    at = data.index(b"JFIF") + 7
    assert photo.decode(data[:at] + b"\2" + data[at + 1 :]).meta.dpi == pytest.approx((254, 254))
    assert photo.decode(data[:at] + b"\0" + data[at + 1 :]).meta.dpi is None


@pytest.mark.parametrize("form", FORMATS)
def test_metadata_can_be_left_out_but_the_profile_stays(form, rng):
    read = photo.decode(source("jpeg", rng, pictures.camera_exif("<", 6)))
    data = encode.encode(
        replace(read, meta=replace(read.meta, comment=b"MARK")), form, quality=90, keep_metadata=False
    ).data
    back = photo.decode(data)
    assert (back.meta.exif, back.meta.xmp, back.meta.dpi, back.meta.icc) == (b"", b"", None, PROFILE)
    assert b"Maker" not in data
    assert b"MARK" not in data
    assert (back.width, back.height) == (30, 40)


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("form", SOURCES)
def test_place_can_be_removed(form, to, rng):
    read = photo.decode(source(form, rng, pictures.camera_exif()))
    with_place = encode.encode(read, to, quality=90).data
    without = encode.encode(read, to, quality=90, remove_gps=True).data
    assert all(mark in with_place for mark in pictures.GPS_MARKS)
    assert not any(mark in without for mark in (*pictures.GPS_MARKS, b"GPS"))
    assert ExifTags.IFD.GPSInfo not in exif_of(without)
    kept = xmp_of(without)
    assert "Grüße".encode() in kept
    assert xmp.read(kept, warnings := []) and not warnings, "still XML"
    assert exif_of(without)[ExifTags.Base.Make] == "Maker"


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
def test_every_way_to_write_a_place_in_xmp(packet):
    left = xmp.update(packet, width=1, height=1, remove_gps=True)
    assert b"1,2N" not in left
    assert b"gps" not in left.lower()
    assert re.search(rb"b=['\"]2", left)
    assert (b"<c/>" in packet) == (b"<c/>" in left)


def test_what_only_looks_like_an_element_stays():
    packet = b"<a><!-- <exif:GPS> " + b"<exif:GPS> " * 50_000 + b"--><b exif:GPSx='1,2N' c='a > b'/></a>"
    left = xmp.update(packet, width=1, height=1, remove_gps=True)
    assert left == packet.replace(b" exif:GPSx='1,2N'", b"")


@pytest.mark.parametrize("to", ["jpeg", "tiff"])
@pytest.mark.parametrize("form", ["jpeg", "tiff"])
def test_captions(form, to, rng):
    image = photo_like(rng, 30, 40)
    if form == "jpeg":
        other = b"8BIM\x04\x0c\0\0" + struct.pack(">I", 3) + b"abc\0"
        resource = b"8BIM\x04\x04\x05named" + struct.pack(">I", len(IPTC)) + IPTC
        data = pictures.segment(pictures.pillow(image, "JPEG"), 0xED, b"Photoshop 3.0\0" + other + resource)
    else:
        data = pictures.tiff(image, photometric="rgb", extratags=[(33723, "B", len(IPTC), IPTC, True)])
    result = encode.encode(photo.decode(data), to, quality=90).data
    assert photo.decode(result).meta.iptc == IPTC
    if to == "jpeg":
        assert Image.open(io.BytesIO(result)).info["photoshop"][0x0404] == IPTC
        assert result[2:4] == b"\xff\xe0", "JFIF's segment is first"
        segment = result.index(b"Photoshop 3.0\0") - 2
        assert int.from_bytes(result[segment : segment + 2], "big") % 2 == 0, "resources are of even length"
    else:
        with tifffile.TiffFile(io.BytesIO(result)) as tiff:
            assert bytes(tiff.pages.first.tags[33723].value) == IPTC


def test_comment_of_a_jpeg(rng):
    data = pictures.pillow(photo_like(rng, 30, 40), "JPEG", comment=b"a comment")
    result = encode.encode(photo.decode(data), "jpeg", quality=90).data
    assert Image.open(io.BytesIO(result)).info["comment"] == b"a comment"


def test_text_of_a_png(rng):
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
def test_exif_in_the_text_of_an_old_png(kind, rng):
    block = b"Exif\0\0" + pictures.camera_exif("<", 6)
    text = b"\nexif\n%8d\n%s\n" % (len(block), re.sub(rb"(.{72})", rb"\1\n", block.hex().encode()))
    body = b"Raw profile type exif\0" + (b"\0" + zlib.compress(text) if kind == b"zTXt" else text)
    read = photo.decode(pictures.png(pictures.noise(rng, 20, 30), (kind, body)))
    assert (read.width, read.height) == (20, 30)
    assert exif.parse(read.meta.exif).tags[0x010F].body == b"Maker\0"


def test_a_packet_that_is_not_carried_is_not_announced(rng):
    for announced in (b" xmpNote:HasExtendedXMP='0123'", b""):
        inner = b"" if announced else b"<xmpNote:HasExtendedXMP>0123</xmpNote:HasExtendedXMP>"
        packet = b"<a%s>%s<b/></a>" % (announced, inner)
        assert xmp.update(packet, width=1, height=1, remove_gps=False) == b"<a><b/></a>"


def test_tags_of_storage_do_not_reach_another_format(rng):
    extra = [(34377, "B", 9, b"8BIMTHUMB", True), (33550, "d", 3, (1.0, 1.0, 0.0), True)]
    data = pictures.tiff(
        photo_like(rng, 30, 40), photometric="rgb", compression="lzw", extratags=extra, software="me"
    )
    result = encode.encode(photo.decode(data), "jpeg", quality=90).data
    assert dict(exif_of(result)) == {ExifTags.Base.Software: "me"}
    assert b"8BIMTHUMB" not in encode.encode(photo.decode(data), "tiff", quality=90).data


def test_the_shape_that_tifffile_notes_is_not_carried(rng):
    out = io.BytesIO()
    tifffile.imwrite(out, photo_like(rng, 30, 40), photometric="rgb")
    read = photo.decode(out.getvalue())
    doubled = replace(read, pixels=read.pixels.repeat(2, axis=0))
    assert tifffile.imread(io.BytesIO(encode.encode(doubled, "tiff", quality=90).data)).shape == (60, 40, 3)
    assert b'"shape"' not in read.meta.exif


# Damaged


def test_exif_cut_off_anywhere_never_costs_the_photo(rng):
    samples = pictures.noise(rng, 12, 14)
    for order in "<>":
        block = pictures.camera_exif(order, 1)
        for cut in range(0, len(block), 7):
            read = photo.decode(pictures.png(samples, (b"eXIf", block[:cut])))
            np.testing.assert_array_equal(read.pixels, samples)
            assert cut == 0 or cut >= len(block) - 60 or "EXIF block is damaged" in read.meta.warnings[0]
            for form in FORMATS if cut % 49 == 0 else ("png", "tiff"):
                back = photo.decode(encode.encode(read, form, quality=90).data)
                assert back.meta.warnings == (), "what is written is whole"


def test_random_bytes_in_exif_never_cost_the_photo(rng):
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
@pytest.mark.parametrize("form", ["jpeg", "png", "webp", "heif"])
def test_a_damaged_exif_block_is_dropped_and_said(form, junk, rng):
    read = photo.decode(source(form, rng, junk))
    # pillow_heif, as a writer, then takes the turn from XMP
    assert (read.width, read.height) == ((30, 40) if form == "heif" else (40, 30))
    assert read.meta.exif == b""
    assert ["EXIF block is damaged" in warning for warning in read.meta.warnings] == [True]
    assert read.meta.xmp
    assert read.meta.icc


def test_entries_that_share_their_bytes_cannot_fill_the_memory(rng):
    entry = struct.pack("<HHII", 0x9000, 7, 40_000, 8)
    block = b"II*\0\x08\0\0\0" + struct.pack("<H", 3000)
    block += b"".join(struct.pack("<H", 0x9000 + number) + entry[2:] for number in range(3000)) + bytes(
        40_000
    )
    read = photo.decode(pictures.png(pictures.noise(rng, 8, 9), (b"eXIf", block)))
    assert len(read.meta.exif) < 2 * len(block)


def test_exif_directories_that_point_at_themselves(rng):
    for pointer in (exif.EXIF, exif.GPS):
        block = pictures.exif_block("<", {0x010F: (2, b"Maker\0"), pointer: (4, [8])})
        read = photo.decode(pictures.png(pictures.noise(rng, 8, 9), (b"eXIf", block)))
        assert exif.parse(read.meta.exif).tags[0x010F].body == b"Maker\0"


@pytest.mark.parametrize("form", SOURCES)
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
def test_a_damaged_xmp_packet_is_dropped_and_said(form, packet, rng):
    if form == "heif" and b"\xfc" in packet:
        pytest.skip("pillow_heif, as a writer, mends this")
    read = photo.decode(source(form, rng, pictures.camera_exif(), packet))
    assert read.meta.xmp == b""
    assert read.meta.warnings == ("the XMP block is damaged and was left out",)
    assert read.meta.exif
    assert read.meta.icc == PROFILE


def test_a_swarm_of_unwanted_elements_is_taken_out():
    one = b"<a:thumbnails>x</a:thumbnails>kept<a:b a:thumbnails='1' c='2'/>"
    packet = b"<x xmlns:a='u'>" + one * 20_000 + b"</x>"
    cut = xmp.update(packet, width=3, height=4, remove_gps=False)
    assert cut == b"<x xmlns:a='u'>" + b"kept<a:b c='2'/>" * 20_000 + b"</x>"


@pytest.mark.parametrize(("large", "warned"), [(0, 0), (1, 1)])
def test_a_packet_that_is_far_too_large_is_dropped_and_said(large, warned, rng):
    warnings: list[str] = []
    packet = b"<x>" + bytes([32]) * (xmp.LARGEST - 7 + large) + b"</x>"
    assert xmp.read(packet, warnings) == (b"" if warned else packet)
    assert len(warnings) == warned


@pytest.mark.parametrize("padding", [b"\0", b"  \n", b"\0\0\0\0"])
def test_padding_of_xmp_is_no_damage(padding, rng):
    read = photo.decode(source("jpeg", rng, pictures.camera_exif(), pictures.XMP + padding))
    assert (read.meta.xmp, read.meta.warnings) == (pictures.XMP, ())


# Directories


def test_values_begin_on_even_offsets():
    tags = {number: exif.Entry(exif.UNDEFINED, bytes(5)) for number in range(40000, 40004)}
    block = exif.write("<", tags | {exif.EXIF: dict(tags)})
    offsets = [struct.unpack_from("<I", block, at + 8)[0] for at in range(10, 10 + 12 * 5, 12)]
    assert all(offset % 2 == 0 for offset in offsets)


def test_written_directories_are_read_again():
    for order in ("<", ">"):
        original = exif.parse(pictures.camera_exif(order))
        again = exif.parse(exif.write(order, original.tags))
        assert again == original._replace(more=False)
        assert original.more, "the thumbnail's"


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
def test_numbers_of_every_kind(kind, body, expected):
    assert exif.numbers(exif.Entry(kind, body), "<") == expected
    assert exif.first(exif.Entry(kind, body), "<", 7) == (int(expected[0]) if expected else 7)


def test_a_ratio_over_zero_is_no_number():
    assert exif.first(exif.Entry(exif.RATIONAL, bytes(8)), "<", 7) == 7
