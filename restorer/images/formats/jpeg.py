"""JPEG segments: what stands beside the picture is taken out before a decoder sees it, and put in again.

So a broken block costs itself and not the photo, and of an MPO the first picture is left.
"""

import re
import struct
from collections.abc import Iterator
from itertools import starmap

from .metadata import RawMetadata

LARGEST_BLOCK = 65_000  # a segment holds 64 kB, its own header included
LARGEST_PROFILE = 255 * LARGEST_BLOCK  # which may be cut into so many
_SCAN, _PADDING, _END = 0xDA, 0xFF, 0xD9
_MOST_SEGMENTS = 10_000
_MOST_SCANS = 100  # of one picture; programs that pack it as tightly as they can make about 20
_PADDED = re.compile(rb"\xff*")
# What ends a scan: neither a byte 255 of the scan itself nor a restart in it
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_APP1, _APP2, _APP13, _COMMENT = 0xE1, 0xE2, 0xED, 0xFE
_EXIF, _XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"
_ICC, _PHOTOSHOP = b"ICC_PROFILE\0", b"Photoshop 3.0\0"
_IPTC = 0x0404  # among Photoshop's image resources


def split(data: bytes) -> tuple[bytes, RawMetadata]:
    """The file without the segments that describe it, and what they held.

    Raises ValueError for more segments, or scans, than a picture has.
    """
    kept, beside = [data[:2]], []
    at = 2
    while data[at : at + 1] == b"\xff" and at + 4 <= len(data) and (marker := data[at + 1]) != _SCAN:
        if marker == _PADDING:
            at = _PADDED.match(data, at).end() - 1  # type: ignore[union-attr]
            continue
        if len(kept) + len(beside) > _MOST_SEGMENTS:
            raise ValueError("too many segments")
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if marker in (_APP1, _APP2, _APP13, _COMMENT):
            beside.append((marker, data[at + 4 : end]))
        else:
            kept.append(data[at:end])
        at = end
    _check_scans(data, at)
    blocks = _blocks(beside)
    blocks.dpi = next(filter(None, map(_density, kept)), None)
    return b"".join([*kept, data[at:]]), blocks


def _check_scans(data: bytes, at: int) -> None:
    """Raise ValueError where more scans than a picture has begin at `at`: each goes over all of it."""
    scans = segments = 0
    while (found := _MARKER.search(data, at)) and data[found.start() + 1] != _END:
        scans += data[found.start() + 1] == _SCAN
        segments += 1
        if scans > _MOST_SCANS or segments > _MOST_SEGMENTS:
            raise ValueError("too many scans")
        at = found.end() + max(int.from_bytes(data[found.end() : found.end() + 2], "big"), 2)


def insert_segments(picture: bytes, blocks: RawMetadata) -> bytes:
    """A JPEG file with `blocks` beside the picture, which begins with JFIF's segment and has none of them."""
    at = 4 + int.from_bytes(picture[4:6], "big")
    start = picture[:at]
    if blocks.dpi:
        x, y = (min(round(dpi), 0xFFFF) for dpi in blocks.dpi)
        start = picture[:13] + struct.pack(">BHH", 1, x, y) + picture[18:at]
    return b"".join([start, *starmap(_segment, _bodies(blocks)), picture[at:]])


def _bodies(blocks: RawMetadata) -> Iterator[tuple[int, bytes]]:
    if blocks.exif:
        yield _APP1, _EXIF + blocks.exif
    if blocks.xmp:
        yield _APP1, _XMP + blocks.xmp
    if blocks.iptc:
        body = _PHOTOSHOP + struct.pack(">4sHHI", b"8BIM", _IPTC, 0, len(blocks.iptc)) + blocks.iptc
        yield _APP13, body + bytes(len(body) % 2)
    count = -(-len(blocks.icc) // LARGEST_BLOCK)
    for index in range(count):
        part = blocks.icc[index * LARGEST_BLOCK :][:LARGEST_BLOCK]
        yield _APP2, _ICC + bytes([index + 1, count]) + part
    if blocks.comment:
        yield _COMMENT, blocks.comment


def _segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def _blocks(segments: list[tuple[int, bytes]]) -> RawMetadata:
    blocks, profile, exif, resources = RawMetadata(), {}, [], []
    for marker, body in segments:
        if marker == _COMMENT:
            blocks.comment = blocks.comment or body
        elif body.startswith(b"Exif\0"):  # a block too long for one segment goes on in the next
            exif.append(body[len(_EXIF) :])
        elif body.startswith(_XMP):
            blocks.xmp = blocks.xmp or body[len(_XMP) :]
        elif body.startswith(_ICC) and len(body) > 14:
            profile[body[12]] = body[14:]
        elif body.startswith(_PHOTOSHOP):
            resources.append(body[len(_PHOTOSHOP) :])
    blocks.icc = b"".join(profile[number] for number in sorted(profile))
    blocks.exif, blocks.iptc = b"".join(exif), _caption(b"".join(resources))
    return blocks


def _density(segment: bytes) -> tuple[float, float] | None:
    """Dots per inch from a JFIF segment."""
    if segment[4:9] != b"JFIF\0" or len(segment) < 16:
        return None
    unit, x, y = struct.unpack_from(">BHH", segment, 11)
    scale = {1: 1.0, 2: 2.54}.get(unit)
    return (x * scale, y * scale) if scale else None


def _caption(resources: bytes) -> bytes:
    at = 0
    while resources[at : at + 4] == b"8BIM" and at + 12 <= len(resources):
        code, name = struct.unpack_from(">HB", resources, at + 4)
        at += 6 + (name + 2) // 2 * 2  # the name's length and the name, made even
        size = int.from_bytes(resources[at : at + 4], "big")
        if code == _IPTC:
            return resources[at + 4 : at + 4 + size]
        at += 4 + size + size % 2
    return b""
