"""ParseNet (facexlib's class): mask a face along its outline."""

import cv2
import numpy as np
import torch
from torch import nn

from ..images.resample import to_uint8
from ..inference.memory import out_of_memory

# Of ParseNet's 19 classes, those that are not the face: background, hair, hat, earring, necklace, neck,
# clothes
_NOT_FACE = (0, 13, 14, 15, 16, 17, 18)
_FEATHER = 11.0  # sigma in pixels


class ParseNet:
    """A face mask from a crop.

    network  facexlib's ParseNet; moved to the device
    """

    def __init__(self, network: nn.Module, *, device: torch.device) -> None:
        self._device = device
        self._network = network.eval().requires_grad_(False).to(device)

    def __call__(self, crop: np.ndarray) -> np.ndarray:
        """Return a soft mask (512, 512) float32, 0 to 1, of the face in (512, 512, 3) uint8 or uint16 RGB."""
        batch = torch.from_numpy(to_uint8(crop).astype(np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
        with out_of_memory(), torch.inference_mode():
            classes = self._network(batch.to(self._device))[0].argmax(1)[0].cpu().numpy()
        face = np.isin(classes, _NOT_FACE, invert=True).astype(np.float32)
        return cv2.GaussianBlur(cv2.GaussianBlur(face, (0, 0), _FEATHER), (0, 0), _FEATHER)
