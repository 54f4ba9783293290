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


class Plain(nn.Module):
    """Gives its input back; remembers what it was called with."""

    def __init__(self):
        super().__init__()
        self.one, self.seen, self.arguments = nn.Parameter(torch.ones(1)), [], []

    def forward(self, x, **arguments):
        self.seen.append(x.clone())
        self.arguments.append(arguments)
        return x * self.one


def levels(dtype):
    """(512, 512, 3) with every level of a dtype in each channel."""
    ramp = np.arange(512 * 512) % (np.iinfo(dtype).max + 1)
    return np.stack([ramp, ramp[::-1], np.roll(ramp, 7)], axis=1).reshape(512, 512, 3).astype(dtype)


@pytest.mark.parametrize("half", [False, True])
def test_every_level_survives_an_identity_network(half):
    for dtype, apart in ((np.uint8, 0), (np.uint16, 1)):
        (out,) = FaceEngine(Plain(), device=CPU, half=half)([levels(dtype)])
        assert distance(out, levels(dtype)).max() <= apart
        assert out.dtype == dtype


def test_the_network_sees_rgb_from_minus_one_to_one_and_uses_its_stored_noise():
    network = Plain()
    crop = np.zeros((512, 512, 3), np.uint8)
    crop[5, 9] = 0, 51, 255
    FaceEngine(network, device=CPU)([crop, crop.astype(np.uint16) * 257])
    for seen in network.seen:
        assert seen.shape == (1, 3, 512, 512) and seen.dtype == torch.float32
        assert seen.min() == -1 and seen.max() == 1
        np.testing.assert_allclose(seen[0, :, 5, 9], [-1, -0.6, 1], atol=1e-6)
    assert network.arguments == [{"return_rgb": False, "randomize_noise": False}] * 2
    assert not network.training and not any(weight.requires_grad for weight in network.parameters())


def test_the_first_of_several_outputs_counts_and_is_clamped(rng):
    class Loud(Plain):
        def forward(self, x, **_):
            return x * 1.5, [x * 0]

    crop = photo_like(rng, 512, 512)
    (out,) = FaceEngine(Loud(), device=CPU)([crop])
    expected = np.clip((crop / 127.5 - 1) * 1.5, -1, 1)
    assert np.abs(out - (expected + 1) * 127.5).max() <= 0.51


def test_the_same_crops_give_the_same_bytes(rng):
    torch.manual_seed(0)

    class Convolved(Plain):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x, **_):
            return self.layer(x)

    run = FaceEngine(Convolved(), device=CPU)
    crops = [photo_like(rng, 512, 512) for _ in range(3)]
    first, again = run(crops), run(crops)
    assert [one.tobytes() for one in first] == [one.tobytes() for one in again]
    assert len({one.tobytes() for one in first}) == 3
    assert run([]) == []


class Marked(Plain):
    """Gives NaN, or fails, for crops that are all of a level."""

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
def test_not_a_number_in_one_crop_fails_that_crop_only(monkeypatch, half, size):
    monkeypatch.setitem(engine._BATCH, "cpu", size)
    answers = FaceEngine(Marked(70), device=CPU, half=half)(flat(10, 70, 200, 255, 70))
    assert [isinstance(answer, InvalidOutput) for answer in answers] == [False, True, False, False, True]
    assert [int(answers[index].mean()) for index in (0, 2, 3)] == [10, 200, 255]


class HalfBroken(Marked):
    """Fails as Marked does, but only in reduced precision."""

    def forward(self, x, **_):
        self.seen.append((torch.is_autocast_enabled("cpu"), len(x)))
        return super().forward(x) if torch.is_autocast_enabled("cpu") else x * self.one


def test_a_crop_that_fails_in_half_precision_is_done_again_alone_in_full(monkeypatch):
    monkeypatch.setitem(engine._BATCH, "cpu", 3)
    network = HalfBroken(70)
    answers = FaceEngine(network, device=CPU, half=True)(flat(10, 70, 200))
    assert [int(answer.mean()) for answer in answers] == [10, 70, 200]
    assert network.seen == [(True, 3), (False, 1)]


@pytest.mark.parametrize("error", [RuntimeError(NO_MEMORY), MemoryError(), torch.OutOfMemoryError("CUDA")])
@pytest.mark.parametrize("size", [1, 4])
def test_a_crop_that_does_not_fit_into_memory_fails_alone(monkeypatch, error, size):
    monkeypatch.setitem(engine._BATCH, "cpu", size)
    answers = FaceEngine(Marked(70, error), device=CPU)(flat(10, 70, 200, 255))
    assert [isinstance(answer, OutOfMemory) for answer in answers] == [False, True, False, False]
    assert [int(answers[index].mean()) for index in (0, 2, 3)] == [10, 200, 255]


def test_other_failures_of_a_network_are_not_swallowed():
    with pytest.raises(RuntimeError, match="shape mismatch"):
        FaceEngine(Marked(70, RuntimeError("shape mismatch")), device=CPU)(flat(70))


class Classes(nn.Module):
    """Says of every pixel that it is of the class in its red channel."""

    def forward(self, x):
        classes = ((x[:, 0] + 1) * 127.5).round().long().clamp(0, 18)
        return nn.functional.one_hot(classes, 19).permute(0, 3, 1, 2).float(), x


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_parsing_takes_skin_and_features_and_leaves_hair_hat_neck_and_clothes(dtype):
    bands = np.repeat(np.arange(16), 32)  # of one class each, but for what lies between
    for name, classes, expected in (("face", range(1, 13), 1), ("rest", (0, 13, 14, 15, 16, 17, 18), 0)):
        crop = np.zeros((512, 512, 3), dtype)
        crop[..., 0] = np.resize(list(classes), 16)[bands][:, None]
        crop = crop * dtype(257 if dtype == np.uint16 else 1)
        mask = ParseNet(Classes(), device=CPU)(crop)
        assert mask.shape == (512, 512) and mask.dtype == np.float32
        np.testing.assert_allclose(mask, expected, atol=1e-4, err_msg=name)


def test_a_parsed_mask_is_soft_and_within_bounds():
    crop = np.zeros((512, 512, 3), np.uint8)
    crop[150:350, 100:400, 0] = 1  # skin
    mask = ParseNet(Classes(), device=CPU)(crop)
    assert mask[250, 250] > 0.99 and mask[50, 50] < 1e-3 and abs(mask[150, 250] - 0.5) < 0.05
    assert mask.min() >= 0 and mask.max() <= 1 + 1e-6
    assert np.abs(np.diff(mask, axis=0)).max() < 0.05
