"""Correct faded and tinted photos: a curve for each channel.

A print or slide fades as its dyes lose density, each at its own rate, while stains and stray light add a
veil. In linear light, the veil is subtracted and each channel stretched, as in automatic levels (Limare et
al., "Simplest Color Balance", IPOL 2011), then raised to a gamma. fading.py estimates these curves of a
colour photo; a black-and-white one gets the same range for all channels. Samples are read as on the sRGB
curve, whatever the profile: Display P3 has that curve, and gamma 2.2, as of Adobe RGB, differs from it by at
most 0.01 in linear light.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import ModuleType

import cv2
import numpy as np

from ..options import Options
from . import fading as estimator
from .icc import decode_srgb, encode_srgb
from .photo import Photo
from .resample import lookup, luma, shrunk, to_uint8

_SIDE = 256  # pixels of the reduced photo that is measured: noise, grain, dust and scratches are averaged out
_MARGIN = 20  # one part of so many at each edge, which may be the paper's border, is not measured
_EXTREMES = (0.02, 99.98)  # percentiles of black and white
_UNCHANGED = np.array([[0.0] * 3, [1.0] * 3, [1.0] * 3])  # black, white and gamma of each channel
_FLAT = 0.05  # range on the sRGB curve below which a curve cannot be estimated
# Logistic regression on 102 undamaged photographs and 306 faded ones: of the logarithms of the channels' mean
# black, of their smallest black as a share of the largest, and of their mean white; in linear light
_EVIDENCE = np.array([3.37, 2.57, -6.1])
_EVIDENCE_OFFSET = 12.14
_MONOCHROME_OFFSET = -3.0  # equal blacks of the channels are no evidence there
# Fading leaves a veil in each channel, but no fog, and some range. All of 292 faded photographs and crops
# count as faded, and of others 1 of 146 that are 2 or 3 stops too dark and 27 of 219 crops of 64 to 200
# pixels
_LEAST_VEIL, _MOST_VEIL, _LEAST_RANGE = 0.005, 0.2, 0.25  # in linear light; on the sRGB curve
_NO_BLACK = 0.003  # added before logarithms, in linear light
_BLACK, _WHITE = 0.0015, 0.9  # of black and white, targets in linear light: not to the ends at all costs
_TOE, _SHOULDER = 0.004, 0.9  # in linear light, where curves bend to neither black nor white
_TONE_SIDE = 32  # pixels; small enough to average the noise of colour out
_TONED = 5.5  # CIE Lab; noisy toned prints have up to 6.6, 19 of 20 faded colour photographs more
_TINTED, _STRONGEST_TONE = 2.0, 55.0  # CIE Lab chroma of a visible toning; above it is no print


@dataclass(frozen=True)
class Fading:
    """How faded a photo is, in linear light.

    share       0, not faded, to 1, faded: of the correction that is made
    monochrome  whether it has one colour at each lightness: black and white, or toned such as sepia
    chroma      mean CIE Lab chroma
    light       (2,) the darkest and the lightest samples as measured, mean of the channels
    black       (3,) of each channel, the veil
    white       (3,) of each channel, the light that becomes white
    gamma       (3,) of each channel, after the stretch
    """

    share: float
    monochrome: bool
    chroma: float
    light: np.ndarray
    black: np.ndarray
    white: np.ndarray
    gamma: np.ndarray

    @property
    def toned(self) -> bool:
        """Whether it is a toned black-and-white photo."""
        return self.monochrome and self.chroma > _TINTED


def wanted(options: Options) -> bool:
    """Return whether colours are to be corrected."""
    return options.colour != "off" and options.colour_strength > 0


def apply(photo: Photo, options: Options, fading: Fading | None = None) -> Photo:
    """Return a photo with its colours corrected; the photo itself if nothing changes.

    fading  default: as measured
    """
    if not wanted(options):
        return photo
    fading = fading or measure(photo.pixels, photo.alpha)
    if options.colour != "auto":
        fading = replace(fading, share=1.0)
    neutral = options.colour == "neutral"
    pixels = correct(photo.pixels, fading, strength=options.colour_strength, neutral=neutral)
    return photo if pixels is photo.pixels else replace(photo, pixels=pixels)


def measure(pixels: np.ndarray, alpha: np.ndarray | None = None) -> Fading:
    """Measure how faded a photo is.

    pixels  (H, W, 3) uint8 or uint16, on the sRGB curve
    alpha   (H, W) of the same dtype; pixels that are more transparent than opaque do not count
    """
    small, seen = reduced(pixels, alpha)
    light = decode_srgb(small / np.float32(255))
    samples = light[seen]
    if not len(samples):
        return Fading(0.0, False, 0.0, np.array([0.0, 1.0]), *_UNCHANGED)
    black, white = np.percentile(samples, _EXTREMES, axis=0)
    spread = float((encode_srgb(white) - encode_srgb(black)).max())
    deviation, chroma = _tone(small, seen)
    logs = np.log(black + _NO_BLACK)
    signs = logs.mean(), logs.min() - logs.max(), np.log(np.maximum(white, 1e-3)).mean()
    share = float(_EVIDENCE @ signs) + _EVIDENCE_OFFSET + 0.5
    monochrome = deviation < _TONED and chroma < _STRONGEST_TONE
    share += _MONOCHROME_OFFSET * monochrome
    if black.min() < _LEAST_VEIL or black.mean() > _MOST_VEIL or spread < _LEAST_RANGE:
        share = 0.0
    curve = _UNCHANGED
    if monochrome and spread >= _FLAT:  # one curve for all channels keeps the toning
        veil = max(float(black.min()) - _BLACK, 0.0)
        curve = np.array([[veil], [veil + (float(white.max()) - veil) / _WHITE], [1.0]]).repeat(3, axis=1)
    elif spread >= _FLAT:
        curve = estimator.estimate([samples, *_corners(light, seen)])
    extremes = np.array([black.mean(), white.mean()])
    return Fading(float(np.clip(share, 0.0, 1.0)), monochrome, chroma, extremes, *curve)


def _corners(light: np.ndarray, seen: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the samples (N, 3) that are seen in four overlapping parts of a photo (H, W, 3)."""
    height, width = (-(-side * 4 // 5) for side in seen.shape)
    for rows in (slice(height), slice(-height, None)):
        for columns in (slice(width), slice(-width, None)):
            samples = light[rows, columns][seen[rows, columns]]
            if len(samples):
                yield samples


def correct(
    pixels: np.ndarray, fading: Fading, *, strength: float = 1.0, neutral: bool = False
) -> np.ndarray:
    """Return a photo with its fading corrected; `pixels` itself if there is nothing to correct.

    No sample becomes black or white that was not.

    pixels    (H, W, 3) uint8 or uint16, on the sRGB curve
    strength  0 to 1: blends the photo (0) and the corrected one (1)
    neutral   remove the toning of a black-and-white photo too
    """
    share = fading.share * strength
    if share and (np.stack((fading.black, fading.white, fading.gamma)) != _UNCHANGED).any():
        pixels = _curved(pixels, fading, share)
    if neutral and fading.toned and strength:
        grey = np.repeat(luma(pixels)[..., None], 3, axis=2)
        pixels = cv2.addWeighted(pixels, 1 - strength, grey, strength, 0)
    return pixels


def _curved(pixels: np.ndarray, fading: Fading, share: float) -> np.ndarray:
    white = int(np.iinfo(pixels.dtype).max)
    values = np.linspace(0, 1, white + 1)
    out = np.empty_like(pixels)
    for channel in range(3):
        light = decode_srgb(values) - fading.black[channel]
        light /= fading.white[channel] - fading.black[channel]
        curve = encode_srgb(bent(np.sign(light) * np.abs(light) ** fading.gamma[channel]))
        table = np.rint(white * ((1 - share) * values + share * curve))
        table[1:-1] = np.clip(table[1:-1], 1, white - 1)
        table[0], table[-1] = 0, white
        out[..., channel] = lookup(pixels[..., channel], table.astype(pixels.dtype))
    return out


def reduced(pixels: np.ndarray, alpha: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Return a reduced photo without its margins, (h, w, 3) uint8, and which pixels are seen, (h, w) bool."""
    small = cv2.medianBlur(to_uint8(shrunk(pixels, _SIDE)), 3)
    seen = np.ones(small.shape[:2], bool)
    if alpha is not None:
        mostly = (alpha > np.iinfo(alpha.dtype).max // 2).astype(np.uint8)
        seen = shrunk(255 * mostly, _SIDE) == 255  # all pixels that are averaged
    rows, columns = (slice(side // _MARGIN, side - side // _MARGIN) for side in small.shape[:2])
    return small[rows, columns], seen[rows, columns]


def _tone(small: np.ndarray, seen: np.ndarray) -> tuple[float, float]:
    """Return how far colours are from the median one of their lightness, 98th percentile, and mean chroma."""
    tiny = shrunk(small, _TONE_SIDE)
    chosen = shrunk(seen.astype(np.uint8), _TONE_SIDE) > 0
    lab = cv2.cvtColor(tiny.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)[chosen]
    if not len(lab):  # what is seen is scattered: its tone is unknown
        return np.inf, 0.0
    steps = (lab[:, 0] / 5).astype(int)
    deviations = np.zeros(len(lab))
    for step in np.unique(steps):
        colours = lab[steps == step, 1:]
        deviations[steps == step] = np.linalg.norm(colours - np.median(colours, axis=0), axis=1)
    return float(np.percentile(deviations, 98)), float(np.linalg.norm(lab[:, 1:], axis=1).mean())


def bent(light: estimator.Array, xp: ModuleType = np) -> estimator.Array:
    """Return linear light that approaches 0 and 1 exponentially below the toe and above the shoulder."""
    toe = _TOE * xp.exp(xp.clip(light - _TOE, None, 0) / _TOE)
    room = 1 - _SHOULDER
    shoulder = 1 - room * xp.exp(xp.clip(_SHOULDER - light, None, 0) / room)
    return xp.where(light < _TOE, toe, xp.where(light > _SHOULDER, shoulder, light))
