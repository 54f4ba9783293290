"""Decode the bytes of an image file to a Photo: upright RGB samples, alpha and metadata."""

import struct
import warnings as python_warnings
import zlib
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np
import tifffile
from PIL import Image, ImageCms

from ..errors import DamagedImage, ImageTooLarge, UnsupportedImage
from ..options import Limits
from . import icc
from .formats import animation, camera_raw, heif, jp2, jxl, metadata, tiff, xmp
from .formats.animation import Timing
from .formats.decoded import Raw
from .formats.metadata import FIRST_ONLY, THUMBNAIL, RawMetadata
from .readers import READERS

READABLE = ("JPEG", "PNG", "WebP", "TIFF", "BMP", "GIF", "AVIF", "HEIC", "MPO", "JPEG XL", "JPEG 2000")
# _check_size enforces our own limit before any pixel is decoded
Image.MAX_IMAGE_PIXELS = None
# Whatever matters to the user is in Meta.warnings
python_warnings.filterwarnings("ignore", module=r"PIL\.")

_DAMAGED = "the {} file is damaged or incomplete; export it again"
_MAX_SIDE = 65_535  # pixels, as in a JPEG header
MAX_FRAMES = 10_000
# Raised by the decoders for broken files, beyond what Pillow documents
_DECODER_ERRORS = (
    OSError,
    ValueError,
    TypeError,
    SyntaxError,
    LookupError,
    ArithmeticError,
    EOFError,
    RuntimeError,  # base of imagecodecs' errors
    AttributeError,
    AssertionError,
    tifffile.TiffFileError,  # derives from Exception alone in older releases
    struct.error,
    zlib.error,
    ImageCms.PyCMSError,
)


@dataclass(frozen=True)
class Meta:
    """Everything in a file but its pixels, as the encoders need it.

    format    "jpeg", "png", "webp", "tiff", "bmp", "gif", "avif", "heif", "jxl" or "jp2"
    grey      whether the file has a single colour channel
    depth     bits per channel in the file, 8 or 16
    linear    whether the file holds linear light, by its profile; the decoded pixels are on the sRGB curve
    lossless  whether this file's pixels are stored without loss, in a format that is usually lossy
    orientation  of EXIF or of the container, 1 to 8, which was applied to the pixels
    stored    (width, height) in the file, before the orientation was applied; None: as the pixels are
    metadata  the file's metadata, validated, as it was stored: what counts in pixels is that of the file;
              icc is the colour profile of `pixels`, b"" for sRGB
    pages     number of pages of a TIFF file or pictures of a HEIC file
    animated  whether the file has several frames
    timing    of the frames if all were decoded: `pixels` has them one below the other until split()
    warnings  what was dropped or changed while decoding, for the user
    """

    format: str
    grey: bool = False
    depth: int = 8
    linear: bool = False
    lossless: bool = False
    orientation: int = 1
    stored: tuple[int, int] | None = None
    metadata: RawMetadata = RawMetadata()
    pages: int = 1
    animated: bool = False
    timing: Timing | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Photo:
    """An upright image.

    pixels  (H, W, 3) uint8 or uint16 RGB, not premultiplied; grey has three equal channels
    alpha   (H, W) of the same dtype, 0 is transparent, or None
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


def sniff(start: bytes) -> str | None:
    """Return the format, as in Meta.format, that a file's first 256 bytes indicate, or None."""
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
    if start.startswith((jxl.CONTAINER, jxl.CODESTREAM)):
        return "jxl"
    if start.startswith((jp2.CONTAINER, jp2.CODESTREAM)):
        return "jp2"
    if start[4:8] == b"ftyp":
        return heif.sniff(start)
    return "bmp" if start.startswith(b"BM") else None


def decode(
    data: bytes, *, max_pixels: int = Limits.input_pixels, page: int | None = None, frames: bool = False
) -> Photo:
    """Decode an image file to an upright Photo, uint8 for 8 bits per channel and uint16 for 16.

    page    of a TIFF or HEIC file, from 0; None: the main one, with a warning if there are others
    frames  decode all frames of an animation, which have `max_pixels` together; see split()

    Raises UnsupportedImage for a format not in READABLE, DamagedImage for a broken or truncated file, and
    ImageTooLarge, before any pixel is decoded, for more than `max_pixels`.
    """
    image_format = _known_form(data)
    warnings: list[str] = []
    try:
        if page is not None and image_format == "tiff":
            data = tiff.with_first_page(data, page)
        reader = partial(heif.read_heic, page=page) if image_format == "heif" else READERS[image_format]
        raw = reader(data, partial(_check_size, max_pixels=max_pixels), warnings)
        if frames and raw.animated:
            raw = _with_frames(data, image_format, raw, warnings, max_pixels)
    except _DECODER_ERRORS as error:
        raise DamagedImage(_DAMAGED.format(image_format.upper())) from error
    if page is not None or raw.timing:
        warnings = [warning for warning in warnings if warning != FIRST_ONLY]
    return _photo(image_format, raw, warnings)


