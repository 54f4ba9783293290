"""Put restored faces back into a photo: only where they are, in float32, rounded once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import cv2
import numpy as np

from ..pixels import luma, rounded
from . import align

_TINT = 32.0  # sigma in crop pixels; what is coarser than this is taken from the photo


@dataclass(frozen=True)
class Face:
    """A face of a photo, before and after.

    box        left, top, right, bottom in the photo's pixels, the centre of the first being (0, 0)
    score      of the detector, 0 to 1
    landmarks  (5, 2): left eye, right eye, nose, left and right corner of the mouth, as the viewer sees them
    affine     (2, 3): photo (as it was, not enlarged) → crop
    before     (512, 512, 3) uint8 or uint16 RGB, as cut from the photo
    after      the same, restored; `before` itself where it was not
    mask       (512, 512) float32, 0 to 1: what of the crop is put back
    reason     why it was not restored, "" where it was
    """

    box: tuple[float, float, float, float]
    score: float
    landmarks: np.ndarray
    affine: np.ndarray
    before: np.ndarray
    after: np.ndarray
    mask: np.ndarray
    reason: str = ""

    @property
    def restored(self) -> bool:
        return not self.reason


class Under(NamedTuple):
    """A part of the enlarged photo as it was before faces were put into it."""

    rows: slice
    columns: slice
    pixels: np.ndarray


def paste(
    pixels: np.ndarray,
    faces: Sequence[Face],
    *,
    outscale: float,
    strength: float,
    shares: Mapping[int, float] | None = None,
    grey: bool = False,
) -> tuple[Under, ...]:
    """Put the restored faces into the enlarged photo, in place; what lay there before.

    pixels    (H, W, 3) uint8 or uint16 RGB, the photo enlarged outscale times
    strength  0 changes nothing, 1 gives the restored faces; a true blend in between
    shares    of the strength, for single faces by their index in `faces`
    grey      the three channels stay equal

    Of overlapping faces the larger, which is nearer, lies on top.
    """
    shared = [(face, (shares or {}).get(index, 1)) for index, face in enumerate(faces)]
    seen = [(face, share) for face, share in shared if share > 0 and _seen(face)]
    ordered = sorted(seen, key=lambda one: -align.magnification(one[0].affine))
    if not ordered or strength == 0:
        return ()
    before = []
    size = pixels.shape[1::-1]
    placed = [(_rectangle(face, size, outscale), (face, share)) for face, share in ordered]
    for group in _overlapping([one for one in placed if _area(one[0])]):
        rows, columns = _union([rectangle for rectangle, _ in group])
        before.append(Under(rows, columns, pixels[rows, columns].copy()))
        region = before[-1].pixels.astype(np.float32)
        for (down, across), (face, share) in group:
            top, left = down.start - rows.start, across.start - columns.start
            part = region[top : down.stop - rows.start, left : across.stop - columns.start]
            _lay(part, face, share, outscale, (across.start, down.start), size)
        np.clip(region, 0, np.iinfo(pixels.dtype).max, out=region)
        done = rounded(before[-1].pixels + np.float32(strength) * (region - before[-1].pixels), pixels.dtype)
        pixels[rows, columns] = luma(done)[..., None] if grey else done
    return tuple(before)


def lifted(pixels: np.ndarray, under: Sequence[Under]) -> np.ndarray:
    """The enlarged photo as it was before the faces were put into it; a new array."""
    out = pixels.copy()
    for part in reversed(under):  # one may lie within the rectangle of another that came later
        out[part.rows, part.columns] = part.pixels
    return out


def _seen(face: Face) -> bool:
    return face.restored and bool(face.mask.any())


T = TypeVar("T")
Rectangle = tuple[slice, slice]


def _rectangle(face: Face, size: tuple[int, int], outscale: float) -> Rectangle:
    """The rows and columns of the enlarged photo, `size` (width, height), that the face's mask touches."""
    ys, xs = np.nonzero(face.mask)
    corners = np.array(
        [(x, y) for x in (xs.min() - 1, xs.max() + 1) for y in (ys.min() - 1, ys.max() + 1)], float
    )
    placed = align.apply(align.inverse(align.from_larger(face.affine, outscale)), corners)
    left, top = np.clip(np.floor(placed.min(0)).astype(int), 0, size)
    right, bottom = np.clip(np.ceil(placed.max(0)).astype(int) + 1, 0, size)
    return slice(top, bottom), slice(left, right)


