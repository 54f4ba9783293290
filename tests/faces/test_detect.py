import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image

from restorer.errors import BadWeights
from restorer.faces import align, detect
from restorer.faces.retinaface import RetinaFace
from restorer.models import architectures, compat
from tests.portraits import landmarks, smooth

NO_FACES = np.empty((0, 4)), np.empty(0), np.empty((0, 5, 2))


class FakeDetector:
    """Detects known faces of a photo, (x, y, side, score), in every copy of it."""

    def __init__(self, width, height, *faces):
        self.size, self.faces, self.inputs = (width, height), faces, []

    def __call__(self, pixels):
        self.inputs.append(pixels)
        if not self.faces:
            return NO_FACES
        scale = np.array(pixels.shape[1::-1]) / self.size
        points = np.stack([landmarks(x, y, side) for x, y, side, _ in self.faces])
        boxes = np.concatenate([points.min(1) - 5, points.max(1) + 5], axis=1)
        scores = np.array([score for *_, score in self.faces])
        return (boxes + 0.5) * np.tile(scale, 2) - 0.5, scores, (points + 0.5) * scale - 0.5


@pytest.mark.parametrize(
    "size", [(200, 300), (301, 200), (900, 700), (2000, 1333), (3001, 1999), (40, 40_000)]
)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_detections_are_in_pixels_of_the_photo_at_any_size(size, dtype):
    height, width = size
    known = width * 0.6, height * 0.4, 90, 0.9
    detector = FakeDetector(width, height, known)
    (face,) = detect.detect_faces(np.zeros((height, width, 3), dtype), detector)
    np.testing.assert_allclose(face.landmarks, landmarks(*known[:3]), atol=1e-6)
    np.testing.assert_allclose(face.box[:2], face.landmarks.min(0) - 5, atol=1e-6)
    np.testing.assert_allclose(face.box[2:], face.landmarks.max(0) + 5, atol=1e-6)
    long = max(size)
    assert [max(copy.shape[:2]) for copy in detector.inputs] == sorted({min(320, long), min(1280, long)})
    assert all(copy.dtype == np.uint8 and copy.shape[2] == 3 for copy in detector.inputs)


def test_searched_copies_are_the_photo_at_8_bit():
    photo = smooth(640, 800, wave=600)
    eight_bit, sixteen_bit = FakeDetector(800, 640), FakeDetector(800, 640)
    assert (
        detect.detect_faces(photo, eight_bit)
        == []
        == detect.detect_faces(photo.astype(np.uint16) * 257, sixteen_bit)
    )
    small, full = eight_bit.inputs
    np.testing.assert_array_equal(full, photo)
    assert small.shape == (256, 320, 3)
    expected = smooth(256, 320, wave=600 * 0.4)
    assert np.abs(small.astype(int) - expected).max() <= 1
    for one, other in zip(eight_bit.inputs, sixteen_bit.inputs, strict=True):
        assert np.abs(one.astype(int) - other).max() <= 1


@pytest.mark.parametrize("best_width", [320, 1000])
def test_face_detected_in_both_copies_is_returned_once_with_the_higher_score(best_width):
    class LessCertain(FakeDetector):
        def __call__(self, pixels):
            boxes, _, points = super().__call__(pixels)
            off = pixels.shape[1] != best_width
            return boxes + off, np.array([0.7 if off else 0.95]), points + off

    detector = LessCertain(1000, 800, (500, 400, 200, 0.9))
    (face,) = detect.detect_faces(np.zeros((800, 1000, 3), np.uint8), detector)
    assert len(detector.inputs) == 2 and face.score == pytest.approx(0.95)
    np.testing.assert_allclose(face.landmarks, landmarks(500, 400, 200), atol=1e-6)


def test_face_detected_in_only_one_copy_is_returned():
    def detector(pixels):
        scale = pixels.shape[1] / 1000
        points = landmarks(200 if scale < 1 else 700, 300, 150)[None]
        boxes = np.concatenate([points.min(1), points.max(1)], axis=1)
        return boxes * scale, np.array([0.8]), points * scale

    assert len(detect.detect_faces(np.zeros((800, 1000, 3), np.uint8), detector)) == 2


