"""Read and write TIFF 6.0: the first directory of a file, samples of 8 to 16 bits, and an encoder.

Written by hand because Pillow reduces 16-bit colour to 8 bits and does not support 16-bit grey with alpha.
"""

import ctypes
import io
import logging
import struct
from pathlib import Path

import imagecodecs
import numpy as np
import PIL
import tifffile

from ...errors import UnsupportedImage
from .. import icc
from ..resample import Rows, bands, lookup, map_stripes
from . import exif, photoshop
from .exif import Block, Entry
from .metadata import RawMetadata

MAX_SIZE = 4_000_000_000  # bytes of samples: offsets have 32 bits
_MAX_STRIP_ROWS = 256
_MAX_STRIP_SIZE = 4 << 20  # bytes of samples
_SUBFILE, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 254, 256, 257, 258, 259, 262
_STRIPS, _CHANNELS, _STRIP_ROWS, _STRIP_BYTES, _PLANAR, _PREDICTOR = 273, 277, 278, 279, 284, 317
_TILE_WIDTH, _TILE_HEIGHT, _TILES, _TILE_BYTES, _EXTRA, _SAMPLE_FORMAT = 322, 323, 324, 325, 338, 339
_OLD_SUBFILE, _SUBDIRECTORIES = 255, 330
_RAW = "this is a camera raw file; develop it and save it as TIFF or JPEG"
_SENSOR = (32803, 34892)  # colour filter array, linear raw
_RAW_COMPRESSIONS = (32767, 32769, 32770, 34713, 65000, 65535)  # Sony, Epson, Samsung, Nikon, Kodak, Pentax
_XMP, _IPTC, _RESOURCES, _ICC, _DNG = 700, 33723, 34377, 34675, 50706
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB = 0, 1, 2
LAB = (_CIE_LAB, _ICC_LAB) = 8, 9  # photometric interpretations; only the first has signed a* and b*
_ASSOCIATED, _UNASSOCIATED = 1, 2
_MAX_STRIPS = 100_000  # or tiles
# None, LZW, deflate (two codes), PackBits, LZMA, Zstandard: a strip cannot decompress to more than its size.
# A JPEG in a strip could hold an image of any size, which libtiff, used by Pillow, checks beforehand
_COMPRESSIONS = (1, 5, 8, 32946, 32773, 34925, 50000)
_LIBTIFF_COMPRESSIONS = (2, 3, 4, 6, 7)  # fax and JPEG
# Needed to decode; for other tags that are broken, libtiff prints warnings
_PIXEL_TAGS = frozenset(
    [254, 256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323, 324, 325, 332]
    + [338, 339, 347, 512, 513, 514, 515, 517, 518, 519, 520, 521, 529, 530, 531, 532]
)
_FLOAT = 3
_SAMPLE_FORMATS = {2: "signed integer", _FLOAT: "floating-point", 5: "complex", 6: "complex"}
_FLOAT_BITS = (16, 32)
# They log every oddity of a file, which would be printed
for name in ("tifffile", "imagecodecs"):
    logging.getLogger(name).addHandler(logging.NullHandler())
# libtiff prints what it reports; Pillow has no switch for it, and raises the errors that count
for library in Path(PIL.__file__).parent.parent.glob("pillow.libs/libtiff*"):
    ctypes.CDLL(str(library)).TIFFSetErrorHandler(None)


def main_page(data: bytes, first: Block) -> tuple[bytes, Block]:
    """Return the file with its main picture first, and the tags of that picture and of the first directory.

    first  the first directory, a thumbnail in some files

    Raises UnsupportedImage for camera raw files.
    """
    if _DNG not in first.tags and not _is_reduced(first) and _SUBDIRECTORIES not in first.tags:
        return data, first
    pages = list(exif.pages(data))
    if _DNG in first.tags or any(_is_raw(page) for _, page in pages):
        raise UnsupportedImage(_RAW)
    if not _is_reduced(first):
        return data, first
    offset, page = next(((at, page) for at, page in pages if not _is_reduced(page)), (0, first))
    if not offset:
        raise UnsupportedImage(_RAW)
    unrelated = _PIXEL_TAGS | {_SUBDIRECTORIES}
    described = {tag: value for tag, value in first.tags.items() if tag not in unrelated}
    return _starting_at(data, page.order, offset), page._replace(tags=described | page.tags)


