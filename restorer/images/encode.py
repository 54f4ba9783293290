"""Encode a Photo as a file, with its metadata and colour profile."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import imagecodecs
import numpy as np
from PIL import Image

from ..errors import ImageTooLarge
from ..options import Options
from . import icc, result_metadata
from .file_types import WRITTEN_INSTEAD
from .formats import animation, jpeg, jxl, metadata, png, tiff
from .formats.metadata import RawMetadata
from .photo import Photo
from .resample import bands, luma, to_uint8

_LARGEST_SIDE = {"jpeg": 65_500, "webp": 16_383, "avif": 65_536, "png": 2**31 - 1, "tiff": 2**31 - 1}
_LARGEST_SIDE |= {"jxl": jxl.MAX_SIDE, "gif": 65_535}
_DEEP_WRITERS = {"png": png.encode, "tiff": tiff.encode}  # write 16 bits, and request samples row by row
_DEEP = (*_DEEP_WRITERS, "jxl")
LOSSY = ("jpeg", "webp", "avif", "jxl")
_NO_GREY_PROFILE = ("webp", "avif")  # their readers expect an RGB profile
_MAY_BE_LOSSLESS = ("webp", "jxl")
_THUMBNAIL_SIDE = 160  # pixels, as cameras store it


@dataclass(frozen=True)
class Encoded:
    """An encoded image.

    format      "png" ...
    warnings    what was lost, for the user
    adjustable  whether the quality changes its size
    """

    data: bytes
    format: str
    warnings: tuple[str, ...]
    adjustable: bool = False


Encoder = Callable[[int], Encoded]  # of a quality from 1 to 100


def output_format(photo: Photo, chosen: str) -> str:
    """Return the format to write: `chosen`, or for "same" the input's, replaced where there is no writer."""
    if chosen != "same":
        return chosen
    image_format = photo.meta.format
    if image_format == "heif" and (photo.alpha is not None or photo.meta.depth > 8):
        return WRITTEN_INSTEAD[image_format][1]
    return WRITTEN_INSTEAD.get(image_format, (image_format,))[0]


def check_fits(photo: Photo, width: int, height: int, image_format: str) -> None:
    """Raise ImageTooLarge when `image_format` cannot store this photo at width x height pixels.

    Raises UnsupportedImage for a format that cannot be written here.
    """
    if image_format == "jxl":
        jxl.library()
    limit = _LARGEST_SIDE[image_format]
    if max(width, height) > limit:
        raise ImageTooLarge(
            f"the result would be {width} x {height} pixels; {image_format.upper()} allows at most {limit} "
            "per side; use PNG or a smaller scale"
        )
    channels = (1 if photo.meta.grey else 3) + (photo.alpha is not None)
    size = width * height * channels * photo.meta.depth // 8
    if image_format == "tiff" and size > tiff.MAX_SIZE:
        raise ImageTooLarge(f"the result would be {size / 1e9:.1f} GB; TIFF allows at most 4 GB; use PNG")


def encode(photo: Photo, image_format: str, *, history: str = "", **options: object) -> Encoded:
    """Encode a Photo with its colour profile and metadata; see encoder() for the arguments."""
    chosen = Options().changed(options)
    return encoder(photo, image_format, chosen, history)(chosen.quality)


def encoder(photo: Photo, image_format: str, options: Options, history: str = "") -> Encoder:
    """Return what encodes a Photo at a quality; its metadata and samples are converted only once.

    image_format  "png", "jpeg", "webp", "tiff", "avif" or "jxl"
    options       keep_metadata, remove_gps and dpi are used
    history       an ASCII line on how the image was produced, stored as EXIF ImageHistory

    Raises ImageTooLarge for a side beyond the format's limit; check_fits detects this in advance.
    """
    check_fits(photo, photo.width, photo.height, image_format)
    blocks, left_out = result_metadata.update(
        photo, image_format, partial(_thumbnail, photo), options, history
    )
    warnings = losses(photo, image_format) + left_out
    if image_format in _DEEP_WRITERS:
        write = _DEEP_WRITERS[image_format]
        return lambda quality: Encoded(
            write(partial(_samples, photo, image_format), photo.height, blocks), image_format, warnings
        )
    samples = _samples(photo, image_format, slice(None))
    if blocks.icc and photo.meta.grey and image_format in _NO_GREY_PROFILE:
        samples, blocks = _grey_as_srgb(samples, blocks.icc), replace(blocks, icc=b"")
    if image_format == "jpeg" and len(blocks.icc) > jpeg.MAX_PROFILE:
        blocks = replace(blocks, icc=b"")
        warnings += ("the colour profile is too large for JPEG and was left out",)
    lossless = not adjustable(photo, image_format)
    return lambda quality: Encoded(
        _WRITERS[image_format](samples, blocks, quality, lossless),
        image_format,
        warnings,
        adjustable=not lossless,
    )


def frames_encoder(frames: Sequence[Photo], image_format: str, options: Options, history: str) -> Encoder:
    """Return what encodes the frames of an animation, all of one size and with the first one's timing.

    image_format  "gif", "webp" or "png"; see encoder() for the rest
    """
    first = frames[0]
    timing = first.meta.timing
    assert timing
    history = "" if image_format == "gif" else history  # which has no place for it
    blocks, left_out = result_metadata.update(first, image_format, lambda: b"", options, history)
    warnings = losses(first, image_format) + left_out
    if image_format == "gif":
        warnings += ("GIF holds 256 colours per frame",)
        if blocks.icc:
            warnings += ("the colour profile was left out: GIF has no place for it",)
    samples = [_samples(frame, image_format, slice(None)) for frame in frames]
    if blocks.icc and first.meta.grey and image_format in _NO_GREY_PROFILE:
        samples = [_grey_as_srgb(frame, blocks.icc) for frame in samples]
        blocks = replace(blocks, icc=b"")
    return lambda quality: Encoded(
        animation.encode(samples, image_format, timing, blocks, quality),
        image_format,
        warnings,
        adjustable=image_format in LOSSY,
    )


