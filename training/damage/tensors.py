"""Operations that do not make the host wait for the device."""

import functools

import torch


@functools.cache
def constant(values: tuple, device: torch.device) -> torch.Tensor:
    """Return (nested) tuples of numbers as a float32 tensor, copied once; do not write to it."""
    return torch.tensor(values, dtype=torch.float32, device=device)


def choose(weights: torch.Tensor, count: int, rng: torch.Generator) -> torch.Tensor:
    """Return random indices (count,) int64, each as likely as its weight; torch.multinomial may wait."""
    sums = weights.cumsum(0)
    draw = torch.rand(count, device=weights.device, generator=rng) * sums[-1]
    return torch.searchsorted(sums, draw, right=True).clamp(max=len(weights) - 1)
