"""Remove where a photo was taken from all of its metadata."""

import re
from dataclasses import replace

from .formats import exif, geotiff, metadata, photoshop, png, xmp
from .formats.metadata import RawMetadata

# Property names and keywords without their prefix; a SubjectLocation is a pixel
_PLACE = re.compile(
    r"(?!subject)(.*(gps|latitude|longitude|altitude|geotag|geohash|location|locality|municipality).*"
    r"|geo|geo_?point|lat|long?|city|state|province|state-?province|province-?state|country(-?(code|name))?"
    r"|county|worldregion|islandgroup|island|waterbody|landmark|place|placename|coordinates|coverage"
    r"|lrftarget(lat|lon|(abs)?alt))",  # what a DJI drone's laser measures
    re.IGNORECASE,
)


def is_place(name: str) -> bool:
    """Return whether a property or keyword, with or without a prefix, tells where a photo was taken."""
    return _PLACE.fullmatch(name.rpartition(":")[2].strip()) is not None


def remove_places(blocks: RawMetadata) -> RawMetadata:
    """Remove coordinates and place names.

    From EXIF the GPS directory and the maker note, which may hold both in forms of its own; from XMP and PNG
    text what a place's name or coordinate is called; from IPTC the location, city, province and country;
    all Photoshop resources but rights and paths; the map tags of a GeoTIFF.
    """
    return replace(
        blocks,
        exif=_without_places(blocks.exif),
        xmp=xmp.remove(blocks.xmp, is_place),
        iptc=photoshop.remove_places(blocks.iptc),
        resources=photoshop.keep_rights(blocks.resources),
        text=png.remove_text(blocks.text, is_place),
    )


def _without_places(block: bytes) -> bytes:
    if not block:
        return b""
    parsed = exif.parse(block)
    unwanted = {exif.GPS, *geotiff.TAGS, *geotiff.OPAQUE}
    tags = {tag: value for tag, value in parsed.tags.items() if tag not in unwanted}
    nested = tags.get(exif.EXIF)
    if nested and not isinstance(nested, exif.Entry):
        tags[exif.EXIF] = {tag: value for tag, value in nested.items() if tag != metadata.MAKER_NOTE}
    return exif.serialize(parsed.order, {tag: value for tag, value in tags.items() if value})
