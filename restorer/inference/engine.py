"""One network on one device: integer tiles in, integer tiles out."""

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

# Few sizes, so that a little more or less free memory does not change the result. A larger tile wastes less
# on context, but on a CPU it leaves the cache: 256 is the measured best. OpenVINO does not mind
_TILES = (768, 512, 384, 256, 192, 128, 96, 64, 48, SMALLEST_TILE)
_LARGEST_ON_CPU, _LARGEST_OF_OPENVINO = 256, 512
_ROWS = 64  # of an answer that a CPU makes into levels at a time: they stay in its cache
# What torch's allocators say where they raise no error class of their own (CPU, MPS, CUDA's runtime)
_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "DefaultCPUAllocator", "out of memory")


@contextmanager
def out_of_memory() -> Iterator[None]:
    """Every way in which memory can run out here becomes OutOfMemory; a GPU's cache is emptied."""
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
    """float32 as it is called: PyTorch allows cuDNN to drop 13 of its bits."""
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)


# Waits for levels (n, h, w, 3) as uint8 or int32, and for which of them came of finite numbers (n,)
_Answers = Callable[[], tuple[np.ndarray, np.ndarray]]


class Engine:
    """A super-resolution network, ready to be called on tiles.

    network  maps (n, 3, h, w) float32 in [0, 1] to (n, 3, h*scale, w*scale); n is 1 but on CUDA
    name     of the device and the way it computes, "cuda" or "cpu:ncnn"
    scale    what the network multiplies by
    align    its input sides are multiples of this (pixel unshuffle)
    pad      context in pixels that its tiles need
    bytes    working memory for each input pixel in float32
    half     compute in 16-bit floating point, for which network is a module of torch; a tile that overflows
             is done again in float32
    running  held while a tile is done again, which is after start()
    sha256, source  of the weights, see loader.Weights

    asynchronous  tiling.Device's: on CUDA
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
        running: AbstractContextManager[object] | None = None,
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
        self._running = running or nullcontext()
        self.asynchronous = device.type == "cuda"

    def __call__(self, tile: np.ndarray) -> np.ndarray:
        """(h, w, 3) uint8 or uint16 RGB to (h*scale, w*scale, 3) of the same dtype, rounded.

        Raises OutOfMemory, and InvalidOutput when even float32 gives NaN or Inf.
        """
        return self.start(tile[None])()[0]

    def start(self, tiles: np.ndarray) -> Callable[[], np.ndarray]:
        """Begin with (n, h, w, 3) uint8 or uint16 RGB; n is 1 unless asynchronous.

        What is given back waits for (n, h*scale, w*scale, 3) of the same dtype, rounded. On CUDA the GPU
        computes meanwhile; elsewhere it is done when this returns.

        Both raise OutOfMemory, the latter InvalidOutput when even float32 gives NaN or Inf.
        """
        answers = self._started(self.half_network or self.network, tiles, half=self.half_network is not None)

        def wait() -> np.ndarray:
            levels, finite = answers()
            for index in np.flatnonzero(~finite):
                levels[index] = self._in_full(tiles[index])
            return levels.astype(tiles.dtype, copy=False)

        return wait

    def best_tile(self) -> int:
        """Side of a tile in pixels for which half of the free memory suffices, context included."""
        side = math.isqrt(self._free_memory() // 2 // self.bytes) - 2 * self.pad
        if self.device.type == "cpu":
            side = min(side, _LARGEST_OF_OPENVINO if self.name == "cpu:openvino" else _LARGEST_ON_CPU)
        return next((tile for tile in _TILES if tile <= side), SMALLEST_TILE)

    def _free_memory(self) -> int:
        if self.device.type != "cuda":
            return psutil.virtual_memory().available
        kept = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        return torch.cuda.mem_get_info(self.device)[0] + max(kept, 0)  # torch keeps what it has freed

    def _in_full(self, tile: np.ndarray) -> np.ndarray:
        if self.half_network is not None:
            with self._running:
                answers = self._started(self.network, tile[None], half=False)
            levels, finite = answers()
            if finite.all():
                return levels[0]
        raise InvalidOutput("the network gave NaN or infinite values, even in full precision")

    def _started(self, network: Network, tiles: np.ndarray, *, half: bool) -> _Answers:
        with nullcontext() if half or not self.asynchronous else without_tf32():
            return self._launched(network, tiles, half=half)

    @out_of_memory()
    @torch.inference_mode()
    def _launched(self, network: Network, tiles: np.ndarray, *, half: bool) -> _Answers:
        top = int(np.iinfo(tiles.dtype).max)
        given = torch.from_numpy(tiles.astype(np.uint8 if top == 255 else np.int32))
        if self.asynchronous:
            given = given.pin_memory()
        integers = given.to(self.device, non_blocking=self.asynchronous)
        batch = integers.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.channels_last) / top
        out = network(batch.half() if half else batch).float()
        # NaN if any is; one pass, where isfinite() takes several
        bounds = torch.stack([end for one in out for end in torch.aminmax(one)]).view(-1, 2)
        values = out.permute(0, 2, 3, 1)
        if self.asynchronous:
            return self._downloaded(_levels(values, top, given.dtype), bounds)
        levels = torch.empty(values.shape, dtype=given.dtype)
        rows = _ROWS if self.device.type == "cpu" else values.shape[1]
        for some, place in zip(values.split(rows, 1), levels.split(rows, 1), strict=True):
            place.copy_(_levels(some, top, given.dtype))
        finite = bounds.isfinite().all(1).cpu().numpy()
        return lambda: (levels.numpy(), finite)

    @functools.cached_property
    def _downloads(self) -> torch.cuda.Stream:
        return torch.cuda.Stream(self.device)

    def _downloaded(self, levels: torch.Tensor, bounds: torch.Tensor) -> _Answers:
        """Copied beside what the GPU computes next, into memory that it reaches by itself."""
        here = [torch.empty(one.shape, dtype=one.dtype, pin_memory=True) for one in (levels, bounds)]
        self._downloads.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._downloads):
            for source, target in zip((levels, bounds), here, strict=True):
                target.copy_(source, non_blocking=True)
                source.record_stream(self._downloads)
            done = torch.cuda.Event(blocking=True)  # a thread that waits leaves its core to others
            done.record(self._downloads)

        def wait() -> tuple[np.ndarray, np.ndarray]:
            done.synchronize()
            return here[0].numpy(), here[1].isfinite().all(1).numpy()

        return wait


def _levels(values: torch.Tensor, top: int, dtype: torch.dtype) -> torch.Tensor:
    return values.contiguous().mul_(top).round_().clamp_(0, top).to(dtype)


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
    """Load an upscaling model, downloaded where its file is absent.

    weights, device, half  see Restorer
    denoise   below 1 the weights are interpolated with those of the model's pair
    lock      held while backends are timed and tiles are computed
    progress  see download.ensure()

    Raises WeightsUnavailable, BadWeights, and InvalidOption for a precision that the device does not have.
    """
    read = loader.load(download.ensure(model, weights, progress))
    state = read.state
    shape = architectures.detect(state, model.name)
    if denoise < 1:
        pair = download.ensure(registry.find(model.pair, weights), weights, progress)
        state = architectures.interpolate(state, loader.load(pair).state, denoise)
    target = backends.pick_device(device)
    in_half = target.type == "cuda" if half is None else half
    if device in backends.NAMES and (in_half or (device == BFLOAT16 and half is False)):
        raise InvalidOption(f"{device} has a precision of its own: leave out half or --fp32")
    if target.type != "cpu" or in_half:
        network, name = architectures.build(shape, state, model.name), str(target)
    else:
        with lock:  # backends are timed: nothing else may run
            network, name = backends.build(device or "cpu", shape, state, model.name)
    return Engine(
        network,
        name=name,
        scale=shape.scale,
        align=shape.align,
        pad=shape.pad,
        bytes=round(shape.bytes * backends.MEMORY_FACTOR.get(name, 1)),
        device=target,
        half=in_half,
        running=lock,
        sha256=read.sha256,
        source=read.kind,
    )
