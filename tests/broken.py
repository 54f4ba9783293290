"""Broken files for tests: seeded mutations of intact files, and decompression bombs."""

import re
import struct
import zlib
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
from PIL import Image

from tests import pictures


def mutations(data: bytes, count: int, rng: np.random.Generator) -> Iterator[bytes]:
    """Yield `count` mutations: truncated at each percent, then with bits, parts and lengths changed."""
    for percent in range(min(count, 100)):
        yield data[: len(data) * percent // 100]
    for index in range(100, count):
        yield _MUTATIONS[index % len(_MUTATIONS)](data, rng)


def _flip_bits(data: bytes, rng: np.random.Generator) -> bytes:
    """Flip up to 32 bits, half of the time only in the headers near the start."""
    out = bytearray(data)
    reach = len(data) if rng.integers(2) else min(len(data), 512)
    for bit in rng.integers(0, reach * 8, rng.integers(1, 33)):
        out[bit >> 3] ^= 1 << (bit & 7)
    return bytes(out)


def _swap_parts(data: bytes, rng: np.random.Generator) -> bytes:
    a, b, c, d = sorted(int(at) for at in rng.integers(0, len(data), 4))
    return data[:a] + data[c:d] + data[b:c] + data[a:b] + data[d:]


def _repeat_part(data: bytes, rng: np.random.Generator) -> bytes:
    a, b = sorted(int(at) for at in rng.integers(0, len(data), 2))
    return data[:b] + data[a:]


def _remove_part(data: bytes, rng: np.random.Generator) -> bytes:
    a, b = sorted(int(at) for at in rng.integers(0, len(data), 2))
    return data[:a] + data[b:]


def _overwrite_numbers(data: bytes, rng: np.random.Generator) -> bytes:
    """Write edge-case numbers at even offsets, mostly near the start, where lengths and sizes are stored."""
    out = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        reach = len(data) if rng.integers(4) == 0 else min(len(data), 256)
        at = int(rng.integers(0, reach - 8)) & ~1
        odd = int(rng.choice([0, 1, 2, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, len(data)]))
        width = int(rng.choice([2, 4])) if odd < 65_536 else 4
        out[at : at + width] = odd.to_bytes(width, "little" if rng.integers(2) else "big")
    return bytes(out)


def _swap_chunks(data: bytes, rng: np.random.Generator) -> bytes:
    """Swap two PNG chunks or JPEG segments, or two runs of 64 bytes in other formats."""
    if data.startswith(b"\x89PNG"):
        parts, at = [], 8
        while at < len(data):
            end = at + 12 + int.from_bytes(data[at : at + 4], "big")
            parts.append(data[at:end])
            at = end
        start = data[:8]
    elif data.startswith(b"\xff\xd8"):
        start, *parts = re.split(rb"(?=\xff[\xc0-\xcf\xda-\xfe])", data)
    else:
        start, parts = data[:16], [data[at : at + 64] for at in range(16, len(data), 64)]
    one, other = rng.integers(0, len(parts), 2)
    parts[one], parts[other] = parts[other], parts[one]
    return start + b"".join(parts)


_MUTATIONS = (
    _flip_bits,
    _overwrite_numbers,
    _flip_bits,
    _swap_chunks,
    _swap_parts,
    _overwrite_numbers,
    _repeat_part,
    _remove_part,
)


def huge(image_format: str) -> bytes:
    """Return a small file whose header claims 50,000 x 50,000 pixels (WebP: 16,383, its maximum)."""
    small = Image.new("RGB", (64, 64))
    if image_format == "png":
        return pictures.raw_png(50_000, 50_000, 8, 2, b"")
    if image_format == "deep png":
        return pictures.raw_png(50_000, 50_000, 16, 6, b"")
    if image_format in ("jpeg", "progressive"):
        data = pictures.pillow(small, "JPEG", progressive=image_format == "progressive")
        header = re.search(rb"\xff[\xc0\xc2]\0\x11\x08", data)
        assert header
        return data[: header.end()] + struct.pack(">HH", 50_000, 50_000) + data[header.end() + 4 :]
    if image_format == "webp":
        body = b"VP8L" + struct.pack("<IBI", 5, 0x2F, 16382 | 16382 << 14) + bytes(1)
        return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body
    if image_format == "gif":
        return b"GIF89a" + struct.pack("<HH", 50_000, 50_000) + pictures.pillow(small, "GIF")[10:]
    if image_format == "bmp":
        data = pictures.pillow(small, "BMP")
        return data[:18] + struct.pack("<ii", 50_000, 50_000) + data[26:]
    if image_format == "tiff":
        tags = {256: (4, [50_000]), 257: (4, [50_000]), 258: (3, [16, 16, 16]), 259: (3, [8]), 262: (3, [2])}
        return pictures.exif_block(
            "<", tags | {273: (4, [8]), 277: (3, [3]), 278: (4, [50_000]), 279: (4, [9])}
        )
    if image_format == "jp2":
        data = pictures.pillow(small, "JPEG2000")
        return data.replace(struct.pack(">II", 64, 64), struct.pack(">II", 50_000, 50_000))
    if image_format == "jxl":  # a size of 18 bits: not a multiple of 8, selector 2, height - 1, ratio 1
        fields = ((0, 1), (2, 2), (49_999, 18), (1, 3))
        bits = sum(
            value << sum(width for _, width in fields[:index]) for index, (value, _) in enumerate(fields)
        )
        return b"\xff\x0a" + (bits | 1 << 24).to_bytes(12, "little")
    data = pictures.pillow(small, "AVIF") if image_format == "avif" else pictures.heic(small)
    return data.replace(
        struct.pack(">4sIII", b"ispe", 0, 64, 64), struct.pack(">4sIII", b"ispe", 0, 50_000, 50_000)
    )


def png_50_000() -> bytes:
    """Return 7 MB that decompress to 7.5 GB: 2,500 megapixels of one colour."""
    packed = zlib.compressobj(9)
    row = bytes(1 + 3 * 50_000)
    return pictures.raw_png(50_000, 50_000, 8, 2, b"").replace(
        pictures.chunk(b"IDAT", zlib.compress(b"")),
        pictures.chunk(b"IDAT", b"".join(packed.compress(row) for _ in range(50_000)) + packed.flush()),
    )


def tiles(side: int, tile: int) -> bytes:
    """Return a TIFF of `side` pixels squared whose tiles all share 9 bytes."""
    count = (-(-side // tile)) ** 2
    tags = {256: (4, [side]), 257: (4, [side]), 258: (3, [8]), 259: (3, [8]), 262: (3, [1]), 277: (3, [1])}
    tags |= {322: (4, [tile]), 323: (4, [tile]), 324: (4, [8] * count), 325: (4, [9] * count)}
    return pictures.exif_block("<", tags)


def gif(frames: int) -> bytes:
    one = Image.new("P", (8, 8), 1)
    data = pictures.pillow(one, "GIF", save_all=True, append_images=[Image.new("P", (8, 8), 2)], duration=50)
    last = data.rindex(b"\x21\xf9")
    return data[:last] + data[last:-1] * frames + data[-1:]


def webp(frames: int) -> bytes:
    plain = pictures.pillow(Image.new("RGB", (8, 8)), "WEBP", lossless=True)[12:]
    body = bytes(6) + bytes([7, 0, 0, 7, 0, 0, 1, 0, 0, 0]) + plain
    frame = b"ANMF" + struct.pack("<I", len(body)) + body
    head = b"VP8X" + struct.pack("<I", 10) + bytes([2, 0, 0, 0, 7, 0, 0, 7, 0, 0])
    head += b"ANIM" + struct.pack("<I", 6) + bytes(6)
    contents = b"WEBP" + head + frame * frames
    return b"RIFF" + struct.pack("<I", len(contents)) + contents


def apng(frames: int) -> bytes:
    data = pictures.png(np.zeros((8, 8, 3), np.uint8), (b"acTL", struct.pack(">II", frames, 0)))
    end, body = data.rindex(b"IEND") - 4, zlib.compress(bytes(25 * 8))
    parts = [
        pictures.chunk(b"fcTL", struct.pack(">IIIIIHHBB", 2 * index, 8, 8, 0, 0, 1, 10, 0, 0))
        + pictures.chunk(b"fdAT", struct.pack(">I", 2 * index + 1) + body)
        for index in range(frames)
    ]
    return data[:end] + b"".join(parts) + data[end:]


def scans(count: int, side: int = 4000) -> bytes:
    """Return a progressive JPEG of `side` pixels squared that repeats its last scan `count` times."""
    data = pictures.pillow(Image.new("L", (side, side), 90), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * count + data[-2:]


def _with_chunks(*chunks: tuple[bytes, bytes]) -> bytes:
    return pictures.png(np.zeros((8, 9, 3), np.uint8), *chunks)


_ZEROS = zlib.compress(bytes(64 << 20), 9)  # 64 MB in 64 kB
BOMBS: dict[str, Callable[[], bytes]] = {
    **{
        f"huge {image_format}": partial(huge, image_format)
        for image_format in ("png", "jpeg", "webp", "gif", "bmp", "tiff")
    },
    **{
        f"huge {image_format}": partial(huge, image_format) for image_format in ("avif", "heic", "jp2", "jxl")
    },
    "png of 50,000 squared": png_50_000,
    "tiff of 50,000 squared in tiles": lambda: tiles(50_000, 1024),
    "tiff of tiles of one pixel": lambda: tiles(900, 1),
    "tiff of a tile far larger than the image": lambda: tiles(64, 4_000_000),
    "apng of 100,000 frames": lambda: apng(100_000),
    "webp of 100,000 frames": lambda: webp(100_000),
    "progressive jpeg of 1,000 scans": lambda: scans(1000),
    "png of 800,000 text chunks": lambda: _with_chunks(*[(b"tEXt", b"")] * 800_000),
    "jpeg of 800,000 segments": lambda: pictures.pillow(Image.new("L", (8, 8)), "JPEG").replace(
        b"\xff\xd8", b"\xff\xd8" + b"\xff\xfe\0\2" * 800_000, 1
    ),
}
# The image is intact, only what comes with it is huge: it must decode
WEIGHTS: dict[str, Callable[[], bytes]] = {
    "gif of 100,000 frames": lambda: gif(100_000),
    "png with text": lambda: _with_chunks(*[(b"zTXt", b"Comment\0\0" + _ZEROS)] * 100),
    "png with exif in text": lambda: _with_chunks(*[(b"zTXt", b"Raw profile type exif\0\0" + _ZEROS)] * 100),
    "png with xmp": lambda: _with_chunks(*[(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + _ZEROS)] * 100),
    "png with a profile": lambda: _with_chunks(*[(b"iCCP", b"ICC\0\0" + _ZEROS)] * 100),
}
