from dataclasses import replace

import cv2
import numpy as np
import pytest

from restorer.faces import align
from restorer.faces.paste import paste, without_faces
from tests.portraits import distance, restored, shifted, smooth, stripes

LEVEL = {np.uint8: 1, np.uint16: 257}
BOTH = pytest.mark.parametrize("dtype", [np.uint8, np.uint16])


def pasted(pixels, faces, outscale=1, strength=1.0, grey=False):
    out = pixels.copy()
    paste(out, faces, outscale=outscale, strength=strength, grey=grey)
    return out


def mask_in_photo(face, shape, outscale=1):
    """Where a face's mask lies in the enlarged photo: (H, W), by OpenCV alone."""
    to_photo = cv2.invertAffineTransform(face.affine)
    to_photo = np.column_stack([to_photo[:, :2] * outscale, to_photo[:, 2] * outscale + (outscale - 1) / 2])
    mask = face.mask
    if (shrink := np.sqrt(np.linalg.det(to_photo[:, :2]))) < 1:
        mask = cv2.GaussianBlur(mask, (0, 0), 1 / shrink)
    return cv2.warpAffine(mask, to_photo, shape[1::-1], flags=cv2.INTER_LINEAR)


@BOTH
@pytest.mark.parametrize("outscale", [1, 2, 4, 2.5])
@pytest.mark.parametrize("place", [(150, 110, 60), (131.4, 122.8, 170, 33), (120, 120, 110, -90)])
def test_an_identity_network_leaves_a_smooth_photo_within_a_level(dtype, outscale, place):
    photo = smooth(240, 260, dtype=dtype)
    faces = restored(photo, [place])
    larger = smooth(240, 260, dtype=dtype, outscale=outscale)
    out = pasted(larger, faces, outscale)
    assert (mask_in_photo(faces[0], larger.shape, outscale) > 0.99).sum() > (place[2] * outscale) ** 2 / 8
    assert distance(out, larger).max() <= LEVEL[dtype]
    assert out.dtype == dtype


@pytest.mark.parametrize("outscale", [1, 2])
def test_an_identity_network_leaves_a_face_larger_than_its_crop_within_a_level(outscale):
    photo = smooth(700, 800, wave=600)
    larger = smooth(700, 800, wave=600, outscale=outscale)
    out = pasted(larger, restored(photo, [(400, 350, 640, 10)]), outscale)
    assert distance(out, larger).max() <= 1


def test_the_restored_crop_lies_where_the_face_was_pixel_for_pixel():
    photo = smooth(600, 620)
    faces = restored(photo, [(255.5 + 40, 255.5 + 30, 512)], stripes)  # a crop is then a cut-out
    out = pasted(photo, faces)
    inside = faces[0].mask == 1
    assert inside.sum() > 50_000
    window = out[30:542, 40:552]
    assert distance(window, faces[0].after)[inside].max() <= 3, "but for its coarse colours"
    assert distance(window, photo[30:542, 40:552])[inside].min() >= 20


@BOTH
def test_nothing_changes_outside_the_masks(rng, dtype):
    photo = rng.integers(0, np.iinfo(dtype).max, (300, 400, 3), dtype=dtype, endpoint=True)
    faces = restored(photo, [(90, 110, 130, 20), (290, 180, 90, -70)], stripes)
    out = photo.copy()
    under = paste(out, faces, outscale=1, strength=1.0)
    masks = np.maximum(*(mask_in_photo(face, photo.shape) for face in faces))
    assert (out != photo)[masks > 0.5].mean() > 0.9
    np.testing.assert_array_equal(out[masks == 0], photo[masks == 0])
    touched = np.zeros(photo.shape[:2], bool)
    for part in under:
        touched[part.rows, part.columns] = True
    assert len(under) == 2 and touched.mean() < 0.25
    np.testing.assert_array_equal(out[~touched], photo[~touched])


@BOTH
@pytest.mark.parametrize("outscale", [1, 2])
def test_strength_goes_from_the_photo_to_the_restored_face(dtype, outscale):
    photo = smooth(200, 200, dtype=dtype)
    faces = restored(photo, [(100, 95, 120, 15)], stripes)
    larger = smooth(200, 200, dtype=dtype, outscale=outscale)
    none, half, full = (pasted(larger, faces, outscale, strength) for strength in (0, 0.5, 1.0))
    np.testing.assert_array_equal(none, larger)
    assert distance(full, larger).max() > 15 * LEVEL[dtype]
    middle = (larger.astype(float) + full) / 2
    assert np.abs(half - middle).max() <= 1


