"""How good a restored picture is: beside the original (PSNR, SSIM, LPIPS), and by itself.

Pictures are (H, W, 3) uint8 or uint16 RGB; those that are compared have one size and one dtype.
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

BLOCK = 8  # side of JPEG's blocks in pixels
_Y = np.array([65.481, 128.553, 24.966]) / 255  # ITU-R BT.601, studio range: MATLAB's rgb2ycbcr
_WINDOW = 11  # side of SSIM's Gaussian window (sigma 1.5) in pixels: Wang et al., 2004
_NIQE_BLOCK = 96  # NIQE judges squares of this side, and needs two
_COARSE = 8.0  # sigma in pixels of a face crop, where eyes are 126 apart: what is finer does not count
_ALEXNET = 64
_LPIPS_BACKBONE = "alexnet-owt-7be5be79.pth"  # torchvision's; lpips would fetch it


def to_y(image: np.ndarray) -> np.ndarray:
    """Luma as papers measure it: (H, W) float64 from 16 to 235, not rounded, of 8 or 16 bits."""
    return image.astype(np.float64) @ (_Y * 255 / np.iinfo(image.dtype).max) + 16


def psnr(truth: np.ndarray, image: np.ndarray, *, border: int = 0, y: bool = False) -> float:
    """Peak signal-to-noise ratio in dB (scikit-image's); infinite for equal pictures, NaN for none.

    border  pixels at each edge that do not count
    y       of the luma, see to_y(), instead of red, green and blue
    """
    truth, image, peak = _prepared(truth, image, border, y)
    if not truth.size:
        return math.nan
    if np.array_equal(truth, image):
        return math.inf
    return float(metrics.peak_signal_noise_ratio(truth, image, data_range=peak))


def ssim(truth: np.ndarray, image: np.ndarray, *, border: int = 0, y: bool = False) -> float:
    """Structural similarity, up to 1 for equal pictures, with the Gaussian window of Wang et al., 2004.

    border, y  as for psnr(); NaN for what is smaller than the window of 11 pixels
    """
    truth, image, peak = _prepared(truth, image, border, y)
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
    """Learned perceptual distance (Zhang et al., 2018; AlexNet, version 0.1), 0 for equal pictures.

    Only where lpips_missing() is empty. NaN below 64 pixels a side: AlexNet needs as many.
    """
    import torch

    if min(_cropped(truth, border).shape[:2]) < _ALEXNET:
        return math.nan

    pair = (torch.from_numpy(to_uint8(_cropped(one, border)).astype(np.float32)) for one in (truth, image))
    first, second = (one.permute(2, 0, 1)[None] / 127.5 - 1 for one in pair)
    with torch.inference_mode():
        return float(_lpips_network()(first, second))


def lpips_missing() -> str:
    """Why LPIPS cannot be measured here; empty where it can."""
    from importlib.util import find_spec

    if find_spec("lpips") is None:
        return "the package lpips is not installed"
    from torch import hub

    file = Path(hub.get_dir()) / "checkpoints" / _LPIPS_BACKBONE
    return "" if file.is_file() else f"{file} is not there"


@cache
def _lpips_network() -> Callable:
    from lpips import LPIPS  # type: ignore[import-not-found]

    return LPIPS(net="alex", verbose=False).eval()


def niqe(image: np.ndarray, *, border: int = 0) -> float:
    """Natural image quality (Mittal et al., 2013; basicsr's), lower is better; NaN for small pictures."""
    image = _cropped(image, border)
    if min(image.shape[:2]) < _NIQE_BLOCK or max(image.shape[:2]) < 2 * _NIQE_BLOCK:
        return math.nan
    measure = compat.load("basicsr.metrics.niqe", "calculate_niqe")
    with np.errstate(all="ignore"):  # flat pictures, for which there is no figure
        return float(measure(to_uint8(image)[..., ::-1].astype(np.float32), crop_border=0))


def sharpness(image: np.ndarray) -> float:
    """Mean square of the differences between neighbours in luma, both ways, in levels of 255."""
    plane = luma(image).astype(np.float32) * (255 / np.iinfo(image.dtype).max)
    return float(sum(np.mean(np.diff(plane, axis=axis) ** 2) for axis in (0, 1)))


def blockiness(image: np.ndarray) -> float:
    """Differences across the edges of 8 x 8 blocks over those within them; 1 without blocks.

    After Wang, Sheikh and Bovik, "No-reference perceptual quality assessment of JPEG", 2002. NaN for flat
    pictures and those of one block.
    """
    plane = luma(image).astype(np.float32)
    found = []
    for axis in (0, 1):
        steps = np.abs(np.diff(plane, axis=axis)).mean(axis=1 - axis)
        edge = np.arange(1, len(steps) + 1) % BLOCK == 0
        if edge.any() and steps[~edge].any():
            found.append(steps[edge].mean() / steps[~edge].mean())
    return float(np.mean(found)) if found else math.nan


def consistency(before: np.ndarray, after: np.ndarray) -> float:
    """PSNR in dB between a picture and its enlargement made small again (Lanczos): what was kept."""
    height, width = before.shape[:2]
    return psnr(before, resize(after, width, height))


def drift(before: np.ndarray, after: np.ndarray, mask: np.ndarray) -> float:
    """How far a face's coarse shape moved: 1 less the correlation of luma without its fine detail; 0 to 2.

    before, after  the crop of a face, 512 pixels a side
    mask           (512, 512) float, 0 to 1: what counts
    """
    weights = mask / max(mask.sum(), 1e-9)
    planes = [cv2.GaussianBlur(luma(crop).astype(np.float64), (0, 0), _COARSE) for crop in (before, after)]
    first, second = (plane - (weights * plane).sum() for plane in planes)
    spread = math.sqrt((weights * first**2).sum() * (weights * second**2).sum())
    if spread < 1e-9:
        return 0.0 if np.allclose(planes[0], planes[1]) else 1.0
    return float(1 - (weights * first * second).sum() / spread)


def _prepared(
    truth: np.ndarray, image: np.ndarray, border: int, y: bool
) -> tuple[np.ndarray, np.ndarray, float]:
    if truth.shape != image.shape or truth.dtype != image.dtype:
        raise ValueError(f"{truth.shape} {truth.dtype} cannot be compared with {image.shape} {image.dtype}")
    truth, image = _cropped(truth, border), _cropped(image, border)
    if y:
        return to_y(truth), to_y(image), 255.0
    return truth, image, float(np.iinfo(truth.dtype).max)


def _cropped(image: np.ndarray, border: int) -> np.ndarray:
    return image[border : max(border, len(image) - border), border : max(border, image.shape[1] - border)]
