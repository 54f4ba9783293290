"""A 3x3 convolution in Triton, in float16 with sums in float32, for channels that tensor cores multiply.

PyTorch concatenates features before each convolution of a dense block and applies bias and activation after
it, which takes longer than the convolutions. Here a convolution reads features where they are, and adds what
it contributes to later ones. Every pixel is computed by the same operations in the same order, so that the
result does not depend on tiles. Maps are (h, w, channels) float16 on one device.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import nn
from torch.nn import functional

WIDTH = 64  # most channels of a map, or of a group of channels that are read from one
_LEAST = 16  # fewest
# Pixels of a row that a program computes, warps, and stages of its pipeline; with the best of 17 to 24 others
# for each kind of layer, RRDBNet took 1 % less time (H200)
TILE, _WARPS, _STAGES = 128, 4, tl.constexpr(3)
_CHUNK = tl.constexpr(WIDTH)  # distance of the groups
# Compiled kernels by device, pitches and constants. Triton also specializes on dtypes and alignment, but all
# maps are float16 and start at multiples of 16 bytes
_binaries: dict[tuple, Any] = {}


class Layer(NamedTuple):
    """A convolution and its activation.

    matrices  kernels, see matrices(); (groups, 9, inputs of a group, outputs)
    slope     (outputs,) factor of negative results
    bias      (outputs,), or None to add the result to what the output holds
    """

    matrices: torch.Tensor
    slope: torch.Tensor
    bias: torch.Tensor | None = None


def padded(channels: int) -> int:
    """Return the number of channels of a map that the kernel can read or write for so many."""
    return max(1 << (channels - 1).bit_length(), _LEAST)


def layer(convolution: nn.Conv2d, slope: torch.Tensor | None) -> Layer:
    """Return a convolution with zeros for the channels that the kernel needs in addition."""
    outputs, inputs = convolution.weight.shape[:2]
    more = padded(outputs) - outputs
    weight = functional.pad(convolution.weight, (0, 0, 0, 0, 0, padded(inputs) - inputs, 0, more))
    bias = convolution.get_parameter("bias")
    ones = torch.ones_like(bias)
    slope = ones if slope is None else slope.expand_as(ones)
    return Layer(
        matrices([0], weight.shape[1], weight),
        functional.pad(slope, (0, more)),
        functional.pad(bias, (0, more)),
    )


def matrices(starts: Sequence[int], depth: int, *weights: torch.Tensor) -> torch.Tensor:
    """Return the parts of kernels (out, in, 3, 3) for groups of channels, as (groups, 9, depth, outs)."""
    taps = [weight.permute(2, 3, 1, 0).flatten(0, 1) for weight in weights]  # (9, in, out)
    return torch.stack([torch.cat([tap[:, start : start + depth] for tap in taps], 2) for start in starts])


def convolve(
    layer: Layer,
    *maps: torch.Tensor,
    output: torch.Tensor | None = None,
    skips: Sequence[torch.Tensor] = (),
    scale: float = 1.0,
) -> torch.Tensor:
    """Convolve a map, or the first group of one map and the others of a second; return the output.

    output  written, or new if None
    skips   one or two contiguous maps: the result is multiplied by the scale, then the next one is added
    """
    first, second = maps[0], maps[-1]
    height, width = first.shape[:2]
    groups, _, depth, columns = layer.matrices.shape
    others = groups - 1 if len(maps) == 2 else 0
    if output is None:
        output = first.new_empty((height, width, columns))
    pitches = first.stride(1), second.stride(1), output.stride(1)
    constants = groups - others, others, depth, columns, layer.bias is not None, len(skips), scale, TILE
    arguments = (  # in the order of _convolve()'s parameters, as a binary takes them
        first,
        second,
        layer.matrices,
        layer.matrices if layer.bias is None else layer.bias,
        layer.slope,
        output,
        skips[0] if skips else output,
        skips[-1] if skips else output,
        height,
        width,
        *pitches,
        *constants,
    )
    grid = (-(-width // TILE) * height, 1, 1)
    key = output.device, pitches, constants
    with torch.cuda.device_of(output):
        # Finding the binary for its arguments takes Triton longer than the GPU needs for a small map
        if binary := _binaries.get(key):
            binary[grid](*arguments)
        else:
            _binaries[key] = _convolve[grid](*arguments, num_warps=_WARPS)  # type: ignore[call-arg]
    return output


@triton.jit(do_not_specialize=["height", "width"])  # one binary for photos of any size
def _convolve(
    first,
    second,
    weight,
    bias,
    slope,
    output,
    skip,
    other,
    height,
    width,
    first_pitch,
    second_pitch,
    pitch,
    FIRST: tl.constexpr,
    SECOND: tl.constexpr,
    DEPTH: tl.constexpr,
    COLUMNS: tl.constexpr,
    BIAS: tl.constexpr,
    SKIPS: tl.constexpr,
    SCALE: tl.constexpr,
    TILE: tl.constexpr,
):
    """Convolve groups of DEPTH channels of two maps by 3x3 kernels; write COLUMNS channels of the output.

    FIRST, SECOND  number of groups of each map
    weight         see matrices()
    slope          factor of negative results, one a column
    skip, other    contiguous, of COLUMNS channels
    pitch          elements between neighbouring pixels of a row
    BIAS           start from the bias, else from the values of the output
    SKIPS          multiply the result by SCALE and add `skip`; if 2, do so again with `other`
    """
    tiles = tl.cdiv(width, TILE)
    y = tl.program_id(0) // tiles
    x = tl.program_id(0) % tiles * TILE + tl.arange(0, TILE)
    column = tl.arange(0, COLUMNS)
    inside = (x < width)[:, None]
    here = output + y.to(tl.int64) * width * pitch + (x * pitch)[:, None] + column[None, :]
    if BIAS:
        total = tl.zeros((TILE, COLUMNS), tl.float32) + tl.load(bias + column).to(tl.float32)[None, :]
    else:
        total = tl.load(here, inside, 0).to(tl.float32)
    total = _add(total, first, weight, y, x, height, width, first_pitch, FIRST, DEPTH, COLUMNS)
    if SECOND > 0:
        weight += 9 * FIRST * DEPTH * COLUMNS
        total = _add(total, second, weight, y, x, height, width, second_pitch, SECOND, DEPTH, COLUMNS)
    total = tl.where(total < 0, total * tl.load(slope + column).to(tl.float32)[None, :], total)
    place = y.to(tl.int64) * width * COLUMNS + (x * COLUMNS)[:, None] + column[None, :]
    if SKIPS > 0:
        total = total * SCALE + tl.load(skip + place, inside, 0).to(tl.float32)
    if SKIPS > 1:
        total = total * SCALE + tl.load(other + place, inside, 0).to(tl.float32)
    tl.store(here, total.to(tl.float16), inside)


@triton.jit
def _add(
    total,
    source,
    weight,
    y,
    x,
    height,
    width,
    pitch,
    GROUPS: tl.constexpr,
    DEPTH: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Add the convolution of one map to (TILE, COLUMNS) float32 sums."""
    depth, column = tl.arange(0, DEPTH), tl.arange(0, COLUMNS)
    for step in tl.range(0, 9 * GROUPS, num_stages=_STAGES):  # type: ignore[attr-defined]
        tap, group = step % 9, step // 9
        row, at = y + tap // 3 - 1, x + tap % 3 - 1
        inside = (row >= 0) & (row < height) & (at >= 0) & (at < width)
        start = source + row.to(tl.int64) * width * pitch + group * _CHUNK
        features = tl.load(start + (at * pitch)[:, None] + depth[None, :], inside[:, None], 0)
        matrix = tl.load(weight + (step * DEPTH + depth)[:, None] * COLUMNS + column[None, :])
        total = tl.dot(features, matrix, total)
    return total
