"""The metadata of an image file; EXIF is cleaned when read and updated when written."""

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

from . import exif
from .exif import Block, Directory, Entry

# Warning for colours defined by code points or a gamma, from which no profile is built
ASSUMED_SRGB = "the file defines its colours without an ICC profile; they are taken for sRGB"


@dataclass(frozen=True)
class RawMetadata:
    """The metadata blocks of a file as stored; b"" or None where absent.

    dpi      dots per inch (x, y)
    iptc     caption record of JPEG and TIFF
    comment  of JPEG
    text     complete text chunks of PNG
    """

    icc: bytes = b""
    exif: bytes = b""
    xmp: bytes = b""
    dpi: tuple[float, float] | None = None
    iptc: bytes = b""
    comment: bytes = b""
    text: bytes = b""

    @classmethod
    def from_pillow(cls, info: Mapping) -> "RawMetadata":
        """Take the blocks from the `info` of a Pillow or pillow_heif image."""
        names = {"icc": "icc_profile", "exif": "exif", "xmp": "xmp"}
        return cls(dpi=info.get("dpi"), **{name: info.get(key) or b"" for name, key in names.items()})


# Tags of the first directory that describe how a file stores its pixels, that belong to one program
# (layers, previews, map coordinates), or that have their own field in RawMetadata (XMP, IPTC, ICC, dpi)
_STORAGE = frozenset(
    [254, 255, 256, 257, 258, 259, 262, 263, 264, 265, 266, 273, 277, 278, 279, 280, 281, 282, 283, 284]
    + [288, 289, 290, 291, 292, 293, 296, 301, 317, 320, 321, 322, 323, 324, 325, 330, 332, 333, 334, 336]
    + [338, 339, 340, 341, 342, 347, 512, 513, 514, 515, 517, 518, 519, 520, 521, 529, 530, 531, 532, 700]
    + [32995, 32996, 32997, 33421, 33422, 33550, 33723, 33922, 34264, 34377, 34675, 34735, 34736, 34737]
    + [37724, 50838, 50839]
)
# UNDEFINED by the standard; Pillow turns them into BYTE when it sets the orientation of an AVIF
_UNDEFINED_TAGS = (0x9000, 0x9101, 0x927C, 0x9286, 0xA000, 0xA300, 0xA301, 0xA302)
_DESCRIPTION, _ORIENTATION, _X_RESOLUTION, _Y_RESOLUTION, _UNIT = 270, 274, 282, 283, 296
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
        if tag not in _STORAGE and not _is_array_description(tag, value)
    }
    nested = tags.get(exif.EXIF)
    if nested and not isinstance(nested, Entry):
        tags[exif.EXIF] = {tag: _restore_type(tag, value) for tag, value in nested.items()}
    return exif.serialize(block.order, tags) if tags else b""


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
    remove_gps: bool,
    history: str = "",
) -> bytes:
    """Return an EXIF block for an upright image of width x height pixels; b"" if it would be empty.

    dpi      (x, y), replaces the resolution unless None
    history  ASCII line appended to ImageHistory
    """
    block = exif.parse(data) if data else exif.empty()
    order, tags = block.order, dict(block.tags)
    if remove_gps:
        tags.pop(exif.GPS, None)
    if _ORIENTATION in tags:
        tags[_ORIENTATION] = exif.make_entry(order, exif.SHORT, 1)
    nested = tags.get(exif.EXIF)
    if nested and not isinstance(nested, Entry):
        tags[exif.EXIF] = _set_size(order, nested, width, height)
    if history:
        tags[exif.EXIF] = _append_history(tags.get(exif.EXIF), history)
    if dpi is not None:
        for tag, value in zip((_X_RESOLUTION, _Y_RESOLUTION), dpi, strict=True):
            ratio = Fraction(value).limit_denominator(10_000)
            tags[tag] = exif.make_entry(order, exif.RATIONAL, ratio.numerator, ratio.denominator)
        tags[_UNIT] = exif.make_entry(order, exif.SHORT, 2)
    return exif.serialize(order, tags) if tags else b""


def remove_orientation(data: bytes) -> bytes:
    if not data:
        return data
    block = exif.parse(data)
    block.tags.pop(_ORIENTATION, None)
    return exif.serialize(block.order, block.tags) if block.tags else b""


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
