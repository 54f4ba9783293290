"""Photoshop's image resources ("8BIM") and the IPTC records (IIM 4.2) that are one of them."""

import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from ..placement import Placement

IPTC = 0x0404
_COPYRIGHT, _URL, _CLIPPING_PATH = 1034, 1035, 2999
_PATHS = range(2000, 2999)
# Copies of what stands elsewhere in the file, or is computed from it: resolution, thumbnails, EXIF, XMP,
# the digest of the IPTC record, grid and guides in pixels, version and size of the preview, slices in pixels
DERIVED = frozenset([1005, 1032, 1033, 1036, 1050, 1057, 1058, 1059, 1060, 1061])
_NAMES = {_COPYRIGHT: "copyright flag", _URL: "URL", _CLIPPING_PATH: "clipping path"}
_KNOT_RECORDS = (1, 2, 4, 5)  # of a path: three points each, y before x, as 8.24 fixed-point fractions
_ONE = 1 << 24
# Content location, city, sublocation, province, country
_PLACES = frozenset([(2, 26), (2, 27), (2, 90), (2, 92), (2, 95), (2, 100), (2, 101)])
_DATASETS = {5: "title", 25: "keywords", 55: "date", 80: "author", 105: "headline", 110: "credit"}
_DATASETS |= {115: "source", 116: "copyright", 120: "caption", 90: "city", 101: "country"}


class Resource(NamedTuple):
    code: int
    name: bytes  # a Pascal string, padded to an even length
    body: bytes


def resources(data: bytes) -> Iterator[Resource]:
    """Yield image resources up to the first broken one."""
    at = 0
    while data[at : at + 4] == b"8BIM" and at + 12 <= len(data):
        code, length = struct.unpack_from(">HB", data, at + 4)
        start = at + 6 + (length + 2) // 2 * 2  # the name with its length byte is padded to an even length
        size = int.from_bytes(data[start : start + 4], "big")
        yield Resource(code, data[at + 6 : start], data[start + 4 : start + 4 + size])
        at = start + 4 + size + size % 2


def serialize(parts: Iterable[Resource]) -> bytes:
    return b"".join(
        struct.pack(">4sH", b"8BIM", code) + name + struct.pack(">I", len(body)) + body + bytes(len(body) % 2)
        for code, name, body in parts
    )


def split(data: bytes) -> tuple[bytes, bytes]:
    """Return the IPTC record and the other resources, without copies of what the file has elsewhere."""
    parts = list(resources(data))
    iptc = next((part.body for part in parts if part.code == IPTC), b"")
    return iptc, serialize(part for part in parts if part.code != IPTC and part.code not in DERIVED)


def join(iptc: bytes, other: bytes) -> bytes:
    """Return all resources: the reverse of split()."""
    return (serialize([Resource(IPTC, b"\0\0", iptc)]) if iptc else b"") + other


def resource_names(data: bytes) -> Iterator[str]:
    for code, _, _ in resources(data):
        yield _NAMES.get(code) or ("path" if code in _PATHS else f"resource {code}")


def transform(data: bytes, placement: Placement) -> bytes:
    """Turn the paths, which are in fractions of the sides, with the picture."""
    if placement.orientation == 1:
        return data
    parts = (
        part._replace(body=_turn_path(part.body, placement)) if part.code in _PATHS else part
        for part in resources(data)
    )
    return serialize(parts)


def _turn_path(body: bytes, placement: Placement) -> bytes:
    out = bytearray(body)
    for at in range(0, len(body) - 25, 26):
        if int.from_bytes(body[at : at + 2], "big") not in _KNOT_RECORDS:
            continue
        for point in range(at + 2, at + 26, 8):
            y, x = struct.unpack_from(">ii", body, point)
            left, top, _, _ = placement.fractions.box((x / _ONE, y / _ONE, 0, 0))
            struct.pack_into(">ii", out, point, *(_fixed_point(value) for value in (top, left)))
    return bytes(out)


def _fixed_point(value: float) -> int:
    return max(-(1 << 31), min(round(value * _ONE), (1 << 31) - 1))


def remove_places(iptc: bytes) -> bytes:
    return b"".join(record for key, record in _datasets(iptc) if key not in _PLACES)


def keep_rights(data: bytes) -> bytes:
    """Return the resources that cannot contain a place: rights and paths."""
    known = (_COPYRIGHT, _URL, _CLIPPING_PATH, *_PATHS)
    return serialize(part for part in resources(data) if part.code in known)


def dataset_names(iptc: bytes) -> Iterator[str]:
    for (record, number), _ in _datasets(iptc):
        if record == 2 and number:  # number 0 is the version
            yield _DATASETS.get(number, f"dataset {number}")


def _datasets(iptc: bytes) -> Iterator[tuple[tuple[int, int], bytes]]:
    """Yield ((record, dataset), bytes) up to the first broken one."""
    at = 0
    while iptc[at : at + 1] == b"\x1c" and at + 5 <= len(iptc):
        size, start = int.from_bytes(iptc[at + 3 : at + 5], "big"), at + 5
        if size & 0x8000:  # the length of the length
            start += size & 0x7FFF
            size = int.from_bytes(iptc[at + 5 : start], "big")
        if start + size > len(iptc):
            return
        yield (iptc[at + 1], iptc[at + 2]), iptc[at : start + size]
        at = start + size
