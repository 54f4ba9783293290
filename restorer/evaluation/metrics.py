"""Image quality metrics: against an original (PSNR, SSIM, LPIPS) and without one.

Images are (H, W, 3) uint8 or uint16 RGB; images that are compared have the same size and dtype.
"""

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path

import cv2
import numpy as np
from skimage import metrics

from ..images.resample import luma, resize, to_uint8
from ..models import compat

BLOCK = 8  # side of a JPEG block in pixels
_Y = np.array([65.481, 128.553, 24.966]) / 255  # ITU-R BT.601, studio range: MATLAB's rgb2ycbcr
_WINDOW = 11  # side of SSIM's Gaussian window (sigma 1.5) in pixels: Wang et al., 2004
_NIQE_BLOCK = 96  # side in pixels of the blocks NIQE scores; it needs two
_COARSE = 8.0  # sigma in pixels of a face crop, where the eyes are 126 apart; finer detail is ignored
_ALEXNET = 64
_LPIPS_BACKBONE = "alexnet-owt-7be5be79.pth"  # torchvision's file, which lpips would download


def to_y(image: np.ndarray) -> np.ndarray:
    """Return luma as papers measure it: (H, W) float64, 16 to 235 for 8 and 16 bits alike, not rounded."""
    return image.astype(np.float64) @ (_Y * 255 / np.iinfo(image.dtype).max) + 16


def psnr(truth: np.ndarray, image: np.ndarray, *, border: int = 0, y: bool = False) -> float:
    """Return scikit-image's peak signal-to-noise ratio in dB; infinity for equal images, NaN for empty ones.

    border  pixels to ignore at each edge
    y       measure luma, see to_y(), instead of RGB

    Raises ValueError if the shapes or dtypes differ.
    """
    truth, image, peak = _prepare(truth, image, border, y)
    if not truth.size:
        return math.nan
    if np.array_equal(truth, image):
        return math.inf
    return float(metrics.peak_signal_noise_ratio(truth, image, data_range=peak))


def ssim(truth: np.ndarray, image: np.ndarray, *, border: int = 0, y: bool = False) -> float:
    """Return the structural similarity, 1 for equal images, with the Gaussian window of Wang et al., 2004.

    border, y  as for psnr()

    NaN for images smaller than the window of 11 pixels. Raises ValueError if the shapes or dtypes differ.
    """
    truth, image, peak = _prepare(truth, image, border, y)
    if min(truth.shape[:2]) < _WINDOW:
        return math.nan
    return float(
        metrics.structural_similarity(  # type: ignore[arg-type]
            truth,
            image,
            data_range=peak,
            channel_axis=None if y else 2,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
    )


def lpips(truth: np.ndarray, image: np.ndarray, *, border: int = 0) -> float:
    """Return the learned perceptual distance (Zhang et al., 2018; AlexNet, version 0.1), 0 for equal images.

    Requires that lpips_missing() is empty. NaN below AlexNet's minimum of 64 pixels a side.
    """
    import torch

    if min(_crop_border(truth, border).shape[:2]) < _ALEXNET:
        return math.nan

    arrays = (to_uint8(_crop_border(array, border)).astype(np.float32) for array in (truth, image))
    first, second = (torch.from_numpy(array).permute(2, 0, 1)[None] / 127.5 - 1 for array in arrays)
    with torch.inference_mode():
        return float(_lpips_network()(first, second))


def lpips_missing() -> str:
    """Return why LPIPS is unavailable, or "" if it is available."""
    from importlib.util import find_spec

    if find_spec("lpips") is None:
        return "the package lpips is not installed"
    from torch import hub

    file = Path(hub.get_dir()) / "checkpoints" / _LPIPS_BACKBONE
    return "" if file.is_file() else f"{file} does not exist"


@cache
def _lpips_network() -> Callable:
    from lpips import LPIPS  # type: ignore[import-not-found]

    return LPIPS(net="alex", verbose=False).eval()


def niqe(image: np.ndarray, *, border: int = 0) -> float:
    """Return the natural image quality (Mittal et al., 2013; basicsr's code); lower is better.

    NaN for images smaller than 96 x 192 pixels.
    """
    image = _crop_border(image, border)
    if min(image.shape[:2]) < _NIQE_BLOCK or max(image.shape[:2]) < 2 * _NIQE_BLOCK:
        return math.nan
    measure = compat.load_attribute("basicsr.metrics.niqe", "calculate_niqe")
    with np.errstate(all="ignore"):  # flat images divide by zero
        return float(measure(to_uint8(image)[..., ::-1].astype(np.float32), crop_border=0))


def sharpness(image: np.ndarray) -> float:
    """Return the mean squared luma difference of adjacent pixels, summed over both axes, in levels of 255."""
    plane = luma(image).astype(np.float32) * (255 / np.iinfo(image.dtype).max)
    return float(sum(np.mean(np.diff(plane, axis=axis) ** 2) for axis in (0, 1)))


def blockiness(image: np.ndarray, *, block: int = BLOCK) -> float:
    """Return luma differences across the edges of square blocks, over those within blocks; 1 without blocks.

    block  side in pixels; a multiple of 8 for an enlarged JPEG

    After Wang, Sheikh and Bovik, "No-reference perceptual quality assessment of JPEG", 2002. NaN for flat
    images and for images of one block.
    """
    plane = luma(image).astype(np.float32)
    ratios = []
    for axis in (0, 1):
        steps = np.abs(np.diff(plane, axis=axis)).mean(axis=1 - axis)
        edge = np.arange(1, len(steps) + 1) % block == 0
        if edge.any() and steps[~edge].any():
            ratios.append(steps[edge].mean() / steps[~edge].mean())
    return float(np.mean(ratios)) if ratios else math.nan


def consistency(before: np.ndarray, after: np.ndarray) -> float:
    """Return the PSNR in dB between an image and its upscaled version downscaled again (Lanczos)."""
    height, width = before.shape[:2]
    return psnr(before, resize(after, width, height))


def drift(before: np.ndarray, after: np.ndarray, mask: np.ndarray) -> float:
    """Return how far a face's coarse shape moved: 1 minus the correlation of blurred luma; 0 to 2.

    before, after  (512, 512, 3) uint8 or uint16 RGB, the crop of a face
    mask           (512, 512) float, 0 to 1: the weight of each pixel
    """
    weights = mask / max(mask.sum(), 1e-9)
    planes = [cv2.GaussianBlur(luma(crop).astype(np.float64), (0, 0), _COARSE) for crop in (before, after)]
    first, second = (plane - (weights * plane).sum() for plane in planes)
    spread = math.sqrt((weights * first**2).sum() * (weights * second**2).sum())
    if spread < 1e-9:
        return 0.0 if np.allclose(planes[0], planes[1]) else 1.0
    return float(1 - (weights * first * second).sum() / spread)


def _prepare(
    truth: np.ndarray, image: np.ndarray, border: int, y: bool
) -> tuple[np.ndarray, np.ndarray, float]:
    """Return both images without their borders, as luma if `y`, and the peak value."""
    if truth.shape != image.shape or truth.dtype != image.dtype:
        raise ValueError(f"cannot compare {truth.shape} {truth.dtype} with {image.shape} {image.dtype}")
    truth, image = _crop_border(truth, border), _crop_border(image, border)
    if y:
        return to_y(truth), to_y(image), 255.0
    return truth, image, float(np.iinfo(truth.dtype).max)


def _crop_border(image: np.ndarray, border: int) -> np.ndarray:
    return image[border : max(border, len(image) - border), border : max(border, image.shape[1] - border)]
