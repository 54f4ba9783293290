"""AVIF and HEIC, which share a container (ISO/IEC 23008-12). It turns the picture; the EXIF tag does not."""

import io
import re
import struct
from collections.abc import Mapping
from typing import Protocol

import imagecodecs
import numpy as np
import pillow_heif
from PIL import Image

from .metadata import AS_SRGB, RawMetadata
from .tiff import to_16_bits, unpremultiply

_BRANDS = {
    "avif": {b"avif", b"avis"},
    "heif": {b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1"},
}
_MOST_BOXES = 1000  # beside each other: a picture has five, a sequence in fragments two a fragment


class CheckSize(Protocol):
    """Called with the picture's size before its pixels are read, and with that of each part before it.

    frames   how many pictures the file says it has
    """

    def __call__(self, width: int, height: int, *, part: bool = False, frames: int = 1) -> None: ...


# What a broken EXIF block makes Pillow raise when it opens an AVIF
_OPEN_ERRORS = (OSError, ValueError, TypeError, LookupError, ArithmeticError, RuntimeError)
# Only the picture itself is wanted
pillow_heif.options.THUMBNAILS = pillow_heif.options.DEPTH_IMAGES = pillow_heif.options.AUX_IMAGES = False


def sniff(start: bytes) -> str | None:
    """ "avif" or "heif" by the brands in a file's first bytes, or None."""
    size = min(int.from_bytes(start[:4], "big"), len(start))
    brands = {start[at : at + 4] for at in range(8, size, 4)}
    return next((form for form, known in _BRANDS.items() if brands & known), None)


def read_avif(data: bytes, check: CheckSize, warnings: list[str]) -> tuple[np.ndarray, RawMetadata]:
    """Samples as stored, 8 bit or stretched to 16. The EXIF block's orientation is the container's."""
    _check_boxes(data, check)
    image, data = _open_avif(data, warnings)
    check(image.width, image.height, frames=getattr(image, "n_frames", 1))
    if getattr(image, "is_animated", False):
        # imagecodecs 2026.3 writes beyond its buffer when asked for the first of several pictures
        warnings.append("only the first picture of the file is restored, with 8 bits a channel")
        samples = np.asarray(image)
    else:
        samples = imagecodecs.avif_decode(data)  # Pillow reads more than 8 bits as 8
    if samples.shape[:2] != (image.height, image.width):
        raise ValueError("two readers see two sizes")
    if samples.dtype != np.uint8:
        samples = to_16_bits(samples, _av1_bits(data))
    return samples, _blocks(data, image.info, warnings)


def read_heic(data: bytes, check: CheckSize, warnings: list[str]) -> tuple[np.ndarray, RawMetadata]:
    """Samples, 8 bit or stretched to 16, that libheif has turned upright."""
    _check_boxes(data, check)
    image = pillow_heif.open_heif(data, convert_hdr_to_8bit=False)
    check(*image.size)
    samples, bits = np.asarray(image), image.info["bit_depth"]
    if samples.dtype != np.uint8:
        samples = to_16_bits(samples >> (16 - bits), bits)  # they come shifted, so that white would be grey
    if image.premultiplied_alpha:
        samples = np.dstack([unpremultiply(samples[..., :-1], samples[..., -1:]), samples[..., -1]])
    return samples, _blocks(data, image.info, warnings)


def _blocks(data: bytes, info: Mapping, warnings: list[str]) -> RawMetadata:
    blocks = RawMetadata.of(info)
    found = re.search(rb"(?s)colrnclx(..)(..)", data)
    if found and not blocks.icc:
        # ITU-T H.273: 1 is BT.709's primaries, which are sRGB's; 2 is "not said"; 16 and 18 are HDR's curves
        primaries, curve = (int.from_bytes(code, "big") for code in found.groups())
        if primaries not in (1, 2, 5, 6) or curve in (8, 16, 18):
            warnings.append(AS_SRGB)
    return blocks


def _open_avif(data: bytes, warnings: list[str]) -> tuple[Image.Image, bytes]:
    """The opened file. One with a broken EXIF block does not open, so that block is then hidden."""
    try:
        return Image.open(io.BytesIO(data), formats=["AVIF"]), data
    except _OPEN_ERRORS:
        data = re.sub(rb"(?s)(infe[\2\3].{7,9}?)Exif", rb"\1skip", data, count=1)
        image = Image.open(io.BytesIO(data), formats=["AVIF"])
    warnings.append("the EXIF block is damaged and was left out")
    return image, data


def _check_boxes(data: bytes, check: CheckSize) -> None:
    """Raise ValueError when a box is cut off: libheif leaves missing tiles grey."""
    for found in re.finditer(rb"ispe\0{4}(.{8})", data, re.DOTALL):  # both libraries have limits of their own
        check(*struct.unpack(">II", found[1]), part=True)
    at = boxes = 0
    while at + 16 <= len(data):
        if (boxes := boxes + 1) > _MOST_BOXES:
            raise ValueError("too many boxes")
        size, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        if size == 1:
            size = int.from_bytes(data[at + 8 : at + 16], "big")
        if kind in (b"ftyp", b"meta", b"moov", b"mdat") and at + size > len(data):
            raise ValueError(f"the box {kind!r} is cut off")
        if size < 8:  # 0: up to the end of the file
            break
        at += size


def _av1_bits(data: bytes) -> int:
    """10 or 12, from the AV1 configuration boxes (AV1-ISOBMFF 2.3)."""
    flags = [data[found.end() + 2] for found in re.finditer(rb"av1C", data[:-3])]
    return 12 if any(flag & 0x60 == 0x60 for flag in flags) else 10
