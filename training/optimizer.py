"""Muon for kernels (Jordan et al., 2024) and Adam for everything else, at one learning rate."""

from collections.abc import Sequence

import torch
from torch import nn


class Optimizer:
    """Optimises kernels (out, in, height, width) and other tensors, which all require gradients."""

    def __init__(self, kernels: Sequence[torch.Tensor], others: Sequence[torch.Tensor]) -> None:
        self._kernels, self._tensors = kernels, [*kernels, *others]
        # Muon takes matrices; these share their memory with the kernels
        self._matrices = [nn.Parameter(kernel.detach().view(len(kernel), -1)) for kernel in kernels]
        self._both = (
            torch.optim.Muon(self._matrices, weight_decay=0, adjust_lr_fn="match_rms_adamw"),
            torch.optim.Adam(others, betas=(0.9, 0.99)),
        )

    def step(self, rate: float) -> None:
        """Apply the gradients and forget them. Values that are not finite count as zero."""
        for tensor in self._tensors:  # one bad batch must not end the run
            tensor.grad.nan_to_num_(0, 0, 0)
        for kernel, matrix in zip(self._kernels, self._matrices, strict=True):
            matrix.grad = kernel.grad.reshape(matrix.shape)
        for optimizer in self._both:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
        for tensor in self._tensors:
            tensor.grad = None

    def state(self) -> list[dict]:
        """Return what a checkpoint needs to resume."""
        return [optimizer.state_dict() for optimizer in self._both]

    def load(self, state: list[dict]) -> None:
        for optimizer, saved in zip(self._both, state, strict=True):
            optimizer.load_state_dict(saved)
