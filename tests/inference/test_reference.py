"""realesr-general-x4v3 on real photos against the reference implementation.

tests/models/test_packaged_weights.py covers the networks whose weights are installed.
"""

import io
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

import restorer
from restorer.images import low_frequencies, photo
from restorer.inference import backends
from restorer.models import registry
from tests.conftest import sampled
from tests.reference import by_reference, distance, realesrganer

NAME = "custom/realesr-general-x4v3"
PARAMETERS = {"num_feat": 64, "num_conv": 32, "upscale": 4, "act_type": "prelu"}


@pytest.fixture(scope="module", autouse=True)
def without_low_frequencies():
    """Compare what the network computes: the references have its colours, not the photo's."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(low_frequencies, "match", lambda *_, **__: None)
        yield


@pytest.fixture(scope="module")
def weights(shared, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    (folder / "custom").mkdir()
    for file in (shared / "weights").glob("realesr-*.pth"):
        os.symlink(file, folder / "custom" / file.name)
    return folder


@pytest.fixture(scope="module")
def ours(weights) -> restorer.Restorer:
    return restorer.load(NAME, weights=weights, device="cpu", format="png", tile=4096)


@pytest.fixture(scope="module")
def reference(shared):
    """RealESRGANer on the same weights."""
    return realesrganer("SRVGGNetCompact", PARAMETERS, shared / "weights/realesr-general-x4v3.pth")


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["set5", "set14"])
def test_pixels_match_the_reference(ours, reference, shared, folder):
    files = sorted((shared / "sets" / folder).glob("*_LR.png"))
    assert len(files) == {"set5": 5, "set14": 14}[folder]
    for file in sampled(files, 2):
        expected = by_reference(reference, file)
        pixels = ours.restore(file.read_bytes()).after.pixels
        grey = expected.ndim == 2
        assert distance(pixels[..., 0] if grey else pixels, expected) <= 1, file.name


@pytest.mark.parametrize("backend", backends.CHOICES)
def test_every_cpu_backend_matches_the_reference(backend, weights, reference, shared):
    file = shared / "sets/set5/img_003_SRF_4_LR.png"
    result = restorer.load(NAME, weights=weights, device=backend).restore(file.read_bytes())
    assert result.device == backend
    assert distance(result.after.pixels, by_reference(reference, file)) <= 1


@pytest.mark.slow
def test_grey_photo_matches_the_reference(ours, reference, shared, tmp_path):
    for name in ("00017_gray.png", "wolf_gray.jpg"):
        file = tmp_path / f"{name}.png"
        Image.open(shared / "sets/realesrgan_inputs" / name).crop((0, 0, 100, 100)).save(file)
        result = ours.restore(file.read_bytes())
        assert Image.open(io.BytesIO(result.data)).mode == "L"
        assert distance(result.after.pixels[..., 0], by_reference(reference, file)) <= 1


@pytest.mark.slow
def test_alpha_and_opaque_pixels_match_the_reference(ours, reference, shared, tmp_path):
    """Colour may differ within 36 pixels of a transparent one, where ours hides what lies beneath."""
    file = tmp_path / "alpha.png"
    Image.open(shared / "sets/realesrgan_inputs/children-alpha.png").crop((90, 220, 190, 320)).save(file)
    expected = by_reference(reference, file)
    result = ours.restore(file.read_bytes())
    assert distance(result.after.alpha, expected[..., 3]) <= 1
    solid = cv2.erode(result.before.alpha, np.ones((73, 73)), borderValue=255) == 255
    solid = solid.repeat(4, axis=0).repeat(4, axis=1)
    assert solid.mean() > 0.02
    assert distance(result.after.pixels[solid], expected[..., :3][solid]) <= 1


@pytest.mark.slow
def test_16_bit_photo_matches_the_reference_within_one_8_bit_level(ours, reference, shared, tmp_path):
    """Bright enough for the reference, which infers the depth from the values."""
    file = shared / "sets/realesrgan_inputs/OST_009.png"
    pixels = cv2.imread(str(file))[100:180, 100:220].astype(np.uint16) * 257
    cv2.imwrite(str(tmp_path / "deep.png"), pixels)
    expected = by_reference(reference, tmp_path / "deep.png")
    result = ours.restore((tmp_path / "deep.png").read_bytes()).after.pixels
    assert result.dtype == expected.dtype == np.uint16
    assert distance(result, expected) <= 257
    tree = cv2.imread(str(shared / "sets/realesrgan_inputs/tree_alpha_16bit.png"), cv2.IMREAD_UNCHANGED)
    cv2.imwrite(str(tmp_path / "tree.png"), tree[-140:-40, :100])
    alpha = ours.restore((tmp_path / "tree.png").read_bytes()).after.alpha
    assert np.ptp(alpha) == 65535 and alpha.dtype == np.uint16
    assert distance(alpha, by_reference(reference, tmp_path / "tree.png")[..., 3]) <= 257


def test_dark_16_bit_photo_stays_16_bit(ours, tmp_path, rng):
    """The reference mistakes it for 8 bit, as no value exceeds 255."""
    pixels = rng.integers(0, 256, (40, 40, 3), dtype=np.uint16)
    cv2.imwrite(str(tmp_path / "dark.png"), pixels)
    result = ours.restore((tmp_path / "dark.png").read_bytes())
    assert result.after.pixels.dtype == np.uint16
    assert result.after.pixels.max() < 2000


@pytest.mark.slow
def test_tiled_and_untiled_results_are_equal(ours, shared):
    files = sorted((shared / "sets/set14").glob("*_LR.png"))
    assert len(files) == 14
    for i, file in enumerate(sampled(files, 2)):
        data = file.read_bytes()
        untiled, tiled = ours.restore(data), ours.restore(data, tile=32 if i < 1 else 64)
        assert distance(tiled.after.pixels, untiled.after.pixels) == 0, file.name


@pytest.mark.slow
def test_denoise_interpolates_between_the_two_checkpoints(ours, weights, shared):
    data = _crop((shared / "sets/realsrset/oldphoto2.png").read_bytes(), 96)
    full, half, none = (ours.restore(data, denoise=d).after.pixels.astype(int) for d in (1, 0.5, 0))
    other = restorer.load("custom/realesr-general-wdn-x4v3", weights=weights, device="cpu").restore(data)
    assert distance(none, other.after.pixels) == 0
    assert distance(full, none) > 8
    assert abs(half - full).mean() < abs(none - full).mean()
    assert abs(half - none).mean() < abs(none - full).mean()


def _crop(data: bytes, side: int) -> bytes:
    out = io.BytesIO()
    Image.open(io.BytesIO(data)).convert("RGB").crop((0, 0, side, side)).save(out, "PNG")
    return out.getvalue()


@pytest.mark.long
def test_sample_photos_keep_their_depth_alpha_and_content(shared):
    built_in = restorer.load(registry.BUILT_IN, face_enhance="off", format="same")
    photos = {}  # one of each kind
    for file in sorted((shared / "sets/realesrgan_inputs").iterdir()):
        before = photo.decode(file.read_bytes())
        photos[before.meta.grey, before.alpha is None, before.meta.depth] = file, before
    assert len(photos) == 4
    for file, before in photos.values():
        result = built_in.restore(file.read_bytes())
        after = photo.decode(result.data)
        assert (after.width, after.height) == (before.width * 4, before.height * 4)
        assert after.meta.grey == before.meta.grey
        assert (after.alpha is None) == (before.alpha is None)
        assert after.meta.depth == before.meta.depth
        if before.alpha is None:  # averaged over its noise, the result is the input
            coarse = (before.width // 8, before.height // 8)
            small_before, small_after = (
                np.asarray(Image.fromarray(_to_8_bit(p.pixels)).resize(coarse, Image.Resampling.BOX), int)
                for p in (before, after)
            )
            assert abs(small_before - small_after).mean() < 8, file.name  # 40 or more for another photo


def _to_8_bit(pixels: np.ndarray) -> np.ndarray:
    return (pixels // 257).astype(np.uint8) if pixels.dtype == np.uint16 else pixels
