"""The order of things for the faces of one photo: find, cut out, restore, judge what is put back."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

import numpy as np

from ..errors import RestoreError
from . import align
from .detect import Detection
from .mask import border_mask, face_mask
from .paste import Face

Restore = Callable[[Sequence[np.ndarray]], Sequence[np.ndarray | RestoreError]]
Masks = Callable[[np.ndarray], np.ndarray]
PENDING = "not restored yet"


def crop_faces(pixels: np.ndarray, detections: Sequence[Detection], *, large: bool = False) -> list[Face]:
    """The detected faces of (H, W, 3) uint8 or uint16 RGB, each with its crop, none restored yet.

    large  also those that have more pixels than a crop: the network would take detail from them
    """
    return [_cut(pixels, detection, large) for detection in detections]


def _cut(pixels: np.ndarray, found: Detection, large: bool) -> Face:
    blank = np.zeros((align.SIDE, align.SIDE, 3), pixels.dtype)
    nowhere = np.zeros(blank.shape[:2], np.float32)
    try:
        affine = align.similarity(found.landmarks)
    except ValueError as error:
        return Face(found.box, found.score, found.landmarks, np.eye(2, 3), blank, blank, nowhere, str(error))
    crop = align.crop(pixels, affine)
    reason = PENDING
    if align.magnification(affine) < 1 and not large:
        side = align.SIDE / align.magnification(affine)
        reason = f"it has {side:.0f} pixels a side, more than the {align.SIDE} that a face network gives"
    mask = face_mask(align.apply(affine, found.landmarks))
    return Face(found.box, found.score, found.landmarks, affine, crop, crop, mask, reason)


def count_pending(faces: Sequence[Face]) -> int:
    """How many of the faces are to be restored."""
    return sum(face.reason == PENDING for face in faces)


def restore(
    faces: Sequence[Face],
    network: Restore,
    masks: Masks | None = None,
    *,
    batch: int = 8,
    progress: Callable[[int], None] | None = None,
) -> list[Face]:
    """The faces, those restored that wait for it; one that the network fails stays as it is and says why.

    masks     gives a mask for a restored crop; without it the mask follows from the landmarks
    batch     how many crops the network is given at once
    progress  is told after every batch how many faces are done; what it raises stops the work
    """
    done = list(faces)
    todo = [index for index, face in enumerate(faces) if face.reason == PENDING]
    for start in range(0, len(todo), batch):
        some = todo[start : start + batch]
        for index, answer in zip(some, network([faces[i].before for i in some]), strict=True):
            done[index] = _answered(faces[index], answer, masks)
        if progress:
            progress(start + len(some))
    return done


def mark_skipped(faces: Sequence[Face], reason: str) -> list[Face]:
    """The faces, those that wait for their restoration left as they are."""
    return [replace(face, reason=reason) if face.reason == PENDING else face for face in faces]


def _answered(face: Face, answer: np.ndarray | RestoreError, masks: Masks | None) -> Face:
    if isinstance(answer, RestoreError):
        return replace(face, reason=str(answer) or "the network failed")
    if answer.shape != face.before.shape or answer.dtype != face.before.dtype:
        return replace(face, reason=f"the network answered with {answer.shape} {answer.dtype}")
    mask = face.mask
    if masks is not None:
        try:
            mask = masks(answer) * border_mask()
        except RestoreError as error:
            return replace(face, reason=f"its outline could not be drawn: {error}")
        if not mask.any():
            return replace(face, reason="no face was seen in what the network gave")
    return replace(face, after=answer, mask=mask, reason="")


def summary(faces: Sequence[Face], off: Collection[int] = ()) -> str:
    """How many and why not all: "faces: 3 found, 2 restored (why the third was not)"; "" without a face.

    off  indices of faces that are not put back, by choice
    """
    if not faces:
        return ""
    left = [face.reason for face in faces if not face.restored]
    why = f" ({'; '.join(dict.fromkeys(left))})" if left else ""
    chosen = sum(faces[index].restored for index in off)
    switched = f", {chosen} of them switched off" if chosen else ""
    return f"faces: {len(faces)} found, {len(faces) - len(left)} restored{switched}{why}"
