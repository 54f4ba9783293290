"""Photo to bytes: one writer a format, metadata and colour profile included."""

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import imagecodecs
import numpy as np
from PIL import Image, TiffImagePlugin

from . import color, metadata
from .errors import ImageTooLarge
from .photo import Photo

# What "same" writes for a format that is read only; 16-bit and transparent HEIF go to PNG
_INSTEAD = {"heif": "jpeg", "bmp": "png", "gif": "png"}
_LARGEST_SIDE = {"jpeg": 65_500, "webp": 16_383, "avif": 65_536, "png": 2**31 - 1, "tiff": 2**31 - 1}
_TIFF_BYTES = 4_000_000_000  # offsets have 32 bits
_DEEP = ("png", "tiff")
_NO_GREY = ("webp", "avif")  # they store grey as RGB, which a grey profile does not fit
_ROWS = 256  # arithmetic on whole pictures goes in bands of rows, to stay small in memory


@dataclass(frozen=True)
class Encoded:
    """A picture file: its bytes, format ("png" ...) and what could not be kept, in the user's words."""

    data: bytes
    format: str
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class _Sheet:
    """What a writer needs: samples (H, W) or (H, W, 2 to 4), and blocks that may be empty."""

    samples: np.ndarray
    icc: bytes
    exif: bytes
    xmp: bytes
    dpi: tuple[float, float] | None
    quality: int


def output_format(photo: Photo, chosen: str) -> str:
    """The format that is written: `chosen`, or for "same" the input's where there is a writer."""
    if chosen != "same":
        return chosen
    form = photo.meta.format
    if form == "heif" and (photo.alpha is not None or photo.meta.depth > 8):
        return "png"
    return _INSTEAD.get(form, form)


def check_fits(photo: Photo, width: int, height: int, form: str) -> None:
    """Raise ImageTooLarge when `form` cannot hold this photo at width x height pixels."""
    largest = _LARGEST_SIDE[form]
    if max(width, height) > largest:
        raise ImageTooLarge(
            f"the result would have {width} x {height} pixels; {form.upper()} holds {largest} a side: "
            "choose PNG or TIFF, or a smaller scale"
        )
    channels = (1 if photo.meta.grey else 3) + (photo.alpha is not None)
    size = width * height * channels * photo.meta.depth // 8
    if form == "tiff" and size > _TIFF_BYTES:
        raise ImageTooLarge(f"the result would have {size / 1e9:.1f} GB; TIFF holds 4: choose PNG")


def encode(
    photo: Photo, form: str, *, quality: int, keep_metadata: bool = True, remove_gps: bool = False
) -> Encoded:
    """Write a Photo as `form` ("png", "jpeg", "webp", "tiff" or "avif") with its profile and metadata.

    Raises ImageTooLarge for a side beyond the format's limit (check_fits says so beforehand).
    """
    check_fits(photo, photo.width, photo.height, form)
    warnings: list[str] = []
    exif, xmp, dpi = b"", b"", None
    if keep_metadata:
        size = {"width": photo.width, "height": photo.height, "remove_gps": remove_gps}
        dpi = photo.meta.dpi
        exif = metadata.corrected_exif(photo.meta.exif, dpi, **size)
        xmp = metadata.corrected_xmp(photo.meta.xmp, **size)
    samples, icc = _samples(photo, form, warnings), photo.meta.icc or b""
    if icc and photo.meta.grey and form in _NO_GREY:
        samples, icc = _grey_as_srgb(samples, icc), b""
    sheet = _Sheet(samples, icc, exif, xmp, dpi, quality)
    if form == "jpeg":
        sheet = _fit_jpeg_segments(sheet, warnings)
    return Encoded(_WRITERS[form](sheet), form, tuple(warnings))


def to_uint8(samples: np.ndarray) -> np.ndarray:
    """uint16 samples as uint8, each rounded to the nearest (65535 is 255); uint8 as it is."""
    if samples.dtype == np.uint8:
        return samples
    out = np.empty(samples.shape, np.uint8)
    for rows in _bands(samples):
        # exact round(x / 257) in integers
        out[rows] = (samples[rows].astype(np.uint32) * 255 + 32895) >> 16
    return out


