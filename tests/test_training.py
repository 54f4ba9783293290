"""Training of the built-in model: aligned, reproducible samples, loss terms, resumable runs, weights."""

import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch.nn import functional

from restorer.models import architectures
from tests.conftest import photo_like, save_network
from training import degrade, learn, losses, pool, refine, report
from training.optimizer import Optimizer
from training.student import Student, parse

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
RECIPES = (degrade.light, degrade.clean, degrade.old, degrade.heavy, degrade.native, degrade.screen)
PLAN = learn.Plan(steps=9, seconds=60, batch=2)


@pytest.fixture
def photos(tmp_path) -> Path:
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    rng = np.random.default_rng(1)
    for number, size in enumerate(((300, 200), (180, 260), (150, 130))):
        Image.fromarray(photo_like(rng, *size)).save(folder / ("more" if number else ".") / f"{number}.png")
    return folder


class Teacher(torch.nn.Module):
    """Inverts brightness and upscales by nearest neighbour."""

    def __init__(self) -> None:
        super().__init__()
        self.one = torch.nn.Parameter(torch.ones(1), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.one - x.repeat_interleave(4, -1).repeat_interleave(4, -2)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.__name__)
def test_recipe_is_valid_and_reproducible(recipe, rng):
    photo = photo_like(rng, 300, 350)
    images = []
    for seed in (0, 1, 2, 3, 0):
        degrade.seed(seed)
        small, truth = recipe(photo, 48)
        images.append(small)
        assert small.shape == (48, 48, 3) and np.isfinite(small).all()
        assert small.min() > -0.5 and small.max() < 1.5
        assert truth is None if recipe is degrade.native else truth.shape == (192, 192, 3)
    assert np.array_equal(images[0], images[4]) and not np.array_equal(images[0], images[1])


@pytest.mark.parametrize("recipe", [degrade.light, degrade.clean, degrade.old, degrade.heavy])
def test_input_and_original_are_aligned_and_equally_coloured(recipe):
    """The shift is measured by phase correlation; OpenCV's codecs use BGR, which would swap red and blue."""
    noise = np.random.default_rng(0).random((400, 400))
    photo = cv2.GaussianBlur(noise, (0, 0), 6)
    photo = cv2.normalize(photo, None, 0, 60, cv2.NORM_MINMAX)[..., None] + (170, 90, 10)
    photo = photo.astype(np.uint8)
    window = cv2.createHanningWindow((256, 256), cv2.CV_32F)
    shifts = []
    for seed in range(8):
        degrade.seed(seed)
        small, truth = recipe(photo, 64)
        assert np.abs(small.mean((0, 1)) - truth.mean((0, 1))).max() < 0.05
        upscaled = cv2.resize(small, (256, 256), interpolation=cv2.INTER_CUBIC)
        grey = (cv2.GaussianBlur(image, (0, 0), 4).mean(2).astype(np.float32) for image in (upscaled, truth))
        shifts.append(cv2.phaseCorrelate(*grey, window)[0])
    assert np.abs(np.median(shifts, 0)).max() < 0.15  # pixels of the original; half an input pixel would be 2


def test_compression_uses_both_formats_and_saves_twice(monkeypatch, rng):
    image, saved = photo_like(rng, 64, 64).astype(np.float32) / 255, []
    encode = cv2.imencode
    monkeypatch.setattr(
        cv2,
        "imencode",
        lambda suffix, pixels, options: (
            saved.append((suffix, *options[1::2], len(pixels))) or encode(suffix, pixels, options)
        ),
    )
    degrade.seed(0)
    for _ in range(60):
        assert degrade._compress(image, 10, 95).shape == image.shape
    assert {suffix for suffix, *_ in saved} == {".jpg", ".webp"}
    assert 65 < len(saved) < 90
    assert any(size > 64 for *_, size in saved)  # at another position of the grid
    qualities = [quality for _, quality, *_ in saved]
    assert 10 <= min(qualities) < 20 and 85 < max(qualities) <= 95
    assert len({row[2] for row in saved if row[0] == ".jpg"}) == 3  # 4:2:0, 4:2:2 and 4:4:4


