"""Paste restored faces into a photo: blended in float32, rounded once."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

from ..images.resample import luma, round_to
from . import align

_TINT = 32.0  # sigma in crop pixels; coarser colours are taken from the photo


@dataclass(frozen=True)
class Face:
    """A face of a photo, before and after restoration.

    box        left, top, right, bottom in the photo's pixels, whose first has its centre at (0, 0)
    score      of the detector, 0 to 1
    landmarks  (5, 2): left eye, right eye, nose, left and right corner of the mouth, as the viewer sees them
    affine     (2, 3): original photo → crop
    before     (512, 512, 3) uint8 or uint16 RGB, cut from the photo
    after      the same, restored; `before` itself if it was not
    mask       (512, 512) float32, 0 to 1: the part of the crop that is pasted
    reason     why it was not restored, or ""
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


class PasteBackup(NamedTuple):
    """A region of the enlarged photo before faces were pasted."""

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
) -> tuple[PasteBackup, ...]:
    """Paste the restored faces into the enlarged photo, in place; return the pixels they replaced.

    pixels    (H, W, 3) uint8 or uint16 RGB, the photo enlarged outscale times
    strength  0 to 1: linear blend of the photo (0) and the restored faces (1)
    shares    factors of the strength, by index in `faces`; default 1
    grey      keep the three channels equal

    Of overlapping faces the larger is on top, as it is nearer.
    """
    shared = [(face, (shares or {}).get(index, 1)) for index, face in enumerate(faces)]
    visible = [(face, share) for face, share in shared if share > 0 and _is_visible(face)]
    ordered = sorted(visible, key=lambda pair: -align.magnification(pair[0].affine))
    if not ordered or strength == 0:
        return ()
    backups = []
    size = pixels.shape[1::-1]
    layers = [_Layer(face, share, outscale, size) for face, share in ordered]
    for rows, columns, overlapping in _cells([layer for layer in layers if layer.area]):
        before = pixels[rows, columns].copy()
        backups.append(PasteBackup(rows, columns, before))
        region = before.astype(np.float32)
        for layer in overlapping:
            layer.blend(region, rows, columns)
        np.clip(region, 0, np.iinfo(pixels.dtype).max, out=region)
        blended = round_to(before + np.float32(strength) * (region - before), pixels.dtype)
        pixels[rows, columns] = luma(blended)[..., None] if grey else blended
    return tuple(backups)


def without_faces(pixels: np.ndarray, backups: Sequence[PasteBackup]) -> np.ndarray:
    """Return a copy of the enlarged photo before the faces were pasted."""
    out = pixels.copy()
    for backup in backups:
        out[backup.rows, backup.columns] = backup.pixels
    return out


def _is_visible(face: Face) -> bool:
    return face.restored and bool(face.mask.any())