def test_strength_zero_keeps_nothing_to_lift():
    photo = smooth(100, 100)
    assert paste(photo, restored(photo, [(50, 50, 60)], stripes), outscale=1, strength=0) == ()
    assert paste(photo, [], outscale=1, strength=1.0) == ()


@BOTH
def test_a_grey_photo_stays_grey_under_a_coloured_crop(dtype):
    photo = smooth(200, 240, dtype=dtype)[..., :1].repeat(3, axis=2)

    def coloured(crop):
        return shifted(
            stripes(crop), np.array([60, -40, 10]) * LEVEL[dtype] * np.sin(np.arange(512) / 9)[:, None]
        )

    faces = restored(photo, [(100, 100, 120), (160, 110, 80)], coloured)
    out = pasted(photo, faces, grey=True)
    assert (out == out[..., :1]).all()
    assert distance(out, photo).max() > 10 * LEVEL[dtype]
    loose = pasted(photo, faces)
    assert (loose != loose[..., :1]).any(), "without grey, its colours are there"
    masks = np.maximum(*(mask_in_photo(face, photo.shape) for face in faces))
    np.testing.assert_array_equal(out[masks == 0], photo[masks == 0])


@BOTH
@pytest.mark.parametrize("outscale", [1, 4])
@pytest.mark.parametrize("place", [(100, 95, 120), (100, 95, 60, 40), (12, 95, 120), (5, 188, 90, -20)])
def test_a_tint_of_the_network_is_not_seen(dtype, outscale, place):
    photo = (smooth(200, 200, dtype=dtype, wave=400) // 4 * 3 + 30 * LEVEL[dtype]).astype(dtype)
    larger = photo.repeat(outscale, axis=0).repeat(outscale, axis=1)
    faces = restored(photo, [place], lambda crop: shifted(crop, np.array([40, 0, -20]) * LEVEL[dtype]))
    out = pasted(larger, faces, outscale)
    apart = (out.astype(float) - larger) / LEVEL[dtype]
    inside = mask_in_photo(faces[0], larger.shape, outscale) > 0.5
    assert inside.sum() > 1000
    assert np.abs(apart[inside].mean(0)).max() < 0.5
    box = cv2.blur(apart, (9, 9))  # an outline would show where detail is averaged away
    assert np.abs(box).max() < 2


def test_a_tint_that_changes_over_the_face_is_not_seen():
    photo = smooth(300, 300, wave=400)
    ramp = np.linspace(-40, 40, 512)[:, None, None] * (1, 0.2, -0.7)
    faces = restored(photo, [(150, 150, 200, 10)], lambda crop: shifted(crop, ramp))
    apart = pasted(photo, faces).astype(float) - photo
    assert np.abs(apart.mean((0, 1))).max() < 0.3
    assert np.abs(cv2.blur(apart, (9, 9))).max() < 3


def test_of_overlapping_faces_the_larger_lies_on_top_whatever_the_order():
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


def test_faces_that_do_not_touch_are_pasted_as_each_alone():
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
ARRANGED = {
    "apart": [(80, 80, 100), (300, 200, 120)],
    "a chain": chain(60, 45, 7, 90),
    "three on one spot": [(200, 150, 200), (190, 160, 120), (210, 150, 60)],
    "border": BORDER,
    "a small one in the corner of a chain": [*CORNER, (330, 390, 85)],
    "a large one in the corner of a chain": [*CORNER, (330, 390, 95)],
}


@BOTH
@pytest.mark.parametrize("arranged", ARRANGED)
def test_lifted_undoes_paste_exactly(rng, dtype, arranged):
    photo = rng.integers(0, np.iinfo(dtype).max, (450, 420, 3), dtype=dtype, endpoint=True)
    out = photo.copy()
    under = paste(out, restored(photo, ARRANGED[arranged], stripes), outscale=1, strength=0.8)
    before_lifting = out.copy()
    assert (out != photo).any()
    np.testing.assert_array_equal(without_faces(out, under), photo)
    np.testing.assert_array_equal(out, before_lifting, "lifted makes a new array")


@pytest.mark.parametrize("arranged", ARRANGED)
def test_every_arrangement_is_each_face_laid_on_from_small_to_large(arranged):
    photo = smooth(450, 420)
    faces = restored(photo, ARRANGED[arranged], stripes)
    one_by_one = photo
    for face in sorted(faces, key=lambda face: -align.magnification(face.affine)):
        one_by_one = pasted(one_by_one, [face])
    assert distance(pasted(photo, faces), one_by_one).max() <= 2, "but for rounding once, not each time"


EDGES = [
    (0, 100, 50),
    (199, 100, 100, 30),
    (100, 0, 100),
    (0, 199, 260, -20),
    (199, 199, 400),
    (-20, 80, 140),
]


@pytest.mark.parametrize(("dtype", "outscale"), [(np.uint8, 1), (np.uint8, 4), (np.uint16, 2)])
@pytest.mark.parametrize("place", EDGES)
@pytest.mark.parametrize("change", ["identity", "paints on beyond the edge"])
def test_the_grey_beyond_the_photo_does_not_bleed_in(dtype, outscale, place, change):
    colour = np.array([200, 80, 60], dtype) * dtype(LEVEL[dtype])
    photo = np.full((200, 200, 3), colour)
    faces = restored(
        photo, [place], lambda crop: crop if change == "identity" else np.full_like(crop, colour)
    )
    assert (faces[0].before != colour).any()
    larger = photo.repeat(outscale, axis=0).repeat(outscale, axis=1)
    assert mask_in_photo(faces[0], larger.shape, outscale).max() > 0.9
    assert distance(pasted(larger, faces, outscale), larger).max() <= LEVEL[dtype]


@pytest.mark.parametrize("place", EDGES)
def test_a_face_at_the_edge_is_restored_up_to_it(place):
    photo = smooth(200, 200, wave=600)
    faces = restored(photo, [place], lambda crop: stripes(stripes(crop), down=True))
    changed = distance(pasted(photo, faces), photo)
    assert cv2.blur(changed.astype(float), (11, 11))[mask_in_photo(faces[0], photo.shape) > 0.99].min() > 3


@pytest.mark.parametrize("place", [(-300, 100, 120), (100, 500, 120), (900, 900, 120), (-60, 100, 120)])
def test_a_face_beyond_the_photo_changes_nothing(place):
    photo = smooth(200, 200)
    beside = (100, 100, 90)
    alone = pasted(photo, restored(photo, [beside], stripes))
    out = photo.copy()
    under = paste(out, restored(photo, [place, beside], stripes), outscale=1, strength=1.0)
    np.testing.assert_array_equal(out, alone)
    assert all(part.pixels.size for part in under)
    np.testing.assert_array_equal(pasted(photo, restored(photo, [place], stripes)), photo)


def test_a_face_with_a_reason_or_without_a_mask_is_never_pasted():
    photo = smooth(200, 300)
    one, two, three = restored(photo, [(70, 100, 110), (150, 100, 110), (230, 100, 110)], stripes)
    left = replace(one, reason="the network failed")
    unseen = replace(three, mask=np.zeros_like(three.mask))
    np.testing.assert_array_equal(pasted(photo, [left, two, unseen]), pasted(photo, [two]))


def test_a_chain_of_faces_wider_than_opencv_takes_is_pasted():
    photo = smooth(10, 4400)
    face = restored(photo, [(100, 5, 512)], stripes)[0]
    faces = [replace(face, affine=face.affine - [(0, 0, x), (0, 0, 0)]) for x in range(0, 4300, 300)]
    larger = photo.repeat(8, axis=0).repeat(8, axis=1)
    out = larger.copy()
    under = paste(out, faces, outscale=8, strength=1.0)
    assert max(part.columns.stop for part in under) - min(part.columns.start for part in under) > 32_767
    np.testing.assert_array_equal(without_faces(out, under), larger)
    for x in range(800, 8 * 4300, 2400):
        assert distance(out[:, x - 40 : x + 40], larger[:, x - 40 : x + 40]).mean() > 5


def test_faces_that_touch_cost_no_more_than_their_own_places():
    """A chain of faces across the photo is not one rectangle."""
    photo = smooth(1000, 1000)
    faces = restored(photo, [(80 + 70 * i, 80 + 70 * i, 120) for i in range(12)], stripes)
    out = photo.copy()
    under = paste(out, faces, outscale=1, strength=1.0)
    covered = np.zeros(photo.shape[:2], int)
    for part in under:
        covered[part.rows, part.columns] += 1
    alone = np.zeros(photo.shape[:2], bool)
    for face in faces:
        (part,) = paste(photo.copy(), [face], outscale=1, strength=1.0)
        alone[part.rows, part.columns] = True
    np.testing.assert_array_equal(covered, alone)
    np.testing.assert_array_equal(without_faces(out, under), photo)
