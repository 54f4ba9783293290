"""Every item of a file is carried, transformed or named in a warning; independent readers compare."""

import io
import struct
from dataclasses import replace

import numpy as np
import pillow_heif
import pytest
from PIL import ExifTags, Image

from restorer.images import encode, photo
from restorer.images.formats import jpeg
from restorer.options import FORMATS
from tests import pictures
from tests.conftest import photo_like
from tests.images.readers import converted, exiftool, needs_exiftool, needs_imagemagick, tagged

WRITTEN = FORMATS[1:]
HISTORY = '{"software": "Neural Image Restore"}'
RDF = 'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"'


def packet(properties: str) -> bytes:
    description = f'<rdf:Description rdf:about="" {properties}/>'
    return f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF {RDF}>{description}</rdf:RDF></x:xmpmeta>'.encode()


def in_jpeg(data: bytes, xmp: bytes) -> bytes:
    return pictures.segment(data, 0xE1, b"http://ns.adobe.com/xap/1.0/\0" + xmp)


@pytest.fixture
def plain(rng) -> bytes:
    return pictures.pillow(photo_like(rng, 30, 40), "JPEG", quality=90)


def written(data: bytes, to: str, **options: object) -> tuple[bytes, str]:
    """Return a file of twice the size, and all warnings as one text."""
    before = photo.decode(data)
    doubled = replace(before, pixels=before.pixels.repeat(2, axis=0).repeat(2, axis=1))
    if before.alpha is not None:
        doubled = replace(doubled, alpha=before.alpha.repeat(2, axis=0).repeat(2, axis=1))
    result = encode.encode(doubled, to, quality=90, **{"history": HISTORY, **options})
    return result.data, " | ".join(before.meta.warnings + result.warnings)


# Carried or named

_IPTC = {"IPTC:Keywords": "harbour", "IPTC:Caption-Abstract": "a caption", "IPTC:By-line": "An Author"}


@needs_exiftool
@pytest.mark.parametrize("source", ["jpeg", "tiff", "png"])
@pytest.mark.parametrize("to", WRITTEN)
def test_iptc_is_carried_or_named(source, to, plain, tmp_path):
    data = tagged(tmp_path / "a.jpg", plain, *(f"-{tag}={value}" for tag, value in _IPTC.items()))
    if source != "jpeg":
        data, _ = written(data, source)
    result, warnings = written(data, to)
    tags = exiftool(result)
    if to in ("jpeg", "tiff", "png"):
        assert {tag: tags.get(tag) for tag in _IPTC} == _IPTC
        assert "IPTC" not in warnings
    else:
        assert not any(tag in tags for tag in _IPTC)
        assert "left out: IPTC (author, caption, keywords)" in warnings


@needs_exiftool
@pytest.mark.parametrize("to", WRITTEN)
def test_photoshop_resources_are_carried_or_named(to, plain):
    resources = b"8BIM\x04\x0a\0\0\0\0\0\1\1\0" + b"8BIM\x07\xd0\4path\0" + struct.pack(">I", 26) + bytes(26)
    result, warnings = written(pictures.segment(plain, 0xED, b"Photoshop 3.0\0" + resources), to)
    if to in ("jpeg", "tiff", "png"):
        assert exiftool(result)["Photoshop:CopyrightFlag"] == 1
        assert "Photoshop" not in warnings
    else:
        assert "left out: Photoshop (copyright flag, path)" in warnings


@needs_imagemagick
@needs_exiftool
def test_metadata_that_imagemagick_wrote_to_png_is_read(plain, tmp_path):
    data = tagged(
        tmp_path / "a.jpg", plain, "-IPTC:Keywords=harbour", "-XMP:Rating=5", "-EXIF:Artist=An Author"
    )
    png = converted(data, "jpg", "png")
    assert b"Raw profile type" in png
    tags = exiftool(written(png, "jpeg")[0])
    assert (tags["IPTC:Keywords"], tags["XMP-xmp:Rating"], tags["IFD0:Artist"]) == ("harbour", 5, "An Author")


@pytest.mark.parametrize("to", WRITTEN)
def test_comments_and_text_are_carried_or_named(to, plain, rng):
    result, warnings = written(pictures.segment(plain, 0xFE, b"a note"), to)
    assert (b"a note" in result) == (to in ("jpeg", "png")) == ("left out: comment" not in warnings)
    result, warnings = written(
        pictures.png(photo_like(rng, 30, 40), (b"tEXt", b"Copyright\0An Author"), (b"tIME", bytes(7))), to
    )
    assert (b"An Author" in result) == (to == "png") == ("PNG text (Copyright)" not in warnings)
    assert "PNG chunks (tIME)" in warnings