def test_blocks_depend_on_their_arguments_only(photos):
    files, held_out = pool.find_photos(photos)
    assert [len(files), len(held_out)] == [2, 1] and not set(files) & set(held_out)
    first, other, again = (pool.create_block(files, 16, 0, number, False) for number in (0, 1, 0))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first.small, other.small)
    test = pool.create_block(held_out, 16, 0, 0, True)
    assert test.known.all() and test.small.shape == (8, 16, 16, 3) and test.truth.shape == (8, 64, 64, 3)
    errors = [
        np.abs(np.asarray(Image.fromarray(t).reduce(4), float) - s)
        for s, t in zip(test.small, test.truth, strict=True)
    ]
    assert np.mean(errors[1::2]) > 1.2 * np.mean(errors[::2])  # the odd samples are severely degraded
    with pytest.raises(SystemExit, match="sides of 512"):
        pool.create_block(files, 128, 0, 0, False)


def test_folder_without_photographs_raises(tmp_path):
    with pytest.raises(SystemExit, match="fewer than 2 photographs in"):
        pool.find_photos(tmp_path)


def test_pool_stores_the_teachers_outputs_and_resumes(photos, tmp_path):
    files, _ = pool.find_photos(photos)
    block = pool.create_block(files, 16, 0, 3, False)._replace(known=np.arange(8) % 2 == 0)
    samples = pool.Pool(10, 16, CPU, tmp_path / "pool", "key")
    assert samples.capacity == 16
    samples.add(block, Teacher())
    expected = 255 - block.small.repeat(4, 1).repeat(4, 2)
    assert np.array_equal(samples.teacher[:8], expected)
    assert np.array_equal(samples.truth[0:8:2], block.truth[::2])
    assert np.array_equal(samples.truth[1:8:2], expected[1::2])  # where the original is unknown
    resumed = pool.Pool(10, 16, CPU, tmp_path / "pool", "key")
    assert resumed.size == 8 and not resumed.full()
    assert torch.equal(resumed.truth[:8], samples.truth[:8])
    assert pool.Pool(10, 16, CPU, tmp_path / "pool", "other").size == 0


def test_workers_create_blocks_in_order(photos):
    files, _ = pool.find_photos(photos)
    workers = pool.Workers(2)
    blocks = workers.blocks([(files, 16, 0, number, False) for number in range(8)])
    assert len(blocks) == 8
    small = [blocks.next().small for _ in range(8)]
    workers.close()
    assert not blocks.ready() and len(blocks) == 0
    assert all(np.array_equal(small[n], pool.create_block(files, 16, 0, n, False).small) for n in (0, 5, 7))


@pytest.fixture
def samples(photos) -> pool.Pool:
    files, _ = pool.find_photos(photos)
    pairs = pool.Pool(16, 16, CPU, None, "")
    for number in range(2):
        pairs.add(pool.create_block(files, 16, 0, number, False), Teacher())
    return pairs


def test_crops_and_targets_cover_the_same_area(samples):
    """With 4x nearest-neighbour targets, teacher's or original, every crop must match its target."""
    samples.teacher = samples.small.repeat_interleave(4, 1).repeat_interleave(4, 2)
    samples.truth = 255 - samples.teacher
    kinds = []
    for step in range(12):
        small, target, _ = learn.draw(samples, replace(PLAN, batch=4), step)
        assert small.shape == (4, 3, 8, 8) and target.shape == (4, 3, 32, 32)
        expected = functional.interpolate(small, scale_factor=4, mode="nearest")
        for image, crop in zip(target, expected, strict=True):
            from_truth = not torch.equal(image, crop)
            assert not from_truth or torch.allclose(image, 1 - crop)
            kinds.append(from_truth)
    assert 0.15 < np.mean(kinds) < 0.45, "three of ten targets are originals"
    again = learn.draw(samples, replace(PLAN, batch=4), 11)
    assert torch.equal(again[0], small) and torch.equal(again[1], target)


