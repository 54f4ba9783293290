"""Decode AVIF and HEIC, which share a container (ISO/IEC 23008-12).

The container defines the orientation; the EXIF tag does not count.
"""

import io
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import replace
from fractions import Fraction

import imagecodecs
import numpy as np
import pillow_heif
from PIL import Image

from .. import icc
from .boxes import boxes, spans
from .decoded import CheckSize, Raw
from .metadata import ASSUMED_SRGB, C2PA, FIRST_ONLY, Item, RawMetadata
from .tiff import to_16_bits, unpremultiply

_BRANDS = {
    "avif": {b"avif", b"avis"},
    "heif": {b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1"},
}
# By part of an auxiliary picture's type
_AUXILIARY = {
    b"gainmap": "gain map",
    b"auxid:2": "depth map",
    b"disparity": "depth map",
    b"depth": "depth map",
}
_MARKS = {
    re.escape(bytes.fromhex("d8fec3d61b0e483c92975828877ec481")): C2PA,  # the type of a uuid box
    rb"(?s)mpvd....ftyp": Item("motion photo"),
    rb"(?s)infe[\2\3].{3}(..|....)\0\0tmap": Item("gain map"),
}
_MAX_BOXES = 1000  # at the top level: an image has five, a fragmented sequence two per fragment


# What Pillow raises for a broken EXIF block when it opens an AVIF
_OPEN_ERRORS = (OSError, ValueError, TypeError, LookupError, ArithmeticError, RuntimeError)
pillow_heif.options.THUMBNAILS = pillow_heif.options.DEPTH_IMAGES = pillow_heif.options.AUX_IMAGES = False


def sniff(start: bytes) -> str | None:
    """Return "avif" or "heif" by the brands in the first bytes of a file, or None."""
    size = min(int.from_bytes(start[:4], "big"), len(start))
    brands = {start[at : at + 4] for at in range(8, size, 4)}
    return next((image_format for image_format, known in _BRANDS.items() if brands & known), None)


def read_avif(data: bytes, check: CheckSize, warnings: list[str]) -> Raw:
    """Decode an AVIF; its EXIF block has the orientation of the container, which is not applied.

    10 and 12 bits are scaled to uint16.
    Raises ValueError, or what Pillow and imagecodecs raise, for a damaged file.
    """
    _check_boxes(data, check)
    image, data = _open_avif(data, warnings)
    check(image.width, image.height, frames=getattr(image, "n_frames", 1))
    if getattr(image, "is_animated", False):
        # imagecodecs 2026.3 overruns its buffer when it decodes one of several images
        warnings.append("only the first picture of the file is restored, with 8 bits per channel")
        samples = np.asarray(image)
    else:
        samples = imagecodecs.avif_decode(data)  # Pillow reduces more than 8 bits to 8
    if samples.shape[:2] != (image.height, image.width):
        raise ValueError("Pillow and imagecodecs disagree on the size")
    samples = _clean_aperture(data, samples, warnings)
    if samples.dtype != np.uint8:
        samples = to_16_bits(samples, _av1_bits(data))
    return Raw(samples, _metadata(data, image.info, warnings, samples))


def read_heic(data: bytes, check: CheckSize, warnings: list[str], page: int | None = None) -> Raw:
    """Decode the picture `page` of a HEIC file, or the primary one; libheif applies the orientation.

    More than 8 bits are scaled to uint16. Raises ValueError, or what pillow_heif raises, for a damaged file.
    """
    _check_boxes(data, check)
    file = pillow_heif.open_heif(data, convert_hdr_to_8bit=False)
    image = file if page is None else file[page]
    check(*image.size, frames=len(file))
    if len(file) > 1 and page is None:
        warnings.append(FIRST_ONLY)
    samples, bits = np.asarray(image), image.info["bit_depth"]
    if samples.dtype != np.uint8:
        # pillow_heif shifts the samples, which leaves white below 65535
        samples = to_16_bits(samples >> (16 - bits), bits)
    if image.premultiplied_alpha:
        samples = np.dstack([unpremultiply(samples[..., :-1], samples[..., -1:]), samples[..., -1]])
    turned = re.search(rb"\0\0\0\x09i(rot|mir)", _properties(data))
    orientation = None if turned else 1  # libheif has turned it; the tag alone does not count
    blocks = _metadata(data, image.info, warnings, samples)
    return Raw(samples, blocks, apply_orientation=False, orientation=orientation, pages=len(file))


def _properties(data: bytes) -> bytes:
    return b"".join(contents for kind, contents in boxes(data) if kind == b"meta")


def _clean_aperture(data: bytes, samples: np.ndarray, warnings: list[str]) -> np.ndarray:
    """Crop to the part that the file declares to be shown (ISO/IEC 14496-12, 12.1.4); libavif does not."""
    properties = _properties(data)
    apertures = set(re.findall(rb"(?s)\0\0\0\x28clap(.{32})", properties))
    if not apertures:
        return samples
    height, width = samples.shape[:2]
    try:
        (aperture,) = apertures  # of the picture and its alpha; several are ambiguous
        across, down, right, below = (Fraction(*pair) for pair in struct.iter_unpack(">iI", aperture))
        left, top = (width - across) / 2 + right, (height - down) / 2 + below
        inside = 0 <= left < left + across <= width and 0 <= top < top + down <= height
        if not inside or any(value.denominator > 1 for value in (left, top, across, down)):
            raise ValueError("not a part of the picture")
    except (ValueError, ZeroDivisionError):
        warnings.append("the crop that the file declares is not valid; the whole picture is restored")
        return samples
    return samples[int(top) : int(top + down), int(left) : int(left + across)]


def _metadata(data: bytes, info: Mapping, warnings: list[str], samples: np.ndarray) -> RawMetadata:
    grey = np.atleast_3d(samples).shape[2] < 3
    metadata = RawMetadata.from_pillow(info)
    match = re.search(rb"(?s)colrnclx(..)(..)", data)
    if match and not metadata.icc:
        primaries, transfer = (int.from_bytes(code, "big") for code in match.groups())
        profile = icc.from_code_points(primaries, transfer, grey=grey)
        if profile is None:
            warnings.append(ASSUMED_SRGB)
        metadata = replace(metadata, icc=profile or b"")
    return replace(metadata, others=tuple(dict.fromkeys(_others(data))))


def _others(data: bytes) -> Iterator[Item]:
    """Yield what the file holds beside the picture: found by the names of boxes, whose tree is not parsed."""
    for urn in re.findall(rb"auxC\0{4}([\x20-\x7e]{1,99})\0", data)[:_MAX_BOXES]:
        if b"alpha" not in urn and not urn.endswith(b":auxid:1"):
            known = (name for mark, name in _AUXILIARY.items() if mark in urn.lower())
            yield Item(next(known, "auxiliary picture"))
    for mark, item in _MARKS.items():
        if re.search(mark, data):
            yield item


def _open_avif(data: bytes, warnings: list[str]) -> tuple[Image.Image, bytes]:
    """Open an AVIF with Pillow, hiding an EXIF block that makes this fail; return the bytes opened too."""
    try:
        return Image.open(io.BytesIO(data), formats=["AVIF"]), data
    except _OPEN_ERRORS:
        data = re.sub(rb"(?s)(infe[\2\3].{7,9}?)Exif", rb"\1skip", data, count=1)
        image = Image.open(io.BytesIO(data), formats=["AVIF"])
    warnings.append("the EXIF block is damaged and was left out")
    return image, data


def _check_boxes(data: bytes, check: CheckSize) -> None:
    """Check the sizes of all parts; raise ValueError if a box is truncated.

    libheif leaves missing tiles grey.
    """
    # The libraries' own limits are not ours
    for match in re.finditer(rb"ispe\0{4}(.{8})", data, re.DOTALL):
        check(*struct.unpack(">II", match[1]), part=True)
    for kind, _, end in spans(data, _MAX_BOXES):
        if kind in (b"ftyp", b"meta", b"moov", b"mdat") and end > len(data):
            raise ValueError(f"box {kind!r} is truncated")


def _av1_bits(data: bytes) -> int:
    """Return 10 or 12, from the AV1 configuration boxes (AV1-ISOBMFF 2.3)."""
    flags = [data[match.end() + 2] for match in re.finditer(rb"av1C", data[:-3])]
    return 12 if any(flag & 0x60 == 0x60 for flag in flags) else 10