@pytest.mark.parametrize(("unit", "named"), [(0, True), (1, False)])
def test_pixels_that_are_not_square_are_named(unit, named, plain):
    at = plain.index(b"JFIF\0") + 7
    data = plain[:at] + struct.pack(">BHH", unit, 200, 100) + plain[at + 5 :]
    assert ("pixel aspect ratio (200:100)" in written(data, "jpeg")[1]) == named
    assert "aspect" not in written(plain, "jpeg")[1]


@pytest.mark.parametrize("to", WRITTEN)
def test_extensions_of_gif_are_carried_or_named(to, rng):
    data = pictures.pillow(Image.fromarray(photo_like(rng, 30, 40)), "GIF", comment=b"a note")
    result, warnings = written(data[:-1] + b"!\xff\x0bXMP DataXMP\4<x/>\0;", to)
    assert (b"a note" in result) == (to in ("jpeg", "png")) == ("left out: comment" not in warnings)
    assert "left out: XMP" in warnings


def test_all_comments_of_a_jpeg_are_carried(plain):
    twice = pictures.segment(pictures.segment(plain, 0xFE, b"second"), 0xFE, b"first")
    assert Image.open(io.BytesIO(written(twice, "jpeg")[0])).info["comment"] == b"first\nsecond"


@pytest.mark.parametrize(
    ("marker", "body", "name"),
    [
        (0xE1, b"http://ns.adobe.com/xmp/extension/\0" + bytes(40), "extended XMP"),
        (0xE1, b"FLIR\0" + bytes(9), "thermal"),
        (0xE2, b"urn:iso:std:iso:ts:21496:-1\0" + bytes(9), "gain map"),
        (0xE5, b"unknown", "JPEG segments (APP5)"),
        (0xEB, b"JP\0\1jumbc2pa", "Content Credentials (C2PA)"),
        (0xE0, b"JFXX\0\x10", "thumbnail"),
    ],
)
def test_unknown_segments_are_named(marker, body, name, plain):
    result, warnings = written(pictures.segment(plain, marker, body), "png")
    assert name in warnings and body not in result


def test_c2pa_is_removed_with_a_warning(plain, rng):
    webp = pictures.pillow(photo_like(rng, 30, 40), "WEBP")
    webp += b"C2PA" + struct.pack("<I", 4) + b"jumb"
    files = {
        "png": pictures.png(photo_like(rng, 30, 40), (b"caBX", b"jumb")),
        "webp": b"RIFF" + struct.pack("<I", len(webp) - 8) + webp[8:],
        "tiff": pictures.tiff(
            photo_like(rng, 30, 40), photometric="rgb", extratags=[(52545, 7, 4, b"jumb", True)]
        ),
        "jpeg": in_jpeg(plain, packet('xmlns:t="http://purl.org/dc/terms/" t:provenance="self#jumbf=c2pa"')),
        "avif": pictures.pillow(photo_like(rng, 30, 40), "AVIF")
        + struct.pack(">I4s", 28, b"uuid")
        + bytes.fromhex("d8fec3d61b0e483c92975828877ec481")
        + b"jumb",
    }
    for image_format, data in files.items():
        result, warnings = written(data, image_format)
        assert "Content Credentials (C2PA), which a changed picture invalidates" in warnings, image_format
        assert b"jumb" not in result, image_format


@pytest.mark.parametrize("image_format", ["APNG", "GIF", "WEBP", "TIFF", "AVIF", "MPO", "HEIC"])
def test_further_pictures_are_named(image_format, rng):
    first, *rest = (Image.fromarray(photo_like(rng, 64, 64)).rotate(angle) for angle in (0, 90, 180))
    if image_format == "HEIC":
        file, out = pillow_heif.HeifFile(), io.BytesIO()
        for image in (first, *rest):
            file.add_from_pillow(image)
        file.save(out)
        data = out.getvalue()
    else:
        data = pictures.pillow(
            first, image_format.replace("A", "", image_format == "APNG"), save_all=True, append_images=rest
        )
    assert "only the first picture" in " ".join(photo.decode(data).meta.warnings)


def test_big_types_of_tiff_are_named(rng):
    data = pictures.tiff(
        photo_like(rng, 30, 40), photometric="rgb", bigtiff=True, extratags=[(50000, "Q", 1, 2**40, True)]
    )
    assert "EXIF (tag 50000)" in written(data, "tiff")[1]


def test_conversion_to_srgb_is_named(rng):
    data = pictures.pillow(Image.fromarray(photo_like(rng, 30, 40)).convert("CMYK"), "TIFF")
    assert "from CMYK to sRGB" in written(data, "tiff")[1]


