"""Degrade good photographs in known ways, to measure what a restoration recovers."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image

from ..errors import InvalidOption
from ..models import compat


@dataclass(frozen=True)
class Recipe:
    """Ranges that a seed draws from uniformly. An empty range skips the step.

    blur   sigma in pixels of the original, before downscaling by area averaging
    noise  standard deviation in levels of 255, added after downscaling
    jpeg   quality; the last step
    """

    about: str
    blur: tuple[float, float] | tuple[()] = ()
    noise: tuple[float, float] | tuple[()] = ()
    jpeg: tuple[int, int] | tuple[()] = ()


RECIPES = {
    "default": Recipe("light blur, downscaling, some noise, JPEG", (0.6, 1.6), (3, 10), (50, 90)),
    "heavy": Recipe("strong blur, downscaling, much noise, low-quality JPEG", (1.5, 4.0), (10, 30), (20, 50)),
    "small": Recipe("downscaling only"),
}


def degrade(
    truth: np.ndarray, recipe: Recipe, *, scale: int = 4, seed: int | Sequence[int] = 0
) -> np.ndarray:
    """Return the image degraded and `scale` times smaller, (h / scale, w / scale, 3) uint8.

    The same seed gives the same image.

    truth  (h, w, 3) uint8 RGB, both sides multiples of `scale`
    """
    rng = np.random.default_rng(seed)
    height, width = (side // scale for side in truth.shape[:2])
    image = truth.astype(np.float32)
    if recipe.blur:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(*recipe.blur))
    image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    if recipe.noise:
        image = image + rng.normal(0, rng.uniform(*recipe.noise), image.shape)
    small = np.clip(np.rint(image), 0, 255).astype(np.uint8)
    if not recipe.jpeg:
        return small
    low, high = recipe.jpeg
    return _through_jpeg(small, int(rng.integers(low, high + 1)))


def bicubic(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """Upscale a (H, W, 3) uint8 or uint16 image with OpenCV's bicubic interpolation."""
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC)


def matlab_bicubic(image: np.ndarray, times: float) -> np.ndarray:
    """Resize a (H, W, 3) uint8 or uint16 image to `times` its size as MATLAB's imresize does.

    Papers publish their figures with this filter. Raises InvalidOption for fewer than 4 pixels a side, before
    or after.
    """
    if min(image.shape[:2]) * min(times, 1) < 4:  # the kernel mirrors 4 pixels at each edge
        raise InvalidOption(
            f"{image.shape[1]} x {image.shape[0]} pixels at scale {times:g} are too few for MATLAB's "
            "bicubic; it needs 4 a side"
        )
    resize = compat.load_attribute("basicsr.utils.matlab_functions", "imresize")
    top = np.iinfo(image.dtype).max
    return np.clip(np.rint(resize(image.astype(np.float64), times)), 0, top).astype(image.dtype)


def _through_jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    encoded = io.BytesIO()
    Image.fromarray(image).save(encoded, "JPEG", quality=quality)
    return np.asarray(Image.open(encoded))
