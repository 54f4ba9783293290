"""`remove_gps` clears coordinates and place names wherever they stand; nothing else goes."""

import re
import struct
import zlib

import pytest

from restorer.images import encode, photo
from restorer.images.privacy import is_place
from tests import pictures
from tests.conftest import photo_like
from tests.images.readers import converted, exiftool, needs_exiftool, needs_imagemagick, tagged
from tests.images.test_inventory import WRITTEN

PLACE = "Xanadu"  # a value that stands nowhere else
PLACES = (
    *("-XMP-photoshop:City", "-XMP-photoshop:State", "-XMP-photoshop:Country", "-XMP-iptcCore:Location"),
    *(
        "-XMP-iptcCore:CountryCode",
        "-XMP-iptcExt:LocationShownCity",
        "-XMP-iptcExt:LocationCreatedSublocation",
    ),
    *("-IPTC:City", "-IPTC:Sub-location", "-IPTC:Province-State", "-IPTC:Country-PrimaryLocationName"),
    *(
        "-IPTC:ContentLocationName",
        "-XMP-exif:GPSAreaInformation",
        "-GPS:GPSAreaInformation",
        "-XMP-xmpDM:ShotLocation",
    ),
)
COORDINATES = ("-GPS:GPSLatitude=48.123456", "-XMP-exif:GPSLatitude=48.123456", "-XMP-exif:GPSLongitude=11.5")
OTHERS = ("-XMP-dc:Title=a title", "-IPTC:Keywords=harbour", "-IFD0:Artist=An Author", "-XMP-xmp:Rating=5")


@pytest.fixture
def located(rng, tmp_path) -> bytes:
    plain = pictures.pillow(photo_like(rng, 30, 40), "JPEG", quality=90)
    return tagged(tmp_path / "a.jpg", plain, *(f"{tag}={PLACE}" for tag in PLACES), *COORDINATES, *OTHERS)


def places_in(data: bytes) -> list[str]:
    return [
        name
        for name, value in exiftool(data).items()
        if PLACE in str(value) or re.search(r"GPS|Latitude|Longitude", name)
    ]


@needs_exiftool
@pytest.mark.parametrize("to", WRITTEN)
def test_places_are_removed_wherever_they_stand(to, located):
    before = photo.decode(located)
    assert len(places_in(encode.encode(before, "jpeg", quality=90).data)) > 12
    result = encode.encode(before, to, quality=90, remove_gps=True)
    assert places_in(result.data) == []
    assert PLACE.encode() not in result.data
    tags = exiftool(result.data)
    assert (tags["XMP-dc:Title"], tags["IFD0:Artist"], tags["XMP-xmp:Rating"]) == ("a title", "An Author", 5)
    assert to in ("webp", "avif", "jxl") or tags["IPTC:Keywords"] == "harbour"


@needs_exiftool
@needs_imagemagick
@pytest.mark.parametrize("to", WRITTEN)
def test_places_that_imagemagick_wrote_to_png_are_removed(to, located):
    png = converted(located, "jpg", "png")
    assert b"exif:GPSLatitude" in png
    result = encode.encode(photo.decode(png), to, quality=90, remove_gps=True)
    assert places_in(result.data) == []
    assert PLACE.encode() not in result.data


@pytest.mark.parametrize("kind", [b"tEXt", b"zTXt", b"iTXt"])
@pytest.mark.parametrize("to", WRITTEN)
def test_places_are_removed_from_xmp_in_any_text_chunk_of_png(kind, to, rng):
    header = {b"tEXt": b"", b"zTXt": b"\0", b"iTXt": b"\1\0\0\0"}[kind]
    body = header + (pictures.XMP if kind == b"tEXt" else zlib.compress(pictures.XMP))
    read = photo.decode(pictures.png(photo_like(rng, 30, 40), (kind, b"XML:com.adobe.xmp\0" + body)))
    assert b"52,31" in encode.encode(read, to).data
    result = encode.encode(read, to, remove_gps=True).data
    assert not any(mark in result for mark in pictures.GPS_MARKS) and "Grüße".encode() in result


def test_resources_of_photoshop_that_copy_metadata_are_removed(rng):
    copies = b"".join(struct.pack(">4sHHI", b"8BIM", code, 0, 6) + b"Xanadu" for code in (1058, 1060, 4000))
    data = pictures.segment(
        pictures.pillow(photo_like(rng, 30, 40), "JPEG"), 0xED, b"Photoshop 3.0\0" + copies
    )
    assert b"Xanadu" not in encode.encode(photo.decode(data), "jpeg", quality=90, remove_gps=True).data


def test_maker_notes_and_map_tags_are_removed(rng):
    block = pictures.camera_exif()
    data = pictures.with_exif(pictures.pillow(photo_like(rng, 30, 40), "JPEG"), block)
    result = encode.encode(photo.decode(data), "jpeg", quality=90, remove_gps=True).data
    assert b"MAKERNOTE" not in result and b"a comment" in result
    extra = [(33550, 12, 3, (10.0, 10.0, 0.0), True), (33922, 12, 6, (0, 0, 0, 512345.0, 5400000.0, 0), True)]
    tiff = pictures.tiff(photo_like(rng, 30, 40), photometric="rgb", extratags=extra)
    result = encode.encode(photo.decode(tiff), "tiff", quality=90, remove_gps=True)
    assert struct.pack("<d", 512345.0) not in result.data and not result.warnings


@pytest.mark.parametrize("to", WRITTEN)
def test_without_metadata_nothing_is_left_but_the_profile(to, rng):
    data = pictures.segment(
        pictures.pillow(photo_like(rng, 30, 40), "JPEG", comment=b"Xanadu"), 0xE5, b"Xanadu"
    )
    resource = struct.pack(">4sHHI", b"8BIM", 1034, 0, 6) + b"Xanadu"
    data = pictures.segment(data, 0xED, b"Photoshop 3.0\0" + resource)
    result = encode.encode(photo.decode(data), to, quality=90, keep_metadata=False, history="{}")
    plain = encode.encode(photo.decode(pictures.pillow(photo_like(rng, 30, 40), "JPEG")), to, quality=90)
    assert b"Xanadu" not in result.data and not result.warnings
    assert not photo.decode(result.data).meta.metadata.exif and plain.data


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *(
            (name, True)
            for name in ("exif:GPSLatitude", "geo:lat", "photoshop:City", "Iptc4xmpExt:LocationShown")
        ),
        *(
            (name, True)
            for name in ("drone-dji:AbsoluteAltitude", "dwc:decimalLongitude", "exif:GPSInfo", "State")
        ),
        *((name, True) for name in ("drone-dji:LRFTargetLat", "drone-dji:LRFTargetAbsAlt", "dc:coverage")),
        *((name, False) for name in ("exif:SubjectLocation", "dc:title", "xmp:Rating", "crs:Saturation")),
        *(
            (name, False)
            for name in ("Title", "xmp:CreateDate", "lr:hierarchicalSubject", "photoshop:StateFlag")
        ),
    ],
)
def test_names_of_places_are_known(name, expected):
    assert is_place(name) is expected
