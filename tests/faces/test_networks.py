import numpy as np
import pytest
import torch
from torch import nn

from restorer.errors import InvalidOutput, OutOfMemory
from restorer.faces import engine
from restorer.faces.engine import FaceEngine
from restorer.faces.parsenet import ParseNet
from tests.conftest import photo_like
from tests.portraits import distance

CPU = torch.device("cpu")
NO_MEMORY = "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"


class Identity(nn.Module):
    """Returns its input; records its calls."""

    def __init__(self):
        super().__init__()
        self.one, self.inputs, self.arguments = nn.Parameter(torch.ones(1)), [], []

    def forward(self, x, **arguments):
        self.inputs.append(x.clone())
        self.arguments.append(arguments)
        return x * self.one


def levels(dtype):
    """(512, 512, 3) with every value of the dtype in each channel."""
    ramp = np.arange(512 * 512) % (np.iinfo(dtype).max + 1)
    return np.stack([ramp, ramp[::-1], np.roll(ramp, 7)], axis=1).reshape(512, 512, 3).astype(dtype)


@pytest.mark.parametrize("half", [False, True])
def test_identity_network_preserves_every_level(half):
    for dtype, tolerance in ((np.uint8, 0), (np.uint16, 1)):
        (out,) = FaceEngine(Identity(), device=CPU, half=half)([levels(dtype)])
        assert distance(out, levels(dtype)).max() <= tolerance
        assert out.dtype == dtype


def test_network_input_is_rgb_in_minus_one_to_one_with_stored_noise():
    network = Identity()
    crop = np.zeros((512, 512, 3), np.uint8)
    crop[5, 9] = 0, 51, 255
    FaceEngine(network, device=CPU)([crop, crop.astype(np.uint16) * 257])
    for batch in network.inputs:
        assert batch.shape == (1, 3, 512, 512) and batch.dtype == torch.float32
        assert batch.min() == -1 and batch.max() == 1
        np.testing.assert_allclose(batch[0, :, 5, 9], [-1, -0.6, 1], atol=1e-6)
    assert network.arguments == [{"return_rgb": False, "randomize_noise": False}] * 2
    assert not network.training and not any(weight.requires_grad for weight in network.parameters())


def test_first_of_several_outputs_is_used_and_clamped(rng):
    class OutOfRange(Identity):
        def forward(self, x, **_):
            return x * 1.5, [x * 0]

    crop = photo_like(rng, 512, 512)
    (out,) = FaceEngine(OutOfRange(), device=CPU)([crop])
    expected = np.clip((crop / 127.5 - 1) * 1.5, -1, 1)
    assert np.abs(out - (expected + 1) * 127.5).max() <= 0.51


def test_results_are_reproducible(rng):
    torch.manual_seed(0)

    class Convolved(Identity):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x, **_):
            return self.layer(x)

    run = FaceEngine(Convolved(), device=CPU)
    crops = [photo_like(rng, 512, 512) for _ in range(3)]
    first, second = run(crops), run(crops)
    assert [one.tobytes() for one in first] == [one.tobytes() for one in second]
    assert len({one.tobytes() for one in first}) == 3
    assert run([]) == []


class FailsOnLevel(Identity):
    """Returns NaN, or raises, for crops filled with one level."""

    def __init__(self, level, error=None):
        super().__init__()
        self.level, self.error = level / 127.5 - 1, error

    def forward(self, x, **_):
        hit = (x - self.level).abs().amax((1, 2, 3)) < 1e-3
        if self.error and hit.any():
            raise self.error
        x = x * self.one
        x[hit, 1, 200, 300] = float("nan")
        return x


def flat(*crop_levels):
    return [np.full((512, 512, 3), level, np.uint8) for level in crop_levels]


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("size", [1, 2, 8])
def test_nan_fails_only_its_own_crop(monkeypatch, half, size):
    monkeypatch.setitem(engine._BATCH, "cpu", size)
    results = FaceEngine(FailsOnLevel(70), device=CPU, half=half)(flat(10, 70, 200, 255, 70))
    assert [isinstance(result, InvalidOutput) for result in results] == [False, True, False, False, True]
    assert [int(results[index].mean()) for index in (0, 2, 3)] == [10, 200, 255]


class FailsInHalf(FailsOnLevel):
    """Fails only in reduced precision."""

    def forward(self, x, **_):
        self.inputs.append((torch.is_autocast_enabled("cpu"), len(x)))
        return super().forward(x) if torch.is_autocast_enabled("cpu") else x * self.one


def test_only_the_crop_that_fails_is_recomputed_in_float32(monkeypatch):
    monkeypatch.setitem(engine._BATCH, "cpu", 3)
    network = FailsInHalf(70)
    results = FaceEngine(network, device=CPU, half=True)(flat(10, 70, 200))
    assert [int(result.mean()) for result in results] == [10, 70, 200]
    assert network.inputs == [(True, 3), (False, 1)]


@pytest.mark.parametrize("error", [RuntimeError(NO_MEMORY), MemoryError(), torch.OutOfMemoryError("CUDA")])
@pytest.mark.parametrize("size", [1, 4])
def test_out_of_memory_fails_only_its_own_crop(monkeypatch, error, size):
    monkeypatch.setitem(engine._BATCH, "cpu", size)
    results = FaceEngine(FailsOnLevel(70, error), device=CPU)(flat(10, 70, 200, 255))
    assert [isinstance(result, OutOfMemory) for result in results] == [False, True, False, False]
    assert [int(results[index].mean()) for index in (0, 2, 3)] == [10, 200, 255]


def test_other_errors_of_a_network_propagate():
    with pytest.raises(RuntimeError, match="shape mismatch"):
        FaceEngine(FailsOnLevel(70, RuntimeError("shape mismatch")), device=CPU)(flat(70))


class Classes(nn.Module):
    """Classifies each pixel by its red channel."""

    def forward(self, x):
        classes = ((x[:, 0] + 1) * 127.5).round().long().clamp(0, 18)
        return nn.functional.one_hot(classes, 19).permute(0, 3, 1, 2).float(), x


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_parsing_mask_covers_the_face_but_not_hair_hat_neck_and_clothes(dtype):
    bands = np.repeat(np.arange(16), 32)  # of one class each
    for name, classes, expected in (("face", range(1, 13), 1), ("rest", (0, 13, 14, 15, 16, 17, 18), 0)):
        crop = np.zeros((512, 512, 3), dtype)
        crop[..., 0] = np.resize(list(classes), 16)[bands][:, None]
        crop = crop * dtype(257 if dtype == np.uint16 else 1)
        mask = ParseNet(Classes(), device=CPU)(crop)
        assert mask.shape == (512, 512) and mask.dtype == np.float32
        np.testing.assert_allclose(mask, expected, atol=1e-4, err_msg=name)


def test_parsing_mask_is_soft_and_within_bounds():
    crop = np.zeros((512, 512, 3), np.uint8)
    crop[150:350, 100:400, 0] = 1  # skin
    mask = ParseNet(Classes(), device=CPU)(crop)
    assert mask[250, 250] > 0.99 and mask[50, 50] < 1e-3 and abs(mask[150, 250] - 0.5) < 0.05
    assert mask.min() >= 0 and mask.max() <= 1 + 1e-6
    assert np.abs(np.diff(mask, axis=0)).max() < 0.05
