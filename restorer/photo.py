"""Bytes to Photo and back: file formats, bit depth, orientation, transparency, metadata."""

import io
import struct
import zlib
from dataclasses import dataclass, replace

import imagecodecs
import numpy as np
import pillow_heif
import tifffile
from PIL import Image, ImageCms

from . import color, metadata
from .errors import DamagedImage, ImageTooLarge, UnsupportedImage
from .options import Limits

READABLE = ("JPEG", "PNG", "WebP", "TIFF", "BMP", "GIF", "AVIF", "HEIC", "MPO")
# The header is checked against our own limit before any pixel is read
Image.MAX_IMAGE_PIXELS = None

# What the decoders raise for broken files, beside the errors Pillow documents
_DECODER_ERRORS = (
    OSError,
    ValueError,
    TypeError,
    SyntaxError,
    LookupError,
    ArithmeticError,
    EOFError,
    RuntimeError,  # imagecodecs' own errors derive from it
    AttributeError,
    MemoryError,
    struct.error,
    zlib.error,
)


@dataclass(frozen=True)
class Meta:
    """What a file said beside its pixels, and what its writer must know.

    format    "jpeg", "png", "webp", "tiff", "bmp", "gif", "avif" or "heif"
    grey      one channel in the file
    depth     8 or 16 bits a channel in the file
    linear    the profile holds linear light: the pixels here carry the sRGB curve, the file does not
    icc       the colour profile of `pixels`, None for sRGB
    exif      an EXIF block without its thumbnail, b"" for none
    xmp       an XMP packet, b"" for none
    dpi       dots per inch (x, y), or None
    warnings  what was dropped or changed while reading, in the user's words
    """

    format: str
    grey: bool = False
    depth: int = 8
    linear: bool = False
    icc: bytes | None = None
    exif: bytes = b""
    xmp: bytes = b""
    dpi: tuple[float, float] | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Photo:
    """An upright picture.

    pixels  (H, W, 3) uint8 or uint16, RGB, not premultiplied; grey has three equal channels
    alpha   (H, W) of the same dtype, 0 transparent, or None
    """

    pixels: np.ndarray
    alpha: np.ndarray | None
    meta: Meta

    @property
    def height(self) -> int:
        return self.pixels.shape[0]

    @property
    def width(self) -> int:
        return self.pixels.shape[1]


@dataclass(frozen=True)
class _Raw:
    """A decoder's answer: (H, W) or (H, W, 2 to 4) samples as stored, and what came with them."""

    samples: np.ndarray
    orientation: int
    meta: Meta