def test_borders_are_where_blocks_of_the_input_meet():
    """Pixels hold the number of their block: gradients are near a border within 3 pixels of a change."""
    pairs = pool.Pool(8, 32, CPU, None, "")
    block = torch.arange(128) // 32
    pairs.teacher[..., 0], pairs.teacher[..., 1] = 60 * block, 60 * block[:, None]
    pairs.truth[:], pairs.size = pairs.teacher, 8
    for step in range(6):
        _, target, borders = learn.draw(pairs, PLAN, step)
        for image, across, down in zip(target, *borders, strict=True):
            for near, axis in ((across, 2), (down, 1)):
                change = (image.diff(dim=axis) != 0).any(0).any(2 - axis)
                wide = functional.max_pool1d(change.float()[None], 7, 1, 3)[0] > 0
                assert wide.any() and torch.equal(near.flatten()[4:-4], wide[4:-4])


def test_optimizer_orthogonalises_the_steps_of_kernels():
    torch.manual_seed(0)
    kernel, bias = torch.zeros(16, 16, 3, 3, requires_grad=True), torch.zeros(16, requires_grad=True)
    both = Optimizer([kernel], [bias])
    kernel.grad = torch.randn(16, 16, 3, 3).contiguous(memory_format=torch.channels_last)
    bias.grad = torch.randn(16)
    matrix, signs = kernel.grad.reshape(16, -1).clone(), bias.grad.sign()
    bias.grad[3], signs[3] = torch.nan, 0
    both.step(0.01)
    assert kernel.grad is None and bias.grad is None
    step = -kernel.detach().view(16, -1) / (0.01 * 0.2 * 144**0.5)
    singular = torch.linalg.svdvals(step)
    assert singular.min() > 0.6 and singular.max() < 1.3
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    assert functional.cosine_similarity(step.flatten(), (left @ right).flatten(), dim=0) > 0.97
    assert torch.allclose(-bias.detach() / 0.01, signs, atol=1e-3)


def test_exported_weights_are_the_trained_network(samples):
    student = Student("8x2", CPU, 0)
    student.dtype = torch.float32
    with torch.no_grad():
        for tensor in student.mean.values():
            tensor.add_(0.05 * torch.randn_like(tensor))
    state = {name: tensor.float() for name, tensor in student.export().items()}
    spec = architectures.detect(state, "test")
    assert (spec.parameters["num_feat"], spec.parameters["num_conv"]) == parse("8x2") == (8, 2)
    image = samples.small[:2].permute(0, 3, 1, 2) / 255
    with torch.inference_mode():
        expected = architectures.build(spec, state, "test")(image)
        assert torch.allclose(student.forward(image, student.mean), expected, atol=4e-3)
        copy = Student("8x2", CPU, 1)
        copy.start_from(state)
        exported = copy.export()
        assert all(torch.equal(exported[name], tensor.half()) for name, tensor in state.items())
        assert all(torch.equal(copy.weights[name], tensor) for name, tensor in copy.mean.items())
        student.dtype = torch.bfloat16  # as on a GPU
        assert torch.allclose(student.forward(image, student.mean), expected, atol=0.03)


def test_spectrum_of_a_wave_is_its_amplitude():
    wave = torch.cos(2 * torch.pi * torch.arange(16) / 4).expand(1, 1, 16, 16)
    # One coefficient of 16 / 2 in the 16 x 9 x 2 parts of the half spectrum
    assert losses.spectrum(0.5 * wave).item() == pytest.approx(0.5 * 8 / (16 * 9 * 2), rel=1e-4)


