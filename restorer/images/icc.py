"""Inspect ICC profiles and convert the few images whose values must change.

The networks expect display-referred values (about gamma 2). A Display P3 or Adobe RGB photo already has
them: its values are kept and its profile is embedded again, so nothing is clipped to sRGB. A photo in
linear light is put on the sRGB curve for the network and taken off it afterwards. CMYK and Lab are
converted to sRGB through their profiles. Colours that a file describes by numbers get the matching profile.
"""

import io
import itertools
from typing import Literal, NamedTuple

import imagecodecs
import numpy as np
from PIL import Image, ImageCms

from .resample import bands, lookup, to_uint8

# CIE L* of the middle grey code value: 53 for sRGB, 61 for gamma 1.8, 76 for linear light
_LINEAR_ABOVE = 68
_CURVE_POINTS = 1024
_SAME_CHROMATICITY = 0.003  # rounded numbers of sRGB in files
_SRGB_GAMMA, _SAME_GAMMA = 2.2, 0.1  # what writers of sRGB declare
_HEADER_DATE = slice(24, 36)
_CREATED = bytes([7, 208, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0])  # 2000-01-01: the same bytes every time
_MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}


class Chromaticities(NamedTuple):
    """CIE xy of white and of the primaries."""

    white: tuple[float, float]
    red: tuple[float, float]
    green: tuple[float, float]
    blue: tuple[float, float]


