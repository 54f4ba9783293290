"""Odd photos at every scale: the same bytes at any tile size, at most one level between backends."""

from itertools import product

import cv2
import numpy as np
import pytest
import skimage.data

import restorer
from restorer.inference import upscale
from tests.conftest import sampled, sweep

SMALL, LARGE = "realesr-animevideov3", "RealESRGAN_x4plus"
_SCENE = np.dstack([skimage.data.astronaut()[::-1], skimage.data.camera()])
# height, width, kind, outscale
PHOTOS = [
    (1, 1, "rgb", 4),
    (1, 97, "rgb", 8),
    (3, 700, "rgb", 4),
    (700, 3, "rgb", 1),
    (2, 2, "rgba", 5),
    (79, 67, "rgba", 4),
    (61, 97, "grey", 3),
    (33, 32, "grey", 1),
    (55, 83, "rgb 16", 4),
    (31, 35, "rgba 16", 7),
    (65, 64, "rgb", 1.5),
    (100, 130, "rgb", 2),
    (34, 33, "grey 16", 6),
]


def png(height: int, width: int, kind: str) -> bytes:
    """A part of a real photo as a PNG file, its alpha that of another photo."""
    mode, _, depth = kind.partition(" ")
    scene = np.pad(_SCENE, ((0, 512), (0, 512), (0, 0)), "reflect")
    pixels = scene[100 : 100 + height, 150 : 150 + width]
    if depth:
        pixels = pixels.astype(np.uint16) * 255 + np.arange(width, dtype=np.uint16)[:, None]
    pixels = {"rgb": pixels[..., :3], "grey": pixels[..., 0], "rgba": pixels}[mode]
    return cv2.imencode(".png", pixels)[1].tobytes()


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    """Return a Restorer for a model and a backend; results are PNG files."""
    weights, loaded = tmp_path_factory.mktemp("weights"), {}

    def get(model: str, backend: str) -> restorer.Restorer:
        if (model, backend) not in loaded:
            loaded[model, backend] = restorer.load(
                model, weights=weights, device=backend, face_enhance="off", format="png"
            )
        return loaded[model, backend]

    return get


@pytest.mark.parametrize(
    ("model", "photo"),
    [
        *product([SMALL], PHOTOS),
        *(pytest.param(LARGE, p, marks=pytest.mark.long) for p in sampled(PHOTOS[7:], 1)),
    ],
)
def test_tile_size_does_not_change_the_file(load, model, photo):
    height, width, kind, outscale = photo
    run, data = load(model, "cpu:torch"), png(height, width, kind)
    tiled, whole = (run.restore(data, outscale=outscale, tile=t, keep_metadata=False) for t in (32, 1024))
    assert whole.data == tiled.data
    assert (whole.width, whole.height) == upscale.output_size(width, height, outscale)
    assert whole.before.meta.depth == whole.after.meta.depth == (16 if "16" in kind else 8)
    assert (whole.after.alpha is None) == ("rgba" not in kind)


@sweep("backend, photo", ["cpu:openvino", "cpu:ncnn"], PHOTOS, count=13)
def test_backends_differ_by_one_level_at_most(load, backend, photo):
    height, width, kind, outscale = photo
    data = png(height, width, kind)
    expected, result = (load(SMALL, name).restore(data, outscale=outscale) for name in ("cpu:torch", backend))
    level = 257 if "16" in kind else 1
    assert np.abs(result.after.pixels.astype(int) - expected.after.pixels).max() <= level
    if "rgba" in kind:
        assert np.abs(result.after.alpha.astype(int) - expected.after.alpha).max() <= level