def count_pages(data: bytes) -> int:
    """Return the number of pages but thumbnails and masks, at least 1; exif.MAX_PAGES if there are more."""
    pages = [page for _, page in exif.pages(data, nested=False)]
    more = pages[-1].has_next  # the walk stopped at a limit
    return exif.MAX_PAGES if more else max(1, sum(not _is_reduced(page) for page in pages))


def with_first_page(data: bytes, number: int) -> bytes:
    """Return the file with another page as its first, counted from 0. Raises IndexError if it has fewer."""
    offsets = [at for at, page in exif.pages(data, nested=False) if not _is_reduced(page)]
    return _starting_at(data, ">" if data.startswith(b"MM") else "<", offsets[number])


def _starting_at(data: bytes, order: exif.Order, offset: int) -> bytes:
    code, at = ("Q", 8) if data[2:4] in (b"+\0", b"\0+") else ("I", 4)
    start = data[:at] + struct.pack(order + code, offset)
    return start + data[len(start) :]


def _is_reduced(page: Block) -> bool:
    """Whether a page is a thumbnail or a mask of another."""
    kind = exif.first_int(page.tags.get(_SUBFILE), page.order)
    return kind & 5 != 0 or exif.first_int(page.tags.get(_OLD_SUBFILE), page.order) == 2


def _is_raw(page: Block) -> bool:
    """Whether a page holds the samples of a sensor."""
    tags = page.tags
    kind, compression = (exif.first_int(tags.get(tag), page.order) for tag in (_PHOTOMETRIC, _COMPRESSION))
    return kind in _SENSOR or compression in _RAW_COMPRESSIONS


