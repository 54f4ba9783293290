"""The metadata of an image file; EXIF is cleaned when read and updated when written."""

import math
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

from PIL import ExifTags

from ..placement import Placement
from . import exif, geotiff, xmp_geometry
from .exif import Block, Directory, Entry

# Warnings; the first is for colours defined by code points or a gamma, from which no profile is built
ASSUMED_SRGB = "the file defines its colours without an ICC profile; they are taken for sRGB"
FIRST_ONLY = "only the first picture of the file is restored"


class Item(NamedTuple):
    """Something that a file holds: what it is, "IPTC" or "gain map" say, and its name if it has one."""

    kind: str
    name: str = ""


C2PA, THUMBNAIL = Item("Content Credentials (C2PA), which a changed picture invalidates"), Item("thumbnail")


@dataclass(frozen=True)
class RawMetadata:
    """The metadata blocks of a file as stored; b"" or None where absent.

    dpi        dots per inch (x, y)
    iptc       record with caption, keywords and authors
    resources  Photoshop's image resources, except what has a field here
    comment    of JPEG and GIF
    text       complete text chunks of PNG
    others     what else the file holds, none of which a result can have
    """

    icc: bytes = b""
    exif: bytes = b""
    xmp: bytes = b""
    dpi: tuple[float, float] | None = None
    iptc: bytes = b""
    resources: bytes = b""
    comment: bytes = b""
    text: bytes = b""
    others: tuple[Item, ...] = ()

    @classmethod
    def from_pillow(cls, info: Mapping) -> "RawMetadata":
        """Take the blocks from the `info` of a Pillow or pillow_heif image."""
        names = {"icc": "icc_profile", "exif": "exif", "xmp": "xmp", "comment": "comment"}
        blocks: dict[str, Any] = {name: info.get(key) or b"" for name, key in names.items()}
        return cls(dpi=info.get("dpi"), **blocks)


# Tags of the first directory that describe how a file stores its pixels, or that have their own field in
# RawMetadata (XMP, IPTC, ICC, resources, dpi)
_STORAGE = frozenset(
    [254, 255, 256, 257, 258, 259, 262, 263, 264, 265, 266, 273, 277, 278, 279, 280, 281, 282, 283, 284]
    + [288, 289, 290, 291, 292, 293, 296, 301, 317, 320, 321, 322, 323, 324, 325, 330, 332, 333, 334, 336]
    + [338, 339, 340, 341, 342, 347, 512, 513, 514, 515, 517, 518, 519, 520, 521, 529, 530, 531, 532, 700]
    + [32995, 32996, 32997, 33421, 33422, 33723, 34377, 34675]
)
# Tags that are not kept because they belong to one program or to the pixels as they were
_LEFT_OUT = {330: Item("further pictures in the TIFF file"), 52545: C2PA}
_LEFT_OUT |= {37724: Item("Photoshop", "layers")}
_LEFT_OUT |= dict.fromkeys([50838, 50839], Item("ImageJ metadata"))
_LEFT_OUT |= {tag: Item("GeoTIFF", name) for tag, name in geotiff.OPAQUE.items()}
# DNG: crops, areas and corrections (of a lens, for example) in pixels of the sensor
_LEFT_OUT |= dict.fromkeys(
    [50719, 50720, 50829, 50830, 51008, 51009, 51022, 51089, 51090, 51091, 51125],
    Item("raw development tags"),
)
# UNDEFINED by the standard; Pillow turns them into BYTE when it sets the orientation of an AVIF
_UNDEFINED_TAGS = (0x9000, 0x9101, 0x927C, 0x9286, 0xA000, 0xA300, 0xA301, 0xA302)
_DESCRIPTION, _ORIENTATION, _X_RESOLUTION, _Y_RESOLUTION, _UNIT, _SOFTWARE = 270, 274, 282, 283, 296, 305
MAKER_NOTE = 0x927C
_FOCAL_PLANE, _SUBJECT_AREA, _SUBJECT_LOCATION = (0xA20E, 0xA20F), 0x9214, 0xA214
_APPLE, _LIVE_PHOTO = b"Apple iOS\0", (0x11, 0x17)  # in Apple's maker note: what names the movie
_PER_INCH = {2: 1.0, 3: 2.54}  # by ResolutionUnit: inch, centimetre
_HISTORY = 0x9213  # ImageHistory of TIFF/EP
_SIZE, _INTEROP_SIZE = (0xA002, 0xA003), (0x1001, 0x1002)  # (width, height)


