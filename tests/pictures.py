"""Image files for tests, written by other libraries or byte by byte, never by our own encoders."""

import io
import struct
import zlib

import imagecodecs
import numpy as np
import pillow_heif
import tifffile
from PIL import Image

ORIENTATIONS = range(1, 9)
_FORMATS = {1: "B", 2: "B", 3: "H", 4: "I", 5: "I", 7: "B", 10: "i"}
XMP = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" xmlns:exif="http://ns.adobe.com/exif/1.0/"
 xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmlns:dc="http://purl.org/dc/elements/1.1/"
 xmlns:drone="http://drone/" tiff:Orientation="6" tiff:ImageWidth="40" exif:PixelXDimension='40'
 exif:GPSLatitude="52,31.2N" drone:GpsLongitude = "13,24.1E">
<tiff:ImageLength>30</tiff:ImageLength><exif:PixelYDimension> 30</exif:PixelYDimension>
<exif:GPSAltitude>3141/100</exif:GPSAltitude><exif:GPSMapDatum/>
<xmp:Thumbnails><rdf:Alt><rdf:li>THUMBNAIL</rdf:li></rdf:Alt></xmp:Thumbnails>
<dc:title><rdf:Alt><rdf:li xml:lang="x-default">Grüße</rdf:li></rdf:Alt></dc:title>
</rdf:Description></rdf:RDF></x:xmpmeta>
<?xpacket end="w"?>""".encode()
GPS_MARKS = (b"52,31", b"13,24", b"3141/100", b"GPSMARK")


def noise(
    rng: np.random.Generator, height: int, width: int, channels: int = 3, deep: bool = False
) -> np.ndarray:
    """Return (H, W) for one channel, else (H, W, channels); uint8 or uint16 over the full range."""
    shape = (height, width) if channels == 1 else (height, width, channels)
    return rng.integers(0, 65536 if deep else 256, shape, dtype=np.uint16 if deep else np.uint8)


def pillow(samples: np.ndarray | Image.Image, image_format: str, **options: object) -> bytes:
    image = samples if isinstance(samples, Image.Image) else Image.fromarray(samples)
    out = io.BytesIO()
    image.save(out, image_format, **options)
    return out.getvalue()


def tiff(samples: np.ndarray, **options: object) -> bytes:
    out = io.BytesIO()
    tifffile.imwrite(out, samples, metadata=None, **options)
    return out.getvalue()


def heic(image: Image.Image, **options: object) -> bytes:
    out = io.BytesIO()
    pillow_heif.from_pillow(image).save(out, **{"quality": -1, "chroma": 444, **options})
    return out.getvalue()


def deep_heic(samples: np.ndarray, bits: int, **options: object) -> bytes:
    """Encode (H, W, 3) uint16 samples of `bits` bits losslessly."""
    out = io.BytesIO()
    source = pillow_heif.from_bytes(f"RGB;{bits}", samples.shape[1::-1], samples.tobytes())
    # Matrix coefficients 0: no conversion to YCbCr
    source.save(out, quality=-1, chroma=444, matrix_coefficients=0, **options)
    return out.getvalue()


def deep_avif(samples: np.ndarray, bits: int) -> bytes:
    return imagecodecs.avif_encode(samples, level=100, bitspersample=bits, pixelformat="444")


def png(samples: np.ndarray, *chunks: tuple[bytes, bytes]) -> bytes:
    """Encode a PNG with extra chunks before the pixels."""
    plain = imagecodecs.png_encode(np.ascontiguousarray(samples))
    return plain[:33] + b"".join(chunk(*one) for one in chunks) + plain[33:]


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def raw_png(
    width: int, height: int, bits: int, kind: int, rows: bytes, *chunks: tuple[bytes, bytes]
) -> bytes:
    """Build a PNG from rows that are already filtered, each after its filter type."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0))
    body = b"".join(chunk(*one) for one in chunks) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + head + body


