"""TIFF 6.0: what a file's first directory says, samples of 8 to 16 bits, and a writer.

Pillow reads 16 bits in colour as 8, knows no 16-bit grey with alpha, and writes neither.
"""

import io
import logging

import imagecodecs
import numpy as np
import tifffile

from ...errors import UnsupportedImage
from ..resample import Rows, lookup, map_stripes
from . import exif
from .exif import Block, Entry
from .metadata import RawMetadata

LARGEST = 4_000_000_000  # bytes of samples: offsets have 32 bits
_ROWS = 256  # of a strip, or fewer:
_STRIP = 4 << 20  # bytes of samples in one
_SUBFILE, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 254, 256, 257, 258, 259, 262
_STRIPS, _CHANNELS, _STRIP_ROWS, _STRIP_BYTES, _PLANAR, _PREDICTOR = 273, 277, 278, 279, 284, 317
_TILE_WIDTH, _TILE_HEIGHT, _TILES, _TILE_BYTES, _EXTRA, _KIND = 322, 323, 324, 325, 338, 339
_XMP, _IPTC, _ICC, _DNG = 700, 33723, 34675, 50706
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB = 0, 1, 2
_ASSOCIATED, _UNASSOCIATED = 1, 2
_MOST_STRIPS = 100_000  # or tiles
# None, LZW, deflate twice, PackBits, LZMA, Zstandard: what unfolds to no more than a strip should hold.
# A JPEG in a strip could hold a picture of any size; libtiff, behind Pillow, looks into it before
_COMPRESSIONS = (1, 5, 8, 32946, 32773, 34925, 50000)
_BY_LIBTIFF = (2, 3, 4, 6, 7)  # fax and JPEG
# What a decoder must know; libtiff complains on the screen about others that are broken
_PIXEL_TAGS = frozenset(
    [254, 256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323, 324, 325, 332]
    + [338, 339, 347, 512, 513, 514, 515, 517, 518, 519, 520, 521, 529, 530, 531, 532]
)
_KINDS = {1: "", 2: "signed", 3: "floating-point", 5: "complex", 6: "complex"}
# It reports every oddity of a file through logging, which would end on the screen
logging.getLogger("tifffile").addHandler(logging.NullHandler())


