"""Create training inputs: photographs and drawn screens, degraded as people's files are.

Random draws use the global generators of Python and NumPy, as basicsr does; see seed(). Images are (height,
width, 3) float32 RGB in 0..1 unless documented as uint8. Every step preserves geometry: kernels have odd
sides, and OpenCV's resize maps the corners of one image to those of the other.
"""

import random
from typing import NamedTuple

import cv2
import numpy as np

from restorer.models import compat

from . import patterns

compat.install()
_BASICSR = "basicsr.data.degradations"
_random_kernel = compat.load_attribute(_BASICSR, "random_mixed_kernels")
_sinc_kernel = compat.load_attribute(_BASICSR, "circular_lowpass_kernel")
_gaussian_noise = compat.load_attribute(_BASICSR, "random_generate_gaussian_noise")
_poisson_noise = compat.load_attribute(_BASICSR, "random_generate_poisson_noise")
_usm_sharp = compat.load_attribute("basicsr.utils.img_process_util", "usm_sharp")

_KERNELS = ("iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso")
_KERNEL_WEIGHTS = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)
_INTERPOLATIONS = (cv2.INTER_AREA, cv2.INTER_LINEAR, cv2.INTER_CUBIC)
_SUBSAMPLINGS = (
    cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420,
    cv2.IMWRITE_JPEG_SAMPLING_FACTOR_422,
    cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
)


class Sample(NamedTuple):
    """An input (side, side, 3) and its original (4 side, 4 side, 3), uint8; the original may be unknown."""

    small: np.ndarray
    truth: np.ndarray | None


def seed(*numbers: int) -> None:
    """Seed the generators of Python and NumPy."""
    state = int(np.random.SeedSequence(numbers).generate_state(1)[0])
    random.seed(state)
    np.random.seed(state)


def sample(photo: np.ndarray, side: int) -> Sample:
    """Return a training sample from a uint8 photograph; the original is sharpened, as Real-ESRGAN does."""
    recipe = random.choices((light, clean, old, heavy, native, screen), (40, 8, 20, 12, 12, 8))[0]
    small, truth = recipe(photo, side)
    if truth is not None and recipe is not screen:
        truth = _usm_sharp(truth)
    return Sample(to_uint8(small), None if truth is None else to_uint8(truth))


def validation_sample(photo: np.ndarray, side: int, *, severe: bool) -> Sample:
    """Return a validation sample with its unmodified original.

    severe  noise 8-25 and JPEG 10-30, else blur 0.6-1.6, noise 3-10 and JPEG 50-90
    """
    truth = _crop(photo, 4 * side)
    image = truth if severe else cv2.GaussianBlur(truth, (0, 0), random.uniform(0.6, 1.6))
    image = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)
    sigma = random.uniform(8, 25) if severe else random.uniform(3, 10)
    image = image + np.random.normal(0, sigma / 255, image.shape).astype(np.float32)
    low, high = (10, 30) if severe else (50, 90)
    return Sample(to_uint8(_jpeg(image, random.randint(low, high))), to_uint8(truth))


def to_uint8(image: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(image * 255), 0, 255).astype(np.uint8)