def test_adjacent_faces_are_separate_and_sorted_by_size():
    known = [(100, 100, 90, 0.99), (300, 100, 200, 0.7), (320, 290, 120, 0.8), (160, 100, 95, 0.61)]
    faces = detect.detect_faces(np.zeros((400, 500, 3), np.uint8), FakeDetector(500, 400, *known))
    assert [round(face.score, 1) for face in faces] == [0.7, 0.8, 0.6, 1.0]
    assert [face.size for face in faces] == sorted((face.size for face in faces), reverse=True)
    left, top, right, bottom = faces[0].box
    assert faces[0].size == pytest.approx(np.sqrt((right - left) * (bottom - top)))


def test_adjacent_faces_far_from_the_origin_are_separate():
    known = [(1500, 1100, 100, 0.9), (1590, 1100, 100, 0.8), (1500, 1210, 100, 0.7)]
    faces = detect.detect_faces(np.zeros((1200, 1600, 3), np.uint8), FakeDetector(1600, 1200, *known))
    assert sorted(face.score for face in faces) == [0.7, 0.8, 0.9]


def test_face_of_a_few_pixels_is_ignored():
    eyes = np.linalg.norm(align.TEMPLATE[0] - align.TEMPLATE[1]) / align.SIDE
    known = [(60, 60, 9.9 / eyes, 0.9), (200, 60, 10.1 / eyes, 0.9)]
    (face,) = detect.detect_faces(np.zeros((120, 300, 3), np.uint8), FakeDetector(300, 120, *known))
    assert face.landmarks[0, 0] > 150


@pytest.mark.parametrize("size", [(1, 1), (5000, 1), (3, 700)])
def test_photo_of_any_shape_without_faces_has_no_detections(size):
    assert detect.detect_faces(np.zeros((*size, 3), np.uint8), lambda pixels: NO_FACES) == []


@pytest.fixture(scope="module")
def yunet(shared) -> detect.YuNet:
    return detect.YuNet(shared / "weights" / "face_detection_yunet_2023mar.onnx")


@pytest.fixture(scope="module")
def two_people(shared) -> np.ndarray:
    return np.asarray(Image.open(shared / "sets" / "gfpgan_inputs" / "Blake_Lively.jpg").convert("RGB"))


def overlap(one, other) -> float:
    """Intersection over union of two boxes."""
    sides = np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2])
    shared_area = np.prod(np.maximum(sides, 0))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return shared_area / (sum(areas) - shared_area)


def assert_plausible(face):
    left_eye, right_eye, nose, left_mouth, right_mouth = face.landmarks
    assert (face.landmarks > face.box[:2]).all() and (face.landmarks < face.box[2:]).all()
    assert max(left_eye[1], right_eye[1]) < nose[1] < min(left_mouth[1], right_mouth[1])
    assert left_eye[0] < right_eye[0] and left_mouth[0] < right_mouth[0]


def test_yunet_finds_the_astronaut(yunet):
    (face,) = detect.detect_faces(skimage.data.astronaut(), yunet)
    assert_plausible(face)
    assert face.score > 0.9
    np.testing.assert_allclose(face.landmarks[:2], [(204, 102), (246, 102)], atol=4)
    assert overlap(face.box, (180, 63, 269, 175)) > 0.8
    crop = align.crop(skimage.data.astronaut(), align.similarity(face.landmarks))
    (in_crop,) = detect.detect_faces(crop, yunet)
    np.testing.assert_allclose(in_crop.landmarks, align.TEMPLATE, atol=25)


@pytest.mark.parametrize("sixteen_bit", [False, True])
def test_yunet_finds_both_of_two_people(yunet, two_people, sixteen_bit):
    pixels = two_people.astype(np.uint16) * 257 if sixteen_bit else two_people
    faces = detect.detect_faces(pixels, yunet)
    assert len(faces) == 2
    for face, box in zip(faces, [(417, 75, 591, 323), (103, 121, 251, 304)], strict=True):
        assert_plausible(face)
        assert face.score > 0.85 and overlap(face.box, box) > 0.8


@pytest.mark.parametrize("size", [(1, 1), (1, 2000), (300, 20), (33, 31), (96, 32), (10, 320), (240, 320)])
def test_yunet_finds_no_face_in_a_smooth_photo(yunet, size):
    for _ in range(3):
        assert len(yunet(smooth(*size))[0]) == 0
    assert detect.detect_faces(smooth(*size), yunet) == []


