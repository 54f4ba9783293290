"""RRDBNet and SRVGGNetCompact on an NVIDIA GPU, in float16, by the convolution of triton_kernel.py.

The first convolution of a dense block maps its input to the first features and to partial sums of those of
the next three, which these complete in place.
"""

import subprocess
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from triton.errors import TritonError

from ...errors import InvalidOutput
from ..network import CompactTail, Compute, LastDense, Residual, RrdbTail, Segment
from . import triton_kernel
from .triton_kernel import WIDTH, Layer, convolve, matrices, padded

_TOLERANCE = 0.01  # of float16 features, relative to their size; a wrong tap or channel changes them by more
_GROWTH = 32  # features of each of a block's first four convolutions
_SLOPE, _SCALE = 0.2, 0.2  # of RRDBNet's activation; of what is added to a residual


def replace(parts: Sequence[Segment], compute: Sequence[Compute], device: torch.device) -> list[Compute]:
    """Replace modules that the kernel can compute; compile it and compare its results.

    compute  modules of the segments, in float16 on the device

    Raises RuntimeError or OSError where Triton or its C compiler fails, and InvalidOutput if a result differs
    from PyTorch's.
    """
    replaced = [_replacement(module) or module for module in compute]
    compared = set()
    try:
        for part, module, function in zip(parts, compute, replaced, strict=True):
            if function is not module and type(module) not in compared:
                _compare(part, module, function, device)
                compared.add(type(module))
    except (TritonError, subprocess.SubprocessError) as error:
        raise RuntimeError(f"Triton cannot compile: {error}") from error
    return replaced


@torch.inference_mode()
def _compare(part: Segment, module: Compute, function: Compute, device: torch.device) -> None:
    """Compare the results on random maps wider than a program's tile. Raises InvalidOutput."""
    random = torch.Generator().manual_seed(0)
    shapes = [(1, channels, 5, triton_kernel.TILE + 7) for channels in part.inputs]
    maps = [torch.rand(shape, generator=random).to(device, torch.float16) for shape in shapes]
    maps = [values.contiguous(memory_format=torch.channels_last) for values in maps]
    function(*maps)  # compiles; the comparison uses the binaries that this kept
    expected, actual = module(*maps).float(), function(*maps).float()
    error = float((actual - expected).norm() / expected.norm())
    if not error <= _TOLERANCE:
        raise InvalidOutput(
            f"{type(function).__name__} differs by {error:.2g} from PyTorch; at most {_TOLERANCE}"
        )


def _replacement(module: Any) -> Compute | None:  # noqa: ANN401  of basicsr, which has no types
    """Return a function that computes what a module does; None unless its maps have 64 channels."""
    dense: Any = module.dense if isinstance(module, LastDense) else module
    if hasattr(dense, "conv5"):
        fits = dense.conv1.weight.shape[:2] == (_GROWTH, WIDTH)
        return DenseBlock(dense) if fits else None
    convolutions = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d)]
    image, output = convolutions[0].in_channels, convolutions[-1].out_channels
    maps = {layer.out_channels for layer in convolutions[:-1]}
    if not isinstance(module, RrdbTail | CompactTail):
        maps.add(output)
    if maps - {WIDTH} or max(image, output) > WIDTH:
        return None
    return Tail(module) if isinstance(module, RrdbTail) else Layers(module)


