"""Put restored faces back into a photo: only where they are, in float32, rounded once."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

from ..images.resample import luma, round_to
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


class PasteBackup(NamedTuple):
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
) -> tuple[PasteBackup, ...]:
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
    layers = [_Layer(face, share, outscale, size) for face, share in ordered]
    for rows, columns, here in _cells([layer for layer in layers if layer.area]):
        before.append(PasteBackup(rows, columns, pixels[rows, columns].copy()))
        region = before[-1].pixels.astype(np.float32)
        for layer in here:
            layer.lay(region, rows, columns)
        np.clip(region, 0, np.iinfo(pixels.dtype).max, out=region)
        done = round_to(before[-1].pixels + np.float32(strength) * (region - before[-1].pixels), pixels.dtype)
        pixels[rows, columns] = luma(done)[..., None] if grey else done
    return tuple(before)


def without_faces(pixels: np.ndarray, under: Sequence[PasteBackup]) -> np.ndarray:
    """The enlarged photo as it was before the faces were put into it; a new array."""
    out = pixels.copy()
    for part in under:
        out[part.rows, part.columns] = part.pixels
    return out


def _seen(face: Face) -> bool:
    return face.restored and bool(face.mask.any())


class _Layer:
    """A restored face as it lies in an enlarged photo of `size` (width, height), in its rows and columns.

    Its pixels are made when the first cell asks for them and given up with the last.
    """

    def __init__(self, face: Face, share: float, outscale: float, size: tuple[int, int]) -> None:
        self._face, self._share, self._outscale, self._size = face, share, outscale, size
        self._larger = align.from_larger(face.affine, outscale)
        ys, xs = np.nonzero(face.mask)
        corners = np.array(
            [(x, y) for x in (xs.min() - 1, xs.max() + 1) for y in (ys.min() - 1, ys.max() + 1)], float
        )
        placed = align.apply(align.inverse(self._larger), corners)
        left, top = np.clip(np.floor(placed.min(0)).astype(int), 0, size)
        right, bottom = np.clip(np.ceil(placed.max(0)).astype(int) + 1, 0, size)
        self.rows, self.columns = slice(top, bottom), slice(left, right)
        self._made: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def area(self) -> int:
        return (self.rows.stop - self.rows.start) * (self.columns.stop - self.columns.start)

    def overlaps(self, other: "_Layer") -> bool:
        pairs = (self.rows, other.rows), (self.columns, other.columns)
        return all(a.start < b.stop and b.start < a.stop for a, b in pairs)

    def lay(self, region: np.ndarray, rows: slice, columns: slice) -> None:
        """Lay the face over a float32 cell of the photo, in place; cells come from top to bottom."""
        crop, weight = self._made = self._made or self._make()
        down = slice(rows.start - self.rows.start, rows.stop - self.rows.start)
        left = self.columns.start - columns.start
        part = region[:, left : left + crop.shape[1]]
        part += weight[down] * (crop[down] - part)
        if rows.stop == self.rows.stop:
            self._made = None

    def _make(self) -> tuple[np.ndarray, np.ndarray]:
        """The crop and how much of it is put back, (h, w, 3) and (h, w, 1) float32."""
        origin = align.apply(self._larger, np.array([(self.columns.start, self.rows.start)], float))[0]
        to_part = align.inverse(np.column_stack([self._larger[:, :2], origin]))
        shape = self.columns.stop - self.columns.start, self.rows.stop - self.rows.start
        matched = _matched(self._face, _within(self._larger, self._outscale, self._size))
        weight = align.warp(self._face.mask * np.float32(self._share), to_part, shape, cv2.INTER_LINEAR)
        return align.warp(matched, to_part, shape), weight[..., None]


def _cells(layers: list[_Layer]) -> Iterator[tuple[slice, slice, list[_Layer]]]:
    """Rectangles that cover the layers, no two of which overlap, with what reaches into each, as ordered."""
    for group in _touching(layers):
        edges = sorted({edge for layer in group for edge in (layer.rows.start, layer.rows.stop)})
        for top, bottom in itertools.pairwise(edges):
            here = [layer for layer in group if layer.rows.start <= top and bottom <= layer.rows.stop]
            spans: list[tuple[int, int]] = []
            for start, stop in sorted((layer.columns.start, layer.columns.stop) for layer in here):
                if spans and start < spans[-1][1]:
                    spans[-1] = spans[-1][0], max(stop, spans[-1][1])
                else:
                    spans.append((start, stop))
            for left, right in spans:
                within = [layer for layer in here if left <= layer.columns.start < right]
                yield slice(top, bottom), slice(left, right), within


def _touching(layers: list[_Layer]) -> list[list[_Layer]]:
    """Groups of which no two overlap, each in the order given."""
    groups: list[list[int]] = []
    for index, layer in enumerate(layers):
        near = [group for group in groups if any(layer.overlaps(layers[other]) for other in group)]
        groups = [group for group in groups if group not in near] + [sorted([*sum(near, []), index])]
    return [[layers[index] for index in group] for group in groups]


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
