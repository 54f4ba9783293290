"""Separate the metadata segments of a JPEG file from its image, and insert them into another.

Decoders never see the metadata, so a broken segment cannot cost the photo; an MPO file becomes a plain
JPEG of its first image.
"""

import hashlib
import itertools
import re
import struct
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import starmap
from typing import NamedTuple

import imagecodecs
import numpy as np

from ...errors import UnsupportedImage
from . import exif, photoshop
from .exif import Entry
from .metadata import C2PA, THUMBNAIL, Item, RawMetadata
from .tiff import to_16_bits

_MAX_BODY = 65_533  # bytes: a segment's length is a 16-bit number that includes itself
_MAX_PART = 65_000  # of a profile or of Photoshop's resources
MAX_PROFILE = 255 * _MAX_PART  # a profile is split into at most 255 segments
_TRUNCATED, _ENDINGS = 0, 8
_SCAN, _PADDING, _END, _TABLES = 0xDA, 0xFF, 0xD9, 0xDB
_STANDARD_SUM = 3688  # of the luma table of ITU-T T.81, K.1, which has quality 50
_MAX_SEGMENTS = 10_000
_MAX_SCANS = 100  # optimisers of progressive files write about 20
_PADDED = re.compile(rb"\xff*")
# What ends a scan: neither an escaped 255 of its data nor a restart marker
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_APP0, _APP1, _APP2, _APP11, _APP13, _APP14, _APP15, _COMMENT = 0xE0, 0xE1, 0xE2, 0xEB, 0xED, 0xEE, 0xEF, 0xFE
_EXIF, _XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"
_ICC, _PHOTOSHOP = b"ICC_PROFILE\0", b"Photoshop 3.0\0"
_PICTURES, _ENTRIES = b"MPF\0", 0xB002  # CIPA DC-007
_PER_INCH = {1: 1.0, 2: 2.54}  # by the unit of a JFIF segment: inch, centimetre
# What other segments that start so hold
_OTHERS = {
    (_APP0, b"JFXX\0"): THUMBNAIL,
    (_APP1, b"http://ns.adobe.com/xmp/extension/\0"): Item("extended XMP"),
    (_APP1, b"FLIR\0"): Item("thermal image (FLIR)"),
    (_APP2, b"urn:iso:std:iso:ts:21496:-1\0"): Item("gain map"),
    (_APP11, b"JP"): C2PA,
}
MAX_SIZES = {"exif": _MAX_BODY - len(_EXIF), "xmp": _MAX_BODY - len(_XMP), "comment": _MAX_BODY}
FURTHER_PICTURES, _PREVIEWS = Item("further pictures"), Item("preview")


def split_metadata(data: bytes) -> tuple[bytes, RawMetadata]:
    """Return the file without its metadata segments, and their contents.

    Raises ValueError for too many segments or scans.
    """
    image, metadata = [data[:2]], []
    at = 2
    while data[at : at + 1] == b"\xff" and at + 4 <= len(data) and (marker := data[at + 1]) != _SCAN:
        if marker == _PADDING:
            at = _PADDED.match(data, at).end() - 1  # type: ignore[union-attr]
            continue
        if len(image) + len(metadata) > _MAX_SEGMENTS:
            raise ValueError("too many segments")
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if _APP0 <= marker <= _APP15 or marker == _COMMENT:
            metadata.append((marker, data[at + 4 : end]))
        if marker in (_APP0, _APP14) or not (_APP0 <= marker <= _APP15 or marker == _COMMENT):
            image.append(data[at:end])  # JFIF and Adobe's segment tell how colours are stored
        at = end
    end = _end_of_scans(data, at)
    blocks = _parse_segments(metadata)
    dpi, aspect = _density(image)
    others = dict.fromkeys((*blocks.others, *aspect, *_after_end(data[end:], blocks.others)))
    return b"".join([*image, data[at:]]), replace(blocks, dpi=dpi, others=tuple(others))


class Frame(NamedTuple):
    """The header of a JPEG image."""

    kind: int  # marker SOF0 to SOF15
    bits: int
    width: int
    height: int
    components: int

    @property
    def lossless(self) -> bool:
        return self.kind == 0xC3

    @property
    def hierarchical(self) -> bool:
        return self.kind in (0xC5, 0xC6, 0xC7, 0xCD, 0xCE, 0xCF)


