"""Describe a network as segments: parts with a small receptive field and whole feature maps between them.

A tile of a whole network needs as much context as its receptive field, which is 351 pixels for RRDBNet. A
tile of a segment needs a few pixels: tiling is exact, and little is computed twice.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional

Compute = Callable[..., torch.Tensor]  # windows of the maps that a segment reads to its output
IMAGE = "image"  # the map that a network reads first
_GROUP = 11  # most convolutions of an SRVGGNetCompact in a segment; of 4 to 17, 9 to 11 are the fastest


class Segment(NamedTuple):
    """A part of a network.

    module    maps windows (1, C, h, w) of the maps it reads to (1, channels, h*scale, w*scale)
    reads     names of the maps; only the first is read with context
    writes    name of the map, which may be one that is read without context
    halo      context around a tile, in pixels of the maps it reads
    channels  of its output
    scale     enlargement
    divisor   of the side of its tiles, because it enlarges its maps before it convolves them
    inputs    channels of the maps it reads
    """

    module: Compute
    reads: tuple[str, ...]
    writes: str
    halo: int
    channels: int
    scale: int = 1
    divisor: int = 1
    inputs: tuple[int, ...] = ()


def segments(network: nn.Module) -> list[Segment]:
    """Split an RRDBNet or an SRVGGNetCompact of basicsr into segments, which share its weights.

    The map IMAGE is the network's input in [0, 1], after the pixel unshuffle if there is one. The last
    segment writes the output.
    """
    parts = list(_rrdb(network) if hasattr(network, "conv_first") else _compact(network))
    first = next(layer for layer in network.modules() if isinstance(layer, nn.Conv2d))
    channels = {IMAGE: first.in_channels}
    for index, part in enumerate(parts):
        parts[index] = part._replace(inputs=tuple(channels[name] for name in part.reads))
        channels[part.writes] = part.channels
    return parts


def map_channels(parts: Sequence[Segment]) -> int:
    """Return the largest number of channels of all maps that exist at one time, without the last output."""
    channels = {IMAGE: parts[0].inputs[0]}
    largest = channels[IMAGE]
    for index, part in enumerate(parts[:-1]):
        channels[part.writes] = part.channels
        largest = max(largest, sum(channels.values()))
        for name in unused(parts, index, channels):
            del channels[name]
    return largest


def unused(parts: Sequence[Segment], index: int, names: Iterable[str]) -> list[str]:
    """Return those of the maps that no segment after `index` reads or writes.

    A map that is written again keeps its memory: new memory is slow, as the system fills it with zeros.
    """
    later = {name for part in parts[index + 1 :] for name in (*part.reads, part.writes)}
    return [name for name in names if name not in later]


def _rrdb(network: Any) -> Iterator[Segment]:  # noqa: ANN401  of basicsr, which has no types
    """Use four maps: trunk, the input of the current block, and two between its dense blocks."""
    features = network.conv_first.out_channels
    yield Segment(network.conv_first, (IMAGE,), "trunk", 1, features)
    block_input = "trunk"
    for block in network.body:
        yield Segment(block.rdb1, (block_input,), "first", 5, features)
        yield Segment(block.rdb2, ("first",), "second", 5, features)
        yield Segment(LastDense(block.rdb3), ("second", block_input), "block", 5, features)
        block_input = "block"
    yield Segment(Residual(network.conv_body), (block_input, "trunk"), "trunk", 1, features)
    yield Segment(RrdbTail(network), ("trunk",), "output", 2, 3, scale=4, divisor=4)


def _compact(network: Any) -> Iterator[Segment]:  # noqa: ANN401  of basicsr, which has no types
    layers = list(network.body)
    features, scale = layers[0].out_channels, int(network.upscale)
    convolutions = (len(layers) + 1) // 2  # each but the last is followed by its activation
    size = -(-convolutions // -(-convolutions // _GROUP))
    groups = [layers[start : start + 2 * size] for start in range(0, len(layers), 2 * size)]
    source = IMAGE
    for number, group in enumerate(groups[:-1]):
        target = ("even", "odd")[number % 2]
        yield Segment(nn.Sequential(*group), (source,), target, size, features)
        source = target
    halo = (len(groups[-1]) + 1) // 2
    yield Segment(CompactTail(groups[-1], scale), (source, IMAGE), "output", halo, 3, scale)


class Residual(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, window: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        return residual + self.layer(window)


class LastDense(nn.Module):
    """The third dense block of an RRDB, and the sum with the RRDB's input."""

    def __init__(self, dense: nn.Module) -> None:
        super().__init__()
        self.dense = dense

    def forward(self, window: torch.Tensor, block_input: torch.Tensor) -> torch.Tensor:
        return self.dense(window) * 0.2 + block_input


class RrdbTail(nn.Module):
    """Two rounds of nearest-neighbour upsampling and a convolution, then the last two convolutions."""

    def __init__(self, network: Any) -> None:  # noqa: ANN401  an RRDBNet of basicsr
        super().__init__()
        self.up1: nn.Conv2d = network.conv_up1
        self.up2: nn.Conv2d = network.conv_up2
        self.hr: nn.Conv2d = network.conv_hr
        self.last: nn.Conv2d = network.conv_last

    def forward(self, window: torch.Tensor) -> torch.Tensor:
        for conv in (self.up1, self.up2):
            window = functional.leaky_relu(conv(functional.interpolate(window, scale_factor=2)), 0.2)
        return self.last(functional.leaky_relu(self.hr(window), 0.2))


class CompactTail(nn.Module):
    """The last convolutions, and the sum of the shuffled pixels and the enlarged image."""

    def __init__(self, layers: list[nn.Module], scale: int) -> None:
        super().__init__()
        self.layers, self.scale = nn.Sequential(*layers), scale

    def forward(self, window: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        shuffled = functional.pixel_shuffle(self.layers(window), self.scale)
        return shuffled + functional.interpolate(image, scale_factor=self.scale)
