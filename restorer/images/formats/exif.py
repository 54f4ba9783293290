"""Directories of TIFF 6.0, which an EXIF block is too: read into entries, written again with the same bytes.

Pillow changes the kinds of values when it writes them (a MakerNote comes out as another kind) and leaves
a block with one broken entry incomplete without a word; so both directions are here.
"""

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, Union

EXIF, GPS, INTEROP = 0x8769, 0x8825, 0xA005  # entries that point to a further directory
_NESTED = {0: (EXIF, GPS), EXIF: (INTEROP,)}
ASCII, SHORT, LONG, RATIONAL, UNDEFINED, LONG8 = 2, 3, 4, 5, 7, 16
# How struct reads one value of a kind: TIFF 6.0 section 2, then BigTIFF's (13 and 18 are offsets)
_CODES = {1: "B", 2: "c", 3: "H", 4: "I", 5: "II", 6: "b", 7: "c", 8: "h", 9: "i", 10: "ii", 11: "f", 12: "d"}
_CODES |= {13: "I", 16: "Q", 17: "q", 18: "Q"}
_SIZES = {kind: struct.calcsize("=" + code) for kind, code in _CODES.items()}


@dataclass(frozen=True)
class Entry:
    """A value or more of one kind, as bytes in the block's byte order."""

    kind: int
    body: bytes


Order = Literal["<", ">"]
Directory = Mapping[int, Union[Entry, "Directory"]]


class Block(NamedTuple):
    """The first directory of a block.

    order   "<" or ">"
    tags    its entries, and the directories below it
    broken  tags that were left out; 0 stands for entries that are cut off
    more    another directory follows
    """

    order: Order
    tags: dict[int, Entry | Directory]
    broken: frozenset[int]
    more: bool


def empty() -> Block:
    return Block("<", {}, frozenset(), False)


def parse(block: bytes) -> Block:
    """Read the first directory of a block, and those for EXIF, GPS and interoperability below it.

    Entries that are broken or reach beyond the block are left out. A directory that follows the first
    one (in EXIF the thumbnail's) is not read. Raises ValueError for what does not begin like TIFF.
    """
    order: Order = ">" if block.startswith(b"MM") else "<"
    known = block.startswith((b"II", b"MM")) and len(block) >= 8
    version = struct.unpack_from(order + "H", block, 2)[0] if known else 0
    if version not in (42, 43):
        raise ValueError("no TIFF header")
    reader = _Reader(block, order, big=version == 43)
    tags = reader.directory(reader.offset(8 if reader.big else 4), 0)
    return Block(order, tags, frozenset(reader.broken), reader.more)


def numbers(entry: object, order: Order, most: int = 256) -> tuple[float, ...]:
    """The first values, `most` of them, of an entry of any numeric kind; () for text, a directory or None."""
    if not isinstance(entry, Entry) or _CODES[entry.kind] == "c":
        return ()
    code, size = _CODES[entry.kind], _SIZES[entry.kind]
    end = min(len(entry.body), most * size)
    values = [struct.unpack_from(order + code, entry.body, at) for at in range(0, end, size)]
    if len(code) == 1:
        return tuple(single for (single,) in values)
    return tuple(above / below if below else math.nan for above, below in values)


def first(entry: object, order: Order, default: int = 0) -> int:
    """The first value as a whole number; `default` where there is none."""
    values = numbers(entry, order, 1)
    return int(values[0]) if values and math.isfinite(values[0]) else default


def entry(order: Order, kind: int, *values: int) -> Entry:
    """An entry of SHORT, LONG or RATIONAL values (a RATIONAL is two numbers)."""
    return Entry(kind, struct.pack(f"{order}{len(values)}{_CODES[kind][0]}", *values))


def write(order: Order, tags: Directory) -> bytes:
    """A block with one directory and those below it."""
    return header(order, 8) + directory(order, tags, 8)


def header(order: Order, at: int) -> bytes:
    """The eight bytes that a block or a TIFF file begins with; its first directory is at offset `at`."""
    return (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, at)


def directory(order: Order, tags: Directory, at: int) -> bytes:
    """A directory that begins at offset `at`: its entries, then the values and directories they point to."""
    rows: list[bytes] = []
    heap = bytearray()
    kept = sorted(tag for tag, value in tags.items() if not isinstance(value, Entry) or value.kind < 16)
    heap_at = at + 2 + 12 * len(kept) + 4
    for tag in kept:
        value = tags[tag]
        end = heap_at + len(heap)
        if isinstance(value, Entry):
            kind, count, body = value.kind, len(value.body) // _SIZES[value.kind], value.body
        else:
            kind, count, body = LONG, 1, directory(order, value, end)
        if isinstance(value, Entry) and len(body) <= 4:
            place = body.ljust(4, b"\0")
        else:
            place = struct.pack(order + "I", end)
            heap += body + bytes(len(body) % 2)  # values begin on even offsets
        rows.append(struct.pack(order + "HHI", tag, kind, count) + place)
    return struct.pack(order + "H", len(rows)) + b"".join(rows) + bytes(4) + heap


class _Reader:
    def __init__(self, block: bytes, order: Order, *, big: bool) -> None:
        self.block, self.big = block, big
        self.order: Order = order
        self.broken: set[int] = set()
        self.more = False
        self.left = len(block)  # entries that share bytes could add up to far more than there are

    def offset(self, at: int) -> int:
        """The offset that is stored at `at`; 0, which is never a value's, where the block ends before."""
        code, size = ("Q", 8) if self.big else ("I", 4)
        if at + size > len(self.block):
            return 0
        return struct.unpack_from(self.order + code, self.block, at)[0]

    def directory(self, at: int, parent: int) -> dict[int, Entry | Directory]:
        code, head, row = ("Q", 8, 20) if self.big else ("H", 2, 12)
        if not 8 <= at <= len(self.block) - head:
            self.broken.add(parent)
            return {}
        count = struct.unpack_from(self.order + code, self.block, at)[0]
        fitting = min(count, (len(self.block) - at - head) // row, 0xFFFF)
        tags: dict[int, Entry | Directory] = {}
        for start in range(at + head, at + head + fitting * row, row):
            tag, value = self.entry(start)
            if value is None or not value.body:
                self.broken |= {parent or tag} if value is None else set()
            elif tag not in _NESTED.get(parent, ()):
                tags[tag] = value
            elif nested := self.directory(first(value, self.order), tag):
                tags[tag] = nested
        if fitting < count:
            self.broken.add(parent)
        if parent == 0 and fitting == count and at + head + count * row < len(self.block):
            self.more = self.offset(at + head + count * row) != 0
        return tags

    def entry(self, at: int) -> tuple[int, Entry | None]:
        code, skip, inline = ("HHQ", 12, 8) if self.big else ("HHI", 8, 4)
        tag, kind, count = struct.unpack_from(self.order + code, self.block, at)
        size, start = _SIZES.get(kind, 0) * count, at + skip
        if size > inline:
            start = self.offset(start)
        if kind not in _SIZES or size > self.left or not 8 <= start <= len(self.block) - size:
            return tag, None
        self.left -= size
        return tag, Entry(kind, self.block[start : start + size])
