"""Separate the metadata chunks of a PNG file (third edition) from its image, and write PNG files."""

import io
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from ...errors import UnsupportedImage
from .. import icc
from ..resample import Rows
from . import photoshop, png_encoder
from .metadata import ASSUMED_SRGB, C2PA, Item, RawMetadata
from .png_encoder import make_chunk

_MAGIC = b"\x89PNG\r\n\x1a\n"
_SIGNATURE = len(_MAGIC)
AFTER_HEADER = _SIGNATURE + 25  # where the chunks after IHDR start
_COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}  # by number of channels
_IMAGE_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT")
_FRAME_CHUNKS = (b"IDAT", b"acTL", b"fcTL", b"fdAT")
_TEXT_CHUNKS = (b"tEXt", b"zTXt", b"iTXt")
_COLOUR_CHUNKS = (b"cICP", b"sRGB", b"gAMA", b"cHRM")
_COLOUR_TYPE = _SIGNATURE + 17  # offset of IHDR's
_GAMMAS = 0.5, 5.0  # plausible ones
_XMP = b"XML:com.adobe.xmp\0"
_INCH = 0.0254  # metres
_MAX_INFLATED = 1 << 23  # bytes, of all compressed metadata of a file together
_MAX_OTHER_CHUNKS = 10_000  # all but IDAT
_MAX_CHUNKS = 200_000  # an IDAT chunk often holds 8 kB
_SEARCHED = 1 << 20  # bytes in which IDAT, and acTL before it, are looked for
# ImageMagick's form of metadata before eXIf existed: a line break, a name, a length, then hexadecimal
_PROFILE = b"Raw profile type "
# Which field of the metadata such a profile is for
_PROFILES = {b"exif": "exif", b"APP1": "exif", b"xmp": "xmp", b"iptc": "photoshop", b"8bim": "photoshop"}
_XMP_IN_APP1 = b"http://ns.adobe.com/xap/1.0/\0"
# Chunks that tell how the pixels are meant, or that belong to an animation, which is named by itself
_PICTURE_CHUNKS = (b"gAMA", b"cHRM", b"sRGB", b"cICP", b"sBIT", b"acTL", b"fcTL", b"fdAT", b"mDCV", b"cLLI")
_OTHERS = {b"caBX": C2PA}


def split_metadata(data: bytes, warnings: list[str]) -> tuple[bytes, RawMetadata]:
    """Return the file without its metadata chunks, and their contents.

    A broken metadata chunk is dropped, which is added to `warnings`. Raises ValueError for a broken or
    unknown critical chunk, and for too many chunks.
    """
    image, text, others = [data[:_SIGNATURE]], [], []
    fields: dict[str, Any] = {}
    inflate = _Inflater()
    other_chunks, colour = 0, dict[bytes, bytes]()
    for number, (kind, chunk, intact) in enumerate(_chunks(data)):
        other_chunks += kind != b"IDAT"
        if other_chunks > _MAX_OTHER_CHUNKS or number > _MAX_CHUNKS:
            raise ValueError("too many chunks")
        if kind in _IMAGE_CHUNKS or kind[:1].isupper():  # a capital marks a critical chunk
            if not intact or kind not in _IMAGE_CHUNKS:
                raise ValueError(f"broken chunk {kind!r}")
            image.append(chunk)
        elif not intact or (used := _read_chunk(fields, kind, chunk[8:-4], inflate)) is None:
            warnings.append("a damaged metadata chunk was left out")
        elif kind in _TEXT_CHUNKS and not used:
            text.append(chunk)
        elif not used and kind not in _PICTURE_CHUNKS:
            others.append(_OTHERS.get(kind) or Item("PNG chunks", kind.decode("ascii", "replace")))
        if kind in _COLOUR_CHUNKS and intact:
            colour.setdefault(kind, chunk[8:-4])
    profile = _profile(colour, fields.get("icc", b""), grey=data[_COLOUR_TYPE : _COLOUR_TYPE + 1] in b"\0\4")
    if profile is None:
        warnings.append(ASSUMED_SRGB)
    fields["icc"] = profile or b""
    resources = fields.pop("photoshop", b"")
    if resources.startswith(b"8BIM"):
        fields["iptc"], fields["resources"] = photoshop.split(resources)
    elif resources.startswith(b"\x1c"):
        fields["iptc"] = resources
    blocks = RawMetadata(**fields, text=b"".join(text), others=tuple(dict.fromkeys(others)))
    return b"".join([*image, make_chunk(b"IEND", b"")]), blocks


