"""`python tests/standin.py`: the app with stand-ins for the face models, for tests and screenshots.

An unsharp mask replaces GFPGAN; without YuNet, a fake detector returns two faces for every photo.
Jobs can be held as with held.py.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parents[1]))
from restorer.faces import align, networks
from restorer.faces.engine import FaceEngine
from restorer.models import registry, sources
from restorer.progress import Progress
from tests import held

FACES = ((0.3, 0.5, 0.3), (0.7, 0.5, 0.25))  # centre x, y and side of each, as fractions of the photo


class Sharpen(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.amount = torch.nn.Parameter(torch.tensor(1.5))

    def forward(self, crops: torch.Tensor, **_: object) -> tuple[torch.Tensor, list]:
        blurred = functional.avg_pool2d(functional.pad(crops, (8,) * 4, mode="reflect"), 17, 1)
        return (crops + self.amount * (crops - blurred)).clamp(-1, 1), []


def two_faces(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    height, width = pixels.shape[:2]
    size = np.array([(side * min(height, width) / align.SIDE,) for _, _, side in FACES])
    centre = np.array([(x * width, y * height) for x, y, _ in FACES])
    landmarks = (align.TEMPLATE - align.SIDE / 2)[None] * size[..., None] + centre[:, None]
    boxes = np.concatenate([landmarks.min(1) - 60 * size, landmarks.max(1) + 60 * size], axis=1)
    return boxes, np.array([0.9, 0.8]), landmarks


def load(
    model: registry.Model, weights: Path, *, progress: Progress | None = None, **options: object
) -> object:
    if model.kind == "face":
        return FaceEngine(Sharpen(), device=torch.device("cpu"))
    if model.kind == "detect" and not sources.is_present(model, weights):
        return two_faces
    return real_load(model, weights, progress=progress, **options)


if __name__ == "__main__":
    real_load, networks.load = networks.load, load
    held.main()
