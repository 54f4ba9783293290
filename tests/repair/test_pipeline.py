"""A repair changes the mask only; the options change the mask; an undamaged photo stays as it is."""

import io
from unittest import mock

import cv2
import numpy as np
import pytest
from PIL import Image

import restorer
from restorer import InvalidOption
from restorer.repair import damage
from restorer.web import settings
from restorer.web.service import Service
from tests.conftest import photo_like, png, save_network

PROBABILITY = np.zeros((40, 50), np.float32)
PROBABILITY[10:12, 5:45] = 0.7  # a scratch, half of it likely, one pixel almost certain
PROBABILITY[10, 5:45] = 0.96
PROBABILITY[30, 5:45] = 0.96  # a line that nowhere is almost certainly damage
PROBABILITY[36, 5:45] = 0.7  # one that is little likely but for some pixels
PROBABILITY[36, 5:15] = 0.96
PROBABILITY[(10, 36), 10] = 0.9999


@pytest.fixture
def weights(tmp_path):
    save_network(tmp_path / "custom/tiny.safetensors", seed=1)
    return tmp_path


@pytest.fixture
def run(weights, monkeypatch):
    """A Restorer, which detects PROBABILITY in every photo of that size."""
    monkeypatch.setattr(damage, "detect", lambda image, *_, **__: PROBABILITY)
    return restorer.Restorer(weights=weights, model="custom/tiny", face_enhance="off", outscale=1)


@pytest.fixture
def photo(rng):
    return photo_like(rng, 40, 50)


def encoded(pixels: np.ndarray) -> bytes:
    if pixels.ndim == 3:
        pixels = pixels[..., [2, 1, 0, 3][: pixels.shape[2]]]
    return cv2.imencode(".png", pixels)[1].tobytes()


@pytest.mark.parametrize("kind", ["RGB", "16 bit", "grey", "alpha"])
def test_repair_changes_only_the_mask(run, photo, kind):
    alpha = np.full((40, 50), 255, np.uint8)
    alpha[:, :9] = 0
    pixels = {
        "16 bit": photo.astype(np.uint16) * 257,
        "grey": photo[..., 0],
        "alpha": np.dstack([photo, alpha]),
    }
    result = run.restore(encoded(pixels.get(kind, photo)), repair="on")
    mask, before, repaired = result.repair.mask, result.before.pixels, result.repair.photo.pixels
    assert mask[10, 20] and mask[30, 20] and not mask[20].any()
    assert repaired.dtype == before.dtype
    np.testing.assert_array_equal(repaired[~mask], before[~mask])
    assert (repaired[mask] != before[mask]).any(-1).mean() > 0.9
    if kind == "grey":
        assert (repaired == repaired[..., :1]).all()


def test_repaired_photo_is_what_is_upscaled(run, photo):
    result = run.restore(png(photo), repair="on")
    same = run.restore(result.repair.photo)
    np.testing.assert_array_equal(result.after.pixels, same.after.pixels)
    none = run.restore(png(photo), repair="on", strength=0)
    np.testing.assert_array_equal(none.after.pixels, result.repair.photo.pixels)
    again = run.recompose(result, strength=0)
    np.testing.assert_array_equal(again.after.pixels, none.after.pixels)
    assert again.receipt["repair"] == none.receipt["repair"]


def test_auto_takes_confident_areas_only(run, photo):
    masks = {repair: run.restore(png(photo), repair=repair).repair.mask for repair in ("auto", "on")}
    assert masks["auto"][8:14].any() and not masks["auto"][25:].any()
    assert masks["on"][25:].any()


def test_sensitivity_changes_the_result(run, photo):
    low, high = (run.restore(png(photo), repair="on", repair_sensitivity=value) for value in (0.2, 0.4))
    assert 0 < low.repair.share < high.repair.share
    assert low.data != high.data
    assert low.receipt["repair"]["sensitivity"] == 0.2


def test_broad_areas_are_not_seen_with_confidence():
    probability = np.zeros((100, 100), np.float32)
    probability[10:60, 10:60] = 1
    probability[80:84, 10:90] = 1
    mask = damage.mask(probability, 0.5, confident=True)
    assert not mask[:70].any() and mask[80:84, 10:90].all()