def test_lossless_webp_stays_lossless(rng):
    before = photo.decode(pictures.pillow(pictures.noise(rng, 30, 40), "WEBP", lossless=True))
    result = encode.encode(before, encode.output_format(before, "same"), quality=90)
    assert b"VP8L" in result.data and not result.warnings
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(result.data))), before.pixels)
    assert "without loss" in encode.losses(before, "jpeg")[0]
    assert (
        "without loss" in encode.losses(replace(before, meta=replace(before.meta, format="jpeg")), "jpeg")[0]
    )
    lossy = photo.decode(pictures.pillow(photo_like(rng, 30, 40), "WEBP"))
    assert b"VP8L" not in encode.encode(lossy, "webp", quality=90).data


# Companions


@pytest.mark.parametrize(
    ("properties", "name"),
    [
        ('xmlns:hdrgm="http://ns.adobe.com/hdr-gain-map/1.0/" hdrgm:Version="1.0"', "gain map"),
        ('xmlns:H="http://ns.apple.com/HDRGainMap/1.0/" H:HDRGainMapVersion="65536"', "gain map"),
        ('xmlns:g="http://ns.google.com/photos/1.0/camera/" g:MotionPhoto="1"', "motion photo"),
        ('xmlns:g="http://ns.google.com/photos/1.0/camera/" g:MicroVideoOffset="99"', "motion photo"),
        ('xmlns:d="http://ns.google.com/photos/1.0/depthmap/" d:Data="AAAA"', "depth map"),
    ],
)
def test_claims_about_companions_are_removed_with_a_warning(properties, name, plain):
    value = properties.rpartition(" ")[2].encode()
    result, warnings = written(
        in_jpeg(plain, packet(f'{properties} xmp:Rating="5" xmlns:xmp="http://ns.adobe.com/xap/1.0/"')),
        "jpeg",
    )
    assert f"left out: {name}" in warnings
    assert value not in result and b'xmp:Rating="5"' in result


def test_container_directories_are_removed_with_the_name_of_what_they_list(plain):
    google = "http://ns.google.com/photos/1.0/container/"
    directory = (
        f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF {RDF}><rdf:Description rdf:about="" '
        f'xmlns:C="{google}" xmlns:I="{google}item/"><C:Directory><rdf:Seq><rdf:li '
        'rdf:parseType="Resource"><C:Item I:Mime="image/jpeg" I:Semantic="Depth"/>'
        "</rdf:li></rdf:Seq></C:Directory></rdf:Description></rdf:RDF></x:xmpmeta>"
    ).encode()
    result, warnings = written(in_jpeg(plain, directory), "jpeg")
    assert "left out: depth map" in warnings and b"Semantic" not in result


def test_movies_after_a_photo_are_named(plain):
    result, warnings = written(plain + struct.pack(">I", 24) + b"ftypmp42" + bytes(99), "jpeg")
    assert "left out: motion photo" in warnings and b"ftyp" not in result
    assert "after the end of the picture" in written(plain + b"SEFH data", "jpeg")[1]
    assert not written(plain + bytes(9), "jpeg", history="")[1]


@pytest.mark.parametrize("tag", [0x11, 0x17])
def test_maker_notes_that_pair_a_live_photo_are_removed(tag, plain):
    note = b"Apple iOS\0\0\1MM" + struct.pack(">HHHII", 1, tag, 2, 4, 0x41424300) + bytes(4)
    block = pictures.exif_block("<", {0x010F: (2, b"Apple\0")}, {0x927C: (7, note), 0x9003: (2, b"a date\0")})
    result, warnings = written(pictures.with_exif(plain, block), "jpeg")
    assert "live photo" in warnings and b"Apple iOS" not in result and b"a date" in result
    other = block.replace(struct.pack(">HH", 1, tag), struct.pack(">HH", 1, 0x21))
    assert b"Apple iOS" in written(pictures.with_exif(plain, other), "jpeg")[0]


@pytest.mark.parametrize(
    ("urn", "name"),
    [
        (b"urn:com:apple:photo:2020:aux:hdrgainmap", "gain map"),
        (b"urn:mpeg:hevc:2015:auxid:2", "depth map"),
        (b"urn:com:apple:photo:2018:aux:portraiteffectsmatte", "auxiliary picture"),
    ],
)
def test_auxiliary_pictures_of_heic_are_named(urn, name, rng):
    data = pictures.heic(Image.fromarray(photo_like(rng, 64, 64)))
    box = b"auxC" + bytes(4) + urn + b"\0"
    data += struct.pack(">I4s", 12 + len(box), b"free") + struct.pack(">I", len(box) + 4) + box
    assert f"left out: {name}" in written(data, "jpeg")[1]


