"""Faces whose place is known, photos to put them in, and networks with answers that can be foretold."""

from collections.abc import Sequence

import numpy as np

from restorer.faces import align, pipeline
from restorer.faces.detect import Detection
from restorer.faces.paste import Face

WAVE = 170  # pixels from crest to crest: slow enough to survive every interpolation within a level


def landmarks(x: float, y: float, side: float, angle: float = 0.0) -> np.ndarray:
    """The template's face with the middle of its crop at (x, y), the crop `side` wide, turned by degrees."""
    cos, sin = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    turn = np.array([(cos, -sin), (sin, cos)]) * side / align.SIDE
    return (align.TEMPLATE - (align.SIDE - 1) / 2) @ turn.T + (x, y)


def detection(x: float, y: float, side: float, angle: float = 0.0, score: float = 0.9) -> Detection:
    points = landmarks(x, y, side, angle)
    margin = side / 8
    return Detection((*(points.min(0) - margin), *(points.max(0) + margin)), score, points)


def smooth(height: int, width: int, *, dtype: type = np.uint8, outscale: float = 1, wave: float = WAVE):
    """A photo of slow waves, or the same one enlarged: sampled there, at pixel centres, not interpolated."""
    y, x = (
        (np.mgrid[: round(height * outscale), : round(width * outscale)] + 0.5) / outscale * 2 * np.pi / wave
    )
    waves = np.stack([0.5 + 0.3 * np.sin(x + channel) * np.cos(y - channel) for channel in range(3)], axis=2)
    return np.rint(waves * np.iinfo(dtype).max).astype(dtype)


def stripes(crop: np.ndarray, *, down: bool = False, height: float = 0.12) -> np.ndarray:
    """The crop with fine stripes, which have no colour of their own: detail such as a network adds."""
    along = np.arange(align.SIDE) // 8 % 2 * 2 - 1.0
    added = (along[:, None, None] if down else along[None, :, None]) * height * np.iinfo(crop.dtype).max
    return shifted(crop, added)


def shifted(crop: np.ndarray, by: np.ndarray | Sequence[float]) -> np.ndarray:
    return np.clip(np.rint(crop + np.asarray(by, float)), 0, np.iinfo(crop.dtype).max).astype(crop.dtype)


def restored(pixels: np.ndarray, places: Sequence[tuple], change=lambda crop: crop.copy()) -> list[Face]:
    """Faces at (x, y, side[, angle]) of the photo, each crop changed by a function."""
    faces = pipeline.crop_faces(pixels, [detection(*place) for place in places], large=True)
    return list(pipeline.restore(faces, lambda crops: [change(crop) for crop in crops]))


def distance(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(H, W): how many levels apart, in the channel where it is most."""
    return np.abs(one.astype(int) - other.astype(int)).max(2)
