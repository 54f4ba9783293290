"""Bytes to Photo: file formats, bit depth, orientation, transparency, metadata."""

import io
import struct
import warnings as python_warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import imagecodecs
import numpy as np
import tifffile
from PIL import Image, ImageCms, UnidentifiedImageError

from ..errors import DamagedImage, ImageTooLarge, UnsupportedImage
from ..options import Limits
from . import icc
from .formats import heif, jpeg, metadata, png, tiff, xmp
from .formats.heif import CheckSize
from .formats.metadata import RawMetadata

READABLE = ("JPEG", "PNG", "WebP", "TIFF", "BMP", "GIF", "AVIF", "HEIC", "MPO")
# The header is checked against our own limit before any pixel is read
Image.MAX_IMAGE_PIXELS = None
# What Pillow finds odd in a file is said in Meta.warnings or does not matter
python_warnings.filterwarnings("ignore", module=r"PIL\.")

_DAMAGED = "the {} file is damaged or incomplete; export it again"
_LONGEST = 65_535  # pixels of a side, as in a JPEG's header
_MOST_FRAMES = 10_000
_FIRST_ONLY = "only the first picture of the file is restored"
# What a mode of Pillow's is read as
_TARGETS = {"1": "L", "L": "L", "LA": "LA", "La": "LA", "P": "RGB", "PA": "RGBA"}
_TARGETS |= {"RGB": "RGB", "RGBX": "RGB", "YCbCr": "RGB", "RGBA": "RGBA", "RGBa": "RGBA"}
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
    AssertionError,
    tifffile.TiffFileError,  # in older releases an Exception of its own
    struct.error,
    zlib.error,
    ImageCms.PyCMSError,
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
    iptc      a caption record, comment a JPEG comment, text the text chunks of a PNG, b"" for none
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
    iptc: bytes = b""
    comment: bytes = b""
    text: bytes = b""
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
    """A reader's answer: (H, W) or (H, W, 2 to 4) samples, and what came with them.

    turn     the EXIF orientation is still to be applied
    """

    samples: np.ndarray
    blocks: RawMetadata
    turn: bool = True


_Reader = Callable[[bytes, CheckSize, "list[str]"], _Raw]


def sniff(start: bytes) -> str | None:
    """The format that a file's first 256 bytes announce, as in Meta.format, or None."""
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
        return heif.sniff(start)
    return "bmp" if start.startswith(b"BM") else None


def decode(data: bytes, *, max_pixels: int = Limits.input_pixels) -> Photo:
    """Read a picture's bytes into an upright Photo, 8 bit as uint8 and 16 bit as uint16.

    Raises UnsupportedImage for what is not one of READABLE, DamagedImage for a file that is broken or
    cut off, and ImageTooLarge (before any pixel is read) for more than `max_pixels`.
    """
    form = _known_form(data)
    warnings: list[str] = []
    try:
        raw = _READERS[form](data, partial(_check_size, max_pixels=max_pixels), warnings)
    except _DECODER_ERRORS as error:
        raise DamagedImage(_DAMAGED.format(form.upper())) from error
    return _photo(form, raw, warnings)


class _Seen(Exception):
    """Carries a size out of a reader, before it reads any pixel."""


class Size(NamedTuple):
    """In pixels."""

    width: int
    height: int


def size(data: bytes, *, max_pixels: int = Limits.input_pixels) -> Size:
    """The size that a picture's bytes announce, before it is turned upright.

    Raises UnsupportedImage, DamagedImage and ImageTooLarge as decode() does, for what is seen so early.
    """
    form = _known_form(data)

    def see(width: int, height: int, *, part: bool = False, frames: int = 1) -> None:
        _check_size(width, height, max_pixels=max_pixels, frames=frames)
        if not part:
            raise _Seen(width, height)

    try:
        _READERS[form](data, see, [])
    except _Seen as seen:
        return Size(*seen.args)
    except _DECODER_ERRORS:
        pass
    raise DamagedImage(_DAMAGED.format(form.upper()))


def _known_form(data: bytes) -> str:
    form = sniff(data[:256])
    if form is None:
        what = "is empty" if not data else "is not an image of a kind that is read"
        raise UnsupportedImage(f"the file {what}; use one of {', '.join(READABLE)}")
    return form


def _read_jpeg(data: bytes, check: CheckSize, warnings: list[str]) -> _Raw:
    picture, blocks = jpeg.split(data)
    return _Raw(_samples(_open(picture, "JPEG", check), blocks, warnings), blocks)


def _read_png(data: bytes, check: CheckSize, warnings: list[str]) -> _Raw:
    check(*png.size(data), part=True, frames=png.frames(data))
    picture, blocks = png.split(data, warnings)
    check(*png.size(picture))
    return _Raw(imagecodecs.png_decode(picture), blocks)


def _read_tiff(data: bytes, check: CheckSize, warnings: list[str]) -> _Raw:
    block = metadata.read_exif(data, warnings)
    directory = tiff.Directory(block)
    check(directory.width, directory.height)
    check(*directory.tile, part=True)
    directory.check_whole(len(data))
    if block.more:
        warnings.append(_FIRST_ONLY)
    blocks = directory.blocks()
    blocks.exif, blocks.dpi = metadata.serialize_exif(block), metadata.resolution(block)
    samples = tiff.samples(data, directory)
    if samples is not None:
        return _Raw(samples, blocks)
    try:
        image = _open(directory.picture(data), "TIFF", check)
    except UnidentifiedImageError as error:
        raise UnsupportedImage(
            f"TIFF files of this kind (photometric interpretation {directory.photometric}, "
            f"{directory.channels} x {max(directory.bits)} bits) are not read; save it as RGB"
        ) from error
    if max(directory.bits) > 8:
        warnings.append("the colours were read with 8 bits a channel")
    return _Raw(_samples(image, blocks, warnings), blocks)


