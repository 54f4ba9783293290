from dataclasses import replace

import cv2
import numpy as np
import pytest

from restorer.faces import align
from restorer.faces.paste import paste, without_faces
from tests.conftest import sampled, sweep
from tests.portraits import distance, restored, shifted, smooth, stripes

LEVEL = {np.uint8: 1, np.uint16: 257}
BOTH = pytest.mark.parametrize("dtype", [np.uint8, np.uint16])


def pasted(pixels, faces, outscale=1, strength=1.0, grey=False):
    out = pixels.copy()
    paste(out, faces, outscale=outscale, strength=strength, grey=grey)
    return out


def mask_in_photo(face, shape, outscale=1):
    """A face's mask warped into the enlarged photo, (H, W), by OpenCV alone."""
    to_photo = cv2.invertAffineTransform(face.affine)
    to_photo = np.column_stack([to_photo[:, :2] * outscale, to_photo[:, 2] * outscale + (outscale - 1) / 2])
    mask = face.mask
    if (shrink := np.sqrt(np.linalg.det(to_photo[:, :2]))) < 1:
        mask = cv2.GaussianBlur(mask, (0, 0), 1 / shrink)
    return cv2.warpAffine(mask, to_photo, shape[1::-1], flags=cv2.INTER_LINEAR)


@sweep(
    "dtype, outscale, position",
    [np.uint8, np.uint16],
    [1, 2, 4, 2.5],
    [(150, 110, 60), (131.4, 122.8, 170, 33), (120, 120, 110, -90)],
    count=8,
)
def test_identity_network_preserves_a_smooth_photo_within_a_level(dtype, outscale, position):
    photo = smooth(240, 260, dtype=dtype)
    faces = restored(photo, [position])
    larger = smooth(240, 260, dtype=dtype, outscale=outscale)
    out = pasted(larger, faces, outscale)
    assert (mask_in_photo(faces[0], larger.shape, outscale) > 0.99).sum() > (position[2] * outscale) ** 2 / 8
    assert distance(out, larger).max() <= LEVEL[dtype]
    assert out.dtype == dtype


@pytest.mark.parametrize("outscale", [1, 2])
def test_identity_network_preserves_a_face_larger_than_its_crop_within_a_level(outscale):
    photo = smooth(700, 800, wave=600)
    larger = smooth(700, 800, wave=600, outscale=outscale)
    out = pasted(larger, restored(photo, [(400, 350, 640, 10)]), outscale)
    assert distance(out, larger).max() <= 1


def test_restored_crop_is_pasted_at_its_exact_position():
    photo = smooth(600, 620)
    faces = restored(photo, [(255.5 + 40, 255.5 + 30, 512)], stripes)  # the affine is then a translation
    out = pasted(photo, faces)
    inside = faces[0].mask == 1
    assert inside.sum() > 50_000
    window = out[30:542, 40:552]
    assert distance(window, faces[0].after)[inside].max() <= 3, "except for its coarse colours"
    assert distance(window, photo[30:542, 40:552])[inside].min() >= 20


@BOTH
def test_pixels_outside_the_masks_do_not_change(rng, dtype):
    photo = rng.integers(0, np.iinfo(dtype).max, (300, 400, 3), dtype=dtype, endpoint=True)
    faces = restored(photo, [(90, 110, 130, 20), (290, 180, 90, -70)], stripes)
    out = photo.copy()
    backups = paste(out, faces, outscale=1, strength=1.0)
    masks = np.maximum(*(mask_in_photo(face, photo.shape) for face in faces))
    assert (out != photo)[masks > 0.5].mean() > 0.9
    np.testing.assert_array_equal(out[masks == 0], photo[masks == 0])
    touched = np.zeros(photo.shape[:2], bool)
    for backup in backups:
        touched[backup.rows, backup.columns] = True
    assert len(backups) == 2 and touched.mean() < 0.25
    np.testing.assert_array_equal(out[~touched], photo[~touched])


@BOTH
@pytest.mark.parametrize("outscale", [1, 2])
def test_strength_blends_linearly(dtype, outscale):
    photo = smooth(200, 200, dtype=dtype)
    faces = restored(photo, [(100, 95, 120, 15)], stripes)
    larger = smooth(200, 200, dtype=dtype, outscale=outscale)
    none, half, full = (pasted(larger, faces, outscale, strength) for strength in (0, 0.5, 1.0))
    np.testing.assert_array_equal(none, larger)
    assert distance(full, larger).max() > 15 * LEVEL[dtype]
    middle = (larger.astype(float) + full) / 2
    assert np.abs(half - middle).max() <= 1


def test_strength_zero_or_no_faces_leaves_no_backup():
    photo = smooth(100, 100)
    assert paste(photo, restored(photo, [(50, 50, 60)], stripes), outscale=1, strength=0) == ()
    assert paste(photo, [], outscale=1, strength=1.0) == ()


