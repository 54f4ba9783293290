"""EXIF, XMP and resolution: read from a file, corrected for the new picture, written to another format."""

import re
import struct

from PIL import Image, TiffImagePlugin
from PIL.ExifTags import IFD, Base

# What a damaged EXIF block makes Pillow raise while it reads or writes it
EXIF_ERRORS = (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    SyntaxError,
    ArithmeticError,
    struct.error,
)

# Tags of the first directory that describe how a file stores its pixels, not what the photo is:
# sizes, compression, strips and tiles, the thumbnail, and what is carried in another way (XMP, ICC)
_STRUCTURE = frozenset(
    [254, 255, 256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 280, 281, 284, 292, 293, 296, 282, 283]
    + [317, 320, 321, 322, 323, 324, 325, 330, 332, 338, 339, 347, 512, 513, 514, 529, 530, 531, 532]
    + [700, 34675]
)
_INCH, _CENTIMETRE = 2, 3  # values of ResolutionUnit
_PIXEL_WIDTH, _PIXEL_HEIGHT = 0xA002, 0xA003  # of the Exif directory
_GPS_TAG = (
    rb'\s+exif:GPS\w+\s*=\s*(?:"[^"]*"|\'[^\']*\')|<exif:GPS(\w+)[^>]*?/>|<exif:GPS(\w+).*?</exif:GPS\2\s*>'
)
_THUMBNAILS = rb"<xmp:Thumbnails.*?</xmp:Thumbnails\s*>"


def read_exif(image: Image.Image) -> bytes:
    """The EXIF block of an opened image without what describes its storage; b"" where there is none.

    Raises one of EXIF_ERRORS for a block too damaged to be carried.
    """
    exif = image.getexif()
    for tag in _STRUCTURE.intersection(exif):
        del exif[tag]
    return _block(exif)


def corrected_exif(
    block: bytes, dpi: tuple[float, float] | None, *, width: int, height: int, remove_gps: bool
) -> bytes:
    """An EXIF block for an upright picture of width x height pixels; b"" when there is nothing to say."""
    exif = _parse(block)
    if remove_gps and IFD.GPSInfo in exif:
        del exif[IFD.GPSInfo]
    if Base.Orientation in exif:
        exif[Base.Orientation] = 1
    if IFD.Exif in exif:
        exif.get_ifd(IFD.Exif).update({_PIXEL_WIDTH: width, _PIXEL_HEIGHT: height})
    if dpi is not None:
        exif[Base.XResolution], exif[Base.YResolution], exif[Base.ResolutionUnit] = *dpi, _INCH
    return _block(exif)


def corrected_xmp(xmp: bytes, *, width: int, height: int, remove_gps: bool) -> bytes:
    """An XMP packet with size and orientation of the new picture, and no embedded thumbnails."""
    for names, value in (
        (rb"tiff:Orientation", 1),
        (rb"tiff:ImageWidth|exif:PixelXDimension", width),
        (rb"tiff:ImageLength|exif:PixelYDimension", height),
    ):
        number = str(value).encode()
        xmp = re.sub(rb"((?:%s)\s*=\s*[\"'])\d+" % names, rb"\g<1>" + number, xmp)
        xmp = re.sub(rb"(<(?:%s)\s*>\s*)\d+" % names, rb"\g<1>" + number, xmp)
    xmp = re.sub(_THUMBNAILS, b"", xmp, flags=re.DOTALL)
    return re.sub(_GPS_TAG, b"", xmp, flags=re.DOTALL) if remove_gps else xmp


def read_xmp(info: dict) -> bytes:
    xmp = info.get("xmp") or b""
    return xmp.encode() if isinstance(xmp, str) else xmp


def read_dpi(image: Image.Image) -> tuple[float, float] | None:
    """Resolution in dots per inch (x, y), or None where the file names none that makes sense."""
    try:
        if "dpi" in image.info:
            x, y = (float(value) for value in image.info["dpi"])
        else:
            exif = image.getexif()
            unit = 2.54 if exif.get(Base.ResolutionUnit, _INCH) == _CENTIMETRE else 1
            x, y = (float(exif[tag]) * unit for tag in (Base.XResolution, Base.YResolution))
    except EXIF_ERRORS:
        return None
    return (x, y) if 1 < x < 1e5 and 1 < y < 1e5 else None


def into_tiff(directory: TiffImagePlugin.ImageFileDirectory_v2, block: bytes) -> None:
    """Put an EXIF block's tags into the first directory of a TIFF file."""
    exif = _parse(block)
    for tag, value in exif.items():
        directory[tag] = value
    for tag in (IFD.Exif, IFD.GPSInfo):
        if tag in exif:
            directory[tag] = nested = dict(exif.get_ifd(tag))
            if IFD.Interop in nested:
                nested[IFD.Interop] = exif.get_ifd(IFD.Interop)


def _parse(block: bytes) -> Image.Exif:
    exif = Image.Exif()
    exif.load(block)
    return exif


def _block(exif: Image.Exif) -> bytes:
    """The mapping as bytes. Pillow leaves the thumbnail's directory out, which is as wanted."""
    return exif.tobytes().removeprefix(b"Exif\x00\x00") if len(exif) else b""
