"""Masks of what is pasted back of a face's crop."""

from functools import cache

import numpy as np

from . import align

_FEATHER = 48  # pixels of the crop over which a mask fades
_EDGE = 12  # pixels at the crop's border that are never pasted: networks are weak there


def face_mask(landmarks: np.ndarray) -> np.ndarray:
    """Return (512, 512) float32: 1 over a face, fading to 0 around it.

    landmarks  (5, 2) in the crop

    The mask is an ellipse from hairline to chin, as wide as the cheeks and rotated with the face; its
    centre and axes follow from the eyes and the mouth.
    """
    landmarks = landmarks.astype(np.float32)
    eyes, mouth = landmarks[:2].mean(0), landmarks[3:].mean(0)
    down = mouth - eyes
    long = max(float(np.linalg.norm(down)), 0.75 * float(np.linalg.norm(landmarks[1] - landmarks[0])), 1.0)
    angle = np.arctan2(down[0], down[1]) if np.linalg.norm(down) > 1 else 0.0
    centre = eyes + 0.42 * down
    y, x = _coordinates()
    across = (x - centre[0]) * np.cos(angle) - (y - centre[1]) * np.sin(angle)
    along = (x - centre[0]) * np.sin(angle) + (y - centre[1]) * np.cos(angle)
    axes = 1.4 * long, 1.75 * long
    radius = np.sqrt((across / axes[0]) ** 2 + (along / axes[1]) ** 2)
    inside = (1 - radius) * min(axes)  # approximate distance to the ellipse in pixels
    return _smoothstep(inside / _FEATHER) * border_mask()


@cache
def border_mask() -> np.ndarray:
    """Return (512, 512) float32, read-only: 1, fading to 0 towards the crop's border."""
    y, x = _coordinates()
    border = np.minimum(np.minimum(x, align.SIDE - 1 - x), np.minimum(y, align.SIDE - 1 - y)) - _EDGE
    mask = _smoothstep(border / _FEATHER)
    mask.flags.writeable = False
    return mask


def _coordinates() -> tuple[np.ndarray, np.ndarray]:
    """Return y, (512, 1), and x, (1, 512), as float32."""
    steps = np.arange(align.SIDE, dtype=np.float32)
    return steps[:, None], steps[None]


def _smoothstep(x: np.ndarray) -> np.ndarray:
    x = np.clip(x, 0, 1)
    return (x * x * (3 - 2 * x)).astype(np.float32)
