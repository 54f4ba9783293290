"""PNG chunks (PNG, third edition): what stands beside the picture is taken out and put in again."""

import io
import struct
import zlib
from collections.abc import Iterator

import numpy as np

from ..resample import Rows
from . import png_encoder
from .metadata import AS_SRGB, RawMetadata
from .png_encoder import make_chunk

_MAGIC = b"\x89PNG\r\n\x1a\n"
_SIGNATURE = len(_MAGIC)
_KINDS = {1: 0, 2: 4, 3: 2, 4: 6}  # colour type by channels
_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT")
_TEXT = (b"tEXt", b"zTXt", b"iTXt")
_XMP = b"XML:com.adobe.xmp\0"
_INCH = 0.0254  # metres
_LARGEST = 1 << 23  # bytes that the compressed profile and packets of a file may unfold to, all together
_MOST_BESIDE, _MOST = 10_000, 200_000  # chunks beside the pixels, and all; of pixels 8 kB are usual in one
_SEARCHED = 1 << 20  # bytes in which an animation says so
# How ImageMagick stored blocks before there was eXIf: a line break, a name, a length, then hexadecimal
_PROFILE = b"Raw profile type "
_IN_TEXT = (_PROFILE + b"exif\0", _PROFILE + b"APP1\0")


def split(data: bytes, warnings: list[str]) -> tuple[bytes, RawMetadata]:
    """The file without the chunks that describe it, and what they held.

    A broken one of those is left out, and said in `warnings`. Raises ValueError for a broken chunk of
    the picture itself, and for more chunks than a picture has.
    """
    kept, blocks, text, unlike, beside = [data[:_SIGNATURE]], RawMetadata(), [], False, 0
    unfold = _Unfolding()
    for number, (kind, chunk, intact) in enumerate(_chunks(data)):
        beside += kind != b"IDAT"
        if beside > _MOST_BESIDE or number > _MOST:
            raise ValueError("too many chunks")
        if kind in _PIXELS or kind[:1].isupper():  # a capital: not to be ignored by a reader
            if not intact or kind not in _PIXELS:
                raise ValueError(f"broken chunk {kind!r}")
            kept.append(chunk)
        elif not intact or not _take(blocks, kind, chunk, unfold):
            warnings.append("a damaged block beside the picture was left out")
        elif kind in _TEXT and not chunk.startswith((_XMP, _PROFILE), 8):
            text.append(chunk)
        if kind in (b"cICP", b"gAMA") and intact and not _like_srgb(kind, chunk[8:-4]):
            unlike = True
    if unlike and not blocks.icc:
        warnings.append(AS_SRGB)
    blocks.text = b"".join(text)
    return b"".join([*kept, make_chunk(b"IEND", b"")]), blocks


def _like_srgb(kind: bytes, body: bytes) -> bool:
    """Whether code points (ITU-T H.273) or a gamma, which is stored times 100,000, mean sRGB or nearly."""
    if kind == b"cICP":
        return body[:1] == b"\x01" and body[1:2] in (b"\x01", b"\x06", b"\x0d")
    return 40_000 <= int.from_bytes(body, "big") <= 60_000


def frames(data: bytes) -> int:
    """How many pictures an animation says it has, before its pixels (acTL); 1 where it does not say."""
    found = data.find(b"\0\0\0\x08acTL", 0, max(data.find(b"IDAT", 0, _SEARCHED), 0))
    return 1 if found < 0 else int.from_bytes(data[found + 8 : found + 12], "big")


def size(picture: bytes) -> tuple[int, int]:
    """Width and height. Raises ValueError where the header is not first."""
    if picture[_SIGNATURE + 4 : _SIGNATURE + 8] != b"IHDR":
        raise ValueError("no header")
    width, height = struct.unpack_from(">II", picture, _SIGNATURE + 8)
    return width, height


def encode(rows: Rows, height: int, blocks: RawMetadata) -> bytes:
    """A PNG file of (H, W) or (H, W, 2 to 4) samples, 8 or 16 bit."""
    _, width, channels = np.atleast_3d(top := rows(slice(1))).shape
    header = struct.pack(">IIBBBBB", width, height, top.itemsize * 8, _KINDS[channels], 0, 0, 0)
    file = io.BytesIO()
    file.write(_MAGIC + make_chunk(b"IHDR", header))
    file.writelines(_written(blocks))  # a profile must precede the pixels
    file.writelines(png_encoder.chunks(rows, height))
    file.write(make_chunk(b"IEND", b""))
    return file.getvalue()


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes, bool]]:
    """Kind, whole chunk, and whether its checksum holds, up to IEND."""
    at = _SIGNATURE
    while at + 8 <= len(data) and (kind := data[at + 4 : at + 8]) != b"IEND":
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        chunk = data[at:end]
        yield kind, chunk, end <= len(data) and chunk[-4:] == struct.pack(">I", zlib.crc32(chunk[4:-4]))
        at = end


class _Unfolding:
    """Inflates what lies beside a picture, all of it together to no more than _LARGEST bytes."""

    def __init__(self) -> None:
        self._left = _LARGEST

    def __call__(self, body: bytes) -> bytes:
        """Inflated bytes; b"" for what is broken or too large."""
        inflate = zlib.decompressobj()
        try:
            plain = inflate.decompress(body, self._left + 1)
        except zlib.error:
            return b""
        self._left = max(self._left - len(plain), 0)
        return plain if inflate.eof and self._left else b""


def _take(blocks: RawMetadata, kind: bytes, chunk: bytes, unfold: _Unfolding) -> bool:
    """Put a chunk where it belongs; False when it cannot be read."""
    body = chunk[8:-4]
    if kind == b"iCCP":
        blocks.icc = unfold(body.partition(b"\0")[2][1:])
        return blocks.icc != b""
    if kind == b"eXIf":
        blocks.exif = body
    elif kind == b"pHYs" and len(body) == 9 and body[8] == 1:  # pixels per metre
        x, y = struct.unpack_from(">II", body)
        blocks.dpi = x * _INCH, y * _INCH
    elif kind == b"iTXt" and body.startswith(_XMP):
        folded, texts = body[len(_XMP) :][:1] == b"\1", body[len(_XMP) + 2 :].split(b"\0", 2)
        blocks.xmp = unfold(texts[-1]) if folded else texts[-1]
        return blocks.xmp != b""
    elif body.startswith(_IN_TEXT) and kind in _TEXT:
        blocks.exif = blocks.exif or _from_text(body, unfold if kind == b"zTXt" else None)
    return True


def _from_text(body: bytes, unfold: _Unfolding | None) -> bytes:
    text = body.partition(b"\0")[2]
    lines = (unfold(text[1:]) if unfold else text).split(b"\n", 3)
    try:
        block = bytes.fromhex(lines[-1].decode("ascii"))
    except ValueError:
        return b""
    return block if block.startswith(b"Exif\0") else b""


def _written(blocks: RawMetadata) -> Iterator[bytes]:
    if blocks.icc:
        yield make_chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(blocks.icc))
    if blocks.dpi:
        per_metre = [round(dpi / _INCH) for dpi in blocks.dpi]
        yield make_chunk(b"pHYs", struct.pack(">IIB", *per_metre, 1))
    if blocks.exif:
        yield make_chunk(b"eXIf", blocks.exif)
    if blocks.xmp:
        yield make_chunk(b"iTXt", _XMP + bytes(4) + blocks.xmp)
    yield blocks.text
