from dataclasses import replace

import cv2
import numpy as np
import pytest

from restorer.errors import OutOfMemory
from restorer.faces import align, pipeline
from restorer.faces.mask import face_mask
from tests.portraits import detection, landmarks, restored, shifted, smooth, stripes

NO_FACE = replace(detection(0, 0, 1), landmarks=np.full((5, 2), 40.0))


def test_face_with_invalid_landmarks_has_a_reason_and_the_others_are_restored():
    photo = smooth(200, 300)
    cropped = pipeline.crop_faces(photo, [NO_FACE, detection(100, 100, 90), detection(200, 100, 80)])
    faces = pipeline.restore(cropped, lambda crops: [stripes(crop) for crop in crops])
    assert [face.restored for face in faces] == [False, True, True]
    assert "landmarks" in faces[0].reason
    assert pipeline.summary(faces) == f"faces: 3 found, 2 restored ({faces[0].reason})"


def test_face_larger_than_a_crop_is_only_restored_on_request():
    photo = smooth(900, 900)
    detections = [detection(450, 450, 700), detection(450, 450, 500)]
    batch_sizes = []

    def network(crops):
        batch_sizes.append(len(crops))
        return crops

    large, small = pipeline.restore(pipeline.crop_faces(photo, detections), network)
    assert (large.restored, small.restored, batch_sizes) == (False, True, [1])
    assert "700 pixels" in large.reason and "512" in large.reason
    both = pipeline.restore(pipeline.crop_faces(photo, detections, large=True), network)
    assert all(face.restored for face in both) and batch_sizes == [1, 2]


def test_failed_face_keeps_its_pixels_and_has_a_reason():
    photo = smooth(200, 400)
    cropped = pipeline.crop_faces(photo, [detection(x, 100, 80) for x in (60, 140, 220, 300)])
    assert not any(face.restored for face in cropped)
    failed, tall = OutOfMemory("out of memory"), np.zeros((1024, 512, 3), np.uint8)
    faces = pipeline.restore(cropped, lambda crops: [failed, stripes(crops[1]), tall, OutOfMemory()])
    assert [face.restored for face in faces] == [False, True, False, False]
    assert faces[0].reason == "out of memory" and "(1024, 512, 3)" in faces[2].reason and faces[3].reason
    for face, before in zip(faces, cropped, strict=True):
        np.testing.assert_array_equal(face.before, before.before)
        assert (face.after is face.before) == (not face.restored)
    np.testing.assert_array_equal(faces[1].after, stripes(faces[1].before))


def test_restored_faces_are_not_restored_again():
    photo = smooth(200, 200)
    once = restored(photo, [(100, 100, 90)], stripes)
    twice = pipeline.restore(once, lambda crops: [shifted(crop, [9, 9, 9]) for crop in crops])
    assert twice[0] is once[0]


def test_summary_lists_each_reason_once():
    photo = smooth(120, 300)
    two = restored(photo, [(60, 60, 80), (150, 60, 80)])
    failed = pipeline.restore(pipeline.crop_faces(photo, [NO_FACE, NO_FACE]), lambda crops: crops)
    assert pipeline.summary([]) == ""
    assert pipeline.summary(two) == "faces: 2 found, 2 restored"
    reasons = [*failed, replace(two[0], reason="out of memory")]
    assert (
        pipeline.summary([*two, *reasons])
        == f"faces: 5 found, 2 restored ({failed[0].reason}; out of memory)"
    )


def test_parsing_mask_is_of_the_restored_crop_without_its_border():
    photo = smooth(200, 200)
    parsed = []

    def full_mask(crop):
        parsed.append(crop)
        return np.ones((512, 512), np.float32)

    cropped = pipeline.crop_faces(photo, [detection(100, 100, 120), NO_FACE])
    faces = pipeline.restore(cropped, lambda crops: [stripes(crop) for crop in crops], full_mask)
    np.testing.assert_array_equal(parsed, [faces[0].after])
    mask = faces[0].mask
    assert mask.max() == 1 and (mask >= face_mask(align.TEMPLATE) - 1e-6).all()
    assert not mask[:12].any() and not mask[-12:].any() and not mask[:, :12].any() and not mask[:, -12:].any()


def test_face_whose_parsing_fails_is_skipped():
    cropped = pipeline.crop_faces(smooth(200, 300), [detection(x, 100, 80) for x in (60, 150, 240)])
    blank = np.zeros((512, 512), np.float32)
    outputs = iter([OutOfMemory("out of memory"), blank, blank + 1])

    def masks(crop):
        output = next(outputs)
        if isinstance(output, OutOfMemory):
            raise output
        return output

    faces = pipeline.restore(cropped, lambda crops: [stripes(crop) for crop in crops], masks)
    assert [face.restored for face in faces] == [False, False, True]
    assert "out of memory" in faces[0].reason and "found no face" in faces[1].reason
    assert all(face.after is face.before for face in faces[:2])


def test_mask_is_one_over_the_face_and_zero_at_the_border():
    mask = face_mask(align.TEMPLATE)
    assert mask.shape == (512, 512) and mask.dtype == np.float32
    assert mask.min() == 0 and mask.max() == 1
    for x, y in np.rint(align.TEMPLATE).astype(int):
        assert mask[y, x] == 1
    border = np.ones_like(mask, bool)
    border[12:-12, 12:-12] = False
    assert not mask[border].any()
    steps = np.abs(np.diff(mask, axis=0)).max(), np.abs(np.diff(mask, axis=1)).max()
    assert max(steps) < 0.05, "no visible edge"
    assert 0.3 < mask.mean() < 0.7


@pytest.mark.parametrize("angle", [0, 25, -60])
def test_mirrored_face_has_the_mirrored_mask(angle):
    points = landmarks(255.5, 255.5, 400, angle)
    mirrored = points[[1, 0, 2, 4, 3]] * (-1, 1) + (511, 0)
    np.testing.assert_allclose(face_mask(mirrored), face_mask(points)[:, ::-1], atol=1e-5)
    assert np.abs(face_mask(align.TEMPLATE) - face_mask(align.TEMPLATE)[:, ::-1]).max() < 0.1


@pytest.mark.parametrize("angle", [20, -35, 90])
def test_mask_rotates_with_the_face(angle):
    rotation = cv2.getRotationMatrix2D((255.5, 255.5), -angle, 1)
    upright = face_mask(landmarks(255.5, 255.5, 250))
    rotated = face_mask(landmarks(255.5, 255.5, 250, angle))
    np.testing.assert_allclose(rotated, cv2.warpAffine(upright, rotation, (512, 512)), atol=0.03)


@pytest.mark.parametrize(
    "points", [align.TEMPLATE * 0 + 256, align.TEMPLATE[:, ::-1], align.TEMPLATE * 9 - 1000]
)
def test_mask_of_unusual_landmarks_is_valid(points):
    mask = face_mask(points)
    assert np.isfinite(mask).all() and mask.min() >= 0 and mask.max() <= 1
    assert not mask[[0, -1]].any() and not mask[:, [0, -1]].any()
