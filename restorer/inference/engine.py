"""Run an upscaling network on tiles of integer samples."""

import copy
import functools
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import numpy as np
import psutil
import torch
from torch import nn

from ..errors import InvalidOption, InvalidOutput, OutOfMemory
from ..models import architectures, download, loader, registry
from ..options import BFLOAT16, SMALLEST_TILE
from ..progress import Progress
from . import backends
from .backends import Network

# Only a few sizes, so that small differences in free memory do not change the result. Larger tiles waste
# less on context, but on a CPU they no longer fit in the cache: 256 measured fastest, except with OpenVINO
_TILES = (768, 512, 384, 256, 192, 128, 96, 64, 48, SMALLEST_TILE)
_LARGEST_ON_CPU, _LARGEST_OF_OPENVINO = 256, 512
_ROWS_PER_CHUNK = 64  # of an output quantised at a time on a CPU, to stay in its cache
# Messages of torch's allocators that raise a plain RuntimeError (CPU, MPS, the CUDA runtime)
_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "DefaultCPUAllocator", "out of memory")


@contextmanager
def out_of_memory() -> Iterator[None]:
    """Convert every out-of-memory error of the block to OutOfMemory; empty a GPU's cache."""
    try:
        yield
    except MemoryError as error:
        raise OutOfMemory("out of memory") from error
    except torch.OutOfMemoryError as error:
        torch.cuda.empty_cache()
        raise OutOfMemory("out of GPU memory") from error
    except RuntimeError as error:
        if any(text in str(error) for text in _OUT_OF_MEMORY):
            raise OutOfMemory("out of memory") from error
        raise


def without_tf32() -> AbstractContextManager[None]:
    """Disable TF32 in cuDNN: PyTorch allows it by default, which drops 13 bits of a float32."""
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)


# Waits for the samples (n, h, w, 3) as uint8 or int32, and which of the n outputs are finite (n,)
_Outputs = Callable[[], tuple[np.ndarray, np.ndarray]]


