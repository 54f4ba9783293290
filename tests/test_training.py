"""Training of the built-in model: reproducible pairs, resumable runs, weights that load."""

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
def small_shards(monkeypatch) -> None:
    """Shards of four pairs of 32 pixels."""
    monkeypatch.setattr(pairs, "SHARD", 4)
    monkeypatch.setattr(degrade, "SIDE", 32)


class Teacher(torch.nn.Module):
    """Inverts brightness and upscales by nearest neighbour."""

    def __init__(self) -> None:
        super().__init__()
        self.one = torch.nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.one - x.repeat_interleave(4, -1).repeat_interleave(4, -2)


@pytest.mark.parametrize("recipe", [degrade._light, degrade._heavy, degrade._native, degrade._aliased])
def test_recipe_output_is_valid_and_reproducible(recipe, rng):
    photo = photo_like(rng, 600, 700)
    images = []
    for seed in (0, 1, 2, 3, 0):
        random.seed(seed)
        np.random.seed(seed)
        images.append(recipe(photo))
        assert images[-1].shape == (degrade.SIDE, degrade.SIDE, 3)
        assert np.isfinite(images[-1]).all() and images[-1].min() > -0.5 and images[-1].max() < 1.5
        assert images[-1].std() > 0.02
    assert np.array_equal(images[0], images[4]) and not np.array_equal(images[0], images[1])


def test_recipes_preserve_colours(rng):
    """OpenCV's JPEG codec uses BGR; red and blue of this photo are 120 levels apart."""
    photo = photo_like(rng, 600, 600) // 6 + np.uint8((170, 100, 50))
    for seed in range(12):
        random.seed(seed)
        np.random.seed(seed)
        recipe = (degrade._light, degrade._heavy, degrade._native)[seed % 3]
        assert np.abs(recipe(photo).mean((0, 1)) * 255 - photo.mean((0, 1))).max() < 25


def test_pairs_hold_the_teachers_output_and_are_created_once(photos, small_shards, tmp_path):
    shards = pairs.create(tmp_path / "pairs", photos, Teacher(), shards=2, seed=3)
    for small, target in shards:
        assert small.shape == (4, 32, 32, 3) and target.shape == (4, 128, 128, 3)
        assert small.dtype == target.dtype == np.uint8
        assert np.array_equal(target, 255 - small.repeat(4, 1).repeat(4, 2))
    assert not np.array_equal(shards[0].small, shards[1].small)
    first = (tmp_path / "pairs/small-00000.npy").read_bytes()
    (tmp_path / "pairs/target-00001.npy").unlink()  # as if interrupted in the second shard
    modified = (tmp_path / "pairs/target-00000.npy").stat().st_mtime_ns
    resumed = pairs.create(tmp_path / "pairs", photos, Teacher(), shards=2, seed=3)
    assert np.array_equal(resumed[1].target, shards[1].target)
    assert (tmp_path / "pairs/target-00000.npy").stat().st_mtime_ns == modified
    other = pairs.create(tmp_path / "other", photos, Teacher(), shards=1, seed=4)
    assert (tmp_path / "pairs/small-00000.npy").read_bytes() == first
    assert not np.array_equal(other[0].small, shards[0].small)


def test_folder_without_photographs_raises(tmp_path):
    with pytest.raises(SystemExit, match="no photographs in"):
        pairs.create(tmp_path / "pairs", tmp_path, Teacher(), shards=1, seed=0)


def new_run(plan: learn.Plan, folder: Path) -> learn.Run:
    return learn.Run(plan, torch.device("cpu"), folder / "checkpoint.pt")


def train(run: learn.Run, shards: list[pairs.Shard]) -> dict[str, torch.Tensor]:
    for _ in learn.train(run, shards, shards[:1]):
        pass
    return run.state()


@pytest.fixture
def shards(photos, small_shards, tmp_path) -> list[pairs.Shard]:
    return pairs.create(tmp_path / "pairs", photos, Teacher(), shards=2, seed=0)


def test_interrupted_run_resumes_to_the_same_weights(shards, tmp_path, monkeypatch):
    monkeypatch.setattr(learn, "_CHECKPOINT_STEPS", 2)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    expected = train(new_run(PLAN, tmp_path / "a"), shards)
    interrupted = new_run(PLAN, tmp_path / "b")
    messages = learn.train(interrupted, shards, shards[:1])
    next(messages)
    next(messages)
    messages.close()
    resumed = new_run(PLAN, tmp_path / "b")
    assert resumed.step == 4
    for name, tensor in train(resumed, shards).items():
        assert torch.equal(tensor, expected[name]), name
    assert new_run(PLAN, tmp_path / "b").step == 6


@pytest.mark.slow
def test_training_reduces_the_loss(shards, tmp_path):
    plan = replace(PLAN, steps=100, rate=1e-2, energy=0)
    run = new_run(plan, tmp_path)
    batch = next(learn.batches(shards, plan, 0))

    def current_loss() -> float:
        target = batch[1].float() / 255
        return float(learn.loss(run.forward(batch[0], run.mean), target, plan))

    before = current_loss()
    train(run, shards)
    assert current_loss() < 0.7 * before


def test_saved_weights_load_as_the_trained_network(shards, tmp_path):
    run = new_run(PLAN, tmp_path)
    state = train(run, shards)
    assert all(tensor.dtype == torch.float16 for tensor in state.values())
    loaded = {name: tensor.float() for name, tensor in state.items()}
    network = architectures.build(architectures.detect(loaded, "test"), loaded, "test")
    small = torch.from_numpy(shards[0].small[:1].copy()).permute(0, 3, 1, 2)
    with torch.inference_mode():
        assert torch.allclose(network(small.float() / 255), run.forward(small, run.mean), atol=2e-3)


def test_loss_prefers_texture_where_l1_prefers_blur():
    """For a target of fine noise, L1 prefers grey; with the energy term, other noise as strong wins."""
    torch.manual_seed(0)
    target, other = torch.rand(2, 1, 3, 64, 64)
    grey = torch.full_like(target, 0.5)
    l1, with_energy = replace(PLAN, gradient=0, energy=0), replace(PLAN, gradient=0, energy=5)
    assert learn.loss(grey, target, l1) < learn.loss(other, target, l1)
    assert learn.loss(grey, target, with_energy) > learn.loss(other, target, with_energy)
    assert learn.loss(target, target, with_energy) == 0


@pytest.mark.slow
def test_command_creates_a_weights_file_from_photographs(photos, tmp_path, monkeypatch):
    save_network(tmp_path / "weights/custom/teacher.pth", seed=1)
    monkeypatch.setenv("RESTORER_WEIGHTS", str(tmp_path / "weights"))
    out = tmp_path / "out"
    command = [sys.executable, "-m", "training", str(photos), "--teacher", "custom/teacher"]
    command += ["--out", str(out), "--device", "cpu", "--shards", "2", "--steps", "2", "--batch", "1"]
    command += ["--features", "8", "--convs", "1"]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert "step 2 " in process.stdout
    state = architectures.read_state(out / "restore-lite-x4.safetensors")
    assert architectures.detect(state, "trained").parameters["num_feat"] == 8