_D65 = (0.3127, 0.3290)
SRGB = Chromaticities(_D65, (0.64, 0.33), (0.30, 0.60), (0.15, 0.06))
# ITU-T H.273, tables 2 and 3. Those of television are so close to sRGB that writers use them for it
_PRIMARIES = {
    **dict.fromkeys((1, 2, 5, 6), SRGB),
    4: Chromaticities((0.310, 0.316), (0.67, 0.33), (0.21, 0.71), (0.14, 0.08)),
    9: Chromaticities(_D65, (0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),
    11: Chromaticities((0.314, 0.351), (0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
    12: Chromaticities(_D65, (0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
    22: Chromaticities(_D65, (0.630, 0.340), (0.295, 0.605), (0.155, 0.077)),
}
_GAMMAS = {**dict.fromkeys((1, 2, 6, 13, 14, 15)), 4: 2.2, 5: 2.8, 8: 1.0}  # None: the sRGB curve


def from_code_points(primaries: int, transfer: int, *, grey: bool) -> bytes | None:
    """Return the profile of ITU-T H.273 code points; b"" for sRGB, None for unknown and HDR ones."""
    if primaries not in _PRIMARIES or transfer not in _GAMMAS:
        return None
    return from_chromaticities(_PRIMARIES[primaries], _GAMMAS[transfer], grey=grey)


def from_chromaticities(points: Chromaticities, gamma: float | None, *, grey: bool) -> bytes | None:
    """Return the profile of a display; b"" for sRGB, None if the numbers do not describe a display.

    gamma  exponent of the curve from code values to light; None: that of sRGB
    grey   of a grey display; only its curve counts
    """
    like_srgb = grey or np.abs(np.subtract(points, SRGB)).max() < _SAME_CHROMATICITY
    if like_srgb and (gamma is None or abs(gamma - _SRGB_GAMMA) < _SAME_GAMMA):
        return b""
    steps = np.linspace(0, 1, _CURVE_POINTS)
    curve = None if gamma else np.rint(decode_srgb(steps) * 65535).astype(np.uint16)
    white, *primaries = ((*point, 1.0) for point in points)
    try:
        profile = imagecodecs.cms_profile(
            "gray" if grey else "rgb",
            whitepoint=white,
            primaries=None if grey else [*itertools.chain(*primaries)],
            transferfunction=curve,
            gamma=gamma,
        )
    except (RuntimeError, ValueError):
        return None
    profile = profile[: _HEADER_DATE.start] + _CREATED + profile[_HEADER_DATE.stop :]
    return profile if color_space(profile) else None


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

    CMYK without one uses Pillow's naive formula. The intent is relative colorimetric, for CMYK with black
    point compensation: the darkest ink becomes black.
    """
    if not icc:
        return image.convert("RGB")
    flags = ImageCms.Flags.BLACKPOINTCOMPENSATION if image.mode == "CMYK" else ImageCms.Flags.NONE
    return _convert(image, icc, "sRGB", flags)


def lab_to_srgb(samples: np.ndarray, *, signed: bool) -> np.ndarray:
    """Convert (H, W, 3) Lab samples of a TIFF, uint8 or uint16, to sRGB of the same dtype.

    signed  a* and b* are signed numbers, as in CIELab; otherwise 0 is in the middle, as in ICCLab, where
            65280 of 16 bits is an L* of 100 (TIFF 6.0, 23, and Adobe's technical note of 2002)
    """
    out = np.empty(samples.shape, samples.dtype)
    profiles = imagecodecs.cms_profile("lab4"), imagecodecs.cms_profile("srgb")
    for rows in bands(len(out)):
        values = samples[rows].astype(np.float64)
        if samples.dtype == np.uint8:
            values *= 257
            if signed:
                values[..., 1:] = (values[..., 1:] + 128 * 257) % (256 * 257)
        elif signed:
            values[..., 1:] = (values[..., 1:] + 32768) % 65536 * (257 / 256)
        else:
            values *= [65535 / 65280, 257 / 256, 257 / 256]
        lab = np.rint(np.clip(values, 0, 65535)).astype(np.uint16)
        colours = imagecodecs.cms_transform(
            lab, *profiles, colorspace="lab", outcolorspace="rgb", outdtype=np.uint16, intent=1
        )
        out[rows] = colours if out.dtype == np.uint16 else to_uint8(colours)
    return out


def encode_linear(pixels: np.ndarray) -> np.ndarray:
    """Convert linear light (uint8 or uint16) to the sRGB curve (uint16), as in IEC 61966-2-1."""
    table = np.linspace(0, 1, _levels(pixels.dtype))
    return lookup(pixels, np.rint(encode_srgb(table) * 65535).astype(np.uint16))


def decode_linear(pixels: np.ndarray) -> np.ndarray:
    """Invert encode_linear, uint16 to uint16."""
    table = np.linspace(0, 1, _levels(pixels.dtype))
    return lookup(pixels, np.rint(decode_srgb(table) * 65535).astype(np.uint16))


def encode_srgb(light: np.ndarray) -> np.ndarray:
    """Return the sRGB values of light, both in [0, 1] (IEC 61966-2-1)."""
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)


def decode_srgb(values: np.ndarray) -> np.ndarray:
    """Return the light of sRGB values, both in [0, 1]."""
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def _levels(dtype: np.dtype) -> int:
    return int(np.iinfo(dtype).max) + 1


def _middle(icc: bytes, space: str) -> float | None:
    """Return CIE L* with every channel at its middle code value, or None if the profile does not convert."""
    middle = Image.new(_MODES[space], (1, 1), 128 if space == "GRAY" else (128,) * len(space))
    try:
        # NOOPTIMIZE skips a lookup table that costs more than the one pixel
        lab = _convert(middle, icc, "LAB", ImageCms.Flags.NOOPTIMIZE)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None
    return int(np.asarray(lab)[0, 0, 0]) * 100 / 255


def _convert(
    image: Image.Image,
    profile: bytes,
    target: Literal["sRGB", "LAB"],
    flags: ImageCms.Flags = ImageCms.Flags.NONE,
) -> Image.Image:
    """Convert an image through a profile to Lab or sRGB."""
    source, intent = io.BytesIO(profile), ImageCms.Intent.RELATIVE_COLORIMETRIC
    mode = "RGB" if target == "sRGB" else target
    converted = ImageCms.profileToProfile(
        image, source, ImageCms.createProfile(target), intent, mode, flags=flags
    )
    assert converted  # None only in place
    return converted
