"""The network that estimates how the colours of a photo have faded.

In linear light, a channel fades to gain * light ** gamma + veil. Whether a colour is the scene's or comes
from fading can only be guessed, which is learned from photographs, as in learned colour constancy (Bianco et
al., "Color Constancy Using CNNs", 2015), here from statistics of the channels and of their differences, also
of nearly grey pixels (Huo et al., "Robust Automatic White Balance Algorithm using Gray Color Points in
Images", 2006). `python -m training.colour` trains it with the functions below, with torch as `xp`.
"""

import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import safetensors.numpy

from ..errors import WeightsUnavailable
from .icc import encode_srgb

Array = Any  # of NumPy or torch

# Of each channel; the first and the last are its black and its white
PERCENTILES = (0.02, 0.3, 1, 3, 10, 25, 50, 75, 90, 97, 99, 99.7, 99.98)
_DIFFERENCES = (5, 25, 50, 75, 95)  # percentiles
_GREY = 0.02  # squared distance from grey, of 3, at which a weight falls to 1 / e
_BANDS, _BAND_WIDTH = np.array([0.2, 0.5, 0.8]), 0.15  # of lightness, in 0..1
_LEAST_WEIGHT = 1e-4
LAYERS = ("first", "second", "last")
FILE = Path(__file__).resolve().parents[2] / "weights/fading-estimator.safetensors"
SHA256 = "cfac6012b85dc23420e2e6d38f7ee74e92dca6400a2c69d933453d1a048f59bc"  # as in models/models.csv
_NO_BLACK = 0.003  # added before logarithms, in linear light
_LEAST_RANGE = 1e-3  # in linear light


def estimate(views: Sequence[np.ndarray]) -> np.ndarray:
    """Return the inverse of a photo's fading, (3, 3), see inverse(). Raises WeightsUnavailable.

    views  (N, 3) samples of the photo, whose black and white are used, then of parts of it, in linear light;
           the network's outputs for all are averaged
    """
    percentiles = [np.percentile(light, PERCENTILES, axis=0)[None] for light in views]
    outputs = [
        forward(_weights(), statistics(part, light[None]))
        for part, light in zip(percentiles, views, strict=True)
    ]
    return inverse(np.mean(outputs, axis=0), percentiles[0][:, 0], percentiles[0][:, -1])[0]


def statistics(percentiles: np.ndarray, light: np.ndarray) -> np.ndarray:
    """Return what the network reads, (n, 78) float32.

    percentiles  (n, 13, 3) of PERCENTILES, in linear light
    light        (n, m, 3) samples, in linear light

    They are, for each channel, its tones between black and white and the logarithms of these two; for each
    pair of channels, percentiles of their difference, and its means over nearly grey pixels, over the dark,
    middle and light ones of these, and over all of that lightness; and the shares of nearly grey pixels.
    """
    black, white = percentiles[:, :1], percentiles[:, -1:]
    size = np.maximum(white - black, _LEAST_RANGE)
    tones, values = (encode_srgb(np.clip((part - black) / size, 0, 1)) for part in (percentiles, light))
    logs = np.log(np.concatenate((black + _NO_BLACK, size), axis=1))
    differences = values[..., [0, 2, 0]] - values[..., [1, 1, 2]]
    spread = np.moveaxis(np.percentile(differences, _DIFFERENCES, axis=1), 0, 1)
    grey = np.exp(-(differences**2).sum(axis=2, keepdims=True) / _GREY)
    band = np.exp(-(((values.mean(axis=2, keepdims=True) - _BANDS) / _BAND_WIDTH) ** 2))
    weights = np.concatenate((grey, grey * band, band), axis=2) + _LEAST_WEIGHT
    means = np.swapaxes(weights, 1, 2) @ differences / weights.sum(axis=1)[..., None]
    parts = tones[:, 1:-1], logs, spread, means, weights[..., None, :3].mean(axis=1)
    return np.concatenate(parts, axis=1).reshape(len(black), -1).astype(np.float32)


def forward(weights: Mapping[str, Array], statistics: Array, xp: ModuleType = np) -> Array:
    """Return the network's outputs, (n, 9), for what statistics() returns."""
    values = (statistics - weights["mean"]) / weights["deviation"]
    for name in LAYERS:
        values = values @ weights[f"{name}.weight"] + weights[f"{name}.bias"]
        if name != LAYERS[-1]:
            values = xp.clip(values, 0, None)
    return values


def inverse(outputs: Array, black: Array, white: Array, xp: ModuleType = np) -> Array:
    """Return the veil, the light that becomes white, and the gamma, (n, 3, 3): the last axis is the channel.

    outputs       (n, 9), of the network
    black, white  (n, 3), of each channel, in linear light
    """
    veil, gain, bend = outputs[:, :3], outputs[:, 3:6], outputs[:, 6:]
    veil = black * (xp.tanh(veil / 2 + 0.75) + 1) / 2
    gamma = xp.exp(0.6 * xp.tanh(bend))
    reach = xp.exp((0.1 - 0.7 * xp.tanh(gain)) / gamma)
    return xp.stack((veil, veil + reach * xp.clip(white - veil, _LEAST_RANGE, None), gamma), 1)


@cache
def _weights() -> dict[str, np.ndarray]:
    try:
        data = FILE.read_bytes()
    except OSError:
        data = b""
    if hashlib.sha256(data).hexdigest() != SHA256:
        raise WeightsUnavailable(f"weights/{FILE.name}, a part of the app, is missing or damaged")
    return {name: value.astype(np.float32) for name, value in safetensors.numpy.load(data).items()}