def sniff(start: bytes) -> str | None:
    """The format that a file's first 32 bytes announce, as in Meta.format, or None."""
    if start.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "webp"
    if start[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "tiff"
    if start.startswith((b"GIF87a", b"GIF89a")):
        return "gif"
    if start[4:8] == b"ftyp":
        brands = start[8:]
        if b"avif" in brands or b"avis" in brands:
            return "avif"
        return "heif" if any(b in brands for b in (b"heic", b"heix", b"hevc", b"mif1", b"msf1")) else None
    return "bmp" if start.startswith(b"BM") else None


def decode(data: bytes, *, max_pixels: int = Limits.input_pixels) -> Photo:
    """Read a picture's bytes into an upright Photo, 8 bit as uint8 and 16 bit as uint16.

    Raises UnsupportedImage for what is not one of READABLE, DamagedImage for a file that is broken or
    cut off, and ImageTooLarge (before any pixel is read) for more than `max_pixels`.
    """
    form = sniff(data[:32])
    if form is None:
        what = "is empty" if not data else "is not an image of a kind that is read"
        raise UnsupportedImage(f"the file {what}; use one of {', '.join(READABLE)}")
    try:
        raw = _read_heif(data, max_pixels) if form == "heif" else _read(data, form, max_pixels)
    except _DECODER_ERRORS as error:
        raise DamagedImage(f"the {form.upper()} file is damaged or incomplete; export it again") from error
    return _photo(_upright(raw.samples, raw.orientation), raw.meta)


def _read(data: bytes, form: str, max_pixels: int) -> _Raw:
    image = Image.open(io.BytesIO(data), formats=["JPEG", "MPO"] if form == "jpeg" else [form.upper()])
    _check_size(image.width, image.height, max_pixels)
    warnings = []
    if getattr(image, "is_animated", False) and image.format != "MPO":
        warnings.append("only the first picture of the file is restored")
    icc = image.info.get("icc_profile") or None
    samples = _deep_samples(data, form, image)
    if samples is None:
        image.load()
    dpi = metadata.read_dpi(image)
    orientation = image.getexif().get(0x0112, 1)  # after load(), which turns a TIFF upright itself
    exif = _exif_or_warning(image, warnings)
    if samples is None:
        if image.mode in ("CMYK", "LAB"):
            image, icc = _to_srgb(image, icc, warnings), None
        samples = _samples(image)
    meta = Meta(
        form,
        icc=icc,
        exif=exif,
        xmp=metadata.read_xmp(image.info),
        dpi=dpi,
        warnings=tuple(warnings),
    )
    return _Raw(samples, orientation, meta)


def _read_heif(data: bytes, max_pixels: int) -> _Raw:
    """HEIC through libheif, which turns the picture upright itself (the EXIF tag must then be ignored)."""
    image = pillow_heif.open_heif(data, convert_hdr_to_8bit=False)
    _check_size(*image.size, max_pixels)
    samples = np.asarray(image)  # more than 8 bits come stretched to 16
    holder = Image.new("L", (1, 1))
    holder.info["exif"] = image.info.get("exif") or b""
    warnings: list[str] = []
    dpi = metadata.read_dpi(holder)  # before read_exif(), which takes the tags away
    meta = Meta(
        "heif",
        icc=image.info.get("icc_profile") or None,
        exif=_exif_or_warning(holder, warnings),
        xmp=metadata.read_xmp(image.info),
        dpi=dpi,
        warnings=tuple(warnings),
    )
    return _Raw(samples, 1, meta)


def _deep_samples(data: bytes, form: str, image: Image.Image) -> np.ndarray | None:
    """The samples of a file with more than 8 bits a channel, which Pillow would cut to 8; else None."""
    if form == "png" and data[24] == 16:
        samples = imagecodecs.png_decode(data)
        key = image.info.get("transparency")
        return samples if key is None else _keyed(samples, key)
    if form == "avif" and (bits := _avif_depth(data)) > 8:
        samples = imagecodecs.avif_decode(data, index=0)
        return np.rint(samples * np.float32(65535 / (2**bits - 1))).astype(np.uint16)
    if form == "tiff" and set(image.tag_v2.get(258, ())) == {16}:  # type: ignore[attr-defined]
        return _deep_tiff(data)
    return None


def _keyed(samples: np.ndarray, key: int | tuple[int, ...]) -> np.ndarray:
    """Samples with alpha from a PNG's one transparent colour."""
    colour = np.atleast_3d(samples)
    opaque = (colour != np.array(key, colour.dtype)).any(axis=2)
    return np.dstack([colour, np.where(opaque, np.iinfo(colour.dtype).max, 0).astype(colour.dtype)])


def _avif_depth(data: bytes) -> int:
    """Bits a channel, from the AV1 configuration box (AV1-ISOBMFF 2.3)."""
    box = data.find(b"av1C")
    flags = data[box + 6] if box >= 0 else 0
    return 8 if not flags & 0x40 else 12 if flags & 0x20 else 10


def _deep_tiff(data: bytes) -> np.ndarray | None:
    with tifffile.TiffFile(io.BytesIO(data)) as tiff:
        page = tiff.pages.first
        samples, axes = page.asarray(), page.axes
        photometric, extra = int(page.photometric), [int(kind) for kind in page.extrasamples]
    if photometric not in (0, 1, 2) or samples.dtype != np.uint16:
        return None
    if axes.startswith("S"):
        samples = np.moveaxis(samples, 0, -1)
    samples = np.atleast_3d(samples)
    colours = 3 if photometric == 2 else 1
    colour, alpha = samples[..., :colours], samples[..., colours : colours + 1]
    if photometric == 0:
        colour = 65535 - colour
    if extra[:1] == [1]:  # associated alpha: the colour is stored times alpha
        whole = np.maximum(alpha, 1).astype(np.uint32)
        colour = np.minimum((colour.astype(np.uint32) * 65535 + whole // 2) // whole, 65535).astype(np.uint16)
    return np.dstack([colour, alpha]) if extra[:1] in ([1], [2]) else colour


def _samples(image: Image.Image) -> np.ndarray:
    """The samples of a loaded 8-bit image, or of a 16-bit grey one: (H, W) or (H, W, 2 to 4)."""
    mode = image.mode
    if mode.startswith("I;16"):
        return np.asarray(image).astype(np.uint16)
    if mode in ("I", "F"):
        kind = "floating-point" if mode == "F" else "32-bit"
        raise UnsupportedImage(f"the file holds {kind} samples; save it with 8 or 16 bits a channel")
    target = {"1": "L", "P": "RGB", "PA": "RGBA", "La": "LA", "RGBa": "RGBA"}.get(mode, mode)
    if "transparency" in image.info and target in ("L", "RGB"):
        target = {"L": "LA", "RGB": "RGBA"}[target]
    if target not in ("L", "LA", "RGB", "RGBA"):
        target = "RGB"
    return np.asarray(image if target == mode else image.convert(target))


def _to_srgb(image: Image.Image, icc: bytes | None, warnings: list[str]) -> Image.Image:
    if image.mode == "CMYK" and (icc is None or color.space(icc) != "CMYK"):
        icc = None
        warnings.append("CMYK without a profile: the colours are approximate")
    try:
        return color.to_srgb(image, icc)
    except ImageCms.PyCMSError:
        warnings.append("the CMYK profile is damaged: the colours are approximate")
        return image.convert("RGB")


def _exif_or_warning(image: Image.Image, warnings: list[str]) -> bytes:
    try:
        return metadata.read_exif(image)
    except metadata.EXIF_ERRORS:
        warnings.append("the EXIF block is damaged and was left out")
        return b""


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise ImageTooLarge(
            f"the photo has {width} x {height} = {width * height / 1e6:.1f} megapixels; "
            f"the limit is {max_pixels / 1e6:.1f}"
        )


def _upright(samples: np.ndarray, orientation: int) -> np.ndarray:
    """Apply the EXIF orientation (1 to 8; others are taken as 1)."""
    if orientation in (5, 6, 7, 8):
        samples = samples.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        samples = samples[:, ::-1]
    if orientation in (3, 4, 7, 8):
        samples = samples[::-1]
    return samples


def _photo(samples: np.ndarray, meta: Meta) -> Photo:
    samples = np.atleast_3d(samples)
    channels = samples.shape[2]
    grey = channels < 3
    alpha = samples[..., -1] if channels in (2, 4) else None
    pixels = np.repeat(samples[..., :1], 3, axis=2) if grey else samples[..., :3]
    depth = pixels.dtype.itemsize * 8
    icc, warnings = meta.icc, meta.warnings
    if icc is not None and color.space(icc) != ("GRAY" if grey else "RGB"):
        icc, warnings = None, (*warnings, "the colour profile is damaged or of another kind and was left out")
    linear = icc is not None and color.is_linear(icc)
    if linear:
        pixels = color.encode_linear(pixels)
        alpha = None if alpha is None else alpha.astype(np.uint16) * (257 if depth == 8 else 1)
    return Photo(
        np.ascontiguousarray(pixels),
        None if alpha is None else np.ascontiguousarray(alpha),
        replace(meta, grey=grey, depth=depth, linear=linear, icc=icc, warnings=warnings),
    )