def light(photo: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Apply light blur, downscaling, light noise, sharpening and compression, as cameras and web sites do."""
    truth = _crop(photo, 4 * side)
    image = _downscale(cv2.GaussianBlur(truth, (0, 0), random.uniform(0.1, 2)), side)
    if random.random() < 0.75:
        image = _noise(image, 12)
    if random.random() < 0.2:
        image = _sharpen(image)
    return (_compress(image, 40, 98) if random.random() < 0.85 else image), truth


def clean(photo: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Downscale only; half of the time, compress with high quality."""
    truth = _crop(photo, 4 * side)
    image = _downscale(truth, side)
    return (_compress(image, 85, 98) if random.random() < 0.5 else image), truth


def old(photo: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Apply strong noise and low-quality compression, as in small files of old cameras and phones."""
    truth = _crop(photo, 4 * side)
    image = cv2.GaussianBlur(truth, (0, 0), random.uniform(0.1, 3)) if random.random() < 0.5 else truth
    image = _noise(_downscale(image, side), 28, smallest=4)
    return _compress(image, 10, 40), truth


def heavy(photo: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Apply two rounds of blur, resizing, noise and compression, and a sinc filter (Real-ESRGAN, 2021)."""
    truth = _crop(photo, 4 * side)
    image = _degrade_once(truth, side, blur=3, weights=(0.2, 0.7, 0.1), factors=(0.15, 1.5), noise=30)
    image = _compress(image, 30, 95)
    if random.random() < 0.8:
        image = _degrade_once(image, side, blur=1.5, weights=(0.3, 0.4, 0.3), factors=(0.3, 1.2), noise=25)
    image = cv2.resize(image, (side, side), interpolation=random.choice(_INTERPOLATIONS))
    for step in random.sample((_sinc, lambda image: _compress(image, 15, 95)), 2):
        image = step(image)
    return image, truth


def native(photo: np.ndarray, side: int) -> tuple[np.ndarray, None]:
    """Return the photograph's own pixels, often with noise, compression or patterns: there is no original."""
    image = _crop(photo, side)
    if random.random() < 0.25:
        image = patterns.draw(image, 1)
    if random.random() < 0.7:
        image = _compress(_noise(image, 8), 40, 98)
    return image, None


def screen(photo: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a small copy of text, lines and patterns drawn over a plain background or a photograph."""
    truth = _crop(photo, 4 * side)
    if random.random() < 0.6:
        truth[:] = np.float32(random.choice((1, 1, random.uniform(0, 0.25), np.random.rand(3))))
    truth = patterns.draw(truth, 4)
    image = _downscale(truth, side)
    if random.random() < 0.25:
        image = _noise(image, 8)
    return (_compress(image, 30, 98) if random.random() < 0.7 else image), truth


def _downscale(image: np.ndarray, side: int) -> np.ndarray:
    return cv2.resize(image, (side, side), interpolation=random.choice(_INTERPOLATIONS))


def _noise(image: np.ndarray, largest: float, smallest: float = 0) -> np.ndarray:
    """Add Gaussian or Poisson noise, grey or coloured, sometimes coarse; limits of sigma in levels of 255."""
    image = np.clip(image, 0, 1)
    if random.random() < 0.7:
        noise = _gaussian_noise(image, (smallest, largest), gray_prob=0.4)
    else:  # a scale of 1 is a sigma of about 12 in a bright area
        noise = _poisson_noise(image, (smallest / 12 + 0.05, largest / 12), gray_prob=0.4)
    if random.random() < 0.15:  # as after demosaicing or enlarging
        height, width = image.shape[:2]
        part = random.uniform(0.35, 0.9)
        noise = np.ascontiguousarray(noise[: max(2, int(height * part)), : max(2, int(width * part))])
        noise = cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(image + noise.astype(np.float32), 0, 1)


def _sharpen(image: np.ndarray) -> np.ndarray:
    blurred = cv2.GaussianBlur(image, (0, 0), random.uniform(0.6, 2))
    return np.clip(image + random.uniform(0.3, 1.2) * (image - blurred), 0, 1)


def _compress(image: np.ndarray, low: int, high: int) -> np.ndarray:
    """Save as JPEG or WebP; in a quarter of cases twice, with the first 8 x 8 grid at any position."""
    if random.random() < 0.25:
        top, left = random.randrange(8), random.randrange(8)
        shifted = cv2.copyMakeBorder(image, top, 0, left, 0, cv2.BORDER_REFLECT_101)
        image = _jpeg(shifted, random.randint(low, high))[top:, left:]
    quality = random.randint(low, high)
    return _webp(image, quality) if random.random() < 0.15 else _jpeg(image, quality)


def _jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    subsampling = random.choices(_SUBSAMPLINGS, (0.6, 0.1, 0.3))[0]
    return _encode(
        image, ".jpg", cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, subsampling
    )


def _webp(image: np.ndarray, quality: int) -> np.ndarray:
    return _encode(image, ".webp", cv2.IMWRITE_WEBP_QUALITY, quality)


def _encode(image: np.ndarray, suffix: str, *options: int) -> np.ndarray:
    success, data = cv2.imencode(suffix, np.ascontiguousarray(to_uint8(image)[..., ::-1]), options)
    if not success:
        raise RuntimeError(f"OpenCV cannot encode {suffix}")
    return np.ascontiguousarray(cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1]).astype(np.float32) / 255


def _degrade_once(
    image: np.ndarray,
    side: int,
    *,
    blur: float,
    weights: tuple[float, float, float],
    factors: tuple[float, float],
    noise: float,
) -> np.ndarray:
    """Apply blur, resizing and noise.

    blur     largest sigma in pixels
    weights  of upscaling, downscaling and the same size
    factors  smallest and largest resize factor
    noise    largest sigma in levels of 255
    """
    kernel = _sinc_kernel(*_cutoff_and_size()) if random.random() < 0.1 else _mixed_kernel(blur)
    image = cv2.filter2D(image, -1, kernel, borderType=cv2.BORDER_REFLECT)
    low, high = random.choices(((1, factors[1]), (factors[0], 1), (1, 1)), weights)[0]
    factor = random.uniform(low, high)
    height, width = (max(side // 2, round(length * factor)) for length in image.shape[:2])
    image = cv2.resize(image, (width, height), interpolation=random.choice(_INTERPOLATIONS))
    return _noise(image, noise, smallest=1)


def _mixed_kernel(blur: float) -> np.ndarray:
    size = 2 * random.randint(3, 10) + 1
    sigmas, rotations = (0.2, blur), (-np.pi, np.pi)
    return _random_kernel(
        _KERNELS, _KERNEL_WEIGHTS, size, sigmas, sigmas, rotations, (0.5, 4), (1, 2), noise_range=None
    )


def _sinc(image: np.ndarray) -> np.ndarray:
    if random.random() < 0.2:
        return image
    return cv2.filter2D(image, -1, _sinc_kernel(*_cutoff_and_size()), borderType=cv2.BORDER_REFLECT)


def _cutoff_and_size() -> tuple[float, int]:
    return np.random.uniform(np.pi / 3, np.pi), 2 * random.randint(3, 10) + 1


def _crop(photo: np.ndarray, side: int) -> np.ndarray:
    """Return a random square of 1 to 2 times `side` pixels, resized to `side`, rotated and mirrored."""
    height, width = photo.shape[:2]
    crop_side = round(min(side * random.uniform(1, 2), height, width))
    top, left = random.randint(0, height - crop_side), random.randint(0, width - crop_side)
    image = np.rot90(photo[top : top + crop_side, left : left + crop_side], random.randrange(4))
    if random.random() < 0.5:
        image = image[:, ::-1]
    interpolation = cv2.INTER_AREA if crop_side >= side else cv2.INTER_CUBIC
    resized = cv2.resize(np.ascontiguousarray(image), (side, side), interpolation=interpolation)
    return resized.astype(np.float32) / 255
