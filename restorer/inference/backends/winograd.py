"""RRDBNet and SRVGGNetCompact on a CPU in float32, with a quarter of the multiplications of a convolution.

Winograd's F(4 x 4, 3 x 3) (Lavin and Gray, 2016): windows of 6 x 6 pixels, four apart, are transformed to
where a 3 x 3 convolution is 36 products of matrices, and 4 x 4 pixels come back. torch multiplies the
matrices. A dense block keeps its features transformed: each is transformed once for all that read it, and
nothing is concatenated. Buffers are made once for a tile's size and kept.
"""

import math

import torch
from torch.nn import functional

from ...models.architectures import NetworkSpec, StateDict

_AT_ONCE = 256  # windows: what so many take stays in the cache
_INPUT = torch.tensor(
    [
        [4.0, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ]
)
_KERNEL = torch.tensor(
    [
        [1 / 4, 0, 0],
        [-1 / 6, -1 / 6, -1 / 6],
        [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6],
        [1 / 24, -1 / 12, 1 / 6],
        [0, 0, 1],
    ],
    dtype=torch.float64,
)
_OUTPUT = torch.tensor([[1.0, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]])
Strip = tuple[int, int]  # the first row of windows and how many, worked on at a time
Slope = float | torch.Tensor | None
_INTO, _BACK = torch.kron(_INPUT, _INPUT), torch.kron(_OUTPUT, _OUTPUT)  # (36, 36) and (16, 36)


class _Map:
    """Features of a tile, (height, width, channels), within a border of zeros, as convolutions read them."""

    def __init__(self, height: int, width: int, channels: int) -> None:
        self.height, self.width, self.channels = height, width, channels
        self.rows, self.columns = -(-height // 4), -(-width // 4)  # of windows
        self.buffer = torch.zeros(4 * self.rows + 2, 4 * self.columns + 2, channels)
        self.pixels = self.buffer[1 : height + 1, 1 : width + 1]
        step = max(1, _AT_ONCE // self.columns)
        self.strips: list[Strip] = [
            (first, min(step, self.rows - first)) for first in range(0, self.rows, step)
        ]

    def windows(self, strip: Strip, side: int) -> torch.Tensor:
        """(side, side, rows, columns, channels): the pixels of a strip's windows, all 6 or the inner 4."""
        first, count = strip
        row, pixel, _ = self.buffer.stride()
        return self.buffer.as_strided(
            (side, side, count, self.columns, self.channels),
            (row, pixel, 4 * row, 4 * pixel, 1),
            4 * first * row + (6 - side) // 2 * (row + pixel),
        )

    def between(self, strip: Strip) -> slice:
        """The strip's windows among all."""
        return slice(strip[0] * self.columns, sum(strip) * self.columns)

    def clear_rest(self) -> None:
        """Zeros where whole windows reach beyond the tile."""
        self.buffer[self.height + 1 :].zero_()
        self.buffer[:, self.width + 1 :].zero_()


class WinogradNetwork:
    """A network: (1, 3, h, w) float32 in [0, 1] to (1, 3, h*scale, w*scale), valid until the next call.

    shape, state  as networks.recognise() and networks.read_state() tell them
    """

    def __init__(self, shape: NetworkSpec, state: StateDict) -> None:
        self._shape, self._state = shape, state
        self._kernels = {
            key.removesuffix(".weight"): _transformed(kernel)
            for key, kernel in state.items()
            if kernel.ndim == 4 and key != "conv_last.weight"
        }
        self._maps: dict[object, _Map] = {}
        self._buffers: dict[str, torch.Tensor] = {}
        self._size: torch.Size | None = None

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        if batch.shape != self._size:
            self._maps.clear()
            self._buffers.clear()
            self._size = batch.shape
        return self._compact(batch) if self._shape.arch == "SRVGGNetCompact" else self._rrdb(batch)

    def _compact(self, batch: torch.Tensor) -> torch.Tensor:
        """Convolutions, each with a PReLU; the last one's channels become pixels, on the enlarged picture."""
        last, scale = 2 * self._shape.parameters["num_conv"] + 2, self._shape.scale
        features = self._entered(batch)
        for index in range(0, last + 1, 2):
            slope = self._state.get(f"body.{index + 1}.weight")
            place = index if index in (0, last) else "even" if index % 4 else "odd"
            features = self._convolved(features, f"body.{index}", slope, place)
        height, width = batch.shape[2:]
        out = self._buffer("out", height * scale, width * scale, 3)
        torch.add(
            features.pixels.unflatten(2, (3, scale, scale)).permute(0, 3, 1, 4, 2),
            batch[0].permute(1, 2, 0)[:, None, :, None],
            out=out.view(height, scale, width, scale, 3),
        )
        return out.permute(2, 0, 1)[None]

    def _rrdb(self, batch: torch.Tensor) -> torch.Tensor:
        """Dense blocks in threes, each with its residual; then nearest pixels and a convolution, twice."""
        entered = self._entered(functional.pixel_unshuffle(batch, self._shape.align))
        trunk = self._convolved(entered, "conv_first")
        features = self._map("body", trunk.height, trunk.width, trunk.channels)
        features.buffer.copy_(trunk.buffer)
        before = self._buffer("before", *features.buffer.shape)
        for block in range(self._shape.parameters["num_block"]):
            before.copy_(features.buffer)
            for dense in (1, 2, 3):
                self._dense(features, f"body.{block}.rdb{dense}.conv")
            torch.add(before, features.buffer, alpha=0.2, out=features.buffer)
        features = self._convolved(features, "conv_body")
        features.buffer.add_(trunk.buffer)
        for name in ("conv_up1", "conv_up2"):
            features = self._convolved(self._doubled(features), name, 0.2)
        features = self._convolved(features, "conv_hr", 0.2, ("doubled", features.height // 2))
        kernel = self._state["conv_last.weight"]
        return functional.conv2d(
            features.pixels.permute(2, 0, 1)[None], kernel, self._bias("conv_last"), padding=1
        )

    def _dense(self, features: _Map, name: str) -> None:
        """A residual dense block: every convolution reads the features and what those before it made."""
        read, grown = features.channels, self._shape.parameters["num_grow_ch"]
        seen = self._buffer("seen", 36, features.rows * features.columns, read + 4 * grown)
        made = self._map("grown", features.height, features.width, grown)
        self._see(features, seen[..., :read])
        for index in range(1, 5):
            for strip in features.strips:
                part = seen[:, features.between(strip), :read]
                made.windows(strip, 4).copy_(self._back(part, f"{name}{index}", 0.2, strip))
            made.clear_rest()
            self._see(made, seen[..., read : read + grown])
            read += grown
        for strip in features.strips:
            part = seen[:, features.between(strip)]
            features.windows(strip, 4).add_(self._back(part, f"{name}5", None, strip), alpha=0.2)
        features.clear_rest()

    def _see(self, features: _Map, seen: torch.Tensor) -> None:
        """Transform a whole map into (36, windows, channels)."""
        for strip in features.strips:
            seen[:, features.between(strip)] = self._into(features, strip)

    def _convolved(self, features: _Map, name: str, slope: Slope = None, place: object = None) -> _Map:
        """A convolution and a leaky ReLU, into the map of that place (its own)."""
        out = self._map(place or name, features.height, features.width, len(self._bias(name)))
        for strip in features.strips:
            out.windows(strip, 4).copy_(self._back(self._into(features, strip), name, slope, strip))
        out.clear_rest()
        return out

    def _into(self, features: _Map, strip: Strip) -> torch.Tensor:
        """A strip's windows, transformed: (36, windows, channels)."""
        windows = features.windows(strip, 6)
        plain = self._buffer("plain", *windows.shape).copy_(windows).view(36, -1)
        out = self._buffer("into", *plain.shape)
        return torch.mm(_INTO, plain, out=out).view(36, -1, features.channels)

    def _back(self, values: torch.Tensor, name: str, slope: Slope, strip: Strip) -> torch.Tensor:
        """The convolution of transformed windows, as pixels (4, 4, rows, columns, channels)."""
        kernel, bias = self._kernels[name], self._bias(name)
        product = torch.bmm(values, kernel, out=self._buffer("product", 36, values.shape[1], len(bias)))
        out = self._buffer("back", 16, values.shape[1] * len(bias))
        pixels = torch.mm(_BACK, product.view(36, -1), out=out).view(-1, len(bias)).add_(bias)
        if isinstance(slope, float):
            functional.leaky_relu_(pixels, slope)
        elif isinstance(slope, torch.Tensor):  # one for each channel: max(x, 0) + slope min(x, 0)
            below = torch.clamp(pixels, max=0, out=self._buffer("below", *pixels.shape))
            pixels.addcmul_(below, slope - 1)
        return pixels.view(4, 4, strip[1], -1, len(bias))

    def _entered(self, batch: torch.Tensor) -> _Map:
        channels, height, width = batch.shape[1:]
        features = self._map("entered", height, width, channels)
        features.pixels.copy_(batch[0].permute(1, 2, 0))
        return features

    def _doubled(self, features: _Map) -> _Map:
        """Every pixel four times."""
        height, width, channels = features.pixels.shape
        out = self._map(("doubled", height), 2 * height, 2 * width, channels)
        fours = out.pixels.unflatten(1, (width, 2)).unflatten(0, (height, 2))
        fours.copy_(features.pixels[:, None, :, None])
        return out

    def _bias(self, name: str) -> torch.Tensor:
        return self._state[f"{name}.bias"]

    def _map(self, place: object, *shape: int) -> _Map:
        if place not in self._maps:
            self._maps[place] = _Map(*shape)
        return self._maps[place]

    def _buffer(self, place: str, *shape: int) -> torch.Tensor:
        """Memory of that place, not cleared; it grows to the largest shape asked of it."""
        count = math.prod(shape)
        if place not in self._buffers or len(self._buffers[place]) < count:
            self._buffers[place] = torch.empty(count)
        return self._buffers[place][:count].view(shape)


def _transformed(kernel: torch.Tensor) -> torch.Tensor:
    """(out, in, 3, 3) as (36, in, out)."""
    spread = torch.einsum("ai,ocij,bj->abco", _KERNEL, kernel.double(), _KERNEL)
    return spread.flatten(0, 1).float().contiguous()