def _profile(colour: Mapping[bytes, bytes], embedded: bytes, *, grey: bool) -> bytes | None:
    """Return the profile of the colour chunk that counts; b"" for sRGB, None if none can be made of it.

    PNG third edition, 4.3: cICP, then iCCP, then sRGB, then cHRM and gAMA (values times 100,000).
    """
    if cicp := colour.get(b"cICP"):
        full_range = len(cicp) == 4 and cicp[2:] == b"\0\1"
        profile = icc.from_code_points(cicp[0], cicp[1], grey=grey) if full_range else None
        return embedded if profile is None and embedded else profile
    if embedded or b"sRGB" in colour or not colour:
        return embedded
    points, gamma = icc.SRGB, None
    try:
        if b"cHRM" in colour:
            points = icc.Chromaticities(*np.reshape(struct.unpack(">8I", colour[b"cHRM"]), (4, 2)) / 1e5)
        if b"gAMA" in colour:
            gamma = 1e5 / struct.unpack(">I", colour[b"gAMA"])[0]
    except (struct.error, ZeroDivisionError):
        return None
    if gamma is not None and not _GAMMAS[0] <= gamma <= _GAMMAS[1]:
        return None
    return icc.from_chromaticities(points, gamma, grey=grey)


def frame_count(data: bytes) -> int:
    """Return the number of frames that an animation declares before its pixels (acTL), otherwise 1."""
    at = data.find(b"\0\0\0\x08acTL", 0, max(data.find(b"IDAT", 0, _SEARCHED), 0))
    return 1 if at < 0 else int.from_bytes(data[at + 8 : at + 12], "big")


def frames_intact(data: bytes) -> bool:
    """Return whether no chunk that frames are made of is broken; missing ones are not noticed."""
    return all(intact for kind, _, intact in _chunks(data) if kind in _FRAME_CHUNKS)


def size(data: bytes) -> tuple[int, int]:
    """Return (width, height). Raises ValueError if the file does not start with a header.

    Raises UnsupportedImage for Apple's own kind of PNG, which is compressed and ordered differently.
    """
    if data[_SIGNATURE + 4 : _SIGNATURE + 8] == b"CgBI":
        raise UnsupportedImage("this is a PNG in Apple's CgBI format, from an iPhone app; convert it to PNG")
    if data[_SIGNATURE + 4 : _SIGNATURE + 8] != b"IHDR":
        raise ValueError("no IHDR chunk")
    width, height = struct.unpack_from(">II", data, _SIGNATURE + 8)
    return width, height


def encode(rows: Rows, height: int, metadata: RawMetadata) -> bytes:
    """Return a PNG file of (H, W) or (H, W, 2 to 4) samples, uint8 or uint16, requested in rows."""
    _, width, channels = np.atleast_3d(top := rows(slice(1))).shape
    header = struct.pack(">IIBBBBB", width, height, top.itemsize * 8, _COLOUR_TYPES[channels], 0, 0, 0)
    file = io.BytesIO()
    file.write(_MAGIC + make_chunk(b"IHDR", header))
    file.writelines(metadata_chunks(metadata))  # a profile must precede the pixels
    file.writelines(png_encoder.idat_chunks(rows, height))
    file.write(make_chunk(b"IEND", b""))
    return file.getvalue()


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes, bool]]:
    """Yield type, complete chunk, and whether its checksum is right, up to IEND."""
    at = _SIGNATURE
    while at + 8 <= len(data) and (kind := data[at + 4 : at + 8]) != b"IEND":
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        chunk = data[at:end]
        yield kind, chunk, end <= len(data) and chunk[-4:] == struct.pack(">I", zlib.crc32(chunk[4:-4]))
        at = end


class _Inflater:
    """Decompresses metadata, up to _MAX_INFLATED bytes in total."""

    def __init__(self) -> None:
        self._remaining = _MAX_INFLATED

    def __call__(self, body: bytes) -> bytes:
        """Return the decompressed bytes; b"" if broken or too large."""
        stream = zlib.decompressobj()
        try:
            plain = stream.decompress(body, self._remaining + 1)
        except zlib.error:
            return b""
        self._remaining = max(self._remaining - len(plain), 0)
        return plain if stream.eof and self._remaining else b""