def test_artefact_loss_equals_the_papers_formula():
    torch.manual_seed(0)
    target, output, reference = torch.rand(3, 2, 3, 12, 12)
    error, other = (output - target).abs().sum(1), (reference - target).abs().sum(1)
    padded = functional.pad(error[:, None], (3, 3, 3, 3), mode="reflect")
    local = padded.unfold(2, 7, 1).unfold(3, 7, 1).flatten(-2).var(-1)[:, 0]
    weight = error.flatten(1).var(1)[:, None, None] ** 0.2 * local
    weight[error < other] = 0
    expected = (weight[:, None] * (output - target).abs()).mean()
    assert losses.artefacts(output - target, reference - target).item() == pytest.approx(
        expected.item(), rel=1e-4
    )


def test_strength_term_prefers_texture_where_l1_prefers_blur(monkeypatch):
    torch.manual_seed(0)
    target, other = torch.rand(2, 1, 3, 64, 64)
    grey = torch.full_like(target, 0.5)
    for term in ("GRADIENT", "SPECTRUM", "ARTEFACTS"):
        monkeypatch.setattr(losses, term, 0)
    total = partial(losses.total, borders=(torch.tensor(False), torch.tensor(False)))
    assert total(grey, target, grey, strength=0) < total(other, target, other, strength=0)
    assert total(grey, target, grey, strength=5) > total(other, target, other, strength=5)
    assert total(target, target, grey, strength=5) == 0


def test_gradients_at_borders_of_blocks_count_more(monkeypatch):
    for term in ("SPECTRUM", "ARTEFACTS"):
        monkeypatch.setattr(losses, term, 0)
    target = torch.zeros(1, 3, 16, 16)
    step = torch.cat((target[..., :8], target[..., 8:] + 0.5), 3)
    across = torch.zeros(1, 1, 1, 15, dtype=torch.bool)
    down, marked = torch.zeros(1, 1, 15, 1, dtype=torch.bool), across.clone()
    marked[..., 7] = True
    plain, weighted = (
        losses.total(step, target, step, (where, down), strength=0) for where in (across, marked)
    )
    assert weighted > 1.2 * plain
    marked = marked.roll(1, 3)
    assert losses.total(step, target, step, (marked, down), strength=0) == plain


def test_dots_of_a_period_have_the_strength_of_texture_but_not_in_every_phase():
    torch.manual_seed(0)
    dots, texture = torch.zeros(1, 1, 64, 64), torch.randn(1, 1, 64, 64)
    dots[..., 3::8, 5::8] = 1
    texture *= losses.local_rms(dots).mean() / losses.local_rms(texture).mean()
    again = texture[..., torch.randperm(64)]
    for rms, ratio in ((losses.local_rms, 1.5), (losses.periodic_rms, 3)):
        difference = (rms(dots) - rms(texture)).abs().mean() / (rms(again) - rms(texture)).abs().mean()
        assert (difference < ratio) == (rms is losses.local_rms)


@pytest.mark.slow
def test_critic_learns_and_its_loss_leads_to_the_targets():
    torch.manual_seed(0)
    critic = losses.Critic(CPU, 0, features=4)
    target, output = torch.rand(2, 3, 32, 32), torch.full((2, 3, 32, 32), 0.5)
    for _ in range(60):
        accuracy = critic.update(target, output)
    assert accuracy > 0.9
    assert critic.generator_loss(target) < critic.generator_loss(output)
    output.requires_grad_()
    critic.generator_loss(output).backward()
    assert output.grad.abs().sum() > 0
    assert all(p.requires_grad for p in critic.network.parameters())


def test_table_reports_fidelity_and_blocks(photos):
    _, held_out = pool.find_photos(photos)
    samples = pool.Pool(8, 24, CPU, None, "")
    samples.add(pool.create_block(held_out, 24, 0, 0, True), Teacher())
    inverted = {"inverted": lambda image: 1 - functional.interpolate(image, scale_factor=4, mode="nearest")}
    rows = [line.split() for line in report.table(inverted, samples).splitlines()[1:]]
    assert [row[:2] for row in rows] == [
        [kind, name] for kind in ("light", "heavy") for name in ("bicubic", "teacher", "inverted")
    ]
    assert all(float(row[2]) == 0 for row in rows if row[1] == "bicubic")
    assert all(float(row[-1]) == 1 and float(row[3]) > 20 for row in rows if row[1] == "inverted")


