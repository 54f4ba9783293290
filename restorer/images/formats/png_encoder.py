"""The pixels of a PNG (third edition, sections 9 and 10): filtered rows, deflated in stripes side by side.

A stripe ends on a byte (deflate's sync flush), so that stripes made by themselves stand in one stream.
"""

import struct
import zlib
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import numpy as np

from ..resample import Rows, map_stripes

try:
    from isal import isal_zlib  # pyright: ignore[reportMissingImports]
except ImportError:
    isal_zlib = None

# Measured on enlarged photos, libpng with the Up filter at level 4 being 1 in speed (on two cores) and size:
# isal 7.4-8.1 and 1.04-1.10, zlib with Z_RLE 2.9-3.0 and 1.00-1.02, zlib at level 4 1.5-1.6 and 0.95-0.97
_STRIPE = 1 << 20  # bytes of samples; the same on every machine, so that the file is
_SMALL = 1 << 20  # bytes of samples up to which a file is made smaller at a third of the speed
_SUB, _UP = 1, 2  # filter types: a sample less the one to its left, or the one above
_HEADER = b"\x78\x01"  # of a zlib stream: deflate, a window of 32 kB
_END = b"\x03\x00"  # an empty last block
_ADLER = 65521  # RFC 1950


class _Stripe(NamedTuple):
    """A chunk, with the Adler-32 and the number of the bytes that it unfolds to."""

    chunk: bytes
    adler: int
    length: int


def chunks(rows: Rows, height: int) -> Iterator[bytes]:
    """The IDAT chunks of (H, W) or (H, W, 2 to 4) samples, 8 or 16 bit."""
    width = rows(slice(1)).nbytes
    total = 1
    for stripe in map_stripes(partial(_stripe, rows, width * height), height, max(1, _STRIPE // width)):
        total = _joined(total, stripe)
        yield stripe.chunk
    yield make_chunk(b"IDAT", _END + struct.pack(">I", total))


def make_chunk(kind: bytes, body: bytes) -> bytes:
    head = struct.pack(">I", len(body)) + kind
    return b"".join([head, body, struct.pack(">I", zlib.crc32(body, zlib.crc32(kind)))])


def _stripe(rows: Rows, size: int, part: slice) -> _Stripe:
    first = part.start == 0
    lines = _filtered(rows(slice(part.start - (not first), part.stop)), first=first)
    deflate = _deflater(size)
    begin = _HEADER if first else b""
    body = b"".join([begin, deflate.compress(lines.data), deflate.flush(zlib.Z_SYNC_FLUSH)])
    return _Stripe(make_chunk(b"IDAT", body), zlib.adler32(lines.data), lines.nbytes)


def _deflater(size: int):  # noqa: ANN202  the two libraries' types have no name
    if size <= _SMALL:
        return zlib.compressobj(4, zlib.DEFLATED, -15, 9, zlib.Z_FILTERED)
    if isal_zlib:
        return isal_zlib.compressobj(2, zlib.DEFLATED, -15)
    return zlib.compressobj(1, zlib.DEFLATED, -15, 9, zlib.Z_RLE)


def _filtered(rows: np.ndarray, *, first: bool) -> np.ndarray:
    """Rows of bytes, each after its filter type: of the two the one with the smaller sum (section 12.8).

    first  the first row is the picture's; otherwise it stands above and is not written
    """
    step = rows[0, 0].nbytes
    stored = np.ascontiguousarray(rows, ">u2" if rows.itemsize == 2 else np.uint8)
    plain = stored.reshape(len(rows), -1).view(np.uint8)
    above = plain[:-1]
    if first:
        above = np.concatenate([np.zeros_like(plain[:1]), above])
    else:
        plain = plain[1:]
    up = plain - above
    sub = plain.copy()
    sub[:, step:] -= plain[:, :-step]
    across = _weight(sub) < _weight(up)
    lines = np.empty((len(plain), plain.shape[1] + 1), np.uint8)
    lines[:, 0] = np.where(across, _SUB, _UP)
    lines[:, 1:] = np.where(across[:, None], sub, up)
    return lines


def _weight(differences: np.ndarray) -> np.ndarray:
    """Of each row the sum of the bytes' magnitudes, taken for signed ones."""
    return np.abs(differences.view(np.int8)).view(np.uint8).sum(axis=1, dtype=np.uint32)


def _joined(total: int, stripe: _Stripe) -> int:
    """The Adler-32 of what came before and a stripe."""
    low = (total & 0xFFFF) + (stripe.adler & 0xFFFF) - 1
    high = (total >> 16) + (stripe.adler >> 16) + stripe.length * ((total & 0xFFFF) - 1)
    return high % _ADLER << 16 | low % _ADLER