def frame(image: bytes) -> Frame:
    """Return the first frame header of a file without metadata. Raises ValueError if there is none."""
    for marker, body, _ in _segments(image):
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and len(body) >= 6:
            bits, height, width, components = struct.unpack_from(">BHHB", body)
            return Frame(marker, bits, width, height, components)
    raise ValueError("no frame header")


def has_end(image: bytes) -> bool:
    return all(marker != _TRUNCATED for marker, _, _ in _segments(image))


def quality(data: bytes) -> int | None:
    """Return the quality, 1 to 100, of the IJG library whose luma table is the nearest to the file's.

    None for a file without such a table, which is not a JPEG, and for all that is invalid.
    """
    if data[:2] != b"\xff\xd8":
        return None
    for marker, body, _ in itertools.islice(_segments(data), _MAX_SEGMENTS):
        if marker == _SCAN:
            return None
        if marker == _TABLES and len(body) > 64 and body[0] == 0:  # 8 bits, number 0
            scale = 100 * sum(body[1:65]) / _STANDARD_SUM
            return min(100, max(1, round(5000 / scale if scale > 100 else (200 - scale) / 2)))
    return None


def decode_deep(image: bytes, header: Frame) -> np.ndarray:
    """Decode an image of more than 8 bits, or a lossless one: uint8, or uint16 over its full range."""
    if header.components not in (1, 3) or header.bits < 8:
        raise UnsupportedImage(
            f"{header.bits}-bit JPEG with {header.components} channels is not supported; save it as TIFF"
        )
    samples = imagecodecs.jpeg_decode(image)
    if samples.shape[:2] != (header.height, header.width):
        raise ValueError("the header has another size")
    return to_16_bits(samples, header.bits) if samples.itemsize > 1 and header.bits < 16 else samples


def with_ends(image: bytes) -> Iterator[bytes]:
    """Yield an image that lacks its end marker with different endings of pseudo-random bits.

    Raises ValueError if a scan is missing.
    """
    missing: dict[int, set[int]] = {}
    for marker, body, _ in _segments(image):
        if 0xC0 <= marker <= 0xC2:
            missing = {number: set(range(64)) for number in body[6::3]}
        elif marker == _SCAN and len(body) >= 6:
            first, last, precision = body[-3:]
            for number in body[1:-3:2] if precision & 15 == 0 else b"":
                missing.get(number, set()).difference_update(range(first, last + 1))
    if not missing or any(missing.values()):
        raise ValueError("a scan is missing")
    for number in range(_ENDINGS):
        tail = hashlib.sha256(bytes([number])).digest().replace(b"\xff", b"\xfe")
        tail = bytes([tail[0] & 0x3F | number << 6 & 0xC0]) + tail[1:]  # the first two bits take every value
        yield image.rstrip(b"\xff") + tail.replace(b"\xff", b"\xfe") + bytes([0xFF, _END])


def _segments(data: bytes, at: int = 2) -> Iterator[tuple[int, bytes, int]]:
    """Yield marker, body and end of the segments from `at`, last _END or, without one, _TRUNCATED."""
    while match := _MARKER.search(data, at):
        marker, at = data[match.end() - 1], match.end()
        if marker == _END:
            yield _END, b"", at
            return
        start = at + 2
        at += max(int.from_bytes(data[at:start], "big"), 2)
        yield marker, data[start:at], at
    yield _TRUNCATED, b"", len(data)


def _end_of_scans(data: bytes, at: int) -> int:
    """Return where the image whose scans start at `at` ends.

    Raises ValueError for too many scans: decoding each takes a pass over the image.
    """
    *segments, (last, _, end) = itertools.islice(_segments(data, at), _MAX_SEGMENTS)
    scans = sum(marker == _SCAN for marker, _, _ in segments)
    if last not in (_END, _TRUNCATED) or scans > _MAX_SCANS:
        raise ValueError("too many scans")
    return end


def _after_end(rest: bytes, others: tuple[Item, ...]) -> Iterator[Item]:
    """Yield what follows the image, which cameras use for a movie and for pictures."""
    rest = rest.lstrip(b"\0\xff\r\n ") if not rest.startswith(b"\xff\xd8") else rest
    if b"ftyp" in rest or b"MotionPhoto_Data" in rest:
        yield Item("motion photo")
    elif rest.startswith((b"\xff\xd8", b"\xd8\xff")):
        if not {FURTHER_PICTURES, _PREVIEWS}.intersection(others):
            yield FURTHER_PICTURES
    elif rest:
        yield Item("data after the end of the picture")