def test_blockiness_is_the_step_at_block_borders():
    x = torch.arange(96.0)
    image = (x + x[:, None]).expand(1, 3, 96, 96)
    assert report.blockiness(image).item() == pytest.approx(1)
    steps = image + 4 * (x // 32 + (x // 32)[:, None])
    assert report.blockiness(steps).item() == pytest.approx(5)
    assert report.blockiness(steps[..., 1:, 1:]).item() < 1


def train(folder: Path, samples: pool.Pool, steps: int) -> learn.Trainer:
    folder.mkdir(exist_ok=True)
    trainer = learn.Trainer(PLAN, ["8x1"], CPU, folder, time.monotonic())
    while trainer.step < steps:
        trainer.train_step(samples)
    trainer.save()
    return trainer


@pytest.mark.slow
def test_resumed_run_equals_an_uninterrupted_one(samples, tmp_path):
    """The second interruption is in the last third, where the discriminator takes part."""
    expected = train(tmp_path / "a", samples, 9)
    for steps in (3, 8, 9):
        resumed = train(tmp_path / "b", samples, steps)
    assert resumed.step == expected.step == 9
    assert resumed.spent > 0 == expected.spent
    for states in zip(
        (expected.students[0].weights, expected.students[0].mean, expected.critics[0].network.state_dict()),
        (resumed.students[0].weights, resumed.students[0].mean, resumed.critics[0].network.state_dict()),
        strict=True,
    ):
        for name in states[0]:
            assert torch.equal(states[0][name], states[1][name]), name
    initial = learn.Trainer(PLAN, ["8x1"], CPU, tmp_path, time.monotonic())
    before, after = initial.students[0].weights, expected.students[0].weights
    assert all(not torch.equal(before[name], after[name]) for name in before)
    assert not torch.equal(initial.critics[0].network.conv0.weight, expected.critics[0].network.conv0.weight)


@pytest.mark.slow
def test_training_reduces_the_loss(samples, tmp_path):
    samples.teacher = samples.truth = (samples.small // 2).repeat_interleave(4, 1).repeat_interleave(4, 2)
    plan = replace(PLAN, steps=60, rate=2e-2, adversarial=0)
    trainer = learn.Trainer(plan, ["8x1"], CPU, tmp_path, time.monotonic())
    student = trainer.students[0]

    def current_loss() -> float:
        with torch.no_grad():
            small, target, _ = learn.draw(samples, replace(plan, batch=16), 1000)
            return float((student.forward(small, student.weights) - target).abs().mean())

    before = current_loss()
    for _ in range(60):
        trainer.train_step(samples)
    assert current_loss() < 0.8 * before


@pytest.mark.slow
def test_command_creates_weights_from_photographs(photos, tmp_path, monkeypatch):
    save_network(tmp_path / "weights/custom/teacher.pth", seed=1)
    monkeypatch.setenv("RESTORER_WEIGHTS", str(tmp_path / "weights"))
    out = tmp_path / "out"
    command = [sys.executable, "-m", "training", str(photos), "--teacher", "custom/teacher"]
    command += ["--out", str(out), "--device", "cpu", "--side", "24", "--batch", "1", "--pool", "8"]
    command += ["--workers", "1", "--steps"]

    def run(*options):
        return subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True)

    process = run("3", "--students", "8x1,4x2")
    assert process.returncode == 0, process.stderr
    assert "step 3 " in process.stdout and "heavy 4x2" in process.stdout
    result, checkpoint = out / "restore-lite-2-8x1.safetensors", out / "checkpoint-8x1.pt"
    state = architectures.read_state(result)
    assert architectures.detect(state, "trained").parameters["num_feat"] == 8
    assert (out / "checkpoint-4x2.pt").is_file()

    start = result.rename(tmp_path / "start.safetensors")
    critic = checkpoint.rename(tmp_path / "critic.pt")
    again = ("1", "--start", str(start), "--critic", str(critic), "--share", "0.99")
    process = run(*again, "--students", "8x1")
    assert process.returncode == 0 and "100 %  step 1 " in process.stdout, process.stderr
    changed = architectures.read_state(result)
    assert all((changed[name] - tensor).abs().max() < 1e-3 for name, tensor in state.items())
    for students, message in (("8x1,4x2", "needs one student"), ("4x2", "not of a network of 4x2")):
        process = run(*again, "--students", students, "--out", str(tmp_path / "other"))
        assert process.returncode and message in process.stderr


def student_of(weights: dict[str, torch.Tensor]) -> Student:
    student = Student("64x9", CPU, 0)
    student.start_from(weights)
    return student


@pytest.mark.slow
def test_refined_student_depends_less_on_the_orientation_and_is_sharpened(monkeypatch, rng):
    weights = safetensors.torch.load_file(ROOT / "weights/restore-lite-2-x4.safetensors")
    monkeypatch.setattr(refine, "_WARM_UP", 5)
    small = torch.from_numpy(np.stack([photo_like(rng, 32, 32) for _ in range(24)])).permute(0, 3, 1, 2)
    image = small.float() / 255
    uneven, energy = [], []
    for state in (weights, *(refine.refine(weights, small, amount, 80) for amount in (0, 1.5))):
        assert {key: tensor.shape for key, tensor in state.items()} == {
            key: tensor.shape for key, tensor in weights.items()
        }
        student = student_of(state)
        with torch.no_grad():
            output, mirrored = (student.forward(each, student.mean) for each in (image, image.flip(3)))
        uneven.append(float((output - mirrored.flip(3)).square().mean()))
        energy.append(float(output.diff(dim=3).abs().mean()))
    assert max(uneven[1:]) < 0.8 * uneven[0], uneven
    assert energy[1] < energy[0] < energy[2], energy


@pytest.mark.parametrize("side", [64, 68, 96])
def test_small_steps_between_blocks_become_ramps(side):
    """Of 4 levels; those of 14 are edges, and a slope is no step."""
    level = (torch.arange(side) >= 32).int()
    for values, changed in ((4 * level, True), (14 * level, False), (torch.arange(side), False)):
        for axis in (2, 3):
            image = (values.float() / 255).expand(1, 3, side, side)
            image = image if axis == 3 else image.transpose(2, 3)
            output = refine.without_blocks(image)
            assert torch.allclose(output, image, atol=1e-6) != changed
            if changed:
                steps = output.diff(dim=axis)
                assert steps.max() < 0.3 * 4 / 255 and steps.min() >= -1e-6
                assert torch.allclose(output[..., :1, :1], image[..., :1, :1])


def test_ensemble_is_the_mean_of_all_orientations(rng):
    weights = safetensors.torch.load_file(ROOT / "weights/restore-lite-2-x4.safetensors")
    student = student_of(weights)
    image = torch.from_numpy(photo_like(rng, 24, 36)).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        mean = refine.ensemble(student, image)
        assert (mean - student.forward(image, student.mean)).abs().max() > 0.01
        for orientation in (lambda x: x.flip(2), lambda x: x.flip(3), lambda x: x.transpose(2, 3)):
            turned = orientation(refine.ensemble(student, orientation(image)))
            assert (turned - mean).abs().max() < 1e-3  # of float rounding


def test_refinement_uses_the_degraded_inputs(tmp_path, rng):
    cv2.imwrite(str(tmp_path / "photo.png"), photo_like(rng, 200, 200))
    small = refine.inputs([tmp_path / "photo.png"], 11, 32)
    block = pool.create_block([tmp_path / "photo.png"], 32, 0, 0, False)
    assert small.shape == (11, 3, 32, 32) and small.dtype == torch.uint8
    assert np.array_equal(small[: pool.BLOCK].permute(0, 2, 3, 1), block.small)