def parse_exif(data: bytes, warnings: list[str]) -> Block:
    """Parse an EXIF block, or the first directory of a TIFF file; no tags if it is empty.

    Broken parts are dropped, which is added to `warnings`.
    """
    data = data.removeprefix(b"Exif\0\0")
    if not data:
        return exif.empty()
    try:
        block = exif.parse(data)
    except ValueError:
        warnings.append("the EXIF block is damaged and was left out")
        return exif.empty()
    if block.broken:
        warnings.append("part of the EXIF block is damaged and was left out")
    return block


def serialize_exif(block: Block) -> bytes:
    """Return the tags that describe the photo, without those on storage, as an EXIF block; b"" for none."""
    tags = {
        tag: value
        for tag, value in block.tags.items()
        if tag not in _STORAGE and tag not in _LEFT_OUT and not _is_array_description(tag, value)
    }
    nested = tags.get(exif.EXIF)
    if nested and not isinstance(nested, Entry):
        details = {
            tag: _restore_type(tag, value) for tag, value in nested.items() if not _is_live(tag, value)
        }
        tags |= {exif.EXIF: details}
    return exif.serialize(block.order, tags)


def tag_name(tag: int) -> str:
    return ExifTags.TAGS.get(tag) or f"tag {tag}"


def left_out(block: Block) -> tuple[Item, ...]:
    """Return what serialize_exif() drops although it does not describe the storage."""
    items = [item for tag, item in _LEFT_OUT.items() if tag in block.tags]
    big = (tag for tag, value in block.tags.items() if _is_big(value))
    items += [Item("EXIF", tag_name(tag)) for tag in big if tag not in _STORAGE and tag not in _LEFT_OUT]
    nested = block.tags.get(exif.EXIF)
    if isinstance(nested, Mapping) and any(_is_live(tag, value) for tag, value in nested.items()):
        items.append(Item("maker note, which pairs the photo with the movie of a live photo"))
    return tuple(items)


def _is_big(value: Entry | Directory) -> bool:
    """Whether the type exists in BigTIFF alone."""
    return isinstance(value, Entry) and value.kind >= exif.LONG8


def _is_live(tag: int, value: Entry | Directory) -> bool:
    """Whether this is a maker note that pairs the photo with a movie, which no result has."""
    if tag != MAKER_NOTE or not isinstance(value, Entry) or not value.body.startswith(_APPLE):
        return False
    count = int.from_bytes(value.body[14:16], "big")
    rows = (value.body[at : at + 2] for at in range(16, min(16 + 12 * count, len(value.body)), 12))
    return any(int.from_bytes(row, "big") in _LIVE_PHOTO for row in rows)


def _is_array_description(tag: int, value: Entry | Directory) -> bool:
    """Whether tifffile or ImageJ wrote this description, which gives the shape of the file's array."""
    return (
        tag == _DESCRIPTION and isinstance(value, Entry) and value.body.startswith((b'{"shape"', b"ImageJ="))
    )


def _restore_type(tag: int, value: Entry | Directory) -> Entry | Directory:
    return Entry(exif.UNDEFINED, value.body) if isinstance(value, Entry) and tag in _UNDEFINED_TAGS else value


def orientation(block: Block) -> int:
    """Return the orientation, 1 to 8; 1 if the tag is absent or out of range."""
    value = exif.first_int(block.tags.get(_ORIENTATION), block.order, 1)
    return value if 1 <= value <= 8 else 1


def resolution(block: Block) -> tuple[float, float] | None:
    """Return dots per inch (x, y), or None if absent or implausible."""
    unit = _PER_INCH.get(exif.first_int(block.tags.get(_UNIT), block.order, 2), 0.0)
    x, y = (exif.numbers(block.tags.get(tag), block.order) for tag in (_X_RESOLUTION, _Y_RESOLUTION))
    return plausible_dpi((x[0] * unit, y[0] * unit)) if x and y else None


def plausible_dpi(dpi: tuple[float, float] | None) -> tuple[float, float] | None:
    """Return `dpi`, or None for values such as 0 and 1, which some files use for "unknown"."""
    return dpi if dpi and all(1 < value < 1e5 for value in dpi) else None


