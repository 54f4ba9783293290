"""Run an upscaling network on images of integer samples."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional

from ..errors import InvalidOption, InvalidOutput
from ..models import architectures, download, loader, registry
from ..options import BFLOAT16, SMALLEST_TILE
from ..progress import PassProgress, Progress, Stats
from . import backends, memory, network
from .backends import Backend
from .memory import out_of_memory
from .network import Compute, Segment
from .tiling import Box, NotFinite, Run, Sink, count_tiles

# Context of a part of an image whose maps do not fit in memory, in pixels: at most 1 level of difference with
# RealESRGAN_x4plus, where 64 pixels leave 5 levels
PART_CONTEXT = 96
# The largest tile that is chosen: on a CPU for its cache, on a GPU for 32-bit indices
_TILE, _TILE_ON_GPU = 256, 2048
# Working memory of a tile in bytes, per pixel and feature in float32; measured with RRDBNet
_TILE_BYTES = 40
_FRACTION = 0.8  # of the free memory that maps and tiles may take


def without_tf32(device: torch.device) -> AbstractContextManager[None]:
    """Disable TF32 in cuDNN: PyTorch allows it by default, which drops 13 bits of a float32.

    The setting is that of the process: hold the lock of a GPU meanwhile.
    """
    if device.type == "cuda":
        return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
    return nullcontext()


class Part(NamedTuple):
    """Rows of an image: those to read, and those of them whose output is used."""

    first: int
    last: int
    top: int
    bottom: int


class Engine:
    """A super-resolution network on a device.

    segments of the network, see network.segments(); their modules are on the device
    backend  computes the segments; None: the modules themselves
    scale    the network's upscaling factor
    align    input sides must be multiples of this (pixel unshuffle)
    name     device and backend: "cuda" or "cpu:ncnn"
    family   class of the network: "RRDBNet" or "SRVGGNetCompact"
    lock     held while a tile is computed
    sha256, source  of the weights, see loader.Weights
    """

    def __init__(
        self,
        segments: Sequence[Segment],
        backend: Backend | None = None,
        *,
        scale: int,
        align: int = 1,
        name: str = "cpu:torch",
        device: torch.device | None = None,
        lock: AbstractContextManager[object] | None = None,
        family: str = "",
        sha256: str = "",
        source: str = "",
    ) -> None:
        self.family, self.sha256, self.source = family, sha256, source
        self.name, self.scale, self.align, self.device = name, scale, align, device or torch.device("cpu")
        self._segments = list(segments)
        self._exact = backends.modules(self._segments)  # in float32, for values that 16 bits cannot hold
        self._backend = backend or self._exact
        self._lock = lock or nullcontext()
        self._map_bytes = network.map_channels(self._segments) * self._backend.dtype.itemsize / align**2

    def bands(
        self, image: np.ndarray, *, tile: int, progress: Progress | None = None, stats: Stats | None = None
    ) -> Iterator[np.ndarray]:
        """Upscale (H, W, 3) uint8 or uint16 RGB; yield (rows, W*scale, 3) of the same dtype, from the top.

        H and W are multiples of `align`. `tile` is the largest side of a tile in pixels, see Run.

        Raises OutOfMemory, InvalidOutput, and what `progress` raises.
        """
        stats = stats if stats is not None else Stats()
        height, width = image.shape[:2]
        tile = self._fitting_tile(tile, height, width)
        parts = self._cut(height, width, tile, image.itemsize)
        stats.parts = max(stats.parts, len(parts))
        steps = PassProgress(progress, len(parts))
        for part in parts:
            bands = self._part(image[part.first : part.last], tile, steps, stats)
            first, last = (self.scale * (row - part.first) for row in (part.top, part.bottom))
            yield from _rows(bands, first, last)

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Upscale a small image: (H, W, 3) to (H*scale, W*scale, 3)."""
        return np.concatenate(list(self.bands(image, tile=_TILE)))

    def best_tile(self) -> int:
        """Return the largest tile side that fits in a quarter of the free memory, at most the fastest one."""
        tile = _TILE if self.device.type == "cpu" else _TILE_ON_GPU
        return self._fitting_tile(tile, tile, tile)

    def _fitting_tile(self, tile: int, height: int, width: int) -> int:
        """Halve a tile of an image until it fits in a quarter of the free memory."""
        room = memory.free(self.device) // 4
        while tile > SMALLEST_TILE and self._tile_bytes(tile, height, width) > room:
            tile = max(tile // 2, SMALLEST_TILE)
        return tile

    def count_tiles(self, height: int, width: int, tile: int) -> int:
        """Return the number of tiles of all segments, if the maps fit in memory and it does not run out."""
        sides, tile = (height // self.align, width // self.align), self._fitting_tile(tile, height, width)
        return count_tiles(self._segments, *sides, self._backend.tile or tile)

    def _tile_bytes(self, tile: int, height: int, width: int) -> int:
        tile = self._backend.tile or tile
        pixels = min(tile, height) * min(tile, width)
        return pixels * self._segments[0].channels * _TILE_BYTES * self._backend.dtype.itemsize // 4

    def _cut(self, height: int, width: int, tile: int, sample_bytes: int) -> list[Part]:
        """Cut an image into parts of as many rows as fit; the fewest, of about the same height."""
        room = memory.free(self.device) * _FRACTION - self._tile_bytes(tile, height, width)
        rows = int(room // (width * (self._map_bytes + 3 * self.scale**2 * sample_bytes)))
        if rows >= height:
            return [Part(0, height, 0, height)]
        context = PART_CONTEXT * self.align
        rows = max(rows - 2 * context, SMALLEST_TILE) // self.align * self.align
        count = -(-height // rows)
        rows = -(-height // count // self.align) * self.align
        return [
            Part(max(top - context, 0), min(top + rows + context, height), top, min(top + rows, height))
            for top in range(0, height, rows)
        ]

    def _part(
        self, image: np.ndarray, tile: int, progress: Progress | None, stats: Stats
    ) -> Iterator[np.ndarray]:
        """Yield the bands of an image whose maps fit. In 16 bits, continue in float32 after an overflow."""
        done = 0
        try:
            for band in self._run(self._backend, image, tile, progress, stats):
                yield band
                done += len(band)
        except NotFinite as error:
            if self._backend.dtype == torch.float32:
                raise InvalidOutput("the network returned NaN or infinite values") from error
        else:
            return
        yield from _rows(self._run(self._exact, image, tile, progress, stats), done, len(image) * self.scale)

    @torch.inference_mode()
    def _run(
        self, backend: Backend, image: np.ndarray, tile: int, progress: Progress | None, stats: Stats
    ) -> Iterator[np.ndarray]:
        white = int(np.iinfo(image.dtype).max)
        cuda = self.device.type == "cuda"
        run = Run(
            self._segments,
            [Guarded(compute, self.device) for compute in backend.compute],
            tile=backend.tile or tile,
            fixed=backend.tile is not None,
            progress=progress,
            lock=self._lock,
            check_all=not cuda,
        )
        try:
            with out_of_memory():  # of maps and bands; that of a tile is handled by the run
                first = self._upload(image, white, backend)
                yield from run.bands(first, _sink(white, self.device))
        finally:
            stats.retries += run.retries

    def _upload(self, image: np.ndarray, white: int, backend: Backend) -> torch.Tensor:
        """Convert (H, W, 3) samples to the first map (1, 3*align**2, H/align, W/align), 1.0 being white."""
        host = torch.from_numpy(image.astype(np.uint8 if white == 255 else np.int32))
        if self.device.type == "cuda":
            host = host.pin_memory()
        planes = host.to(self.device, non_blocking=True).permute(2, 0, 1)[None].float() / white
        planes = functional.pixel_unshuffle(planes, self.align) if self.align > 1 else planes
        return planes.to(backend.dtype).contiguous(memory_format=backend.layout)


class Guarded:
    """A segment in full float32 precision."""

    def __init__(self, compute: Compute, device: torch.device) -> None:
        self._compute = compute
        # Setting cuDNN's flags takes as long as two launches of Triton's functions, which do not use it
        without_cudnn = getattr(compute, "without_cudnn", False)
        self._precision = nullcontext if without_cudnn else partial(without_tf32, device)

    def __call__(self, *windows: torch.Tensor) -> torch.Tensor:
        with self._precision():
            return self._compute(*windows)


def _rows(bands: Iterator[np.ndarray], first: int, last: int) -> Iterator[np.ndarray]:
    """Yield the rows first to last of an image that arrives in bands."""
    top = 0
    for band in bands:
        rows = band[max(0, first - top) : max(0, last - top)]
        top += len(band)
        if len(rows):
            yield rows


def _sink(white: int, device: torch.device) -> Sink[Any]:
    return _CudaSink(white, device) if device.type == "cuda" else _HostSink(white)


class _HostSink:
    """Rounds outputs to samples in host memory."""

    def __init__(self, white: int) -> None:
        self._white = white

    def band(self, rows: int, columns: int) -> np.ndarray:
        return np.empty((rows, columns, 3), np.uint8 if self._white == 255 else np.uint16)

    def write(self, band: np.ndarray, box: Box, output: torch.Tensor) -> None:
        samples, finite = _quantize(output, self._white)
        if not finite:
            raise NotFinite("the network returned NaN or infinite values")
        band[box.slices] = samples.cpu().numpy()

    def samples(self, band: np.ndarray) -> np.ndarray:
        return band


class _CudaBand(NamedTuple):
    """A band in pinned memory, and whether its outputs are finite."""

    samples: torch.Tensor
    finite: list[torch.Tensor]


class _CudaSink:
    """Rounds outputs to samples and copies them to pinned memory while the GPU computes the next tile."""

    def __init__(self, white: int, device: torch.device) -> None:
        self._white, self._device, self._stream = white, device, torch.cuda.Stream(device)

    def band(self, rows: int, columns: int) -> _CudaBand:
        dtype = torch.uint8 if self._white == 255 else torch.int32
        return _CudaBand(torch.empty((rows, columns, 3), dtype=dtype, pin_memory=True), [])

    def write(self, band: _CudaBand, box: Box, output: torch.Tensor) -> None:
        samples, finite = _quantize(output, self._white)
        band.finite.append(finite)
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            band.samples[box.slices].copy_(samples, non_blocking=True)
            samples.record_stream(self._stream)

    def samples(self, band: _CudaBand) -> np.ndarray:
        self._stream.synchronize()
        if not torch.stack(band.finite).all():
            raise NotFinite("the network returned NaN or infinite values")
        samples = band.samples.numpy()
        return samples if self._white == 255 else samples.astype(np.uint16)


def _quantize(output: torch.Tensor, white: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Round (1, 3, h, w) in [0, 1] to (h, w, 3) uint8 or int32; also return whether all are finite."""
    # the minimum and maximum are NaN if any value is; one pass, where isfinite() takes several
    finite = torch.stack(torch.aminmax(output)).isfinite().all()
    values = output[0].permute(1, 2, 0).contiguous().float().mul_(white).round_().clamp_(0, white)
    return values.to(torch.uint8 if white == 255 else torch.int32), finite


@out_of_memory()
def load(
    model: registry.Model,
    weights: Path,
    *,
    device: str | None,
    half: bool | None,
    denoise: float = 1.0,
    lock: threading.Lock,
    progress: Progress | None = None,
) -> Engine:
    """Load an upscaling model, downloading its file if it is absent.

    weights, device, half  see Restorer
    denoise   below 1, interpolate the weights with those of the model's denoise_model
    lock      held while tiles are computed
    progress  see download.ensure()

    Raises WeightsUnavailable, BadWeights, and InvalidOption for a precision the device does not support.
    """
    checkpoint = loader.load(download.ensure(model, weights, progress))
    state = checkpoint.state
    spec = architectures.detect(state, model.name)
    if denoise < 1:
        denoise_model = download.ensure(registry.find(model.denoise_model, weights), weights, progress)
        state = architectures.interpolate(state, loader.load(denoise_model).state, denoise)
    target = backends.pick_device(device)
    use_half = target.type == "cuda" if half is None else half
    if device in backends.NAMES and (use_half or (device == BFLOAT16 and half is False)):
        raise InvalidOption(f"{device} has a fixed precision; leave out half and --fp32")
    module = architectures.build(spec, state, model.name).eval().requires_grad_(False)
    segments = network.segments(module.to(target, memory_format=torch.channels_last))  # type: ignore[call-overload]
    if use_half:
        name, backend = str(target), backends.half(segments, target)
    elif target.type != "cpu":
        name, backend = str(target), backends.modules(segments)
    else:
        name = backends.choose(spec.arch, weights) if device in (None, "cpu") else str(device)
        backend = backends.build(name, segments)
    return Engine(
        segments,
        backend,
        name=name,
        scale=spec.scale,
        align=spec.align,
        device=target,
        lock=lock,
        family=spec.arch,
        sha256=checkpoint.sha256,
        source=checkpoint.kind,
    )
