"""Compose damage over crops of photographs, in batches on the device.

The order is that of an old photo's life: content, soft focus, ageing of the colours, damage, scanning, grain,
JPEG. The undamaged crop takes every step but one. Images are (n, 3, side, side) float32 RGB in 0..1, masks
(n, 1, side, side) float32.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional

from restorer.inference.engine import without_tf32

from . import draw, jpeg
from .cutouts import SIDE
from .photos import Bank
from .tensors import choose, constant

_MOST_DAMAGE, _MOST_CONTENT = 4, 2  # layers of a crop
_LAYER_WEIGHTS = (4, 3, 2, 1)  # of one to four layers of damage
_VISIBLE = 0.05  # least change of a damaged pixel without grain, in shares of white
_FAINT = 0.015  # greatest change of an undamaged pixel
_GREY = (0.299, 0.587, 0.114)
_SEPIA = (0.0, 0.14, 0.36)  # what the strongest sepia takes from red, green and blue
# How often a kind is used, and its smallest and largest scale; a pixel of a drawn line is that of the photo
_KINDS = {
    "dirt": (1.0, 0.5, 2.0),
    "dots": (0.8, 0.06, 0.45),
    "hair": (1.6, 0.5, 2.0),
    "hair-short": (1.2, 0.5, 2.0),
    "lint": (1.0, 0.4, 1.4),
    "scratches": (1.2, 0.5, 2.0),
    "smut": (1.0, 0.15, 0.9),
    "spots": (1.4, 0.5, 2.5),
    "sprinkles": (0.7, 0.5, 1.8),
    "stain": (1.0, 0.15, 0.8),
    "crack": (1.2, 0.6, 1.4),
    "flake": (0.8, 0.5, 1.5),
    "fold": (1.0, 0.6, 1.6),
    "scratch": (2.0, 0.6, 1.5),
}
_WHOLE_FRAME = {"crack", "flake", "fold", "scratch", *draw.CONTENT}  # drawn to their frame's edges


class Batch(NamedTuple):
    """What the networks see and learn.

    photo    damaged crops
    clean    the same crops without damage
    damage   1 where a change is visible, else 0
    weight   of a pixel in the detector's loss: 0 where a change is too faint to count, 1 elsewhere and more
             over content that resembles damage
    touched  1 where damage changed a pixel at all before grain and JPEG, else 0
    """

    photo: torch.Tensor
    clean: torch.Tensor
    damage: torch.Tensor
    weight: torch.Tensor
    touched: torch.Tensor


class Atlas:
    """Alphas (n, SIDE, SIDE) uint8 on the device, and how often each kind is drawn.

    names  "kind/name" of each alpha, those of a kind in a row
    """

    def __init__(self, names: list[str], alphas: np.ndarray, device: torch.device) -> None:
        kinds = [name.partition("/")[0] for name in names]
        unique = sorted(set(kinds))
        settings = [_KINDS.get(kind, (1.0, 0.7, 1.5)) for kind in unique]
        self.alphas = torch.from_numpy(alphas).to(device)
        self.starts = torch.tensor([kinds.index(kind) for kind in unique], device=device)
        self.counts = torch.tensor([kinds.count(kind) for kind in unique], device=device)
        self.weights = torch.tensor([setting[0] for setting in settings], device=device)
        self.scales = torch.tensor([setting[1:] for setting in settings], device=device)
        self.whole = torch.tensor([kind in _WHOLE_FRAME for kind in unique], device=device)

    def sample(self, count: int, side: int, rng: torch.Generator) -> torch.Tensor:
        """Return random alphas (count, 1, side, side) float32 at random places, sizes and angles."""
        device = self.alphas.device
        kind = choose(self.weights, count, rng)
        u = torch.rand(8, count, device=device, generator=rng)
        index = self.starts[kind] + (u[0] * self.counts[kind]).long().clamp(max=self.counts[kind] - 1)
        low, high = self.scales[kind].unbind(1)
        scale = low * (high / low) ** u[1]
        reach = torch.where(self.whole[kind], (scale * SIDE - side).clamp(min=0) / 2, 0.45 * side)
        shift = (u[2:4] * 2 - 1) * reach
        angle = u[4] * 2 * math.pi
        stretch = 2 ** (u[5] * 0.6 - 0.3)
        mirror = torch.where(u[6] < 0.5, -1.0, 1.0)
        cos, sin = angle.cos() / scale, angle.sin() / scale
        rows = torch.stack((cos * mirror * stretch, sin * mirror * stretch, -sin, cos)).T.view(count, 2, 2)
        offset = -(rows @ shift.T[..., None]) * 2 / SIDE
        theta = torch.cat((rows * side / SIDE, offset), 2)
        grid = functional.affine_grid(theta, [count, 1, side, side], align_corners=False)
        return functional.grid_sample(self.alphas[index][:, None].float() / 255, grid, align_corners=False)


def compose(
    photos: Bank,
    damage: Atlas,
    content: Atlas,
    count: int,
    rng: torch.Generator,
    *,
    undamaged: float = 0.25,
    plain: float = 0.55,
) -> Batch:
    """Return a batch of `count` crops.

    undamaged  share of crops without damage, the first of the batch
    plain      share of crops without drawn content
    """
    device, side = photos.device, photos.side

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(count, *shape, device=device, generator=rng)

    scene, resembling = _add_content(photos.sample(count, rng), content, uniform(0, 1) < plain, rng)
    scene = blur(scene, uniform(0.3, 1.6) * (uniform(0, 1) < 0.5))
    matrix, offset, gamma = _ageing(count, device, rng)
    before = (uniform(0, 1) < 0.6).view(-1, 1, 1, 1)
    aged = _apply(scene, matrix, offset, gamma)
    scene = torch.where(before, aged, scene)
    number = choose(constant(_LAYER_WEIGHTS, device), count, rng) + 1
    number[: round(undamaged * count)] = 0
    worn, alpha = _add_damage(scene, damage, number, rng)
    worn = torch.where(before, worn, _apply(worn, matrix, offset, gamma))
    scene = torch.where(before, scene, aged)
    scan = uniform(0.3, 0.9) * (uniform(0, 1) < 0.4)
    scanned = blur(torch.cat((worn, scene, alpha, resembling), 1), scan)
    worn, scene, alpha, resembling = scanned.split((3, 3, 1, 1), 1)
    grain, strength = _grain(count, side, device, rng)
    change = (worn - scene).abs().amax(1, keepdim=True)
    visible = (change > (_VISIBLE + 1.5 * strength + 0.25 * _deviation(scene)).clamp(max=0.2)).float()
    touched = ((change > 1e-6) | (alpha > 1e-6)).float()
    unsure = ((change > _FAINT) | (alpha > 0.04)).float() * (1 - visible)
    weight = (1 + 2 * (resembling > 0.2).float()) * (1 - unsure)
    both = ((torch.cat((worn, scene)) + grain.repeat(2, 1, 1, 1)).clamp(0, 1) * 255).round() / 255
    phase = divmod(rng.initial_seed() % 256, 16)  # one a batch, of the host: reading the device would wait
    quality, lossless = uniform(30, 96), uniform(0, 1) < 0.3
    both = torch.where(
        lossless.repeat(2).view(-1, 1, 1, 1), both, jpeg.compress(both, quality.repeat(2), phase)
    )
    return Batch(both[:count], both[count:], visible, weight, touched)


def blur(image: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Blur each image (n, c, h, w) by a Gaussian with its own sigma (n,) in pixels, at most 1.7."""
    count, channels, height, width = image.shape
    taps = torch.arange(-5, 6, device=image.device)
    kernels = torch.exp(-taps.square() / (2 * sigma.clamp(min=0.05)[:, None].square()))
    kernels = (kernels / kernels.sum(1, keepdim=True)).repeat_interleave(channels, 0)[:, None]
    planes = functional.pad(image, (5, 5, 5, 5), mode="replicate").view(1, count * channels, height + 10, -1)
    with without_tf32(image.device):
        for kernel in (kernels[..., None], kernels[:, :, None]):
            planes = functional.conv2d(planes, kernel, groups=count * channels)
    return planes.view(image.shape)


