"""RRDBNet's dense blocks and last convolutions on an NVIDIA GPU, in float16, as one kernel in Triton.

PyTorch concatenates features before each convolution of a dense block and applies bias and activation after
it, which takes longer than the convolutions. Here a convolution reads features where they are, and adds what
it contributes to later ones: the first of a block maps its input to the first features and to partial sums of
those of the next three convolutions, which these complete in place.

Prototypes were timed on an H200 (docs/performance.md); this kernel has only run in Triton's interpreter. Maps
are (h, w, channels) float16 on one device.
"""

import subprocess
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from triton.errors import TritonError

from ...errors import InvalidOutput
from ..network import Compute, LastDense, RrdbTail, Segment

# Pixels of a row that a program computes, warps, and stages of its pipeline: the fastest of the prototypes
_TILE, _WARPS, _STAGES = 128, 4, tl.constexpr(3)
_TOLERANCE = 0.01  # of float16 features, relative to their size; a wrong tap or channel changes them by more
_WIDTH, _GROWTH = 64, 32  # features of a block, and of each of its first four convolutions
_SLOPE, _SCALE = tl.constexpr(0.2), tl.constexpr(0.2)  # of the activation; of what is added to a residual
_CHUNK = tl.constexpr(_WIDTH)  # distance of the groups of channels that are read from one map


@triton.jit(do_not_specialize=["height", "width"])  # one binary for photos of any size
def _convolve(
    first,
    second,
    weight,
    bias,
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
    ACTIVE: tl.constexpr,
    SKIPS: tl.constexpr,
    TILE: tl.constexpr,
):
    """Convolve groups of DEPTH channels of two maps by 3x3 kernels; write COLUMNS channels of the output.

    FIRST, SECOND  number of groups of each map
    weight         see _matrices()
    skip, other    contiguous, of COLUMNS channels
    pitch          elements between neighbouring pixels of a row
    BIAS           start from the bias, else from the values of the output
    ACTIVE         number of channels with an activation
    SKIPS          scale the result and add `skip`; if 2, do so again with `other`
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
    total = tl.where((column < ACTIVE)[None, :] & (total < 0), total * _SLOPE, total)
    place = y.to(tl.int64) * width * COLUMNS + (x * COLUMNS)[:, None] + column[None, :]
    if SKIPS > 0:
        total = total * _SCALE + tl.load(skip + place, inside, 0).to(tl.float32)
    if SKIPS > 1:
        total = total * _SCALE + tl.load(other + place, inside, 0).to(tl.float32)
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


def replace(parts: Sequence[Segment], compute: Sequence[Compute], device: torch.device) -> list[Compute]:
    """Replace the modules of dense blocks and of the tail; compile the kernels and compare their results.

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
    random = torch.Generator(device).manual_seed(0)
    shape = 1, _WIDTH, 5, _TILE + 7
    maps = [torch.rand(shape, generator=random, dtype=torch.float16, device=device) for _ in part.reads]
    maps = [values.contiguous(memory_format=torch.channels_last) for values in maps]
    expected, actual = module(*maps).float(), function(*maps).float()
    error = float((actual - expected).norm() / expected.norm())
    if not error <= _TOLERANCE:
        raise InvalidOutput(
            f"{type(function).__name__} differs by {error:.2g} from PyTorch; at most {_TOLERANCE}"
        )


def _replacement(module: Any) -> Compute | None:  # noqa: ANN401  of basicsr, which has no types
    if isinstance(module, RrdbTail) and module.hr.in_channels == _WIDTH:
        return Tail(module)
    dense: Any = module.dense if isinstance(module, LastDense) else module
    if hasattr(dense, "conv5") and dense.conv1.weight.shape[:2] == (_GROWTH, _WIDTH):
        return DenseBlock(dense)
    return None