class Directory:
    """The numbers of a file's first directory. Raises UnsupportedImage for pictures of other kinds."""

    def __init__(self, block: Block) -> None:
        self._block = block
        self.width, self.height = self.number(_WIDTH), self.number(_HEIGHT)
        self.channels = self.number(_CHANNELS, 1)
        self.bits = set(self.numbers(_BITS, self.channels)) or {1}
        self.photometric = self.number(_PHOTOMETRIC, -1)
        self.tiled = _TILES in block.tags
        self.tile = (self.number(_TILE_WIDTH), self.number(_TILE_HEIGHT)) if self.tiled else (1, 1)
        self.strip_rows = min(self.number(_STRIP_ROWS, self.height), self.height)
        kind = _KINDS.get(self.number(_KIND, 1), "")
        if self.number(_SUBFILE) & 1 or _DNG in block.tags:
            raise UnsupportedImage("this is a camera's raw file; develop it and save it as TIFF or JPEG")
        compression = self.number(_COMPRESSION, 1)
        if compression not in _COMPRESSIONS + _BY_LIBTIFF:
            raise UnsupportedImage(f"the TIFF file is compressed by method {compression}; save it with LZW")
        if not 1 <= self.channels <= 8:
            raise UnsupportedImage(f"the TIFF file has {self.channels} channels; save it as RGB")
        if kind or max(self.bits) > 16:
            raise UnsupportedImage(
                f"the TIFF file holds {max(self.bits)}-bit {kind or 'whole'} numbers; "
                "save it with 8 or 16 bits a channel"
            )

    def number(self, tag: int, default: int = 0) -> int:
        return exif.first(self._block.tags.get(tag), self._block.order, default)

    def numbers(self, tag: int, most: int) -> list[int]:
        return [int(value) for value in exif.numbers(self._block.tags.get(tag), self._block.order, most)]

    def body(self, tag: int) -> bytes:
        value = self._block.tags.get(tag)
        return value.body if isinstance(value, Entry) else b""

    def blocks(self) -> RawMetadata:
        iptc = self.body(_IPTC)
        return RawMetadata(
            icc=self.body(_ICC), xmp=self.body(_XMP), iptc=iptc if iptc.startswith(b"\x1c") else b""
        )

    def picture(self, data: bytes, *, height: int | None = None) -> bytes:
        """The file without the tags that describe it, its orientation included; never BigTIFF."""
        order, tags = self._block.order, {}
        for tag in _PIXEL_TAGS.intersection(self._block.tags):
            value = self._block.tags[tag]
            wide = isinstance(value, Entry) and value.kind == exif.LONG8
            tags[tag] = exif.entry(order, exif.LONG, *self.numbers(tag, _MOST_STRIPS)) if wide else value
        if height is not None:
            tags[_HEIGHT] = exif.entry(order, exif.LONG, height)
        end = len(data) + len(data) % 2
        return b"".join(
            [exif.header(order, end), data[8:].ljust(end - 8, b"\0"), exif.directory(order, tags, end)]
        )

    def check_whole(self, size: int) -> None:
        """Raise ValueError unless all strips or tiles are there and lie within a file of `size` bytes."""
        if self._block.broken & (_PIXEL_TAGS | {0}):
            raise ValueError("the directory is damaged")
        if self.tiled:
            across, down = self.tile
        else:
            across, down = self.width, self.strip_rows
        planes = self.channels if self.number(_PLANAR, 1) == 2 else 1
        needed = -(-self.width // across) * -(-self.height // down) * planes
        if needed > _MOST_STRIPS:
            raise ValueError("too many strips")
        starts = self.numbers(_TILES if self.tiled else _STRIPS, needed)
        lengths = self.numbers(_TILE_BYTES if self.tiled else _STRIP_BYTES, needed)
        if not len(starts) == len(lengths) == needed:
            raise ValueError("strips are missing")
        for start, length in zip(starts, lengths, strict=True):
            if start < 8 or length < 1 or start + length > size:
                raise ValueError("a strip lies outside the file")


def samples(data: bytes, directory: Directory) -> np.ndarray | None:
    """(H, W, 1 to 4) samples of a grey or RGB picture, 9 to 16 bits as uint16; None for other pictures."""
    if len(directory.bits) != 1 or directory.photometric not in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB):
        return None
    (bits,) = directory.bits
    if bits < 8 or directory.number(_COMPRESSION, 1) not in _COMPRESSIONS:
        return None
    try:
        stored = _stored(data, directory.width, directory.height)
    except (ValueError, RuntimeError, tifffile.TiffFileError):
        # Some writers fill the last strip up with rows that do not count, and tifffile stumbles over them
        rows = -(-directory.height // directory.strip_rows) * directory.strip_rows
        if directory.tiled or rows == directory.height:
            raise
        stored = _stored(directory.picture(data, height=rows), directory.width, rows)[: directory.height]
    if stored.dtype.kind != "u" or stored.shape[2] < (3 if directory.photometric == _RGB else 1):
        raise ValueError("the samples are not what the directory says")
    if bits not in (8, 16):
        stored = to_16_bits(stored, bits)
    return _colour_and_alpha(stored, directory)


def _stored(data: bytes, width: int, height: int) -> np.ndarray:
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages.first
        if (page.imagewidth, page.imagelength, page.imagedepth) != (width, height, 1):
            raise ValueError("two sizes in one directory")
        stored, axes = page.asarray(), page.axes
    return (np.moveaxis(stored, 0, -1) if axes.startswith("S") else stored).reshape(height, width, -1)


def to_16_bits(stored: np.ndarray, bits: int) -> np.ndarray:
    """Samples of 9 to 15 bits stretched to the 16 of uint16."""
    top = 2**bits - 1
    table = np.rint(np.arange(top + 1) * (65535 / top)).astype(np.uint16)
    return lookup(np.minimum(stored, top), table)


def _colour_and_alpha(stored: np.ndarray, directory: Directory) -> np.ndarray:
    channels = 3 if directory.photometric == _RGB else 1
    extra = directory.numbers(_EXTRA, 1)
    if not extra and stored.shape[2] == channels + 1:
        extra = [_UNASSOCIATED]  # what a fourth channel without a word is in practice
    colour, alpha = stored[..., :channels], stored[..., channels : channels + 1]
    if directory.photometric == _WHITE_IS_ZERO:
        colour = np.iinfo(colour.dtype).max - colour
    if extra == [_ASSOCIATED]:
        colour = unpremultiply(colour, alpha)
    return np.dstack([colour, alpha]) if extra in ([_ASSOCIATED], [_UNASSOCIATED]) else colour


def unpremultiply(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Colour that is stored times alpha, without it: rounded, and 0 where alpha is."""
    top = np.iinfo(colour.dtype).max
    out = np.empty_like(colour)
    for start in range(0, len(out), _ROWS):
        rows = slice(start, start + _ROWS)
        share = np.maximum(alpha[rows], 1).astype(np.uint32)
        out[rows] = np.minimum((colour[rows].astype(np.uint32) * top + share // 2) // share, top)
    return out


def encode(rows: Rows, height: int, blocks: RawMetadata) -> bytes:
    """A TIFF file of (H, W) or (H, W, 2 to 4) samples, 8 or 16 bit, deflated with horizontal differencing.

    The byte order is the EXIF block's, for notes of camera makers depend on it.
    """
    _, width, channels = np.atleast_3d(top := rows(slice(1))).shape
    carried = exif.parse(blocks.exif) if blocks.exif else exif.empty()
    order, tags = carried.order, dict(carried.tags)
    strip_rows = min(_ROWS, max(1, _STRIP // top.nbytes))
    file = io.BytesIO()
    file.write(bytes(8))
    # libdeflate: three times as fast as zlib at its level 6, and one part in a hundred larger
    made = map_stripes(lambda part: _deflated(rows(part), order), height, strip_rows)
    lengths = [file.write(strip) for strip in made]
    starts = np.cumsum([8, *lengths])
    plain = {
        _WIDTH: (exif.LONG, width),
        _HEIGHT: (exif.LONG, height),
        _BITS: (exif.SHORT, *[top.itemsize * 8] * channels),
        _COMPRESSION: (exif.SHORT, 8),
        _PHOTOMETRIC: (exif.SHORT, _BLACK_IS_ZERO if channels < 3 else _RGB),
        _STRIPS: (exif.LONG, *map(int, starts[:-1])),
        _CHANNELS: (exif.SHORT, channels),
        _STRIP_ROWS: (exif.LONG, strip_rows),
        _STRIP_BYTES: (exif.LONG, *lengths),
        _PREDICTOR: (exif.SHORT, 2),
        **({_EXTRA: (exif.SHORT, _UNASSOCIATED)} if channels in (2, 4) else {}),
    }
    tags |= {tag: exif.entry(order, kind, *values) for tag, (kind, *values) in plain.items()}
    for tag, block in ((_ICC, blocks.icc), (_XMP, blocks.xmp), (_IPTC, blocks.iptc)):
        if block:
            tags[tag] = Entry(exif.UNDEFINED, block)
    end = int(starts[-1]) + int(starts[-1]) % 2
    file.write(bytes(end - int(starts[-1])) + exif.directory(order, tags, end))
    file.seek(0)
    file.write(exif.header(order, end))
    return file.getvalue()


def _deflated(rows: np.ndarray, order: exif.Order) -> bytes:
    out = rows.copy()
    out[:, 1:] -= rows[:, :-1]  # wraps around, as the reader's sum does
    return bytes(imagecodecs.deflate_encode(out.astype(out.dtype.newbyteorder(order)).data, 6))