# Limits, history


def test_a_legal_64_kb_exif_keeps_its_tags(plain):
    """What is worth least goes first: thumbnail, history line, maker note."""
    limit = jpeg.MAX_SIZES["exif"]
    for room, expected in (
        (30_000, ()),
        (1_800, ("thumbnail",)),
        (150, ("history", "thumbnail")),
        (-200, ("MakerNote", "history", "thumbnail")),
    ):
        block = pictures.exif_block(
            "<",
            {0x010F: (2, b"Maker\0")},
            {0x9003: (2, b"2001:02:03 04:05:06\0"), 0x927C: (7, bytes(limit - 240 - room))},
            thumbnail=b"\xff\xd8\xff\xd9",
        )
        long = '{"software": "' + "x" * 1000 + '"}'
        segments = [block[at : at + 65_000] for at in range(0, len(block), 65_000)]
        data = plain
        for part in reversed(segments):
            data = pictures.segment(data, 0xE1, b"Exif\0\0" + part)
        result, warnings = written(data, "jpeg", history=long)
        tags = Image.open(io.BytesIO(result)).getexif()
        assert tags.get_ifd(0x8769)[0x9003] == "2001:02:03 04:05:06", room
        for name in ("MakerNote", "history", "thumbnail"):
            assert (name in warnings) == (name in expected), (room, warnings)
        assert (0x927C in tags.get_ifd(0x8769)) == ("MakerNote" not in expected)
        assert bool(tags.get_ifd(ExifTags.IFD.IFD1)) == ("thumbnail" not in expected)


def test_an_exif_of_one_huge_gps_directory_is_named(plain):
    gps = {number: (7, bytes(20_000)) for number in range(1, 5)}
    block = pictures.exif_block("<", {0x010F: (2, b"Maker\0")}, gps=gps)
    data = plain
    for part in (block[65_000:], block[:65_000]):
        data = pictures.segment(data, 0xE1, b"Exif\0\0" + part)
    result, warnings = written(data, "jpeg")
    assert "EXIF (GPS position)" in warnings
    assert Image.open(io.BytesIO(result)).getexif()[271] == "Maker"


def test_a_maker_note_goes_before_larger_tags(plain):
    block = pictures.exif_block(
        "<", {0x010F: (2, b"Maker\0")}, {0x9286: (7, b"x" * 36_000), 0x927C: (7, bytes(30_000))}
    )
    data = plain
    for part in (block[65_000:], block[:65_000]):
        data = pictures.segment(data, 0xE1, b"Exif\0\0" + part)
    result, warnings = written(data, "jpeg")
    assert "EXIF (MakerNote)" in warnings and b"x" * 36_000 in result


def test_the_largest_tags_go_after_the_maker_note(plain):
    tags = {0x9286: (7, bytes(50_000)), 0xA433: (2, b"x" * 20_000 + b"\0"), 0x9003: (2, b"a date\0")}
    block = pictures.exif_block("<", {0x010F: (2, b"Maker\0")}, tags)
    data = plain
    for part in (block[65_000:], block[:65_000]):
        data = pictures.segment(data, 0xE1, b"Exif\0\0" + part)
    result, warnings = written(data, "jpeg")
    assert "EXIF (UserComment)" in warnings and b"x" * 20_000 in result and b"a date" in result


@needs_exiftool
@pytest.mark.parametrize("to", WRITTEN)
def test_software_and_history_are_written(to, plain, tmp_path):
    data = tagged(tmp_path / "a.jpg", plain, "-IFD0:Software=Camera 1.0", "-XMP:Rating=5")
    tags = exiftool(written(data, to)[0])
    assert str(tags["IFD0:Software"]).startswith("Neural Image Restore")
    assert tags["ExifIFD:ImageHistory"] == f"Software: Camera 1.0\n{HISTORY}"
    (event,) = tags["XMP-xmpMM:History"]
    assert event["SoftwareAgent"].startswith("Neural Image Restore") and event["Parameters"] == HISTORY
    again = exiftool(written(written(data, to)[0], to)[0])
    assert len(again["XMP-xmpMM:History"]) == 2


@pytest.mark.parametrize("to", WRITTEN)
def test_a_photo_without_metadata_gets_the_history_line_alone(to, plain):
    result, warnings = written(plain, to)
    tags = Image.Exif()
    tags.load(photo.decode(result).meta.metadata.exif)
    assert 305 not in tags and tags.get_ifd(0x8769)[0x9213].strip("\0") == HISTORY
    assert not warnings and b"xmpMM" not in result
