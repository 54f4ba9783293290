"""Small pictures to learn from: photographs made worse, photographs as they are, and drawn patterns.

Randomness comes from Python's and numpy's global generators, which basicsr's parts use: seed both.
Pictures are (height, width, 3) float32 RGB in 0..1 unless it says uint8.
"""

import random

import cv2
import numpy as np

from restorer.models import compat

compat.install()
from basicsr.data import degradations as parts  # noqa: E402

SIDE = 128  # of a picture to learn from; its photograph is four times that
_KERNELS = ("iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso")
_KERNEL_ODDS = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)
_SHRINK = (cv2.INTER_AREA, cv2.INTER_LINEAR, cv2.INTER_CUBIC)


def sample(photo: np.ndarray) -> np.ndarray:
    """A picture of SIDE x SIDE, uint8, made from a uint8 photograph in one of four ways."""
    make = random.choices((_light, _heavy, _native, _aliased), (0.7, 0.1, 0.1, 0.1))[0]
    return np.clip(np.rint(make(photo) * 255), 0, 255).astype(np.uint8)


def _light(photo: np.ndarray) -> np.ndarray:
    """A little blur, four times smaller, a little noise, often a JPEG: what a camera and a web site do."""
    image = cv2.GaussianBlur(_crop(photo, 4 * SIDE), (0, 0), random.uniform(0.1, 2))
    image = cv2.resize(image, (SIDE, SIDE), interpolation=random.choice(_SHRINK))
    return _worn(image, noise=12, worst=40)


def _heavy(photo: np.ndarray) -> np.ndarray:
    """Two rounds of blur, resizing, noise and JPEG, a sinc filter last: the ranges of Real-ESRGAN (2021)."""
    image = _round(_crop(photo, 4 * SIDE), blur=3, odds=(0.2, 0.7, 0.1), least=0.15, most=1.5, noise=30)
    image = _jpeg(image, 30, 95)
    image = _round(image, blur=1.5, odds=(0.3, 0.4, 0.3), least=0.3, most=1.2, noise=25, skip_blur=0.2)
    steps = (_sinc, lambda image: _jpeg(image, 30, 95))
    shrunk = cv2.resize(image, (SIDE, SIDE), interpolation=random.choice(_SHRINK))
    for step in random.sample(steps, 2):
        shrunk = step(shrunk)
    return shrunk


def _native(photo: np.ndarray) -> np.ndarray:
    """The photograph's own pixels, often with some wear: most pictures that people bring are not small."""
    image = _crop(photo, SIDE, largest=2)
    return image if random.random() < 0.3 else _worn(image, noise=8, worst=40)


def _aliased(photo: np.ndarray) -> np.ndarray:
    """Dense and hard-edged: every fourth pixel of a photograph, or lines, letters, screens and checks."""
    if random.random() < 0.4:
        image = _crop(photo, 4 * SIDE, largest=2)[random.randrange(4) :: 4, random.randrange(4) :: 4]
    else:
        image = _drawn(_crop(photo, SIDE))
    return image if random.random() < 0.5 else _worn(image, noise=8, worst=50)


def _worn(image: np.ndarray, *, noise: float, worst: int) -> np.ndarray:
    if random.random() < 0.8:
        image = parts.random_add_gaussian_noise(image, (0, noise), gray_prob=0.3)
    if random.random() < 0.8:
        image = _jpeg(image, worst, 98)
    return image


def _jpeg(image: np.ndarray, worst: int, best: int) -> np.ndarray:
    pixels = np.clip(np.rint(image[..., ::-1] * 255), 0, 255).astype(np.uint8)
    coded = cv2.imencode(".jpg", pixels, (cv2.IMWRITE_JPEG_QUALITY, random.randint(worst, best)))[1]
    return cv2.imdecode(coded, cv2.IMREAD_COLOR)[..., ::-1].astype(np.float32) / 255


def _round(
    image: np.ndarray,
    *,
    blur: float,
    odds: tuple,
    least: float,
    most: float,
    noise: float,
    skip_blur: float = 0,
) -> np.ndarray:
    if random.random() >= skip_blur:
        image = cv2.filter2D(image, -1, _kernel(blur), borderType=cv2.BORDER_REFLECT)
    low, high = random.choices(((1, most), (least, 1), (1, 1)), odds)[0]
    scale = random.uniform(low, high)
    height, width = (max(SIDE // 2, round(side * scale)) for side in image.shape[:2])
    image = cv2.resize(image, (width, height), interpolation=random.choice(_SHRINK))
    if random.random() < 0.5:
        return parts.random_add_gaussian_noise(image, (1, noise), gray_prob=0.4)
    return parts.random_add_poisson_noise(np.clip(image, 0, 1), (0.05, noise / 10), gray_prob=0.4)


def _kernel(blur: float) -> np.ndarray:
    size = 2 * random.randint(3, 10) + 1
    if random.random() < 0.1:
        return parts.circular_lowpass_kernel(np.random.uniform(np.pi / 3, np.pi), size)
    return parts.random_mixed_kernels(
        _KERNELS,
        _KERNEL_ODDS,
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
    kernel = parts.circular_lowpass_kernel(np.random.uniform(np.pi / 3, np.pi), 2 * random.randint(3, 10) + 1)
    return cv2.filter2D(image, -1, kernel, borderType=cv2.BORDER_REFLECT)


def _crop(photo: np.ndarray, side: int, largest: float = 2.5) -> np.ndarray:
    """A square of the photograph, of side to largest x side pixels, at `side`, turned or mirrored."""
    height, width = photo.shape[:2]
    cut = round(min(side * random.uniform(1, largest), height, width))
    top, left = random.randint(0, height - cut), random.randint(0, width - cut)
    image = photo[top : top + cut, left : left + cut]
    image = np.rot90(image, random.randrange(4))
    if random.random() < 0.5:
        image = image[:, ::-1]
    shrink = cv2.INTER_AREA if cut >= side else cv2.INTER_CUBIC
    resized = cv2.resize(np.ascontiguousarray(image), (side, side), interpolation=shrink)
    return resized.astype(np.float32) / 255


def _drawn(image: np.ndarray) -> np.ndarray:
    """The picture with one to six patches of patterns that have no soft edge anywhere."""
    image = np.ascontiguousarray(image)
    for _ in range(random.randint(1, 6)):
        height, width = random.randint(24, SIDE), random.randint(24, SIDE)
        top, left = random.randint(0, SIDE - height), random.randint(0, SIDE - width)
        ink, paper = np.random.rand(2, 3).astype(np.float32)
        if random.random() < 0.4:
            ink, paper = (
                np.float32((c, c, c))
                for c in random.sample((random.uniform(0, 0.3), random.uniform(0.7, 1)), 2)
            )
        mask = random.choice((_grating, _checks, _letters, _strokes, _dots))(height, width)
        image[top : top + height, left : left + width] = np.where(mask[..., None], ink, paper)
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
    line, y = cv2.LINE_AA if random.random() < 0.5 else cv2.LINE_8, 0
    while y < height:
        size = random.uniform(0.25, 0.9)
        y += round(28 * size) + 2
        text = "".join(
            random.choices("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 ", k=24)
        )
        cv2.putText(canvas, text, (random.randint(-8, 4), y), random.randrange(5), size, 255, 1, line)
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
    turn = random.uniform(0, np.pi / 2)
    u, v = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    return ((u / period) % 1 - 0.5) ** 2 + ((v / period) % 1 - 0.5) ** 2 < radius**2
