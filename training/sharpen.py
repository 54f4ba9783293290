"""`python -m training.sharpen PHOTOS WEIGHTS OUT`: train a student to sharpen clean inputs.

It learns to return its own output after an unsharp mask where the input is clean, and as it is where the
input is noisy or strongly compressed. Deterministic for a given number of threads.
"""

import argparse
import os
from pathlib import Path

import cv2
import numpy as np
import safetensors.torch
import torch
from torchvision.transforms.functional import gaussian_blur

from restorer.models import architectures

from . import pool
from .student import Student, Weights

_SIGMA, _KERNEL = 1.0, 9  # of the unsharp mask, in pixels of the output
_CLEAN, _NOISY = 8.0, 11.0  # levels of degradation: the full mask up to the first, none from the second
_RATE, _WARM_UP = 1e-3, 20  # learning rate; steps
_CLEAN_CROPS, _NOISY_CROPS = 10, 6  # of a step
_SLOPES = 2.0  # weight of gradients' L1 in the loss; that of pixels is 1


def main() -> None:
    parser = argparse.ArgumentParser(prog="training.sharpen", description=str(__doc__).partition("\n")[0])
    parser.add_argument("photos", type=Path, help="folder of 8-bit photographs, searched recursively")
    parser.add_argument("weights", type=Path, help="of the student to start from")
    parser.add_argument("out", type=Path, help="file of the result")
    parser.add_argument("--amount", type=float, default=0.9, help="of the unsharp mask (%(default)s)")
    parser.add_argument("--steps", type=int, default=3000, help="(%(default)s)")
    parser.add_argument("--inputs", type=int, default=1200, help="degraded crops (%(default)s)")
    parser.add_argument("--side", type=int, default=128, help="of an input in pixels (%(default)s)")
    arguments = parser.parse_args()
    weights = safetensors.torch.load_file(arguments.weights)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    small, levels = inputs(pool.find_photos(arguments.photos)[0], arguments.inputs, arguments.side)
    result = sharpen(weights, small, arguments.amount * share(levels), arguments.steps)
    safetensors.torch.save_file(result, arguments.out)


def inputs(files: list[Path], count: int, side: int) -> tuple[torch.Tensor, np.ndarray]:
    """Return degraded crops (n, 3, side, side) float32 in 0..1, and how much each is degraded.

    That is the RMS of its difference to the original, which most recipes sharpen, reduced to its size, in
    levels of 255.
    """
    small: list[torch.Tensor] = []
    levels = []
    workers = pool.Workers(os.cpu_count() or 1)
    try:
        blocks = workers.blocks([(files, side, 0, number, False) for number in range(count)])
        while len(small) < count:
            block = blocks.next()
            for degraded, truth in zip(block.small[block.known], block.truth[block.known], strict=True):
                reduced = cv2.resize(truth, (side, side), interpolation=cv2.INTER_AREA)
                levels.append(np.sqrt(np.square(reduced.astype(np.float32) - degraded).mean()))
                small.append(torch.from_numpy(degraded).permute(2, 0, 1).float() / 255)
    finally:
        workers.close()
    return torch.stack(small), np.array(levels)


def share(levels: np.ndarray) -> np.ndarray:
    """Return how much of the unsharp mask inputs of these levels of degradation get, 0 to 1."""
    return np.clip((_NOISY - levels) / (_NOISY - _CLEAN), 0, 1)


def sharpen(weights: Weights, small: torch.Tensor, amounts: np.ndarray, steps: int) -> Weights:
    """Return the weights of a student after training.

    weights, result  by SRVGGNetCompact's names
    small            inputs (n, 3, side, side) float32 in 0..1
    amounts          (n,) of the unsharp mask, for each input
    steps            number of steps

    Raises BadWeights for other networks, and SystemExit unless there are clean and noisy inputs.
    """
    shape = architectures.detect(weights, "the student").parameters
    trained = Student(f"{shape['num_feat']}x{shape['num_conv']}", torch.device("cpu"), 0)
    trained.start_from(weights)
    first = {key: tensor.detach().clone() for key, tensor in trained.weights.items()}
    noisy, clean = np.flatnonzero(amounts == 0), np.flatnonzero(amounts > 0)
    if not (len(noisy) and len(clean)):
        raise SystemExit("training: all inputs are clean, or none; use more --inputs")
    rng, side = np.random.default_rng(0), small.shape[-1] // 2
    for step in range(steps):
        index = np.concatenate((rng.choice(clean, _CLEAN_CROPS), rng.choice(noisy, _NOISY_CROPS)))
        y, x = rng.integers(0, side + 1, 2)
        crops = small[torch.from_numpy(index), :, y : y + side, x : x + side]
        crops = crops.transpose(2, 3) if step % 2 else crops
        crops = (crops.flip(3) if step % 4 > 1 else crops).contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            before = trained.forward(crops, first)
            amount = torch.from_numpy(amounts[index]).float().view(-1, 1, 1, 1)
            target = before + amount * (before - gaussian_blur(before, [_KERNEL, _KERNEL], [_SIGMA, _SIGMA]))
        difference = trained.forward(crops, trained.weights) - target
        slopes = sum(difference.diff(dim=axis).abs().mean() for axis in (2, 3))
        (difference.abs().mean() + _SLOPES * slopes).backward()
        trained.update(_RATE * min((step + 1) / _WARM_UP, 1, (1 - step / steps) / 0.7))
        if (step + 1) % 100 == 0:
            errors = difference.detach().abs().mean((1, 2, 3)) * 255
            clean_error, noisy_error = errors[:_CLEAN_CROPS].mean(), errors[_CLEAN_CROPS:].mean()
            text = f"error in levels: clean {clean_error:.2f}, noisy {noisy_error:.2f}"
            print(f"step {step + 1}  {text}", flush=True)
    return trained.export()


if __name__ == "__main__":
    main()