def update_exif(
    data: bytes,
    dpi: tuple[float, float] | None,
    *,
    width: int,
    height: int,
    placement: Placement,
    software: str = "",
    history: str = "",
    geotiff_tags: bool = False,
) -> Block:
    """Return the tags for an upright image of width x height pixels.

    dpi           (x, y), replaces the resolution unless None
    placement     where the stored pixels are in this image
    software      replaces Software in a block that is not empty; the earlier one goes to ImageHistory
    history       ASCII line appended to ImageHistory
    geotiff_tags  whether the map tags are kept
    """
    block = exif.parse(data) if data else exif.empty()
    order, tags = block.order, dict(block.tags)
    on_map = geotiff.transform(tags, order, placement) if geotiff_tags else {}
    tags = {tag: value for tag, value in tags.items() if tag not in geotiff.TAGS} | on_map
    if _ORIENTATION in tags:
        tags[_ORIENTATION] = exif.make_entry(order, exif.SHORT, 1)
    nested = tags.get(exif.EXIF)
    if nested and not isinstance(nested, Entry):
        tags[exif.EXIF] = _set_size(order, _transformed(order, nested, placement), width, height)
    if history:
        earlier = tags.get(_SOFTWARE)
        if isinstance(earlier, Entry) and (name := earlier.body.rstrip(b"\0 ").decode("ascii", "ignore")):
            history = f"Software: {name}\n{history}"
        tags[exif.EXIF] = _append_history(tags.get(exif.EXIF), history)
    if software and block.tags:
        tags[_SOFTWARE] = Entry(exif.ASCII, software.encode("ascii") + b"\0")
    if dpi is not None:
        for tag, value in zip((_X_RESOLUTION, _Y_RESOLUTION), dpi, strict=True):
            tags[tag] = _rational(order, value)
        tags[_UNIT] = exif.make_entry(order, exif.SHORT, 2)
    return block._replace(tags=tags, broken=frozenset(), has_next=False)


def _rational(order: exif.Order, value: float) -> Entry:
    ratio = Fraction(min(value, 4e5)).limit_denominator(10_000)
    return exif.make_entry(order, exif.RATIONAL, ratio.numerator, ratio.denominator)


def _transformed(order: exif.Order, tags: Directory, placement: Placement) -> Directory:
    """Transform the tags that count in pixels; those that no longer fit their type are removed."""
    out = dict(tags)
    x, y = (exif.numbers(tags.get(tag), order, 1) for tag in _FOCAL_PLANE)
    if x and y and all(0 < value < 1e5 for value in (*x, *y)):
        for tag, value in zip(_FOCAL_PLANE, placement.pair(x[0], y[0]), strict=True):
            out[tag] = _rational(order, value)
    for tag in (_SUBJECT_AREA, _SUBJECT_LOCATION):
        values = exif.numbers(tags.get(tag), order, 5)
        if len(values) in (2, 3, 4) and all(map(math.isfinite, values)):
            del out[tag]
            moved = [round(value) for value in xmp_geometry.subject(list(values), placement)]
            if all(0 <= value <= 0xFFFF for value in moved):
                out[tag] = exif.make_entry(order, exif.SHORT, *moved)
    return out


def shortened(block: Block, limit: int) -> bytes:
    """Return a block of at most `limit` bytes: without its maker note, then without its largest tags."""
    nested = block.tags.get(exif.EXIF)
    details = dict(nested) if isinstance(nested, Mapping) else {}
    details.pop(MAKER_NOTE, None)
    outer = {tag: value for tag, value in block.tags.items() if tag != exif.EXIF}
    entries = [(directory, tag) for directory in (outer, details) for tag in directory]
    entries.sort(key=lambda entry: _size(entry[0][entry[1]]), reverse=True)

    def without(count: int) -> bytes:
        tags, nested = (
            {tag: directory[tag] for directory, tag in entries[count:] if directory is one}
            for one in (outer, details)
        )
        return exif.serialize(block.order, tags | {exif.EXIF: nested} if nested else tags)

    return without(bisect_left(range(len(entries)), True, key=lambda count: len(without(count)) <= limit))


def _size(value: Entry | Directory) -> int:
    return len(value.body) if isinstance(value, Entry) else sum(map(_size, value.values()))


def remove_orientation(data: bytes) -> bytes:
    if not data:
        return data
    block = exif.parse(data)
    block.tags.pop(_ORIENTATION, None)
    return exif.serialize(block.order, block.tags)


def _append_history(tags: object, history: str) -> Directory:
    directory = tags if isinstance(tags, Mapping) else {}
    entry = directory.get(_HISTORY)
    earlier = entry.body.rstrip(b"\0") + b"\n" if isinstance(entry, Entry) else b""
    return {**directory, _HISTORY: Entry(exif.ASCII, earlier + history.encode("ascii") + b"\0")}


def _set_size(order: exif.Order, tags: Directory, width: int, height: int) -> Directory:
    sides = [exif.make_entry(order, exif.LONG, side) for side in (width, height)]
    tags = {**tags, **dict(zip(_SIZE, sides, strict=True))}
    interop = tags.get(exif.INTEROP)
    if interop and not isinstance(interop, Entry) and _INTEROP_SIZE[0] in interop:
        tags[exif.INTEROP] = {**interop, **dict(zip(_INTEROP_SIZE, sides, strict=True))}
    return tags
