"""Run RRDBNet and SRVGGNetCompact on a CPU in float32, with a quarter of a convolution's multiplications.

Winograd's F(4 x 4, 3 x 3) (Lavin and Gray, 2016): windows of 6 x 6 pixels, four apart, are transformed to a
domain where a 3 x 3 convolution is 36 matrix products (by torch), and transformed back to 4 x 4 pixels. A
dense block keeps its features transformed: each is transformed once for all the layers that read it, and
nothing is concatenated. Buffers are allocated once per tile size.
"""

import math

import torch
from torch.nn import functional

from ...models.architectures import NetworkSpec, StateDict

_WINDOWS_PER_STRIP = 256  # few enough to stay in the cache
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
Strip = tuple[int, int]  # first row of windows and number of rows, processed together
Slope = float | torch.Tensor | None
_FORWARD, _INVERSE = torch.kron(_INPUT, _INPUT), torch.kron(_OUTPUT, _OUTPUT)  # (36, 36) and (16, 36)


class _FeatureMap:
    """Features of a tile, (height, width, channels), zero-padded for 3 x 3 convolutions."""

    def __init__(self, height: int, width: int, channels: int) -> None:
        self.height, self.width, self.channels = height, width, channels
        self.rows, self.columns = -(-height // 4), -(-width // 4)  # of windows
        self.buffer = torch.zeros(4 * self.rows + 2, 4 * self.columns + 2, channels)
        self.pixels = self.buffer[1 : height + 1, 1 : width + 1]
        step = max(1, _WINDOWS_PER_STRIP // self.columns)
        self.strips: list[Strip] = [
            (first, min(step, self.rows - first)) for first in range(0, self.rows, step)
        ]

    def windows(self, strip: Strip, side: int) -> torch.Tensor:
        """View a strip's windows, all 6 pixels or the inner 4, as (side, side, rows, columns, channels)."""
        first, count = strip
        row, pixel, _ = self.buffer.stride()
        return self.buffer.as_strided(
            (side, side, count, self.columns, self.channels),
            (row, pixel, 4 * row, 4 * pixel, 1),
            4 * first * row + (6 - side) // 2 * (row + pixel),
        )

    def window_range(self, strip: Strip) -> slice:
        return slice(strip[0] * self.columns, sum(strip) * self.columns)

    def clear_padding(self) -> None:
        """Zero what the windows wrote beyond the tile."""
        self.buffer[self.height + 1 :].zero_()
        self.buffer[:, self.width + 1 :].zero_()


class WinogradNetwork:
    """A network that maps (1, 3, h, w) float32 in [0, 1] to (1, 3, h*scale, w*scale).

    The output is valid until the next call.

    spec   see architectures.detect()
    state  see architectures.read_state()
    """

    def __init__(self, spec: NetworkSpec, state: StateDict) -> None:
        self._spec, self._state = spec, state
        self._kernels = {
            key.removesuffix(".weight"): _transform_kernel(kernel)
            for key, kernel in state.items()
            if kernel.ndim == 4 and key != "conv_last.weight"
        }
        self._maps: dict[object, _FeatureMap] = {}
        self._buffers: dict[str, torch.Tensor] = {}
        self._size: torch.Size | None = None

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        if batch.shape != self._size:
            self._maps.clear()
            self._buffers.clear()
            self._size = batch.shape
        return self._compact(batch) if self._spec.arch == "SRVGGNetCompact" else self._rrdb(batch)

    def _compact(self, batch: torch.Tensor) -> torch.Tensor:
        """Convolutions with PReLUs and a pixel shuffle, added to the enlarged image."""
        last, scale = 2 * self._spec.parameters["num_conv"] + 2, self._spec.scale
        features = self._load(batch)
        for index in range(0, last + 1, 2):
            slope = self._state.get(f"body.{index + 1}.weight")
            key = index if index in (0, last) else "even" if index % 4 else "odd"  # two maps in alternation
            features = self._convolve(features, f"body.{index}", slope, key)
        height, width = batch.shape[2:]
        out = self._buffer("out", height * scale, width * scale, 3)
        torch.add(
            features.pixels.unflatten(2, (3, scale, scale)).permute(0, 3, 1, 4, 2),
            batch[0].permute(1, 2, 0)[:, None, :, None],
            out=out.view(height, scale, width, scale, 3),
        )
        return out.permute(2, 0, 1)[None]

    def _rrdb(self, batch: torch.Tensor) -> torch.Tensor:
        """Residual-in-residual dense blocks, then nearest-neighbour upsampling and a convolution, twice."""
        image = self._load(functional.pixel_unshuffle(batch, self._spec.align))
        trunk = self._convolve(image, "conv_first")
        features = self._map("body", trunk.height, trunk.width, trunk.channels)
        features.buffer.copy_(trunk.buffer)
        residual = self._buffer("residual", *features.buffer.shape)
        for block in range(self._spec.parameters["num_block"]):
            residual.copy_(features.buffer)
            for dense in (1, 2, 3):
                self._dense(features, f"body.{block}.rdb{dense}.conv")
            torch.add(residual, features.buffer, alpha=0.2, out=features.buffer)
        features = self._convolve(features, "conv_body")
        features.buffer.add_(trunk.buffer)
        for name in ("conv_up1", "conv_up2"):
            features = self._convolve(self._double(features), name, 0.2)
        features = self._convolve(features, "conv_hr", 0.2, ("doubled", features.height // 2))
        kernel = self._state["conv_last.weight"]
        return functional.conv2d(
            features.pixels.permute(2, 0, 1)[None], kernel, self._bias("conv_last"), padding=1
        )

    def _dense(self, features: _FeatureMap, name: str) -> None:
        """A residual dense block: each convolution reads the features and the outputs of those before it."""
        channels, growth = features.channels, self._spec.parameters["num_grow_ch"]
        transformed = self._buffer("transformed", 36, features.rows * features.columns, channels + 4 * growth)
        new = self._map("growth", features.height, features.width, growth)
        self._transform_map(features, transformed[..., :channels])
        for index in range(1, 5):
            for strip in features.strips:
                part = transformed[:, features.window_range(strip), :channels]
                new.windows(strip, 4).copy_(self._multiply(part, f"{name}{index}", 0.2, strip))
            new.clear_padding()
            self._transform_map(new, transformed[..., channels : channels + growth])
            channels += growth
        for strip in features.strips:
            part = transformed[:, features.window_range(strip)]
            features.windows(strip, 4).add_(self._multiply(part, f"{name}5", None, strip), alpha=0.2)
        features.clear_padding()

    def _transform_map(self, features: _FeatureMap, out: torch.Tensor) -> None:
        """Transform all windows of a map into `out`, (36, windows, channels)."""
        for strip in features.strips:
            out[:, features.window_range(strip)] = self._transform(features, strip)

    def _convolve(
        self, features: _FeatureMap, name: str, slope: Slope = None, key: object = None
    ) -> _FeatureMap:
        """Convolve and apply a leaky ReLU, into the map of that key (default: the layer's own)."""
        out = self._map(key or name, features.height, features.width, len(self._bias(name)))
        for strip in features.strips:
            out.windows(strip, 4).copy_(self._multiply(self._transform(features, strip), name, slope, strip))
        out.clear_padding()
        return out

    def _transform(self, features: _FeatureMap, strip: Strip) -> torch.Tensor:
        """Transform a strip's windows; return (36, windows, channels)."""
        windows = features.windows(strip, 6)
        pixels = self._buffer("windows", *windows.shape).copy_(windows).view(36, -1)
        out = self._buffer("forward", *pixels.shape)
        return torch.mm(_FORWARD, pixels, out=out).view(36, -1, features.channels)

    def _multiply(self, values: torch.Tensor, name: str, slope: Slope, strip: Strip) -> torch.Tensor:
        """Convolve transformed windows; return pixels (4, 4, rows, columns, channels)."""
        kernel, bias = self._kernels[name], self._bias(name)
        product = torch.bmm(values, kernel, out=self._buffer("product", 36, values.shape[1], len(bias)))
        out = self._buffer("inverse", 16, values.shape[1] * len(bias))
        pixels = torch.mm(_INVERSE, product.view(36, -1), out=out).view(-1, len(bias)).add_(bias)
        if isinstance(slope, float):
            functional.leaky_relu_(pixels, slope)
        elif isinstance(slope, torch.Tensor):  # one for each channel: max(x, 0) + slope min(x, 0)
            negative = torch.clamp(pixels, max=0, out=self._buffer("negative", *pixels.shape))
            pixels.addcmul_(negative, slope - 1)
        return pixels.view(4, 4, strip[1], -1, len(bias))

    def _load(self, batch: torch.Tensor) -> _FeatureMap:
        channels, height, width = batch.shape[1:]
        features = self._map("input", height, width, channels)
        features.pixels.copy_(batch[0].permute(1, 2, 0))
        return features

    def _double(self, features: _FeatureMap) -> _FeatureMap:
        """Enlarge twice by nearest neighbour."""
        height, width, channels = features.pixels.shape
        out = self._map(("doubled", height), 2 * height, 2 * width, channels)
        quads = out.pixels.unflatten(1, (width, 2)).unflatten(0, (height, 2))
        quads.copy_(features.pixels[:, None, :, None])
        return out

    def _bias(self, name: str) -> torch.Tensor:
        return self._state[f"{name}.bias"]

    def _map(self, key: object, *shape: int) -> _FeatureMap:
        if key not in self._maps:
            self._maps[key] = _FeatureMap(*shape)
        return self._maps[key]

    def _buffer(self, name: str, *shape: int) -> torch.Tensor:
        """Return uninitialised memory of that name, which grows to the largest shape requested."""
        count = math.prod(shape)
        if name not in self._buffers or len(self._buffers[name]) < count:
            self._buffers[name] = torch.empty(count)
        return self._buffers[name][:count].view(shape)


def _transform_kernel(kernel: torch.Tensor) -> torch.Tensor:
    """Transform a kernel (out, in, 3, 3) to (36, in, out)."""
    transformed = torch.einsum("ai,ocij,bj->abco", _KERNEL, kernel.double(), _KERNEL)
    return transformed.flatten(0, 1).float().contiguous()