def _area(rectangle: Rectangle) -> int:
    rows, columns = rectangle
    return (rows.stop - rows.start) * (columns.stop - columns.start)


def _overlapping(placed: list[tuple[Rectangle, T]]) -> list[list[tuple[Rectangle, T]]]:
    """Groups of which no two touch, each in the order given."""
    groups: list[list[int]] = []
    for index, (rectangle, _) in enumerate(placed):
        near = [group for group in groups if any(_touch(rectangle, placed[other][0]) for other in group)]
        groups = [group for group in groups if group not in near] + [sorted([*sum(near, []), index])]
    return [[placed[index] for index in group] for group in groups]


def _touch(one: Rectangle, other: Rectangle) -> bool:
    return all(a.start < b.stop and b.start < a.stop for a, b in zip(one, other, strict=True))


def _union(rectangles: list[Rectangle]) -> Rectangle:
    rows, columns = zip(*rectangles, strict=True)
    return (
        slice(min(s.start for s in rows), max(s.stop for s in rows)),
        slice(min(s.start for s in columns), max(s.stop for s in columns)),
    )


def _lay(
    part: np.ndarray,
    face: Face,
    share: float,
    outscale: float,
    origin: tuple[int, int],
    size: tuple[int, int],
) -> None:
    """Lay a share of a face over a float32 part, from origin (x, y), of the enlarged photo of `size`."""
    larger = align.from_larger(face.affine, outscale)
    moved = np.column_stack([larger[:, :2], align.apply(larger, np.array([origin], float))[0]])
    to_part, shape = align.inverse(moved), part.shape[1::-1]
    crop = align.warp(_matched(face, _within(larger, outscale, size)), to_part, shape)
    mask = align.warp(face.mask, to_part, shape, cv2.INTER_LINEAR)
    part += (mask * np.float32(share))[..., None] * (crop - part)


def _within(larger: np.ndarray, outscale: float, size: tuple[int, int]) -> np.ndarray | None:
    """For each pixel of a crop the place of the nearest that shows the photo alone; None where all do.

    larger  the affine enlarged photo → crop; size is the enlarged photo's

    (2, 512, 512) float32: x, then y.
    """
    # beyond the centres of its outermost pixels grey is mixed in; and for one place two pixels are read
    first = (outscale - 1) / 2 + 1.5 / align.magnification(larger)
    last = np.maximum(first, np.array(size) - 1 - first)
    to_photo, end = align.inverse(larger), float(align.SIDE - 1)
    corners = align.apply(to_photo, np.array([(0, 0), (end, 0), (0, end), (end, end)]))
    if (corners >= first).all() and (corners <= last).all():
        return None
    places = np.dstack(np.meshgrid(*[np.arange(end + 1)] * 2)).reshape(-1, 2)
    seen = align.apply(to_photo, places)
    nearest = np.clip(seen, first, last)
    beyond = (nearest != seen).any(1)
    places[beyond] = align.apply(larger, nearest[beyond])
    return places.T.reshape(2, align.SIDE, align.SIDE).astype(np.float32)


def _matched(face: Face, within: np.ndarray | None) -> np.ndarray:
    """The restored crop in float32 with the coarse colours of the photo: networks have a tint of their own.

    Only what the mask shows is compared, and what lies beyond the photo's edge is painted over from within:
    its grey would bleed in.
    """
    before, after = face.before.astype(np.float32), face.after.astype(np.float32)
    if within is not None:
        before, after = (
            cv2.remap(crop, within[0], within[1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
            for crop in (before, after)
        )
    weight = face.mask[..., None] + np.float32(1e-4)
    off = _coarse((before - after) * weight) / _coarse(np.repeat(weight, 3, axis=2))
    return after + off


def _coarse(plane: np.ndarray) -> np.ndarray:
    quarter = cv2.resize(plane, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)
    quarter = cv2.GaussianBlur(quarter, (0, 0), _TINT / 4, borderType=cv2.BORDER_REFLECT)
    return cv2.resize(quarter, plane.shape[1::-1], interpolation=cv2.INTER_LINEAR)