def luma(pixels: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 or uint16 RGB as one channel, rounded (ITU-R BT.601 weights)."""
    out = np.empty(pixels.shape[:2], pixels.dtype)
    for rows in _bands(pixels):
        red, green, blue = np.moveaxis(pixels[rows].astype(np.uint32), 2, 0)
        out[rows] = (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16
    return out


def _samples(photo: Photo, form: str, warnings: list[str]) -> np.ndarray:
    meta, alpha = photo.meta, photo.alpha
    samples = luma(photo.pixels) if meta.grey else photo.pixels
    if meta.linear:
        samples = color.decode_linear(samples)
    if meta.depth == 16 and form not in _DEEP:
        warnings.append(f"16 bits a channel became 8: {form.upper()} is written with 8")
    if meta.depth == 8 or form not in _DEEP:
        samples, alpha = to_uint8(samples), None if alpha is None else to_uint8(alpha)
    if alpha is None:
        return samples
    samples = np.atleast_3d(samples)
    if form == "jpeg":
        warnings.append("transparency was laid on white: JPEG has none")
        return _on_white(samples, alpha).squeeze()
    return np.dstack([samples, alpha])


def _on_white(samples: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    out = np.empty_like(samples)
    for rows in _bands(samples):
        cover = alpha[rows, :, None].astype(np.uint32)
        out[rows] = (samples[rows] * cover + 255 * (255 - cover) + 127) // 255
    return out


def _grey_as_srgb(samples: np.ndarray, icc: bytes) -> np.ndarray:
    """8-bit grey (H, W) or grey and alpha (H, W, 2) as sRGB, through the grey profile."""
    samples = np.atleast_3d(samples)
    colour = color.to_srgb(Image.fromarray(samples[..., 0]), icc)
    return np.dstack([np.asarray(colour), samples[..., 1:]])


def _fit_jpeg_segments(sheet: _Sheet, warnings: list[str]) -> _Sheet:
    """A JPEG segment holds 64 kB: a larger EXIF or XMP block is left out, and said."""
    keep = dict(vars(sheet))
    for name in ("exif", "xmp"):
        if len(keep[name]) > 65_000:
            keep[name] = b""
            warnings.append(f"the {name.upper()} block is larger than JPEG can hold and was left out")
    return _Sheet(**keep)


def _write_jpeg(sheet: _Sheet) -> bytes:
    return _pillow(sheet, "JPEG", subsampling=0, **_resolution(sheet))


def _write_webp(sheet: _Sheet) -> bytes:
    return _pillow(sheet, "WEBP", exact=True)


def _write_avif(sheet: _Sheet) -> bytes:
    return _pillow(sheet, "AVIF", subsampling="4:4:4")


def _resolution(sheet: _Sheet) -> dict:
    return {} if sheet.dpi is None else {"dpi": sheet.dpi}


def _pillow(sheet: _Sheet, name: str, **options: object) -> bytes:
    out = io.BytesIO()
    image = Image.fromarray(sheet.samples)
    blocks = {"icc_profile": sheet.icc, "exif": sheet.exif, "xmp": sheet.xmp}
    present = {key: block for key, block in blocks.items() if block}
    if "exif" in present:
        present["exif"] = b"Exif\x00\x00" + sheet.exif
    image.save(out, name, quality=sheet.quality, **present, **options)
    return out.getvalue()


def _write_png(sheet: _Sheet) -> bytes:
    # On enlarged photos the Up filter at level 4 is as small as libpng's default and five times as fast
    samples = np.ascontiguousarray(sheet.samples)
    plain = imagecodecs.png_encode(samples, level=4, filter=imagecodecs.PNG.FILTER.UP)
    end_of_header = 8 + 25  # signature, then IHDR: metadata must precede the pixels
    chunks = b"".join(_chunk(kind, body) for kind, body in _png_metadata(sheet))
    return b"".join([plain[:end_of_header], chunks, plain[end_of_header:]])


def _png_metadata(sheet: _Sheet) -> Iterator[tuple[bytes, bytes]]:
    """The chunks of PNG (third edition) section 11.3 that carry profile, resolution, EXIF and XMP."""
    if sheet.icc:
        yield b"iCCP", b"ICC profile\0\0" + zlib.compress(sheet.icc)
    if sheet.dpi:
        per_metre = [round(dpi / 0.0254) for dpi in sheet.dpi]
        yield b"pHYs", struct.pack(">IIB", *per_metre, 1)
    if sheet.exif:
        yield b"eXIf", sheet.exif
    if sheet.xmp:
        yield b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + sheet.xmp


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _write_tiff(sheet: _Sheet) -> bytes:
    """Baseline TIFF 6.0 with deflated strips and horizontal differencing, 8 or 16 bits a channel.

    Pillow writes no 16-bit RGB and tifffile no EXIF directory: the strips are ours, the directory Pillow's.
    """
    samples = np.atleast_3d(sheet.samples)
    height, width, channels = samples.shape
    strips = [zlib.compress(_differences(samples[rows]), 6) for rows in _bands(samples)]
    starts = np.cumsum([0, *map(len, strips)])[:-1]  # from the directory's end: Pillow adds where that is
    directory = TiffImagePlugin.ImageFileDirectory_v2()
    if sheet.exif:
        metadata.into_tiff(directory, sheet.exif)
    directory[256], directory[257] = width, height
    directory[258] = (samples.dtype.itemsize * 8,) * channels
    directory[259], directory[317] = 8, 2  # deflate, horizontal differencing
    directory[262] = 1 if channels < 3 else 2
    directory[273], directory[279] = tuple(map(int, starts)), tuple(map(len, strips))
    directory.tagtype[273] = directory.tagtype[279] = 4
    directory[277], directory[278] = channels, _ROWS
    if channels in (2, 4):
        directory[338] = 2  # alpha that is not multiplied into the colour
    if sheet.dpi:
        directory[282], directory[283], directory[296] = *sheet.dpi, 2
    if sheet.icc:
        directory[34675] = sheet.icc
    if sheet.xmp:
        directory[700] = sheet.xmp
    return b"".join([b"II*\0\x08\0\0\0", directory.tobytes(8), *strips])


def _differences(rows: np.ndarray) -> bytes:
    out = rows.copy()
    out[:, 1:] -= rows[:, :-1]  # wraps around, as the reader's sum does
    return out.astype(out.dtype.newbyteorder("<")).tobytes()


def _bands(array: np.ndarray) -> Iterator[slice]:
    return (slice(top, top + _ROWS) for top in range(0, len(array), _ROWS))


_WRITERS: dict[str, Callable[[_Sheet], bytes]] = {
    "jpeg": _write_jpeg,
    "png": _write_png,
    "webp": _write_webp,
    "tiff": _write_tiff,
    "avif": _write_avif,
}
