"""ParseNet (facexlib's class): which pixels of a crop are face, for a mask that follows its outline."""

import cv2
import numpy as np
import torch
from torch import nn

from ..images.resample import to_uint8
from ..inference.engine import out_of_memory

# Of ParseNet's 19 classes those that belong to the face; not: background, hair, hat, ear ring, neck, clothes
_OUTSIDE = (0, 13, 14, 15, 16, 17, 18)
_FEATHER = 11.0  # sigma in pixels


class ParseNet:
    """network is facexlib's ParseNet, which is moved to the device."""

    def __init__(self, network: nn.Module, *, device: torch.device) -> None:
        self._device = device
        self._network = network.eval().requires_grad_(False).to(device)

    def __call__(self, crop: np.ndarray) -> np.ndarray:
        """Where (512, 512, 3) uint8 or uint16 RGB shows the face: (512, 512) float32, 0 to 1, soft-edged."""
        batch = torch.from_numpy(to_uint8(crop).astype(np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
        with out_of_memory(), torch.inference_mode():
            classes = self._network(batch.to(self._device))[0].argmax(1)[0].cpu().numpy()
        face = np.isin(classes, _OUTSIDE, invert=True).astype(np.float32)
        return cv2.GaussianBlur(cv2.GaussianBlur(face, (0, 0), _FEATHER), (0, 0), _FEATHER)
