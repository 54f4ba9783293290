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
_LARGEST_ZOOM = 1.45  # source pixels per pixel of a crop, before it is stretched


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
        """Return random crops (count, 3, side, side), 40 % unscaled, some mirrored and turned by 90 degrees.

        If varied, half are turned by any angle and stretched as well.
        """
        draw = torch.rand(7, count, device=self.device, generator=rng)
        level = choose(constant(_LEVEL_WEIGHTS, self.device), count, rng)
        index = (draw[0] * self.count).long().clamp(max=self.count - 1) * _LEVELS + level
        sizes = self._sizes[index]
        zoom = torch.where(draw[1] < 0.4, 1.0, 2 ** (draw[2] * 1.13 - 0.6))  # 0.66 to 1.45
        mirror = torch.where(draw[5:7] < 0.5, 1.0, -1.0).T
        # Source pixels per pixel of a crop: rows are y and x of the photograph, columns those of the crop
        steps = zoom[:, None, None] * mirror[:, :, None] * torch.eye(2, device=self.device)
        if self._varied:
            u = torch.rand(3, count, device=self.device, generator=rng)
            angle, stretch = 2 * math.pi * u[1], 2 ** (0.8 * u[2] - 0.4)
            cos, sin = angle.cos(), angle.sin()
            turn = torch.stack((cos * stretch, sin / stretch, -sin * stretch, cos / stretch), 1)
            steps = torch.where(u[0, :, None, None] < 0.5, steps @ turn.view(-1, 2, 2), steps)
        reach = steps.abs().sum(2) * (self.side - 1)
        fit = ((sizes - 2) / reach).amin(1).clamp(max=1)
        steps, half = steps * fit[:, None, None], reach * fit[:, None] / 2
        # Whole pixels at the start of a crop, so that an unscaled one is not interpolated
        centre = half + (draw[3:5].T * (sizes - 2 * half - 1)).floor()
        place = torch.arange(self.side, device=self.device) - (self.side - 1) / 2
        y, x = (
            centre[:, axis, None, None]
            + steps[:, axis, 0, None, None] * place[:, None]
            + steps[:, axis, 1, None, None] * place
            for axis in (0, 1)
        )
        crops = self._interpolate(index, y, x)
        turned = torch.rand(count, device=self.device, generator=rng)[:, None, None, None] < 0.5
        crops = torch.where(turned, crops.transpose(2, 3), crops)
        return vary(crops, rng) if self._varied else crops

    def _interpolate(self, index: torch.Tensor, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Interpolate photographs between pixels; y and x are (count, side, side)."""
        height, width = (size[:, None, None] for size in self._sizes[index].unbind(1))
        top = torch.minimum((y + 1e-3).floor().long().clamp(min=0), height - 2)
        left = torch.minimum((x + 1e-3).floor().long().clamp(min=0), width - 2)
        down, right = (y - top).clamp(0, 1), (x - left).clamp(0, 1)
        first = self._offsets[index][:, None, None] + top * width + left
        result = None
        for row, row_weight in ((0, 1 - down), (1, down)):
            for column, weight in ((0, 1 - right), (1, right)):
                pixels = self._rows[(first + row * width + column).view(-1)].view(*first.shape, 3).float()
                part = pixels * (row_weight * weight / 255)[..., None]
                result = part if result is None else result + part
        return result.permute(0, 3, 1, 2).contiguous()


def vary(crops: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """Change the tones, colours and sharpness of crops, and lay some over others.

    crops  (n, 3, side, side) in 0..1, as the result

    65 photographs are few: a detector that had only seen them as they are had a recall of 0.87 on them and of
    0.72 to 0.76 on others.
    """
    count, device = len(crops), crops.device
    u = torch.rand(12, count, 1, 1, 1, device=device, generator=rng)
    # A double exposure, or two photographs with a curved border
    border = torch.randn(count, 1, 3, 3, device=device, generator=rng)
    border = functional.interpolate(border, crops.shape[2:], mode="bicubic", align_corners=False)
    part = ((border + u[0] - 0.5) * 10 ** (2 * u[1])).sigmoid()
    share = torch.where(u[2] < 0.12, 0.25 + 0.5 * u[0], torch.where(u[2] < 0.24, part, 1.0))
    crops = share * crops + (1 - share) * crops.roll(1, 0)
    # Channels in another order, or grey of other weights
    weights = torch.rand(count, 3, device=device, generator=rng) ** 2 + 1e-3
    grey = (crops * (weights / weights.sum(1, keepdim=True))[..., None, None]).sum(1, keepdim=True)
    crops = torch.where(u[3] < 0.25, grey, torch.where(u[3] < 0.4, crops.roll(1, 1), crops))
    crops = torch.where(u[4] < 0.05, 1 - crops, crops)
    # Another tone curve, for each channel apart in some
    tint = torch.rand(count, 3, 1, 1, device=device, generator=rng) - 0.5
    gamma = 2 ** (2 * (u[5] - 0.5) + 0.5 * tint * (u[6] < 0.5))
    crops = torch.where(u[7] < 0.5, crops.clamp(1e-4, 1) ** gamma, crops)
    # Less contrast, or more sharpness
    mean = crops.mean((1, 2, 3), keepdim=True)
    crops = torch.where(u[8] < 0.3, mean + (0.35 + 0.65 * u[9]) * (crops - mean), crops)
    detail = crops - functional.avg_pool2d(crops, 3, 1, 1, count_include_pad=False)
    return (crops + torch.where(u[10] < 0.3, 1.5 * u[11], 0.0) * detail).clamp(0, 1)


def _pyramid(file: Path, smallest: int) -> list[np.ndarray]:
    image = cv2.imread(str(file), cv2.IMREAD_COLOR)
    if image is None:
        raise SystemExit(f"training: cannot read {file}")
    image, levels = np.ascontiguousarray(image[..., ::-1]), []
    while min(image.shape[:2]) >= smallest and len(levels) < _LEVELS:
        levels.append(image)
        image = cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    return levels
