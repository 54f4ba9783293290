"""Tiny networks with seeded weights, for architectures without installed weights and whatever needs none."""

import numpy as np
import torch
from torch import nn

from restorer.inference import network
from restorer.models import architectures

NETWORKS = {
    "compact": ("SRVGGNetCompact", {"num_feat": 20, "num_conv": 6, "upscale": 4, "act_type": "prelu"}, 4, 1),
    "compact x2": (
        "SRVGGNetCompact",
        {"num_feat": 8, "num_conv": 1, "upscale": 2, "act_type": "prelu"},
        2,
        1,
    ),
    "rrdb": ("RRDBNet", {"num_feat": 16, "num_block": 2, "num_grow_ch": 8, "scale": 4}, 4, 1),
    "rrdb x2": ("RRDBNet", {"num_feat": 8, "num_block": 1, "num_grow_ch": 8, "scale": 2}, 2, 2),
    "rrdb x1": ("RRDBNet", {"num_feat": 8, "num_block": 1, "num_grow_ch": 4, "scale": 1}, 1, 4),
}


def state_of(kind: str) -> tuple[architectures.NetworkSpec, architectures.StateDict]:
    """Return a spec and seeded tensors, large enough that every layer affects the result."""
    arch, parameters, scale, align = NETWORKS[kind]
    spec = architectures.NetworkSpec(arch, parameters, scale, align)
    generator = torch.Generator().manual_seed(1)
    template = architectures.create(arch, parameters).state_dict()
    return spec, {
        key: torch.randn(tensor.shape, generator=generator) / max(1, tensor[0].numel()) ** 0.5
        for key, tensor in template.items()
    }


def create(kind: str) -> nn.Module:
    spec, state = state_of(kind)
    return architectures.build(spec, state, kind).eval().requires_grad_(False)


def image(height: int, width: int, channels: int = 3) -> torch.Tensor:
    return torch.rand(1, channels, height, width, generator=torch.Generator().manual_seed(2))


def parts_of(*modules: nn.Module, halos: tuple[int, ...], scale: int = 1) -> list[network.Segment]:
    """Return a chain of segments of three channels; the last one enlarges."""
    names = [network.IMAGE, *(f"map {index}" for index in range(1, len(modules))), "output"]
    return [
        network.Segment(
            module,
            (names[i],),
            names[i + 1],
            halos[i],
            3,
            scale if i == len(modules) - 1 else 1,
            scale if i == len(modules) - 1 else 1,
            (3,),
        )
        for i, module in enumerate(modules)
    ]


class Nearest(nn.Module):
    """Repeats pixels and multiplies them; has one weight for half() and to() to convert."""

    def __init__(self, scale: int = 2, gain: float = 1.0) -> None:
        super().__init__()
        self.scale, self.gain = scale, nn.Parameter(torch.tensor(gain), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.interpolate(x * self.gain, scale_factor=self.scale, mode="nearest")


class Blur(nn.Module):
    """Averages squares of 2 radius + 1 pixels, with zeros beyond the edge."""

    def __init__(self, radius: int) -> None:
        super().__init__()
        self.radius = radius

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.avg_pool2d(x, 2 * self.radius + 1, 1, self.radius)


def doubled(samples: np.ndarray, scale: int = 2) -> np.ndarray:
    return samples.repeat(scale, axis=0).repeat(scale, axis=1)
