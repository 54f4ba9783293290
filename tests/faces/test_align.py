import cv2
import numpy as np
import pytest

from restorer.faces import align
from tests.portraits import distance, landmarks, smooth

GREY = (132, 133, 135)


@pytest.mark.parametrize("angle", [-90, -60, -17, 0, 33, 90])
@pytest.mark.parametrize("side", [30, 128.5, 512, 2000])
@pytest.mark.parametrize("place", [(100, 80), (0, 0), (-8.25, 60.5), (3000, 1)])
def test_a_turned_scaled_and_moved_face_lands_on_the_template(angle, side, place):
    points = landmarks(*place, side, angle)
    affine = align.similarity(points)
    np.testing.assert_allclose(align.apply(affine, points), align.TEMPLATE, atol=0.01)
    assert align.magnification(affine) == pytest.approx(align.SIDE / side, rel=1e-4)
    turned, scaled = affine[:, :2] @ affine[:, :2].T, align.magnification(affine) ** 2
    np.testing.assert_allclose(turned, np.eye(2) * scaled, atol=1e-9 * scaled)
    assert np.linalg.det(affine[:, :2]) > 0, "turned, not mirrored"


@pytest.mark.parametrize("angle", [-90, -30, 0, 45, 90])
@pytest.mark.parametrize("side", [150, 400, 512, 900, 1700])
def test_what_lies_at_a_landmark_of_the_photo_lies_at_the_template_in_the_crop(angle, side):
    points = landmarks(side * 0.6, side * 0.6 + 3.3, side, angle)
    y, x = np.mgrid[: round(side * 1.2), : round(side * 1.2)].astype(np.float32)
    sigma = side / 70
    dots = sum(np.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * sigma**2)) for px, py in points)
    photo = np.rint(np.minimum(dots, 1) * 65535).astype(np.uint16)[..., None].repeat(3, axis=2)
    crop = align.crop(photo, align.similarity(points))[..., 1].astype(float)
    for point in align.TEMPLATE:
        left, top = np.rint(point).astype(int) - 25
        window = crop[top : top + 51, left : left + 51]
        y, x = np.mgrid[top : top + 51, left : left + 51]
        found = np.array([(x * window).sum(), (y * window).sum()]) / window.sum()
        np.testing.assert_allclose(found, point, atol=0.5)


@pytest.mark.parametrize("angle", [-90, 0, 20, 75])
@pytest.mark.parametrize("wrong", range(5))
@pytest.mark.parametrize("by", [(90, 0), (-60, 200), (500, -700)])
def test_one_wildly_wrong_landmark_does_not_turn_the_face(angle, wrong, by):
    true = landmarks(200, 150, 180, angle)
    seen = true.copy()
    seen[wrong] += by
    np.testing.assert_allclose(align.apply(align.similarity(seen), true), align.TEMPLATE, atol=0.5)


@pytest.mark.parametrize(
    "points",
    [
        np.zeros((5, 2)),
        np.full((5, 2), 77.7),
        align.TEMPLATE * 1e-6,
        align.TEMPLATE * 1e6,
        np.full((5, 2), np.nan),
        np.full((5, 2), np.inf),
        np.where(np.arange(10).reshape(5, 2) == 3, np.nan, align.TEMPLATE),
    ],
    ids=["origin", "one point", "too small", "too large", "no numbers", "infinite", "one not a number"],
)
def test_landmarks_that_span_no_face_are_an_error(points):
    with pytest.raises(ValueError, match="landmarks"):
        align.similarity(points)


@pytest.mark.parametrize("angle", [-90, 0, 37])
@pytest.mark.parametrize("side", [40, 512, 1500])
def test_there_and_back_is_the_identity(rng, angle, side):
    affine = align.similarity(landmarks(300, 200, side, angle))
    points = rng.uniform(-100, 5000, (50, 2))
    back = align.apply(align.inverse(affine), align.apply(affine, points))
    np.testing.assert_allclose(back, points, atol=1e-6)
    again = align.inverse(align.inverse(affine))
    np.testing.assert_allclose(again, affine, rtol=1e-9, atol=1e-7)


@pytest.mark.parametrize("side", [90, 200, 512])
@pytest.mark.parametrize("angle", [0, 30, 90])
def test_a_crop_warped_back_is_the_photo(side, angle):
    photo = smooth(300, 400)
    affine = align.similarity(landmarks(190.3, 150.7, side, angle))
    back = align.warp(align.crop(photo, affine), align.inverse(affine), (400, 300))
    shown = np.zeros((512, 512), np.uint8)
    shown[16:-16, 16:-16] = 255
    shown = align.warp(shown, align.inverse(affine), (400, 300)) == 255
    shown[:2] = shown[-2:] = shown[:, :2] = shown[:, -2:] = False  # grey reaches in from beyond the photo
    assert shown.sum() > 0.7 * min(side, 300) ** 2
    assert distance(back, photo)[shown].max() <= 1


