"""Transform the tags by which a GeoTIFF (OGC 19-008r4) places its pixels on the map."""

import math

import numpy as np

from ..placement import Placement
from . import exif
from .exif import Directory, Entry, Order

_SCALE, _TIE_POINTS, _MATRIX, _KEYS = 33550, 33922, 34264, 34735
# GDAL's metadata and rational polynomial coefficients hold pixel numbers in forms of their own
TAGS = dict.fromkeys([_SCALE, _TIE_POINTS, _MATRIX], "position on the map")
TAGS |= dict.fromkeys([_KEYS, 34736, 34737], "coordinate system")
OPAQUE = {42112: "GDAL_METADATA", 50844: "RPCCoefficient", 33920: "IrasBTransformation"}
_RASTER_TYPE, _POINT = 1025, 2  # a pixel number means the pixel's centre, not its corner
_MAX_POINTS = 10_000


def transform(tags: Directory, order: Order, placement: Placement) -> dict[int, Entry]:
    """Return the map tags for the result; {} if there are none.

    A turned or mirrored picture needs a matrix, because a scale has no direction.
    """
    out = {tag: value for tag in TAGS if isinstance(value := tags.get(tag), Entry)}
    if placement.changes_nothing or not out:
        return out
    scale, points, matrix = (
        exif.numbers(tags.get(tag), order, 6 * _MAX_POINTS) for tag in (_SCALE, _TIE_POINTS, _MATRIX)
    )
    if not all(map(math.isfinite, (*scale, *points, *matrix))):
        return {}
    moved = _movement(placement, 0.5 if _is_point(tags, order) else 0.0)
    tied = [points[at : at + 6] for at in range(0, len(points) - 5, 6)]
    if placement.orientation != 1 and len(scale) >= 2 and len(tied) == 1:
        column, row, _, east, north, height = tied[0]
        x, y = scale[:2]
        matrix = (x, 0, 0, east - column * x, 0, -y, 0, north + row * y, 0, 0, 0, height, 0, 0, 0, 1)
        del out[_SCALE], out[_TIE_POINTS]
    if len(matrix) == 16:
        composed = np.reshape(matrix, (4, 4)) @ np.linalg.inv(moved)
        out[_MATRIX] = exif.make_entry(order, exif.DOUBLE, *composed.ravel())
    if _SCALE in out and len(scale) >= 2:
        sides = scale[0] / placement.scale_x, scale[1] / placement.scale_y
        out[_SCALE] = exif.make_entry(order, exif.DOUBLE, *sides, *scale[2:])
    if _TIE_POINTS in out and tied:
        pixels = np.array([(point[0], point[1], 0, 1) for point in tied]) @ moved.T
        rows = [(x, y, *point[2:]) for (x, y, _, _), point in zip(pixels, tied, strict=True)]
        out[_TIE_POINTS] = exif.make_entry(order, exif.DOUBLE, *np.ravel(rows))
    return out


def _movement(placement: Placement, half: float) -> np.ndarray:
    """Return the (4, 4) matrix that takes a pixel number of the stored picture to one of the result."""

    def moved(column: float, row: float) -> np.ndarray:
        return np.array(placement.box((column + half, row + half, 0, 0))[:2]) - half

    out = np.eye(4)
    out[:2, 3] = origin = moved(0, 0)
    out[:2, 0], out[:2, 1] = moved(1, 0) - origin, moved(0, 1) - origin
    return out


def _is_point(tags: Directory, order: Order) -> bool:
    keys = exif.numbers(tags.get(_KEYS), order, 4096)
    return (_RASTER_TYPE, 0, 1, _POINT) in zip(*(keys[at::4] for at in range(4, 8)), strict=False)