class DenseBlock:
    """A dense block of basicsr; called with the input of an RRDB as well, as the last block in it."""

    without_cudnn = True

    def __init__(self, dense: Any) -> None:  # noqa: ANN401  of basicsr, which has no types
        layers = [getattr(dense, f"conv{number}") for number in range(1, 6)]
        one, two, three, four, five = (layer.weight for layer in layers)
        bias = torch.cat([layer.bias for layer in layers[:4]])
        slope = torch.ones_like(bias)  # of sums that are not complete
        slope[:_GROWTH] = _SLOPE
        self._first = Layer(matrices([0], WIDTH, one, two, three, four), slope, bias)
        self._second = Layer(matrices([64], _GROWTH, two, three), slope)
        self._third = Layer(matrices([96], _GROWTH, three, four), slope)
        self._fourth = Layer(matrices([64, 128], _GROWTH, four), slope)
        self._fifth = Layer(matrices([0, 64, 128], WIDTH, five), slope[-WIDTH:], layers[4].bias)

    def __call__(self, window: torch.Tensor, *block_input: torch.Tensor) -> torch.Tensor:
        x = _pixels(window)
        features = x.new_empty((*x.shape[:2], 4 * _GROWTH))
        convolve(self._first, x, output=features)
        convolve(self._second, features, output=features[..., 32:])
        convolve(self._third, features[..., 32:], output=features[..., 64:])
        convolve(self._fourth, features, output=features[..., 96:])
        skips = [x, *map(_pixels, block_input)]
        return _planes(convolve(self._fifth, x, features, skips=skips, scale=_SCALE))


class Layers:
    """Convolutions in a row, each with its activation or none, and what a segment adds to the last."""

    without_cudnn = True

    def __init__(self, module: Any) -> None:  # noqa: ANN401  a segment's
        modules = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d | nn.PReLU)]
        pairs = [
            (layer, after.weight if isinstance(after, nn.PReLU) else None)
            for layer, after in zip(modules, [*modules[1:], None], strict=True)
            if isinstance(layer, nn.Conv2d)
        ]
        self._layers = [triton_kernel.layer(*pair) for pair in pairs]
        self._channels = pairs[-1][0].out_channels
        self._scale = module.scale if isinstance(module, CompactTail) else None
        self._residual = isinstance(module, Residual)

    def __call__(self, window: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        features = _pixels(window)
        for layer in self._layers[:-1]:
            features = convolve(layer, features)
        skips = [_pixels(others[0])] if self._residual else []
        output = _planes(convolve(self._layers[-1], features, skips=skips))[:, : self._channels]
        if self._scale is None:
            return output
        shuffled = functional.pixel_shuffle(output, self._scale)
        return shuffled + functional.interpolate(others[0], scale_factor=self._scale)


class Tail:
    """RRDBNet's upsampling and last convolutions."""

    without_cudnn = True

    def __init__(self, tail: Any) -> None:  # noqa: ANN401  a network.RrdbTail
        slope = torch.full_like(tail.hr.bias, _SLOPE)
        self._layers = [triton_kernel.layer(layer, slope) for layer in (tail.up1, tail.up2, tail.hr)]
        self._last = triton_kernel.layer(tail.last, None)

    def __call__(self, window: torch.Tensor) -> torch.Tensor:
        features = _pixels(window)
        for index, layer in enumerate(self._layers):
            features = convolve(layer, _enlarge(features) if index < 2 else features)
        return _planes(convolve(self._last, features))[:, :3]


def _enlarge(features: torch.Tensor) -> torch.Tensor:
    """Double both sides by nearest neighbour. Copied as 64-bit values: three times as fast as 16-bit ones."""
    wide = features.view(torch.int64)
    height, width, channels = wide.shape
    repeated = wide[:, None, :, None].expand(height, 2, width, 2, channels)
    return repeated.reshape(2 * height, 2 * width, channels).view(features.dtype)


def _pixels(window: torch.Tensor) -> torch.Tensor:
    """Return (1, c, h, w) as (h, w, c) with the usual strides, even where a side is 1; pads the channels."""
    pixels = window[0].permute(1, 2, 0)
    missing = padded(pixels.shape[2]) - pixels.shape[2]
    pixels = functional.pad(pixels, (0, missing)) if missing else pixels
    return pixels.reshape(-1).view(pixels.shape)


def _planes(pixels: torch.Tensor) -> torch.Tensor:
    return pixels.permute(2, 0, 1)[None]
