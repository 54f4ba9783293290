"""Walk the boxes of files in the ISO base media format (ISO/IEC 14496-12), as in JPEG XL and JPEG 2000."""

import struct
from collections.abc import Iterator

_MAX_BOXES = 10_000


def spans(data: bytes, limit: int = _MAX_BOXES) -> Iterator[tuple[bytes, int, int]]:
    """Yield type, start and end of the contents of each box; that of a truncated one is beyond the data.

    Raises ValueError for more than `limit` boxes.
    """
    at = 0
    for _ in range(limit):
        if at + 8 > len(data):
            return
        size, kind = struct.unpack_from(">I4s", data, at)
        head = 8
        if size == 1 and at + 16 <= len(data):
            (size,), head = struct.unpack_from(">Q", data, at + 8), 16
        end = at + size if size else len(data)
        if end < at + head:
            return
        yield kind, at + head, end
        at = end
    raise ValueError("too many boxes")


def boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield type and contents of each box, up to one that is truncated; raise ValueError for too many."""
    return ((kind, data[start:end]) for kind, start, end in spans(data) if end <= len(data))


def box(kind: bytes, contents: bytes) -> bytes:
    return struct.pack(">I4s", len(contents) + 8, kind) + contents
