"""Faces through the complete pipeline, with a detector and a face network of known output."""

import gc
import io
import json
import weakref
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import restorer
from restorer import pipeline
from restorer import result as result_module
from restorer.__main__ import main
from restorer.errors import Cancelled, InvalidOption, OutOfMemory, UnknownModel, WeightsUnavailable
from restorer.faces import align, detect
from restorer.faces.engine import FaceEngine
from restorer.faces.paste import Face
from restorer.models import download, registry
from restorer.networks import Networks
from tests.conftest import photo_like, png, save_network

CENTRES = ((60, 50, 0.12), (150, 90, 0.08))  # x, y of a face's centre, and its size relative to a crop


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture
def weights(tmp_path) -> Path:
    save_network(tmp_path / "weights/custom/tiny.safetensors", seed=1)
    return tmp_path / "weights"


def landmarks_at(x: float, y: float, size: float) -> np.ndarray:
    return (align.TEMPLATE - align.SIDE / 2) * size + (x, y)


def two_faces(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Detect the faces at CENTRES in a 200 x 140 photo, scaled to any size."""
    scale = pixels.shape[1] / 200
    landmarks = np.array([landmarks_at(*centre) for centre in CENTRES]) * scale
    boxes = np.concatenate([landmarks.min(1) - 9, landmarks.max(1) + 9], axis=1)
    return boxes, np.array([0.9, 0.8]), landmarks


class Negative(torch.nn.Module):
    """Invert the crops; return NaN for the crop `fails_at`."""

    def __init__(self, fails_at: int = -1) -> None:
        super().__init__()
        self.one = torch.nn.Parameter(torch.ones(1))
        self.fails_at, self.crops = fails_at, 0

    def forward(self, x, **_):
        out = -x * self.one
        if self.crops <= self.fails_at < self.crops + len(x):
            out[self.fails_at - self.crops] = torch.nan
        self.crops += len(x)
        return out, []


def put(run: restorer.Restorer, name: str, network: Callable) -> None:
    run.networks.cache.loaded[name] = None, network


def loaded(weights: Path, network: torch.nn.Module | None = None, **options) -> restorer.Restorer:
    run = restorer.Restorer(weights=weights, model="custom/tiny", format="png", **options)
    put(run, "yunet", two_faces)
    put(run, "GFPGANv1.3", FaceEngine(network or Negative(), device=torch.device("cpu")))
    return run


@pytest.fixture
def photo(rng) -> bytes:
    return png(photo_like(rng, 140, 200))


def near(face: Face, pixels: np.ndarray, outscale: float) -> np.ndarray:
    """The upscaled pixels around the nose."""
    x, y = face.landmarks[2] * outscale
    return pixels[round(y) - 4 : round(y) + 4, round(x) - 4 : round(x) + 4].astype(int)


def test_faces_are_detected_restored_and_reported(weights, photo):
    run = loaded(weights)
    plain, result = run.restore(photo, face_enhance="off"), run.restore(photo)
    assert plain.faces == () and plain.face_note == ""
    assert [face.restored for face in result.faces] == [True, True]
    assert result.face_note == "faces: 2 found, 2 restored" and result.face_note not in result.warnings
    for face, centre in zip(result.faces, CENTRES, strict=True):
        np.testing.assert_allclose(face.landmarks, landmarks_at(*centre), atol=0.5)
        assert np.array_equal(face.after, 255 - face.before)
    far = np.ones(plain.after.pixels.shape[:2], bool)
    for part in result.paste_backup:
        far[part.rows, part.columns] = False
    assert far.mean() > 0.4
    assert np.array_equal(result.after.pixels[far], plain.after.pixels[far])
    assert not np.array_equal(result.after.pixels, plain.after.pixels)


def test_face_strength_blends_linearly(weights, photo):
    run = loaded(weights)
    plain = run.restore(photo, face_enhance="off")
    none, half, full = (run.restore(photo, face_strength=s) for s in (0, 0.5, 1))
    assert np.array_equal(none.after.pixels, plain.after.pixels)
    middle = (none.after.pixels.astype(int) + full.after.pixels) / 2
    assert np.abs(half.after.pixels - middle).max() <= 1


def test_failed_face_keeps_its_pixels_and_is_reported(weights, photo):
    result = loaded(weights, Negative(fails_at=1)).restore(photo)
    plain = loaded(weights).restore(photo, face_enhance="off")
    assert [face.restored for face in result.faces] == [True, False]
    assert result.face_note.startswith("faces: 2 found, 1 restored (the network returned NaN")
    assert result.face_note in result.warnings
    failed = result.faces[1]
    assert np.array_equal(near(failed, result.after.pixels, 4), near(failed, plain.after.pixels, 4))


def test_recompose_equals_restore_and_needs_no_network(weights, photo):
    run = loaded(weights)
    result = run.restore(photo)
    run.networks.cache.loaded.clear()
    plain = loaded(weights).restore(photo, face_enhance="off")
    assert run.recompose(result).data == result.data
    again = run.recompose(result, face_strength=0)
    assert np.array_equal(again.after.pixels, plain.after.pixels)
    again = run.recompose(result, strengths={0: 0, 1: 0})
    assert np.array_equal(again.after.pixels, plain.after.pixels)
    weak = loaded(weights).restore(photo, face_strength=0.3)
    assert run.recompose(result, face_strength=0.3).data == weak.data
    assert run.recompose(run.recompose(result, face_strength=0.3), face_strength=1).data == result.data
    one = run.recompose(result, strengths={1: 0})
    first, second = result.faces
    some = run.recompose(result, strengths={0: 0.3}).after.pixels
    assert np.abs(near(first, some, 4) - near(first, weak.after.pixels, 4)).max() <= 1
    assert np.array_equal(near(second, some, 4), near(second, result.after.pixels, 4))
    assert np.array_equal(near(first, one.after.pixels, 4), near(first, result.after.pixels, 4))
    assert np.array_equal(near(second, one.after.pixels, 4), near(second, plain.after.pixels, 4))
    assert run.recompose(result, format="jpeg").format == "jpeg"
    for options, message in (
        ({"outscale": 2}, "outscale cannot be changed"),
        ({"strengths": {2: 1.0}}, "no face 2; the result has 2"),
        ({"strengths": {-1: 1.0}}, "no face -1; the result has 2"),
        ({"strengths": {0: 1.5}}, "from 0 to 1"),
        ({"face_strength": 2}, "from 0 to 1"),
        ({"blur": 1}, "unknown option 'blur'"),
    ):
        with pytest.raises(InvalidOption, match=message):
            run.recompose(result, **options)


def test_strengths_of_single_faces_persist_and_are_reported(weights, photo):
    run = loaded(weights)
    result = run.restore(photo)
    without = run.recompose(result, strengths={0: 0})
    assert without.face_note == "faces: 2 found, 2 restored, 1 of them switched off"
    assert run.recompose(without, format="png").data == without.data
    assert "strengths" not in result.receipt and without.receipt["strengths"] == {"0": 0}
    stored = Image.open(io.BytesIO(without.data)).getexif().get_ifd(0x8769)[0x9213]
    assert json.loads(stored) == without.receipt
    assert run.recompose(without, strengths={0: 1}).data == result.data
    assert run.recompose(without, strengths={0: 1}).face_note == result.face_note


def test_transparent_pixels_are_neither_detected_nor_changed(weights, rng):
    inputs = []

    def detector(pixels):
        inputs.append(pixels)
        return two_faces(pixels)

    pixels = photo_like(rng, 140, 200)
    alpha = np.full((140, 200), 255, np.uint8)
    alpha[20:60, 30:90] = 0
    results = []
    for secret in (0, 255):
        run = loaded(weights)
        put(run, "yunet", detector)
        pixels[alpha == 0] = secret
        results.append(run.restore(png(np.dstack([pixels, alpha]))))
    half = len(inputs) // 2
    assert all(np.array_equal(one, two) for one, two in zip(inputs[:half], inputs[half:], strict=True))
    assert results[0].data == results[1].data
    plain = loaded(weights).restore(png(np.dstack([pixels, alpha])), face_enhance="off")
    clear = plain.after.alpha == 0
    assert clear.any()
    assert np.array_equal(results[0].after.pixels[clear], plain.after.pixels[clear])
    assert not np.array_equal(results[0].after.pixels, plain.after.pixels)


def opencv_error() -> Exception:
    """The error that OpenCV raises if it cannot allocate memory."""
    error = cv2.error("Insufficient memory")
    error.code = cv2.Error.StsNoMem
    return error


@pytest.mark.parametrize("error", [MemoryError(), opencv_error()])
def test_allocation_failure_raises_out_of_memory(weights, photo, monkeypatch, error):
    run = loaded(weights)
    result = run.restore(photo)

    def full(*_, **__):
        raise error

    monkeypatch.setattr(pipeline, "without_faces", full)
    with pytest.raises(OutOfMemory, match="smaller scale"):
        run.recompose(result, face_strength=0.5)
    monkeypatch.setattr(result_module, "paste", full)
    with pytest.raises(OutOfMemory, match="smaller scale"):
        run.restore(photo)
    monkeypatch.setattr(detect, "detect_faces", full)
    with pytest.raises(OutOfMemory, match="smaller scale"):
        run.find_faces(photo)


def test_missing_weights_give_a_warning_with_auto_and_an_error_with_on(weights, photo, monkeypatch):
    run = restorer.Restorer(weights=weights, model="custom/tiny")
    result = run.restore(photo)
    assert result.faces == () and result.face_note.startswith("face detection skipped: yunet is not present")
    assert result.face_note in result.warnings
    with pytest.raises(WeightsUnavailable, match="yunet"):
        run.restore(photo, face_enhance="on")
    put(run, "yunet", two_faces)
    detected = run.restore(photo)
    reason = "GFPGANv1.3 is not present and could not be downloaded"
    assert detected.face_note == f"faces: 2 found, 0 restored ({reason})"
    assert detected.face_note in detected.warnings and not any(face.restored for face in detected.faces)
    plain = run.restore(photo, face_enhance="off")
    assert np.array_equal(detected.after.pixels, plain.after.pixels)
    with pytest.raises(WeightsUnavailable, match="GFPGANv1.3"):
        run.restore(photo, face_enhance="on")
    monkeypatch.setattr(download, "_is_complete", mock.Mock(side_effect=PermissionError(13, "not allowed")))
    unreadable = restorer.Restorer(weights=weights, model="custom/tiny")
    put(unreadable, "yunet", two_faces)
    assert "(GFPGANv1.3 cannot be read or stored)" in unreadable.restore(photo).face_note


def test_a_failed_download_keeps_no_photo_in_memory(weights, photo):
    """Not even that of the first failure, which is reported again."""
    run = restorer.Restorer(weights=weights, model="custom/tiny", face_enhance="auto")
    results = []
    gc.disable()
    try:
        for _ in range(3):
            result = run.restore(photo)
            assert "yunet" in result.face_note
            results.append(weakref.ref(result.before))
            del result
        assert [reference() for reference in results] == [None] * 3
    finally:
        gc.enable()


def test_auto_does_not_retry_a_failed_download_at_once(weights, photo, monkeypatch):
    downloads = []
    ensure = download.ensure
    monkeypatch.setattr(download, "ensure", lambda *a: downloads.append(a[0].name) or ensure(*a))
    run = restorer.Restorer(weights=weights, model="custom/tiny")
    run.restore(photo)
    run.restore(photo)
    assert downloads.count("yunet") == 1
    with pytest.raises(WeightsUnavailable):
        run.restore(photo, face_enhance="on")
    assert downloads.count("yunet") == 2


def test_each_face_is_a_step_that_can_be_cancelled(weights, photo):
    steps = []
    loaded(weights).restore(photo, progress=lambda *step: steps.append(step), tile=64)
    tiles = steps[0][1] - 2
    assert steps == [(done, tiles + 2) for done in range(tiles + 3)]

    def stop(done: int, total: int) -> None:
        if done == total - 1:
            raise Cancelled("stopped")

    network = Negative()
    with pytest.raises(Cancelled):
        loaded(weights, network).restore(photo, progress=stop)
    assert network.crops == 1


def test_photo_without_faces_needs_only_the_detector(weights, photo):
    run = loaded(weights)
    put(run, "yunet", lambda pixels: (np.empty((0, 4)), np.empty(0), np.empty((0, 5, 2))))
    del run.networks.cache.loaded["GFPGANv1.3"]
    result = run.restore(photo, face_enhance="on")
    assert result.faces == () and result.face_note == "" and result.warnings == ()


@pytest.mark.parametrize("mode", ["grey16", "rgba"])
def test_depth_grey_and_alpha_are_preserved(weights, rng, mode):
    pixels = photo_like(rng, 140, 200)
    if mode == "grey16":
        data = cv2.imencode(".png", pixels[..., 0].astype(np.uint16) * 257)[1].tobytes()
    else:
        alpha = np.full((140, 200, 1), 255, np.uint8)
        alpha[:20] = 90
        data = png(np.dstack([pixels, alpha]))
    run = loaded(weights)
    plain, result = run.restore(data, face_enhance="off").after, run.restore(data).after
    assert not np.array_equal(plain.pixels, result.pixels)
    assert result.pixels.dtype == plain.pixels.dtype
    if mode == "grey16":
        assert result.pixels.dtype == np.uint16 and np.ptp(result.pixels, axis=2).max() == 0
    else:
        assert np.array_equal(result.alpha, plain.alpha)


def test_invalid_face_options_are_rejected(weights, photo):
    run = loaded(weights)
    for options, message in (
        ({"face_enhance": "yes"}, "must be one of auto, on, off"),
        ({"face_strength": 1.5}, "from 0 to 1"),
        ({"face_mask": "square"}, "must be one of ellipse, parsing"),
    ):
        with pytest.raises(InvalidOption, match=message):
            run.restore(photo, **options)
    with pytest.raises(UnknownModel, match="GFPGANv1.3"):
        run.restore(photo, face_model="GFPGANv1.5")


@pytest.mark.parametrize("name", ["face_model", "face_detector"])
def test_unknown_face_model_is_rejected_before_any_work(weights, photo, name):
    run = loaded(weights)
    run.networks.cache = None  # no network may be used
    for enhance in ("auto", "on", "off"):
        with pytest.raises(UnknownModel, match="nonsense") as caught:
            run.restore(photo, face_enhance=enhance, **{name: "nonsense"})
        assert "auto" not in str(caught.value)


def test_every_face_option_changes_the_result(weights, photo):
    run = loaded(weights)

    def shifted(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        boxes, scores, landmarks = two_faces(pixels)
        return boxes + 3, scores, landmarks + 3

    def large(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        landmarks = landmarks_at(100, 70, 1.1)[None] * pixels.shape[1] / 200
        return np.concatenate([landmarks.min(1), landmarks.max(1)], axis=1), np.ones(1), landmarks

    class Darker(Negative):
        def forward(self, x, **_):
            return 0.5 * x * self.one

    put(run, "retinaface", shifted)
    put(run, "RestoreFormer", FaceEngine(Darker(), device=torch.device("cpu")))
    put(run, "parsenet", lambda crop: np.ones(crop.shape[:2], np.float32))
    plain = run.restore(photo)
    changes = {
        "face_enhance": "off",
        "face_model": "RestoreFormer",
        "face_detector": "retinaface",
        "face_strength": 0.5,
        "face_mask": "parsing",
    }
    for name, value in changes.items():
        assert run.restore(photo, **{name: value}).data != plain.data, name
    put(run, "yunet", large)
    skipped, restored = run.restore(photo), run.restore(photo, face_large=True)
    assert "512" in skipped.face_note and skipped.data != restored.data
    names = {name for name in restorer.Options.names() if name.startswith("face_")}
    assert set(changes) | {"face_large"} == names


def test_faces_command_prints_a_json_line_per_face_and_draws_them(shared, tmp_path, capsys, monkeypatch):
    from skimage import data

    folder = tmp_path / "weights"
    folder.mkdir()
    yunet = registry.find("yunet", folder, "detect")
    (folder / yunet.file).write_bytes((shared / "weights" / yunet.file).read_bytes())
    monkeypatch.chdir(tmp_path)
    Image.fromarray(data.astronaut()).save("a.png")
    Path("broken.png").write_bytes(b"not an image")
    assert main(["faces", "a.png", "broken.png", "--draw", "drawn", "--weights-dir", str(folder)]) == 1
    printed = capsys.readouterr()
    (face,) = [json.loads(line) for line in printed.out.splitlines()]
    assert face["file"] == "a.png" and face["score"] > 0.9
    left, top, right, bottom = face["box"]
    assert all(left < x < right and top < y < bottom for x, y in face["landmarks"])
    assert "broken.png: failed" in printed.err
    drawn = np.array(Image.open("drawn/a_faces.png"))
    changed = np.nonzero((drawn != data.astronaut()).any(2))
    assert abs(changed[1].min() - left) < 4 and abs(changed[0].max() - bottom) < 4
    assert main(["faces", "a.png", "drawn/a_faces.png", "--draw", "drawn", "--weights-dir", str(folder)]) == 1
    assert "is one of the photos" in capsys.readouterr().err
    assert np.array_equal(np.array(Image.open("drawn/a_faces.png")), drawn)
    assert main(["faces", ".", "--draw", "drawn", "--weights-dir", str(folder)]) == 1
    assert {json.loads(line)["file"] for line in capsys.readouterr().out.splitlines()} == {"a.png"}
    assert main(["faces", ".", "--weights-dir", str(folder)]) == 1
    names = {json.loads(line)["file"] for line in capsys.readouterr().out.splitlines()}
    assert names == {"a.png", "drawn/a_faces.png", "drawn/a_faces_faces.png"}
    assert main(["faces", "a.png", "--draw", "one.jpg", "--weights-dir", str(folder)]) == 0
    assert Image.open("one.jpg").format == "JPEG"
    assert main(["faces", "a.png", "--face-detector", "nonsense", "--weights-dir", str(folder)]) == 2


def test_download_that_breaks_off_is_no_longer_reported(tmp_path, monkeypatch):
    networks = Networks(tmp_path, "cpu", None, None)

    def fail(model, weights, progress):
        progress(1, 2)
        seen.append(networks.downloading)
        raise WeightsUnavailable("the connection broke")

    monkeypatch.setattr(download, "ensure", fail)
    steps, seen = [], []
    for progress in (lambda *step: steps.append(step), None):  # only a job's download is reported
        with pytest.raises(WeightsUnavailable):
            networks.face_network("yunet", "detect", progress=progress)
        assert networks.downloading is None
    assert seen == [("yunet", 1, 2), None] and steps == [(0, 0)]
