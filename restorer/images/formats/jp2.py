"""Read JPEG 2000: the boxes of JP2 and JPH, and bare codestreams (ISO/IEC 15444-1)."""

import math
import struct
from dataclasses import replace
from typing import NamedTuple

import imagecodecs
import numpy as np

from ...errors import UnsupportedImage
from .boxes import box, boxes
from .decoded import CheckSize, Raw
from .metadata import FIRST_ONLY, Item, RawMetadata
from .tiff import to_16_bits, unpremultiply

CONTAINER, CODESTREAM = b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51"
_SRGB, _GREY, _SYCC = 16, 17, 18  # enumerated colour spaces
_READABLE = (_SRGB, _GREY, _SYCC)
_OPACITY, _PREMULTIPLIED = 1, 2  # kinds of channel
_INCH = 0.0254  # metres
# Contents of uuid boxes, by identifier: a field of RawMetadata
_FIELDS = {
    b"JpgTiffExif->JP2": "exif",
    bytes.fromhex("be7acfcb97a942e89c71999491e3afac"): "xmp",
    bytes.fromhex("33c7a4d2b81d4723a0baf1a3e097ad38"): "iptc",
}
_OTHERS = {bytes.fromhex("b14bf8bd083d4b43a5ae8cd7d5a6ce03"): Item("GeoTIFF", "in JPEG 2000")}
_STORAGE = (b"jP  ", b"ftyp", b"jp2h", b"jp2c", b"free")


class _Size(NamedTuple):
    """The header of a codestream: its size, and depth, signedness and subsampling of each component."""

    width: int
    height: int
    depths: tuple[int, ...]
    signed: bool
    steps: tuple[tuple[int, int], ...]


def read(data: bytes, check: CheckSize, warnings: list[str]) -> Raw:
    """Decode the first picture of a file; 9 to 15 bits are scaled to uint16.

    Raises ValueError or RuntimeError for a damaged file and UnsupportedImage for other colours and depths.
    """
    if data.startswith(CODESTREAM):
        header, codestream, blocks = [], data, RawMetadata()
    else:
        top = [*boxes(data)]
        codestreams = [contents for kind, contents in top if kind == b"jp2c"]
        header = [*boxes(next((contents for kind, contents in top if kind == b"jp2h"), b""))]
        if not header or not codestreams:
            raise ValueError("no header or no codestream")
        if len(codestreams) > 1:
            warnings.append(FIRST_ONLY)
        codestream, blocks = codestreams[0], _metadata(top, header)
    size = _size(codestream)
    check(size.width, size.height)
    space, blocks = _colour_space(header, blocks, len(size.depths))
    _check_supported(size, space)
    # Without the profile, through which imagecodecs would convert to sRGB
    described = [one for one in header if one[0] != b"colr"]
    described.insert(1, (b"colr", struct.pack(">BBBI", 1, 0, 0, space)))
    image = b"".join([CONTAINER, box(b"ftyp", b"jp2 \0\0\0\0jp2 ")])
    image += box(b"jp2h", b"".join(box(*one) for one in described)) + box(b"jp2c", codestream)
    samples = np.atleast_3d(imagecodecs.jpeg2k_decode(image if header else codestream))
    if samples.shape[:2] != (size.height, size.width) or samples.shape[2] > 4:
        raise ValueError("the samples do not match the header")
    bits = samples.itemsize * 8 if any(kind == b"pclr" for kind, _ in header) else size.depths[0]
    return Raw(_straight(_scaled(samples, bits), header), blocks)


def _size(codestream: bytes) -> _Size:
    right, bottom, left, top = struct.unpack_from(">4I", codestream, 8)
    (count,) = struct.unpack_from(">H", codestream, 40)
    rows = [codestream[at : at + 3] for at in range(42, 42 + 3 * min(count, 16), 3)]
    if count < 1 or len(rows[-1]) < 3:
        raise ValueError("no components")
    depths = tuple((row[0] & 0x7F) + 1 for row in rows)
    signed = any(row[0] & 0x80 for row in rows)
    return _Size(right - left, bottom - top, depths, signed, tuple((row[1], row[2]) for row in rows))


