"""RRDBNet's dense blocks and last convolutions on an NVIDIA GPU, in float16, by one kernel in Triton.

PyTorch concatenates features before each convolution of a dense block and applies bias and activation after
it, which takes longer than the convolutions. Here a convolution reads features where they are, and adds what
it contributes to later ones: the first of a block maps its input to the first features and to partial sums of
those of the next three convolutions, which these complete in place.

Maps are (h, w, channels) float16, contiguous, on one device.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl

from ...errors import InvalidOutput
from ..network import Compute, LastDense, RrdbTail, Segment

_TILE = 128  # pixels of a row that a program computes; this and the following measured on an H200
_WARPS = 4
_TOLERANCE = 0.01  # of float16 features, relative to their size; a wrong tap or channel changes them by more
_WIDTH, _GROWTH = 64, 32  # features of a block, and of each of its first four convolutions
_SLOPE, _SCALE = tl.constexpr(0.2), tl.constexpr(0.2)  # of the activation; of what is added to a residual
_STAGES = tl.constexpr(3)
_CHUNK = tl.constexpr(_WIDTH)  # distance of the groups of channels that are read from one map


@triton.jit
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

    FIRST, SECOND  number of groups of each map; a pitch is the number of channels of a map
    weight         see _matrices()
    BIAS           start from the bias, else from the values of the output
    ACTIVE         number of channels with an activation
    SKIPS          scale the result and add `skip`; if 2, do so again with `other`
    """
    y = tl.program_id(1)
    x = tl.program_id(0) * TILE + tl.arange(0, TILE)
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
    """Return these functions of segments with this module's where there are any, compiled and compared.

    compute  functions in float16 on the device
    device   a GPU

    Raises what Triton and its C compiler raise, and InvalidOutput if a result differs from PyTorch's.
    """
    replaced = [_replacement(part.module) or function for part, function in zip(parts, compute, strict=True)]
    with torch.inference_mode():
        for part, expected, actual in zip(parts, compute, replaced, strict=True):
            if actual is not expected:  # compiled at the first launch of its kind
                _compare(part, expected, actual, device)
    return replaced


def _compare(part: Segment, expected: Compute, actual: Compute, device: torch.device) -> None:
    """Compare the results on random maps of more than a program's tile. Raises InvalidOutput."""
    random = torch.Generator(device).manual_seed(0)
    shape = 1, _WIDTH, 5, _TILE + 7
    maps = [torch.rand(shape, generator=random, dtype=torch.float16, device=device) for _ in part.reads]
    maps = [values.contiguous(memory_format=torch.channels_last) for values in maps]
    want, got = expected(*maps).float(), actual(*maps).float()
    if not (want - got).norm() <= _TOLERANCE * want.norm():
        raise InvalidOutput("a kernel returned wrong features")


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
        self._bias = torch.cat([layer.bias for layer in layers[:4]]).half()
        self._last_bias = layers[4].bias.half()

    def __call__(self, window: torch.Tensor, *block_input: torch.Tensor) -> torch.Tensor:
        x = _pixels(window)
        grown = x.new_empty((*x.shape[:2], 4 * _GROWTH))
        _launch(grown, self._first, [x], bias=self._bias, active=_GROWTH)
        _launch(grown[..., 32:], self._second, [grown], active=_GROWTH)
        _launch(grown[..., 64:], self._third, [grown[..., 32:]], active=_GROWTH)
        _launch(grown[..., 96:], self._fourth, [grown], active=_GROWTH)
        output = torch.empty_like(x)
        skips = [x, *map(_pixels, block_input)]
        _launch(output, self._fifth, [x, grown], bias=self._last_bias, skips=skips)
        return _planes(output)


class Tail:
    """RRDBNet's upsampling and last convolutions."""

    def __init__(self, tail: Any) -> None:  # noqa: ANN401  a network.RrdbTail
        layers = (tail.up1, tail.up2, tail.hr)
        self._layers = [(_matrices([0], _WIDTH, layer.weight), layer.bias.half()) for layer in layers]
        self._last = copy.deepcopy(tail.last).half()

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
    sides = [weight.float().permute(2, 3, 1, 0).flatten(0, 1) for weight in weights]  # (9, in, out)
    groups = [torch.cat([side[:, start : start + depth] for side in sides], 2) for start in starts]
    return torch.stack(groups).half().contiguous()


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
        _convolve[triton.cdiv(width, _TILE), height](
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
    """Return (1, c, h, w) as (h, w, c), with the usual strides even of sides of one pixel."""
    pixels = window[0].permute(1, 2, 0)
    return pixels.reshape(-1).view(pixels.shape)


def _planes(pixels: torch.Tensor) -> torch.Tensor:
    return pixels.permute(2, 0, 1)[None]
