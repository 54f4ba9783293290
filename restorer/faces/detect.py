"""Detect faces: boxes, scores and five landmarks, in pixels of the photo."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from ..errors import BadWeights
from ..images.resample import shrunk, to_uint8

# Long sides of the copies that are searched: a face that fills the photo may be detected only in a small
# copy, faces in a crowd only in a large one; bench/recall.py compares choices
CAPS = (320, 1280)
_MIN_SCORE, _MAX_OVERLAP = 0.6, 0.3
_MIN_SIDE = 64  # OpenCV 4 reads uninitialised memory where a side has 32 pixels or fewer
_MIN_EYE_DISTANCE = 10  # pixels; smaller faces hold too little detail
DetectorOutput = tuple[np.ndarray, np.ndarray, np.ndarray]  # boxes (N, 4), scores (N,), landmarks (N, 5, 2)
Detector = Callable[[np.ndarray], DetectorOutput]


@dataclass(frozen=True)
class Detection:
    """A detected face, in pixels of the photo; the centre of the first pixel is (0, 0).

    box        left, top, right, bottom
    score      0 to 1
    landmarks  (5, 2): left eye, right eye, nose, left and right corner of the mouth, as the viewer sees them
    """

    box: tuple[float, float, float, float]
    score: float
    landmarks: np.ndarray

    @property
    def size(self) -> float:
        """Side of a square with the box's area."""
        left, top, right, bottom = self.box
        return math.sqrt(max(0.0, right - left) * max(0.0, bottom - top))


def detect_faces(pixels: np.ndarray, detector: Detector, *, caps: tuple[int, ...] = CAPS) -> list[Detection]:
    """Return each face of (H, W, 3) uint8 or uint16 RGB once, the largest first.

    detector  detects faces in uint8 RGB, in its pixels
    caps      long sides of the copies to search; a smaller photo is not enlarged
    """
    long = max(pixels.shape[:2])
    outputs = [_detect_at(pixels, side, detector) for side in sorted({min(cap, long) for cap in caps})]
    boxes, scores, landmarks = (np.concatenate(parts) for parts in zip(*outputs, strict=True))
    eye_distance = np.linalg.norm(landmarks[:, 0] - landmarks[:, 1], axis=1)
    # of duplicates, the detection with the higher score is also the more precise
    unique = [index for index in _non_overlapping(boxes, scores) if eye_distance[index] >= _MIN_EYE_DISTANCE]
    faces = [_detection(boxes[index], scores[index], landmarks[index]) for index in unique]
    return sorted(faces, key=lambda face: -face.size)


def _detection(box: np.ndarray, score: float, landmarks: np.ndarray) -> Detection:
    left, top, right, bottom = map(float, box)
    return Detection((left, top, right, bottom), float(score), landmarks)


def draw(pixels: np.ndarray, faces: list[Detection]) -> np.ndarray:
    """Return a uint8 copy of (H, W, 3) uint8 or uint16 RGB with boxes and landmarks drawn in."""
    image = to_uint8(pixels).copy()
    thickness = max(1, round(max(pixels.shape) / 500))
    for face in faces:
        left, top, right, bottom = map(round, face.box)
        cv2.rectangle(image, (left, top), (right, bottom), (255, 64, 0), thickness)
        for x, y in face.landmarks.round().astype(int).tolist():
            cv2.circle(image, (x, y), thickness + 1, (0, 255, 128), -1)
    return image


def _detect_at(pixels: np.ndarray, side: int, detector: Detector) -> DetectorOutput:
    """Detect in a shrunken copy; return coordinates of the photo."""
    small = to_uint8(shrunk(pixels, side))
    boxes, scores, landmarks = detector(small)
    enlargement = np.array(pixels.shape[1::-1]) / small.shape[1::-1]
    return (
        (boxes + 0.5) * np.tile(enlargement, 2) - 0.5,
        scores,
        (landmarks + 0.5) * enlargement - 0.5,
    )


def _non_overlapping(boxes: np.ndarray, scores: np.ndarray) -> list[int]:
    """Return the boxes whose intersection over union with every better one is at most _MAX_OVERLAP."""
    sized = np.column_stack([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]])
    return [int(index) for index in cv2.dnn.NMSBoxes(sized.tolist(), scores.tolist(), 0.0, _MAX_OVERLAP)]


class YuNet:
    """OpenCV's face detector (Wu et al., 2023): takes milliseconds; thread-safe.

    Raises BadWeights for a file that OpenCV cannot read.
    """

    def __init__(self, file: Path) -> None:
        self._model = file.read_bytes()
        self._create()

    def _create(self) -> cv2.FaceDetectorYN:
        level = cv2.utils.logging.getLogLevel()
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)  # OpenCV 5 warns of its own default
        try:
            model = np.frombuffer(self._model, np.uint8)
            config = np.empty(0, np.uint8)
            return cv2.FaceDetectorYN.create("onnx", model, config, (320, 320), _MIN_SCORE, _MAX_OVERLAP)
        except cv2.error as error:
            raise BadWeights("OpenCV cannot read the face detector's file") from error
        finally:
            cv2.utils.logging.setLogLevel(level)

    def __call__(self, pixels: np.ndarray) -> DetectorOutput:
        """Detect faces in (H, W, 3) uint8 RGB."""
        height, width = pixels.shape[:2]
        below, right = max(0, _MIN_SIDE - height), max(0, _MIN_SIDE - width)
        padded = cv2.copyMakeBorder(pixels[..., ::-1], 0, below, 0, right, cv2.BORDER_CONSTANT)
        detector = self._create()  # one per call: a detector holds the size of its input
        detector.setInputSize(padded.shape[1::-1])
        _, rows = detector.detect(padded)
        rows = np.empty((0, 15), np.float32) if rows is None else rows
        rows = rows.astype(np.float64)
        boxes = np.column_stack([rows[:, :2], rows[:, :2] + rows[:, 2:4]])
        return boxes, rows[:, 14], rows[:, 4:14].reshape(-1, 5, 2)
