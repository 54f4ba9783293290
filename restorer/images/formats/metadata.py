"""What stands beside the pixels; EXIF cleaned when it is read, and corrected for the new picture."""

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

from . import exif
from .exif import Block, Directory, Entry

# A profile could be made of such a description, but none is yet
AS_SRGB = "the file describes its colours without a profile; they are taken for sRGB"


@dataclass
class RawMetadata:
    """What stands beside the pixels in a file, as stored; b"" or None for what is not there.

    iptc     a caption record, which JPEG and TIFF hold
    comment  JPEG's
    text     whole chunks of PNG
    """

    icc: bytes = b""
    exif: bytes = b""
    xmp: bytes = b""
    dpi: tuple[float, float] | None = None
    iptc: bytes = b""
    comment: bytes = b""
    text: bytes = b""

    @classmethod
    def of(cls, info: Mapping) -> "RawMetadata":
        """Those that Pillow and pillow_heif name."""
        names = {"icc": "icc_profile", "exif": "exif", "xmp": "xmp"}
        return cls(dpi=info.get("dpi"), **{name: info.get(key) or b"" for name, key in names.items()})


# Tags of the first directory that say how a file stores its pixels or what one program made of them
# (layers, previews, place on a map), and what is carried in another way (resolution, XMP, IPTC, ICC)
_STORAGE = frozenset(
    [254, 255, 256, 257, 258, 259, 262, 263, 264, 265, 266, 273, 277, 278, 279, 280, 281, 282, 283, 284]
    + [288, 289, 290, 291, 292, 293, 296, 301, 317, 320, 321, 322, 323, 324, 325, 330, 332, 333, 334, 336]
    + [338, 339, 340, 341, 342, 347, 512, 513, 514, 515, 517, 518, 519, 520, 521, 529, 530, 531, 532, 700]
    + [32995, 32996, 32997, 33421, 33422, 33550, 33723, 33922, 34264, 34377, 34675, 34735, 34736, 34737]
    + [37724, 50838, 50839]
)
# Pillow writes these as BYTE, and so an AVIF that it has turned upright brings them
_UNDEFINED_TAGS = (0x9000, 0x9101, 0x927C, 0x9286, 0xA000, 0xA300, 0xA301, 0xA302)
_DESCRIPTION, _ORIENTATION, _X_RESOLUTION, _Y_RESOLUTION, _UNIT = 270, 274, 282, 283, 296
_PER_INCH = {2: 1.0, 3: 2.54}  # values of ResolutionUnit: inch, centimetre
_HISTORY = 0x9213  # ImageHistory of TIFF/EP: what was done to make the picture
_PIXELS, _RELATED = (0xA002, 0xA003), (0x1001, 0x1002)  # (width, height) in EXIF and interoperability


def read_exif(block: bytes, warnings: list[str]) -> Block:
    """An EXIF block, or the first directory of a TIFF file; no tags where there is none.

    What is broken is left out, and said in `warnings`.
    """
    block = block.removeprefix(b"Exif\0\0")
    if not block:
        return exif.empty()
    try:
        read = exif.parse(block)
    except ValueError:
        warnings.append("the EXIF block is damaged and was left out")
        return exif.empty()
    if read.broken:
        warnings.append("a part of the EXIF block is damaged and was left out")
    return read


def serialize_exif(read: Block) -> bytes:
    """The part of a block that says what the photo is, as a block; b"" when nothing is left."""
    tags = {tag: value for tag, value in read.tags.items() if tag not in _STORAGE and not _shape(tag, value)}
    nested = tags.get(exif.EXIF)
    if nested and not isinstance(nested, Entry):
        tags[exif.EXIF] = {tag: _mended(tag, value) for tag, value in nested.items()}
    return exif.write(read.order, tags) if tags else b""


def _shape(tag: int, value: Entry | Directory) -> bool:
    """Whether this is a note of tifffile or ImageJ about the array in the file."""
    return (
        tag == _DESCRIPTION and isinstance(value, Entry) and value.body.startswith((b'{"shape"', b"ImageJ="))
    )


def _mended(tag: int, value: Entry | Directory) -> Entry | Directory:
    return Entry(exif.UNDEFINED, value.body) if isinstance(value, Entry) and tag in _UNDEFINED_TAGS else value


def orientation(read: Block) -> int:
    """1 to 8; 1 where the tag is absent or out of its range."""
    found = exif.first(read.tags.get(_ORIENTATION), read.order, 1)
    return found if 1 <= found <= 8 else 1


def resolution(read: Block) -> tuple[float, float] | None:
    """Dots per inch (x, y), or None where the block has none that makes sense."""
    unit = _PER_INCH.get(exif.first(read.tags.get(_UNIT), read.order, 2), 0.0)
    x, y = (exif.numbers(read.tags.get(tag), read.order) for tag in (_X_RESOLUTION, _Y_RESOLUTION))
    return plausible_dpi((x[0] * unit, y[0] * unit)) if x and y else None


def plausible_dpi(dpi: tuple[float, float] | None) -> tuple[float, float] | None:
    """The resolution where it is one: some files say 0 or 1 for "unknown"."""
    return dpi if dpi and all(1 < value < 1e5 for value in dpi) else None


def update_exif(
    block: bytes,
    dpi: tuple[float, float] | None,
    *,
    width: int,
    height: int,
    remove_gps: bool,
    history: str = "",
) -> bytes:
    """An EXIF block for an upright picture of width x height pixels; b"" when there is nothing to say.

    history  a line in ASCII that is added to what the block says was done before
    """
    read = exif.parse(block) if block else exif.empty()
    order, tags = read.order, dict(read.tags)
    if remove_gps:
        tags.pop(exif.GPS, None)
    if _ORIENTATION in tags:
        tags[_ORIENTATION] = exif.entry(order, exif.SHORT, 1)
    nested = tags.get(exif.EXIF)
    if nested and not isinstance(nested, Entry):
        tags[exif.EXIF] = _resized(order, nested, width, height)
    if history:
        tags[exif.EXIF] = _told(tags.get(exif.EXIF), history)
    if dpi is not None:
        for tag, value in zip((_X_RESOLUTION, _Y_RESOLUTION), dpi, strict=True):
            ratio = Fraction(value).limit_denominator(10_000)
            tags[tag] = exif.entry(order, exif.RATIONAL, ratio.numerator, ratio.denominator)
        tags[_UNIT] = exif.entry(order, exif.SHORT, 2)
    return exif.write(order, tags) if tags else b""


def without_orientation(block: bytes) -> bytes:
    if not block:
        return block
    read = exif.parse(block)
    read.tags.pop(_ORIENTATION, None)
    return exif.write(read.order, read.tags) if read.tags else b""


def _told(tags: object, history: str) -> Directory:
    found = tags if isinstance(tags, Mapping) else {}
    told = found.get(_HISTORY)
    earlier = told.body.rstrip(b"\0") + b"\n" if isinstance(told, Entry) else b""
    return {**found, _HISTORY: Entry(exif.ASCII, earlier + history.encode("ascii") + b"\0")}


def _resized(order: exif.Order, tags: Directory, width: int, height: int) -> Directory:
    sides = [exif.entry(order, exif.LONG, side) for side in (width, height)]
    tags = {**tags, **dict(zip(_PIXELS, sides, strict=True))}
    related = tags.get(exif.INTEROP)
    if related and not isinstance(related, Entry) and _RELATED[0] in related:
        tags[exif.INTEROP] = {**related, **dict(zip(_RELATED, sides, strict=True))}
    return tags