def _deviation(image: torch.Tensor) -> torch.Tensor:
    """Return the standard deviation (n, 1, h, w) of grey in windows of 7x7 pixels."""
    grey = image.mean(1, keepdim=True)
    mean, square = (functional.avg_pool2d(x, 7, 1, 3, count_include_pad=False) for x in (grey, grey.square()))
    return (square - mean.square()).clamp(min=0).sqrt()


def _layers(
    atlas: Atlas, count: int, most: int, number: torch.Tensor, side: int, rng: torch.Generator
) -> torch.Tensor:
    """Return alphas (most, count, 1, side, side), of which each crop's first `number` are not empty."""
    alphas = atlas.sample(most * count, side, rng).view(most, count, 1, side, side)
    used = torch.arange(most, device=number.device)[:, None] < number
    return alphas * used[..., None, None, None]


def _add_content(
    scene: torch.Tensor, atlas: Atlas, plain: torch.Tensor, rng: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the scene with drawn content in colours of the scene, black or white, and its mask."""
    count, _, side, _ = scene.shape
    device = scene.device
    number = torch.randint(1, _MOST_CONTENT + 1, (count,), generator=rng, device=device) * ~plain
    total = torch.zeros_like(scene[:, :1])
    for alpha in _layers(atlas, count, _MOST_CONTENT, number, side, rng):
        u = torch.rand(6, count, 1, 1, 1, device=device, generator=rng)
        place = (u[:2].view(2, count) * side).long().clamp(max=side - 1)
        own = scene[torch.arange(count, device=device), :, place[0], place[1]][..., None, None]
        extreme = torch.where(u[2] < 0.5, 0.1 * u[3], 0.85 + 0.15 * u[3])
        shade = torch.where(u[4] < 0.5, own * (0.5 + u[3]), extreme).clamp(0, 1)
        alpha = alpha * (0.6 + 0.4 * u[5])
        scene = scene + alpha * (shade - scene)
        total = torch.maximum(total, alpha)
    return scene, total


def _add_damage(
    scene: torch.Tensor, atlas: Atlas, number: torch.Tensor, rng: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the damaged scene and the greatest alpha (n, 1, side, side) of its layers."""
    count, _, side, _ = scene.shape
    device = scene.device
    worn, total = scene, torch.zeros_like(scene[:, :1])
    polarity = torch.rand(count, 1, 1, 1, device=device, generator=rng)  # of most layers of a crop
    u = torch.rand(9, _MOST_DAMAGE, count, 1, 1, 1, device=device, generator=rng)
    gain = torch.where(u[0] < 0.5, 1.0, 0.8 + 1.2 * u[1])
    opacity = torch.where(u[2] < 0.6, 0.8 + 0.2 * u[3], 0.25 + 0.6 * u[3])
    alphas = (_layers(atlas, count, _MOST_DAMAGE, number, side, rng) * gain).clamp(max=1)
    alphas = blur(alphas.flatten(0, 1), 1.2 * (u[4] * 2 - 1).clamp(min=0).view(-1)).view_as(alphas) * opacity
    for layer, alpha in enumerate(alphas):
        v = u[:, layer]
        tint = torch.rand(count, 3, 1, 1, device=device, generator=rng)
        texture = torch.randn(count, 1, 24, 24, device=device, generator=rng)
        white = torch.where(v[5] < 0.15, v[6], polarity) < 0.62
        light = 1 - 0.25 * v[7] ** 2 - 0.12 * v[7] * tint
        dark = 0.25 * v[7] ** 2 + 0.10 * v[7] * tint
        shade = torch.where(white, light, dark)
        # A fold or a scratch has a lit and a shaded edge
        relief = (alpha - alpha.roll((1, 1), (2, 3))) * (v[6] > 0.85) * (v[3] - 0.5)
        texture = functional.interpolate(texture, (side, side), mode="bilinear", align_corners=False)
        shade = shade + texture * 0.06 * v[1]
        stain = worn * (0.25 + 0.65 * tint * v[7])  # a transparent colour
        bleach = 1 - (1 - worn) * (0.25 + 0.65 * tint * v[7])
        shade = torch.where(v[8] < 0.14, stain, torch.where(v[8] < 0.24, bleach, shade))
        shade = torch.where(v[8] > 0.94, tint + texture * 0.05, shade).clamp(0, 1)
        worn = (worn + alpha * (shade - worn) + relief).clamp(0, 1)
        total = torch.maximum(total, torch.maximum(alpha, alpha.roll((1, 1), (2, 3)) * (v[6] > 0.85)))
    return worn, total


def _ageing(
    count: int, device: torch.device, rng: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return a colour matrix (n, 3, 3), an offset (n, 3) and an exponent (n,) that make a photo old."""
    u = torch.rand(8, count, 1, device=device, generator=rng)
    grey = constant(_GREY, device).expand(3, 3)
    saturation = torch.where(u[0] < 0.5, 0.0, torch.where(u[0] < 0.7, u[1], 1.0))[..., None]
    matrix = saturation * torch.eye(3, device=device) + (1 - saturation) * grey
    sepia = (u[2] < 0.35) * u[3] * constant(_SEPIA, device)
    matrix = matrix * (1 - sepia)[..., None]
    faded = u[4] < 0.5
    black, white = faded * 0.2 * u[5], 1 - faded * 0.25 * u[6]
    gamma = torch.where(u[7] < 0.5, 1.0, 2 ** (u[7] * 2.4 - 1.8))  # 0.66 to 1.52
    return matrix * (white - black)[..., None], black * (1 - sepia), gamma[:, 0]


def _apply(
    image: torch.Tensor, matrix: torch.Tensor, offset: torch.Tensor, gamma: torch.Tensor
) -> torch.Tensor:
    powered = image.clamp(1e-4, 1) ** gamma.view(-1, 1, 1, 1)
    mixed = torch.stack([(powered * matrix[:, row, :, None, None]).sum(1) for row in range(3)], 1)
    return (mixed + offset[..., None, None]).clamp(0, 1)


def _grain(
    count: int, side: int, device: torch.device, rng: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return noise (n, 3, side, side), grey or coloured, fine or coarse, and its sigma (n, 1, 1, 1)."""
    u = torch.rand(4, count, 1, 1, 1, device=device, generator=rng)
    noise = torch.randn(count, 3, side, side, device=device, generator=rng)
    noise = torch.where(u[0] < 0.6, noise[:, :1], noise)
    sigma = 0.3 + 0.9 * (u[1].view(-1) * 2 - 1).clamp(min=0)
    noise = blur(noise, sigma)
    noise = noise / noise.std((1, 2, 3), keepdim=True)
    strength = torch.where(u[2] < 0.4, 0.0, 0.06 * u[3] ** 2)
    return noise * strength, strength
