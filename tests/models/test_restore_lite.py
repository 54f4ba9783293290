"""The model in the box: there from the first start, honest colours, no grid, less noise, sharper edges."""

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
    """(side, side, 3) uint8: a soft background and hard shapes, as they might be photographed."""
    y, x = np.mgrid[:side, :side] / side
    picture = np.dstack([120 + 70 * x, 110 + 60 * y, 160 - 50 * x * y]).astype(np.uint8)
    cv2.circle(picture, (side // 3, side // 3), side // 6, (40, 50, 160), -1, cv2.LINE_AA)
    cv2.rectangle(picture, (side // 2, side // 2), (side * 9 // 10, side * 7 // 10), (210, 200, 60), -1)
    cv2.line(
        picture, (0, side * 9 // 10), (side, side * 6 // 10), (30, 30, 30), max(1, side // 60), cv2.LINE_AA
    )
    return picture


def test_first_photo_needs_nothing_but_the_repository(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "addresses", lambda model: pytest.fail("nothing is to be downloaded"))
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
def test_a_plane_of_colour_keeps_it(lite, colour):
    out = lite(np.full((48, 48, 3), colour, np.uint8)).astype(int)
    assert np.abs(out[32:-32, 32:-32] - colour).max() <= 4
    assert np.abs(out - colour).max() <= 12  # at the picture's border too


def test_no_grid_of_four_pixels_in_smooth_light(lite):
    y, x = np.mgrid[:64, :64]
    ramp = np.dstack([60 + 2 * x, 60 + 2 * y, 190 - x - y]).astype(np.uint8)
    out = lite(ramp).astype(float)[64:-64, 64:-64]
    smooth = cv2.GaussianBlur(lite(ramp).astype(float), (0, 0), 4)[64:-64, 64:-64]
    for axis in (0, 1):
        phases = [np.take(out - smooth, range(phase, 128, 4), axis=axis).mean() for phase in range(4)]
        assert np.ptp(phases) < 1  # of 255 levels: nobody sees that


def test_noise_goes_and_edges_come(lite, rng):
    truth = scene(256)
    small = cv2.resize(truth, (64, 64), interpolation=cv2.INTER_AREA)
    small = np.clip(small + rng.normal(0, 6, small.shape), 0, 255).astype(np.uint8)
    ours, plain = lite(small), degradation.bicubic(small, 256, 256)
    assert cv2.PSNR(ours, truth) > cv2.PSNR(plain, truth) + 0.5
    across = (slice(160, 170), slice(108, 148))  # the rectangle's left edge

    def steepest(picture: np.ndarray) -> float:
        blue = picture[across][..., 2].astype(float)  # the mean of the channels has hardly an edge
        return float(np.abs(np.diff(blue.mean(0))).max())

    assert steepest(ours) > 3 * steepest(plain)


def test_it_is_nearer_to_its_teacher_than_bicubic(lite, shared):
    import torch

    from restorer.inference import engine, tiling
    from restorer.models import architectures

    state = architectures.read_state(shared / "weights/realesr-general-x4v3.pth")
    shape = architectures.detect(state, "teacher")
    run = engine.Engine(architectures.build(shape, state, "teacher"), scale=4, device=torch.device("cpu"))
    found = []
    for number in (3, 7, 15, 20, 23):
        truth = np.array(Image.open(shared / f"sets/kodak24/{number:02}.png"))
        small = degradation.degrade(truth, degradation.RECIPES["default"], seed=number)
        teacher = tiling.run(small, run, scale=4, tile=256, pad=shape.pad)
        plain = degradation.bicubic(small, truth.shape[1], truth.shape[0])
        found.append(quality.figures(lite(small), teacher, plain, truth, False))
        assert found[-1].nearer > 1.5 and found[-1].energy > 0.4
    assert np.mean([one.nearer for one in found]) > 3 and np.mean([one.truth for one in found]) > 0
