"""Run a face restoration network on crops."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from ..errors import InvalidOutput, OutOfMemory, RestoreError
from ..inference.engine import without_tf32
from ..inference.memory import out_of_memory

_BATCH = {"cuda": 8}  # faces at once; on a CPU, one saturates every core


class FaceEngine:
    """A face restoration network on a device.

    network  maps (N, 3, 512, 512) float in [-1, 1] to the same, or to a tuple that starts with it
    half     compute in bfloat16 (GFPGAN overflows float16); crops that fail are recomputed in float32
    """

    def __init__(self, network: nn.Module, *, device: torch.device, half: bool = False) -> None:
        self.device, self.half = device, half
        self.batch = _BATCH.get(device.type, 1)
        self.network = network.eval().requires_grad_(False).to(device)

    def __call__(self, crops: Sequence[np.ndarray]) -> list[np.ndarray | RestoreError]:
        """Return each (512, 512, 3) uint8 or uint16 RGB crop restored, in its dtype, or the error."""
        size = self.batch
        results: list[np.ndarray | RestoreError] = []
        while len(results) < len(crops):
            batch = crops[len(results) : len(results) + size]
            try:
                results += self._run(batch)
            except OutOfMemory as error:
                if size == 1:
                    results.append(error)
                size = max(1, size // 2)
        return results

    def _run(self, crops: Sequence[np.ndarray]) -> list[np.ndarray | RestoreError]:
        with out_of_memory(), torch.inference_mode():
            batch = torch.stack([_to_tensor(crop) for crop in crops]).to(self.device)
            out = self._forward(batch, self.half)
            broken = ~torch.isfinite(out).flatten(1).all(1)
            if self.half and broken.any():
                out[broken] = self._forward(batch[broken], False)
                broken = ~torch.isfinite(out).flatten(1).all(1)
            images = out.add_(1).mul_(0.5).clamp_(0, 1).permute(0, 2, 3, 1).cpu().numpy()
        return [
            InvalidOutput("the network returned NaN or infinite values, even in float32")
            if bad
            else _quantize(image, crop.dtype)
            for image, bad, crop in zip(images, broken.tolist(), crops, strict=True)
        ]

    def _forward(self, batch: torch.Tensor, half: bool) -> torch.Tensor:
        with without_tf32(self.device), torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            # arguments of GFPGAN: with its stored noise, results are reproducible
            out = self.network(batch, return_rgb=False, randomize_noise=False)
        return (out[0] if isinstance(out, tuple) else out).float()


def _to_tensor(crop: np.ndarray) -> torch.Tensor:
    """Convert (512, 512, 3) integers to (3, 512, 512) in [-1, 1]."""
    middle = np.iinfo(crop.dtype).max / 2
    return torch.from_numpy((crop.astype(np.float32) / np.float32(middle) - 1).transpose(2, 0, 1).copy())


def _quantize(image: np.ndarray, dtype: np.dtype) -> np.ndarray:
    return np.rint(image * np.float32(np.iinfo(dtype).max)).astype(dtype)
