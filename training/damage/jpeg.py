"""Simulate JPEG in torch: 4:2:0, the tables of Annex K, scaled as libjpeg does."""

import math

import torch
from torch.nn import functional

from .tensors import constant

# ITU-T T.81, tables K.1 and K.2
_TABLES = """
16 11 10 16 24 40 51 61 12 12 14 19 26 58 60 55 14 13 16 24 40 57 69 56 14 17 22 29 51 87 80 62
18 22 37 56 68 109 103 77 24 35 55 64 81 104 113 92 49 64 78 87 103 121 120 101 72 92 95 98 112 100 103 99

17 18 24 47 99 99 99 99 18 21 26 66 99 99 99 99 24 26 56 99 99 99 99 99 47 66 99 99 99 99 99 99
99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99
"""
_STEPS = tuple(float(word) for word in _TABLES.split())
# JFIF: RGB to Y, Cb, Cr, and back
_TO_YCC = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))
_TO_RGB = ((1.0, 0.0, 1.402), (1.0, -0.344136, -0.714136), (1.0, 1.772, 0.0))
_DCT = tuple(
    tuple(math.cos((2 * x + 1) * k * math.pi / 16) / (2 if k else math.sqrt(8)) for x in range(8))
    for k in range(8)
)


def compress(image: torch.Tensor, quality: torch.Tensor, phase: tuple[int, int] = (0, 0)) -> torch.Tensor:
    """Return the image after JPEG compression, in whole levels of 255.

    image    (n, 3, h, w) float32 RGB, 0..1
    quality  (n,) of libjpeg, 1..100
    phase    rows and columns, 0..15, of the first block that lie outside the image
    """
    height, width = image.shape[2:]
    top, left = phase
    pads = (left, -(left + width) % 16, top, -(top + height) % 16)
    padded = functional.pad((image.clamp(0, 1) * 255).round(), pads, mode="replicate")
    ycc = _mix(padded, constant(_TO_YCC, image.device))
    tables = _tables(quality)
    luma = _quantise(ycc[:, :1] - 128, tables[:, 0]) + 128
    chroma = _quantise(functional.avg_pool2d(ycc[:, 1:], 2), tables[:, 1])
    chroma = functional.interpolate(chroma, scale_factor=2.0, mode="bilinear", align_corners=False)
    rgb = _mix(torch.cat((luma, chroma), 1), constant(_TO_RGB, image.device))
    return rgb[..., top : top + height, left : left + width].round().clamp(0, 255) / 255


def _mix(image: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    return torch.stack([(image * row.view(1, 3, 1, 1)).sum(1) for row in matrix], 1)


def _tables(quality: torch.Tensor) -> torch.Tensor:
    """Return quantisation steps (n, 2, 8, 8) of luma and chroma."""
    base = constant(_STEPS, quality.device).view(1, 2, 8, 8)
    quality = quality.round()[:, None, None, None]
    scale = torch.where(quality < 50, (5000 / quality).floor(), 200 - 2 * quality)
    return ((base * scale + 50) / 100).floor().clamp(1, 255)


def _quantise(plane: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Quantise the 8x8 DCT of planes (n, c, h, w) by tables (n, 8, 8)."""
    n, c, h, w = plane.shape
    dct = constant(_DCT, plane.device)
    blocks = plane.view(n, c, h // 8, 8, w // 8, 8).transpose(3, 4)
    steps = table.view(n, 1, 1, 1, 8, 8)
    levels = (_transform(blocks, dct) / steps).round()
    return _transform(levels * steps, dct.T).transpose(3, 4).reshape(n, c, h, w)


def _transform(blocks: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """Return matrix @ block @ matrix.T of blocks (..., 8, 8), as two products of tall matrices."""
    return functional.linear(functional.linear(blocks, matrix).mT, matrix).mT
