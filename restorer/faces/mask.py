"""What of a face's crop is put back, where no network says it."""

from functools import cache

import numpy as np

from . import align

_FEATHER = 48  # pixels of the crop over which a mask fades
_EDGE = 12  # of the crop's border that a mask leaves alone: networks are weak there


def face_mask(landmarks: np.ndarray) -> np.ndarray:
    """(512, 512) float32: 1 over a face, fading to 0 around it.

    landmarks  (5, 2) in the crop. An ellipse from the hairline to the chin, as wide as the cheeks, turned as
               the face is: its centre and axes follow from the eyes and the mouth
    """
    landmarks = landmarks.astype(np.float32)
    eyes, mouth = landmarks[:2].mean(0), landmarks[3:].mean(0)
    down = mouth - eyes
    long = max(float(np.linalg.norm(down)), 0.75 * float(np.linalg.norm(landmarks[1] - landmarks[0])), 1.0)
    angle = np.arctan2(down[0], down[1]) if np.linalg.norm(down) > 1 else 0.0
    centre = eyes + 0.42 * down
    y, x = _places()
    across = (x - centre[0]) * np.cos(angle) - (y - centre[1]) * np.sin(angle)
    along = (x - centre[0]) * np.sin(angle) + (y - centre[1]) * np.cos(angle)
    axes = 1.4 * long, 1.75 * long
    outward = np.sqrt((across / axes[0]) ** 2 + (along / axes[1]) ** 2)
    inside = (1 - outward) * min(axes)  # about pixels to the ellipse
    return _smooth(inside / _FEATHER) * border_mask()


@cache
def border_mask() -> np.ndarray:
    """(512, 512) float32, read-only: 1, fading to 0 before a crop's border."""
    y, x = _places()
    border = np.minimum(np.minimum(x, align.SIDE - 1 - x), np.minimum(y, align.SIDE - 1 - y)) - _EDGE
    mask = _smooth(border / _FEATHER)
    mask.flags.writeable = False
    return mask


def _places() -> tuple[np.ndarray, np.ndarray]:
    """The rows and the columns of a crop, (512, 1) and (1, 512) float32."""
    line = np.arange(align.SIDE, dtype=np.float32)
    return line[:, None], line[None]


def _smooth(share: np.ndarray) -> np.ndarray:
    share = np.clip(share, 0, 1)
    return (share * share * (3 - 2 * share)).astype(np.float32)