def segment(data: bytes, marker: int, body: bytes) -> bytes:
    """Insert a segment right after the start of a JPEG."""
    return data[:2] + struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body + data[2:]


def with_exif(jpeg: bytes, block: bytes) -> bytes:
    return segment(jpeg, 0xE1, b"Exif\0\0" + block)


def exif_block(
    order: str,
    first: dict,
    exif: dict | None = None,
    gps: dict | None = None,
    interop: dict | None = None,
    *,
    thumbnail: bytes = b"",
) -> bytes:
    """Build an EXIF block; each dict maps a tag to (type, values), where values are bytes or numbers.

    A thumbnail goes into a second directory, as in camera files.
    """
    first, exif = dict(first), dict(exif or {})
    # Pointers have a fixed length: the first pass finds the offsets, the second writes them
    offsets = {"exif": 0, "gps": 0, "interop": 0, "next": 0, "jpeg": 0}
    for _ in range(2):
        if interop:
            exif[0xA005] = (4, [offsets["interop"]])
        if exif:
            first[0x8769] = (4, [offsets["exif"]])
        if gps:
            first[0x8825] = (4, [offsets["gps"]])
        block = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
        block += directory(order, first, 8, offsets["next"])
        for name, tags in (("exif", exif), ("gps", gps), ("interop", interop)):
            if tags:
                offsets[name] = len(block)
                block += directory(order, tags, len(block), 0)
        if thumbnail:
            offsets["next"] = len(block)
            tags = {0x0103: (3, [6]), 0x0201: (4, [offsets["jpeg"]]), 0x0202: (4, [len(thumbnail)])}
            block += directory(order, tags, len(block), 0)
            offsets["jpeg"] = len(block)
            block += thumbnail
    return block


def directory(order: str, tags: dict, at: int, following: int) -> bytes:
    rows, heap = b"", b""
    start = at + 2 + 12 * len(tags) + 4
    for tag, (kind, values) in sorted(tags.items()):
        body = (
            values
            if isinstance(values, bytes)
            else struct.pack(f"{order}{len(values)}{_FORMATS[kind]}", *values)
        )
        size = struct.calcsize(_FORMATS[kind]) * (2 if kind in (5, 10) else 1)
        rows += struct.pack(order + "HHI", tag, kind, len(body) // size)
        if len(body) <= 4:
            rows += body.ljust(4, b"\0")
        else:
            rows += struct.pack(order + "I", start + len(heap))
            heap += body + bytes(len(body) % 2)
    return struct.pack(order + "H", len(tags)) + rows + struct.pack(order + "I", following) + heap


def camera_exif(order: str = "<", orientation: int = 1, *, width: int = 40, height: int = 30) -> bytes:
    """Return a block such as cameras write, with GPS position, maker note and thumbnail."""
    return exif_block(
        order,
        {
            0x010F: (2, b"Maker\0"),
            0x0112: (3, [orientation]),
            0x011A: (5, [300, 1]),
            0x011B: (5, [300, 1]),
            0x0128: (3, [2]),
            0x0132: (2, b"2020:02:03 04:05:06\0"),
        },
        {
            0x829A: (5, [1, 250]),
            0x8827: (3, [400]),
            0x9000: (7, b"0232"),
            0x9204: (10, [-1, 3]),
            0x927C: (7, b"MAKERNOTE\0\1\2\3"),
            0x9286: (7, b"ASCII\0\0\0a comment"),
            0xA002: (4, [width]),
            0xA003: (4, [height]),
        },
        {0: (1, bytes([2, 3, 0, 0])), 1: (2, b"N\0"), 2: (5, [52, 1, 31, 1, 12, 1]), 29: (2, b"GPSMARK\0")},
        {1: (2, b"R98\0"), 0x1001: (4, [width]), 0x1002: (4, [height])},
        thumbnail=b"\xff\xd8THUMBNAIL\xff\xd9",
    )
