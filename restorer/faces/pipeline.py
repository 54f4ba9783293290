"""The steps for the faces of one photo: cut out, restore, choose what is pasted."""

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
    """Cut the detected faces out of (H, W, 3) uint8 or uint16 RGB; none is restored yet.

    large  also restore faces larger than a crop, which lose detail
    """
    return [_crop_face(pixels, detection, large) for detection in detections]


def _crop_face(pixels: np.ndarray, detection: Detection, large: bool) -> Face:
    box, score, landmarks = detection.box, detection.score, detection.landmarks
    blank = np.zeros((align.SIDE, align.SIDE, 3), pixels.dtype)
    no_mask = np.zeros(blank.shape[:2], np.float32)
    try:
        affine = align.similarity(landmarks)
    except ValueError as error:
        return Face(box, score, landmarks, np.eye(2, 3), blank, blank, no_mask, str(error))
    crop = align.crop(pixels, affine)
    reason = PENDING
    if align.magnification(affine) < 1 and not large:
        side = align.SIDE / align.magnification(affine)
        reason = f"a side of {side:.0f} pixels is more than the {align.SIDE} of the network: set face_large"
    mask = face_mask(align.apply(affine, landmarks))
    return Face(box, score, landmarks, affine, crop, crop, mask, reason)


def count_pending(faces: Sequence[Face]) -> int:
    """Return the number of faces still to be restored."""
    return sum(face.reason == PENDING for face in faces)


def restore(
    faces: Sequence[Face],
    network: Restore,
    masks: Masks | None = None,
    *,
    batch: int = 8,
    progress: Callable[[int], None] | None = None,
) -> list[Face]:
    """Return the faces with the pending ones restored; a face that fails keeps its pixels and has a reason.

    masks     maps a restored crop to a mask; by default the mask follows from the landmarks
    batch     number of crops per call of the network
    progress  called with the number of restored faces after each batch; an exception from it propagates
    """
    results = list(faces)
    pending = [index for index, face in enumerate(faces) if face.reason == PENDING]
    for start in range(0, len(pending), batch):
        indices = pending[start : start + batch]
        outputs = network([faces[index].before for index in indices])
        for index, output in zip(indices, outputs, strict=True):
            results[index] = _with_output(faces[index], output, masks)
        if progress:
            progress(start + len(indices))
    return results


def mark_skipped(faces: Sequence[Face], reason: str) -> list[Face]:
    """Return the faces with `reason` on the pending ones."""
    return [replace(face, reason=reason) if face.reason == PENDING else face for face in faces]


def _with_output(face: Face, output: np.ndarray | RestoreError, masks: Masks | None) -> Face:
    if isinstance(output, RestoreError):
        return replace(face, reason=str(output) or "the network failed")
    if output.shape != face.before.shape or output.dtype != face.before.dtype:
        return replace(face, reason=f"the network returned {output.shape} {output.dtype}")
    mask = face.mask
    if masks is not None:
        try:
            mask = masks(output) * border_mask()
        except RestoreError as error:
            return replace(face, reason=f"face parsing failed: {error}")
        if not mask.any():
            return replace(face, reason="face parsing found no face in the network's output")
    return replace(face, after=output, mask=mask, reason="")


def summary(faces: Sequence[Face], off: Collection[int] = ()) -> str:
    """Summarise as "faces: 3 found, 2 restored (why the third was not)", or "" without faces.

    off  indices of faces that the user does not want pasted
    """
    if not faces:
        return ""
    failures = [face.reason for face in faces if not face.restored]
    reasons = f" ({'; '.join(dict.fromkeys(failures))})" if failures else ""
    count_off = sum(faces[index].restored for index in off)
    switched_off = f", {count_off} of them switched off" if count_off else ""
    return f"faces: {len(faces)} found, {len(faces) - len(failures)} restored{switched_off}{reasons}"
