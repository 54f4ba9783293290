"""Train several students on the same batches until a time or a number of steps; runs resume."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
import torch

from . import losses, report
from .pool import Blocks, Pool
from .student import Student

_SAVE_SECONDS = 20
_TABLES = 20  # in a run
_WARM_UP = 100  # steps, or a tenth of a shorter run
_ADVERSARIAL_SHARE = 0.5  # of the run, after which the discriminator takes part
# Weight of the texture, first and from that share on: with 2, early steps gain half as much
_STRENGTH = (0.5, 4)
_FROM_TEACHER = 0.7  # share of the targets
_TEACHER_SHARE = 0.6  # time for the teacher relative to that for the students, until the pool is full


@dataclass(frozen=True)
class Plan:
    """Settings of a run.

    steps        number of steps, or 0: until `seconds`
    seconds      of all runs together, including the time before training
    batch        crops per step; half a training input wide
    adversarial  weight of the discriminator's loss; 0 trains without it
    first        share of the schedules of rate and losses at which the run starts, 0 to 1
    """

    steps: int
    seconds: float
    batch: int
    adversarial: float = 0.1
    rate: float = 2e-3
    seed: int = 0
    first: float = 0


class Trainer:
    """State of a run: the students, their discriminators and the clock."""

    def __init__(self, plan: Plan, names: list[str], device: torch.device, out: Path, started: float) -> None:
        """Resume from OUT/checkpoint-NAME.pt where it exists.

        started  time.monotonic() at the start of the process
        """
        self.plan, self.device, self.out, self.started = plan, device, out, started
        self.students = [Student(name, device, plan.seed) for name in names]
        self.critics = [losses.Critic(device, plan.seed + i) for i in range(len(names))]
        self.step, self.spent, self.reserve = 0, 0.0, 0.0
        self.loss = torch.zeros(len(names), device=device)
        self.accuracy = torch.zeros(len(names), device=device)
        self._load()

    def elapsed(self) -> float:
        """Return the seconds of all runs, this one included."""
        return self.spent + time.monotonic() - self.started

    def share(self) -> float:
        """Return the place in the schedules; the run ends at 1. Time for the last table is reserved."""
        if self.plan.steps:
            done = self.step / self.plan.steps
        else:
            done = (self.elapsed() + self.reserve) / self.plan.seconds
        return self.plan.first + (1 - self.plan.first) * done

    def train_step(self, pool: Pool) -> None:
        """Train every student on one batch."""
        share = min(1.0, self.share())
        warm_up = min(_WARM_UP, self.plan.steps // 10 or _WARM_UP)
        rate = self.plan.rate * min((self.step + 1) / warm_up, 1, (1 - share) / 0.7)
        strength = float(np.interp(share, (0, _ADVERSARIAL_SHARE), _STRENGTH))
        adversarial = self.plan.adversarial * _ramp(share)
        small, target, borders = draw(pool, self.plan, self.step)
        for i, (student, critic) in enumerate(zip(self.students, self.critics, strict=True)):
            output = student.forward(small, student.weights)
            with torch.no_grad():
                reference = student.forward(small, student.mean)
            loss = losses.total(output, target, reference, borders, strength=strength)
            if adversarial:
                (loss + adversarial * critic.generator_loss(output)).backward()
            else:
                loss.backward()
            student.update(rate)
            self.loss[i].lerp_(loss.detach(), 1 / min(100, self.step + 1))
            if self.plan.adversarial and share >= _ADVERSARIAL_SHARE:
                self.accuracy[i].lerp_(critic.update(target, output), 0.1)
        self.step += 1

    def networks(self) -> dict[str, report.Upscale]:
        return {s.name: lambda image, s=s: s.forward(image, s.mean) for s in self.students}

    def save(self) -> None:
        """Write the weights and the checkpoint of each student."""
        for student, critic in zip(self.students, self.critics, strict=True):
            name = f"restore-lite-2-{student.name}.safetensors"
            (self.out / f"{name}.part").write_bytes(safetensors.torch.save(student.export()))
            os.replace(self.out / f"{name}.part", self.out / name)
            state = {"step": self.step, "seconds": self.elapsed(), "student": student.state()}
            if self.step and self.plan.adversarial and self.share() >= _ADVERSARIAL_SHARE:
                state["critic"] = critic.state()
            path = self._checkpoint(student)
            torch.save(state, path.with_suffix(".part"))
            os.replace(path.with_suffix(".part"), path)

    def _checkpoint(self, student: Student) -> Path:
        return self.out / f"checkpoint-{student.name}.pt"

    def _load(self) -> None:
        for student, critic in zip(self.students, self.critics, strict=True):
            path = self._checkpoint(student)
            if path.is_file():
                state = torch.load(path, map_location="cpu", weights_only=True)
                student.load(state["student"])
                if "critic" in state:
                    critic.load(state["critic"])
                self.step, self.spent = max(self.step, state["step"]), max(self.spent, state["seconds"])


def _ramp(share: float) -> float:
    """Return the share of the discriminator's weight: it learns alone first, then gains weight gradually."""
    return min(1.0, max(0.0, (share - _ADVERSARIAL_SHARE) / 0.08 - 0.25))