def adjustable(photo: Photo, image_format: str) -> bool:
    """Return whether a file has a quality that can be lowered."""
    return image_format in LOSSY and not _stays_lossless(photo, image_format)


def _stays_lossless(photo: Photo, image_format: str) -> bool:
    return photo.meta.lossless and photo.meta.format == image_format and image_format in _MAY_BE_LOSSLESS


def losses(photo: Photo, image_format: str) -> tuple[str, ...]:
    """Return warnings, for the user, about what `image_format` cannot store of this photo's samples."""
    warnings = []
    if photo.meta.depth == 16 and image_format not in _DEEP:
        warnings.append(f"16-bit channels are reduced to 8 bits: {image_format.upper()} is written with 8")
    if photo.alpha is not None and image_format == "jpeg":
        warnings.append("transparency is flattened onto white: JPEG has no alpha channel")
    if photo.meta.lossless and image_format in LOSSY and not _stays_lossless(photo, image_format):
        warnings.append(f"the photo was stored without loss: {image_format.upper()} is written lossy")
    return tuple(warnings)


def _samples(photo: Photo, image_format: str, rows: slice) -> np.ndarray:
    meta, alpha = photo.meta, None if photo.alpha is None else photo.alpha[rows]
    samples = photo.pixels[rows, :, 0].copy() if meta.grey else photo.pixels[rows]
    if meta.linear:
        samples = icc.decode_linear(samples)
    if meta.depth == 8 or image_format not in _DEEP:
        samples, alpha = to_uint8(samples), None if alpha is None else to_uint8(alpha)
    if alpha is None:
        return samples
    samples = np.atleast_3d(samples)
    if image_format == "jpeg":
        flat = _on_white(samples, alpha)
        return flat[..., 0] if meta.grey else flat
    return np.dstack([samples, alpha])


def _on_white(samples: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    out = np.empty_like(samples)
    for rows in bands(len(samples)):
        opacity = alpha[rows, :, None].astype(np.uint32)
        out[rows] = (samples[rows] * opacity + 255 * (255 - opacity) + 127) // 255
    return out


def _grey_as_srgb(samples: np.ndarray, profile: bytes) -> np.ndarray:
    """Convert 8-bit grey (H, W), or grey and alpha (H, W, 2), from its profile to the sRGB curve."""
    colour = icc.to_srgb(Image.fromarray(samples if samples.ndim == 2 else samples[..., 0]), profile)
    grey = luma(np.asarray(colour))
    return grey if samples.ndim == 2 else np.dstack([grey, samples[..., 1]])


def _thumbnail(photo: Photo) -> bytes:
    step = max(min(photo.width, photo.height) // (4 * _THUMBNAIL_SIDE), 1)
    alpha = None if photo.alpha is None else photo.alpha[::step, ::step]
    small = Photo(photo.pixels[::step, ::step], alpha, photo.meta)
    image = Image.fromarray(_samples(small, "jpeg", slice(None)))
    image.thumbnail((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE))
    return bytes(imagecodecs.jpeg8_encode(np.ascontiguousarray(image), 80))


def _write_jpeg(samples: np.ndarray, blocks: RawMetadata, quality: int, _lossless: bool) -> bytes:
    # Same libjpeg-turbo and same bytes as Pillow, without Pillow's copy of the image
    plain = imagecodecs.jpeg8_encode(np.ascontiguousarray(samples), quality, subsampling="444")
    return jpeg.insert_segments(bytes(plain), blocks)


def _write_webp(samples: np.ndarray, blocks: RawMetadata, quality: int, lossless: bool) -> bytes:
    options = {"lossless": True, "quality": 75} if lossless else {"quality": quality}  # there, the effort
    return _pillow(samples, blocks, "WEBP", exact=True, **options)


def _write_avif(samples: np.ndarray, blocks: RawMetadata, quality: int, _lossless: bool) -> bytes:
    # Pillow would turn the orientation tag into a rotation of the container and rewrite the EXIF block
    exif = metadata.remove_orientation(blocks.exif)
    chroma = "4:0:0" if samples.ndim == 2 else "4:4:4"
    # Same quality as the default speed 6, five times as fast, 10% larger (measured at qualities 80 and 95)
    options = {"quality": quality, "subsampling": chroma, "speed": 9}
    return _pillow(samples, replace(blocks, exif=exif), "AVIF", **options)


def _write_jxl(samples: np.ndarray, blocks: RawMetadata, quality: int, lossless: bool) -> bytes:
    return jxl.encode(samples, blocks, quality, lossless=lossless)


def _pillow(samples: np.ndarray, blocks: RawMetadata, name: str, **options: object) -> bytes:
    out = io.BytesIO()
    metadata_options = {"icc_profile": blocks.icc, "exif": blocks.exif, "xmp": blocks.xmp}
    present = {key: block for key, block in metadata_options.items() if block}
    Image.fromarray(samples).save(out, name, **present, **options)
    return out.getvalue()


_WRITERS: dict[str, Callable[[np.ndarray, RawMetadata, int, bool], bytes]] = {
    "jpeg": _write_jpeg,
    "webp": _write_webp,
    "avif": _write_avif,
    "jxl": _write_jxl,
}