def _read_chunk(fields: dict[str, Any], kind: bytes, body: bytes, inflate: _Inflater) -> bool | None:
    """Put the chunk into the fields for RawMetadata; return whether it is for one, None if it is broken."""
    if kind == b"iCCP":
        fields["icc"] = inflate(body.partition(b"\0")[2][1:])
        return True if fields["icc"] else None
    if kind == b"eXIf":
        fields["exif"] = body
    elif kind == b"pHYs" and len(body) == 9:
        x, y = struct.unpack_from(">II", body)
        if body[8] == 1:  # pixels per metre
            fields["dpi"] = x * _INCH, y * _INCH
        return body[8] == 1 or x == y
    elif kind in _TEXT_CHUNKS and body.startswith(_XMP):
        fields["xmp"] = _text(kind, body, inflate)
        return True if fields["xmp"] else None
    elif kind in _TEXT_CHUNKS and body.startswith(_PROFILE):
        name = body.partition(b"\0")[0][len(_PROFILE) :]
        return name in _PROFILES and _read_profile(fields, name, _text(kind, body, inflate))
    else:
        return False
    return True


def _text(kind: bytes, body: bytes, inflate: _Inflater) -> bytes:
    """Return the text of a text chunk; b"" if it is broken."""
    text = body.partition(b"\0")[2]
    if kind == b"zTXt":
        return inflate(text[1:])
    if kind == b"iTXt":
        *_, plain = text[2:].split(b"\0", 2)  # after language and translated keyword
        return inflate(plain) if text[:1] == b"\1" else plain
    return text


def _read_profile(fields: dict[str, Any], name: bytes, text: bytes) -> bool | None:
    """Take a profile as ImageMagick stores it, unless another chunk has it; return None if it is broken."""
    lines = text.split(b"\n", 3)
    try:
        block = bytes.fromhex(lines[-1].decode("ascii"))
    except ValueError:
        return None
    field = _PROFILES[name]
    if block.startswith(_XMP_IN_APP1):
        field, block = "xmp", block[len(_XMP_IN_APP1) :]
    if not block or (field == "exif" and not block.startswith(b"Exif\0")):
        return None
    fields[field] = fields.get(field) or block
    return True


def keywords(text: bytes) -> Iterator[str]:
    """Yield the keyword of each text chunk."""
    for _, chunk, _ in _chunks(bytes(_SIGNATURE) + text):
        yield _keyword(chunk)


def remove_text(text: bytes, unwanted: Callable[[str], bool]) -> bytes:
    """Remove the text chunks with unwanted keywords, and profiles that ImageMagick stored as text."""
    chunks = (chunk for _, chunk, _ in _chunks(bytes(_SIGNATURE) + text))
    return b"".join(
        chunk for chunk in chunks if not unwanted(_keyword(chunk)) and not chunk.startswith(_PROFILE, 8)
    )


def _keyword(chunk: bytes) -> str:
    return chunk[8:-4].partition(b"\0")[0].decode("latin-1")


def metadata_chunks(metadata: RawMetadata) -> Iterator[bytes]:
    """Yield the chunks that precede the pixels."""
    if metadata.icc:
        yield make_chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(metadata.icc))
    if metadata.dpi:
        per_metre = [round(dpi / _INCH) for dpi in metadata.dpi]
        yield make_chunk(b"pHYs", struct.pack(">IIB", *per_metre, 1))
    if metadata.exif:
        yield make_chunk(b"eXIf", metadata.exif)
    if metadata.xmp:
        yield make_chunk(b"iTXt", _XMP + bytes(4) + metadata.xmp)
    if resources := photoshop.join(metadata.iptc, metadata.resources):
        lines = b"\niptc\n%8d\n%s\n" % (len(resources), resources.hex().encode())
        yield make_chunk(b"zTXt", _PROFILE + b"iptc\0\0" + zlib.compress(lines))
    if metadata.comment:
        yield _comment(metadata.comment.replace(b"\0", b""))
    yield metadata.text


def _comment(text: bytes) -> bytes:
    """Return a text chunk: iTXt for UTF-8, else tEXt, which holds Latin-1."""
    try:
        text.decode()
    except UnicodeDecodeError:
        return make_chunk(b"tEXt", b"Comment\0" + text)
    return make_chunk(b"iTXt", b"Comment" + bytes(5) + text)