def draw(
    pool: Pool, plan: Plan, step: int
) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    """Return random crops of the inputs and 4x targets, (n, 3, h, w) float32 in 0..1, and losses' `borders`.

    Each target is the teacher's output or the original: their average would have less texture than either.
    Depends only on the pool, the plan and the number of the step.
    """
    rng = np.random.default_rng((plan.seed, step))
    device, side = pool.small.device, pool.small.shape[1]
    crop, n = side // 2, plan.batch
    index = rng.integers(pool.size, size=n)
    corners = rng.integers(side - crop + 1, size=(2, n))
    flips, from_truth = rng.random((2, n)) < 0.5, rng.random(n) >= _FROM_TEACHER
    transposed = rng.random() < 0.5
    numbers = torch.from_numpy(np.concatenate([index[None], corners, flips, from_truth[None]]))
    if device.type == "cuda":  # a copy from pageable memory would wait for all kernels
        numbers = numbers.pin_memory()
    index, top, left, flip_y, flip_x, from_truth = numbers.to(device, non_blocking=True)
    small = _gather(pool.small, index, top, left, flip_y, flip_x, crop)
    teacher, truth = (
        _gather(images, index, 4 * top, 4 * left, flip_y, flip_x, 4 * crop)
        for images in (pool.teacher, pool.truth)
    )
    target = torch.where(from_truth.bool()[:, None, None, None], truth, teacher)
    images = []
    for image in (small, target):
        image = image.transpose(1, 2) if transposed else image
        images.append(image.permute(0, 3, 1, 2).float() / 255)
    near = [
        _near_border(_line(4 * corner, flip, 4 * crop)) for corner, flip in ((left, flip_x), (top, flip_y))
    ]
    near = near[::-1] if transposed else near
    borders = near[0][:, None, None], near[1][:, None, :, None]
    return images[0].contiguous(memory_format=torch.channels_last), images[1].contiguous(), borders


def _near_border(line: torch.Tensor) -> torch.Tensor:
    """Return where gradients along (n, side) positions are near a border of blocks, (n, side - 1) bool.

    Near is within 3 positions, less than a pixel of the input, of a multiple of the blocks' side.
    """
    middle = torch.maximum(line[:, :-1], line[:, 1:]) % report.BORDER
    return torch.minimum(middle, report.BORDER - middle) < 4


def _gather(
    images: torch.Tensor,
    index: torch.Tensor,
    top: torch.Tensor,
    left: torch.Tensor,
    flip_y: torch.Tensor,
    flip_x: torch.Tensor,
    side: int,
) -> torch.Tensor:
    """Return (n, side, side, 3) crops at these corners, mirrored where a flip is 1."""
    rows, columns = _line(top, flip_y, side), _line(left, flip_x, side)
    return images[index[:, None, None], rows[:, :, None], columns[:, None, :]]


def _line(corner: torch.Tensor, flip: torch.Tensor, side: int) -> torch.Tensor:
    """Return the positions (n, side) along one axis of crops, from the end where a flip is 1."""
    line = torch.arange(side, device=corner.device)
    return corner[:, None] + torch.where(flip[:, None].bool(), side - 1 - line, line)


def run(
    trainer: Trainer,
    pool: Pool,
    blocks: Blocks,
    teacher: torch.nn.Module,
    held_out: Pool,
    present: dict[str, report.Upscale],
) -> None:
    """Train to the end of the plan, extend the pool meanwhile, and print the progress.

    present  networks that are compared but not trained
    """
    start = saved = printed = time.monotonic()
    first_step, teacher_seconds = trainer.step, 0.0

    def show_table(networks: dict[str, report.Upscale]) -> None:
        begin = time.monotonic()
        with torch.inference_mode():
            print(report.table(networks, held_out), flush=True)
        seconds = (time.monotonic() - begin) / len(networks) * (len(trainer.students) + len(present))
        trainer.reserve = min(1.5 * seconds + 3, trainer.plan.seconds / 10)

    show_table(present)
    next_table = trainer.share() + 1 / _TABLES
    while trainer.share() < 1:
        trainer.train_step(pool)
        if not pool.full():
            _synchronize(trainer.device)  # to measure the teacher's time, not that of queued steps
        now = time.monotonic()
        training_seconds = now - start - teacher_seconds
        if blocks.ready() and not pool.full() and teacher_seconds <= _TEACHER_SHARE * training_seconds:
            pool.add(blocks.next(), teacher)
            _synchronize(trainer.device)
            teacher_seconds += time.monotonic() - now
        if now - printed > 10 or trainer.step == first_step + 1:
            printed = now
            print(_progress(trainer, pool, (trainer.step - first_step) / max(now - start, 1e-3)), flush=True)
        if now - saved > _SAVE_SECONDS:
            trainer.save()
            saved = time.monotonic()
        if next_table <= trainer.share() < 1:
            show_table(trainer.networks())
            next_table = trainer.share() + 1 / _TABLES
    trainer.save()
    speed = (trainer.step - first_step) / max(time.monotonic() - start, 1e-3)
    print(_progress(trainer, pool, speed), flush=True)
    show_table(present | trainer.networks())


def _progress(trainer: Trainer, pool: Pool, speed: float) -> str:
    students = "  ".join(
        f"{student.name} loss {loss:.4f} critic {accuracy:.2f}"
        for student, loss, accuracy in zip(
            trainer.students, trainer.loss.tolist(), trainer.accuracy.tolist(), strict=True
        )
    )
    memory = torch.cuda.max_memory_allocated() / 2**30 if trainer.device.type == "cuda" else 0
    seconds, percent = trainer.elapsed(), 100 * trainer.share()
    return (
        f"{seconds:6.0f} s  {percent:3.0f} %  step {trainer.step}  {speed:.2f} steps/s"
        f"  pool {pool.size}  {memory:.1f} GiB  {students}"
    )


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