def insert_segments(image: bytes, metadata: RawMetadata) -> bytes:
    """Insert metadata into a JPEG file that starts with a JFIF segment and has no metadata yet.

    The blocks have at most MAX_SIZES bytes, the profile MAX_PROFILE.
    """
    at = 4 + int.from_bytes(image[4:6], "big")
    start = image[:at]
    if metadata.dpi:
        x, y = (min(round(dpi), 0xFFFF) for dpi in metadata.dpi)
        start = image[:13] + struct.pack(">BHH", 1, x, y) + image[18:at]
    return b"".join([start, *starmap(_segment, _segment_bodies(metadata)), image[at:]])


def _segment_bodies(metadata: RawMetadata) -> Iterator[tuple[int, bytes]]:
    if metadata.exif:
        yield _APP1, _EXIF + metadata.exif
    if metadata.xmp:
        yield _APP1, _XMP + metadata.xmp
    for part in _parts(photoshop.join(metadata.iptc, metadata.resources)):
        yield _APP13, _PHOTOSHOP + part
    profile = _parts(metadata.icc)
    for number, part in enumerate(profile, 1):
        yield _APP2, _ICC + bytes([number, len(profile)]) + part
    if metadata.comment:
        yield _COMMENT, metadata.comment


def _parts(block: bytes) -> list[bytes]:
    return [block[at : at + _MAX_PART] for at in range(0, len(block), _MAX_PART)]


def _segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def _parse_segments(segments: list[tuple[int, bytes]]) -> RawMetadata:
    profile: dict[int, bytes] = {}
    exif_block, resources = bytearray(), bytearray()
    comments, others, xmp = [], [], b""
    for marker, body in segments:
        if marker == _COMMENT:
            comments.append(body)
        elif marker == _APP1 and body.startswith(b"Exif\0"):  # a long block continues in the next segment
            exif_block += body[len(_EXIF) :]
        elif marker == _APP1 and body.startswith(_XMP):
            xmp = xmp or body[len(_XMP) :]
        elif marker == _APP2 and body.startswith(_ICC) and len(body) > 14:
            profile[body[12]] = body[14:]
        elif marker == _APP13 and body.startswith(_PHOTOSHOP):
            resources += body[len(_PHOTOSHOP) :]
        else:
            others += _other(marker, body)
    iptc, remaining = photoshop.split(bytes(resources))
    return RawMetadata(
        icc=b"".join(profile[number] for number in sorted(profile)),
        exif=bytes(exif_block),
        xmp=xmp,
        iptc=iptc,
        resources=remaining,
        comment=b"\n".join(dict.fromkeys(comments)),
        others=tuple(others),
    )


def _other(marker: int, body: bytes) -> Iterator[Item]:
    """Yield what a segment without a field in RawMetadata holds."""
    if marker == _APP2 and body.startswith(_PICTURES):
        yield from _further_pictures(body[len(_PICTURES) :])
        return
    known = (item for (number, start), item in _OTHERS.items() if marker == number and body.startswith(start))
    if item := next(known, None):
        yield item
    elif marker not in (_APP0, _APP14):
        yield Item("JPEG segments", f"APP{marker - _APP0}")


def _further_pictures(index: bytes) -> Iterator[Item]:
    """Yield what the pictures after the first are by the index of a multi-picture file."""
    try:
        entries = exif.parse(index).tags.get(_ENTRIES)
    except ValueError:
        return
    if isinstance(entries, Entry):
        purposes = entries.body[1 if index.startswith(b"MM") else 2 :: 16]  # bits 16 to 23 of the attributes
        yield from (_PREVIEWS if purpose == 1 else FURTHER_PICTURES for purpose in purposes[1:])


def _density(segments: Iterable[bytes]) -> tuple[tuple[float, float] | None, tuple[Item, ...]]:
    """Return dots per inch (x, y) of the JFIF segment, and the shape of its pixels if they are not square."""
    jfif = (part for part in segments if part[4:9] == b"JFIF\0" and len(part) >= 16)
    unit, x, y = struct.unpack_from(">BHH", next(jfif, bytes(16)), 11)
    if unit in _PER_INCH:
        return (x * _PER_INCH[unit], y * _PER_INCH[unit]), ()
    return None, (Item("pixel aspect ratio", f"{x}:{y}"),) if unit == 0 and x and y and x != y else ()
