"""A look finds one fault in a photo with one, and suggests what helps."""

import io
from unittest import mock

import cv2
import numpy as np
import pytest
from PIL import Image

import restorer
from restorer import WeightsUnavailable, look
from restorer.images import photo
from restorer.images.formats import jpeg
from restorer.networks import Networks
from tests.conftest import photo_like, png, save_network


def scene(rng: np.random.Generator) -> np.ndarray:
    """Return a sharp colour photo with flat areas, black and white."""
    pixels = cv2.medianBlur(photo_like(rng, 240, 320), 5)
    pixels[:120, :80], pixels[120:, :80] = 5, 250
    pixels[:, 160:] = rng.integers(40, 220, (11, 7, 3)).repeat(23, axis=0).repeat(23, axis=1)[:240, :160]
    return pixels


def names(data: bytes) -> list[str]:
    seen = look.examine(photo.decode(data), quality=jpeg.quality(data))
    return [finding.name for finding in seen.findings]


def jpeg_of(pixels: np.ndarray, quality: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=quality)
    return out.getvalue()


def test_a_look_names_each_fault_alone(rng):
    pixels = scene(rng)
    noisy = np.clip(pixels + rng.normal(0, 12, pixels.shape), 0, 255).astype(np.uint8)
    compressed = photo.decode(jpeg_of(pixels, 10)).pixels
    grey = np.repeat(pixels[..., 1:2], 3, axis=2)
    assert names(png(pixels)) == []
    assert names(png(noisy)) == ["noise"]
    assert names(jpeg_of(pixels, 90)) == [] and names(jpeg_of(pixels, 30)) == ["jpeg"]
    assert names(png(compressed)) == ["jpeg"]
    assert names(png(cv2.GaussianBlur(pixels, (0, 0), 4))) == ["blur"]
    assert names(png(pixels // 2 + 70)) == ["faded"]
    assert names(png(grey)) == ["grey"]
    assert names(png(np.rint(grey * [1, 0.85, 0.6]).astype(np.uint8))) == ["toned"]


def test_the_line_says_what_is_wrong_and_what_helps(rng):
    faces = (
        np.array([[20.0, 20, 120, 140]]),
        np.array([0.9]),
        np.array([[[40, 60], [90, 60], [65, 80], [45, 110], [85, 110]]]),
    )
    faded = photo.decode(png(scene(rng) // 2 + 70))
    seen = look.examine(faded, face_detector=lambda _: faces)
    assert seen.line == "Faded, 1 face, 320 × 240. Suggested: 4x, colour auto, faces on"
    assert seen.options == {"outscale": 4.0, "colour": "auto", "face_enhance": "auto"}
    assert seen.autopilot(restorer.Options()) == {"colour": "auto"}
    assert seen.autopilot(restorer.Options(colour="neutral", face_enhance="off")) == {}
    none = look.examine(faded, face_detector=lambda _: tuple(one[:0] for one in faces))
    assert none.options["face_enhance"] == "off" and "face_enhance" not in look.examine(faded).options
    changed = none.autopilot(restorer.Options())
    assert changed == {"colour": "auto", "face_enhance": "off"}
    assert none.note(changed) == "autopilot: faded; colour auto, faces off"
    assert look.Look(9, 9, (), {}).note({}) == "autopilot: nothing found; no option changed"


def test_pixels_hidden_by_transparency_are_not_looked_at(rng):
    pixels, alpha = scene(rng), np.full((240, 320), 255, np.uint8)
    alpha[:120, :160] = 0
    hidden = rng.integers(0, 255, (120, 160, 3))
    looks = []
    for content in (hidden, 255 - hidden):
        pixels[:120, :160] = content
        faces = mock.Mock(return_value=(np.zeros((0, 4)), np.zeros(0), np.zeros((0, 5, 2))))
        damage = mock.Mock(return_value=np.zeros((240, 320), np.float32))
        both = photo.Photo(pixels.copy(), alpha, photo.Meta("png"))
        seen = look.examine(both, face_detector=faces, damage_detector=damage)
        images = [call.args[0] for detector in (faces, damage) for call in detector.call_args_list]
        looks.append((seen, images))
    (first, images), (second, others) = looks
    assert first == second and len(images) >= 2
    assert all(np.array_equal(*pair) for pair in zip(images, others, strict=True))


@pytest.mark.parametrize(("width", "scale"), [(1199, 4), (1200, 2), (2400, 1)])
def test_the_suggested_scale_depends_on_the_size(width, scale):
    plain = photo.Photo(np.zeros((2, width, 3), np.uint8), None, photo.Meta("png"))
    assert look.examine(plain).options["outscale"] == scale


@pytest.mark.parametrize(
    ("specks", "size", "level", "enlarged", "damaged"),
    [
        (0, 4, 1, 1, False),
        (11, 4, 1, 1, False),
        (12, 4, 1, 1, True),
        (19, 4, 1, 2, False),
        (20, 4, 1, 2, True),
        (50, 3, 1, 1, False),
        (50, 4, 0.65, 1, False),
        (50, 4, 0.75, 1, True),
    ],
)
def test_damage_is_several_areas_of_some_size(rng, specks, size, level, enlarged, damaged):
    """Also for the size of the copy: 10 areas are allowed in 100,000 pixels."""

    def detector(image: np.ndarray) -> np.ndarray:
        assert image.shape == ((240, 320, 3), (384, 512, 3))[enlarged - 1] and image.dtype == np.uint8
        probability = np.zeros(image.shape[:2], np.float32)
        for speck in range(specks):
            top, left = divmod(speck, 20)
            probability[9 * top : 9 * top + size, 9 * left : 9 * left + size] = level
        return probability

    pixels = scene(rng).repeat(enlarged, axis=0).repeat(enlarged, axis=1)
    seen = look.examine(photo.decode(png(pixels)), damage_detector=detector)
    assert [finding.name for finding in seen.findings] == ["damage"] * damaged
    assert seen.options == {"outscale": 4.0}, "the detector marks parts of the picture too"


def test_texture_is_no_noise(rng):
    for side, expected in ((240, True), (160, False)):  # grains of 1 or 1.5 pixels
        grain = np.repeat(rng.normal(128, 20, (side, side, 1)), 3, axis=2)
        pixels = cv2.resize(grain, (240, 240), interpolation=cv2.INTER_CUBIC).clip(0, 255).astype(np.uint8)
        assert ("noise" in names(png(pixels))) == expected


def test_the_installed_detector_is_used(rng, tmp_path):
    restorer.Restorer(weights=tmp_path).look(png(scene(rng)))


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (17, 9), (300, 2)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_any_size_is_accepted(shape, dtype):
    pixels = np.full((*shape, 3), 90, dtype)
    assert look.examine(photo.Photo(pixels, None, photo.Meta("png"))).line.startswith(("Black", "Faded"))


@pytest.mark.parametrize("quality", [20, 35, 50, 60, 75, 90, 95])
def test_jpeg_quality_is_read_from_the_tables(rng, quality):
    assert jpeg.quality(jpeg_of(scene(rng), quality)) == quality


@pytest.mark.parametrize(
    "data", [b"", b"\xff\xd8", b"\xff\xd8\xff\xdb\x00", b"\xff\xd8\xff\xdb\0\x04\0\0", b"\x89PNG" * 9]
)
def test_jpeg_quality_of_anything_else_is_none(data):
    assert jpeg.quality(data) is None


def test_autopilot_uses_the_suggestions(tmp_path, rng, monkeypatch):
    monkeypatch.setattr(Networks, "repair_network", mock.Mock(side_effect=WeightsUnavailable("absent")))
    save_network(tmp_path / "custom/tiny.safetensors", seed=1)
    run = restorer.Restorer(weights=tmp_path, model="custom/tiny", device="cpu:torch", face_enhance="off")
    data = png(scene(rng)[:60] // 2 + 70)
    result = run.restore(data, autopilot=True, outscale=2)
    np.testing.assert_array_equal(
        result.after.pixels, run.restore(data, colour="auto", outscale=2).after.pixels
    )
    assert result.options.colour == "auto" and result.receipt["options"]["autopilot"] is True
    assert result.warnings[0] == run.look(data).note({"colour": "auto"})