class Directory:
    """The main directory of a TIFF file.

    Raises UnsupportedImage for the samples of a sensor, other compressions, more than 8 channels, and samples
    other than unsigned integers of up to 16 bits and floating-point ones of 16 and 32.
    """

    def __init__(self, block: Block) -> None:
        self._block = block
        self.width, self.height = self.number(_WIDTH), self.number(_HEIGHT)
        self.channels = self.number(_CHANNELS, 1)
        self.bits = set(self.numbers(_BITS, self.channels)) or {1}
        self.photometric = self.number(_PHOTOMETRIC, -1)
        self.tiled = _TILES in block.tags
        self.tile = (self.number(_TILE_WIDTH), self.number(_TILE_HEIGHT)) if self.tiled else (1, 1)
        self.strip_rows = min(self.number(_STRIP_ROWS, self.height), self.height)
        sample_format = _SAMPLE_FORMATS.get(self.number(_SAMPLE_FORMAT, 1))
        self.floating = sample_format == _SAMPLE_FORMATS[_FLOAT]
        readable = {*self.bits} <= {*_FLOAT_BITS} and self.photometric not in LAB and len(self.bits) == 1
        compression = self.number(_COMPRESSION, 1)
        if _is_raw(block):
            raise UnsupportedImage(_RAW)
        if compression not in _COMPRESSIONS + _LIBTIFF_COMPRESSIONS:
            raise UnsupportedImage(f"unsupported TIFF compression {compression}; save the file with LZW")
        if not 1 <= self.channels <= 8:
            raise UnsupportedImage(f"the TIFF file has {self.channels} channels; save it as RGB")
        if not (readable if self.floating else not sample_format and max(self.bits) <= 16):
            raise UnsupportedImage(
                f"the TIFF file has {max(self.bits)}-bit {sample_format or 'integer'} samples; "
                "save it with 8 or 16 bits per channel"
            )

    def number(self, tag: int, default: int = 0) -> int:
        """Return the first value of a tag."""
        return exif.first_int(self._block.tags.get(tag), self._block.order, default)

    def numbers(self, tag: int, limit: int) -> list[int]:
        """Return the first `limit` values of a tag."""
        return [int(value) for value in exif.numbers(self._block.tags.get(tag), self._block.order, limit)]

    def body(self, tag: int) -> bytes:
        """Return the value of a tag as stored, b"" if absent."""
        value = self._block.tags.get(tag)
        return value.body if isinstance(value, Entry) else b""

    def metadata(self) -> RawMetadata:
        """Return the profile, XMP packet, IPTC record and Photoshop's resources."""
        iptc = self.body(_IPTC)
        copied, resources = photoshop.split(self.body(_RESOURCES))
        return RawMetadata(
            icc=self.body(_ICC),
            xmp=self.body(_XMP),
            iptc=iptc if iptc.startswith(b"\x1c") else copied,
            resources=resources,
        )

    def strip_metadata(self, data: bytes, *, height: int | None = None) -> bytes:
        """Return the file with only the tags that decoding needs, no orientation, and never as BigTIFF.

        height  replaces the height
        """
        order, tags = self._block.order, {}
        for tag in _PIXEL_TAGS.intersection(self._block.tags):
            value = self._block.tags[tag]
            if isinstance(value, Entry) and value.kind == exif.LONG8:
                value = exif.make_entry(order, exif.LONG, *self.numbers(tag, _MAX_STRIPS))
            tags[tag] = value
        if height is not None:
            tags[_HEIGHT] = exif.make_entry(order, exif.LONG, height)
        end = len(data) + len(data) % 2
        body = data[8:].ljust(end - 8, b"\0")
        directory = exif.serialize_directory(order, tags, end)
        return b"".join([exif.serialize_header(order, end), body, directory])

    def check_complete(self, size: int) -> None:
        """Raise ValueError unless all strips or tiles are present, inside a file of `size` bytes."""
        if self._block.broken & (_PIXEL_TAGS | {0}):
            raise ValueError("the directory is damaged")
        across, down = self.tile if self.tiled else (self.width, self.strip_rows)
        planes = self.channels if self.number(_PLANAR, 1) == 2 else 1
        count = -(-self.width // across) * -(-self.height // down) * planes
        if count > _MAX_STRIPS:
            raise ValueError("too many strips")
        starts = self.numbers(_TILES if self.tiled else _STRIPS, count)
        lengths = self.numbers(_TILE_BYTES if self.tiled else _STRIP_BYTES, count)
        if not len(starts) == len(lengths) == count:
            raise ValueError("strips are missing")
        for start, length in zip(starts, lengths, strict=True):
            if start < 8 or length < 1 or start + length > size:
                raise ValueError("a strip is outside the file")


def decode(data: bytes, directory: Directory, warnings: list[str]) -> np.ndarray | None:
    """Decode a grey, RGB or Lab image; return None for other images, which Pillow must read.

    Returns (H, W, 1 to 4) samples, uint8, or 9 to 16 bits scaled to uint16; alpha is not premultiplied. Lab
    becomes sRGB, floating-point samples from 0 to 1 become uint16.
    Raises ValueError, RuntimeError or tifffile.TiffFileError for a damaged file.
    """
    known = (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, *LAB)
    if len(directory.bits) != 1 or directory.photometric not in known:
        return None
    (bits,) = directory.bits
    if directory.photometric in LAB and bits not in (8, 16):
        return None
    if bits < 8 or directory.number(_COMPRESSION, 1) not in _COMPRESSIONS:
        return None
    try:
        stored = _read_page(data, directory.width, directory.height)
    except (ValueError, RuntimeError, tifffile.TiffFileError):
        # Some writers pad the last strip to its full number of rows, which tifffile does not accept
        rows = -(-directory.height // directory.strip_rows) * directory.strip_rows
        if directory.tiled or rows == directory.height:
            raise
        padded = directory.strip_metadata(data, height=rows)
        stored = _read_page(padded, directory.width, rows)[: directory.height]
    if directory.photometric in LAB and stored.dtype.kind == "i":
        stored = stored.view(stored.dtype.str.replace("i", "u"))
    if directory.floating and stored.dtype.kind == "f":
        stored, bits = _from_float(stored, warnings), 16
    colours = 1 if directory.photometric in (_WHITE_IS_ZERO, _BLACK_IS_ZERO) else 3
    if stored.dtype.kind != "u" or stored.shape[2] < colours:
        raise ValueError("the samples do not match the directory")
    if bits not in (8, 16):
        stored = to_16_bits(stored, bits)
    return _colour_and_alpha(stored, directory)


def _read_page(data: bytes, width: int, height: int) -> np.ndarray:
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages.first
        if (page.imagewidth, page.imagelength, page.imagedepth) != (width, height, 1):
            raise ValueError("the directory has two sizes")
        stored, axes = page.asarray(), page.axes
    return (np.moveaxis(stored, 0, -1) if axes.startswith("S") else stored).reshape(height, width, -1)


def to_16_bits(stored: np.ndarray, bits: int) -> np.ndarray:
    """Scale uint16 samples of 9 to 15 bits to the full range of uint16."""
    top = 2**bits - 1
    table = np.rint(np.arange(top + 1) * (65535 / top)).astype(np.uint16)
    return lookup(np.minimum(stored, top), table)


def _from_float(stored: np.ndarray, warnings: list[str]) -> np.ndarray:
    """Scale floating-point samples from 0 to 1 to uint16; others are clipped, and NaN becomes 0."""
    out, clipped = np.empty(stored.shape, np.uint16), False
    for rows in bands(len(out)):
        values = stored[rows].astype(np.float32)
        inside = np.clip(np.nan_to_num(values, nan=0, posinf=1, neginf=0), 0, 1)
        clipped |= not np.array_equal(inside, values)
        out[rows] = np.rint(inside * 65535)
    warnings.append("the floating-point samples were reduced to 16 bits per channel")
    if clipped:
        warnings.append("samples below 0, above 1 and without a value (NaN) were clipped")
    return out


def _colour_and_alpha(stored: np.ndarray, directory: Directory) -> np.ndarray:
    channels = 1 if directory.photometric in (_WHITE_IS_ZERO, _BLACK_IS_ZERO) else 3
    extra = directory.numbers(_EXTRA, 1)
    if not extra and stored.shape[2] == channels + 1:
        extra = [_UNASSOCIATED]  # the usual meaning of an undeclared extra channel
    colour, alpha = stored[..., :channels], stored[..., channels : channels + 1]
    if directory.photometric == _WHITE_IS_ZERO:
        colour = np.iinfo(colour.dtype).max - colour
    if directory.photometric in LAB:
        colour = icc.lab_to_srgb(colour, signed=directory.photometric == _CIE_LAB)
    if extra == [_ASSOCIATED]:
        colour = unpremultiply(colour, alpha)
    return np.dstack([colour, alpha]) if extra in ([_ASSOCIATED], [_UNASSOCIATED]) else colour


def unpremultiply(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Divide premultiplied colour by alpha, rounded; the result is 0 where both are.

    colour  (H, W, C) uint8 or uint16
    alpha   (H, W, 1) of the same dtype
    """
    top = np.iinfo(colour.dtype).max
    out = np.empty_like(colour)
    for rows in bands(len(out)):
        divisor = np.maximum(alpha[rows], 1).astype(np.uint32)
        out[rows] = np.minimum((colour[rows].astype(np.uint32) * top + divisor // 2) // divisor, top)
    return out


def encode(rows: Rows, height: int, metadata: RawMetadata) -> bytes:
    """Return a TIFF file of (H, W) or (H, W, 2 to 4) samples, uint8 or uint16, requested in rows.

    Compressed with deflate and horizontal differencing. The byte order is that of the EXIF block, on
    which maker notes depend.
    """
    _, width, channels = np.atleast_3d(top := rows(slice(1))).shape
    block = exif.parse(metadata.exif) if metadata.exif else exif.empty()
    order, tags = block.order, dict(block.tags)
    strip_rows = min(_MAX_STRIP_ROWS, max(1, _MAX_STRIP_SIZE // top.nbytes))
    file = io.BytesIO()
    file.write(bytes(8))
    strips = map_stripes(lambda part: _deflate(rows(part), order), height, strip_rows)
    lengths = [file.write(strip) for strip in strips]
    starts = np.cumsum([8, *lengths])
    numbers = {
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
    tags |= {tag: exif.make_entry(order, kind, *values) for tag, (kind, *values) in numbers.items()}
    blocks = {_ICC: metadata.icc, _XMP: metadata.xmp, _IPTC: metadata.iptc, _RESOURCES: metadata.resources}
    for tag, body in blocks.items():
        if body:
            tags[tag] = Entry(exif.UNDEFINED, body)
    end = int(starts[-1]) + int(starts[-1]) % 2
    file.write(bytes(end - int(starts[-1])) + exif.serialize_directory(order, tags, end))
    file.seek(0)
    file.write(exif.serialize_header(order, end))
    return file.getvalue()


def _deflate(rows: np.ndarray, order: exif.Order) -> bytes:
    out = rows.copy()
    out[:, 1:] -= rows[:, :-1]  # wraps around, as the reader's sum does
    # libdeflate is three times as fast as zlib at its level 6, and its output 1% larger
    return bytes(imagecodecs.deflate_encode(out.astype(out.dtype.newbyteorder(order)).data, 6))