@BOTH
def test_grey_photo_stays_grey_with_a_coloured_crop(dtype):
    photo = smooth(200, 240, dtype=dtype)[..., :1].repeat(3, axis=2)

    def coloured(crop):
        return shifted(
            stripes(crop), np.array([60, -40, 10]) * LEVEL[dtype] * np.sin(np.arange(512) / 9)[:, None]
        )

    faces = restored(photo, [(100, 100, 120), (160, 110, 80)], coloured)
    out = pasted(photo, faces, grey=True)
    assert (out == out[..., :1]).all()
    assert distance(out, photo).max() > 10 * LEVEL[dtype]
    coloured_result = pasted(photo, faces)
    assert (coloured_result != coloured_result[..., :1]).any(), "the crop is coloured"
    masks = np.maximum(*(mask_in_photo(face, photo.shape) for face in faces))
    np.testing.assert_array_equal(out[masks == 0], photo[masks == 0])


@sweep(
    "dtype, outscale, position",
    [np.uint8, np.uint16],
    [1, 4],
    [(100, 95, 120), (100, 95, 60, 40), (12, 95, 120), (5, 188, 90, -20)],
    count=6,
)
def test_tint_of_the_network_is_removed(dtype, outscale, position):
    photo = (smooth(200, 200, dtype=dtype, wave=400) // 4 * 3 + 30 * LEVEL[dtype]).astype(dtype)
    larger = photo.repeat(outscale, axis=0).repeat(outscale, axis=1)
    faces = restored(photo, [position], lambda crop: shifted(crop, np.array([40, 0, -20]) * LEVEL[dtype]))
    out = pasted(larger, faces, outscale)
    error = (out.astype(float) - larger) / LEVEL[dtype]
    inside = mask_in_photo(faces[0], larger.shape, outscale) > 0.5
    assert inside.sum() > 1000
    assert np.abs(error[inside].mean(0)).max() < 0.5
    box = cv2.blur(error, (9, 9))  # averages detail away, leaving an outline if there is one
    assert np.abs(box).max() < 2


def test_tint_that_varies_over_the_face_is_removed():
    photo = smooth(300, 300, wave=400)
    ramp = np.linspace(-40, 40, 512)[:, None, None] * (1, 0.2, -0.7)
    faces = restored(photo, [(150, 150, 200, 10)], lambda crop: shifted(crop, ramp))
    error = pasted(photo, faces).astype(float) - photo
    assert np.abs(error.mean((0, 1))).max() < 0.3
    assert np.abs(cv2.blur(error, (9, 9))).max() < 3


def test_larger_of_overlapping_faces_is_on_top_in_any_order():
    photo = smooth(300, 400)
    large = restored(photo, [(150, 150, 190)], stripes)[0]
    small = restored(photo, [(215, 160, 130)], lambda crop: stripes(crop, down=True))[0]
    alone = {"large": pasted(photo, [large]), "small": pasted(photo, [small])}
    masks = {"large": mask_in_photo(large, photo.shape), "small": mask_in_photo(small, photo.shape)}
    assert ((masks["large"] > 0.999) & (masks["small"] > 0.999)).sum() > 500
    for order in ([large, small], [small, large]):
        out = pasted(photo, order)
        top = masks["large"] > 0.999
        assert distance(out, alone["large"])[top].max() <= 1
        rest = masks["large"] == 0
        np.testing.assert_array_equal(out[rest], alone["small"][rest])


def test_separate_faces_are_pasted_as_if_each_were_alone():
    photo = smooth(300, 500)
    faces = restored(photo, [(100, 90, 110), (390, 210, 140, 50), (120, 240, 80)], stripes)
    together = photo.copy()
    assert len(paste(together, faces, outscale=1, strength=1.0)) == 3
    one_by_one = photo
    for face in faces:
        one_by_one = pasted(one_by_one, [face])
    np.testing.assert_array_equal(together, one_by_one)


def chain(first: float, step: float, count: int, side: float):
    return [(first + step * index, 100, side) for index in range(count)]


BORDER = [(0, 100, 120), (200, 3, 90, 45), (396, 297, 150, -30), (-20, 310, 160)]
CORNER = [(100, 60 + 50 * i, 90) for i in range(8)] + [(100 + 50 * i, 60, 90) for i in range(1, 7)]
ARRANGEMENTS = {
    "separate": [(80, 80, 100), (300, 200, 120)],
    "a chain": chain(60, 45, 7, 90),
    "three on one spot": [(200, 150, 200), (190, 160, 120), (210, 150, 60)],
    "border": BORDER,
    "a small one in the corner of a chain": [*CORNER, (330, 390, 85)],
    "a large one in the corner of a chain": [*CORNER, (330, 390, 95)],
}


@sweep("dtype, arrangement", [np.uint8, np.uint16], [*ARRANGEMENTS], count=5)
def test_without_faces_undoes_paste_exactly(rng, dtype, arrangement):
    photo = rng.integers(0, np.iinfo(dtype).max, (450, 420, 3), dtype=dtype, endpoint=True)
    out = photo.copy()
    backups = paste(out, restored(photo, ARRANGEMENTS[arrangement], stripes), outscale=1, strength=0.8)
    before = out.copy()
    assert (out != photo).any()
    np.testing.assert_array_equal(without_faces(out, backups), photo)
    np.testing.assert_array_equal(out, before, "without_faces() returns a copy")


@pytest.mark.parametrize("arrangement", sampled([*ARRANGEMENTS], 3))
def test_faces_are_pasted_from_small_to_large(arrangement):
    photo = smooth(450, 420)
    faces = restored(photo, ARRANGEMENTS[arrangement], stripes)
    one_by_one = photo
    for face in sorted(faces, key=lambda face: -align.magnification(face.affine)):
        one_by_one = pasted(one_by_one, [face])
    assert distance(pasted(photo, faces), one_by_one).max() <= 2, "one-by-one pasting rounds more often"


EDGES = [
    (0, 100, 50),
    (199, 100, 100, 30),
    (100, 0, 100),
    (0, 199, 260, -20),
    (199, 199, 400),
    (-20, 80, 140),
]


@sweep(
    "precision, position, change",
    [(np.uint8, 1), (np.uint8, 4), (np.uint16, 2)],
    EDGES,
    ["identity", "paints beyond the edge"],
    count=9,
)
def test_grey_beyond_the_photo_does_not_bleed_in(precision, position, change):
    dtype, outscale = precision
    colour = np.array([200, 80, 60], dtype) * dtype(LEVEL[dtype])
    photo = np.full((200, 200, 3), colour)
    faces = restored(
        photo, [position], lambda crop: crop if change == "identity" else np.full_like(crop, colour)
    )
    assert (faces[0].before != colour).any()
    larger = photo.repeat(outscale, axis=0).repeat(outscale, axis=1)
    assert mask_in_photo(faces[0], larger.shape, outscale).max() > 0.9
    assert distance(pasted(larger, faces, outscale), larger).max() <= LEVEL[dtype]


@pytest.mark.parametrize("position", EDGES)
def test_face_at_the_edge_is_restored_up_to_the_edge(position):
    photo = smooth(200, 200, wave=600)
    faces = restored(photo, [position], lambda crop: stripes(stripes(crop), down=True))
    changed = distance(pasted(photo, faces), photo)
    assert cv2.blur(changed.astype(float), (11, 11))[mask_in_photo(faces[0], photo.shape) > 0.99].min() > 3


@pytest.mark.parametrize("position", [(-300, 100, 120), (100, 500, 120), (900, 900, 120), (-60, 100, 120)])
def test_face_beyond_the_photo_changes_nothing(position):
    photo = smooth(200, 200)
    inside = (100, 100, 90)
    alone = pasted(photo, restored(photo, [inside], stripes))
    out = photo.copy()
    backups = paste(out, restored(photo, [position, inside], stripes), outscale=1, strength=1.0)
    np.testing.assert_array_equal(out, alone)
    assert all(backup.pixels.size for backup in backups)
    np.testing.assert_array_equal(pasted(photo, restored(photo, [position], stripes)), photo)


def test_face_with_a_reason_or_without_a_mask_is_not_pasted():
    photo = smooth(200, 300)
    one, two, three = restored(photo, [(70, 100, 110), (150, 100, 110), (230, 100, 110)], stripes)
    failed = replace(one, reason="the network failed")
    unmasked = replace(three, mask=np.zeros_like(three.mask))
    np.testing.assert_array_equal(pasted(photo, [failed, two, unmasked]), pasted(photo, [two]))


@pytest.mark.slow
def test_chain_of_faces_wider_than_opencvs_limit_is_pasted():
    photo = smooth(10, 4400)
    face = restored(photo, [(100, 5, 512)], stripes)[0]
    faces = [replace(face, affine=face.affine - [(0, 0, x), (0, 0, 0)]) for x in range(0, 4300, 300)]
    larger = photo.repeat(8, axis=0).repeat(8, axis=1)
    out = larger.copy()
    backups = paste(out, faces, outscale=8, strength=1.0)
    assert (
        max(backup.columns.stop for backup in backups) - min(backup.columns.start for backup in backups)
        > 32_767
    )
    np.testing.assert_array_equal(without_faces(out, backups), larger)
    for x in range(800, 8 * 4300, 2400):
        assert distance(out[:, x - 40 : x + 40], larger[:, x - 40 : x + 40]).mean() > 5


def test_backups_cover_only_the_faces():
    """A chain of faces across the photo is not backed up as one rectangle."""
    photo = smooth(1000, 1000)
    faces = restored(photo, [(80 + 70 * i, 80 + 70 * i, 120) for i in range(12)], stripes)
    out = photo.copy()
    backups = paste(out, faces, outscale=1, strength=1.0)
    covered = np.zeros(photo.shape[:2], int)
    for backup in backups:
        covered[backup.rows, backup.columns] += 1
    alone = np.zeros(photo.shape[:2], bool)
    for face in faces:
        (backup,) = paste(photo.copy(), [face], outscale=1, strength=1.0)
        alone[backup.rows, backup.columns] = True
    np.testing.assert_array_equal(covered, alone)
    np.testing.assert_array_equal(without_faces(out, backups), photo)
