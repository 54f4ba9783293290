"""Draw text, lines and regular patterns, with hard edges, over an image."""

import random

import cv2
import numpy as np


def draw(image: np.ndarray, unit: int) -> np.ndarray:
    """Draw one to six patches of hard-edged patterns; `unit` pixels of the image are one of an input."""
    image = np.ascontiguousarray(image)
    side = len(image) // unit
    for _ in range(random.randint(1, 6)):
        height, width = (unit * random.randint(side // 4, side) for _ in range(2))
        top, left = random.randint(0, len(image) - height), random.randint(0, len(image) - width)
        colours = np.random.rand(2, 3)
        if random.random() < 0.5:
            greys = random.sample((random.uniform(0, 0.3), random.uniform(0.7, 1)), 2)
            colours = np.float32(greys)[:, None].repeat(3, 1)
        pattern = random.choices((_text, _grating, _checks, _strokes, _dots), (6, 1, 1, 2, 1))[0]
        alpha = pattern(height, width, unit)[..., None].astype(np.float32)
        patch = image[top : top + height, left : left + width]
        background = patch if random.random() < 0.3 else colours[0]
        patch[:] = alpha * colours[1] + (1 - alpha) * background
    return image


def _text(height: int, width: int, unit: int) -> np.ndarray:
    canvas, y = np.zeros((height, width), np.uint8), 0
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,;:!?-()    "
    while y < height:
        size, font = unit * random.uniform(0.25, 0.9), random.randrange(8)
        y += round(28 * size) + 2 * unit
        text = "".join(random.choices(letters, k=24))
        thickness = max(1, round(size * random.choice((0.75, 1, 1.5, 2))))
        cv2.putText(canvas, text, (random.randint(-8, 4) * unit, y), font, size, 255, thickness, cv2.LINE_AA)
    return canvas / 255


def _grating(height: int, width: int, unit: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    angle = random.choice((0, np.pi / 2, random.uniform(0, np.pi)))
    period = unit * random.uniform(2, 10)
    return (x * np.cos(angle) + y * np.sin(angle)) % period < period * random.uniform(0.25, 0.75)


def _checks(height: int, width: int, unit: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    size = unit * random.randint(1, 6)
    return (x // size + y // size) % 2 == 0


def _strokes(height: int, width: int, unit: int) -> np.ndarray:
    canvas = np.zeros((height, width), np.uint8)
    for _ in range(random.randint(4, 24)):
        points = np.random.randint(0, max(height, width), (random.randint(2, 5), 1, 2)).astype(np.int32)
        if random.random() < 0.3:
            cv2.fillPoly(canvas, [points], 255, cv2.LINE_AA)
        else:
            thickness = unit * random.randint(1, 3)
            cv2.polylines(canvas, [points], random.random() < 0.5, 255, thickness, cv2.LINE_AA)
    return canvas / 255


def _dots(height: int, width: int, unit: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width] / (unit * random.uniform(3, 9))
    angle, radius = random.uniform(0, np.pi / 2), random.uniform(0.2, 0.5)
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    return (u % 1 - 0.5) ** 2 + (v % 1 - 0.5) ** 2 < radius**2