def test_photo_of_which_much_is_taken_for_damage_has_a_warning(run, photo, monkeypatch):
    monkeypatch.setattr(damage, "detect", lambda image, *_, **__: np.full((40, 50), 0.2, np.float32))
    result = run.restore(png(photo), repair="on", repair_sensitivity=1)
    assert "100 % of the photo was taken for damage; less with a lower repair_sensitivity" in result.warnings
    own = run.restore(png(photo), mask=np.ones((40, 50), bool))
    assert not any("taken for damage" in warning for warning in own.warnings)


@pytest.mark.parametrize("repair", ["auto", "on"])
def test_photo_without_damage_comes_out_as_before(run, photo, repair, monkeypatch):
    monkeypatch.setattr(damage, "detect", lambda image, *_, **__: np.zeros((40, 50), np.float32))
    off, result = (run.restore(png(photo), repair=value, keep_metadata=False) for value in ("off", repair))
    assert result.data == off.data
    assert off.repair is None and "repair" not in off.receipt
    assert result.repair.photo is result.before
    assert any("nothing was repaired" in warning for warning in result.warnings)
    assert list(result.receipt["repair"]["models"]) == ["damage-detector"]


def test_nothing_is_detected_unless_wanted(run, photo, monkeypatch):
    def detect(*_, **__):
        raise AssertionError("detected")

    monkeypatch.setattr(damage, "detect", detect)
    assert run.restore(png(photo)).repair is None
    assert run.restore(png(photo), repair="on", mask=np.zeros((40, 50), bool)).repair.share == 0


def test_own_mask_replaces_detection(run, photo):
    mask = np.zeros((40, 50), bool)
    mask[3:6, 40:] = True
    results = [run.restore(png(photo), mask=value) for value in (mask, png(np.uint8(mask) * 255))]
    for result in results:
        np.testing.assert_array_equal(result.repair.mask, mask)
        assert result.receipt["repair"] | {"models": 0} == {"mask": "own", "share": 0.015, "models": 0}
        assert list(result.receipt["repair"]["models"]) == ["damage-filler"]
    assert results[0].data == results[1].data
    one_bit = io.BytesIO()
    Image.fromarray(mask).save(one_bit, "PNG")
    assert run.restore(png(photo), mask=one_bit.getvalue()).data == results[0].data
    transparent = np.dstack([np.full((40, 50, 3), 255, np.uint8), np.uint8(mask) * 255])
    assert run.restore(png(photo), mask=png(transparent)).data == results[0].data


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.zeros((50, 40), bool), "the mask has 40 x 50 pixels and the photo 50 x 40"),
        (np.zeros((40, 50), np.uint8), "array of bool"),
        (np.zeros((40, 50, 1), bool), "array of bool"),
    ],
)
def test_wrong_masks_are_refused(run, photo, mask, message):
    with pytest.raises(InvalidOption, match=message):
        run.restore(png(photo), mask=mask)


def test_models_can_be_listed_once_their_networks_are_loaded(run, photo):
    run.restore(png(photo), repair="on")
    service = Service(settings.Settings(), run, mock.Mock(), mock.Mock(), mock.Mock())
    listed = {model["name"]: model["sha256"] for model in service.models()}
    assert len(listed["custom/tiny"]) == len(listed["damage-filler"]) == 64


def test_cancelling_stops_a_repair(weights, photo):
    class Stop(Exception):
        pass

    def stop(*_):
        raise Stop

    with pytest.raises(Stop):
        restorer.Restorer(weights=weights).find_damage(restorer.Restorer().decode(png(photo)), stop)


def test_built_in_weights_find_and_fill_a_scratch(weights):
    """A bright scratch on a smooth photo: the result is closer to the photo without it."""
    y, x = np.mgrid[0:128, 0:160]
    clean = np.stack([90 + y / 4, 80 + x / 5, 100 + 0 * x], axis=2).astype(np.uint8)
    damaged = clean.copy()
    cv2.line(damaged, (20, 10), (130, 110), (250, 250, 250), 2, cv2.LINE_AA)
    run = restorer.Restorer(weights=weights, model="custom/tiny", face_enhance="off", outscale=1)
    result = run.restore(png(damaged), repair="on")
    assert 0.01 < result.repair.share < 0.2
    assert cv2.PSNR(result.repair.photo.pixels, clean) > cv2.PSNR(damaged, clean) + 10
    assert run.restore(png(clean), repair="auto").repair.share == 0