class DenseBlock:
    """A dense block of basicsr; called with the input of an RRDB as well, as the last block in it."""

    def __init__(self, dense: Any) -> None:  # noqa: ANN401  of basicsr, which has no types
        layers = [getattr(dense, f"conv{number}") for number in range(1, 6)]
        one, two, three, four, five = (layer.weight for layer in layers)
        self._first = _matrices([0], _WIDTH, one, two, three, four)
        self._second = _matrices([64], _GROWTH, two, three)
        self._third = _matrices([96], _GROWTH, three, four)
        self._fourth = _matrices([64, 128], _GROWTH, four)
        self._fifth = _matrices([0, 64, 128], _WIDTH, five)
        self._bias = torch.cat([layer.bias for layer in layers[:4]])
        self._last_bias = layers[4].bias

    def __call__(self, window: torch.Tensor, *block_input: torch.Tensor) -> torch.Tensor:
        x = _pixels(window)
        features = x.new_empty((*x.shape[:2], 4 * _GROWTH))
        _launch(features, self._first, [x], bias=self._bias, active=_GROWTH)
        _launch(features[..., 32:], self._second, [features], active=_GROWTH)
        _launch(features[..., 64:], self._third, [features[..., 32:]], active=_GROWTH)
        _launch(features[..., 96:], self._fourth, [features], active=_GROWTH)
        output = torch.empty_like(x)
        skips = [x, *map(_pixels, block_input)]
        _launch(output, self._fifth, [x, features], bias=self._last_bias, skips=skips)
        return _planes(output)


class Tail:
    """RRDBNet's upsampling and last convolutions."""

    def __init__(self, tail: Any) -> None:  # noqa: ANN401  a network.RrdbTail
        layers = (tail.up1, tail.up2, tail.hr)
        self._layers = [(_matrices([0], _WIDTH, layer.weight), layer.bias) for layer in layers]
        self._last = tail.last

    def __call__(self, window: torch.Tensor) -> torch.Tensor:
        features = _pixels(window)
        for index, (matrices, bias) in enumerate(self._layers):
            features = _enlarge(features) if index < 2 else features
            output = torch.empty_like(features)
            _launch(output, matrices, [features], bias=bias, active=_WIDTH)
            features = output
        return self._last(_planes(features))


def _matrices(starts: Sequence[int], depth: int, *weights: torch.Tensor) -> torch.Tensor:
    """Return the parts of kernels (out, in, 3, 3) for groups of channels, as (groups, 9, depth, outs)."""
    taps = [weight.permute(2, 3, 1, 0).flatten(0, 1) for weight in weights]  # (9, in, out)
    return torch.stack([torch.cat([tap[:, start : start + depth] for tap in taps], 2) for start in starts])


def _launch(
    output: torch.Tensor,
    matrices: torch.Tensor,
    maps: Sequence[torch.Tensor],
    *,
    bias: torch.Tensor | None = None,
    active: int = 0,
    skips: Sequence[torch.Tensor] = (),
) -> None:
    """Convolve a map, or the first group of one map and the others of a second; see _convolve().

    Without a bias, the result is added to the output.
    """
    height, width = output.shape[:2]
    groups, _, depth, columns = matrices.shape
    others = groups - 1 if len(maps) == 2 else 0
    with torch.cuda.device_of(output):
        _convolve[(triton.cdiv(width, _TILE) * height,)](
            maps[0],
            maps[-1],
            matrices,
            matrices if bias is None else bias,
            output,
            skips[0] if skips else output,
            skips[-1] if skips else output,
            height,
            width,
            maps[0].stride(1),
            maps[-1].stride(1),
            output.stride(1),
            FIRST=groups - others,
            SECOND=others,
            DEPTH=depth,
            COLUMNS=columns,
            BIAS=bias is not None,
            ACTIVE=active,
            SKIPS=len(skips),
            TILE=_TILE,
            num_warps=_WARPS,  # type: ignore[call-arg]
        )


def _enlarge(features: torch.Tensor) -> torch.Tensor:
    """Double both sides by nearest neighbour. Copied as 64-bit values: three times as fast as 16-bit ones."""
    wide = features.view(torch.int64)
    height, width, channels = wide.shape
    repeated = wide[:, None, :, None].expand(height, 2, width, 2, channels)
    return repeated.reshape(2 * height, 2 * width, channels).view(features.dtype)


def _pixels(window: torch.Tensor) -> torch.Tensor:
    """Return (1, c, h, w) as (h, w, c), with the usual strides even where a side is 1."""
    pixels = window[0].permute(1, 2, 0)
    return pixels.reshape(-1).view(pixels.shape)


def _planes(pixels: torch.Tensor) -> torch.Tensor:
    return pixels.permute(2, 0, 1)[None]