def _with_frames(data: bytes, image_format: str, raw: Raw, warnings: list[str], max_pixels: int) -> Raw:
    def check(width: int, height: int, frames: int) -> None:
        _check_size(width, height, max_pixels=max_pixels, frames=frames)
        if width * height * frames > max_pixels:
            raise ImageTooLarge(
                f"the {frames} frames of {width} x {height} pixels have "
                f"{width * height * frames / 1e6:.1f} megapixels; the limit is {max_pixels / 1e6:.1f}"
            )

    frames, timing = animation.read(data, image_format, check)
    if raw.samples.dtype != np.uint8:
        warnings.append("the frames were reduced to 8 bits per channel")
    orientation = metadata.orientation(metadata.parse_exif(raw.blocks.exif, []))
    stacked = np.concatenate([_upright(frame, orientation) for frame in frames])
    if image_format == "png" and np.atleast_3d(raw.samples).shape[2] < 3:  # all frames are grey
        stacked = stacked[..., [0, 3][: stacked.shape[2] - 2]]
    return replace(raw, samples=stacked, timing=timing, apply_orientation=False)


def split(photo: Photo) -> list[Photo]:
    """Return the frames of a Photo that was decoded with `frames`."""
    count = len(photo.meta.timing.durations) if photo.meta.timing else 1
    alphas = [None] * count if photo.alpha is None else np.split(photo.alpha, count)
    parts = zip(np.split(photo.pixels, count), alphas, strict=True)
    return [Photo(pixels, alpha, photo.meta) for pixels, alpha in parts]


class _SizeKnown(Exception):
    """Carries the size out of a reader before it decodes any pixel."""


class Size(NamedTuple):
    """In pixels."""

    width: int
    height: int


def size(data: bytes, *, max_pixels: int = Limits.input_pixels) -> Size:
    """Return the size in an image's header, before orientation is applied.

    Raises the errors of decode(), as far as the header shows the cause.
    """
    image_format = _known_form(data)

    def check(width: int, height: int, *, part: bool = False, frames: int = 1) -> None:
        _check_size(width, height, max_pixels=max_pixels, frames=frames)
        if not part:
            raise _SizeKnown(width, height)

    try:
        READERS[image_format](data, check, [])
    except _SizeKnown as known:
        return Size(*known.args)
    except _DECODER_ERRORS:
        pass
    raise DamagedImage(_DAMAGED.format(image_format.upper()))


def _known_form(data: bytes) -> str:
    image_format = sniff(data[:256])
    if name := camera_raw.camera(data[:256]):
        raise UnsupportedImage(
            f"this is a camera raw file ({name}); develop it, or use one of {', '.join(READABLE)}"
        )
    if image_format is None:
        reason = "not an image in a supported format" if data else "empty"
        raise UnsupportedImage(f"the file is {reason}; use one of {', '.join(READABLE)}")
    return image_format


def _check_size(width: int, height: int, *, max_pixels: int, part: bool = False, frames: int = 1) -> None:
    if width < 1 or height < 1:
        raise ValueError(f"no pixels: {width} x {height}")
    if width * height > max_pixels:
        raise ImageTooLarge(
            f"the photo is {width} x {height} = {width * height / 1e6:.1f} megapixels; "
            f"the limit is {max_pixels / 1e6:.1f}"
        )
    if max(width, height) > _MAX_SIDE:
        raise ImageTooLarge(f"the photo is {width} x {height} pixels; the limit per side is {_MAX_SIDE}")
    if frames > MAX_FRAMES:
        raise ImageTooLarge(f"the file has {frames} frames; the limit is {MAX_FRAMES}")


def _upright(samples: np.ndarray, orientation: int) -> np.ndarray:
    """Apply the EXIF orientation, 1 to 8."""
    if orientation in (5, 6, 7, 8):
        samples = samples.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        samples = samples[:, ::-1]
    if orientation in (3, 4, 7, 8):
        samples = samples[::-1]
    return samples


def _photo(image_format: str, raw: Raw, warnings: list[str]) -> Photo:
    blocks = raw.blocks
    block = metadata.parse_exif(blocks.exif, warnings)
    orientation = raw.orientation or metadata.orientation(block)
    samples = np.atleast_3d(_upright(raw.samples, orientation) if raw.apply_orientation else raw.samples)
    channels = samples.shape[2]
    grey, depth = channels < 3, samples.dtype.itemsize * 8
    pixels = np.repeat(samples[..., :1], 3, axis=2) if grey else samples[..., :3]
    alpha = samples[..., -1] if channels in (2, 4) else None
    profile = blocks.icc
    if profile and icc.color_space(profile) != ("GRAY" if grey else "RGB"):
        profile = b""
        warnings.append("the colour profile is damaged or does not match the image and was left out")
    linear = profile != b"" and icc.is_linear(profile)
    if linear:
        pixels = icc.encode_linear(pixels)
        alpha = None if alpha is None else alpha.astype(np.uint16) * (257 if depth == 8 else 1)
    others = [*blocks.others]
    if image_format != "tiff":  # whose reader did this
        others += [*metadata.left_out(block), *([THUMBNAIL] if block.has_next else [])]
    height, width = samples.shape[:2]
    if raw.timing:
        height //= len(raw.timing.durations)
    meta = Meta(
        image_format,
        grey=grey,
        depth=depth,
        linear=linear,
        lossless=raw.lossless,
        orientation=orientation,
        stored=(height, width) if orientation >= 5 else (width, height),
        metadata=replace(
            blocks,
            icc=profile,
            exif=metadata.serialize_exif(block),
            xmp=xmp.validate(blocks.xmp, warnings),
            dpi=metadata.plausible_dpi(blocks.dpi) or metadata.resolution(block),
            others=tuple(sorted(set(others))),
        ),
        pages=raw.pages,
        animated=raw.animated,
        timing=raw.timing,
        warnings=tuple(dict.fromkeys(warnings)),  # deduplicated
    )
    return Photo(np.ascontiguousarray(pixels), None if alpha is None else np.ascontiguousarray(alpha), meta)


FORMATS = tuple(READERS)
