"""Photo to bytes: one writer a format, metadata and colour profile included."""

import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import imagecodecs
import numpy as np
from PIL import Image

from ..errors import ImageTooLarge
from ..options import Options
from . import icc
from .file_types import WRITTEN_INSTEAD
from .formats import jpeg, metadata, png, tiff, xmp
from .formats.metadata import RawMetadata
from .photo import Photo
from .resample import bands, luma, to_uint8

_LARGEST_SIDE = {"jpeg": 65_500, "webp": 16_383, "avif": 65_536, "png": 2**31 - 1, "tiff": 2**31 - 1}
_DEEP = {"png": png.encode, "tiff": tiff.encode}  # what they write they ask for row by row
_NO_GREY_PROFILE = ("webp", "avif")  # their readers expect a profile of an RGB space
_RESOLUTION_IN_EXIF = ("webp", "avif", "tiff")


@dataclass(frozen=True)
class Encoded:
    """A picture file: its bytes, format ("png" ...) and what could not be kept, in the user's words."""

    data: bytes
    format: str
    warnings: tuple[str, ...]


def output_format(photo: Photo, chosen: str) -> str:
    """The format that is written: `chosen`, or for "same" the input's where there is a writer."""
    if chosen != "same":
        return chosen
    form = photo.meta.format
    if form == "heif" and (photo.alpha is not None or photo.meta.depth > 8):
        return WRITTEN_INSTEAD[form][1]
    return WRITTEN_INSTEAD.get(form, (form,))[0]


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
    if form == "tiff" and size > tiff.LARGEST:
        raise ImageTooLarge(f"the result would have {size / 1e9:.1f} GB; TIFF holds 4: choose PNG")


def encode(
    photo: Photo,
    form: str,
    *,
    quality: int,
    keep_metadata: bool = Options.keep_metadata,
    remove_gps: bool = Options.remove_gps,
    history: str = "",
) -> Encoded:
    """Write a Photo as `form` ("png", "jpeg", "webp", "tiff" or "avif") with its profile and metadata.

    history  a line in ASCII on how the picture was made, for its metadata: EXIF's ImageHistory

    Raises ImageTooLarge for a side beyond the format's limit (check_fits says so beforehand).
    """
    check_fits(photo, photo.width, photo.height, form)
    warnings = list(losses(photo, form))
    blocks = RawMetadata()
    if keep_metadata:
        blocks = _carried(photo, form, remove_gps=remove_gps, history=history)
    blocks.icc = photo.meta.icc or b""
    if form in _DEEP:
        data = _DEEP[form](partial(_samples, photo, form), photo.height, blocks)
        return Encoded(data, form, tuple(warnings))
    samples = _samples(photo, form, slice(None))
    if blocks.icc and photo.meta.grey and form in _NO_GREY_PROFILE:
        samples, blocks.icc = _grey_as_srgb(samples, blocks.icc), b""
    if form == "jpeg":
        blocks = _fit_segments(blocks, warnings)
    return Encoded(_WRITERS[form](samples, blocks, quality), form, tuple(warnings))


def losses(photo: Photo, form: str) -> tuple[str, ...]:
    """What of this photo's samples `form` cannot hold, in the user's words."""
    found = []
    if photo.meta.depth == 16 and form not in _DEEP:
        found.append(f"16 bits a channel become 8: {form.upper()} is written with 8")
    if photo.alpha is not None and form == "jpeg":
        found.append("transparency is laid on white: JPEG has none")
    return tuple(found)


def _samples(photo: Photo, form: str, rows: slice) -> np.ndarray:
    meta, alpha = photo.meta, None if photo.alpha is None else photo.alpha[rows]
    samples = photo.pixels[rows, :, 0].copy() if meta.grey else photo.pixels[rows]
    if meta.linear:
        samples = icc.decode_linear(samples)
    if meta.depth == 8 or form not in _DEEP:
        samples, alpha = to_uint8(samples), None if alpha is None else to_uint8(alpha)
    if alpha is None:
        return samples
    samples = np.atleast_3d(samples)
    if form == "jpeg":
        flat = _on_white(samples, alpha)
        return flat[..., 0] if meta.grey else flat
    return np.dstack([samples, alpha])


