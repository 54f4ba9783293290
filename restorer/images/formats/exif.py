"""Read and write the directories of TIFF 6.0, which EXIF blocks use too; values keep their type and bytes.

Written by hand because Pillow changes the types of values when it writes them (a MakerNote gets another
type) and silently returns an incomplete block if one entry is broken.
"""

import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, Union

EXIF, GPS, INTEROP = 0x8769, 0x8825, 0xA005  # entries that point to a nested directory
_COMPRESSION, _JPEG_OFFSET, _JPEG_LENGTH = 259, 513, 514
_SUBDIRECTORIES, MAX_PAGES, _MAX_ROWS = 330, 1000, 200_000
_NESTED = {0: (EXIF, GPS), EXIF: (INTEROP,)}
ASCII, SHORT, LONG, RATIONAL, UNDEFINED, DOUBLE, LONG8 = 2, 3, 4, 5, 7, 12, 16
# struct codes of one value, by type: TIFF 6.0 section 2, then BigTIFF's (13 and 18 are offsets)
_CODES = {1: "B", 2: "c", 3: "H", 4: "I", 5: "II", 6: "b", 7: "c", 8: "h", 9: "i", 10: "ii", 11: "f", 12: "d"}
_CODES |= {13: "I", 16: "Q", 17: "q", 18: "Q"}
_SIZES = {kind: struct.calcsize("=" + code) for kind, code in _CODES.items()}


@dataclass(frozen=True)
class Entry:
    """One or more values of one TIFF type (`kind`), as bytes in the block's byte order."""

    kind: int
    body: bytes


Order = Literal["<", ">"]
Directory = Mapping[int, Union[Entry, "Directory"]]


class Block(NamedTuple):
    """The first directory of a block.

    order     byte order as in struct, "<" or ">"
    tags      entries and nested directories by tag
    broken    tags that were dropped; 0 stands for a truncated list of entries
    has_next  whether another directory follows
    """

    order: Order
    tags: dict[int, Entry | Directory]
    broken: frozenset[int]
    has_next: bool


def empty() -> Block:
    return Block("<", {}, frozenset(), False)


def parse(data: bytes) -> Block:
    """Parse the first directory of a block and its nested EXIF, GPS and interoperability directories.

    Entries that are broken or reach beyond the block are dropped. A directory after the first (the
    thumbnail's, in EXIF) is not read. Raises ValueError if there is no TIFF header.
    """
    order: Order = ">" if data.startswith(b"MM") else "<"
    known = data.startswith((b"II", b"MM")) and len(data) >= 8
    version = struct.unpack_from(order + "H", data, 2)[0] if known else 0
    if version not in (42, 43):
        raise ValueError("no TIFF header")
    reader = _Reader(data, order, big=version == 43)
    tags = reader.directory(reader.offset(8 if reader.big else 4), 0)
    return Block(order, tags, frozenset(reader.broken), reader.next_offset != 0)


def pages(data: bytes, *, nested: bool = True) -> Iterator[tuple[int, Block]]:
    """Yield the offset and the tags of every directory of a TIFF file that has pixels of its own.

    The first one comes first, then its subdirectories if `nested`, then the directories that follow; at most
    MAX_PAGES.
    """
    order: Order = ">" if data.startswith(b"MM") else "<"
    reader = _Reader(data, order, big=data[2:4] in (b"+\0", b"\0+"))
    pending, seen = [reader.offset(8 if reader.big else 4)], set[int]()
    while pending and reader.rows < _MAX_ROWS and len(seen) < MAX_PAGES:
        at = pending.pop(0)
        if at in seen or not at:
            continue
        seen.add(at)
        reader.broken = set()
        tags = reader.directory(at, 0)
        yield at, Block(order, tags, frozenset(reader.broken), reader.next_offset not in {0, *seen})
        if nested:
            below = numbers(tags.get(_SUBDIRECTORIES), order)
            pending += [int(value) for value in below if math.isfinite(value)]
        pending.append(reader.next_offset)


def numbers(entry: object, order: Order, limit: int = 256) -> tuple[float, ...]:
    """Return the first `limit` values of an entry; () for text, a directory or None.

    A rational with denominator 0 is NaN.
    """
    if not isinstance(entry, Entry) or _CODES[entry.kind] == "c":
        return ()
    code, size = _CODES[entry.kind], _SIZES[entry.kind]
    end = min(len(entry.body), limit * size)
    values = [struct.unpack_from(order + code, entry.body, at) for at in range(0, end, size)]
    if len(code) == 1:
        return tuple(value for (value,) in values)
    return tuple(above / below if below else math.nan for above, below in values)


def first_int(entry: object, order: Order, default: int = 0) -> int:
    """Return the first value as an integer, `default` if there is none or it is not finite."""
    values = numbers(entry, order, 1)
    return int(values[0]) if values and math.isfinite(values[0]) else default


