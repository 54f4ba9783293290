"""Create training inputs: degraded photographs, unmodified photographs, and drawn patterns.

Random draws use the global generators of Python and NumPy, as basicsr does; seed both.
Images are (height, width, 3) float32 RGB in 0..1 unless documented as uint8.
"""

import random

import cv2
import numpy as np

from restorer.models import compat

compat.install()
from basicsr.data import degradations  # noqa: E402

SIDE = 128  # of a training input in pixels; its source crop is four times that
_KERNELS = ("iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso")
_KERNEL_WEIGHTS = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)
_INTERPOLATIONS = (cv2.INTER_AREA, cv2.INTER_LINEAR, cv2.INTER_CUBIC)


def sample(photo: np.ndarray) -> np.ndarray:
    """Return a (SIDE, SIDE, 3) uint8 image created from a uint8 photograph by a random recipe."""
    recipe = random.choices((_light, _heavy, _native, _aliased), (0.7, 0.1, 0.1, 0.1))[0]
    return np.clip(np.rint(recipe(photo) * 255), 0, 255).astype(np.uint8)


def _light(photo: np.ndarray) -> np.ndarray:
    """Apply light blur, 4x downscaling, light noise and often JPEG, as cameras and web sites do."""
    image = cv2.GaussianBlur(_crop(photo, 4 * SIDE), (0, 0), random.uniform(0.1, 2))
    image = cv2.resize(image, (SIDE, SIDE), interpolation=random.choice(_INTERPOLATIONS))
    return _add_noise_and_jpeg(image, noise=12, min_quality=40)


def _heavy(photo: np.ndarray) -> np.ndarray:
    """Apply two rounds of blur, resizing, noise and JPEG, and a sinc filter; ranges of Real-ESRGAN (2021)."""
    image = _degrade_once(
        _crop(photo, 4 * SIDE), blur=3, weights=(0.2, 0.7, 0.1), smallest=0.15, largest=1.5, noise=30
    )
    image = _jpeg(image, 30, 95)
    image = _degrade_once(
        image, blur=1.5, weights=(0.3, 0.4, 0.3), smallest=0.3, largest=1.2, noise=25, skip_blur=0.2
    )
    steps = (_sinc, lambda image: _jpeg(image, 30, 95))
    image = cv2.resize(image, (SIDE, SIDE), interpolation=random.choice(_INTERPOLATIONS))
    for step in random.sample(steps, 2):
        image = step(image)
    return image


def _native(photo: np.ndarray) -> np.ndarray:
    """Return the photograph's own pixels, often with noise and JPEG: most inputs were never downscaled."""
    image = _crop(photo, SIDE, largest=2)
    return image if random.random() < 0.3 else _add_noise_and_jpeg(image, noise=8, min_quality=40)


def _aliased(photo: np.ndarray) -> np.ndarray:
    """Return dense, hard-edged content: every fourth pixel of a photograph, or drawn patterns."""
    if random.random() < 0.4:
        image = _crop(photo, 4 * SIDE, largest=2)[random.randrange(4) :: 4, random.randrange(4) :: 4]
    else:
        image = _draw_patterns(_crop(photo, SIDE))
    return image if random.random() < 0.5 else _add_noise_and_jpeg(image, noise=8, min_quality=50)


def _add_noise_and_jpeg(image: np.ndarray, *, noise: float, min_quality: int) -> np.ndarray:
    if random.random() < 0.8:
        image = degradations.random_add_gaussian_noise(image, (0, noise), gray_prob=0.3)
    if random.random() < 0.8:
        image = _jpeg(image, min_quality, 98)
    return image


def _jpeg(image: np.ndarray, min_quality: int, max_quality: int) -> np.ndarray:
    pixels = np.clip(np.rint(image[..., ::-1] * 255), 0, 255).astype(np.uint8)
    encoded = cv2.imencode(
        ".jpg", pixels, (cv2.IMWRITE_JPEG_QUALITY, random.randint(min_quality, max_quality))
    )[1]
    return cv2.imdecode(encoded, cv2.IMREAD_COLOR)[..., ::-1].astype(np.float32) / 255


