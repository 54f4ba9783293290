"""Separate the metadata segments of a JPEG file from its image, and insert them into another.

Decoders never see the metadata, so a broken segment cannot cost the photo; an MPO file becomes a plain
JPEG of its first image.
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import replace
from itertools import starmap

from .metadata import RawMetadata

MAX_BLOCK = 65_000  # bytes: a segment holds 64 kB including its header
MAX_PROFILE = 255 * MAX_BLOCK  # a profile is split into at most 255 segments
_SCAN, _PADDING, _END = 0xDA, 0xFF, 0xD9
_MAX_SEGMENTS = 10_000
_MAX_SCANS = 100  # optimisers of progressive files write about 20
_PADDED = re.compile(rb"\xff*")
# What ends a scan: neither an escaped 255 of its data nor a restart marker
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_APP1, _APP2, _APP13, _COMMENT = 0xE1, 0xE2, 0xED, 0xFE
_EXIF, _XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"
_ICC, _PHOTOSHOP = b"ICC_PROFILE\0", b"Photoshop 3.0\0"
_IPTC = 0x0404  # ID among Photoshop's image resources


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
        if marker in (_APP1, _APP2, _APP13, _COMMENT):
            metadata.append((marker, data[at + 4 : end]))
        else:
            image.append(data[at:end])
        at = end
    _check_scans(data, at)
    dpi = next(filter(None, map(_density, image)), None)
    return b"".join([*image, data[at:]]), replace(_parse_segments(metadata), dpi=dpi)


def _check_scans(data: bytes, at: int) -> None:
    """Raise ValueError for too many scans from `at` on: decoding each takes a pass over the image."""
    scans = segments = 0
    while (match := _MARKER.search(data, at)) and data[match.start() + 1] != _END:
        scans += data[match.start() + 1] == _SCAN
        segments += 1
        if scans > _MAX_SCANS or segments > _MAX_SEGMENTS:
            raise ValueError("too many scans")
        at = match.end() + max(int.from_bytes(data[match.end() : match.end() + 2], "big"), 2)


def insert_segments(image: bytes, metadata: RawMetadata) -> bytes:
    """Insert metadata into a JPEG file that starts with a JFIF segment and has no metadata yet.

    Each block is at most MAX_BLOCK bytes, the profile MAX_PROFILE.
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
    if metadata.iptc:
        body = _PHOTOSHOP + struct.pack(">4sHHI", b"8BIM", _IPTC, 0, len(metadata.iptc)) + metadata.iptc
        yield _APP13, body + bytes(len(body) % 2)
    count = -(-len(metadata.icc) // MAX_BLOCK)
    for index in range(count):
        part = metadata.icc[index * MAX_BLOCK :][:MAX_BLOCK]
        yield _APP2, _ICC + bytes([index + 1, count]) + part
    if metadata.comment:
        yield _COMMENT, metadata.comment


def _segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def _parse_segments(segments: list[tuple[int, bytes]]) -> RawMetadata:
    profile: dict[int, bytes] = {}
    exif, resources = bytearray(), bytearray()
    comment = xmp = b""
    for marker, body in segments:
        if marker == _COMMENT:
            comment = comment or body
        elif body.startswith(b"Exif\0"):  # a long block continues in the next segment
            exif += body[len(_EXIF) :]
        elif body.startswith(_XMP):
            xmp = xmp or body[len(_XMP) :]
        elif body.startswith(_ICC) and len(body) > 14:
            profile[body[12]] = body[14:]
        elif body.startswith(_PHOTOSHOP):
            resources += body[len(_PHOTOSHOP) :]
    return RawMetadata(
        icc=b"".join(profile[number] for number in sorted(profile)),
        exif=bytes(exif),
        xmp=xmp,
        iptc=_caption(bytes(resources)),
        comment=comment,
    )


def _density(segment: bytes) -> tuple[float, float] | None:
    """Return dots per inch (x, y) of a JFIF segment, None for any other."""
    if segment[4:9] != b"JFIF\0" or len(segment) < 16:
        return None
    unit, x, y = struct.unpack_from(">BHH", segment, 11)
    scale = {1: 1.0, 2: 2.54}.get(unit)
    return (x * scale, y * scale) if scale else None


def _caption(resources: bytes) -> bytes:
    """Return the IPTC record among Photoshop's image resources, or b""."""
    at = 0
    while resources[at : at + 4] == b"8BIM" and at + 12 <= len(resources):
        code, name = struct.unpack_from(">HB", resources, at + 4)
        at += 6 + (name + 2) // 2 * 2  # the name with its length byte is padded to an even length
        size = int.from_bytes(resources[at : at + 4], "big")
        if code == _IPTC:
            return resources[at + 4 : at + 4 + size]
        at += 4 + size + size % 2
    return b""
