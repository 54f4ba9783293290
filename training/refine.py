"""`python -m training.refine PHOTOS WEIGHTS OUT`: train a student to treat all orientations alike.

A student turns fine patterns into dots, which differ between the orientations of an input. The mean of its
outputs for all eight (geometric self-ensemble) has none, but is blurred, and shows the borders of JPEG's
blocks; an unsharp mask restores the sharpness. Deterministic for a given number of threads.
"""

import argparse
import os
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torchvision.transforms.functional import gaussian_blur

from restorer.models import architectures

from . import pool
from .report import BORDER
from .student import Student, Weights

_SIGMA, _KERNEL = 1.0, 9  # of the unsharp mask, in pixels of the output
_STEP, _REACH = 6 / 255, 8  # of steps between blocks: the largest one removed, and its pixels on each side
_RATE, _WARM_UP = 1e-3, 20  # learning rate; steps
_BATCH = 16  # crops of a step
_SLOPES = 2.0  # weight of gradients' L1 in the loss; that of pixels is 1


def main() -> None:
    parser = argparse.ArgumentParser(prog="training.refine", description=str(__doc__).partition("\n")[0])
    parser.add_argument("photos", type=Path, help="folder of 8-bit photographs, searched recursively")
    parser.add_argument("weights", type=Path, help="of the student to start from")
    parser.add_argument("out", type=Path, help="file of the result")
    parser.add_argument("--amount", type=float, default=0.9, help="of the unsharp mask (%(default)s)")
    parser.add_argument("--steps", type=int, default=6000, help="(%(default)s)")
    parser.add_argument("--inputs", type=int, default=1200, help="degraded crops (%(default)s)")
    parser.add_argument("--side", type=int, default=128, help="of an input in pixels (%(default)s)")
    arguments = parser.parse_args()
    weights = safetensors.torch.load_file(arguments.weights)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    small = inputs(pool.find_photos(arguments.photos)[0], arguments.inputs, arguments.side)
    safetensors.torch.save_file(refine(weights, small, arguments.amount, arguments.steps), arguments.out)


def inputs(files: list[Path], count: int, side: int) -> torch.Tensor:
    """Return degraded crops (n, 3, side, side) uint8."""
    small: list[np.ndarray] = []
    workers = pool.Workers(os.cpu_count() or 1)
    try:
        numbers = range(-(-count // pool.BLOCK))
        blocks = workers.blocks([(files, side, 0, number, False) for number in numbers])
        while blocks:
            small.extend(blocks.next().small)
    finally:
        workers.close()
    return torch.from_numpy(np.stack(small[:count])).permute(0, 3, 1, 2).contiguous()


def ensemble(student: Student, image: torch.Tensor) -> torch.Tensor:
    """Return the mean of the outputs (n, 3, 4h, 4w) for the eight orientations of (n, 3, h, w)."""
    outputs = []
    for turns in range(4):
        for axes in ((), (3,)):
            turned = image.rot90(turns, (2, 3)).flip(axes).contiguous(memory_format=torch.channels_last)
            outputs.append(student.forward(turned, student.mean).flip(axes).rot90(-turns, (2, 3)))
    return torch.stack(outputs).mean(0)


def without_blocks(image: torch.Tensor) -> torch.Tensor:
    """Return (n, 3, h, w) without steps at the borders of JPEG's blocks; large ones are edges and stay.

    A step is by how much a border's gradient exceeds those beside it. It becomes a ramp.
    """
    image = image.clone()
    for dim in (2, 3):
        slope = image.diff(dim=dim)
        border = torch.arange(BORDER - 1, image.shape[dim] - _REACH, BORDER)
        beside = [slope.index_select(dim, border + side) for side in (-1, 1)]
        step = slope.index_select(dim, border) - sum(beside) / 2
        step = step * (2 - step.abs() / _STEP).clamp(0, 1)
        for distance in range(_REACH):
            share = (1 - distance / _REACH) / 2
            image.index_add_(dim, border - distance, step, alpha=share)
            image.index_add_(dim, border + 1 + distance, step, alpha=-share)
    return image


def refine(weights: Weights, small: torch.Tensor, amount: float, steps: int) -> Weights:
    """Return the weights of a student after training.

    weights, result  by SRVGGNetCompact's names
    small            inputs (n, 3, side, side) uint8
    amount           of the unsharp mask
    steps            number of steps

    Raises BadWeights for other networks.
    """
    shape = architectures.detect(weights, "the student").parameters
    trained = Student(f"{shape['num_feat']}x{shape['num_conv']}", torch.device("cpu"), 0)
    trained.start_from(weights)
    side = small.shape[-1]
    targets = torch.empty(len(small), 3, 4 * side, 4 * side, dtype=torch.uint8)
    with torch.no_grad():
        for number, image in enumerate(small):
            mean = without_blocks(ensemble(trained, image[None].float() / 255))
            mean += amount * (mean - gaussian_blur(mean, [_KERNEL, _KERNEL], [_SIGMA, _SIGMA]))
            targets[number] = mean[0].clamp(0, 1).mul(255).round().byte()
    rng, crop = np.random.default_rng(0), side // 2
    for step in range(steps):
        index = torch.from_numpy(rng.integers(len(small), size=_BATCH))
        y, x = rng.integers(0, crop + 1, 2)
        image = small[index, :, y : y + crop, x : x + crop].float() / 255
        target = targets[index, :, 4 * y : 4 * (y + crop), 4 * x : 4 * (x + crop)].float() / 255
        if step % 2:
            image, target = image.transpose(2, 3), target.transpose(2, 3)
        if step % 4 > 1:
            image, target = image.flip(3), target.flip(3)
        image = image.contiguous(memory_format=torch.channels_last)
        difference = trained.forward(image, trained.weights) - target
        slopes = sum(difference.diff(dim=axis).abs().mean() for axis in (2, 3))
        (difference.abs().mean() + _SLOPES * slopes).backward()
        trained.update(_RATE * min((step + 1) / _WARM_UP, 1, (1 - step / steps) / 0.7))
        if (step + 1) % 100 == 0:
            print(f"step {step + 1}  error {255 * difference.detach().abs().mean():.2f} levels", flush=True)
    return trained.export()


if __name__ == "__main__":
    main()