def _degrade_once(
    image: np.ndarray,
    *,
    blur: float,
    weights: tuple,
    smallest: float,
    largest: float,
    noise: float,
    skip_blur: float = 0,
) -> np.ndarray:
    """Apply blur, resizing and noise.

    blur               largest sigma in pixels
    weights            of upscaling, downscaling and keeping the size
    smallest, largest  range of the resize factor
    noise              largest Gaussian sigma in levels of 255; a tenth of it is the largest Poisson scale
    skip_blur          probability of no blur
    """
    if random.random() >= skip_blur:
        image = cv2.filter2D(image, -1, _kernel(blur), borderType=cv2.BORDER_REFLECT)
    low, high = random.choices(((1, largest), (smallest, 1), (1, 1)), weights)[0]
    scale = random.uniform(low, high)
    height, width = (max(SIDE // 2, round(side * scale)) for side in image.shape[:2])
    image = cv2.resize(image, (width, height), interpolation=random.choice(_INTERPOLATIONS))
    if random.random() < 0.5:
        return degradations.random_add_gaussian_noise(image, (1, noise), gray_prob=0.4)
    return degradations.random_add_poisson_noise(np.clip(image, 0, 1), (0.05, noise / 10), gray_prob=0.4)


def _kernel(blur: float) -> np.ndarray:
    size = 2 * random.randint(3, 10) + 1
    if random.random() < 0.1:
        return degradations.circular_lowpass_kernel(np.random.uniform(np.pi / 3, np.pi), size)
    return degradations.random_mixed_kernels(
        _KERNELS,
        _KERNEL_WEIGHTS,
        size,
        (0.2, blur),
        (0.2, blur),
        (-np.pi, np.pi),
        (0.5, 4),
        (1, 2),
        noise_range=None,
    )


def _sinc(image: np.ndarray) -> np.ndarray:
    if random.random() < 0.2:
        return image
    kernel = degradations.circular_lowpass_kernel(
        np.random.uniform(np.pi / 3, np.pi), 2 * random.randint(3, 10) + 1
    )
    return cv2.filter2D(image, -1, kernel, borderType=cv2.BORDER_REFLECT)


def _crop(photo: np.ndarray, side: int, largest: float = 2.5) -> np.ndarray:
    """Return a random square of 1 to `largest` x `side` pixels, resized to `side`, rotated and mirrored."""
    height, width = photo.shape[:2]
    crop_side = round(min(side * random.uniform(1, largest), height, width))
    top, left = random.randint(0, height - crop_side), random.randint(0, width - crop_side)
    image = photo[top : top + crop_side, left : left + crop_side]
    image = np.rot90(image, random.randrange(4))
    if random.random() < 0.5:
        image = image[:, ::-1]
    interpolation = cv2.INTER_AREA if crop_side >= side else cv2.INTER_CUBIC
    resized = cv2.resize(np.ascontiguousarray(image), (side, side), interpolation=interpolation)
    return resized.astype(np.float32) / 255


def _draw_patterns(image: np.ndarray) -> np.ndarray:
    """Draw one to six patches of hard-edged patterns over the image."""
    image = np.ascontiguousarray(image)
    for _ in range(random.randint(1, 6)):
        height, width = random.randint(24, SIDE), random.randint(24, SIDE)
        top, left = random.randint(0, SIDE - height), random.randint(0, SIDE - width)
        foreground, background = np.random.rand(2, 3).astype(np.float32)
        if random.random() < 0.4:
            foreground, background = (
                np.float32((grey, grey, grey))
                for grey in random.sample((random.uniform(0, 0.3), random.uniform(0.7, 1)), 2)
            )
        mask = random.choice((_grating, _checks, _letters, _strokes, _dots))(height, width)
        image[top : top + height, left : left + width] = np.where(mask[..., None], foreground, background)
    return image


def _grating(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    angle, period = random.choice((0, np.pi / 2, random.uniform(0, np.pi))), random.uniform(2, 10)
    return (x * np.cos(angle) + y * np.sin(angle)) % period < period * random.uniform(0.25, 0.75)


def _checks(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    size = random.randint(1, 6)
    return (x // size + y // size) % 2 == 0


def _letters(height: int, width: int) -> np.ndarray:
    canvas = np.zeros((height, width), np.uint8)
    line_type, y = cv2.LINE_AA if random.random() < 0.5 else cv2.LINE_8, 0
    while y < height:
        size = random.uniform(0.25, 0.9)
        y += round(28 * size) + 2
        text = "".join(
            random.choices("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 ", k=24)
        )
        cv2.putText(canvas, text, (random.randint(-8, 4), y), random.randrange(5), size, 255, 1, line_type)
    return canvas > 100


def _strokes(height: int, width: int) -> np.ndarray:
    canvas = np.zeros((height, width), np.uint8)
    for _ in range(random.randint(4, 24)):
        points = np.random.randint(0, max(height, width), (random.randint(2, 5), 1, 2)).astype(np.int32)
        if random.random() < 0.3:
            cv2.fillPoly(canvas, [points], 255)
        else:
            cv2.polylines(canvas, [points], random.random() < 0.5, 255, random.randint(1, 3))
    return canvas > 0


def _dots(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    period, radius = random.uniform(3, 9), random.uniform(0.2, 0.5)
    angle = random.uniform(0, np.pi / 2)
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    return ((u / period) % 1 - 0.5) ** 2 + ((v / period) % 1 - 0.5) ** 2 < radius**2