class Engine:
    """A super-resolution network on a device.

    network  maps (n, 3, h, w) float32 in [0, 1] to (n, 3, h*scale, w*scale); n is 1 except on CUDA
    name     device and backend: "cuda" or "cpu:ncnn"
    scale    the network's upscaling factor
    align    input sides must be multiples of this (pixel unshuffle)
    pad      context in pixels that each tile needs
    bytes    working memory per input pixel in float32
    half     compute in float16, which requires network to be an nn.Module; tiles that overflow are recomputed
             in float32
    lock     held while a tile is recomputed, after start() has returned
    sha256, source  of the weights, see loader.Weights

    asynchronous  see tiling.Device; True on CUDA
    """

    def __init__(
        self,
        network: Network,
        *,
        scale: int,
        name: str = "cpu:torch",
        device: torch.device,
        align: int = 1,
        pad: int = 0,
        bytes: int = 10_000,
        half: bool = False,
        lock: AbstractContextManager[object] | None = None,
        sha256: str = "",
        source: str = "",
    ) -> None:
        self.sha256, self.source = sha256, source
        self.name, self.scale, self.align, self.pad, self.device = name, scale, align, pad, device
        self.bytes = bytes // 2 if half else bytes
        if isinstance(network, nn.Module):
            network = network.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.network = network
        self.half_network = copy.deepcopy(network).half() if half else None  # type: ignore[attr-defined]
        self._lock = lock or nullcontext()
        self.asynchronous = device.type == "cuda"

    def __call__(self, tile: np.ndarray) -> np.ndarray:
        """Upscale (h, w, 3) uint8 or uint16 RGB to (h*scale, w*scale, 3) of the same dtype, rounded.

        Raises OutOfMemory, and InvalidOutput if the output is NaN or infinite even in float32.
        """
        return self.start(tile[None])()[0]

    def start(self, tiles: np.ndarray) -> Callable[[], np.ndarray]:
        """Start upscaling (n, h, w, 3) uint8 or uint16 RGB; n is 1 unless asynchronous.

        Returns a function that waits for (n, h*scale, w*scale, 3) of the same dtype, rounded. On CUDA the GPU
        computes in the meantime; elsewhere the result is complete when start() returns.

        Both raise OutOfMemory; the returned function also raises InvalidOutput if an output is NaN or
        infinite even in float32.
        """
        outputs = self._forward(self.half_network or self.network, tiles, half=self.half_network is not None)

        def wait() -> np.ndarray:
            samples, finite = outputs()
            for index in np.flatnonzero(~finite):
                samples[index] = self._recompute_in_float32(tiles[index])
            return samples.astype(tiles.dtype, copy=False)

        return wait

    def best_tile(self) -> int:
        """Return the largest tile side in pixels that, with its context, fits in half of the free memory."""
        side = math.isqrt(self._free_memory() // 2 // self.bytes) - 2 * self.pad
        if self.device.type == "cpu":
            side = min(side, _LARGEST_OF_OPENVINO if self.name == "cpu:openvino" else _LARGEST_ON_CPU)
        return next((tile for tile in _TILES if tile <= side), SMALLEST_TILE)

    def _free_memory(self) -> int:
        if self.device.type != "cuda":
            return psutil.virtual_memory().available
        cached = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        return torch.cuda.mem_get_info(self.device)[0] + max(cached, 0)

    def _recompute_in_float32(self, tile: np.ndarray) -> np.ndarray:
        if self.half_network is not None:
            with self._lock:
                outputs = self._forward(self.network, tile[None], half=False)
            samples, finite = outputs()
            if finite.all():
                return samples[0]
        raise InvalidOutput("the network returned NaN or infinite values, even in float32")

    def _forward(self, network: Network, tiles: np.ndarray, *, half: bool) -> _Outputs:
        with nullcontext() if half or not self.asynchronous else without_tf32():
            return self._run(network, tiles, half=half)

    @out_of_memory()
    @torch.inference_mode()
    def _run(self, network: Network, tiles: np.ndarray, *, half: bool) -> _Outputs:
        white = int(np.iinfo(tiles.dtype).max)
        host = torch.from_numpy(tiles.astype(np.uint8 if white == 255 else np.int32))
        if self.asynchronous:
            host = host.pin_memory()
        integers = host.to(self.device, non_blocking=self.asynchronous)
        batch = integers.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.channels_last) / white
        out = network(batch.half() if half else batch).float()
        # Minimum and maximum are NaN if any value is; one pass, where isfinite() takes several
        bounds = torch.stack([bound for image in out for bound in torch.aminmax(image)]).view(-1, 2)
        values = out.permute(0, 2, 3, 1)
        if self.asynchronous:
            return self._copy_to_host(_quantize(values, white, host.dtype), bounds)
        samples = torch.empty(values.shape, dtype=host.dtype)
        rows = _ROWS_PER_CHUNK if self.device.type == "cpu" else values.shape[1]
        for chunk, target in zip(values.split(rows, 1), samples.split(rows, 1), strict=True):
            target.copy_(_quantize(chunk, white, host.dtype))
        finite = bounds.isfinite().all(1).cpu().numpy()
        return lambda: (samples.numpy(), finite)

    @functools.cached_property
    def _copy_stream(self) -> torch.cuda.Stream:
        return torch.cuda.Stream(self.device)

    def _copy_to_host(self, samples: torch.Tensor, bounds: torch.Tensor) -> _Outputs:
        """Copy to pinned memory on a second stream, while the GPU computes the next batch."""
        copies = [torch.empty(t.shape, dtype=t.dtype, pin_memory=True) for t in (samples, bounds)]
        self._copy_stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._copy_stream):
            for source, target in zip((samples, bounds), copies, strict=True):
                target.copy_(source, non_blocking=True)
                source.record_stream(self._copy_stream)
            done = torch.cuda.Event(blocking=True)  # a waiting thread sleeps instead of spinning
            done.record(self._copy_stream)

        def wait() -> tuple[np.ndarray, np.ndarray]:
            done.synchronize()
            return copies[0].numpy(), copies[1].isfinite().all(1).numpy()

        return wait


def _quantize(values: torch.Tensor, white: int, dtype: torch.dtype) -> torch.Tensor:
    return values.contiguous().mul_(white).round_().clamp_(0, white).to(dtype)


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
    denoise   below 1, interpolate the weights with those of the model's pair
    lock      held while backends are timed and tiles are computed
    progress  see download.ensure()

    Raises WeightsUnavailable, BadWeights, and InvalidOption for a precision the device does not support.
    """
    checkpoint = loader.load(download.ensure(model, weights, progress))
    state = checkpoint.state
    spec = architectures.detect(state, model.name)
    if denoise < 1:
        pair = download.ensure(registry.find(model.pair, weights), weights, progress)
        state = architectures.interpolate(state, loader.load(pair).state, denoise)
    target = backends.pick_device(device)
    use_half = target.type == "cuda" if half is None else half
    if device in backends.NAMES and (use_half or (device == BFLOAT16 and half is False)):
        raise InvalidOption(f"{device} has a fixed precision; leave out half and --fp32")
    if target.type != "cpu" or use_half:
        network, name = architectures.build(spec, state, model.name), str(target)
    else:
        with lock:  # other work would disturb the timing of the backends
            network, name = backends.build(device or "cpu", spec, state, model.name)
    return Engine(
        network,
        name=name,
        scale=spec.scale,
        align=spec.align,
        pad=spec.pad,
        bytes=round(spec.bytes * backends.MEMORY_FACTOR.get(name, 1)),
        device=target,
        half=use_half,
        lock=lock,
        sha256=checkpoint.sha256,
        source=checkpoint.kind,
    )
