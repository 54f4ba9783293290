"""Faces at known positions, photos to hold them, and stand-in networks with predictable outputs."""

from collections.abc import Sequence

import numpy as np

from restorer.faces import align, pipeline
from restorer.faces.detect import Detection
from restorer.faces.paste import Face

WAVE = 170  # pixels per period: long enough that interpolation changes no sample by more than a level


def landmarks(x: float, y: float, side: float, angle: float = 0.0) -> np.ndarray:
    """The template's landmarks for a crop centred at (x, y), `side` wide, rotated by `angle` degrees."""
    cos, sin = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    linear = np.array([(cos, -sin), (sin, cos)]) * side / align.SIDE
    return (align.TEMPLATE - (align.SIDE - 1) / 2) @ linear.T + (x, y)


def detection(x: float, y: float, side: float, angle: float = 0.0, score: float = 0.9) -> Detection:
    points = landmarks(x, y, side, angle)
    margin = side / 8
    return Detection((*(points.min(0) - margin), *(points.max(0) + margin)), score, points)


def smooth(height: int, width: int, *, dtype: type = np.uint8, outscale: float = 1, wave: float = WAVE):
    """A photo of slow waves, or the same enlarged: sampled at its pixel centres, not interpolated."""
    y, x = (
        (np.mgrid[: round(height * outscale), : round(width * outscale)] + 0.5) / outscale * 2 * np.pi / wave
    )
    waves = np.stack([0.5 + 0.3 * np.sin(x + channel) * np.cos(y - channel) for channel in range(3)], axis=2)
    return np.rint(waves * np.iinfo(dtype).max).astype(dtype)


def stripes(crop: np.ndarray, *, down: bool = False, height: float = 0.12) -> np.ndarray:
    """The crop with fine colourless stripes: detail such as a network adds."""
    along = np.arange(align.SIDE) // 8 % 2 * 2 - 1.0
    detail = (along[:, None, None] if down else along[None, :, None]) * height * np.iinfo(crop.dtype).max
    return shifted(crop, detail)


def shifted(crop: np.ndarray, by: np.ndarray | Sequence[float]) -> np.ndarray:
    return np.clip(np.rint(crop + np.asarray(by, float)), 0, np.iinfo(crop.dtype).max).astype(crop.dtype)


def restored(pixels: np.ndarray, positions: Sequence[tuple], change=lambda crop: crop.copy()) -> list[Face]:
    """Faces at (x, y, side[, angle]) in the photo, each crop restored by `change`."""
    faces = pipeline.crop_faces(pixels, [detection(*position) for position in positions], large=True)
    return list(pipeline.restore(faces, lambda crops: [change(crop) for crop in crops]))


def distance(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(H, W): the largest difference of any channel, in levels."""
    return np.abs(one.astype(int) - other.astype(int)).max(2)
