"""Metrics agree with scikit-image, basicsr, lpips and published results."""

import math
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from restorer.evaluation import degradation, metrics
from restorer.models import compat
from tests.conftest import photo_like


@pytest.fixture
def pair(rng) -> tuple[np.ndarray, np.ndarray]:
    truth = photo_like(rng, 60, 77)
    noisy = np.clip(truth + rng.normal(0, 12, truth.shape), 0, 255).astype(np.uint8)
    return truth, noisy


@pytest.mark.parametrize("border", [0, 4])
def test_rgb_psnr_and_ssim_match_scikit_image(pair, border):
    inner = [image[border : 60 - border, border : 77 - border] for image in pair]
    assert metrics.psnr(*pair, border=border) == pytest.approx(peak_signal_noise_ratio(*inner), abs=1e-9)
    expected = structural_similarity(
        *inner, channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    assert metrics.ssim(*pair, border=border) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("y", [False, True])
@pytest.mark.parametrize("name", ["psnr", "ssim"])
def test_psnr_and_ssim_match_basicsr(pair, name, y):
    reference = compat.load_attribute("basicsr.metrics.psnr_ssim", f"calculate_{name}")
    expected = reference(pair[0][..., ::-1], pair[1][..., ::-1], crop_border=3, test_y_channel=y)
    assert getattr(metrics, name)(*pair, border=3, y=y) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("y", [False, True])
def test_16_bit_images_score_like_8_bit_ones(pair, y):
    deep = [image.astype(np.uint16) * 257 for image in pair]
    assert metrics.psnr(*deep, y=y) == pytest.approx(metrics.psnr(*pair, y=y), abs=1e-9)
    assert metrics.ssim(*deep, y=y) == pytest.approx(metrics.ssim(*pair, y=y), abs=1e-9)
    assert metrics.sharpness(deep[1]) == pytest.approx(metrics.sharpness(pair[1]), rel=0.01)
    assert metrics.blockiness(deep[1]) == pytest.approx(metrics.blockiness(pair[1]), rel=0.01)


def test_equal_images_score_best_and_too_small_images_score_nan(pair):
    truth = pair[0]
    assert metrics.psnr(truth, truth) == math.inf
    assert metrics.ssim(truth, truth) == pytest.approx(1)
    assert math.isnan(metrics.ssim(truth[:10], truth[:10]))
    assert math.isnan(metrics.niqe(truth))
    assert math.isnan(metrics.blockiness(np.full((40, 40, 3), 9, np.uint8)))


def test_images_of_different_shape_or_dtype_raise_value_error(pair):
    with pytest.raises(ValueError, match=r"cannot compare \(60, 77, 3\) uint8 with \(60, 76, 3\)"):
        metrics.psnr(pair[0], pair[1][:, 1:])
    with pytest.raises(ValueError, match="uint16"):
        metrics.ssim(pair[0], pair[1].astype(np.uint16))


@pytest.mark.parametrize(("name", "psnr", "ssim"), [("set5", 28.43, 0.8113), ("set14", 26.09, 0.7049)])
def test_bicubic_reaches_its_published_psnr_and_ssim(shared, name, psnr, ssim):
    scores = []
    for file in sorted((shared / "sets" / name).glob("*LR.png")):
        small, truth = (
            np.asarray(Image.open(path).convert("RGB"))
            for path in (file, file.with_name(file.name.replace("LR", "HR")))
        )
        large = degradation.matlab_bicubic(small, 4)
        truth = truth[: large.shape[0], : large.shape[1]]
        scores.append(
            (metrics.psnr(truth, large, border=4, y=True), metrics.ssim(truth, large, border=4, y=True))
        )
    assert np.mean(scores, axis=0) == pytest.approx((psnr, ssim), abs=0.005)


def test_niqe_matches_basicsr_and_rises_with_noise(rng):
    reference = compat.load_attribute("basicsr.metrics.niqe", "calculate_niqe")
    photo = photo_like(rng, 200, 300)
    noisy = np.clip(photo + rng.normal(0, 40, photo.shape), 0, 255).astype(np.uint8)
    expected = reference(noisy[4:-4, 4:-4, ::-1].astype(np.float32), crop_border=0)
    assert metrics.niqe(noisy, border=4) == pytest.approx(float(expected))
    assert metrics.niqe(noisy) > metrics.niqe(photo)


def test_blockiness_rises_only_for_blocks_on_the_8_pixel_grid(rng):
    smooth = cv2.GaussianBlur(rng.integers(0, 256, (96, 96, 3), np.uint8), (0, 0), 3)
    coded = cv2.imdecode(cv2.imencode(".jpg", smooth, (cv2.IMWRITE_JPEG_QUALITY, 8))[1], cv2.IMREAD_COLOR)
    assert metrics.blockiness(smooth) == pytest.approx(1, abs=0.15)
    assert metrics.blockiness(coded) > 1.5
    assert metrics.blockiness(coded[3:, 3:]) < 1, "the same blocks, off the grid"


def test_sharpness_falls_with_blur(pair):
    assert metrics.sharpness(cv2.GaussianBlur(pair[1], (0, 0), 2)) < metrics.sharpness(pair[1]) / 2
    steps = np.zeros((4, 4, 3), np.uint8)
    steps[:, 2:] = 30  # one of the three differences in a row is 30; columns have none
    assert metrics.sharpness(steps) == pytest.approx(300)


def test_consistency_is_high_for_a_plain_enlargement_and_low_for_changed_colours(pair):
    before = pair[0]
    large = np.repeat(np.repeat(before, 4, 0), 4, 1)
    assert metrics.consistency(before, large) > 30
    assert metrics.consistency(before, large // 2) < 12


def test_drift_rises_with_movement_and_ignores_brightness_and_sharpness():
    from skimage import data

    face = cv2.resize(data.astronaut()[0:256, 96:352], (512, 512))
    mask = np.zeros((512, 512), np.float32)
    mask[64:448, 64:448] = 1
    assert metrics.drift(face, face, mask) == pytest.approx(0, abs=1e-9)
    assert metrics.drift(face, (face * 0.7 + 40).astype(np.uint8), mask) < 0.001
    sharper = cv2.addWeighted(face, 1.5, cv2.GaussianBlur(face, (0, 0), 2), -0.5, 0)
    assert metrics.drift(face, sharper, mask) < 0.005
    moved = [metrics.drift(face, np.roll(face, shift, axis=1), mask) for shift in (4, 16, 48)]
    assert 0.002 < moved[0] < moved[1] < moved[2]
    flat = np.full_like(face, 80)
    assert metrics.drift(face, flat, mask) == pytest.approx(1), "no structure left"
    assert metrics.drift(flat, flat, mask) == 0


@pytest.mark.long
def test_lpips_with_its_own_network(tmp_path):
    """With seeded weights in place of torchvision's, which lpips would download."""
    script = """
import numpy as np, torch, torchvision
from torch import hub
from pathlib import Path
from restorer.evaluation import metrics
assert "does not exist" in metrics.lpips_missing()
torch.manual_seed(0)
folder = Path(hub.get_dir()) / "checkpoints"
folder.mkdir(parents=True)
torch.save(torchvision.models.alexnet(weights=None).state_dict(), folder / "alexnet-owt-7be5be79.pth")
assert metrics.lpips_missing() == ""
rng = np.random.default_rng(0)
image = rng.integers(0, 256, (96, 96, 3), np.uint8)
near = np.clip(image.astype(int) + rng.integers(-9, 10, image.shape), 0, 255).astype(np.uint8)
assert metrics.lpips(image, image) == 0
assert 0 < metrics.lpips(image, near) < metrics.lpips(image, 255 - image)
deep = [array.astype(np.uint16) * 257 for array in (image, near)]
assert metrics.lpips(*deep) == metrics.lpips(image, near)
"""
    subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "TORCH_HOME": str(tmp_path)},
        cwd=Path(__file__).parents[2],
        check=True,
    )
