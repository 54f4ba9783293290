"""Colour profiles: what a profile is, and the two cases in which values must change.

A network only ever sees display-like values (about gamma 2). A Display-P3 or AdobeRGB photo is such
already: its values stay as they are and its profile is embedded again, so nothing is clipped to sRGB.
A photo in linear light gets the sRGB curve for the network and loses it afterwards; CMYK and Lab go
to sRGB through their profiles.
"""

import io
from functools import lru_cache
from typing import Literal

import numpy as np
from PIL import Image, ImageCms

# CIE L* of the middle grey code value: 53 for sRGB, 61 for gamma 1.8, 76 for linear light
_LINEAR_ABOVE = 68


def space(icc: bytes) -> str:
    """The colour space of a profile ("RGB", "GRAY", "CMYK", ...), or "" when it cannot be read."""
    try:
        _open(icc)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return ""
    return icc[16:20].decode("ascii", "replace").strip()  # ICC.1:2022, 7.2


@lru_cache(maxsize=32)
def is_linear(icc: bytes) -> bool:
    """Whether an RGB or grey profile holds linear light: half the code range looks far too bright."""
    mode = {"RGB": "RGB", "GRAY": "L"}.get(space(icc))
    if mode is None:
        return False
    grey = Image.new(mode, (1, 1), (128, 128, 128) if mode == "RGB" else 128)
    try:
        lab = _convert(grey, _open(icc), _built_in("LAB"), "LAB")
    except ImageCms.PyCMSError:
        return False
    lightness = int(np.asarray(lab)[0, 0, 0]) * 100 / 255
    return lightness > _LINEAR_ABOVE


def to_srgb(image: Image.Image, icc: bytes | None) -> Image.Image:
    """A CMYK or Lab image in sRGB, through `icc`; without a profile CMYK takes Pillow's plain formula.

    Relative colorimetric with black point compensation, as printing and editing programs do.
    Raises ImageCms.PyCMSError for a profile that does not convert.
    """
    if image.mode == "LAB":
        source = _built_in("LAB")
    elif icc is not None:
        source = _open(icc)
    else:
        return image.convert("RGB")
    return _convert(image, source, _built_in("sRGB"), "RGB")


def encode_linear(pixels: np.ndarray) -> np.ndarray:
    """Linear light (uint8 or uint16) as sRGB-curve values in uint16 (IEC 61966-2-1)."""
    table = np.linspace(0, 1, _levels(pixels.dtype))
    curved = np.where(table <= 0.0031308, table * 12.92, 1.055 * table ** (1 / 2.4) - 0.055)
    return np.rint(curved * 65535).astype(np.uint16)[pixels]


def decode_linear(pixels: np.ndarray) -> np.ndarray:
    """The inverse of encode_linear, uint16 to uint16."""
    table = np.linspace(0, 1, _levels(pixels.dtype))
    linear = np.where(table <= 0.04045, table / 12.92, ((table + 0.055) / 1.055) ** 2.4)
    return np.rint(linear * 65535).astype(np.uint16)[pixels]


def _levels(dtype: np.dtype) -> int:
    return int(np.iinfo(dtype).max) + 1


def _open(icc: bytes) -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(io.BytesIO(icc))


def _built_in(name: Literal["LAB", "sRGB"]) -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile(name))


def _convert(
    image: Image.Image,
    source: ImageCms.ImageCmsProfile,
    target: ImageCms.ImageCmsProfile,
    mode: str,
) -> Image.Image:
    transform = ImageCms.buildTransform(
        source,
        target,
        image.mode,
        mode,
        renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
        flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
    return transform.apply(image)