def make_entry(order: Order, kind: int, *values: float) -> Entry:
    """Return an entry of SHORT, LONG, RATIONAL or DOUBLE values; a RATIONAL takes two integers."""
    return Entry(kind, struct.pack(f"{order}{len(values)}{_CODES[kind][0]}", *values))


def serialize(order: Order, tags: Directory, thumbnail: bytes = b"") -> bytes:
    """Return a complete block: header, one directory and its nested directories; b"" if there is no tag.

    thumbnail  a JPEG file, for which a second directory is added
    """
    if not tags:
        return b""
    block = serialize_header(order, 8) + serialize_directory(order, tags, 8)
    if not thumbnail:
        return block
    block += bytes(len(block) % 2)
    start = len(block) + 2 + 3 * 12 + 4
    second = {
        _COMPRESSION: make_entry(order, SHORT, 6),
        _JPEG_OFFSET: make_entry(order, LONG, start),
        _JPEG_LENGTH: make_entry(order, LONG, len(thumbnail)),
    }
    pointer = 8 + 2 + 12 * struct.unpack_from(order + "H", block, 8)[0]
    first = block[:pointer] + struct.pack(order + "I", len(block)) + block[pointer + 4 :]
    return first + serialize_directory(order, second, len(block)) + thumbnail


def serialize_header(order: Order, offset: int) -> bytes:
    """Return the 8-byte header of a block or TIFF file whose first directory is at `offset`."""
    return (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, offset)


def serialize_directory(order: Order, tags: Directory, offset: int) -> bytes:
    """Return a directory located at `offset`: its entries, then their values and nested directories.

    Values of BigTIFF's types are dropped.
    """
    rows: list[bytes] = []
    heap = bytearray()
    classic = sorted(tag for tag, value in tags.items() if not isinstance(value, Entry) or value.kind < 16)
    heap_offset = offset + 2 + 12 * len(classic) + 4
    for tag in classic:
        value = tags[tag]
        end = heap_offset + len(heap)
        if isinstance(value, Entry):
            kind, count, body = value.kind, len(value.body) // _SIZES[value.kind], value.body
        else:
            kind, count, body = LONG, 1, serialize_directory(order, value, end)
        if isinstance(value, Entry) and len(body) <= 4:
            field = body.ljust(4, b"\0")
        else:
            field = struct.pack(order + "I", end)
            heap += body + bytes(len(body) % 2)  # values begin on even offsets
        rows.append(struct.pack(order + "HHI", tag, kind, count) + field)
    return struct.pack(order + "H", len(rows)) + b"".join(rows) + bytes(4) + heap


class _Reader:
    def __init__(self, data: bytes, order: Order, *, big: bool) -> None:
        self.data, self.big = data, big
        self.order: Order = order
        self.broken: set[int] = set()
        self.next_offset = self.rows = 0
        # Entries that share bytes could add up to far more than the block
        self.remaining = len(data)

    def offset(self, at: int) -> int:
        """Return the offset stored at `at`; 0, which is never valid, beyond the end of the block."""
        code, size = ("Q", 8) if self.big else ("I", 4)
        if at + size > len(self.data):
            return 0
        return struct.unpack_from(self.order + code, self.data, at)[0]

    def directory(self, at: int, parent: int) -> dict[int, Entry | Directory]:
        code, head, row = ("Q", 8, 20) if self.big else ("H", 2, 12)
        if not 8 <= at <= len(self.data) - head:
            self.broken.add(parent)
            return {}
        count = struct.unpack_from(self.order + code, self.data, at)[0]
        fitting = min(count, (len(self.data) - at - head) // row, 0xFFFF)
        self.rows += fitting
        tags: dict[int, Entry | Directory] = {}
        for start in range(at + head, at + head + fitting * row, row):
            tag, value = self.entry(start)
            if value is None:
                self.broken.add(parent or tag)
            elif not value.body:
                continue
            elif tag not in _NESTED.get(parent, ()):
                tags[tag] = value
            elif nested := self.directory(first_int(value, self.order), tag):
                tags[tag] = nested
        if fitting < count:
            self.broken.add(parent)
        end = at + head + count * row
        if parent == 0:
            self.next_offset = 0
        if parent == 0 and fitting == count and end < len(self.data):
            self.next_offset = self.offset(end)
        return tags

    def entry(self, at: int) -> tuple[int, Entry | None]:
        code, skip, inline = ("HHQ", 12, 8) if self.big else ("HHI", 8, 4)
        tag, kind, count = struct.unpack_from(self.order + code, self.data, at)
        size, start = _SIZES.get(kind, 0) * count, at + skip
        if size > inline:
            start = self.offset(start)
        if kind not in _SIZES or size > self.remaining or not 8 <= start <= len(self.data) - size:
            return tag, None
        self.remaining -= size
        return tag, Entry(kind, self.data[start : start + size])