@pytest.mark.parametrize("outscale", [1, 2, 2.5, 4, 8, 0.5])
def test_the_affine_of_a_larger_photo_keeps_pixel_centres(rng, outscale):
    affine = align.similarity(landmarks(120, 90, 77, 25))
    points = rng.uniform(0, 300, (20, 2))
    larger = (points + 0.5) * outscale - 0.5
    there = align.apply(align.from_larger(affine, outscale), larger)
    np.testing.assert_allclose(there, align.apply(affine, points), atol=1e-9)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("times", [1.0, 0.5, 2.3])
def test_the_photo_lies_sharp_in_grey(dtype, times):
    photo = np.full((30, 50, 3), (200, 10, 90), dtype) * dtype(257 if dtype == np.uint16 else 1)
    affine = np.array([(times, 0, 100), (0, times, 200)], float)
    crop = align.crop(photo, affine)
    inside = crop[203 : 200 + int(29 * times) - 2, 103 : 100 + int(49 * times) - 2]
    assert inside.size and (inside == photo[0, 0]).all()
    outside = np.ones(crop.shape[:2], bool)
    outside[197 : 203 + int(30 * times), 97 : 103 + int(50 * times)] = False
    levels = np.array(GREY) * (257 if dtype == np.uint16 else 1)
    assert (crop[outside] == levels).all()
    assert crop.dtype == dtype


@pytest.mark.parametrize("place", [(-3000, 50), (50, -3000), (5000, 5000), (-400, 700)])
def test_a_face_beyond_the_photo_is_all_grey(place):
    crop = align.crop(smooth(60, 80), align.similarity(landmarks(*place, 100, 10)))
    assert (crop == GREY).all()


@pytest.mark.parametrize("angle", [0, 20, 45, 90])
@pytest.mark.parametrize(("times", "apart"), [(1.5, 24), (1.9, 8), (2, 1), (2.7, 1), (3, 15), (4, 1)])
def test_a_face_larger_than_the_crop_is_averaged_not_skipped_through(angle, times, apart):
    side = round(512 * times * 1.5)
    board = (np.indices((side, side)).sum(0) % 2 * 255).astype(np.uint8)[..., None].repeat(3, axis=2)
    crop = align.crop(board, align.similarity(landmarks(side / 2, side / 2, 512 * times, angle)))
    assert int(crop.min()) >= 127 - apart and int(crop.max()) <= 128 + apart


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("interpolation", [cv2.INTER_LINEAR, cv2.INTER_CUBIC])
def test_warp_is_opencvs_on_a_small_plane(rng, dtype, interpolation):
    plane = (rng.random((90, 130, 3)) * 255).astype(dtype)
    for turn in (np.eye(2), np.array([(1.2, -0.7), (0.7, 1.2)]), np.array([(0, 3), (-3, 0)])):
        affine = np.column_stack([turn, (20.25, 31.5)])
        expected = cv2.warpAffine(
            plane,
            affine,
            (150, 110),
            flags=interpolation,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=(9, 8, 7),
        )
        found = align.warp(plane, affine, (150, 110), interpolation, (9, 8, 7))
        np.testing.assert_allclose(found, expected, atol=1e-3)
        assert found.dtype == dtype


@pytest.mark.parametrize("across", [False, True])
@pytest.mark.parametrize("at", [20, 25_000, 33_000, 39_980])
def test_a_plane_wider_than_opencv_takes_is_warped_as_its_part_is(rng, across, at):
    wide = rng.integers(0, 256, (40, 40_000, 3), dtype=np.uint8)
    affine = align.similarity(landmarks(at, 20, 80, 15))
    part = wide[:, max(0, at - 300) : at + 300]
    moved = np.column_stack([affine[:, :2], affine @ (max(0, at - 300), 0, 1)])
    if across:
        wide, part = wide.swapaxes(0, 1), part.swapaxes(0, 1)
        affine, moved = affine[:, [1, 0, 2]], moved[:, [1, 0, 2]]
    part = np.ascontiguousarray(part)
    assert distance(align.crop(wide, affine), align.crop(part, moved)).max() <= 1
    cubic = align.warp(part, moved, (512, 512))
    assert cubic.any()
    assert distance(align.warp(wide, affine, (512, 512)), cubic).max() <= 2


def test_sixteen_bits_are_cropped_as_eight_are():
    photo = smooth(200, 200)
    affine = align.similarity(landmarks(80, 100, 150, 12))
    fine = align.crop(photo.astype(np.uint16) * 257, affine).astype(float) / 257
    assert np.abs(fine - align.crop(photo, affine)).max() <= 1
    assert len(np.unique(fine)) > 1000, "values between the 256 levels survive"


def test_the_template_is_an_upright_face():
    left_eye, right_eye, nose, left_mouth, right_mouth = align.TEMPLATE
    assert abs(left_eye[1] - right_eye[1]) < 1 and abs(left_mouth[1] - right_mouth[1]) < 1
    assert left_eye[1] < nose[1] < left_mouth[1]
    assert left_eye[0] < nose[0] < right_eye[0] and left_mouth[0] < nose[0] < right_mouth[0]
    mirrored = align.TEMPLATE[[1, 0, 2, 4, 3]] * (-1, 1) + (align.SIDE - 1, 0)
    np.testing.assert_allclose(mirrored, align.TEMPLATE, atol=4)