def _read_avif(data: bytes, check: CheckSize, warnings: list[str]) -> _Raw:
    return _Raw(*heif.read_avif(data, check, warnings))


def _read_heif(data: bytes, check: CheckSize, warnings: list[str]) -> _Raw:
    return _Raw(*heif.read_heic(data, check, warnings), turn=False)  # libheif turns it upright itself


def _read_other(data: bytes, check: CheckSize, warnings: list[str], *, form: str) -> _Raw:
    image = _open(data, form, check)
    blocks = RawMetadata.of(image.info)
    if getattr(image, "is_animated", False):
        warnings.append(_FIRST_ONLY)
    return _Raw(_samples(image, blocks, warnings), blocks)


def _open(data: bytes, form: str, check: CheckSize) -> Image.Image:
    if form == "WEBP":  # its reader looks at all of them; a GIF's, and a TIFF's, at the first
        check(1, 1, part=True, frames=data.count(b"ANMF"))
    image = Image.open(io.BytesIO(data), formats=[form])
    check(image.width, image.height)
    image.load()
    return image


def _samples(image: Image.Image, blocks: RawMetadata, warnings: list[str]) -> np.ndarray:
    """The samples of a loaded 8-bit image: (H, W) or (H, W, 2 to 4). CMYK and Lab become sRGB."""
    if image.mode in ("CMYK", "LAB"):
        image, blocks.icc = _to_srgb(image, blocks.icc, warnings), b""
    target = _TARGETS.get(image.mode)
    if target is None:
        raise UnsupportedImage(f"pictures of the kind {image.mode} are not read; save it as RGB")
    if "transparency" in image.info and target in ("L", "RGB"):
        target = {"L": "LA", "RGB": "RGBA"}[target]
    return np.asarray(image if target == image.mode else image.convert(target))


def _to_srgb(image: Image.Image, profile: bytes, warnings: list[str]) -> Image.Image:
    if image.mode == "CMYK" and icc.color_space(profile) != "CMYK":
        state = "with a damaged profile" if profile else "without a profile"
        warnings.append(f"CMYK {state}: the colours are approximate")
        profile = b""
    return icc.to_srgb(image, profile)


def _check_size(width: int, height: int, *, max_pixels: int, part: bool = False, frames: int = 1) -> None:
    if width < 1 or height < 1:
        raise ValueError("a picture without pixels")
    if width * height > max_pixels:
        raise ImageTooLarge(
            f"the photo has {width} x {height} = {width * height / 1e6:.1f} megapixels; "
            f"the limit is {max_pixels / 1e6:.1f}"
        )
    if max(width, height) > _LONGEST:
        raise ImageTooLarge(f"the photo has {width} x {height} pixels; a side may have {_LONGEST}")
    if frames > _MOST_FRAMES:
        raise ImageTooLarge(f"the file has {frames} pictures; it may have {_MOST_FRAMES}")


def _upright(samples: np.ndarray, orientation: int) -> np.ndarray:
    """Apply the EXIF orientation, 1 to 8."""
    if orientation in (5, 6, 7, 8):
        samples = samples.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        samples = samples[:, ::-1]
    if orientation in (3, 4, 7, 8):
        samples = samples[::-1]
    return samples


def _photo(form: str, raw: _Raw, warnings: list[str]) -> Photo:
    blocks = raw.blocks
    block = metadata.read_exif(blocks.exif, warnings)
    samples = np.atleast_3d(_upright(raw.samples, metadata.orientation(block)) if raw.turn else raw.samples)
    channels = samples.shape[2]
    grey, depth = channels < 3, samples.dtype.itemsize * 8
    pixels = np.repeat(samples[..., :1], 3, axis=2) if grey else samples[..., :3]
    alpha = samples[..., -1] if channels in (2, 4) else None
    profile = blocks.icc or None
    if profile is not None and icc.color_space(profile) != ("GRAY" if grey else "RGB"):
        profile = None
        warnings.append("the colour profile is damaged or of another kind and was left out")
    linear = profile is not None and icc.is_linear(profile)
    if linear:
        pixels = icc.encode_linear(pixels)
        alpha = None if alpha is None else alpha.astype(np.uint16) * (257 if depth == 8 else 1)
    meta = Meta(
        form,
        grey=grey,
        depth=depth,
        linear=linear,
        icc=profile,
        exif=metadata.serialize_exif(block),
        xmp=xmp.read(blocks.xmp, warnings),
        dpi=metadata.plausible_dpi(blocks.dpi) or metadata.resolution(block),
        iptc=blocks.iptc,
        comment=blocks.comment,
        text=blocks.text,
        warnings=tuple(dict.fromkeys(warnings)),  # each once
    )
    return Photo(np.ascontiguousarray(pixels), None if alpha is None else np.ascontiguousarray(alpha), meta)


_READERS: dict[str, _Reader] = {
    "jpeg": _read_jpeg,
    "png": _read_png,
    "tiff": _read_tiff,
    "avif": _read_avif,
    "heif": _read_heif,
    "webp": partial(_read_other, form="WEBP"),
    "gif": partial(_read_other, form="GIF"),
    "bmp": partial(_read_other, form="BMP"),
}
FORMATS = tuple(_READERS)
