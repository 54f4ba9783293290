"""Walk the boxes of files in the ISO base media format (ISO/IEC 14496-12), as in JPEG XL and JPEG 2000."""

import struct
from collections.abc import Iterator

_MAX_BOXES = 10_000


def boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield type and contents of each box, up to one that is truncated.

    Raises ValueError for too many boxes.
    """
    at, end = 0, len(data)
    for _ in range(_MAX_BOXES):
        if at + 8 > end:
            return
        size, kind = struct.unpack_from(">I4s", data, at)
        head = 8
        if size == 1 and at + 16 <= end:
            (size,), head = struct.unpack_from(">Q", data, at + 8), 16
        if size == 0:  # up to the end of the file
            size = end - at
        if not head <= size <= end - at:
            return
        yield kind, data[at + head : at + size]
        at += size
    raise ValueError("too many boxes")


def box(kind: bytes, contents: bytes) -> bytes:
    return struct.pack(">I4s", len(contents) + 8, kind) + contents
