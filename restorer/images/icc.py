"""Colour profiles: what a profile is, and the two cases in which values must change.

A network only ever sees display-like values (about gamma 2). A Display-P3 or AdobeRGB photo is such
already: its values stay as they are and its profile is embedded again, so nothing is clipped to sRGB.
A photo in linear light gets the sRGB curve for the network and loses it afterwards; CMYK and Lab go
to sRGB through their profiles.
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
    """The colour space of a profile ("RGB", "GRAY" or "CMYK"), or "" when it cannot be used."""
    found = icc[16:20].decode("ascii", "replace").strip()  # ICC.1:2022, 7.2
    whole = int.from_bytes(icc[:4], "big") <= len(icc)  # of one that is cut off littlecms uses the rest
    return found if whole and found in _MODES and _middle(icc, found) is not None else ""


def is_linear(icc: bytes) -> bool:
    """Whether an RGB or grey profile holds linear light: half the code range looks far too bright."""
    found = color_space(icc)
    lightness = _middle(icc, found) if found in ("RGB", "GRAY") else None
    return lightness is not None and lightness > _LINEAR_ABOVE


def to_srgb(image: Image.Image, icc: bytes) -> Image.Image:
    """An image in sRGB, through a profile of its colour space (one that space() names).

    Lab needs no profile; CMYK without one takes Pillow's plain formula. Relative colorimetric, without
    black point compensation: colours that sRGB holds come out as they were measured.
    """
    if image.mode == "LAB":
        return _convert(image, _built_in("LAB"), _built_in("sRGB"), "RGB")
    return _convert(image, _open(icc), _built_in("sRGB"), "RGB") if icc else image.convert("RGB")


def encode_linear(pixels: np.ndarray) -> np.ndarray:
    """Linear light (uint8 or uint16) as sRGB-curve values in uint16 (IEC 61966-2-1)."""
    table = np.linspace(0, 1, _levels(pixels.dtype))
    curved = np.where(table <= 0.0031308, table * 12.92, 1.055 * table ** (1 / 2.4) - 0.055)
    return lookup(pixels, np.rint(curved * 65535).astype(np.uint16))


def decode_linear(pixels: np.ndarray) -> np.ndarray:
    """The inverse of encode_linear, uint16 to uint16."""
    table = np.linspace(0, 1, _levels(pixels.dtype))
    linear = np.where(table <= 0.04045, table / 12.92, ((table + 0.055) / 1.055) ** 2.4)
    return lookup(pixels, np.rint(linear * 65535).astype(np.uint16))


def _levels(dtype: np.dtype) -> int:
    return int(np.iinfo(dtype).max) + 1


def _middle(icc: bytes, found: str) -> float | None:
    """CIE L* of the middle code value of every channel; None for a profile that does not convert."""
    middle = Image.new(_MODES[found], (1, 1), 128 if found == "GRAY" else (128,) * len(found))
    try:
        # One pixel is not worth the table that littlecms otherwise works out first
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
