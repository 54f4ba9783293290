"""How the built-in model is made: repeatable pairs, a run that can be stopped anywhere, weights that load."""

import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from restorer.models import architectures
from tests.conftest import photo_like, save_network
from training import degrade, learn, pairs

ROOT = Path(__file__).parents[1]
PLAN = learn.Plan(features=8, convs=1, steps=6, batch=2, side=24)


@pytest.fixture
def photos(tmp_path) -> Path:
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    rng = np.random.default_rng(1)
    for number, size in enumerate(((700, 900), (540, 560), (150, 130))):
        Image.fromarray(photo_like(rng, *size)).save(folder / ("more" if number else ".") / f"{number}.png")
    return folder


@pytest.fixture
def few(monkeypatch) -> None:
    """Shards of four pairs of 32 pixels."""
    monkeypatch.setattr(pairs, "SHARD", 4)
    monkeypatch.setattr(degrade, "SIDE", 32)


class Teacher(torch.nn.Module):
    """Nearest-neighbour enlargement, upside down in brightness: what it says of a picture is known."""

    def __init__(self) -> None:
        super().__init__()
        self.one = torch.nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.one - x.repeat_interleave(4, -1).repeat_interleave(4, -2)


@pytest.mark.parametrize("kind", [degrade._light, degrade._heavy, degrade._native, degrade._aliased])
def test_every_kind_of_picture_is_whole_and_repeatable(kind, rng):
    photo = photo_like(rng, 600, 700)
    made = []
    for seed in (0, 1, 2, 3, 0):
        random.seed(seed)
        np.random.seed(seed)
        made.append(kind(photo))
        assert made[-1].shape == (degrade.SIDE, degrade.SIDE, 3)
        assert np.isfinite(made[-1]).all() and made[-1].min() > -0.5 and made[-1].max() < 1.5
        assert made[-1].std() > 0.02
    assert np.array_equal(made[0], made[4]) and not np.array_equal(made[0], made[1])


def test_picture_keeps_its_colours(rng):
    """Red stays red through the JPEG round, which takes its channels in another order."""
    photo = photo_like(rng, 600, 600) // 6 + np.uint8((170, 100, 50))
    for seed in range(12):
        random.seed(seed)
        np.random.seed(seed)
        kind = (degrade._light, degrade._heavy, degrade._native)[seed % 3]
        assert (
            np.abs(kind(photo).mean((0, 1)) * 255 - photo.mean((0, 1))).max() < 25
        )  # red and blue lie 120 apart


def test_pairs_are_what_the_teacher_says_and_are_made_once(photos, few, tmp_path):
    shards = pairs.make(tmp_path / "pairs", photos, Teacher(), shards=2, seed=3)
    for small, target in shards:
        assert small.shape == (4, 32, 32, 3) and target.shape == (4, 128, 128, 3)
        assert small.dtype == target.dtype == np.uint8
        assert np.array_equal(target, 255 - small.repeat(4, 1).repeat(4, 2))
    assert not np.array_equal(shards[0].small, shards[1].small)
    first = (tmp_path / "pairs/small-00000.npy").read_bytes()
    (tmp_path / "pairs/target-00001.npy").unlink()  # as if it had been stopped in the second
    times = (tmp_path / "pairs/target-00000.npy").stat().st_mtime_ns
    again = pairs.make(tmp_path / "pairs", photos, Teacher(), shards=2, seed=3)
    assert np.array_equal(again[1].target, shards[1].target)
    assert (tmp_path / "pairs/target-00000.npy").stat().st_mtime_ns == times
    other = pairs.make(tmp_path / "other", photos, Teacher(), shards=1, seed=4)
    assert (tmp_path / "pairs/small-00000.npy").read_bytes() == first
    assert not np.array_equal(other[0].small, shards[0].small)


def test_no_photographs_is_told(tmp_path):
    with pytest.raises(SystemExit, match="no photographs in"):
        pairs.make(tmp_path / "pairs", tmp_path, Teacher(), shards=1, seed=0)


