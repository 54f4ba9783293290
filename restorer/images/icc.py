"""Inspect ICC profiles and convert the few images whose values must change.

The networks expect display-referred values (about gamma 2). A Display P3 or Adobe RGB photo already has
them: its values are kept and its profile is embedded again, so nothing is clipped to sRGB. A photo in
linear light is put on the sRGB curve for the network and taken off it afterwards. CMYK and Lab are
converted to sRGB through their profiles.
"""

import io
from typing import Literal

import numpy as np
from PIL import Image, ImageCms

from .resample import lookup

# CIE L* of the middle grey code value: 53 for sRGB, 61 for gamma 1.8, 76 for linear light
_LINEAR_ABOVE = 68
_MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}


def color_space(icc: bytes) -> str:
    """Return a profile's colour space ("RGB", "GRAY" or "CMYK"), or "" if the profile is unusable."""
    space = icc[16:20].decode("ascii", "replace").strip()  # ICC.1:2022, 7.2
    complete = int.from_bytes(icc[:4], "big") <= len(icc)  # littlecms accepts truncated profiles
    return space if complete and space in _MODES and _middle(icc, space) is not None else ""


def is_linear(icc: bytes) -> bool:
    """Return whether an RGB or grey profile is linear, that is, lighter in the middle than any display."""
    space = color_space(icc)
    lightness = _middle(icc, space) if space in ("RGB", "GRAY") else None
    return lightness is not None and lightness > _LINEAR_ABOVE


def to_srgb(image: Image.Image, icc: bytes) -> Image.Image:
    """Convert an image to sRGB through a profile of its colour space, as color_space() reports it.

    Lab needs no profile; CMYK without one uses Pillow's naive formula. The intent is relative colorimetric
    without black point compensation: colours within sRGB keep their measured values.
    """
    if image.mode == "LAB":
        return _convert(image, _built_in("LAB"), _built_in("sRGB"), "RGB")
    return _convert(image, _open(icc), _built_in("sRGB"), "RGB") if icc else image.convert("RGB")


def encode_linear(pixels: np.ndarray) -> np.ndarray:
    """Convert linear light (uint8 or uint16) to the sRGB curve (uint16), as in IEC 61966-2-1."""
    table = np.linspace(0, 1, _levels(pixels.dtype))
    curved = np.where(table <= 0.0031308, table * 12.92, 1.055 * table ** (1 / 2.4) - 0.055)
    return lookup(pixels, np.rint(curved * 65535).astype(np.uint16))


def decode_linear(pixels: np.ndarray) -> np.ndarray:
    """Invert encode_linear, uint16 to uint16."""
    table = np.linspace(0, 1, _levels(pixels.dtype))
    linear = np.where(table <= 0.04045, table / 12.92, ((table + 0.055) / 1.055) ** 2.4)
    return lookup(pixels, np.rint(linear * 65535).astype(np.uint16))


def _levels(dtype: np.dtype) -> int:
    return int(np.iinfo(dtype).max) + 1


def _middle(icc: bytes, space: str) -> float | None:
    """Return CIE L* with every channel at its middle code value, or None if the profile does not convert."""
    middle = Image.new(_MODES[space], (1, 1), 128 if space == "GRAY" else (128,) * len(space))
    try:
        # NOOPTIMIZE skips a lookup table that costs more than the one pixel
        lab = _convert(middle, _open(icc), _built_in("LAB"), "LAB", ImageCms.Flags.NOOPTIMIZE)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None
    return int(np.asarray(lab)[0, 0, 0]) * 100 / 255


def _open(icc: bytes) -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(io.BytesIO(icc))


def _built_in(name: Literal["LAB", "sRGB"]) -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile(name))


def _convert(
    image: Image.Image,
    source: ImageCms.ImageCmsProfile,
    target: ImageCms.ImageCmsProfile,
    mode: str,
    flags: ImageCms.Flags = ImageCms.Flags.NONE,
) -> Image.Image:
    transform = ImageCms.buildTransform(
        source,
        target,
        image.mode,
        mode,
        renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
        flags=flags,
    )
    return transform.apply(image)
