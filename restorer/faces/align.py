"""Map faces of a photo to upright square crops and back.

An affine is a (2, 3) float64 matrix that maps (x, y); the centre of the first pixel is (0, 0).
"""

import math

import cv2
import numpy as np

SIDE = 512
# Left eye, right eye, nose, left and right corner of the mouth, as the viewer sees them, in a crop of SIDE:
# the mean of FFHQ's aligned faces (facexlib 0.3)
TEMPLATE = np.array(
    [
        (192.98138, 239.94708),
        (318.90277, 240.1936),
        (256.63416, 314.01935),
        (201.26117, 371.41043),
        (313.08905, 371.15118),
    ]
)
_BORDER = (132, 133, 135)  # RGB beyond the photo, as in GFPGAN's own crops


def similarity(landmarks: np.ndarray) -> np.ndarray:
    """Return the affine photo → crop whose rotation, scale and translation best map landmarks to TEMPLATE.

    landmarks  (5, 2) in pixels of the photo, in the order of TEMPLATE

    Fits by least median of squares, as GFPGAN does, so that one wrong landmark has no effect. Raises
    ValueError if the landmarks do not define a face (all coincide, for example).
    """
    if not np.isfinite(landmarks).all():
        raise ValueError("the landmarks are NaN or infinite")
    affine, _ = cv2.estimateAffinePartial2D(landmarks.astype(np.float64), TEMPLATE, method=cv2.LMEDS)
    if affine is None or not np.isfinite(affine).all() or not 1e-3 < magnification(affine) < 1e3:
        raise ValueError("the landmarks do not define a face")
    return affine


def magnification(affine: np.ndarray) -> float:
    """Return the factor by which the affine enlarges lengths."""
    return float(np.sqrt(abs(np.linalg.det(affine[:, :2]))))


def from_larger(affine: np.ndarray, outscale: float) -> np.ndarray:
    """Return the affine enlarged photo → crop, for a photo enlarged `outscale` times."""
    linear = affine[:, :2]
    return np.column_stack([linear / outscale, affine[:, 2] + linear @ np.full(2, 0.5 / outscale - 0.5)])


def apply(affine: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Map (N, 2) points."""
    return points @ affine[:, :2].T + affine[:, 2]


def crop(pixels: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Return the face as (SIDE, SIDE, 3) of the same dtype, uint8 or uint16 RGB; grey beyond the photo.

    A face larger than the crop is area-averaged.
    """
    border = tuple(level * (257 if pixels.dtype == np.uint16 else 1) for level in _BORDER)
    return warp(pixels, affine, (SIDE, SIDE), cv2.INTER_LINEAR, border)


def warp(
    plane: np.ndarray,
    affine: np.ndarray,
    size: tuple[int, int],
    interpolation: int = cv2.INTER_CUBIC,
    border: tuple[float, ...] = (0, 0, 0),
) -> np.ndarray:
    """Warp a plane to `size` (width, height); average first where the affine shrinks."""
    part, affine = _visible_part(plane, affine, size)
    shrink = int(1 / magnification(affine) + 1e-6)
    if shrink > 1:
        height, width = (max(1, -(-side // shrink)) for side in part.shape[:2])
        padded = cv2.copyMakeBorder(
            part, 0, height * shrink - part.shape[0], 0, width * shrink - part.shape[1], cv2.BORDER_REPLICATE
        )
        part, affine = (
            cv2.resize(padded, (width, height), interpolation=cv2.INTER_AREA),
            from_larger(affine, 1 / shrink),
        )
    rest = 1 / magnification(affine)
    if rest > 1 + 1e-3:  # below 2: blur, as whole pixels cannot be averaged
        sigma = 0.5 * math.sqrt(rest * rest - 1)
        part = cv2.GaussianBlur(part, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
    return cv2.warpAffine(
        part, affine, size, flags=interpolation, borderMode=cv2.BORDER_CONSTANT, borderValue=border
    )


def _visible_part(
    plane: np.ndarray, affine: np.ndarray, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Cut the plane to what the result shows, plus a margin; return it and the affine from there.

    OpenCV cannot warp planes of 32,768 pixels or more a side.
    """
    corners = np.array([(0, 0), (size[0], 0), (0, size[1]), size], float)
    in_plane = apply(cv2.invertAffineTransform(affine), corners)
    margin = 2 + 2 / magnification(affine)
    left, top = np.maximum(0, np.floor(in_plane.min(0) - margin)).astype(int)
    right, bottom = np.maximum((left + 1, top + 1), np.ceil(in_plane.max(0) + margin).astype(int))
    left, top = min(left, plane.shape[1] - 1), min(top, plane.shape[0] - 1)
    shifted = np.column_stack([affine[:, :2], apply(affine, np.array([(left, top)], float))[0]])
    return plane[top:bottom, left:right], shifted
