"""Filling changes the mask only; a tile's size does not change the result."""

import numpy as np
import pytest
import safetensors.torch
import torch

from restorer.repair import damage, networks

CPU = torch.device("cpu")


def image(height, width, dtype=np.uint8, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, np.iinfo(dtype).max + 1, (height, width, 3), dtype=dtype)


@pytest.fixture(scope="module")
def filler():
    torch.manual_seed(0)
    return networks.Filler().eval()


@pytest.fixture(scope="module")
def detector():
    torch.manual_seed(0)
    return networks.Detector().eval()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_filling_changes_only_the_mask(filler, dtype):
    photo = image(70, 90, dtype)
    hole = np.zeros((70, 90), bool)
    hole[20:40, 30:33] = hole[69, 89] = True
    before = photo.copy()
    filled = damage.fill(photo, hole, filler)
    assert filled.dtype == dtype
    assert np.array_equal(filled[~hole], photo[~hole])
    assert (filled[hole] != photo[hole]).any(-1).all()
    assert np.array_equal(photo, before)


def test_values_under_the_mask_do_not_matter(filler):
    photo, hole = image(64, 64), np.zeros((64, 64), bool)
    hole[10:50, 20:26] = True
    other = np.where(hole[..., None], image(64, 64, seed=1), photo)
    assert np.array_equal(damage.fill(photo, hole, filler), damage.fill(other, hole, filler))


def test_no_mask_no_change(filler):
    photo = image(65, 64)
    assert np.array_equal(damage.fill(photo, np.zeros((65, 64), bool), filler), photo)


@pytest.mark.slow
def test_tiles_do_not_change_the_result(filler, detector):
    photo = image(100, 900)
    hole = np.zeros((100, 900), bool)
    hole[:, 40:840:7] = hole[30:70, 500:600] = True
    whole, tiled = (damage.fill(photo, hole, filler, tile=tile).astype(int) for tile in (1024, 128))
    assert np.abs(whole - tiled).max() <= 1  # convolutions of another size round differently
    assert (whole != tiled).mean() < 1e-3
    whole, tiled = (damage.detect(photo, detector, tile=tile) for tile in (1024, 128))
    assert np.abs(whole - tiled).max() < 1e-5


def test_reach_covers_all_that_a_pixel_depends_on():
    for network, masked in ((networks.Detector(), False), (networks.Filler(), True)):
        for parameter in network.parameters():
            parameter.data.abs_()
        photo = torch.rand(1, 3, 64, 1024, requires_grad=True)
        hole = torch.zeros(1, 1, 64, 1024)
        hole[..., 300:700] = 1
        for place in (511, 512):
            output = network(photo, hole) if masked else network(photo)
            (slopes,) = torch.autograd.grad(output[0, :, 20, place].sum(), photo)
            columns = slopes.abs().sum((0, 1, 2)).nonzero()
            assert (columns - place).abs().max() <= network.reach


def test_sensitivity_marks_more(detector):
    probability = np.random.default_rng(0).random((40, 40), dtype=np.float32)
    few, many = (damage.mask(probability, sensitivity) for sensitivity in (0.01, 0.1))
    assert 0 < few.sum() < many.sum()
    assert not (few & ~many).any()


@pytest.mark.parametrize("network", [networks.Detector, networks.Filler])
def test_weights_load_as_float32(network, tmp_path):
    state = {name: value.half() for name, value in network().state_dict().items()}
    safetensors.torch.save_file(state, tmp_path / "weights.safetensors")
    loaded = damage.load(network(), tmp_path / "weights.safetensors", CPU)
    assert all(torch.equal(value, state[name].float()) for name, value in loaded.state_dict().items())


def test_average_fill_keeps_a_flat_image_flat():
    hole = torch.zeros(1, 1, 64, 128)
    hole[..., 10:60, 20:90] = 1
    flat = torch.full((1, 3, 64, 128), 0.3)
    assert torch.allclose(networks.average_fill(torch.where(hole > 0, 0.9, flat), hole), flat, atol=1e-5)