def run_of(plan: learn.Plan, folder: Path) -> learn.Run:
    return learn.Run(plan, torch.device("cpu"), folder / "checkpoint.pt")


def finished(run: learn.Run, shards: list[pairs.Shard]) -> dict[str, torch.Tensor]:
    for _ in learn.learn(run, shards, shards[:1]):
        pass
    return run.state()


@pytest.fixture
def shards(photos, few, tmp_path) -> list[pairs.Shard]:
    return pairs.make(tmp_path / "pairs", photos, Teacher(), shards=2, seed=0)


def test_a_stopped_run_goes_on_to_the_same_weights(shards, tmp_path, monkeypatch):
    monkeypatch.setattr(learn, "_EVERY", 2)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole = finished(run_of(PLAN, tmp_path / "a"), shards)
    stopped = run_of(PLAN, tmp_path / "b")
    lines = learn.learn(stopped, shards, shards[:1])
    next(lines)
    next(lines)
    lines.close()
    taken_up = run_of(PLAN, tmp_path / "b")
    assert taken_up.step == 4
    for name, tensor in finished(taken_up, shards).items():
        assert torch.equal(tensor, whole[name]), name
    assert run_of(PLAN, tmp_path / "b").step == 6


def test_it_learns_what_the_teacher_does(shards, tmp_path):
    plan = replace(PLAN, steps=100, rate=1e-2, energy=0)
    run = run_of(plan, tmp_path)
    batch = next(learn.batches(shards, plan, 0))

    def cost() -> float:
        target = batch[1].float() / 255
        return float(learn.loss(run.forward(batch[0], run.mean), target, plan))

    before = cost()
    finished(run, shards)
    assert cost() < 0.7 * before


def test_what_is_saved_is_the_network_that_was_trained(shards, tmp_path):
    run = run_of(PLAN, tmp_path)
    state = finished(run, shards)
    assert all(tensor.dtype == torch.float16 for tensor in state.values())
    loaded = {name: tensor.float() for name, tensor in state.items()}
    network = architectures.build(architectures.detect(loaded, "test"), loaded, "test")
    small = torch.from_numpy(shards[0].small[:1].copy()).permute(0, 3, 1, 2)
    with torch.inference_mode():
        assert torch.allclose(network(small.float() / 255), run.forward(small, run.mean), atol=2e-3)


def test_loss_asks_for_texture_where_l1_would_blur():
    """Against fine noise a grey plane wins by L1; with the strength term, other noise as strong does."""
    torch.manual_seed(0)
    target, other = torch.rand(2, 1, 3, 64, 64)
    grey = torch.full_like(target, 0.5)
    plain, ours = replace(PLAN, gradient=0, energy=0), replace(PLAN, gradient=0, energy=5)
    assert learn.loss(grey, target, plain) < learn.loss(other, target, plain)
    assert learn.loss(grey, target, ours) > learn.loss(other, target, ours)
    assert learn.loss(target, target, ours) == 0


def test_one_command_from_photographs_to_a_weights_file(photos, tmp_path, monkeypatch):
    save_network(tmp_path / "weights/custom/teacher.pth", seed=1)
    monkeypatch.setenv("RESTORER_WEIGHTS", str(tmp_path / "weights"))
    command = [
        sys.executable,
        "-m",
        "training",
        str(photos),
        "--teacher",
        "custom/teacher",
        "--device",
        "cpu",
    ]
    command += [
        "--out",
        str(tmp_path / "out"),
        "--shards",
        "2",
        "--steps",
        "2",
        "--batch",
        "1",
        "--features",
        "8",
    ]
    done = subprocess.run([*command, "--convs", "1"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "step 2 " in done.stdout
    state = architectures.read_state(tmp_path / "out/restore-lite-x4.safetensors")
    assert architectures.detect(state, "made").parameters["num_feat"] == 8
