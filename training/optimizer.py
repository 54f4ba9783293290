"""Muon for kernels (Jordan et al., 2024) and Adam for everything else, and the average of what they train."""

from collections.abc import Collection, Sequence

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


class Averaged:
    """Weights by name, their moving average, which is the result, and their optimizer.

    kernels  names of the weights for Muon
    decay    of the average
    """

    def __init__(self, weights: dict[str, torch.Tensor], kernels: Collection[str], decay: float) -> None:
        self.weights, self._decay, self.steps = weights, decay, 0
        self.mean = {name: tensor.detach().clone() for name, tensor in weights.items()}
        others = [tensor for name, tensor in weights.items() if name not in kernels]
        self._optimizer = Optimizer([weights[name] for name in weights if name in kernels], others)

    @torch.no_grad()
    def update(self, rate: float) -> None:
        """Apply the gradients, and forget them."""
        self._optimizer.step(rate)
        self.steps += 1
        decay = min(self._decay, self.steps / (self.steps + 10))
        torch._foreach_lerp_(list(self.mean.values()), list(self.weights.values()), 1 - decay)

    def state(self) -> dict:
        """Return what a checkpoint needs to resume."""
        weights = {name: tensor.detach() for name, tensor in self.weights.items()}
        optimizer = self._optimizer.state()
        return {"steps": self.steps, "weights": weights, "mean": self.mean, "optimizer": optimizer}

    @torch.no_grad()
    def load(self, state: dict) -> None:
        for tensors, saved in ((self.weights, state["weights"]), (self.mean, state["mean"])):
            for name, tensor in tensors.items():
                tensor.copy_(saved[name])
        self._optimizer.load(state["optimizer"])
        self.steps = state["steps"]

    def export(self) -> dict[str, torch.Tensor]:
        """Return the averaged weights, float16 on the CPU."""
        return {name: tensor.half().cpu().contiguous() for name, tensor in self.mean.items()}