def _colour_space(
    header: list[tuple[bytes, bytes]], blocks: RawMetadata, components: int
) -> tuple[int, RawMetadata]:
    """Return the enumerated colour space, and the blocks with the profile if the file has one instead."""
    space = _GREY if components < 3 and all(kind != b"pclr" for kind, _ in header) else _SRGB
    colour = next((contents for kind, contents in header if kind == b"colr"), b"")
    if colour[:1] in (b"\2", b"\3"):
        if colour[19:23] == b"CMYK":
            raise UnsupportedImage("CMYK in JPEG 2000 is not supported; save the photo as RGB or as TIFF")
        return space, replace(blocks, icc=colour[3:])
    return (int.from_bytes(colour[3:7], "big") if colour[:1] == b"\1" else space), blocks


def _check_supported(size: _Size, space: int) -> None:
    components = len(size.depths)
    if space not in _READABLE or components > 4:
        raise UnsupportedImage(
            f"JPEG 2000 with {components} channels in colour space {space} is not supported; save it as TIFF"
        )
    if len(set(size.depths)) > 1 or size.depths[0] > 16 or size.signed:
        raise UnsupportedImage(
            f"JPEG 2000 with {'signed' if size.signed else max(size.depths)}-bit channels is not supported; "
            "save it with 8 or 16 bits per channel"
        )
    if any(step != (1, 1) for step in (size.steps if components != 3 else size.steps[:1])):
        raise UnsupportedImage("JPEG 2000 with subsampled channels is not supported; save it as TIFF")


def _scaled(samples: np.ndarray, bits: int) -> np.ndarray:
    """Scale samples of `bits` bits to the full range of their type."""
    if samples.dtype == np.uint16:
        return to_16_bits(samples, bits) if bits < 16 else samples
    top = 2**bits - 1
    return samples if bits == 8 else ((samples.astype(np.uint16) * 255 + top // 2) // top).astype(np.uint8)


def _straight(samples: np.ndarray, header: list[tuple[bytes, bytes]]) -> np.ndarray:
    """Divide premultiplied colour by its alpha; drop a last channel that is declared as something else."""
    definition = next((contents for kind, contents in header if kind == b"cdef"), b"")
    kinds = {number: kind for number, kind, _ in struct.iter_unpack(">3H", definition[2:])}
    last = samples.shape[2] - 1
    if last in (0, 2) or kinds.get(last, _OPACITY) == _OPACITY:
        return samples
    colour, alpha = samples[..., :-1], samples[..., -1:]
    return np.dstack([unpremultiply(colour, alpha), alpha]) if kinds[last] == _PREMULTIPLIED else colour


def _metadata(top: list[tuple[bytes, bytes]], header: list[tuple[bytes, bytes]]) -> RawMetadata:
    fields, others = dict[str, bytes](), list[Item]()
    for kind, contents in top:
        if kind == b"uuid" and (name := _FIELDS.get(contents[:16])):
            fields.setdefault(name, contents[16:])
        elif kind == b"uuid" and contents[:16] in _OTHERS:
            others.append(_OTHERS[contents[:16]])
        elif kind not in _STORAGE:
            others.append(Item("JPEG 2000 boxes", kind.decode("latin-1").strip()))
    blocks = RawMetadata(**fields, others=tuple(dict.fromkeys(others)))  # type: ignore[arg-type]
    resolution = next((contents for kind, contents in header if kind == b"res "), b"")
    return replace(blocks, dpi=next(filter(None, (_dpi(*one) for one in boxes(resolution))), None))


def _dpi(kind: bytes, contents: bytes) -> tuple[float, float] | None:
    """Return dots per inch (x, y) of a box that has the resolution of capture or display, per metre."""
    if kind not in (b"resc", b"resd") or len(contents) != 10:
        return None
    above_y, below_y, above_x, below_x, power_y, power_x = struct.unpack(">4H2b", contents)
    if not below_x or not below_y:
        return None
    return above_x / below_x * math.pow(10, power_x) * _INCH, above_y / below_y * math.pow(
        10, power_y
    ) * _INCH
