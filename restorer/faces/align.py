"""Between a photo and the upright square crop of a face that face networks know. Pure geometry.

An affine is (2, 3) float64 and maps (x, y), the centre of the first pixel being (0, 0).
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
_BORDER = (132, 133, 135)  # what GFPGAN was used to outside the photo, RGB


def similarity(landmarks: np.ndarray) -> np.ndarray:
    """The affine photo → crop: turned, scaled and moved so that the landmarks come nearest to TEMPLATE.

    landmarks  (5, 2) in the photo's pixels, in TEMPLATE's order

    The least median of squares, as GFPGAN's authors have it: one wrong landmark does not turn the face.
    Raises ValueError where the landmarks span no face (all in one point, say).
    """
    if not np.isfinite(landmarks).all():
        raise ValueError("the landmarks are not all numbers")
    affine, _ = cv2.estimateAffinePartial2D(landmarks.astype(np.float64), TEMPLATE, method=cv2.LMEDS)
    if affine is None or not np.isfinite(affine).all() or not 1e-3 < magnification(affine) < 1e3:
        raise ValueError("the landmarks span no face")
    return affine


def magnification(affine: np.ndarray) -> float:
    """How much larger lengths are after the affine than before."""
    return float(np.sqrt(abs(np.linalg.det(affine[:, :2]))))


def inverse(affine: np.ndarray) -> np.ndarray:
    """The affine that undoes this one."""
    return cv2.invertAffineTransform(affine)


def from_larger(affine: np.ndarray, outscale: float) -> np.ndarray:
    """The affine larger photo → crop, for a photo enlarged `outscale` times."""
    turn = affine[:, :2]
    return np.column_stack([turn / outscale, affine[:, 2] + turn @ np.full(2, 0.5 / outscale - 0.5)])


def apply(affine: np.ndarray, points: np.ndarray) -> np.ndarray:
    """(N, 2) points, mapped."""
    return points @ affine[:, :2].T + affine[:, 2]


def crop(pixels: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """The face in (SIDE, SIDE, 3), of the same dtype: uint8 or uint16 RGB. Grey lies outside the photo.

    A face that is larger than the crop is averaged down, not skipped through.
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
    """`size` (width, height) pixels of a plane seen through an affine; where it shrinks, averaged first."""
    part, affine = _needed(plane, affine, size)
    shrink = int(1 / magnification(affine) + 1e-6)
    if shrink > 1:
        height, width = (max(1, -(-side // shrink)) for side in part.shape[:2])
        filled = cv2.copyMakeBorder(
            part, 0, height * shrink - part.shape[0], 0, width * shrink - part.shape[1], cv2.BORDER_REPLICATE
        )
        part, affine = (
            cv2.resize(filled, (width, height), interpolation=cv2.INTER_AREA),
            from_larger(affine, 1 / shrink),
        )
    rest = 1 / magnification(affine)
    if rest > 1 + 1e-3:  # less than two pixels to one: nothing to average by whole numbers
        sigma = 0.5 * math.sqrt(rest * rest - 1)
        part = cv2.GaussianBlur(part, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
    return cv2.warpAffine(
        part, affine, size, flags=interpolation, borderMode=cv2.BORDER_CONSTANT, borderValue=border
    )


def _needed(plane: np.ndarray, affine: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """The rectangle of the plane that the result shows, with some pixels around, and the affine from there.

    OpenCV takes no plane of 32,768 pixels or more a side.
    """
    corners = np.array([(0, 0), (size[0], 0), (0, size[1]), size], float)
    seen = apply(inverse(affine), corners)
    margin = 2 + 2 / magnification(affine)
    left, top = np.maximum(0, np.floor(seen.min(0) - margin)).astype(int)
    right, bottom = np.maximum((left + 1, top + 1), np.ceil(seen.max(0) + margin).astype(int))
    left, top = min(left, plane.shape[1] - 1), min(top, plane.shape[0] - 1)
    moved = np.column_stack([affine[:, :2], apply(affine, np.array([(left, top)], float))[0]])
    return plane[top:bottom, left:right], moved
