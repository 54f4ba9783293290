"""Photographs as one tensor on the device, at three resolutions, and random crops of them.

Images are (n, 3, h, w) float32 RGB in 0..1 unless documented otherwise.
"""

import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.nn import functional

from .tensors import choose, constant

_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp")
_LEVELS = 3  # the full size, a half and a quarter
_LEVEL_WEIGHTS = (0.2, 0.35, 0.45)
_LARGEST_ZOOM = 1.45  # source pixels per pixel of a crop


class Bank:
    """Photographs of any size, as rows of RGB pixels, uint8.

    folder  searched recursively; photographs smaller than 1.45 x side are skipped
    part    slice of the photographs, in the order of their names
    side    of a crop in pixels
    varied  change what sample() returns, see vary()
    """

    def __init__(
        self,
        folder: Path,
        part: slice,
        side: int,
        *,
        device: torch.device,
        workers: int = 4,
        varied: bool = False,
    ) -> None:
        files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES)[part]
        smallest = int(_LARGEST_ZOOM * side) + 2
        with ThreadPoolExecutor(workers) as pool:
            pyramids = list(pool.map(lambda file: _pyramid(file, smallest), files))
        pyramids = [pyramid for pyramid in pyramids if pyramid]
        if not pyramids:
            raise SystemExit(f"training: no photographs of {smallest} pixels or more in {folder}")
        sizes, offsets, rows, total = [], [], [], 0
        for pyramid in pyramids:
            for level in range(_LEVELS):
                if level < len(pyramid):
                    image = pyramid[level]
                    rows.append(torch.from_numpy(image.reshape(-1, 3)).to(device))
                    offset, total = total, total + len(rows[-1])
                sizes.append(image.shape[:2])
                offsets.append(offset)
        self.count, self.side = len(pyramids), side
        self.device, self._varied = device, varied
        self._rows = torch.cat(rows)
        self._offsets = torch.tensor(offsets, device=device)
        self._sizes = torch.tensor(sizes, device=device)

    def sample(self, count: int, rng: torch.Generator) -> torch.Tensor:
        """Return random crops (count, 3, side, side), 40 % unscaled, turned and mirrored at random."""
        draw = torch.rand(7, count, device=self.device, generator=rng)
        level = choose(constant(_LEVEL_WEIGHTS, self.device), count, rng)
        index = (draw[0] * self.count).long().clamp(max=self.count - 1) * _LEVELS + level
        height, width = self._sizes[index].unbind(1)
        zoom = torch.where(draw[1] < 0.4, 1.0, 2 ** (draw[2] * 1.13 - 0.6))  # 0.66 to 1.45
        grid = (torch.arange(self.side, device=self.device) - (self.side - 1) / 2) * zoom[:, None]
        half = zoom * (self.side - 1) / 2
        # Whole pixels at the start of a crop, so that an unscaled one is not interpolated
        y = grid + (half + (draw[3] * (height - 2 * half - 1)).floor())[:, None]
        x = grid + (half + (draw[4] * (width - 2 * half - 1)).floor())[:, None]
        y = torch.where(draw[5, :, None] < 0.5, y, y.flip(1))
        x = torch.where(draw[6, :, None] < 0.5, x, x.flip(1))
        crops = self._interpolate(index, y, x)
        turned = torch.rand(count, device=self.device, generator=rng)[:, None, None, None] < 0.5
        crops = torch.where(turned, crops.transpose(2, 3), crops)
        return vary(crops, rng) if self._varied else crops

    def _interpolate(self, index: torch.Tensor, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        height, width = (size[:, None] for size in self._sizes[index].unbind(1))
        top = torch.minimum((y + 1e-3).floor().long().clamp(min=0), height - 2)
        left = torch.minimum((x + 1e-3).floor().long().clamp(min=0), width - 2)
        down, right = (y - top).clamp(0, 1), (x - left).clamp(0, 1)
        start = self._offsets[index][:, None, None]
        result = None
        for row, row_weight in ((top, 1 - down), (top + 1, down)):
            for column, weight in ((left, 1 - right), (left + 1, right)):
                position = start + row[:, :, None] * width[:, :, None] + column[:, None, :]
                pixels = self._rows[position.view(-1)].view(*position.shape, 3).float()
                part = pixels * (row_weight[:, :, None] * weight[:, None, :] / 255)[..., None]
                result = part if result is None else result + part
        return result.permute(0, 3, 1, 2).contiguous()


def vary(crops: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """Change the tones, colours and sharpness of crops, and lay some over others.

    crops  (n, 3, side, side) in 0..1, as the result

    65 photographs are few: a detector that had only seen them as they are had a recall of 0.87 on them and of
    0.72 to 0.76 on others.
    """
    count, device = len(crops), crops.device
    u = torch.rand(13, count, 1, 1, 1, device=device, generator=rng)
    # A double exposure, or two photographs side by side
    place = torch.linspace(-1, 1, crops.shape[2], device=device)
    angle = 2 * math.pi * u[0]
    cut = (angle.cos() * place[:, None] + angle.sin() * place + u[1] - 0.5) * 10 ** (2 * u[2])
    share = torch.where(u[3] < 0.12, 0.25 + 0.5 * u[1], torch.where(u[3] < 0.24, cut.sigmoid(), 1.0))
    crops = share * crops + (1 - share) * crops.roll(1, 0)
    # Channels in another order, or grey of other weights
    weights = torch.rand(count, 3, device=device, generator=rng) ** 2 + 1e-3
    grey = (crops * (weights / weights.sum(1, keepdim=True))[..., None, None]).sum(1, keepdim=True)
    crops = torch.where(u[4] < 0.25, grey, torch.where(u[4] < 0.4, crops.roll(1, 1), crops))
    crops = torch.where(u[5] < 0.05, 1 - crops, crops)
    # Another tone curve, for each channel apart in some
    tint = torch.rand(count, 3, 1, 1, device=device, generator=rng) - 0.5
    gamma = 2 ** (2 * (u[6] - 0.5) + 0.5 * tint * (u[7] < 0.5))
    crops = torch.where(u[8] < 0.5, crops.clamp(1e-4, 1) ** gamma, crops)
    # Less contrast, or more sharpness
    mean = crops.mean((1, 2, 3), keepdim=True)
    crops = torch.where(u[9] < 0.3, mean + (0.35 + 0.65 * u[10]) * (crops - mean), crops)
    detail = crops - functional.avg_pool2d(crops, 3, 1, 1, count_include_pad=False)
    return (crops + torch.where(u[11] < 0.3, 1.5 * u[12], 0.0) * detail).clamp(0, 1)


def _pyramid(file: Path, smallest: int) -> list[np.ndarray]:
    image = cv2.imread(str(file), cv2.IMREAD_COLOR)
    if image is None:
        raise SystemExit(f"training: cannot read {file}")
    image, levels = np.ascontiguousarray(image[..., ::-1]), []
    while min(image.shape[:2]) >= smallest and len(levels) < _LEVELS:
        levels.append(image)
        image = cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    return levels
