"""`python tests/standin.py`: the app with stand-ins for the models of faces, for tests and pictures.

An unsharp mask in place of GFPGAN, and, where YuNet is absent, a detector that sees two faces in every photo.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parents[1]))
import app
from restorer.faces import align, networks
from restorer.faces.engine import FaceEngine
from restorer.models import registry, sources
from restorer.progress import Progress

FACES = ((0.3, 0.5, 0.3), (0.7, 0.5, 0.25))  # middle and side of each, in parts of the photo's sides


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
    middle = np.array([(x * width, y * height) for x, y, _ in FACES])
    landmarks = (align.TEMPLATE - align.SIDE / 2)[None] * size[..., None] + middle[:, None]
    boxes = np.concatenate([landmarks.min(1) - 60 * size, landmarks.max(1) + 60 * size], axis=1)
    return boxes, np.array([0.9, 0.8]), landmarks


def load(
    model: registry.Model, weights: Path, *, progress: Progress | None = None, **options: object
) -> object:
    if model.kind == "face":
        return FaceEngine(Sharpen(), device=torch.device("cpu"))
    if model.kind == "detect" and not sources.is_present(model, weights):
        return two_faces
    return really(model, weights, progress=progress, **options)


if __name__ == "__main__":
    really, networks.load = networks.load, load
    app.main()