def _on_white(samples: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    out = np.empty_like(samples)
    for rows in bands(len(samples)):
        cover = alpha[rows, :, None].astype(np.uint32)
        out[rows] = (samples[rows] * cover + 255 * (255 - cover) + 127) // 255
    return out


def _grey_as_srgb(samples: np.ndarray, profile: bytes) -> np.ndarray:
    """8-bit grey (H, W) or grey and alpha (H, W, 2) on sRGB's curve, through the grey profile."""
    colour = icc.to_srgb(Image.fromarray(samples if samples.ndim == 2 else samples[..., 0]), profile)
    grey = luma(np.asarray(colour))
    return grey if samples.ndim == 2 else np.dstack([grey, samples[..., 1]])


def _carried(photo: Photo, form: str, *, remove_gps: bool, history: str) -> RawMetadata:
    meta = photo.meta
    size = {"width": photo.width, "height": photo.height, "remove_gps": remove_gps}
    # A resolution alone needs no EXIF block where the format has its own place for it
    dpi = meta.dpi if meta.exif or history or form in _RESOLUTION_IN_EXIF else None
    return RawMetadata(
        exif=metadata.update_exif(meta.exif, dpi, history=history, **size),
        xmp=xmp.update(meta.xmp, **size),
        dpi=meta.dpi,
        iptc=meta.iptc,
        comment=meta.comment,
        text=meta.text,
    )


def _fit_segments(blocks: RawMetadata, warnings: list[str]) -> RawMetadata:
    for name in ("exif", "xmp", "iptc", "comment"):
        if len(getattr(blocks, name)) > jpeg.LARGEST_BLOCK:
            blocks = replace(blocks, **{name: b""})
            warnings.append(f"the {name.upper()} block is larger than JPEG can hold and was left out")
    if len(blocks.icc) > jpeg.LARGEST_PROFILE:
        blocks = replace(blocks, icc=b"")
        warnings.append("the colour profile is larger than JPEG can hold and was left out")
    return blocks


def _write_jpeg(samples: np.ndarray, blocks: RawMetadata, quality: int) -> bytes:
    # libjpeg-turbo too, and the same bytes as Pillow's, which copies the picture beforehand
    plain = imagecodecs.jpeg8_encode(np.ascontiguousarray(samples), quality, subsampling="444")
    return jpeg.insert_segments(bytes(plain), blocks)


def _write_webp(samples: np.ndarray, blocks: RawMetadata, quality: int) -> bytes:
    return _pillow(samples, blocks, "WEBP", quality=quality, exact=True)


def _write_avif(samples: np.ndarray, blocks: RawMetadata, quality: int) -> bytes:
    exif = metadata.without_orientation(blocks.exif)  # Pillow would make a turn of it, and write EXIF anew
    chroma = "4:0:0" if samples.ndim == 2 else "4:4:4"
    # As good as the default speed of 6, five times as fast, a tenth larger (measured at qualities 80 and 95)
    options = {"quality": quality, "subsampling": chroma, "speed": 9}
    return _pillow(samples, replace(blocks, exif=exif), "AVIF", **options)


def _pillow(samples: np.ndarray, blocks: RawMetadata, name: str, **options: object) -> bytes:
    out = io.BytesIO()
    found = {"icc_profile": blocks.icc, "exif": blocks.exif, "xmp": blocks.xmp}
    present = {key: block for key, block in found.items() if block}
    Image.fromarray(samples).save(out, name, **present, **options)
    return out.getvalue()


_WRITERS: dict[str, Callable[[np.ndarray, RawMetadata, int], bytes]] = {
    "jpeg": _write_jpeg,
    "webp": _write_webp,
    "avif": _write_avif,
}
