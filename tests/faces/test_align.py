import cv2
import numpy as np
import pytest

from restorer.faces import align
from tests.conftest import sweep
from tests.portraits import distance, landmarks, smooth

GREY = (132, 133, 135)


@pytest.mark.parametrize("angle", [-90, -60, -17, 0, 33, 90])
@pytest.mark.parametrize("side", [30, 128.5, 512, 2000])
@pytest.mark.parametrize("position", [(100, 80), (0, 0), (-8.25, 60.5), (3000, 1)])
def test_similarity_maps_a_transformed_face_to_the_template(angle, side, position):
    points = landmarks(*position, side, angle)
    affine = align.similarity(points)
    np.testing.assert_allclose(align.apply(affine, points), align.TEMPLATE, atol=0.01)
    assert align.magnification(affine) == pytest.approx(align.SIDE / side, rel=1e-4)
    product, squared = affine[:, :2] @ affine[:, :2].T, align.magnification(affine) ** 2
    np.testing.assert_allclose(product, np.eye(2) * squared, atol=1e-9 * squared)
    assert np.linalg.det(affine[:, :2]) > 0, "rotated, not mirrored"


@sweep("angle, side", [-90, -30, 0, 45, 90], [150, 400, 512, 900, 1700], count=8)
def test_landmarks_of_the_photo_are_at_the_template_in_the_crop(angle, side):
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
        centroid = np.array([(x * window).sum(), (y * window).sum()]) / window.sum()
        np.testing.assert_allclose(centroid, point, atol=0.5)


@pytest.mark.parametrize("angle", [-90, 0, 20, 75])
@pytest.mark.parametrize("wrong", range(5))
@pytest.mark.parametrize("offset", [(90, 0), (-60, 200), (500, -700)])
def test_one_wrong_landmark_is_ignored(angle, wrong, offset):
    points = landmarks(200, 150, 180, angle)
    detected = points.copy()
    detected[wrong] += offset
    np.testing.assert_allclose(align.apply(align.similarity(detected), points), align.TEMPLATE, atol=0.5)


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
    ids=["origin", "one point", "too small", "too large", "NaN", "infinite", "one NaN"],
)
def test_landmarks_that_do_not_define_a_face_raise(points):
    with pytest.raises(ValueError, match="landmarks"):
        align.similarity(points)


@pytest.mark.parametrize("angle", [-90, 0, 37])
@pytest.mark.parametrize("side", [40, 512, 1500])
def test_inverse_undoes_the_affine(rng, angle, side):
    affine = align.similarity(landmarks(300, 200, side, angle))
    points = rng.uniform(-100, 5000, (50, 2))
    round_trip = align.apply(cv2.invertAffineTransform(affine), align.apply(affine, points))
    np.testing.assert_allclose(round_trip, points, atol=1e-6)


@pytest.mark.parametrize("side", [90, 200, 512])
@pytest.mark.parametrize("angle", [0, 30, 90])
def test_crop_warped_back_is_the_photo(side, angle):
    photo = smooth(300, 400)
    affine = align.similarity(landmarks(190.3, 150.7, side, angle))
    warped = align.warp(align.crop(photo, affine), cv2.invertAffineTransform(affine), (400, 300))
    covered = np.zeros((512, 512), np.uint8)
    covered[16:-16, 16:-16] = 255
    covered = align.warp(covered, cv2.invertAffineTransform(affine), (400, 300)) == 255
    # grey bleeds in from beyond the photo
    covered[:2] = covered[-2:] = covered[:, :2] = covered[:, -2:] = False
    assert covered.sum() > 0.7 * min(side, 300) ** 2
    assert distance(warped, photo)[covered].max() <= 1


@pytest.mark.parametrize("outscale", [1, 2, 2.5, 4, 8, 0.5])
def test_affine_of_an_enlarged_photo_preserves_pixel_centres(rng, outscale):
    affine = align.similarity(landmarks(120, 90, 77, 25))
    points = rng.uniform(0, 300, (20, 2))
    larger = (points + 0.5) * outscale - 0.5
    mapped = align.apply(align.from_larger(affine, outscale), larger)
    np.testing.assert_allclose(mapped, align.apply(affine, points), atol=1e-9)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("factor", [1.0, 0.5, 2.3])
