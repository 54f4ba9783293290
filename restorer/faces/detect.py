"""Find faces: boxes, scores and five landmarks, in the photo's own pixels."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from ..errors import BadWeights
from ..images.resample import to_uint8

# Long sides of the copies that are looked at: a face that fills the picture may be found in a small one only,
# those in a crowd in a large one only; bench/recall.py compares choices
CAPS = (320, 1280)
_SCORE, _OVERLAP = 0.6, 0.3
_NARROWEST = 64  # OpenCV 4 sees faces in memory it never filled where a side has 32 pixels or fewer
_SMALLEST = 10  # pixels between the eyes; fewer say nothing of a face
Found = tuple[np.ndarray, np.ndarray, np.ndarray]  # boxes (N, 4), scores (N,), landmarks (N, 5, 2)
Detector = Callable[[np.ndarray], Found]


@dataclass(frozen=True)
class Detection:
    """A face in a photo, in its pixels, the centre of the first being (0, 0).

    box        left, top, right, bottom
    score      0 to 1
    landmarks  (5, 2): left eye, right eye, nose, left and right corner of the mouth, as the viewer sees them
    """

    box: tuple[float, float, float, float]
    score: float
    landmarks: np.ndarray

    @property
    def size(self) -> float:
        """Side of a square of the box's area."""
        left, top, right, bottom = self.box
        return math.sqrt(max(0.0, right - left) * max(0.0, bottom - top))


def find(pixels: np.ndarray, detector: Detector, *, caps: tuple[int, ...] = CAPS) -> list[Detection]:
    """Every face of (H, W, 3) uint8 or uint16 RGB once, the largest first.

    detector  finds faces in uint8 RGB, in its pixels
    caps      the long sides that the photo is shrunk to, where it is larger; what several find is merged
    """
    long = max(pixels.shape[:2])
    found = [
        _seen(pixels, min(1.0, side / long), detector) for side in sorted({min(cap, long) for cap in caps})
    ]
    boxes, scores, landmarks = (np.concatenate(parts) for parts in zip(*found, strict=True))
    distance = np.linalg.norm(landmarks[:, 0] - landmarks[:, 1], axis=1)
    # the copy in which a face is more certain also has it more exactly
    kept = [index for index in _apart(boxes, scores) if distance[index] >= _SMALLEST]
    faces = [_detection(boxes[index], scores[index], landmarks[index]) for index in kept]
    return sorted(faces, key=lambda face: -face.size)


def _detection(box: np.ndarray, score: float, landmarks: np.ndarray) -> Detection:
    left, top, right, bottom = map(float, box)
    return Detection((left, top, right, bottom), float(score), landmarks)


def draw(pixels: np.ndarray, faces: list[Detection]) -> np.ndarray:
    """A copy of (H, W, 3) uint8 or uint16 RGB as uint8, with boxes and landmarks drawn in."""
    picture = to_uint8(pixels).copy()
    thick = max(1, round(max(pixels.shape) / 500))
    for face in faces:
        left, top, right, bottom = map(round, face.box)
        cv2.rectangle(picture, (left, top), (right, bottom), (255, 64, 0), thick)
        for x, y in face.landmarks.round().astype(int).tolist():
            cv2.circle(picture, (x, y), thick + 1, (0, 255, 128), -1)
    return picture


def _seen(pixels: np.ndarray, shrink: float, detector: Detector) -> Found:
    height, width = (max(1, round(side * shrink)) for side in pixels.shape[:2])
    small = to_uint8(
        pixels if shrink == 1 else cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
    )
    boxes, scores, landmarks = detector(small)
    times = np.array(pixels.shape[1::-1]) / (width, height)
    return (boxes + 0.5) * np.tile(times, 2) - 0.5, scores, (landmarks + 0.5) * times - 0.5


def _apart(boxes: np.ndarray, scores: np.ndarray) -> list[int]:
    """The boxes that overlap no better one by more than _OVERLAP (intersection over union)."""
    sized = np.column_stack([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]])
    return [int(index) for index in cv2.dnn.NMSBoxes(sized.tolist(), scores.tolist(), 0.0, _OVERLAP)]


class YuNet:
    """OpenCV's face detector (Wu et al., 2023): milliseconds, and any thread may call it."""

    def __init__(self, file: Path, *, score: float = _SCORE) -> None:
        self._model, self._score = file.read_bytes(), score
        self._new()

    def _new(self) -> cv2.FaceDetectorYN:
        level = cv2.utils.logging.getLogLevel()
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)  # OpenCV 5 warns of its own default
        try:
            model = np.frombuffer(self._model, np.uint8)
            empty = np.empty(0, np.uint8)
            return cv2.FaceDetectorYN.create("onnx", model, empty, (320, 320), self._score, _OVERLAP)
        except cv2.error as error:
            raise BadWeights("the face detector's file is not one that OpenCV reads") from error
        finally:
            cv2.utils.logging.setLogLevel(level)

    def __call__(self, pixels: np.ndarray) -> Found:
        """Faces of (H, W, 3) uint8 RGB."""
        height, width = pixels.shape[:2]
        below, right = max(0, _NARROWEST - height), max(0, _NARROWEST - width)
        shown = cv2.copyMakeBorder(pixels[..., ::-1], 0, below, 0, right, cv2.BORDER_CONSTANT)
        detector = self._new()
        detector.setInputSize(shown.shape[1::-1])
        _, rows = detector.detect(shown)
        rows = np.empty((0, 15), np.float32) if rows is None else rows
        rows = rows.astype(np.float64)
        boxes = np.column_stack([rows[:, :2], rows[:, :2] + rows[:, 2:4]])
        return boxes, rows[:, 14], rows[:, 4:14].reshape(-1, 5, 2)