class _Layer:
    """A restored face in an enlarged photo of `size` (width, height), and the rows and columns it covers.

    Its pixels are computed for the first cell and released after the last.
    """

    def __init__(self, face: Face, share: float, outscale: float, size: tuple[int, int]) -> None:
        self._face, self._share, self._outscale, self._size = face, share, outscale, size
        self._to_crop = align.from_larger(face.affine, outscale)
        ys, xs = np.nonzero(face.mask)
        corners = np.array(
            [(x, y) for x in (xs.min() - 1, xs.max() + 1) for y in (ys.min() - 1, ys.max() + 1)], float
        )
        in_photo = align.apply(cv2.invertAffineTransform(self._to_crop), corners)
        left, top = np.clip(np.floor(in_photo.min(0)).astype(int), 0, size)
        right, bottom = np.clip(np.ceil(in_photo.max(0)).astype(int) + 1, 0, size)
        self.rows, self.columns = slice(top, bottom), slice(left, right)
        self._rendered: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def area(self) -> int:
        return (self.rows.stop - self.rows.start) * (self.columns.stop - self.columns.start)

    def overlaps(self, other: "_Layer") -> bool:
        pairs = (self.rows, other.rows), (self.columns, other.columns)
        return all(a.start < b.stop and b.start < a.stop for a, b in pairs)

    def blend(self, region: np.ndarray, rows: slice, columns: slice) -> None:
        """Blend the face into a float32 cell of the photo, in place; cells come from top to bottom."""
        crop, weight = self._rendered = self._rendered or self._render()
        down = slice(rows.start - self.rows.start, rows.stop - self.rows.start)
        left = self.columns.start - columns.start
        part = region[:, left : left + crop.shape[1]]
        part += weight[down] * (crop[down] - part)
        if rows.stop == self.rows.stop:
            self._rendered = None

    def _render(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the warped crop, (h, w, 3), and its weight, (h, w, 1), as float32."""
        origin = align.apply(self._to_crop, np.array([(self.columns.start, self.rows.start)], float))[0]
        to_part = cv2.invertAffineTransform(np.column_stack([self._to_crop[:, :2], origin]))
        shape = self.columns.stop - self.columns.start, self.rows.stop - self.rows.start
        matched = _match_colours(self._face, _inside_photo(self._to_crop, self._outscale, self._size))
        weight = align.warp(self._face.mask * np.float32(self._share), to_part, shape, cv2.INTER_LINEAR)
        return align.warp(matched, to_part, shape), weight[..., None]


def _cells(layers: list[_Layer]) -> Iterator[tuple[slice, slice, list[_Layer]]]:
    """Yield disjoint rectangles that cover the layers, each with its overlapping layers in order."""
    for group in _overlapping_groups(layers):
        edges = sorted({edge for layer in group for edge in (layer.rows.start, layer.rows.stop)})
        for top, bottom in itertools.pairwise(edges):
            in_rows = [layer for layer in group if layer.rows.start <= top and bottom <= layer.rows.stop]
            spans: list[tuple[int, int]] = []
            for start, stop in sorted((layer.columns.start, layer.columns.stop) for layer in in_rows):
                if spans and start < spans[-1][1]:
                    spans[-1] = spans[-1][0], max(stop, spans[-1][1])
                else:
                    spans.append((start, stop))
            for left, right in spans:
                in_span = [layer for layer in in_rows if left <= layer.columns.start < right]
                yield slice(top, bottom), slice(left, right), in_span


def _overlapping_groups(layers: list[_Layer]) -> list[list[_Layer]]:
    """Group layers so that no two groups overlap, each in the order of `layers`."""
    groups: list[list[int]] = []
    for index, layer in enumerate(layers):
        near = [group for group in groups if any(layer.overlaps(layers[other]) for other in group)]
        groups = [group for group in groups if group not in near] + [sorted([*sum(near, []), index])]
    return [[layers[index] for index in group] for group in groups]


def _inside_photo(to_crop: np.ndarray, outscale: float, size: tuple[int, int]) -> np.ndarray | None:
    """Map each pixel of a crop to the nearest one inside the photo, or return None if all are inside.

    to_crop  the affine enlarged photo → crop
    size     width and height of the enlarged photo

    Returns x and y, (2, 512, 512) float32.
    """
    # grey is mixed in beyond the centres of the photo's outermost pixels, and interpolation reads two pixels
    first = (outscale - 1) / 2 + 1.5 / align.magnification(to_crop)
    last = np.maximum(first, np.array(size) - 1 - first)
    to_photo, end = cv2.invertAffineTransform(to_crop), float(align.SIDE - 1)
    corners = align.apply(to_photo, np.array([(0, 0), (end, 0), (0, end), (end, end)]))
    if (corners >= first).all() and (corners <= last).all():
        return None
    points = np.dstack(np.meshgrid(*[np.arange(end + 1)] * 2)).reshape(-1, 2)
    in_photo = align.apply(to_photo, points)
    nearest = np.clip(in_photo, first, last)
    outside = (nearest != in_photo).any(1)
    points[outside] = align.apply(to_crop, nearest[outside])
    return points.T.reshape(2, align.SIDE, align.SIDE).astype(np.float32)


def _match_colours(face: Face, inside: np.ndarray | None) -> np.ndarray:
    """Return the restored crop in float32 with the coarse colours of the photo, as networks add a tint.

    Only pixels under the mask are compared. Pixels beyond the photo's edge, whose grey would bleed in, are
    replaced by the nearest ones inside.
    """
    before, after = face.before.astype(np.float32), face.after.astype(np.float32)
    if inside is not None:
        before, after = (
            cv2.remap(crop, inside[0], inside[1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
            for crop in (before, after)
        )
    weight = face.mask[..., None] + np.float32(1e-4)
    tint = _coarse((before - after) * weight) / _coarse(np.repeat(weight, 3, axis=2))
    return after + tint


def _coarse(plane: np.ndarray) -> np.ndarray:
    quarter = cv2.resize(plane, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)
    quarter = cv2.GaussianBlur(quarter, (0, 0), _TINT / 4, borderType=cv2.BORDER_REFLECT)
    return cv2.resize(quarter, plane.shape[1::-1], interpolation=cv2.INTER_LINEAR)