def test_small_photo_has_sharp_edges_in_grey(dtype, factor):
    photo = np.full((30, 50, 3), (200, 10, 90), dtype) * dtype(257 if dtype == np.uint16 else 1)
    affine = np.array([(factor, 0, 100), (0, factor, 200)], float)
    crop = align.crop(photo, affine)
    inside = crop[203 : 200 + int(29 * factor) - 2, 103 : 100 + int(49 * factor) - 2]
    assert inside.size and (inside == photo[0, 0]).all()
    outside = np.ones(crop.shape[:2], bool)
    outside[197 : 203 + int(30 * factor), 97 : 103 + int(50 * factor)] = False
    levels = np.array(GREY) * (257 if dtype == np.uint16 else 1)
    assert (crop[outside] == levels).all()
    assert crop.dtype == dtype


@pytest.mark.parametrize("position", [(-3000, 50), (50, -3000), (5000, 5000), (-400, 700)])
def test_face_beyond_the_photo_is_grey(position):
    crop = align.crop(smooth(60, 80), align.similarity(landmarks(*position, 100, 10)))
    assert (crop == GREY).all()


@sweep(
    "angle, reduction",
    [0, 20, 45, 90],
    [(1.5, 24), (1.9, 8), (2, 1), (2.7, 1), (3, 15), (4, 1)],
    count=8,
)
def test_face_larger_than_the_crop_is_averaged(angle, reduction):
    factor, tolerance = reduction
    side = round(512 * factor * 1.5)
    board = (np.indices((side, side)).sum(0) % 2 * 255).astype(np.uint8)[..., None].repeat(3, axis=2)
    crop = align.crop(board, align.similarity(landmarks(side / 2, side / 2, 512 * factor, angle)))
    assert int(crop.min()) >= 127 - tolerance and int(crop.max()) <= 128 + tolerance


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("interpolation", [cv2.INTER_LINEAR, cv2.INTER_CUBIC])
def test_warp_equals_opencv_on_a_small_plane(rng, dtype, interpolation):
    plane = (rng.random((90, 130, 3)) * 255).astype(dtype)
    for linear in (np.eye(2), np.array([(1.2, -0.7), (0.7, 1.2)]), np.array([(0, 3), (-3, 0)])):
        affine = np.column_stack([linear, (20.25, 31.5)])
        expected = cv2.warpAffine(
            plane,
            affine,
            (150, 110),
            flags=interpolation,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=(9, 8, 7),
        )
        result = align.warp(plane, affine, (150, 110), interpolation, (9, 8, 7))
        np.testing.assert_allclose(result, expected, atol=1e-3)
        assert result.dtype == dtype


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("at", [20, 25_000, 33_000, 39_980])
def test_plane_wider_than_opencvs_limit_is_warped_like_its_part(rng, transposed, at):
    wide = rng.integers(0, 256, (40, 40_000, 3), dtype=np.uint8)
    affine = align.similarity(landmarks(at, 20, 80, 15))
    part = wide[:, max(0, at - 300) : at + 300]
    shifted = np.column_stack([affine[:, :2], affine @ (max(0, at - 300), 0, 1)])
    if transposed:
        wide, part = wide.swapaxes(0, 1), part.swapaxes(0, 1)
        affine, shifted = affine[:, [1, 0, 2]], shifted[:, [1, 0, 2]]
    part = np.ascontiguousarray(part)
    assert distance(align.crop(wide, affine), align.crop(part, shifted)).max() <= 1
    cubic = align.warp(part, shifted, (512, 512))
    assert cubic.any()
    assert distance(align.warp(wide, affine, (512, 512)), cubic).max() <= 2


def test_16_bit_crop_matches_the_8_bit_one():
    photo = smooth(200, 200)
    affine = align.similarity(landmarks(80, 100, 150, 12))
    sixteen_bit = align.crop(photo.astype(np.uint16) * 257, affine).astype(float) / 257
    assert np.abs(sixteen_bit - align.crop(photo, affine)).max() <= 1
    assert len(np.unique(sixteen_bit)) > 1000, "values between the 256 levels survive"


def test_template_is_an_upright_face():
    left_eye, right_eye, nose, left_mouth, right_mouth = align.TEMPLATE
    assert abs(left_eye[1] - right_eye[1]) < 1 and abs(left_mouth[1] - right_mouth[1]) < 1
    assert left_eye[1] < nose[1] < left_mouth[1]
    assert left_eye[0] < nose[0] < right_eye[0] and left_mouth[0] < nose[0] < right_mouth[0]
    mirrored = align.TEMPLATE[[1, 0, 2, 4, 3]] * (-1, 1) + (align.SIDE - 1, 0)
    np.testing.assert_allclose(mirrored, align.TEMPLATE, atol=4)
