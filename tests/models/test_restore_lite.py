"""The built-in model: needs no download, keeps colours, has no grid, removes noise, sharpens edges."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image

import restorer
from bench import quality
from restorer.evaluation import degradation
from restorer.models import download, registry

NAME = "restore-lite-x4"


@pytest.fixture(scope="module")
def lite():
    return quality.network(NAME)


def scene(side: int) -> np.ndarray:
    """Return (side, side, 3) uint8: a smooth background with hard-edged shapes."""
    y, x = np.mgrid[:side, :side] / side
    image = np.dstack([120 + 70 * x, 110 + 60 * y, 160 - 50 * x * y]).astype(np.uint8)
    cv2.circle(image, (side // 3, side // 3), side // 6, (40, 50, 160), -1, cv2.LINE_AA)
    cv2.rectangle(image, (side // 2, side // 2), (side * 9 // 10, side * 7 // 10), (210, 200, 60), -1)
    cv2.line(
        image, (0, side * 9 // 10), (side, side * 6 // 10), (30, 30, 30), max(1, side // 60), cv2.LINE_AA
    )
    return image


def test_first_photo_needs_no_download(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "addresses", lambda model: pytest.fail("unexpected download"))
    photo = io.BytesIO()
    Image.fromarray(scene(48)).save(photo, "PNG")
    result = restorer.load(weights=tmp_path).restore(photo.getvalue())
    assert (result.model, result.width, result.height) == (NAME, 192, 192)


def test_file_is_half_precision(lite):
    from safetensors import safe_open

    with safe_open(
        registry.path(registry.find(NAME, registry.weights_folder()), registry.weights_folder()), "pt"
    ) as file:
        assert {file.get_slice(key).get_dtype() for key in file.keys()} == {"F16"}  # noqa: SIM118


@pytest.mark.parametrize(
    "colour", [(0, 0, 0), (255, 255, 255), (128, 128, 128), (200, 60, 30), (20, 90, 210)]
)
def test_uniform_colour_is_preserved(lite, colour):
    out = lite(np.full((48, 48, 3), colour, np.uint8)).astype(int)
    assert np.abs(out[32:-32, 32:-32] - colour).max() <= 4
    assert np.abs(out - colour).max() <= 12  # including the border


def test_smooth_gradient_has_no_grid_of_four_pixels(lite):
    y, x = np.mgrid[:64, :64]
    ramp = np.dstack([60 + 2 * x, 60 + 2 * y, 190 - x - y]).astype(np.uint8)
    out = lite(ramp).astype(float)[64:-64, 64:-64]
    smooth = cv2.GaussianBlur(lite(ramp).astype(float), (0, 0), 4)[64:-64, 64:-64]
    for axis in (0, 1):
        phases = [np.take(out - smooth, range(phase, 128, 4), axis=axis).mean() for phase in range(4)]
        assert np.ptp(phases) < 1  # of 255 levels, which is invisible


def test_noise_is_removed_and_edges_are_sharpened(lite, rng):
    truth = scene(256)
    small = cv2.resize(truth, (64, 64), interpolation=cv2.INTER_AREA)
    small = np.clip(small + rng.normal(0, 6, small.shape), 0, 255).astype(np.uint8)
    result, bicubic = lite(small), degradation.bicubic(small, 256, 256)
    assert cv2.PSNR(result, truth) > cv2.PSNR(bicubic, truth) + 0.5
    edge = (slice(160, 170), slice(108, 148))  # left side of the rectangle

    def steepness(image: np.ndarray) -> float:
        blue = image[edge][..., 2].astype(float)  # the edge is weak in the channels' mean
        return float(np.abs(np.diff(blue.mean(0))).max())

    assert steepness(result) > 3 * steepness(bicubic)


def test_output_is_closer_to_the_teacher_than_bicubic(lite, shared):
    import torch

    from restorer.inference import engine, tiling
    from restorer.models import architectures

    state = architectures.read_state(shared / "weights/realesr-general-x4v3.pth")
    spec = architectures.detect(state, "teacher")
    network = engine.Engine(architectures.build(spec, state, "teacher"), scale=4, device=torch.device("cpu"))
    figures = []
    for number in (3, 7, 15, 20, 23):
        truth = np.array(Image.open(shared / f"sets/kodak24/{number:02}.png"))
        small = degradation.degrade(truth, degradation.RECIPES["default"], seed=number)
        teacher = tiling.run(small, network, scale=4, tile=256, pad=spec.pad)
        bicubic = degradation.bicubic(small, truth.shape[1], truth.shape[0])
        figures.append(quality.figures(lite(small), teacher, bicubic, truth, False))
        assert figures[-1].nearer > 1.5 and figures[-1].energy > 0.4
    assert np.mean([row.nearer for row in figures]) > 3 and np.mean([row.truth for row in figures]) > 0
