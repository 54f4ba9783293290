"""RetinaFace (facexlib's class): slower than YuNet, but detects smaller and more rotated faces."""

import warnings

import numpy as np
import torch
from torch import nn

from ..inference.memory import out_of_memory
from .detect import DetectorOutput

_MIN_SCORE, _MAX_OVERLAP = 0.8, 0.4  # as in facexlib


class RetinaFace:
    """A detector for detect.detect_faces().

    network  facexlib's RetinaFace; moved to the device
    """

    def __init__(self, network: nn.Module, *, device: torch.device) -> None:
        self._network = network.eval().requires_grad_(False).to(device)
        self._network.device = device  # type: ignore[assignment]  # read by facexlib
        self._network.mean_tensor = torch.tensor([104.0, 117.0, 123.0], device=device).view(1, 3, 1, 1)  # type: ignore[assignment]

    def __call__(self, pixels: np.ndarray) -> DetectorOutput:
        """Detect faces in (H, W, 3) uint8 RGB."""
        with out_of_memory(), torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of read-only arrays
            rows = self._network.detect_faces(pixels[..., ::-1], _MIN_SCORE, _MAX_OVERLAP)  # type: ignore[operator]
        rows = np.asarray(rows, np.float64).reshape(-1, 15)
        return rows[:, :4], rows[:, 4], rows[:, 5:].reshape(-1, 5, 2)