def test_yunet_finds_a_face_in_a_small_photo(yunet):
    small = cv2.resize(skimage.data.astronaut()[50:190, 160:290], (39, 42), interpolation=cv2.INTER_AREA)
    padded = np.zeros((42, 100, 3), np.uint8)
    padded[:, :39] = small
    for photo in (small, padded):
        ((box,), _, (points,)) = yunet(photo)
        assert overlap(box, (5.9, 3.9, 32.7, 37.5)) > 0.6
        np.testing.assert_allclose(points[:2], [(13.1, 15.5), (25.7, 15.6)], atol=3)


def test_yunet_is_thread_safe(yunet, two_people):
    photos = [two_people, skimage.data.astronaut()]
    sequential = [yunet(photo) for photo in photos]
    concurrent = [[], []]

    def detect_repeatedly(index):
        concurrent[index] = [yunet(photos[index]) for _ in range(3)]

    threads = [threading.Thread(target=detect_repeatedly, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for expected, outputs in zip(sequential, concurrent, strict=True):
        assert len(outputs) == 3
        for output in outputs:
            for one, other in zip(expected, output, strict=True):
                np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("kind", ["empty", "text", "zeros", "truncated"])
def test_broken_detector_file_raises_bad_weights(kind, tmp_path, request):
    contents = {"empty": b"", "text": b"<html>not found</html>", "zeros": bytes(5000)}
    if kind == "truncated":
        complete = request.getfixturevalue("shared") / "weights" / "face_detection_yunet_2023mar.onnx"
        contents[kind] = complete.read_bytes()[:100_000]
    file = Path(tmp_path / "face_detection_yunet_2023mar.onnx")
    file.write_bytes(contents[kind])
    with pytest.raises(BadWeights, match="face detector"):
        detect.YuNet(file)


MOBILENET = "weights/retinaface_mobilenet0.25_Final.pth"


def as_trained(network):
    """Configure the network for this file, which was trained with ReLU and with anchors of half the size.

    Determined by trial: with facexlib's settings, boxes are twice too large and misplaced.
    """
    network.cfg = {**network.cfg, "min_sizes": [[10, 20], [32, 64], [128, 256]]}
    for module in network.modules():
        if isinstance(module, torch.nn.LeakyReLU):
            module.negative_slope = 0.0
    return network


@pytest.fixture(scope="module")
def retina(shared) -> RetinaFace:
    state = architectures.read_state(shared / MOBILENET)
    network = architectures.build(architectures.detect_face_network(state, "detect", "x"), state, "x")
    return RetinaFace(as_trained(network), device=torch.device("cpu"))


@pytest.mark.slow
def test_retinaface_finds_the_same_faces_as_yunet(retina, yunet, two_people):
    for photo in (skimage.data.astronaut(), two_people):
        expected, faces = detect.detect_faces(photo, yunet), detect.detect_faces(photo, retina)
        assert len(faces) == len(expected)
        for face, other in zip(faces, expected, strict=True):
            assert_plausible(face)
            assert face.score > 0.9 and overlap(face.box, other.box) > 0.7
    (astronaut,) = detect.detect_faces(skimage.data.astronaut(), retina)
    np.testing.assert_allclose(astronaut.landmarks[:2], [(204, 102), (246, 102)], atol=4)


def test_retinaface_matches_facexlib(retina, shared):
    reference = compat.load_attribute("facexlib.detection.retinaface", "RetinaFace")(
        "mobile0.25", device="cpu"
    )
    reference.load_state_dict(architectures.read_state(shared / MOBILENET), strict=True)
    photo = skimage.data.astronaut()[:320, 64:400]
    with torch.inference_mode():
        rows = np.array(as_trained(reference).detect_faces(np.ascontiguousarray(photo[..., ::-1])))
    boxes, scores, points = retina(photo)
    assert len(rows)
    np.testing.assert_array_equal(np.column_stack([boxes, scores, points.reshape(-1, 10)]), rows)


def test_retinaface_finds_no_face_in_a_smooth_photo(retina):
    assert detect.detect_faces(smooth(120, 160), retina) == []
